"""Whether the densities behind a dose are the patient's: what CT numbers look like, what overrides them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vmat_diffusion.case import Case
from vmat_diffusion.qa.verdict import Check, warning

# Fat has -110 to -70 HU, muscle and organs 20 to 60 HU, contrast more (Schneider et al., Phys Med Biol
# 41:111, 1996, table 3). The peak is that of the soft tissue between fat and bone. Ours: room for phantoms of
# water and for obese patients, whose peak is that of fat.
_SOFT_HU, _SOFT_EXPECTED_HU = (-250.0, 250.0), (-130.0, 90.0)
_AIR_BELOW_HU, _AIR_EXPECTED_HU = -500.0, (-1050.0, -950.0)
_BIN_HU = 10.0
_FEWEST_VOXELS = 500
_SHOWN = 3  # overrides named in a sentence; the case's steps name all


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


def ignored_overrides(case: Case) -> list[str]:
    """A sentence where the structure set prescribes densities, which a dose from CT numbers does not have."""
    told = case.source.density_overrides
    if not told:
        return []
    listed = ", ".join(told[:_SHOWN]) + (f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else "")
    return [f"the densities that the structure set prescribes were ignored, those of the CT hold: {listed}"]


def _peak_hu(hu: NDArray, low: float, high: float) -> float | None:
    """The most frequent HU within limits, to 10 HU; None where there are too few voxels."""
    values = hu[(hu >= low) & (hu <= high)]
    if values.size < _FEWEST_VOXELS:
        return None
    bins = np.round(values / _BIN_HU).astype(np.int64)
    start = int(bins.min())
    return _BIN_HU * (start + int(np.argmax(np.bincount(bins - start))))
