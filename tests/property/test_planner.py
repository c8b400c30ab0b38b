"""What holds for any plan: symmetry of space, no gain from a slower machine or from a goal that is met."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_case import small_case

from vmat_diffusion.case import Case
from vmat_diffusion.dose import dose_grid
from vmat_diffusion.evaluate.goals import GoalSheet, evaluate, fit_to_case, load_goals
from vmat_diffusion.geometry import sample_dose
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.optimize import Optimized, Settings, optimize
from vmat_diffusion.optimize.objectives import build_objective

QUICK = Settings(effort=0.3, spacing_deg=4.0, grid_mm=5.0, max_minutes=None)


@pytest.fixture(scope="module")
def case() -> Case:
    return small_case()


@pytest.fixture(scope="module")
def sheet(case: Case) -> GoalSheet:
    return fit_to_case(load_goals("tg119_cshape_easy"), case)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return load_machine("generic_6mv")


@pytest.fixture(scope="module")
def made(case: Case, sheet: GoalSheet, machine: Machine) -> Optimized:
    return optimize(case, sheet, machine, settings=QUICK)


def values(case: Case, sheet: GoalSheet, made: Optimized) -> dict[str, float]:
    return {str(r.goal): r.value for r in evaluate(sheet, case, made.dose) if r.value is not None}


def turned(case: Case) -> Case:
    """The case turned by 90 degrees about the z axis, as the gantry turns."""

    def turn(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.transpose(0, 2, 1)[:, :, ::-1])

    structures = {n: replace(s, mask=turn(s.mask)) for n, s in case.structures.items()}
    return replace(case, hu=turn(case.hu), structures=structures)


@pytest.mark.slow
def test_a_plan_turned_with_its_patient_scores_the_same(
    case: Case, sheet: GoalSheet, machine: Machine, made: Optimized
) -> None:
    """Not the very same plan: voxels are drawn in another order. The gantry's stop is in no one's way.

    Short searches of one case have ended 4.2 % of a goal's limit apart, where it is met with ease.
    """
    free = replace(machine, limits=replace(machine.limits, gantry_stop_deg=None))
    settings = replace(QUICK, arc_start_deg=272.0, arc_stop_deg=268.0)
    other = turned(case)
    found = values(other, sheet, optimize(other, sheet, free, settings=settings))
    limits = {str(goal): goal.limit for goal in sheet.goals}
    for goal, value in values(case, sheet, made).items():
        assert found[goal] == pytest.approx(value, abs=0.08 * limits[goal]), goal


@pytest.mark.slow
def test_slower_leaves_never_make_a_better_plan(case: Case, sheet: GoalSheet, machine: Machine) -> None:
    """By the objective with its first weights, on the final dose; 10 % is what a short search may be off."""
    longer = replace(QUICK, effort=0.7)
    slow = replace(
        machine, limits=replace(machine.limits, leaf_speed_mm_s=machine.limits.leaf_speed_mm_s / 2)
    )
    objective = build_objective(case, sheet, dose_grid(case, QUICK.grid_mm), np.random.default_rng(0))

    def judged(plan: Optimized) -> float:
        gy = sample_dose(plan.dose.gy, plan.dose.grid, objective.points_mm)
        return float(objective(torch.as_tensor(gy / objective.reference_gy, dtype=torch.float32)))

    usual, slower = (judged(optimize(case, sheet, m, settings=longer)) for m in (machine, slow))
    assert slower > 0.9 * usual


def test_a_goal_that_is_met_from_the_start_changes_nothing(
    case: Case, sheet: GoalSheet, machine: Machine, made: Optimized
) -> None:
    easy = replace(next(g for g in sheet.goals if g.structure == "Core"), limit=500.0)
    more = replace(sheet, goals=(*sheet.goals, easy))
    found = optimize(case, more, machine, settings=QUICK)
    for a, b in zip(found.plan.arcs, made.plan.arcs, strict=True):
        np.testing.assert_allclose(a.leaves_mm, b.leaves_mm, atol=1e-6)
        np.testing.assert_allclose(a.mu, b.mu, rtol=1e-6)
