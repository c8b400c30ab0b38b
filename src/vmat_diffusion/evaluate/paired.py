"""Two plans of each patient compared over patients: differences, their test and their size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata, wilcoxon

from vmat_diffusion.evaluate.bootstrap import Interval, pooled_median


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
