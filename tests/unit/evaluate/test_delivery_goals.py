"""Goals on the delivery: how they are read and refused, what they say of a plan, and what holds for one."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmat_diffusion.errors import GoalError, InputError
from vmat_diffusion.evaluate.delivery_goals import (
    QUANTITIES,
    DeliveryGoal,
    Quantity,
    asked_delivery,
    default_delivery,
    limit_of,
)
from vmat_diffusion.evaluate.delivery_results import missed_delivery
from vmat_diffusion.evaluate.goal_sources import stated_numbers
from vmat_diffusion.evaluate.goals import (
    GoalSheet,
    delivery_record,
    evaluate_delivery,
    goal_sheet_names,
    load_goals,
    parse_goals,
)
from vmat_diffusion.files import parse_toml
from vmat_diffusion.machine import load_machine
from vmat_diffusion.optimize import Settings
from vmat_diffusion.optimize.delivery import with_delivery
from vmat_diffusion.plan import Arc, Plan
from vmat_diffusion.workflow.planning.request import plan_settings, with_asked_delivery
from vmat_diffusion.workflow.planning.search import optimizer_settings

MACHINE = load_machine("generic_6mv")
# A sheet of format 2 as it was before there were goals on the delivery.
OLD = """
format = 2
title = "x"
site = "head_neck"
source = "s"
seen = "practice"
fractions = 2
[prescription_gy]
PTV = 4.0
[normalization]
PTV = "D95% = 4 Gy"
[[goals]]
structure = "PTV"
goal = "D95% >= 4 Gy"
priority = 1
source = "s"
seen = "practice"
"""


def sheet_with(*entries: str) -> GoalSheet:
    blocks = [f"[[delivery]]\n{entry}\n" for entry in entries]
    return parse_goals(OLD + "\n".join(blocks), "own")


def entry(goal: str, more: str = "") -> str:
    return f'goal = "{goal}"\npriority = 2\nsource = "ours"\nseen = "chosen"\n{more}'


def moving_plan(*, mu: float = 600.0, step_mm: float = 6.0, half_mm: float = 20.0) -> Plan:
    """One arc of three control points, 2 degrees apart, in which four pairs of a given opening move along."""
    leaves = np.zeros((3, 2, 60))
    leaves[:, 0, 28:32], leaves[:, 1, 28:32] = -half_mm, half_mm
    leaves += step_mm * np.arange(3)[:, None, None]
    jaws = np.tile([-100.0, 100.0, -10.0, 10.0], (3, 1))
    arc = Arc(2.0 * np.arange(3), 0.0, 0.0, leaves, jaws, np.array([mu / 2, mu / 2]))
    return Plan((arc,), (0.0, 0.0, 0.0), 2, "generic_6mv")


@pytest.mark.parametrize(
    ("written", "quantity", "limit"),
    [
        ("MU <= 300 MU/Gy", "MU", 300.0),
        ("mu<=300MU/Gy", "MU", 300.0),
        ("leaf motion <= 3.75 mm/deg", "leaf motion", 3.75),
        ("open gap \u2265 10 mm", "open gap", 10.0),
        ("edge <= 0.12 1/mm", "edge", 0.12),
        ("beam on time <= 130 s", "beam-on time", 130.0),
    ],
)
def test_a_goal_is_read(written: str, quantity: str, limit: float) -> None:
    (goal,) = sheet_with(entry(written)).delivery
    assert (goal.quantity, goal.limit, goal.priority, goal.source) == (quantity, limit, 2, "ours")
    assert sheet_with(entry(str(goal))).delivery == (goal,)  # it is read as it is written


@pytest.mark.parametrize(
    ("written", "more", "says"),
    [
        ("speed <= 3 mm", "", "'speed', which is not known; known are MU, leaf motion, open gap"),
        ("leaf motion <= 3.75 mm", "", "has the unit 'mm'; leaf motion needs mm/deg"),
        ("MU <= 300", "", "has the unit ''; MU needs MU/Gy"),
        ("MU <= -3 MU/Gy", "", "the limit -3 must be above 0"),
        ("beam-on time <= 0 s", "", "the limit 0 must be above 0"),
        ("MU >= 300 MU/Gy", "", "needs <="),
        ("open gap <= 10 mm", "", "needs >="),
        ("few MU", "", "write for example 'MU <= 300 MU/Gy'"),
        ("MU <= 300 MU/Gy", "variation = 250", "variation 250 is stricter than the limit"),
        ("open gap >= 10 mm", "variation = 12", "variation 12 is stricter than the limit"),
        ("MU <= 300 MU/Gy", 'variation_source = "x"', "but no variation; add it"),
        ("MU <= 300 MU/Gy", "maximum = 3", "delivery 1 maximum: Unexpected keyword argument"),
        ("MU <= inf MU/Gy", "", "cannot read"),
    ],
)
def test_a_wrong_goal_is_refused_with_its_place_and_a_remedy(written: str, more: str, says: str) -> None:
    with pytest.raises(GoalError, match="goal sheet own: delivery 1") as refused:
        sheet_with(entry(written, more))
    assert says in str(refused.value)


@pytest.mark.parametrize("priority", ["0", "4", '"must"'])
def test_a_wrong_priority_is_refused(priority: str) -> None:
    with pytest.raises(GoalError, match="delivery 1"):
        sheet_with(f'goal = "MU <= 300 MU/Gy"\npriority = {priority}')


def test_sheets_of_before_mean_what_they_meant() -> None:
    for text in (OLD, OLD.replace("format = 2", "format = 1")):
        sheet = parse_goals(text, "old")
        assert sheet.delivery == () and evaluate_delivery(sheet, moving_plan(), MACHINE) == ()


def test_a_goal_without_a_source_is_named() -> None:
    (said,) = sheet_with('goal = "MU <= 300 MU/Gy"\npriority = 2').remarks
    assert said == "no source is stated for MU <= 300 MU/Gy; state it with source"


def test_values_and_status_of_a_plan_by_hand() -> None:
    """600 MU for 2 Gy: 300 MU/Gy. 6 mm in 2 degrees: 3 mm/deg. Gap 40 mm. Two sides of 40 mm, 40 x 20 mm2."""
    sheet = sheet_with(
        entry("MU <= 300 MU/Gy"),
        entry("leaf motion <= 2.5 mm/deg", "variation = 3.0"),
        entry("open gap >= 41 mm", "variation = 40"),
        entry("edge <= 0.1 /mm"),
        entry("beam-on time <= 10 s"),
    )
    found = evaluate_delivery(sheet, moving_plan(), MACHINE)
    assert [r.value for r in found[:4]] == pytest.approx([300.0, 3.0, 40.0, 0.1])
    assert [r.status for r in found] == ["pass", "acceptable", "acceptable", "pass", "fail"]
    assert found[4].value == pytest.approx(60.0, rel=0.02)  # 600 MU at 600 MU/min
    assert [r.missed for r in found] == [False, False, False, False, True]
    assert missed_delivery(found, 2) == (found[4],) and missed_delivery(found, 1) == ()
    record = delivery_record(found[1])
    assert (record["value"], record["status"], record["missed"], record["seen"]) == (
        3.0,
        "acceptable",
        False,
        "chosen",
    )


def test_mu_refer_to_the_highest_prescription() -> None:
    text = OLD.replace("PTV = 4.0", "PTV = 4.0\nPTV_low = 2.0") + "[[delivery]]\n" + entry("MU <= 300 MU/Gy")
    (found,) = evaluate_delivery(parse_goals(text, "own"), moving_plan(), MACHINE)
    assert found.value == pytest.approx(300.0)


def test_what_a_plan_does_not_have_is_not_evaluated_and_a_must_is_then_missed() -> None:
    wish = entry("leaf motion <= 2.5 mm/deg").replace("priority = 2", "priority = 1")
    plan = moving_plan()
    (arc,) = plan.arcs
    still = replace(plan, arcs=(replace(arc, gantry_deg=np.zeros(3)),))
    empty = replace(plan, arcs=(replace(arc, mu=np.zeros(2)),))
    other = replace(plan, arcs=(replace(arc, leaves_mm=arc.leaves_mm[:, :, :40]),))
    for changed, why in ((still, "stands still"), (empty, "no MU"), (other, "other leaves")):
        (found,) = evaluate_delivery(sheet_with(wish), changed, MACHINE)
        assert found.status == "not evaluated" and found.missed and why in found.note
    (found,) = evaluate_delivery(sheet_with(entry("leaf motion <= 2.5 mm/deg")), still, MACHINE)
    assert not found.missed


@given(
    st.floats(100, 1500),
    st.floats(0, 12),
    st.floats(1, 60),
    st.floats(0.05, 20),
    st.sampled_from(list(QUANTITIES)),
)
def test_a_limit_that_is_not_active_changes_no_status(
    mu: float, step: float, half: float, room: float, quantity: Quantity
) -> None:
    """A looser limit never turns a pass into less, and one beyond the value always passes."""
    plan = moving_plan(mu=mu, step_mm=step, half_mm=half)
    known = QUANTITIES[quantity]
    (found,) = evaluate_delivery(
        replace(sheet_with(), delivery=(DeliveryGoal(quantity, 1.0),)), plan, MACHINE
    )
    assert found.value is not None
    upper = known.comparator == "<="
    beyond = found.value + room if upper else max(found.value - room, 1e-3)
    for goals in (
        (DeliveryGoal(quantity, beyond),),
        (DeliveryGoal(quantity, 1.0), DeliveryGoal(quantity, beyond)),
    ):
        with_it = evaluate_delivery(replace(sheet_with(), delivery=goals), plan, MACHINE)
        assert with_it[-1].status == "pass" or (not upper and found.value <= 1e-3)
        if len(goals) == 2:
            assert with_it[0] == found


@given(st.floats(1, 1000), st.floats(0, 500))
def test_a_lower_limit_of_mu_is_never_a_looser_one(limit: float, less: float) -> None:
    high, low = limit + less, limit
    goals = (DeliveryGoal("MU", high), DeliveryGoal("MU", low))
    assert limit_of(goals, "MU") == low and limit_of(goals, "edge") is None
    gaps = (DeliveryGoal("open gap", high), DeliveryGoal("open gap", low))
    assert limit_of(gaps, "open gap") == high


def test_what_is_asked_goes_before_the_sheet_and_the_sheet_before_defaults() -> None:
    stated = sheet_with(entry("MU <= 320 MU/Gy").replace("priority = 2", "priority = 3")).delivery
    defaults = default_delivery("head_neck", stereotactic=False)
    held, said = asked_delivery(stated, defaults, {})
    assert [str(g) for g in held] == ["MU <= 320 MU/Gy", "leaf motion <= 3.75 mm/deg"] and said == ()
    held, said = asked_delivery(stated, defaults, {"MU": 250.0, "leaf motion": None})
    assert [(str(g), g.priority) for g in held] == [("MU <= 250 MU/Gy", 3)]
    assert said == ("the sheet's goal MU <= 320 MU/Gy does not hold: MU <= 250 MU/Gy was asked for",)
    held, said = asked_delivery(stated, defaults, {"MU": None})
    assert [g.quantity for g in held] == ["leaf motion"] and "no limit was asked for" in said[0]


def test_a_must_of_the_sheet_holds_beside_what_was_asked() -> None:
    must = tuple(replace(goal, priority=1) for goal in sheet_with(entry("MU <= 300 MU/Gy")).delivery)
    for limit in (None, 900.0):
        held, _ = asked_delivery(must, (), {"MU": limit})
        assert must[0] in held and all(g.priority > 1 for g in held if g is not must[0])


def test_a_sheet_reaches_the_search() -> None:
    sheet = sheet_with(
        entry("MU <= 320 MU/Gy"),
        entry("leaf motion <= 3 mm/deg"),
        entry("open gap >= 5 mm"),
        entry("beam-on time <= 110 s"),
    )
    asked = optimizer_settings(
        plan_settings(goals="own"), with_asked_delivery(sheet, plan_settings(goals="own")), MACHINE
    )
    assert (asked.mu_per_gy, asked.leaf_mm_per_deg, asked.seconds_per_turn) == (320.0, 3.0, 60.0)
    assert asked.open_gap_mm == 5.0
    own = plan_settings(
        goals="own", mu_per_gy=250, leaf_mm_per_deg="off", beam_on_s="off", seconds_per_turn=80
    )
    asked = optimizer_settings(own, with_asked_delivery(sheet, own), MACHINE)
    assert (asked.mu_per_gy, asked.leaf_mm_per_deg, asked.seconds_per_turn) == (250.0, None, 80.0)


def test_a_silent_sheet_is_planned_by_the_defaults_and_off_means_no_limit() -> None:
    silent = parse_goals(OLD, "own")
    asked = optimizer_settings(
        plan_settings(goals="own"), with_asked_delivery(silent, plan_settings(goals="own")), MACHINE
    )
    assert (asked.mu_per_gy, asked.leaf_mm_per_deg, asked.seconds_per_turn) == (300.0, 3.75, 60.0)
    off = plan_settings(goals="own", mu_per_gy="off", leaf_mm_per_deg="off")
    asked = optimizer_settings(off, with_asked_delivery(silent, off), MACHINE)
    assert (asked.mu_per_gy, asked.leaf_mm_per_deg) == (None, None)
    assert with_delivery(Settings(), silent, MACHINE) == Settings()  # the search itself adds no limit


def test_little_time_bounds_the_mu() -> None:
    """100 s at 600 MU/min are 1000 MU, 920 with room, for 2 Gy."""
    sheet = sheet_with(entry("beam-on time <= 100 s"))
    asked = with_delivery(Settings(), sheet, MACHINE)
    assert asked.mu_per_gy == pytest.approx(460.0) and asked.seconds_per_turn == 60.0  # no gantry is faster


@pytest.mark.parametrize("given", ["many", -3, 0, float("inf")])
def test_a_wrong_option_is_refused_in_its_spelling(given: object) -> None:
    with pytest.raises(InputError, match=r"--leaf-motion .*(correct it|choose another)"):
        plan_settings(goals="own", leaf_mm_per_deg=given)


@pytest.mark.parametrize("name", goal_sheet_names())
def test_every_shipped_sheet_says_how_its_plan_is_delivered(name: str) -> None:
    sheet = load_goals(name)
    limits = {goal.quantity: goal for goal in sheet.delivery}
    assert set(limits) == {"MU", "leaf motion", "edge", "beam-on time"}
    assert limits["leaf motion"].limit == 3.75 and all(g.priority > 1 for g in sheet.delivery)
    (mu, _) = default_delivery(sheet.site, stereotactic=sheet.stereotactic)
    phantom = {"tg119_cshape_hard": 380.0}.get(name, 325.0 if name.startswith("tg119") else None)
    small = sheet.site == "prostate" and sheet.stereotactic  # as other stereotactic plans
    assert limits["MU"].limit == (phantom or (300.0 if small else mu.limit))
    raw = (resources.files("vmat_diffusion") / "goals" / f"{name}.toml").read_text(encoding="utf-8")
    for written in parse_toml(raw)["delivery"]:
        assert written["source"].strip() and written["seen"]
    stated = [n for n in stated_numbers(sheet) if n.kind == "delivery"]
    assert [n.statement for n in stated] == [str(goal) for goal in sheet.delivery]
    assert not any(goal.seen == "chosen" for goal in sheet.goals)  # limits on dose have a source
