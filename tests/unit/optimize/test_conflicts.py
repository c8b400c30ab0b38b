"""Goals in conflict: exact bounds from shared voxels, and opposing pulls."""

import numpy as np
import pytest

from vmat_diffusion.case import Case, Prescription, Structure
from vmat_diffusion.evaluate.delivery_goals import DeliveryGoal
from vmat_diffusion.evaluate.goals import DeliveryResult, parse_goals
from vmat_diffusion.geometry import Grid
from vmat_diffusion.optimize.conflicts import (
    contradictions,
    delivery_conflicts,
    merge_conflicts,
    observed_conflicts,
    proven_conflicts,
)

SHEET = """
title = "t"
site = "any"
source = "test"
fractions = 30
prescription_gy = {{ PTV = 60.0 }}
normalization = {{ PTV = "D50% = 60 Gy" }}
[[goals]]
structure = "PTV"
goal = "D95% >= 57 Gy"
priority = 1
source = "test"
[[goals]]
structure = "Organ"
goal = "{goal}"
priority = {priority}
source = "test"
"""


def sheet(goal, priority=2):
    return parse_goals(SHEET.format(goal=goal, priority=priority), "test")


@pytest.fixture
def case():
    """A target of 200 voxels and an organ of 100, of which 60 are shared; voxels of 1 cc."""
    shape = (10, 10, 10)
    grid = Grid(shape, (10.0, 10.0, 10.0), (0.0, 0.0, 0.0))

    def structure(name, role, voxels):
        mask = np.zeros(shape, bool)
        mask.ravel()[voxels] = True
        return Structure(name, role, mask)

    return Case(
        "c",
        "any",
        grid,
        np.zeros(shape, np.int16),
        {
            "BODY": structure("BODY", "body", slice(0, 1000)),
            "PTV": structure("PTV", "target", slice(100, 300)),
            "Organ": structure("Organ", "organ", slice(240, 340)),
        },
        Prescription(30, {"PTV": 60.0}),
    )


@pytest.mark.parametrize(
    ("goal", "least"),
    [
        # 60 shared voxels, 10 of which the 5 % of the target that may stay cold can take out: 50 at 57 Gy.
        ("mean <= 26 Gy", 0.5 * 57),
        ("V50Gy <= 30 %", 50.0),
        ("V50Gy[cc] <= 30 cc", 50.0),
        ("D40% <= 40 Gy", 57.0),
        ("D0.03cc <= 50 Gy", 57.0),
        ("max <= 50 Gy", 57.0),
    ],
)
def test_what_coverage_puts_into_shared_voxels_is_a_bound(case, goal, least):
    (found,) = proven_conflicts(case, sheet(goal))
    assert found.least == pytest.approx(least, rel=0.02)
    assert found.against == ("PTV D95% >= 57 Gy",)
    assert "cannot be met" in str(found)


@pytest.mark.parametrize("goal", ["mean <= 29 Gy", "V50Gy <= 51 %", "D60% <= 40 Gy", "D0.03cc <= 58 Gy"])
def test_what_can_be_met_is_no_conflict(case, goal):
    assert proven_conflicts(case, sheet(goal)) == ()


def test_a_lower_priority_of_coverage_forbids_nothing(case):
    lower = sheet("mean <= 26 Gy", priority=1)
    assert len(proven_conflicts(case, lower)) == 1
    goals = (lower.goals[0].__class__(**{**lower.goals[0].__dict__, "priority": 2}), lower.goals[1])
    assert proven_conflicts(case, lower.__class__(**{**lower.__dict__, "goals": goals})) == ()


def test_opposing_pulls_are_named_the_most_opposed_first():
    goal = sheet("mean <= 26 Gy").goals[1]
    pulls = {
        str(goal): np.array([1.0, 0.0]),
        "coverage of PTV": np.array([-1.0, 0.1]),
        "falloff": np.array([1.0, 1.0]),
        "hot dose in PTV": np.array([-1.0, 1.0]),
        "sparing of Organ": np.array([0.0, 1.0]),
    }
    (found,) = observed_conflicts([goal], pulls)
    assert found.against == ("coverage of PTV", "hot dose in PTV")
    assert str(found) == "Organ mean <= 26 Gy is held off by coverage of PTV and hot dose in PTV"


def test_a_goal_without_a_pull_of_its_own_is_still_named():
    goal = sheet("mean <= 26 Gy").goals[1]
    (found,) = observed_conflicts([goal], {"coverage of PTV": np.ones(2)})
    assert found.against == () and "limits of machine" in str(found)


