"""Groups of goals: the nearest members are pressed for, without going to and fro."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vmat_diffusion.dose import dose_grid
from vmat_diffusion.evaluate.goals import Goal, GoalSheet, Group, fit_to_case, load_goals
from vmat_diffusion.evaluate.metrics import Metric
from vmat_diffusion.optimize.groups import excess, missing_members, of_groups, pressed_for
from vmat_diffusion.optimize.objectives import Objective, build_objective
from vmat_diffusion.phantom import phantom

LEFT, RIGHT = "Parotid_L mean <= 20 Gy", "Parotid_R mean <= 20 Gy"


@pytest.mark.parametrize(
    ("before", "distances", "after"),
    [
        (None, (0.5, 0.2, 0.9), {1}),
        # Nearer, but not by a tenth of the limit: the place is kept.
        ({0}, (0.5, 0.45, 0.9), {0}),
        ({0}, (0.5, 0.3, 0.9), {1}),
        # A goal that is met keeps its place whatever others do.
        ({0}, (-0.01, -0.9, -0.9), {0}),
        (None, (-0.1, -0.3, 0.2), {1}),
    ],
)
def test_a_place_is_given_up_only_for_one_that_is_nearer_by_a_margin(
    before: set[int] | None, distances: tuple[float, ...], after: set[int]
) -> None:
    kept = None if before is None else frozenset(before)
    assert pressed_for(1, distances, kept) == after


def test_of_several_places_the_farthest_is_given_up_first() -> None:
    assert pressed_for(2, (0.9, 0.5, 0.2, 0.1), frozenset({0, 1})) == {2, 3}
    assert pressed_for(2, (0.9, 0.25, 0.2, 0.3), frozenset({0, 1})) == {1, 2}
    assert pressed_for(5, (0.9, 0.25), None) == {0, 1}


@pytest.fixture(scope="module")
def sheet() -> GoalSheet:
    base = load_goals("tg119_headneck")
    mean = Metric.parse("mean")
    left, right = (
        Goal(name, mean, "<=", 20.0, "Gy", source="chosen", group="either")
        for name in ("Parotid_L", "Parotid_R")
    )
    others = tuple(g for g in base.goals if not g.structure.startswith("Parotid"))
    return replace(base, goals=(*others, left, right), groups={"either": Group("either", 1, 2)})


@pytest.fixture(scope="module")
def objective(sheet: GoalSheet) -> Objective:
    case = phantom("tg119_headneck")
    return build_objective(case, fit_to_case(sheet, case), dose_grid(case, 5.0), np.random.default_rng(0))


def dosed(objective: Objective, left_gy: float, right_gy: float) -> np.ndarray:
    dose = np.full(len(objective.points_mm), 1.01, np.float32)
    for name, gy in (("Parotid_L", left_gy), ("Parotid_R", right_gy), ("SpinalCord", 10.0)):
        for term in objective.terms:
            if term.goal.structure == name:
                dose[term.region.points] = gy / objective.reference_gy
        dose[objective.regions[name].points] = gy / objective.reference_gy
    return dose


def state(objective: Objective) -> dict[str, tuple[int, float, bool | None]]:
    return {str(t.goal): (t.goal.priority, t.weight, t.pressed) for t in objective.terms if t.goal.group}


def test_excess_is_a_share_of_the_limit(sheet: GoalSheet) -> None:
    goal = next(g for g in sheet.goals if g.group)
    assert excess(goal, 25.0) == pytest.approx(0.25)
    assert excess(replace(goal, comparator=">="), 25.0) == pytest.approx(-0.25)


def test_the_nearest_has_the_weight_of_the_group_and_the_other_that_of_a_wish(objective: Objective) -> None:
    assert {pressed for _, _, pressed in state(objective).values()} == {None}
    weighed = objective
    for _ in range(20):
        weighed, _ = weighed.adapt(dosed(objective, 40.0, 30.0))
    # While the group fails, wishes yield; once it is met, the other grows as far as a wish does.
    assert state(weighed) == {LEFT: (3, 0.5, False), RIGHT: (2, 25.0, True)}
    for _ in range(20):
        weighed, _ = weighed.adapt(dosed(objective, 40.0, 10.0))
    assert state(weighed)[LEFT] == (3, 6.0, False)


def test_what_a_place_weighs_goes_with_it(objective: Objective) -> None:
    weighed = objective
    for _ in range(20):
        weighed, _ = weighed.adapt(dosed(objective, 40.0, 30.0))
    same, _ = weighed.adapt(dosed(objective, 29.0, 30.0))
    assert state(same)[RIGHT][2] is True
    moved, _ = weighed.adapt(dosed(objective, 21.0, 30.0))
    assert state(moved) == {LEFT: (2, 25.0, True), RIGHT: (3, 4.5, False)}


def test_it_does_not_go_to_and_fro_where_both_are_about_as_near(objective: Objective) -> None:
    weighed, pressed = objective, []
    for k in range(12):
        weighed, _ = weighed.adapt(dosed(objective, 30.0 + 0.8 * (-1) ** k, 30.0))
        pressed.append(state(weighed)[LEFT][2])
    assert len(set(pressed)) == 1


def test_one_that_is_met_is_enough(objective: Objective) -> None:
    assert objective.missed_goals(dosed(objective, 40.0, 10.0)) == []
    missed = objective.missed_goals(dosed(objective, 40.0, 30.0))
    assert [(str(g), g.priority) for g in missed] == [(RIGHT, 2)]
    _, count = objective.adapt(dosed(objective, 40.0, 10.0))
    _, more = objective.adapt(dosed(objective, 40.0, 30.0))
    assert more == count + 1


def test_another_objective_and_a_continued_search_take_the_choice_over(objective: Objective) -> None:
    weighed, _ = objective.adapt(dosed(objective, 40.0, 30.0))
    assert state(objective.weighted_as(weighed)) == state(weighed)
    resumed = objective.resume(weighed.goal_weights, dosed(objective, 25.0, 40.0))
    assert {name: pressed for name, (_, _, pressed) in state(resumed).items()} == {LEFT: True, RIGHT: False}


def test_the_goals_that_a_group_lacks_have_its_priority(sheet: GoalSheet) -> None:
    members = [g for g in sheet.goals if g.group]
    two_of = Group("either", 2, 1)
    assert missing_members(two_of, members[:1], 2)[0].priority == 1
    assert missing_members(sheet.groups["either"], members[:1], 2) == ()
    assert of_groups(sheet.goals, sheet.groups)["either"] == (len(sheet.goals) - 2, len(sheet.goals) - 1)


def test_where_every_goal_counts_none_is_excused(sheet: GoalSheet) -> None:
    """Cord or cauda: of an `every` group each goal that can be evaluated stands for itself."""
    case = phantom("tg119_headneck")
    every = replace(sheet, groups={"either": Group("either", 1, 1, every=True)})
    every = replace(every, goals=tuple(replace(g, priority=1) if g.group else g for g in every.goals))
    built = build_objective(case, fit_to_case(every, case), dose_grid(case, 5.0), np.random.default_rng(0))
    dose = dosed(built, 40.0, 10.0)
    assert [(str(g), g.priority) for g in built.missed_goals(dose)] == [(LEFT, 1)]
    weighed, _ = built.adapt(dose)
    assert state(weighed)[LEFT] == (1, pytest.approx(1.6), None)
