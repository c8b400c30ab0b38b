"""Bootstrap intervals on values whose spread is known."""

from __future__ import annotations

import numpy as np
import pytest

from vmat_diffusion.benchmark.statistics import pooled_mean


def test_the_interval_is_that_of_the_normal_law_for_many_patients():
    values = np.random.default_rng(1).normal(5.0, 2.0, 400)
    found = pooled_mean(values, draws=4000)
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    # The percentiles of 4000 draws are good to about 4 % of the half width.
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)
    assert found.patients == 400


def test_every_point_counts_alike_and_the_same_seed_gives_the_same_interval():
    found = pooled_mean([10.0, 4.0], [5, 1], seed=3)
    assert found.value == pytest.approx(14 / 6)
    assert (found.low, found.high) == (2.0, 4.0)
    many = np.arange(30.0)
    assert pooled_mean(many, seed=3) == pooled_mean(many, seed=3)
    assert pooled_mean(many, seed=3) != pooled_mean(many, seed=4)


def test_one_patient_has_no_interval_and_none_is_an_error():
    alone = pooled_mean([2.0])
    assert (alone.value, alone.low, alone.high) == (2.0, None, None)
    with pytest.raises(ValueError, match="at least one point"):
        pooled_mean([])
    with pytest.raises(ValueError, match="at least one point"):
        pooled_mean([1.0, 2.0], [1, 0])
