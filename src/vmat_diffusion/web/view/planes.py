"""Planes of a case: HU and doses on the same pixels, and the outlines of masks.

A plane is one layer of voxels of the CT, axial, coronal or sagittal. Its pixels are `[y, x]`, `[z, x]` or
`[z, y]`, as the volume holds them.
"""

from __future__ import annotations

import mmap

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray

from vmat_diffusion.case import Dose
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid, resample_dose, subgrid
from vmat_diffusion.web.view.masks import PackedStructure

# The array axis that each kind of plane lies across.
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}
# Doses are sent in this many steps from 0 to their maximum: 80 Gy in steps of 1.2 mGy.
STEPS = 65535
# A cubic spline forgets a point at a distance of 16 by 1e-9.
_REACH = 16


def layer_grid(grid: Grid, plane: str, index: int) -> Grid:
    """The grid of one layer. Raises CaseError for one that does not exist."""
    axis = PLANES.get(plane)
    if axis is None:
        raise CaseError(f"plane {plane[:20]!r} is not one of {', '.join(PLANES)}; load the page again")
    if not 0 <= index < grid.shape[axis]:
        raise CaseError(
            f"{plane} slice {index} lies outside 0 to {grid.shape[axis] - 1}; choose one of these"
        )
    return subgrid(
        grid, tuple(slice(index, index + 1) if a == axis else slice(0, grid.shape[a]) for a in range(3))
    )


def ct_plane(hu: NDArray[np.int16], plane: str, index: int) -> NDArray[np.int16]:
    """The HU of one layer. Of a volume mapped from the disk nothing stays in the memory of the process."""
    layer = np.array(np.take(hu, index, PLANES[plane]), np.dtype("<i2"), order="C")
    source = hu.base
    if isinstance(source, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        # The system keeps the pages as long as it has room: the next plane finds them there.
        source.madvise(mmap.MADV_DONTNEED)
    return layer


def dose_plane(gy: NDArray, source: Grid, grid: Grid, plane: str, index: int) -> NDArray[np.float32]:
    """A dose in Gy at the pixels of one layer of `grid`, by the definition of `resample_dose`; 0 outside.

    Cost: 10 to 30 ms for 512 x 512 pixels and a dose on 3 mm voxels.
    """
    axis, layer = PLANES[plane], layer_grid(grid, plane, index)
    out = np.zeros(layer.shape, np.float32)
    box = _covered(source, layer)
    if box is not None:
        part, near = _near(gy, source, axis, layer.origin_mm[2 - axis])
        # The axis across the plane goes first: it alone leaves one layer of many.
        order = [axis, *(a for a in range(3) if a != axis)]
        turned = np.ascontiguousarray(part.transpose(order))
        found = resample_dose(turned, _ordered(near, order), _ordered(subgrid(layer, box), order))
        out[box] = found.transpose(np.argsort(order))
    return np.squeeze(out, axis)


def _ordered(grid: Grid, order: list[int]) -> Grid:
    """The same points with the array axes in another order."""
    (x, y, z), (ox, oy, oz) = grid.spacing_mm, grid.origin_mm
    spacing, origin, shape = (z, y, x), (oz, oy, ox), grid.shape
    a, b, c = order
    return Grid(
        (shape[a], shape[b], shape[c]),
        (spacing[c], spacing[b], spacing[a]),
        (origin[c], origin[b], origin[a]),
    )


def _covered(source: Grid, layer: Grid) -> tuple[slice, slice, slice] | None:
    """The pixels of a layer whose centres lie in the source's voxels."""
    box = []
    for axis in range(3):
        k = 2 - axis
        position = (layer.axes_mm[k] - source.origin_mm[k]) / source.spacing_mm[k]
        inside = np.flatnonzero((position >= -0.5 - 1e-6) & (position <= source.shape[axis] - 0.5 + 1e-6))
        if not inside.size:
            return None
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return box[0], box[1], box[2]


def _near(gy: NDArray, source: Grid, axis: int, at_mm: float) -> tuple[NDArray, Grid]:
    """The layers of a dose around a plane; all others are too far away to count."""
    k = 2 - axis
    position = (at_mm - source.origin_mm[k]) / source.spacing_mm[k]
    low, high = int(np.floor(position)) - _REACH, int(np.ceil(position)) + _REACH + 1
    box = [slice(0, n) for n in source.shape]
    box[axis] = slice(max(low, 0), min(high, source.shape[axis]))
    return gy[tuple(box)], subgrid(source, tuple(box))


def in_steps(gy: NDArray, step_gy: float) -> NDArray[np.uint16]:
    """Doses as whole steps of `step_gy`."""
    return np.clip(np.rint(gy / step_gy), 0, STEPS).astype(np.dtype("<u2"))


def step_gy(gy: NDArray) -> float:
    """The step in which a dose is sent."""
    return max(float(gy.max()), 1e-6) / STEPS


def mask_outlines(
    structure: PackedStructure, grid: Grid, plane: str, index: int
) -> list[NDArray[np.float32]]:
    """The outlines of a mask in a layer, closed lines `(n, 2)` in mm half-way between inner and outer voxels.

    The first coordinate runs along the columns of the plane, the second along its rows.
    """
    axis = PLANES[plane]
    mask = structure.plane(axis, index)
    if mask is None:
        return []
    rows, columns = (a for a in range(3) if a != axis)
    padded = np.pad(mask, 1)
    out = []
    for line in contour_generator(z=padded.astype(np.float32), line_type="Separate").lines(0.5):
        points = np.asarray(line)[:-1] - 1.0  # as (column, row) of the box
        for k, a in enumerate((columns, rows)):
            step, first = grid.spacing_mm[2 - a], grid.origin_mm[2 - a]
            points[:, k] = first + (points[:, k] + structure.first[a]) * step
        out.append(points.astype(np.float32))
    return out


def hottest_mm(dose: Dose) -> tuple[float, float, float]:
    """Where a dose is highest, `(x, y, z)`: the centre of a voxel of its grid."""
    x, y, z = dose.grid.points_mm(np.array([int(np.argmax(dose.gy))]))[0]
    return float(x), float(y), float(z)
