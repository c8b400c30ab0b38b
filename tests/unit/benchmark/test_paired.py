"""Paired comparisons against examples worked by hand, and the median's interval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from vmat_diffusion.benchmark.statistics import compare_pairs, interval_text, pooled_median


def test_a_small_example_worked_by_hand() -> None:
    # Differences 3, -1, 2, 4, -5 have ranks 3, 1, 2, 4, 5: W+ = 9, W- = 6, r = 3 / 15.
    found = compare_pairs([3, 0, 2, 4, 0], [0, 1, 0, 0, 5])
    assert found.effect == pytest.approx(0.2)
    # Of the 32 sign patterns 13 have a smaller rank sum of at most 6, on either side: p = 26 / 32.
    assert found.p == pytest.approx(26 / 32)
    assert (found.a, found.b, found.difference.value) == (2.0, 0.0, 2.0)


def test_the_test_is_scipy_s_and_equal_pairs_do_not_count() -> None:
    rng = np.random.default_rng(4)
    a, b = rng.normal(20, 3, 25), rng.normal(21, 3, 25)
    found = compare_pairs(a, b)
    assert found.p == pytest.approx(stats.wilcoxon(a, b).pvalue)
    ranks = stats.rankdata(np.abs(a - b))
    assert found.effect == pytest.approx((ranks[a > b].sum() - ranks[a < b].sum()) / ranks.sum())
    with_ties = compare_pairs([*a, 7.0, 8.0], [*b, 7.0, 8.0])
    assert (with_ties.p, with_ties.effect) == (found.p, found.effect)
    assert with_ties.difference.patients == 27
    nearly = compare_pairs([*a, 7.0], [*b, 7.0009], equal_within=1e-3)
    assert (nearly.p, nearly.effect) == (found.p, found.effect)


def test_the_sign_says_which_is_larger() -> None:
    assert compare_pairs([2, 3, 4], [1, 1, 1]).effect == 1.0
    assert compare_pairs([1, 1, 1], [2, 3, 4]).effect == -1.0


def test_equal_values_have_neither_p_nor_effect_and_lone_values_no_partner() -> None:
    found = compare_pairs([1.0, 2.0], [1.0, 2.0])
    assert (found.p, found.effect, found.difference.value) == (None, None, 0.0)
    with pytest.raises(ValueError, match="2 values cannot be paired with 1"):
        compare_pairs([1, 2], [1])


def test_a_pooled_median_keeps_the_points_of_a_patient_together() -> None:
    # Each drawn set is one of (1,1), (1,9), (9,9) patients: medians 1, 5 or 9.
    found = pooled_median([[1.0, 1.0], [9.0, 9.0]])
    assert (found.value, found.low, found.high, found.patients) == (5.0, 1.0, 9.0, 2)
    assert pooled_median([[1.0, 2.0, 30.0]]).value == 2.0
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    wide = pooled_median([[v] for v in values])
    # The standard error of a normal median is 1.2533 sigma / sqrt(n); the bootstrap is good to about 15 %.
    half = 1.96 * 1.2533 * 2.0 / 20
    assert wide.low is not None and wide.high is not None
    assert (wide.high - wide.low) / 2 == pytest.approx(half, rel=0.25)
    with pytest.raises(ValueError, match="at least one point"):
        pooled_median([[1.0], []])


def test_an_interval_reads_as_text() -> None:
    assert interval_text({"value": 1.234, "low": 1.0, "high": 2.0}) == "1.23 (1.00 to 2.00)"
    assert interval_text({"value": 0.5, "low": None, "high": None}, 1, unit=100) == "50.0"
