"""Means over patients with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A mean over `patients` and its 95 % interval, which is None below two patients."""

    value: float
    low: float | None
    high: float | None
    patients: int


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
    drawn = np.random.default_rng(seed).integers(0, len(total), (draws, len(total)))
    means = total[drawn].sum(axis=1) / number[drawn].sum(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    return Interval(value, float(low), float(high), len(total))
