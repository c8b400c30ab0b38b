"""The two scores of the OpenKBP challenge: Babier et al., Med Phys 48:5549 (2021).

Dose score: mean absolute difference summed over the whole grid, per voxel of the possible-dose mask. DVH
score: mean absolute difference of D99, D95 and D1 of targets and of mean and D0.1cc of organs. As in the
challenge's own evaluation, percentiles are interpolated linearly between voxels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Mask

# The DVH points of a target, as percentiles of its voxels' doses.
TARGET_PERCENTILES: Mapping[str, float] = {"D99": 1.0, "D95": 5.0, "D1": 99.0}
_HOT_CC = 0.1


@dataclass(frozen=True)
class Scores:
    """Scores of one patient in Gy: `dose`, and `dvh` as differences by (structure, metric)."""

    dose: float
    dvh: Mapping[tuple[str, str], float]


def hot_voxels(voxel_cc: float) -> int:
    """How many voxels make the hottest 0.1 cm3, at least one."""
    return max(1, round(_HOT_CC / voxel_cc))


def dvh_points(gy: NDArray, *, target: bool, voxel_cc: float) -> dict[str, float]:
    """The challenge's DVH points of the doses of one structure's voxels, in Gy."""
    if target:
        at = np.percentile(gy, tuple(TARGET_PERCENTILES.values()))
        return dict(zip(TARGET_PERCENTILES, (float(v) for v in at), strict=True))
    return {
        "D0.1cc": float(np.percentile(gy, max(0.0, 100 - hot_voxels(voxel_cc) / gy.size * 100))),
        "mean": float(gy.mean()),
    }


def score(
    predicted_gy: NDArray,
    reference_gy: NDArray,
    possible_dose: Mask,
    structures: Mapping[str, tuple[bool, Mask]],
    voxel_cc: float,
) -> Scores:
    """Scores of one prediction; `structures` holds for each name whether it is a target, and its mask.

    Volumes may be in any order of axes, as long as all have the same. Dose outside the possible-dose mask
    counts against the prediction. Structures without voxels are left out. Raises CaseError for an empty
    possible-dose mask.
    """
    if not possible_dose.any():
        raise CaseError("the possible-dose mask is empty, so there is no dose score; give the patient's own")
    predicted, reference = np.asarray(predicted_gy, float), np.asarray(reference_gy, float)
    dvh: dict[tuple[str, str], float] = {}
    for name, (target, mask) in structures.items():
        if mask.any():
            mine = dvh_points(predicted[mask], target=target, voxel_cc=voxel_cc)
            theirs = dvh_points(reference[mask], target=target, voxel_cc=voxel_cc)
            dvh |= {(name, metric): abs(mine[metric] - theirs[metric]) for metric in mine}
    return Scores(float(np.abs(predicted - reference).sum() / possible_dose.sum()), dvh)


def overall(scores: Sequence[Scores]) -> tuple[float, float]:
    """Dose score and DVH score of several patients in Gy: means over patients, and over all DVH points."""
    points = [difference for s in scores for difference in s.dvh.values()]
    return float(np.mean([s.dose for s in scores])), float(np.mean(points))
