"""Delivery in the gate: musts stop, other goals and unusual complexity warn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_case import open_arc, small_case

from vmat_diffusion.evaluate.complexity import PUBLISHED, RANGES, complexity_of, outside_ranges, ranges_for
from vmat_diffusion.evaluate.delivery_goals import DeliveryGoal
from vmat_diffusion.evaluate.goals import GoalSheet, load_goals
from vmat_diffusion.machine import load_machine
from vmat_diffusion.qa.delivery import delivery_checks
from vmat_diffusion.qa.verdict import Check

MACHINE = load_machine("generic_6mv")
CASE = small_case()
PLAN = open_arc()  # 72 MU for 2 Gy


def sheet(*goals: DeliveryGoal) -> GoalSheet:
    return replace(load_goals("tg119_cshape_easy"), delivery=goals)


def checks(*goals: DeliveryGoal) -> dict[str, Check]:
    return {c.name: c for c in delivery_checks(CASE, sheet(*goals), PLAN, MACHINE)}


def test_goals_that_are_met_pass_and_without_goals_there_is_no_check() -> None:
    found = checks(DeliveryGoal("MU", 300.0, priority=1), DeliveryGoal("leaf motion", 3.75))
    assert set(found) == {"delivery goals"}
    assert found["delivery goals"].word == "pass" and "all 2 goals" in found["delivery goals"].why
    assert delivery_checks(CASE, sheet(), PLAN, MACHINE) == []
    assert delivery_checks(CASE, None, PLAN, MACHINE) == []


@pytest.mark.parametrize(("priority", "word"), [(1, "fail"), (2, "warning"), (3, "warning")])
def test_a_missed_must_stops_and_a_missed_should_warns(priority: int, word: str) -> None:
    found = checks(DeliveryGoal("MU", 30.0, priority=priority))["delivery goals"]
    assert found.word == word and found.passed is (priority > 1)
    assert found.why == "missed: MU <= 30 MU/Gy (36 MU/Gy)"


def test_a_must_that_cannot_be_evaluated_is_not_met() -> None:
    still = replace(PLAN, arcs=tuple(replace(a, gantry_deg=np.full(19, 3.0)) for a in PLAN.arcs))
    wish = DeliveryGoal("leaf motion", 3.75, priority=1)
    (found,) = delivery_checks(CASE, sheet(wish), still, MACHINE)
    assert found.word == "fail" and "the gantry stands still" in found.why
    (found,) = delivery_checks(CASE, sheet(replace(wish, priority=2)), still, MACHINE)
    assert found.word == "pass" and "not evaluated" in found.why


def test_a_plan_more_complex_than_others_is_a_warning_with_value_and_range() -> None:
    """72 MU become 936 MU for 2 Gy: 468 MU/Gy."""
    more = replace(PLAN, arcs=tuple(replace(a, mu=13 * a.mu) for a in PLAN.arcs))
    (found,) = delivery_checks(CASE, sheet(), more, MACHINE)
    assert found.name == "complexity" and found.warns and found.passed
    assert found.why == "MU per Gy of the prescription 468 MU/Gy lies outside at most 400 MU/Gy"
    metrics = complexity_of(more, MACHINE, None)
    assert metrics is not None and metrics.mu_per_gy is None and outside_ranges(metrics) == ()


def test_other_leaves_than_the_machine_s_are_no_crash() -> None:
    other = replace(PLAN, arcs=tuple(replace(a, leaves_mm=a.leaves_mm[:, :, :40]) for a in PLAN.arcs))
    (found,) = delivery_checks(CASE, sheet(DeliveryGoal("MU", 300.0)), other, MACHINE)
    assert found.passed and "other leaves" in found.why


def test_ranges_have_sources_and_a_site_goes_before_any() -> None:
    for known in RANGES:
        assert known.metric in PUBLISHED and known.source.strip() and known.seen
        assert (known.least is None) != (known.most is None)
    mu = {r.metric: r for r in ranges_for("head_neck")}["mu_per_gy"]
    assert mu.most == 275.0 and mu.text == "at most 275 MU/Gy (head neck)"
    assert {r.metric for r in ranges_for("head_neck")} == {r.metric for r in ranges_for()}
    assert mu.outside(275.1) and not mu.outside(275.0) and not mu.outside(100.0)
