"""Whether a CT looks like a patient's: soft tissue near water, air near -1000 HU, the body drawn on it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vmat_diffusion.case import Case
from vmat_diffusion.geometry import Mask
from vmat_diffusion.qa.verdict import Check, warning

# Fat has -110 to -70 HU, muscle and organs 20 to 60 HU, contrast more (Schneider et al., Phys Med Biol
# 41:111, 1996, table 3). The peak is that of the soft tissue between fat and bone. Ours: room for phantoms of
# water and for obese patients, whose peak is that of fat.
_SOFT_HU, _SOFT_EXPECTED_HU = (-250.0, 250.0), (-130.0, 90.0)
_AIR_BELOW_HU, _AIR_EXPECTED_HU = -500.0, (-1050.0, -900.0)
_BIN_HU = 10.0
_FEWEST_VOXELS = 500
# Between air and fat; just inside and just outside the outline of the body. Ours: nostrils, loose masks and
# couch tops make up less than a fifth of either.
_TISSUE_ABOVE_HU = -400.0
_NEAR_MM, _FAR_MM = 3.0, 6.0
_MOST_SHARE = 0.20
# How the step begins that names a body which nobody drew.
_MADE_FROM_CT = "body-from-ct"


def ct_numbers(case: Case) -> Check | None:
    """A warning where the peak of soft tissue or that of the air outside the body is not where it belongs.

    A wrong rescale slope or intercept, and a scanner's own calibration, change the density of every voxel in
    both engines alike, so that no comparison of doses sees it. None where there is nothing to look at.
    """
    hu = np.asarray(case.hu)
    sentences, said = [], []
    soft = _peak_hu(hu[case.body.mask], *_SOFT_HU)
    low, high = _SOFT_EXPECTED_HU
    if soft is None and np.count_nonzero(case.body.mask) >= _FEWEST_VOXELS:
        sentences.append(f"no soft tissue between {_SOFT_HU[0]:g} and {_SOFT_HU[1]:g} HU in {case.body.name}")
    elif soft is not None:
        said.append(f"soft tissue peaks at {soft:.0f} HU")
        if not low <= soft <= high:
            sentences.append(f"soft tissue peaks at {soft:.0f} HU, not in {low:g} to {high:g} HU")
    # The couch and its shadow lie outside the body as well; a rim is left out for partial volume.
    outside = ~ndimage.binary_dilation(case.body.mask, iterations=3)
    air = _peak_hu(hu[outside], -np.inf, np.inf)
    low, high = _AIR_EXPECTED_HU
    if air is not None:
        said.append(f"the air outside peaks at {air:.0f} HU")
        if not low <= air <= high:
            sentences.append(f"the air outside the body peaks at {air:.0f} HU, not in {low:g} to {high:g} HU")
    if not sentences and not said:
        return None
    if sentences:
        sentences = ["; ".join(sentences) + ": check rescale slope, intercept and calibration of the CT"]
    return warning("CT numbers", sentences, ", ".join(said))


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


def _peak_hu(hu: NDArray, low: float, high: float) -> float | None:
    """The most frequent HU within limits, to 10 HU; None where there are too few voxels."""
    values = hu[(hu >= low) & (hu <= high)]
    if values.size < _FEWEST_VOXELS:
        return None
    bins = np.round(values / _BIN_HU).astype(np.int64)
    start = int(bins.min())
    return _BIN_HU * (start + int(np.argmax(np.bincount(bins - start))))
