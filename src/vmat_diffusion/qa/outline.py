"""Whether the body is drawn on the tissue of the CT: structures that were shifted, a body of another size."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from vmat_diffusion.case import Case
from vmat_diffusion.geometry import Mask
from vmat_diffusion.qa.limits import GateSettings
from vmat_diffusion.qa.outline_fit import fitted_displacement
from vmat_diffusion.qa.verdict import Check, warning

# Between air and fat; just inside and just outside the outline of the body. Ours: nostrils, loose masks and
# couch tops make up less than a fifth of either.
_TISSUE_ABOVE_HU = -400.0
_NEAR_MM, _FAR_MM = 3.0, 6.0
_MOST_SHARE = 0.20
# A fit that explains less of the outline says nothing of all of it.
_LEAST_EXPLAINED = 0.5
# Voxels of the CT by which a sheet next to the skin may look thicker than it is.
_THICKER_VOXELS = 1.5
# A shift along z by less than this share of a slice, or less than 2 mm, is not said. Ours.
_LEAST_SLICES, _LEAST_Z_MM = 0.75, 2.0
# How the step begins that names a body which nobody drew.
_MADE_FROM_CT = "body-from-ct"
_FEWEST_VOXELS = 500
# How the steps begin that name contours without an image.
_LEFT_OUT = ("drop-contours", "thin-contours")


def body_outline(case: Case) -> Check | None:
    """A warning where the body is not drawn on the tissue of this CT: air inside it, or tissue outside.

    Structures that were shifted against the CT, and a body that is drawn too small or too large, change the
    dose of both engines alike. None where the CT ends too near to the body.
    """
    mask, tissue = _cropped(case)
    inner, outer = (_rim(m, case) for m in (mask, ~mask))
    if min(inner.sum(), outer.sum()) < _FEWEST_VOXELS:
        return None
    air, flesh = float(np.mean(~tissue[inner])), float(np.mean(tissue[outer]))
    where = f"between {_NEAR_MM:g} and {_FAR_MM:g} mm from the outline of {case.body.name}"
    said = f"{100 * air:.0f} % air inside and {100 * flesh:.0f} % tissue outside, {where}"
    wrong = max(air, flesh) > _MOST_SHARE
    why = [f"{said}: the body is not drawn on this CT, or either was shifted or scaled"] if wrong else []
    if any(step.startswith(_MADE_FROM_CT) for step in case.source.steps):
        why.append("no body is contoured; it was made from the CT, couch and masks may be part of it")
    return warning("outline of the body", why, said)


def outline_place(case: Case, settings: GateSettings) -> list[Check]:
    """Whether body and CT are shifted against each other in the slices, or one of them is scaled.

    A shift along z warns only: the outline of a trunk hardly shows it. Empty where nobody drew the body, and
    where shift and scale do not explain most of the outline.
    """
    if any(step.startswith(_MADE_FROM_CT) for step in case.source.steps):
        return []
    fit = fitted_displacement(case)
    if fit is None or fit.explained < _LEAST_EXPLAINED:
        return []
    x, y, z = fit.shift_mm
    said = (
        f"the CT's surface lies {x:+.1f} mm along x and {y:+.1f} mm along y from the outline of "
        f"{case.body.name}, and {fit.growth_mm[0]:+.1f} and {fit.growth_mm[1]:+.1f} mm further out "
        f"({fit.scale_percent[0]:+.1f} and {fit.scale_percent[1]:+.1f} % of scale); this explains "
        f"{100 * fit.explained:.0f} % of the outline"
    )
    remedy = "; export CT and structure set of one scan, with its own pixel spacing and position"
    side = max(settings.outline_side_mm, _THICKER_VOXELS * max(case.grid.spacing_mm[:2]))
    along = abs(z) > max(_LEAST_Z_MM, _LEAST_SLICES * case.grid.spacing_mm[2])
    off = f"; {z:+.1f} mm along z: look whether the structures lie on their slices" if along else ""
    found = (
        ("shift of the body's outline", fit.common_mm, settings.outline_shift_mm, off),
        ("furthest side of the body's outline", fit.furthest_mm, side, ""),
    )
    return [
        Check(name, mm <= limit, mm, limit, "mm", said + (caution if mm <= limit else remedy),
              cautions=mm <= limit and bool(caution))
        for name, mm, limit, caution in found
    ]  # fmt: skip


def contours_left_out(case: Case) -> list[str]:
    """The steps that left contours out when the case was read, as they lie on no image or between images.

    A few at the end of a body are usual; many say that images are missing or have other positions.
    """
    return [step for step in case.source.steps if step.startswith(_LEFT_OUT)]


def _cropped(case: Case) -> tuple[Mask, Mask]:
    """Body and tissue around the body, every slice that holds some of it."""
    margin = [int(np.ceil(2 * _FAR_MM / s)) for s in case.grid.spacing_mm[1::-1]]
    mask = case.body.mask
    used = np.flatnonzero(mask.any(axis=(1, 2)))
    spans = [np.flatnonzero(mask.any(axis=axes)) for axes in ((0, 2), (0, 1))]
    rows, columns = (
        slice(max(int(s[0]) - m, 0), int(s[-1]) + m + 1) for s, m in zip(spans, margin, strict=True)
    )
    return mask[used, rows, columns], np.asarray(case.hu[used, rows, columns] > _TISSUE_ABOVE_HU)


def _rim(mask: Mask, case: Case) -> Mask:
    """The voxels of a mask that lie 3 to 6 mm from its edge, slice by slice."""
    spacing = case.grid.spacing_mm[1::-1]
    out = np.zeros(mask.shape, bool)
    for plane, rim in zip(mask, out, strict=True):
        if not plane.all():
            away = ndimage.distance_transform_edt(plane, sampling=spacing)
            rim[:] = (away > _NEAR_MM) & (away <= _FAR_MM)
    return out
