"""The body: from the CT where none is drawn, without holes, and around its targets."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vmat_diffusion.case import Structure
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid

# Between air and fat (-100 HU); lungs are filled in as holes.
BODY_THRESHOLD_HU = -400.0
# Couch tops and mask frames are sheets thinner than this; opening by it cuts them off the patient.
_SHEET_MM = 8.0
# How far a target may reach outside the body, where a voxel is not larger. Ours.
_OUTSIDE_MM = 3.0


def body_from_ct(hu: NDArray, grid: Grid) -> NDArray[np.bool_]:
    """The largest connected region above -400 HU, cut free of thin sheets, filled slice by slice.

    Raises CaseError where nothing of at least 10 cm3 is found.
    """
    dense = hu > BODY_THRESHOLD_HU
    radius = [max(1, round(_SHEET_MM / 2 / s)) for s in grid.spacing_mm[:2]]
    disk = _ellipse(radius[1], radius[0])
    core = np.stack([ndimage.binary_opening(plane, disk) for plane in dense])
    labels, count = ndimage.label(core)
    if count:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        core = labels == int(np.argmax(sizes))
    if np.count_nonzero(core) * grid.voxel_cc < 10:
        raise CaseError(
            f"no body is contoured and the CT holds nothing of 10 cm3 above {BODY_THRESHOLD_HU:g} HU; "
            "contour the body"
        )
    # Opening rounds off ears and nose: take back what is dense and within its radius.
    regrown = [ndimage.binary_dilation(inner, disk) & plane for inner, plane in zip(core, dense, strict=True)]
    return without_holes(np.stack(regrown))


def without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with the holes of each axial slice filled."""
    out = mask.copy()
    for k in np.flatnonzero(mask.any(axis=(1, 2))):
        rows, columns = (np.flatnonzero(mask[k].any(axis=a)) for a in (1, 0))
        # What reaches the border of the mask's box is outside it: no hole is cut.
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        out[k][box] = ndimage.binary_fill_holes(mask[k][box])
    return out


def _ellipse(rows: int, columns: int) -> NDArray[np.bool_]:
    j, i = np.mgrid[-rows : rows + 1, -columns : columns + 1]
    return (j / rows) ** 2 + (i / columns) ** 2 <= 1.0


def refuse_targets_outside(targets: Iterable[Structure], body: NDArray[np.bool_], grid: Grid) -> None:
    """Raise CaseError for a target that reaches more than 3 mm, or one voxel, outside the body."""
    limit = max(_OUTSIDE_MM, *grid.spacing_mm)
    for target in targets:
        outside = target.mask & ~body
        if not outside.any():
            continue
        spread = [np.flatnonzero(outside.any(axis=tuple(b for b in range(3) if b != a))) for a in range(3)]
        margin = [int(np.ceil(5 * limit / s)) for s in grid.spacing_mm[::-1]]
        box = tuple(
            slice(max(int(s[0]) - m, 0), int(s[-1]) + m + 1) for s, m in zip(spread, margin, strict=True)
        )
        if body[box].any():
            away = ndimage.distance_transform_edt(~body[box], sampling=grid.spacing_mm[::-1])
        else:
            away = np.full(body[box].shape, 5 * limit)
        away = np.where(outside[box], away, 0.0)
        at = np.unravel_index(int(np.argmax(away)), away.shape)
        if away[at] > limit + 1e-6:
            z = grid.axes_mm[2][box[0].start + at[0]]
            raise CaseError(
                f"{target.name} reaches {away[at]:.0f} mm outside BODY at z = {z:.1f} mm; fix the contour or "
                "pass --allow-outside-body"
            )
