"""The search as a generator: every state deliverable, and one to keep wherever it is stopped."""

from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest
from small_case import small_case

from vmat_diffusion.evaluate.goals import fit_to_case, load_goals
from vmat_diffusion.machine import load_machine
from vmat_diffusion.optimize import Settings
from vmat_diffusion.optimize.aperture import Stage, search
from vmat_diffusion.optimize.deliverable_set import Apertures, DeliverableSet, control_points
from vmat_diffusion.optimize.preparation import PlanningTask, prepare
from vmat_diffusion.plan import violations

STAGE = Stage("test", 1, 24, 3.0, 1.0, 0.08, adapt_every=6, time_share=1.0)


@pytest.fixture(scope="module")
def prepared():
    case = small_case()
    return prepare(
        PlanningTask(
            case=case,
            sheet=fit_to_case(load_goals("tg119_cshape_easy"), case),
            machine=load_machine("generic_6mv"),
            settings=Settings(spacing_deg=8.0, grid_mm=6.0, jaw_tracking=False),
        )
    )


@pytest.fixture(scope="module")
def start(prepared):
    """Open pairs of random width, projected: far from good, but deliverable."""
    points = control_points(prepared.frames, 1)
    rng = np.random.default_rng(0)
    middle = rng.uniform(-5, 5, (len(points.angles_deg), 1, len(prepared.pairs)))
    leaves = middle + np.array([-10.0, 10.0])[:, None]
    allowed = DeliverableSet(points, prepared.task.machine, prepared.rates)
    return allowed, allowed.project(Apertures(leaves, np.full(len(points.gantry_deg), 3.0)))


@pytest.fixture(scope="module")
def steps(prepared, start):
    allowed, apertures = start
    problem = prepared.problem(allowed, prepared.objective_for_leaves, prepared.mu_price, STAGE)
    return list(search(problem, STAGE, apertures))


def plan_violations(prepared, points, apertures):
    return violations(prepared.plan(points, apertures), prepared.task.machine)


def test_every_state_on_the_way_is_deliverable(prepared, start, steps):
    points = start[0].points
    assert [step.iteration for step in steps] == list(range(STAGE.iterations))
    for step in steps:
        for apertures in (step.apertures, step.best, step.leader):
            assert plan_violations(prepared, points, apertures) == []
    # It is the projection that keeps them so, and the search moves leaves and MU.
    assert np.abs(steps[-1].apertures.leaves_mm - start[1].leaves_mm).max() > 3.0
    assert np.abs(steps[-1].apertures.mu / start[1].mu - 1).max() > 0.02
    pushed = start[1].leaves_mm + np.array([30.0, -30.0])[:, None]
    assert plan_violations(prepared, points, Apertures(pushed, start[1].mu)) != []


@pytest.mark.parametrize("count", [1, 7, 20])
def test_a_search_that_is_stopped_early_leaves_the_best_state_so_far(prepared, start, steps, count):
    """The states are those of the whole search, whether the weights have changed yet or not."""
    allowed, apertures = start
    problem = prepared.problem(allowed, prepared.objective_for_leaves, prepared.mu_price, STAGE)
    generator = search(problem, STAGE, apertures)
    last = list(islice(generator, count))[-1]
    generator.close()
    assert plan_violations(prepared, allowed.points, last.best) == []
    np.testing.assert_array_equal(last.best.leaves_mm, steps[count - 1].best.leaves_mm)
    round_values = [s.value for s in steps[:count] if s.round == last.round]
    assert last.best_value == min(round_values)


def test_weights_change_between_rounds_alone(prepared, steps):
    assert [step.round for step in steps] == [k // STAGE.adapt_every for k in range(STAGE.iterations)]
    for before, after in pairwise(steps):
        assert (before.objective is after.objective) is (before.round == after.round)
    assert steps[0].objective is prepared.objective_for_leaves
    assert steps[-1].value < steps[0].value


def test_a_limit_of_mu_is_a_part_of_the_objective_by_its_own_name(prepared, start):
    """What opposes a goal, and what opposes the limit, is told from the gradients of the parts."""
    allowed, apertures = start
    price = replace(prepared.mu_price, limit_mu_per_gy=10.0)
    problem = prepared.problem(allowed, prepared.objective_for_leaves, price, STAGE)
    assert not problem.score(apertures).within_mu and str(price.goal) == "MU <= 10 MU/Gy"
    parts = problem.gradients(apertures)
    segments = len(apertures.mu)
    assert np.abs(parts["MU <= 10 MU/Gy"][-segments:]).max() > 0
    assert np.abs(parts["MU <= 10 MU/Gy"][:-segments]).max() > 0  # leaves that open lower MU per Gy
    free = prepared.problem(allowed, prepared.objective_for_leaves, prepared.mu_price, STAGE)
    assert prepared.mu_price.goal is None and set(free.gradients(apertures)) == set(parts) - {str(price.goal)}
