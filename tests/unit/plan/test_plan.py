"""Times against hand computation, and every violation from one change to a good plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from vmat_diffusion.errors import PlanError
from vmat_diffusion.machine import Machine, load_machine, parse_machine
from vmat_diffusion.plan import Arc, Plan, at_pace_of_leaves, delivery_s, timing, violations

MACHINE = load_machine("generic_6mv")
LIMITS = MACHINE.limits
N, PAIRS = 11, 60


def good_arc(**changes: object) -> Arc:
    """20 degrees in steps of 2 with a 4 x 4 cm field: 2 MU a segment; other pairs parked at the centre."""
    leaves = np.zeros((N, 2, PAIRS))
    leaves[:, 0, 26:34], leaves[:, 1, 26:34] = -20.0, 20.0
    arc = Arc(
        gantry_deg=np.arange(0.0, 2.0 * N, 2.0),
        collimator_deg=10.0,
        couch_deg=0.0,
        leaves_mm=leaves,
        jaws_mm=np.tile([-25.0, 25.0, -25.0, 25.0], (N, 1)),
        mu=np.full(N - 1, 2.0),
        name="A",
    )
    return replace(arc, **changes)  # type: ignore[arg-type]


def plan_of(*arcs: Arc, **changes: object) -> Plan:
    return replace(Plan(arcs, (0.0, 0.0, 0.0), 25, "generic_6mv"), **changes)  # type: ignore[arg-type]


def leaves(change: Callable[[NDArray], None]) -> Arc:
    array = good_arc().leaves_mm.copy()
    change(array)
    return good_arc(leaves_mm=array)


def jaws(*values: float) -> Arc:
    array = good_arc().jaws_mm.copy()
    array[4] = values
    return good_arc(jaws_mm=array)


def setter(index: object, value: object) -> Callable[[NDArray], None]:
    def change(array: NDArray) -> None:
        array[index] = value

    return change


# --- construction


def test_integer_arrays_become_float() -> None:
    arc = good_arc(gantry_deg=np.arange(0, 2 * N, 2), mu=np.full(N - 1, 2))
    assert arc.gantry_deg.dtype == arc.mu.dtype == np.float64
    assert violations(plan_of(arc), MACHINE) == []
    assert timing(arc, LIMITS).total_s == timing(good_arc(), LIMITS).total_s


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gantry_deg": np.zeros(1)}, "control points"),
        ({"mu": np.ones(N)}, "mu"),
        ({"jaws_mm": np.zeros((N, 2))}, "jaws"),
        ({"leaves_mm": np.zeros((N, PAIRS))}, "leaves"),
        ({"leaves_mm": np.full((N, 2, PAIRS), np.nan)}, "leaf position"),
        ({"gantry_deg": np.full(N, np.inf)}, "gantry angle"),
        ({"mu": np.full(N - 1, np.nan)}, "MU"),
    ],
)
def test_arcs_that_do_not_fit_together_are_refused(changes: dict, named: str) -> None:
    with pytest.raises(PlanError, match=named):
        good_arc(**changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"fractions": 0}, "fractions"),
        ({"isocenter_mm": (0.0, float("nan"), 0.0)}, "isocentre"),
        ({"dose_rate_mu_min": 0.0}, "dose rate"),
        ({"dose_rate_mu_min": -600.0}, "dose rate"),
    ],
)
def test_impossible_plans_are_refused(changes: dict, named: str) -> None:
    with pytest.raises(PlanError, match=named):
        plan_of(good_arc(), **changes)


# --- times by hand


def test_gantry_at_full_speed_sets_the_pace_of_few_mu() -> None:
    """2 degrees at 6 deg/s take 1/3 s; 2 MU in that time are 360 MU/min."""
    pace = timing(good_arc(), LIMITS)
    assert np.allclose(pace.time_s[3:7], 1 / 3)
    assert np.allclose(pace.gantry_speed_deg_s[3:7], 6.0)
    assert np.allclose(pace.dose_rate_mu_min[3:7], 360.0)


def test_an_arc_starts_and_ends_at_rest() -> None:
    """At 3 deg/s2 from rest 2 degrees take sqrt(2 x 2 / 3) s, a mean speed of sqrt(3) deg/s.

    From there the square of the speed gains 12 deg2/s2 in every segment: 3, 15, 27, and the full 36.
    """
    pace = timing(good_arc(), LIMITS)
    assert pace.time_s[0] == pytest.approx(np.sqrt(4 / 3))
    squares = np.array([3, 15, 27, 36, 36, 36, 36, 27, 15, 3.0])
    assert np.allclose(pace.gantry_speed_deg_s**2, squares)
    assert pace.total_s == pytest.approx((2 / np.sqrt(squares)).sum())


def test_a_rotation_that_turns_round_comes_to_rest_between() -> None:
    """One segment from rest to rest, 2 degrees at 3 deg/s2: 1 degree up, 1 down, 2 sqrt(2 x 1 / 3) s."""
    arc = good_arc(gantry_deg=np.array([0.0, 2, 4, 6, 4, 6, 8, 10, 12, 14, 16]), mu=np.full(N - 1, 0.5))
    pace = timing(arc, LIMITS)
    assert pace.time_s[3] == pytest.approx(2 * np.sqrt(2 / 3))
    assert np.allclose(pace.gantry_speed_deg_s[[0, 2, 4]] ** 2, 3.0)


def test_dose_rate_sets_the_pace_of_many_mu() -> None:
    """10 MU at 600 MU/min take 1 s, so the gantry turns at 2 deg/s; from rest at sqrt(3) deg/s."""
    pace = timing(good_arc(mu=np.full(N - 1, 10.0)), LIMITS)
    assert np.allclose(pace.time_s[1:-1], 1.0) and np.allclose(pace.gantry_speed_deg_s[1:-1], 2.0)
    assert np.allclose(pace.dose_rate_mu_min[1:-1], 600.0)
    assert np.allclose(pace.time_s[[0, -1]], 2 / np.sqrt(3))


def test_a_cap_on_the_dose_rate_stretches_time_and_a_higher_one_does_not_shorten_it() -> None:
    arc = good_arc(mu=np.full(N - 1, 10.0))
    assert timing(arc, LIMITS, 300.0).total_s == pytest.approx(20.0)
    assert timing(arc, LIMITS, 1400.0).total_s == timing(arc, LIMITS).total_s < 11.0
    assert delivery_s(plan_of(arc, arc, dose_rate_mu_min=300.0), MACHINE) == pytest.approx(40.0)


def test_leaf_and_jaw_speeds_follow_from_the_times() -> None:
    """5 mm in the 1/3 s of a segment are 15 mm/s."""
    arc = leaves(setter((slice(5, None), 1, 30), 25.0))
    moved = jaws(-25, 25, -25, 27)
    assert timing(arc, LIMITS).leaf_speed_mm_s[4] == pytest.approx(15.0)
    assert timing(arc, LIMITS).leaf_speed_mm_s[5] == 0
    assert timing(moved, LIMITS).jaw_speed_mm_s[3] == pytest.approx(6.0)


def test_the_gantry_slows_down_no_faster_than_it_can() -> None:
    """One slow segment (20 MU: 2 s, 1 deg/s) among fast ones, 3 deg/s2.

    Between the middles of two segments of 2 degrees the square of the speed changes by
    2 x 3 x 2 = 12 deg2/s2 at most: 1, 13, 25, which braking to rest at the end allows too.
    """
    mu = np.full(N - 1, 2.0)
    mu[5] = 20.0
    pace = timing(good_arc(mu=mu), LIMITS)
    assert np.allclose(pace.gantry_speed_deg_s[5:] ** 2, [1, 13, 25, 15, 3])
    assert np.allclose(pace.gantry_speed_deg_s[:6] ** 2, [3, 15, 27, 25, 13, 1])
    assert np.allclose(pace.time_s, 2.0 / pace.gantry_speed_deg_s)
    assert violations(plan_of(good_arc(mu=mu)), MACHINE) == []


def test_leaves_set_the_pace_while_the_gantry_rests() -> None:
    """A static sliding window: 45 mm at 22.5 mm/s take 2 s; 50 MU at 600 MU/min take 5 s."""
    window = np.zeros((3, 2, PAIRS))
    window[:, 1] = 10.0
    window[1:] += 45.0
    window[2] += 45.0
    arc = good_arc(
        gantry_deg=np.full(3, 40.0),
        leaves_mm=window,
        jaws_mm=np.tile([-10.0, 110.0, -25.0, 25.0], (3, 1)),
        mu=np.array([10.0, 50.0]),
    )
    pace = timing(arc, LIMITS)
    assert np.allclose(pace.time_s, [2.0, 5.0])
    assert np.allclose(pace.leaf_speed_mm_s, [22.5, 9.0])
    assert np.allclose(pace.dose_rate_mu_min, [300.0, 600.0])
    assert violations(plan_of(arc), MACHINE) == []


def test_mu_scaled_by_a_factor() -> None:
    """A third of the MU at full gantry speed takes as long; ten times the MU sets its own pace."""
    arc = good_arc()
    assert timing(replace(arc, mu=arc.mu / 3), LIMITS).total_s == timing(arc, LIMITS).total_s
    assert timing(replace(arc, mu=arc.mu * 10), LIMITS).total_s == pytest.approx(20.0)
    assert plan_of(arc, replace(arc, mu=arc.mu * 10)).total_mu == pytest.approx(220.0)


# --- limits that not every machine has


def with_limits(**changes: object) -> Machine:
    return replace(MACHINE, limits=replace(LIMITS, **changes))


def test_leaves_that_turn_round_are_given_the_time_they_need() -> None:
    """7 mm out and back in 1/3 s each: +21 and -21 mm/s change by 42 mm/s within 1/3 s, 126 mm/s2.

    At 100 mm/s2 both segments are stretched by sqrt(126 / 100), at 126 mm/s2 and above not at all.
    """
    array = good_arc().leaves_mm.copy()
    array[5, 1, 30] += 7.0
    arc = good_arc(leaves_mm=array)
    loose, tight = (
        with_limits(leaf_acceleration_mm_s2=most, gantry_acceleration_deg_s2=1e5) for most in (127.0, 100.0)
    )
    free = timing(arc, replace(LIMITS, gantry_acceleration_deg_s2=1e5))
    assert np.array_equal(timing(arc, loose.limits).time_s, free.time_s)
    pace = timing(arc, tight.limits)
    # The limit counts from the segments on either side as well, which have no motion: 21 in 1/3 s.
    assert np.allclose(pace.time_s[4:6], np.sqrt(126 / 100) / 3)
    assert np.allclose(np.delete(pace.time_s, [4, 5]), 1 / 3)
    assert violations(plan_of(arc), tight) == []


def test_jaws_move_only_on_a_machine_that_has_jaw_tracking() -> None:
    array = good_arc().jaws_mm.copy()
    array[4:, 3] += 1.5
    moving = plan_of(good_arc(jaws_mm=array))
    assert violations(moving, with_limits(jaw_tracking=True)) == []
    (sentence,) = violations(moving, with_limits(jaw_tracking=False))
    assert "segment 3: a Y jaw moves by 1.5 mm" in sentence and "no jaw tracking" in sentence
    assert violations(plan_of(good_arc()), with_limits(jaw_tracking=False)) == []


def test_a_jaw_starts_from_rest() -> None:
    """2 mm in the first segment from rest: 2 = a t^2 / 2, so 1 mm/s2 asks for 2 s and the arc has 1.15 s."""
    array = good_arc().jaws_mm.copy()
    array[1:, 3] += 2.0
    machine = with_limits(jaw_acceleration_mm_s2=1.0, gantry_acceleration_deg_s2=1e5)
    pace = timing(good_arc(jaws_mm=array), machine.limits)
    assert pace.time_s[0] >= 2.0 and violations(plan_of(good_arc(jaws_mm=array)), machine) == []


def test_the_dose_rate_changes_no_faster_than_it_can() -> None:
    """From 60 to 600 MU/min in a second each way, at 120 MU/min/s: the higher rate is slowed down.

    60 MU/min is 1 MU/s. The MU of the next segment over its time t exceed 1 MU/s by 2 (t0 + t) / 2 MU/s.
    """
    mu = np.full(N - 1, 1.0)
    mu[5] = 10.0
    limits = replace(
        LIMITS, dose_rate_change_mu_min_s=120.0, gantry_speed_deg_s=2.0, gantry_acceleration_deg_s2=1e5
    )
    pace = timing(good_arc(mu=mu), limits)
    assert np.allclose(np.delete(pace.time_s, 5), 1.0)
    t = pace.time_s[5]
    assert 10 / t - 1 == pytest.approx(2 * (1 + t) / 2) and t > 1.0
    assert violations(plan_of(good_arc(mu=mu)), replace(MACHINE, limits=limits)) == []


@pytest.mark.parametrize(("arc", "optional", "sentence"), [
    (
        {"leaves_mm": (5, 1, 30, 7.0)},
        {"leaf_acceleration_mm_s2": 100.0},
        "control point 5, leaf pair 31: X2 changes its speed from 20.3 to -20.3 mm/s within 0.345 s, above "
        "the maximum 100 mm/s2; move it more evenly",
    ),
    (
        {"jaws_mm": (5, 0, -3.0)},
        {"jaw_acceleration_mm_s2": 40.0},
        "control point 5: jaw X1 changes its speed from -8.7 to 8.7 mm/s within 0.345 s, above the maximum "
        "40 mm/s2; move it more evenly",
    ),
    (
        {"mu": (5, 0.3)},
        {"dose_rate_change_mu_min_s": 100.0},
        "control point 5: the dose rate changes from 348 to 54 MU/min within 0.339 s, above the maximum "
        "100 MU/min/s; spread the MU more evenly",
    ),
])  # fmt: skip
def test_a_change_too_quick_for_the_slowest_gantry_is_named(arc: dict, optional: dict, sentence: str) -> None:
    """A ring that cannot turn below 5.8 deg/s has no time to give."""
    (name, (*index, value)) = next(iter(arc.items()))
    array = getattr(good_arc(), name).copy()
    array[tuple(index)] = value if name == "mu" else array[tuple(index)] + value
    changes = {name: array}
    machine = with_limits(gantry_speed_min_deg_s=5.8, gantry_acceleration_deg_s2=1e5, **optional)
    assert violations(plan_of(good_arc(**changes)), machine) == [f"beam 1 (A): {sentence}"]
    assert violations(plan_of(good_arc(**changes)), with_limits(**optional)) == []


def test_a_dose_rate_of_few_levels_and_a_gantry_speed_in_steps() -> None:
    """360 MU/min at full gantry speed; of 150, 300 and 600 there is 300: 2 MU take 0.4 s, 5 deg/s."""
    levels = replace(LIMITS, dose_rate_levels_mu_min=(150.0, 300.0, 600.0))
    pace = timing(good_arc(), levels)
    assert np.allclose(pace.dose_rate_mu_min[3:7], 300.0) and np.allclose(pace.time_s[3:7], 0.4)
    steps = replace(LIMITS, gantry_speed_step_deg_s=0.5)
    quick = timing(good_arc(mu=np.full(N - 1, 7.0)), steps)  # 600 MU/min would be 2.857 deg/s
    assert np.allclose(quick.gantry_speed_deg_s[1:-1], 2.5)
    assert np.allclose(quick.gantry_speed_deg_s[[0, -1]], np.sqrt(3))  # from rest, as fast as it can


def test_a_level_above_the_maximum_or_two_kinds_of_steps_are_refused() -> None:
    for changes in (
        {"dose_rate_levels_mu_min": (300.0, 700.0)},
        {"dose_rate_levels_mu_min": (300.0, 150.0)},
        {"dose_rate_levels_mu_min": (300.0,), "gantry_speed_step_deg_s": 0.5},
    ):
        with pytest.raises(ValueError, match="dose_rate_levels_mu_min"):
            replace(LIMITS, **changes)


# --- violations


def test_a_good_plan_has_none() -> None:
    assert violations(plan_of(good_arc(), good_arc(number=2)), MACHINE) == []


def over_axis() -> Arc:
    """Both X jaws and the leaves 25 mm beyond the axis, at every control point."""
    array = good_arc().leaves_mm.copy() + 60.0
    return good_arc(leaves_mm=array, jaws_mm=np.tile([25.0, 90.0, -25.0, 25.0], (N, 1)))


def wide_bank() -> Arc:
    array = good_arc().leaves_mm.copy()
    array[:, :, 0], array[:, :, 59] = -100.0, 55.0
    return good_arc(leaves_mm=array)


def slow_segment(mu: float) -> Arc:
    values = np.full(N - 1, 2.0)
    values[5] = mu
    return good_arc(mu=values)


@pytest.mark.parametrize(
    ("arc", "sentence"),
    [
        (leaves(setter((3, 0, 30), 20.5)), "control point 3, leaf pair 31: X1 is 0.50 mm beyond X2"),
        (
            leaves(setter((3, 0, 30), 19.7)),
            "control point 3, leaf pair 31: gap 0.30 mm is below the minimum 0.5",
        ),
        (
            leaves(setter((3, 0, 30), 20.0)),
            "control point 3, leaf pair 31: gap 0.00 mm is below the minimum 0.5",
        ),
        (leaves(setter((slice(None), slice(None), 2), -210.0)), "position -210.00 mm is outside +-200 mm"),
        (wide_bank(), "bank X1: leaves span 155.0 mm, the carriage allows 150 mm"),
        (jaws(5, 4, -25, 25), "control point 4: X jaws cross by 1.00 mm"),
        (jaws(-25, 25, 5, 3), "control point 4: Y jaws cross by 2.00 mm"),
        (jaws(-25, 201, -25, 25), "an X jaw stands at 201.0 mm, the limit is 200 mm"),
        (jaws(-25, 25, -202, 25), "a Y jaw stands at 202.0 mm"),
        (over_axis(), "an X jaw is 25.0 mm beyond the central axis, the limit is 20 mm"),
        (jaws(-25, 25, -150, -105), "a Y jaw is 105.0 mm beyond the central axis, the limit is 100 mm"),
        (leaves(setter((slice(5, None), 1, 30), 28.0)), "segment 4: leaf speed 24.00 mm/s over 0.333 s"),
        (jaws(-25, 25, -25, 30), "segment 3: jaw speed 15.00 mm/s"),
        (slow_segment(0.15), "segment 5: 0.0750 MU/deg is below the minimum 0.1"),
        (slow_segment(42.0), "segment 5: 21.00 MU/deg is above the maximum 20"),
        (slow_segment(-1.0), "segment 5: -1.000 MU is negative"),
        (good_arc(mu=np.zeros(N - 1)), "no monitor units at all"),
        (
            good_arc(gantry_deg=np.array([0, 2, 4, 4, 6, 8, 10, 12, 14, 16, 18.0])),
            "gantry at rest within an arc",
        ),
    ],
)
def test_each_violation_is_named(arc: Arc, sentence: str) -> None:
    found = violations(plan_of(good_arc(), replace(arc, number=2, name="B")), MACHINE)
    assert len(found) >= 1 and all(s.startswith("beam 2 (B): ") for s in found), found
    assert any(sentence in s for s in found), found


def test_one_change_gives_one_sentence() -> None:
    for arc in (wide_bank(), over_axis(), slow_segment(42.0), slow_segment(0.15), jaws(-25, 25, -25, 30)):
        assert len(violations(plan_of(arc), MACHINE)) == 1


def test_a_gantry_too_slow() -> None:
    """40 MU on 0.5 degrees: 4 s, so 0.125 deg/s; a machine whose least is 0.2 deg/s cannot."""
    limits = replace(LIMITS, gantry_speed_min_deg_s=0.2, mu_per_deg_max=100.0)
    arc = good_arc(gantry_deg=np.arange(0, 5.1, 0.5), mu=np.full(N - 1, 40.0))
    assert violations(plan_of(arc), replace(MACHINE, limits=limits)) == [
        "beam 1 (A): segment 0: the gantry would turn at 0.125 deg/s, below the minimum 0.2 deg/s; "
        "lower the MU of the segment"
    ]


def test_too_many_control_points() -> None:
    few = replace(MACHINE, limits=replace(LIMITS, control_points_max=10))
    assert violations(plan_of(good_arc()), few) == [
        "beam 1 (A): 11 control points, the machine takes 10; thin them"
    ]


def test_a_plan_without_beams() -> None:
    assert violations(plan_of(), MACHINE) == [
        "the plan has no beam with monitor units; at least one is needed"
    ]


def test_a_plan_of_another_collimator() -> None:
    other = good_arc(leaves_mm=np.zeros((N, 2, 80)))
    assert violations(plan_of(other), MACHINE) == [
        "beam 1 (A): 80 leaf pairs, machine generic_6mv has 60; choose the machine that the plan was made for"
    ]


def test_a_dose_rate_that_the_machine_does_not_have() -> None:
    assert violations(plan_of(good_arc(), dose_rate_mu_min=1400.0), MACHINE) == [
        "dose rate 1400 MU/min is above the maximum 600 MU/min of machine generic_6mv; lower it"
    ]


def test_closed_pairs_are_parked_only_while_they_rest() -> None:
    """Pairs outside the field are closed in the good plan; one of them moving closed is not delivered."""
    moving = leaves(setter((slice(6, None), slice(None), 50), 3.0))
    assert violations(plan_of(moving), MACHINE) == [
        "beam 1 (A): control point 5, leaf pair 51: gap 0.00 mm is below the minimum 0.5 mm of moving "
        "leaves; open the pair"
    ]


def test_interdigitation_where_the_collimator_forbids_it() -> None:
    arc = leaves(setter((slice(None), slice(None), 33), np.array([21.0, 30.0])))
    rigid = replace(MACHINE, mlc=replace(MACHINE.mlc, interdigitation=False))
    assert violations(plan_of(arc), MACHINE) == []
    found = violations(plan_of(arc), rigid)
    assert len(found) == 1 and "leaf pairs 34 and 35 interdigitate by 21.00 mm" in found[0]


def test_rounding_of_positions_to_a_hundredth_is_no_violation() -> None:
    """At exactly the leaf speed limit, 0.01 mm of rounding at both ends must pass, 0.1 mm must not."""
    step = LIMITS.leaf_speed_mm_s / 3
    exact = leaves(setter((slice(5, None), 1, 30), 20 + step))
    assert violations(plan_of(exact), MACHINE) == []
    assert violations(plan_of(leaves(setter((slice(5, None), 1, 30), 20.02 + step))), MACHINE) == []
    assert len(violations(plan_of(leaves(setter((slice(5, None), 1, 30), 20.1 + step))), MACHINE)) == 1


def test_no_jaw_limits_where_the_machine_has_no_such_jaws() -> None:
    without_x = replace(MACHINE, jaws=("ASYMY",))
    assert violations(plan_of(jaws(-25, 201, -25, 25)), MACHINE) != []
    array = np.tile([-400.0, 400.0, -25.0, 25.0], (N, 1))
    assert violations(plan_of(good_arc(jaws_mm=array)), without_x) == []


def test_a_clinical_plan_that_was_delivered_keeps_all_limits(shared_data: Path) -> None:
    """An Eclipse plan for a TrueBeam: the conservative generic limits must let it pass."""
    from vmat_diffusion.dicom import read_plan

    file = shared_data / "rtplans" / "eclipse_truebeam_tg119_cshape_2arc.dcm"
    if not file.is_file():
        pytest.skip(f"test data absent: {file.name}")
    plan = read_plan(file)
    assert violations(plan, MACHINE) == []
    assert 110 < delivery_s(plan, MACHINE) < 130  # two arcs of 358 degrees at 6 deg/s are 119.3 s


def test_layers_of_a_stacked_collimator_have_their_own_span() -> None:
    """One layer at -60, the other at +60 mm: 120 mm apart, but each carriage spans 0."""
    layers = "".join(
        f'[[mlc.layers]]\ndevice = "{device}"\nboundaries_mm = {{ value = {edges}, source = "test" }}\n'
        for device, edges in (("MLCX1", [-20, -10, 0, 10, 20]), ("MLCX2", [-25, -15, -5, 5, 15, 25]))
    )
    head = (Path(__file__).parents[3] / "src/vmat_diffusion/machines/generic_6mv.toml").read_text()
    head = head[: head.index("[[mlc.layers]]")]
    without_tongues = "\n".join(line for line in head.splitlines() if not line.startswith("tongue")) + "\n"
    machine = parse_machine(without_tongues + layers, "stacked")
    machine = replace(machine, limits=replace(machine.limits, leaf_span_mm=100.0))
    array = np.zeros((N, 2, 9))
    array[:, 0], array[:, 1] = -60.0, -50.0
    array[:, :, 4:] += 120.0
    arc = good_arc(leaves_mm=array)
    assert violations(plan_of(arc), machine) == []
    array[:, :, 4] -= 120.0
    assert "span 120.0 mm" in violations(plan_of(good_arc(leaves_mm=array)), machine)[0]


@pytest.mark.parametrize(("start", "ok"), [(182.0, True), (-178.0, True), (150.0, False), (510.0, False)])
def test_the_gantry_does_not_turn_through_its_stop(start, ok):
    """Unwrapped angles: a C-arm goes from one side of 180 to the other the long way round only."""
    arc = good_arc()
    moved = replace(arc, gantry_deg=start + arc.gantry_deg - arc.gantry_deg[0])
    wide = replace(
        moved, gantry_deg=start + 40.0 * np.arange(len(arc.gantry_deg)) / (len(arc.gantry_deg) - 1)
    )
    found = [v for v in violations(plan_of(wide), MACHINE) if "through 180 deg" in v]
    assert (found == []) is ok


def test_leaves_that_keep_up_leave_the_dose_rate_alone() -> None:
    assert at_pace_of_leaves(plan_of(good_arc()), LIMITS).dose_rate_mu_min is None


def test_the_dose_rate_falls_until_leaves_keep_up() -> None:
    """10 mm take 0.444 s at 22.5 mm/s; 2 MU in that time are 270 MU/min. At 600 they are given in 1/3 s."""
    plan = plan_of(leaves(lambda array: array.__setitem__((slice(5, None), 1, 30), 30.0)))
    assert any("leaf" in sentence for sentence in violations(plan, MACHINE))
    slowed = at_pace_of_leaves(plan, LIMITS)
    assert slowed.dose_rate_mu_min == 270.0
    assert violations(slowed, MACHINE) == []
    assert timing(slowed.arcs[0], LIMITS, 270.0).time_s[4] == pytest.approx(2 / 270 * 60)


def test_the_dose_rate_is_one_that_the_machine_has() -> None:
    limits = replace(LIMITS, dose_rate_levels_mu_min=(75.0, 150.0, 300.0, 600.0))
    plan = plan_of(leaves(lambda array: array.__setitem__((slice(5, None), 1, 30), 30.0)))
    assert at_pace_of_leaves(plan, limits).dose_rate_mu_min == 150.0