def test_a_proof_stands_before_what_was_seen(case):
    own = sheet("mean <= 26 Gy")
    proven, seen = proven_conflicts(case, own), observed_conflicts([own.goals[1]], {})
    assert merge_conflicts(proven, seen) == proven == merge_conflicts(proven, ())


@pytest.mark.parametrize(
    ("goal", "best"),
    [
        ("CV50Gy >= 60 cc", "50.0 cc at the most"),
        ("CV50Gy >= 51 %", "50.0 % at the most"),
        ("CV50Gy >= 120 cc", "beside the volume of Organ, 100 cc"),
        ("meanhot20% <= 50 Gy", "57.0 Gy at the least"),
        ("meancold60% <= 5 Gy", "9.5 Gy at the least"),
        ("D0.03cc <= 90 %", "95.0 % at the least"),
        ("mean <= 40 %", "47.5 % at the least"),
        ("V50Gy <= 0 cc", "50.0 cc at the least"),
    ],
)
def test_new_forms_are_bounded_as_well(case, goal, best):
    (found,) = proven_conflicts(case, sheet(goal))
    assert best in str(found)


@pytest.mark.parametrize("goal", ["CV50Gy >= 50 cc", "meancold50% <= 1 Gy", "D0.03cc <= 96 %"])
def test_new_forms_that_can_be_met_are_no_conflict(case, goal):
    assert proven_conflicts(case, sheet(goal)) == ()


def of_target(goal, priority=1):
    return parse_goals(SHEET.replace('"Organ"', '"PTV"').format(goal=goal, priority=priority), "test")


@pytest.mark.parametrize(
    ("goal", "best"),
    [
        ("D2% <= 56 Gy", "60.0 Gy at the least"),
        ("max <= 55 Gy", "60.0 Gy at the least"),
        ("D60% >= 61 Gy", "60.0 Gy at the most"),
        ("V57Gy <= 90 %", "95.0 % at the least"),
        ("R100% <= 0.4", "0.5"),
    ],
)
def test_goals_on_one_target_contradict_each_other_in_any_patient(case, goal, best):
    own = of_target(goal)
    (found,) = contradictions(own)
    assert best in str(found) and str(own.goals[1]) in str(found)
    assert str(found) in {str(conflict) for conflict in proven_conflicts(case, own)}


@pytest.mark.parametrize("goal", ["D2% <= 60 Gy", "mean <= 56 Gy", "min >= 50 Gy", "homogeneity <= 0.1"])
def test_goals_on_one_target_that_go_together(goal):
    assert contradictions(of_target(goal)) == ()


def test_a_limit_that_outranks_a_coverage_goal_puts_it_out_of_reach(case):
    """60 of 200 voxels may have 40 Gy at the most, so no more than 70 % can have 57 Gy."""
    text = SHEET.replace("D50% = 60", "D40% = 60").format(goal="max <= 40 Gy", priority=1)
    own = parse_goals(text.replace("priority = 1", "priority = 2", 1), "test")
    (found,) = proven_conflicts(case, own)
    assert str(found).startswith(
        "PTV D95% >= 57 Gy cannot be met beside Organ max <= 40 Gy: 40.0 Gy at the most"
    )


def test_a_missed_limit_of_mu_is_named_with_what_opposes_it():
    limit = DeliveryGoal("MU", 300.0)
    pulls = {str(limit): np.array([1.0, 0.0]), "Organ mean <= 5 Gy": np.array([-1.0, 0.1])}
    seen = observed_conflicts([limit], pulls)
    assert str(seen[0]) == "MU <= 300 MU/Gy is held off by Organ mean <= 5 Gy"
    # The sheet's own goal is named, though the search held a stricter limit; others have nothing to name.
    own = DeliveryGoal("MU", 320.0, priority=3)
    results = [
        DeliveryResult(own, 350.0, "fail"),
        DeliveryResult(DeliveryGoal("edge", 0.1), 0.2, "fail"),
        DeliveryResult(DeliveryGoal("leaf motion", 3.75), 3.7, "pass"),
    ]
    found = delivery_conflicts(results, seen)
    assert [str(c) for c in found] == [
        "MU <= 320 MU/Gy is held off by Organ mean <= 5 Gy",
        "edge <= 0.1 /mm is held off by the limits of machine and search",
    ]
    assert merge_conflicts((), [*seen, *found])[0].goal == limit
