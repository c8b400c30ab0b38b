"""From the axes of a file to those of the patient: x to the left, y to the back, z to the head (LPS)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid

# Axes that are turned by less are those of the patient, with rounded cosines.
_TILT_MOST = 1e-3


def on_patient_axes(values: NDArray, to_lps: NDArray[np.float64], name: str) -> tuple[NDArray, Grid]:
    """Values `[z, y, x]` and their grid, of values `[i, j, k]` and the 4 x 4 matrix from `ijk1` to LPS in mm.

    Axes may be exchanged and run either way. Raises CaseError where they lie askew.
    """
    turn = to_lps[:3, :3]
    spacing = np.linalg.norm(turn, axis=0)
    if not np.all(np.isfinite(to_lps)) or spacing.min() <= 0:
        raise CaseError(f"{name}: its voxels have no size; write the file again")
    cosines = turn / spacing
    world = np.abs(cosines).argmax(axis=0)
    rest = np.abs(cosines).copy()
    rest[world, range(3)] = 0.0
    if sorted(world) != [0, 1, 2] or rest.max() > _TILT_MOST:
        raise CaseError(f"{name}: its axes lie askew to the patient's; resample it to axial slices")
    origin = to_lps[:3, 3].copy()
    for axis in range(3):
        if cosines[world[axis], axis] < 0:
            values = np.flip(values, axis)
            origin += turn[:, axis] * (values.shape[axis] - 1)
    order = [int(np.flatnonzero(world == w)[0]) for w in (2, 1, 0)]
    values = np.ascontiguousarray(np.transpose(values, order))
    x, y, z = (float(spacing[axis]) for axis in reversed(order))
    nz, ny, nx = values.shape
    return values, Grid((nz, ny, nx), (x, y, z), (float(origin[0]), float(origin[1]), float(origin[2])))
