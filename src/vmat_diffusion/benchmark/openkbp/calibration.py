"""Whether the spread of sampled doses says how far off their mean is.

The band of K samples of mean m and standard deviation s at a level is m +- t s sqrt(1 + 1/K), with the
quantile t of Student's distribution of K - 1 degrees of freedom: where the truth is one more draw from
the same Gaussian, the band holds it at exactly that level, however few samples there are.

The standard deviation may be widened by a factor; the mean stays. Coverage is counted for a range of
factors at once, so that the best one is found without predicting again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from vmat_diffusion.benchmark.statistics import Interval, pooled_mean
from vmat_diffusion.evaluate.openkbp import dvh_points
from vmat_diffusion.geometry import Mask

LEVELS = (0.5, 0.8, 0.9)
FACTORS = tuple(float(f) for f in np.geomspace(0.25, 8.0, 31))
# Coverage is counted where the regression exceeds this: elsewhere nothing is in doubt.
_DOUBTFUL_GY = 5.0
_BIN_EDGES_GY = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, float("inf"))


@dataclass(frozen=True)
class Spread:
    """Counts of one patient from which all figures of calibration follow.

    `covered[level][factor]` of `voxels` lie in the band, `points_covered` of `points` DVH points. For each
    bin of standard deviation, `bins` holds voxels and sums of standard deviation, absolute and squared
    error.
    """

    voxels: int
    covered: Sequence[Sequence[int]]
    points: int
    points_covered: Sequence[Sequence[int]]
    bins: Sequence[Sequence[float]]


def spread_of(
    reference_gy: NDArray,
    regression_gy: NDArray,
    samples_gy: Sequence[NDArray],
    *,
    possible_dose: Mask,
    structures: Mapping[str, tuple[bool, Mask]],
    voxel_cc: float,
    widened: tuple[float, float] = (1.0, 1.0),
) -> Spread:
    """Count for one patient; volumes in any one order of axes, at least two samples.

    `widened` is what already multiplies the standard deviation of voxels and of DVH points.
    """
    if len(samples_gy) < 2:
        raise ValueError(f"{len(samples_gy)} samples have no spread; at least 2 are needed")
    doubtful = possible_dose & (regression_gy > _DOUBTFUL_GY)
    truth = reference_gy[doubtful].astype(float)
    drawn = np.stack([s[doubtful] for s in samples_gy]).astype(float)
    points = _points([reference_gy, *samples_gy], structures, voxel_cc)
    std = drawn.std(axis=0, ddof=1) * widened[0]
    error = np.abs(truth - drawn.mean(axis=0))
    place = np.digitize(std, _BIN_EDGES_GY) - 1
    sums = [
        np.bincount(place, weights, minlength=len(_BIN_EDGES_GY) - 1)
        for weights in (np.ones_like(std), std, error, error**2)
    ]
    return Spread(
        voxels=len(truth),
        covered=_covered(truth, drawn, widened[0]),
        points=points.shape[1],
        points_covered=_covered(points[0], points[1:], widened[1]),
        bins=np.stack(sums, axis=1).tolist(),
    )


def _points(
    doses: Sequence[NDArray], structures: Mapping[str, tuple[bool, Mask]], voxel_cc: float
) -> NDArray:
    """The challenge's DVH points of each dose, `[dose, point]`."""
    rows = []
    for gy in doses:
        values: list[float] = []
        for target, mask in structures.values():
            values += dvh_points(gy[mask], target=target, voxel_cc=voxel_cc).values()
        rows.append(values)
    return np.array(rows)


def _covered(truth: NDArray, drawn: NDArray, widened: float) -> list[list[int]]:
    """How many of `truth[n]` lie in the bands of `drawn[k, n]`, by level and factor."""
    k = len(drawn)
    reach = widened * drawn.std(axis=0, ddof=1) * np.sqrt(1 + 1 / k)
    away = np.abs(truth - drawn.mean(axis=0))
    quantiles = [float(stats.t.ppf((1 + level) / 2, k - 1)) for level in LEVELS]
    return [[int(np.count_nonzero(away <= t * f * reach)) for f in FACTORS] for t in quantiles]


def coverage(spreads: Sequence[Spread], factor: float = 1.0) -> dict[str, dict[str, Interval]] | None:
    """Share of voxels and of DVH points within the band, by level, with its width times a factor.

    Patients without a voxel above 5 Gy do not count; None where no other is left.
    """

    def at(covered: Sequence[int]) -> float:
        return float(np.interp(np.log(factor), np.log(FACTORS), covered))

    some = [s for s in spreads if s.voxels and s.points]
    if not some:
        return None
    return {
        f"{level:.0%}": {
            "voxels": pooled_mean([at(s.covered[i]) for s in some], [s.voxels for s in some]),
            "dvh": pooled_mean([at(s.points_covered[i]) for s in some], [s.points for s in some]),
        }
        for i, level in enumerate(LEVELS)
    }


def reliability(spreads: Sequence[Spread]) -> list[dict[str, float | None]]:
    """By bins of the samples' standard deviation in Gy: voxels, mean of it, mean absolute and rms error."""
    total = np.sum([s.bins for s in spreads], axis=0)
    return [
        {
            "from": low,
            "to": None if np.isinf(high) else high,
            "voxels": int(n),
            "std": std / n,
            "mae": error / n,
            "rms": float(np.sqrt(square / n)),
        }
        for (low, high), (n, std, error, square) in zip(pairwise(_BIN_EDGES_GY), total.tolist(), strict=True)
        if n > 0
    ]


def fit_spread(spreads: Sequence[Spread], level: float = 0.9, *, points: bool = False) -> float | None:
    """The factor on the standard deviation at which the band of a level covers that share of all voxels.

    With `points` that of all DVH points. `level` is one of LEVELS. None where no factor from 0.25 to 8 does,
    or where there is no voxel above 5 Gy.
    """
    total = sum(s.points if points else s.voxels for s in spreads)
    if total == 0:
        return None
    row = LEVELS.index(level)
    counts = np.sum([(s.points_covered if points else s.covered)[row] for s in spreads], axis=0)
    shares = np.maximum.accumulate(counts / total)
    if not shares[0] <= level <= shares[-1]:
        return None
    k = int(np.searchsorted(shares, level))
    if k == 0:
        return FACTORS[0]
    share = (level - shares[k - 1]) / (shares[k] - shares[k - 1])
    return float(np.exp(np.interp(share, (0, 1), np.log(FACTORS[k - 1 : k + 1]))))
