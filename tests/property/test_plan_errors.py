"""Small errors of the linac as changes of a plan, with random plans: what each moves, and what it leaves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import Arc, Plan, timing
from vmat_diffusion.qa.plan_errors import (
    with_collimator,
    with_gantry,
    with_gap,
    with_isocenter,
    with_jaws,
    with_leaf_lag,
    with_leaf_shift,
    with_mu,
)

LIMITS = load_machine("generic_6mv").limits
SEEDS = st.integers(0, 2**32 - 1)
SMALL_MM = st.floats(-3, 3)


def plan(seed: int, *, static: bool = False) -> Plan:
    """Two beams of random leaves, some pairs of them closed, jaws and MU."""
    rng = np.random.default_rng(seed)
    arcs = []
    for number in (1, 2):
        n = int(rng.integers(2, 9))
        left = rng.uniform(-60, 50, (n, 60))
        gap = rng.choice([0.0, 0.6, 1.0, 20.0], (n, 60)) * rng.uniform(0, 1.5, (n, 60))
        jaws = np.sort(rng.uniform(-80, 80, (n, 2, 2)), axis=2).reshape(n, 4)
        gantry = np.full(n, 30.0) if static else 181.0 + 2.0 * np.arange(n)
        leaves, mu = np.stack([left, left + gap], axis=1), rng.uniform(0.0, 4.0, n - 1)
        arcs.append(Arc(gantry, float(rng.uniform(0, 360)), 0.0, leaves, jaws, mu, number=number))
    return Plan(tuple(arcs), (1.0, -2.0, 3.0), 30, "generic_6mv")


def gaps(of: Plan) -> np.ndarray:
    return np.concatenate([(arc.leaves_mm[:, 1] - arc.leaves_mm[:, 0]).ravel() for arc in of.arcs])


def middles(of: Plan) -> np.ndarray:
    return np.concatenate([arc.leaves_mm.mean(axis=1).ravel() for arc in of.arcs])


@given(SEEDS, SMALL_MM)
def test_a_gap_error_widens_every_pair_alike_and_never_crosses_leaves(seed: int, by_mm: float) -> None:
    before = plan(seed)
    after = with_gap(before, by_mm)
    assert gaps(after) == pytest.approx(np.maximum(gaps(before) + by_mm, 0.0), abs=1e-9)
    assert middles(after) == pytest.approx(middles(before), abs=1e-9)


@given(SEEDS, SMALL_MM)
def test_closed_pairs_stay_as_they_are_where_asked(seed: int, by_mm: float) -> None:
    before = plan(seed)
    was, now = gaps(before), gaps(with_gap(before, by_mm, closed_mm=1.5))
    assert now[was <= 1.5] == pytest.approx(was[was <= 1.5], abs=1e-9)
    assert now[was > 1.5] == pytest.approx(np.maximum(was[was > 1.5] + by_mm, 0.0), abs=1e-9)


@given(SEEDS, SMALL_MM)
def test_a_shift_of_the_banks_keeps_gaps(seed: int, by_mm: float) -> None:
    before = plan(seed)
    after = with_leaf_shift(before, by_mm)
    assert gaps(after) == pytest.approx(gaps(before), abs=1e-9)
    assert middles(after) == pytest.approx(middles(before) + by_mm, abs=1e-9)


@given(SEEDS, st.booleans(), st.floats(0, 0.06))
def test_late_leaves_lie_between_where_they_were_and_where_they_go(
    seed: int, static: bool, by_s: float
) -> None:
    """By speed times delay, in every segment that lasts longer than the delay; never crossed."""
    before = plan(seed, static=static)
    after = with_leaf_lag(before, by_s, LIMITS)
    for was, now in zip(before.arcs, after.arcs, strict=True):
        assert np.array_equal(now.leaves_mm[0], was.leaves_mm[0])
        assert np.all(now.leaves_mm[:, 0] <= now.leaves_mm[:, 1] + 1e-9)
        time = timing(was, LIMITS).time_s
        for k in np.flatnonzero((time > by_s) & (was.mu > 0)):
            speed = (was.leaves_mm[k + 1] - was.leaves_mm[k]) / time[k]
            behind = was.leaves_mm[k + 1] - now.leaves_mm[k + 1]
            assert behind == pytest.approx(speed * by_s, abs=1e-9)


@given(SEEDS)
def test_leaves_that_stand_still_are_never_late(seed: int) -> None:
    moving = plan(seed)
    still = replace(
        moving,
        arcs=tuple(
            replace(arc, leaves_mm=np.repeat(arc.leaves_mm[:1], len(arc.gantry_deg), axis=0))
            for arc in moving.arcs
        ),
    )
    for was, now in zip(still.arcs, with_leaf_lag(still, 0.02, LIMITS).arcs, strict=True):
        assert np.array_equal(now.leaves_mm, was.leaves_mm)


@given(SEEDS)
def test_a_beam_that_is_off_waits_for_the_leaves(seed: int) -> None:
    """As in step and shoot: no leaf is late in a segment in which it stands still."""
    before = plan(seed, static=True)
    arcs = []
    for arc in before.arcs:
        shapes = np.repeat(arc.leaves_mm, 2, axis=0)
        mu = np.ones(len(shapes) - 1)
        mu[1::2] = 0.0
        n = len(shapes)
        arcs.append(replace(arc, gantry_deg=np.zeros(n), leaves_mm=shapes, jaws_mm=np.zeros((n, 4)), mu=mu))
    before = replace(before, arcs=tuple(arcs))
    for was, now in zip(before.arcs, with_leaf_lag(before, 0.02, LIMITS).arcs, strict=True):
        assert np.array_equal(now.leaves_mm, was.leaves_mm)


@given(SEEDS, st.floats(0, 0.1))
def test_leaves_of_equal_speed_keep_their_gap_when_late(seed: int, by_s: float) -> None:
    """So the open time of every point stays."""
    rng = np.random.default_rng(seed)
    before = plan(seed)
    arcs = []
    for arc in before.arcs:
        walk = np.cumsum(rng.uniform(0, 8, len(arc.gantry_deg)))[:, None, None]
        arcs.append(replace(arc, leaves_mm=arc.leaves_mm[:1] + walk))
    before = replace(before, arcs=tuple(arcs))
    assert gaps(with_leaf_lag(before, by_s, LIMITS)) == pytest.approx(gaps(before), abs=1e-9)


@given(SEEDS, st.floats(-2, 2))
def test_each_error_and_its_opposite_give_the_plan_back(seed: int, by: float) -> None:
    before = plan(seed)
    there_and_back = (
        with_gantry(with_gantry(before, by), -by),
        with_collimator(with_collimator(before, by), -by),
        with_isocenter(with_isocenter(before, (by, 2 * by, -by)), (-by, -2 * by, by)),
        with_leaf_shift(with_leaf_shift(before, by), -by),
    )
    for after in there_and_back:
        assert after.isocenter_mm == pytest.approx(before.isocenter_mm, abs=1e-9)
        for was, now in zip(before.arcs, after.arcs, strict=True):
            assert now.gantry_deg == pytest.approx(was.gantry_deg, abs=1e-9)
            turned = (now.collimator_deg - was.collimator_deg + 180.0) % 360.0 - 180.0
            assert turned == pytest.approx(0.0, abs=1e-9)
            assert now.leaves_mm == pytest.approx(was.leaves_mm, abs=1e-9)
            assert np.array_equal(now.mu, was.mu)


@given(SEEDS, SMALL_MM, SMALL_MM)
def test_jaws_that_close_meet_and_never_cross(seed: int, x_mm: float, y_mm: float) -> None:
    before = plan(seed)
    for was, now in zip(before.arcs, with_jaws(before, x_mm, y_mm).arcs, strict=True):
        for first, by in ((0, x_mm), (2, y_mm)):
            opening = was.jaws_mm[:, first + 1] - was.jaws_mm[:, first]
            after = now.jaws_mm[:, first + 1] - now.jaws_mm[:, first]
            assert after == pytest.approx(np.maximum(opening + 2 * by, 0.0), abs=1e-9)


@settings(max_examples=20)
@given(SEEDS, st.floats(-5, 5))
def test_mu_are_scaled_and_nothing_else(seed: int, by_percent: float) -> None:
    before = plan(seed)
    after = with_mu(before, by_percent)
    assert after.total_mu == pytest.approx(before.total_mu * (1 + by_percent / 100), abs=1e-9)
    assert np.array_equal(after.arcs[0].leaves_mm, before.arcs[0].leaves_mm)
