"""Means and medians over patients with bootstrap intervals, and paired comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, wilcoxon


@dataclass(frozen=True)
class Interval:
    """A mean or median over `patients` and its 95 % interval, which is None below two patients."""

    value: float
    low: float | None
    high: float | None
    patients: int


@dataclass(frozen=True)
class Paired:
    """Values `a` of some patients against `b` of the same.

    `a` and `b` are medians, `difference` that of a - b with its interval. `p` is two-sided, of the Wilcoxon
    signed-rank test; `effect` is the matched-pairs rank-biserial correlation, 1 where a is the larger one
    in every patient, -1 where b is. Both are None where no pair differs.
    """

    a: float
    b: float
    difference: Interval
    p: float | None
    effect: float | None


def pooled_mean(
    sums: Sequence[float], counts: Sequence[int] | None = None, *, draws: int = 2000, seed: int = 0
) -> Interval:
    """The mean over all points of all patients, patient k having `counts[k]` points of sum `sums[k]`.

    One point each without `counts`. The interval is between the 2.5 and 97.5 percentiles of the means of
    `draws` sets of patients drawn with replacement (Efron and Tibshirani, An Introduction to the Bootstrap,
    1993, chapter 13): all points of a patient go together. The same seed gives the same interval.
    """
    total = np.asarray(sums, float)
    number = np.ones_like(total) if counts is None else np.asarray(counts, float)
    if len(total) == 0 or number.min() < 1:
        raise ValueError("a pooled mean needs patients with at least one point each")
    value = float(total.sum() / number.sum())
    if len(total) < 2:
        return Interval(value, None, None, len(total))
    drawn = _drawn(len(total), draws, seed)
    return _interval(value, total[drawn].sum(axis=1) / number[drawn].sum(axis=1), len(total))


def pooled_median(points: Sequence[Sequence[float]], *, draws: int = 2000, seed: int = 0) -> Interval:
    """The median of all points of all patients, `points[k]` being those of patient k, at least one each.

    The interval is as in `pooled_mean`.
    """
    own = [np.asarray(p, float) for p in points]
    if not own or min(p.size for p in own) < 1:
        raise ValueError("a pooled median needs patients with at least one point each")
    value = float(np.median(np.concatenate(own)))
    if len(own) < 2:
        return Interval(value, None, None, len(own))
    medians = [np.median(np.concatenate([own[k] for k in one])) for one in _drawn(len(own), draws, seed)]
    return _interval(value, np.array(medians), len(own))


def compare_pairs(a: Sequence[float], b: Sequence[float], *, equal_within: float = 0.0) -> Paired:
    """The comparison of paired values; pairs that are equal, or nearly so, enter the medians alone.

    Wilcoxon, Biometrics Bulletin 1:80 (1945), exact for few pairs without ties; effect size after Kerby,
    Comprehensive Psychology 3:1 (2014): rank sum of the positive differences less that of the negative
    ones, over their sum. Raises ValueError without pairs or where a value has no partner.
    """
    mine, theirs = np.asarray(a, float), np.asarray(b, float)
    if mine.shape != theirs.shape:
        raise ValueError(f"{mine.size} values cannot be paired with {theirs.size}")
    differences = mine - theirs
    p = effect = None
    unequal = differences[np.abs(differences) > equal_within]
    if unequal.size:
        ranks = rankdata(np.abs(unequal))
        effect = float((np.sign(unequal) * ranks).sum() / ranks.sum())
        p = float(wilcoxon(unequal).pvalue)
    return Paired(
        a=float(np.median(mine)),
        b=float(np.median(theirs)),
        difference=pooled_median([[d] for d in differences.tolist()]),
        p=p,
        effect=effect,
    )


def interval_text(found: Mapping[str, Any], digits: int = 2, unit: float = 1.0) -> str:
    """The plain data of an `Interval` as `1.20 (0.90 to 1.50)`, in `unit`s."""
    value, low, high = (
        None if found[name] is None else f"{unit * found[name]:.{digits}f}"
        for name in ("value", "low", "high")
    )
    return f"{value}" if low is None else f"{value} ({low} to {high})"


def _drawn(patients: int, draws: int, seed: int) -> NDArray[np.int64]:
    """Sets of patients drawn with replacement, `[draws, patients]`."""
    return np.random.default_rng(seed).integers(0, patients, (draws, patients))


def _interval(value: float, drawn: NDArray[np.float64], patients: int) -> Interval:
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Interval(value, float(low), float(high), patients)
