"""Complexity metrics: analytic apertures, a plan worked out by hand, and a plan's images in the mirror."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmat_diffusion.evaluate.complexity import PUBLISHED, Complexity, complexity
from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import Arc, Plan, delivery_s

MACHINE = load_machine("generic_6mv")


def plan_of(*arcs: Arc) -> Plan:
    return Plan(arcs, (0.0, 0.0, 0.0), 25, "generic_6mv")


def arc_of(rows: list[list[tuple[float, float]]], mu: list[float], turn_deg: float = 2.0) -> Arc:
    """Openings (left, right) of the pairs from Y = 0 upwards (5 mm each), one list per control point."""
    n = len(rows)
    leaves = np.zeros((n, 2, 60))
    for k, openings in enumerate(rows):
        leaves[k, :, 30 : 30 + len(openings)] = np.array(openings).T
    jaws = np.tile([-100.0, 100.0, -100.0, 100.0], (n, 1))
    return Arc(turn_deg * np.arange(n), 0.0, 0.0, leaves, jaws, np.array(mu))


@pytest.mark.parametrize("side_mm", [20.0, 40.0, 100.0])
def test_an_open_square_has_score_1_and_two_sides_over_its_area(side_mm: float) -> None:
    half = side_mm / 2
    leaves = np.zeros((3, 2, 60))
    leaves[:, 0], leaves[:, 1] = -half, half
    jaws = np.tile([-half - 5, half + 5, -half, half], (3, 1))
    found = complexity(
        plan_of(Arc(np.zeros(3), 0.0, 0.0, leaves, jaws, np.array([10.0, 30.0]))), MACHINE, 2.0
    )
    assert found.mcs == pytest.approx(1.0)
    assert found.mean_area_cm2 == pytest.approx(side_mm**2 / 100)
    assert found.edge_per_mm == pytest.approx(2 / side_mm)
    assert found.small_5mm == found.small_10mm == found.leaf_travel_mm == 0
    assert found.mu_per_gy == pytest.approx(20.0) and found.mean_dose_rate_mu_min == pytest.approx(600.0)
    assert found.leaf_travel_mm_deg is None and found.mean_gantry_speed_deg_s is None


def test_a_plan_worked_out_by_hand() -> None:
    """Three pairs, two control points, one segment of 4 MU over 2 degrees.

    A: (-10, 10), (-10, 20), (-20, 20); B: (-10, 10), (-10, 10), (0, 4).
    LSV of A: left 10, 10, 20 apart by 0 and 10 of 10: (1 + 0) / 2; right likewise 10 and 0 of 10: 1 / 2;
    together 1 / 4. B: left 0 and 10 of 10: 1 / 2; right 0 and 6 of 6: 1 / 2; together 1 / 4.
    AAV: widest openings 20 + 30 + 40 = 90; A opens 20 + 30 + 40, B 20 + 20 + 4: 1 and 44 / 90.
    Sides of A: 20 on top, 10 and 10 where it widens, 40 below: 80 over 450 mm2. B: 20, 0, then 20 + 4 - 8
    = 16, 4: 40 over 220 mm2. Leaves: A to B 0, 0, 20 mm left and 0, 10, 16 mm right: 46 / 6 on average.
    """
    a = [(-10.0, 10.0), (-10.0, 20.0), (-20.0, 20.0)]
    b = [(-10.0, 10.0), (-10.0, 10.0), (0.0, 4.0)]
    found = complexity(plan_of(arc_of([a, b], [4.0])), MACHINE, 2.0)
    assert found.mcs == pytest.approx(0.25 * (1 + 44 / 90) / 2)
    assert found.mean_area_cm2 == pytest.approx((4.5 + 2.2) / 2)
    assert found.edge_per_mm == pytest.approx((80 / 450 + 40 / 220) / 2)
    assert found.small_5mm == found.small_10mm == pytest.approx((0 + 1 / 3) / 2)
    assert found.leaf_travel_mm == pytest.approx(46 / 6)
    assert found.leaf_travel_mm_deg == pytest.approx(23 / 6)
    assert found.mu_per_gy == 2.0


def test_beams_count_by_their_mu_and_control_points_by_those_around_them() -> None:
    """1 MU of a 20 mm opening and 3 MU of a 40 mm one, in one arc and in two beams."""
    narrow, wide = [(-10.0, 10.0)] * 4, [(-20.0, 20.0)] * 4
    two = complexity(plan_of(arc_of([narrow] * 2, [1.0]), arc_of([wide] * 2, [3.0])), MACHINE)
    assert two.mean_area_cm2 == pytest.approx((4 + 3 * 8) / 4) and two.mcs == pytest.approx(1.0)
    one = complexity(plan_of(arc_of([narrow, narrow, wide], [1.0, 3.0])), MACHINE)
    assert one.mean_area_cm2 == pytest.approx((4 + 3 * (4 + 8) / 2) / 4)
    assert one.mcs == pytest.approx((0.5 + 3 * (0.5 + 1) / 2) / 4)


def test_pairs_at_the_minimum_gap_and_under_the_jaws_are_closed() -> None:
    plain = arc_of([[(-10.0, 10.0)] * 4] * 2, [5.0])
    leaves = plain.leaves_mm.copy()
    leaves[:, 0, 40], leaves[:, 1, 40] = 30.0, 30.6  # parked
    leaves[:, 0, 10], leaves[:, 1, 10] = -40.0, 40.0  # outside Y
    leaves[0, :, 10] += 3.0
    jaws = np.tile([-100.0, 100.0, -1.0, 100.0], (2, 1))
    assert complexity(plan_of(replace(plain, leaves_mm=leaves, jaws_mm=jaws)), MACHINE) == complexity(
        plan_of(plain), MACHINE
    )


def test_two_layers_shape_together() -> None:
    """A 20 x 20 mm square that each layer shapes on one side only."""
    machine = load_machine("generic_halcyon")
    leaves = np.zeros((2, 2, machine.mlc.pairs))
    for first, low, edge in ((0, -140, (-10.0, 60.0)), (28, -145, (-60.0, 10.0))):
        count = 28 if first == 0 else 29
        centre = low + 10 * np.arange(count) + 5
        used = np.abs(centre) < 15
        leaves[:, 0, first : first + count][:, used], leaves[:, 1, first : first + count][:, used] = edge
    jaws = np.tile([-140.0, 140.0, -140.0, 140.0], (2, 1))
    plan = Plan(
        (Arc(np.array([0.0, 2.0]), 0.0, 0.0, leaves, jaws, np.array([5.0])),), (0, 0, 0), 1, machine.name
    )
    found = complexity(plan, machine)
    assert found.mean_area_cm2 == pytest.approx(4.0)
    assert found.edge_per_mm == pytest.approx(2 / 20) and found.mcs == pytest.approx(1.0)


def test_a_plan_without_mu_has_nothing_to_measure() -> None:
    assert complexity(plan_of(arc_of([[(-10.0, 10.0)]] * 2, [0.0])), MACHINE).mcs == 0.0
    assert complexity(plan_of(), MACHINE).record()["mean_dose_rate_mu_min"] == 0.0


def test_every_metric_has_a_title() -> None:
    assert set(PUBLISHED) == set(Complexity.__dataclass_fields__)


def random_plan(seed: int) -> Plan:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 8))
    leaves = np.zeros((n, 2, 60))
    middle, half = rng.uniform(-20, 20, (n, 20)), rng.uniform(0, 30, (n, 20))
    leaves[:, 0, 20:40], leaves[:, 1, 20:40] = middle - half, middle + half
    jaws = np.tile([-45.0, 45.0, -47.0, 42.0], (n, 1)) + rng.uniform(-3, 3, (n, 4))
    return plan_of(Arc(2.0 * np.arange(n), 5.0, 0.0, leaves, jaws, rng.uniform(0.5, 9.0, n - 1)))


def close(a: Complexity, b: Complexity) -> bool:
    return all(
        (x is None) == (y is None) and (x is None or np.isclose(x, y))
        for x, y in zip(a.record().values(), b.record().values(), strict=True)
    )


@given(st.integers(0, 10_000))
def test_a_plan_in_the_mirror_or_delivered_backwards_is_as_complex(seed: int) -> None:
    plan = random_plan(seed)
    (arc,) = plan.arcs
    found = complexity(plan, MACHINE, 2.0)
    left_right = replace(
        arc,
        leaves_mm=-arc.leaves_mm[:, ::-1],
        jaws_mm=np.hstack([-arc.jaws_mm[:, [1, 0]], arc.jaws_mm[:, 2:]]),
    )
    head_foot = replace(
        arc,
        leaves_mm=arc.leaves_mm[:, :, ::-1],
        jaws_mm=np.hstack([arc.jaws_mm[:, :2], -arc.jaws_mm[:, [3, 2]]]),
    )
    backwards = replace(
        arc,
        gantry_deg=arc.gantry_deg[::-1],
        leaves_mm=arc.leaves_mm[::-1],
        jaws_mm=arc.jaws_mm[::-1],
        mu=arc.mu[::-1],
    )
    for other in (left_right, head_foot, backwards):
        assert close(complexity(replace(plan, arcs=(other,)), MACHINE, 2.0), found)
    assert 0 < found.mcs <= 1 and 0 <= found.small_5mm <= found.small_10mm <= 1


@given(st.integers(0, 10_000), st.floats(0.2, 5.0))
def test_more_mu_change_only_what_counts_them(seed: int, factor: float) -> None:
    plan = random_plan(seed)
    more = replace(plan, arcs=tuple(replace(arc, mu=arc.mu * factor) for arc in plan.arcs))
    found, scaled = complexity(plan, MACHINE, 2.0), complexity(more, MACHINE, 2.0)
    for name in ("mcs", "mean_area_cm2", "edge_per_mm", "small_10mm", "leaf_travel_mm"):
        assert np.isclose(getattr(scaled, name), getattr(found, name))
    assert np.isclose(scaled.mu_per_gy, found.mu_per_gy * factor)
    assert np.isclose(scaled.mean_dose_rate_mu_min, 60 * more.total_mu / delivery_s(more, MACHINE))
