"""Scores of many OpenKBP patients as tables: overall, by structure and by subgroup, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.benchmark.statistics import Interval, pooled_mean
from vmat_diffusion.evaluate.openkbp import Scores
from vmat_diffusion.geometry import Mask

_IRRADIATED_GY = 5.0


@dataclass(frozen=True)
class DoseScores:
    """How well one dose of a patient was predicted, in Gy.

    `dose` is the challenge's dose score, `dvh` its differences by structure and metric. `mae` is the mean
    absolute difference where either dose exceeds 5 Gy. `structure_mae` and `structure_bias` (predicted less
    reference) are means over the voxels of a structure. `gamma_percent` passed, None if not computed.
    """

    dose: float
    dvh: Mapping[str, Mapping[str, float]]
    mae: float
    structure_mae: Mapping[str, float]
    structure_bias: Mapping[str, float]
    gamma_percent: float | None = None


@dataclass(frozen=True)
class PatientScores:
    """A patient, what may make one hard, and the scores of each way to predict the dose."""

    id: str
    has_ct: bool
    target_cc: float
    target_levels: int
    missing_organs: int
    ways: Mapping[str, DoseScores] = field(default_factory=dict)


def dose_scores(
    scores: Scores,
    predicted_gy: NDArray,
    reference_gy: NDArray,
    structures: Mapping[str, tuple[bool, Mask]],
    gamma_percent: float | None = None,
) -> DoseScores:
    """The challenge's scores of a patient with the plain differences by voxel."""
    difference = np.asarray(predicted_gy, float) - np.asarray(reference_gy, float)
    irradiated = (np.asarray(predicted_gy) > _IRRADIATED_GY) | (np.asarray(reference_gy) > _IRRADIATED_GY)
    dvh: dict[str, dict[str, float]] = {}
    for (structure, metric), value in scores.dvh.items():
        dvh.setdefault(structure, {})[metric] = value
    return DoseScores(
        dose=scores.dose,
        dvh=dvh,
        mae=float(np.abs(difference[irradiated]).mean()) if irradiated.any() else 0.0,
        structure_mae={name: float(np.abs(difference[structures[name][1]]).mean()) for name in dvh},
        structure_bias={name: float(difference[structures[name][1]].mean()) for name in dvh},
        gamma_percent=gamma_percent,
    )


def headline(patients: Sequence[PatientScores], way: str) -> dict[str, Interval]:
    """Dose score, DVH score, mean absolute difference and gamma of one way over patients that have it."""
    scored = [p.ways[way] for p in patients if way in p.ways]
    points = [[value for metrics in s.dvh.values() for value in metrics.values()] for s in scored]
    out = {
        "dose": pooled_mean([s.dose for s in scored]),
        "dvh": pooled_mean([sum(p) for p in points], [len(p) for p in points]),
        "mae": pooled_mean([s.mae for s in scored]),
    }
    gammas = [s.gamma_percent for s in scored if s.gamma_percent is not None]
    return {**out, "gamma": pooled_mean(gammas)} if gammas else out


def gain(patients: Sequence[PatientScores], way: str, over: str) -> dict[str, Interval]:
    """How much lower the dose and DVH scores of `way` are than those of `over`, patient by patient."""
    both = [(p.ways[way], p.ways[over]) for p in patients if way in p.ways and over in p.ways]
    lower = [[b.dvh[s][m] - a.dvh[s][m] for s in a.dvh for m in a.dvh[s]] for a, b in both]
    return {
        "dose": pooled_mean([b.dose - a.dose for a, b in both]),
        "dvh": pooled_mean([sum(points) for points in lower], [len(points) for points in lower]),
    }


def structure_table(patients: Sequence[PatientScores], way: str) -> dict[str, dict[str, Interval]]:
    """For each structure its voxel-wise mean absolute difference, bias and DVH differences."""
    scored = [p.ways[way] for p in patients if way in p.ways]
    out: dict[str, dict[str, Interval]] = {}
    for name in sorted({name for s in scored for name in s.dvh}, reverse=True):
        having = [s for s in scored if name in s.dvh]
        out[name] = {
            "mae": pooled_mean([s.structure_mae[name] for s in having]),
            "bias": pooled_mean([s.structure_bias[name] for s in having]),
            **{m: pooled_mean([s.dvh[name][m] for s in having]) for m in having[0].dvh[name]},
        }
    return out


def subgroups(patients: Sequence[PatientScores]) -> dict[str, list[PatientScores]]:
    """Patients by CT, by thirds of the target volume, by organs not contoured and by prescribed levels."""
    volumes = [p.target_cc for p in patients]
    low, high = np.percentile(volumes, (100 / 3, 200 / 3)) if volumes else (0.0, 0.0)
    groups = {
        "with CT": [p for p in patients if p.has_ct],
        "without CT": [p for p in patients if not p.has_ct],
        f"targets up to {low:.0f} cm3": [p for p in patients if p.target_cc <= low],
        f"targets of {low:.0f} to {high:.0f} cm3": [p for p in patients if low < p.target_cc <= high],
        f"targets above {high:.0f} cm3": [p for p in patients if p.target_cc > high],
        "no organ missing": [p for p in patients if p.missing_organs == 0],
        "1 or 2 organs missing": [p for p in patients if 1 <= p.missing_organs <= 2],
        "3 or more organs missing": [p for p in patients if p.missing_organs >= 3],
        **{
            f"{n} prescribed level{'s' if n > 1 else ''}": [p for p in patients if p.target_levels == n]
            for n in (1, 2, 3)
        },
    }
    return {name: members for name, members in groups.items() if members}
