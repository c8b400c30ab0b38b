"""Generated plans: fluence and leaves fit, physics lowers the objective, and all is deliverable."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_case import small_case

from vmat_diffusion.evaluate.goals import fit_to_case, load_goals
from vmat_diffusion.generate.deliver import fluence_of, swept
from vmat_diffusion.generate.encode import FEATURES
from vmat_diffusion.generate.examples import example_of, load_example
from vmat_diffusion.generate.model import FluenceModel
from vmat_diffusion.generate.network import FluenceNet, FluenceSize
from vmat_diffusion.generate.plans import generate_plans
from vmat_diffusion.generate.sample import FluenceTask, Reverse, draw_sample
from vmat_diffusion.machine import load_machine
from vmat_diffusion.optimize import Settings
from vmat_diffusion.optimize.preparation import PlanningTask, prepare
from vmat_diffusion.plan import violations
from vmat_diffusion.training.fluence import FluenceTraining, described, flipped, train_fluence

SIZE = FluenceSize(channels=8, deep_channels=8, embedding=8, blocks=1)


def planning_task() -> PlanningTask:
    case = small_case()
    return PlanningTask(
        case=case,
        sheet=fit_to_case(load_goals("tg119_cshape_easy"), case),
        machine=load_machine("generic_6mv"),
        settings=Settings(spacing_deg=6.0, grid_mm=6.0, jaw_tracking=False),
    )


@pytest.fixture(scope="module")
def task() -> FluenceTask:
    return FluenceTask.of(prepare(planning_task(), maps_share=0.2))


@pytest.fixture(scope="module")
def example():
    return example_of(
        planning_task(), {"id": "small", "patient": "small", "site": "x"}, share=0.2, evaluations=12
    )


@pytest.fixture(scope="module")
def model(example) -> FluenceModel:
    torch.manual_seed(1)
    net = FluenceNet(len(FEATURES), SIZE)
    return FluenceModel(described([example, example], SIZE), net.eval().requires_grad_(False))


def test_features_are_finite_and_pulls_agree_with_finite_differences(task) -> None:
    given, problem = task.given, task.problem
    assert np.isfinite(given.features).all()
    assert given.features.shape[1] == len(FEATURES)
    # The pull of all parts together is the gradient of the objective at uniform fluence, up to one scale.
    roots = (
        given.features[:, FEATURES.index(name)]
        for name in ("pull_of_targets", "pull_of_tissue", "pull_of_organs")
    )
    pulls = sum(np.sign(root) * root**2 for root in roots)
    uniform = given.open_bixels * 1.0
    inside = np.argwhere(given.open_bixels)
    chosen = inside[np.random.default_rng(0).choice(len(inside), 6, replace=False)]

    def objective(relative):
        mu = torch.as_tensor(relative * problem.uniform_mu).float()
        with torch.no_grad():
            return float(problem.objective(problem.dose(mu).double()))

    slopes, expected, step = [], [], 0.2
    for index in chosen:
        more, less = uniform.copy(), uniform.copy()
        more[tuple(index)] += step
        less[tuple(index)] -= step
        slopes.append(-(objective(more) - objective(less)) / (2 * step))
        expected.append(pulls[tuple(index)])
    # One scale for all; hinges bend within the step.
    scale = np.dot(slopes, expected) / np.dot(expected, expected)
    assert scale > 0
    np.testing.assert_allclose(slopes, scale * np.array(expected), atol=0.15 * np.abs(slopes).max())


def test_leaves_deliver_the_fluence_that_they_sweep(task) -> None:
    """A smooth map that fits the sector's time comes back through the leaves, bixel by bixel."""
    inside = task.given.open_bixels
    relative = 0.6 * inside
    allowed, apertures = swept(task.prepared, task.sectors, task.maps(relative))
    maps = task.maps(relative)
    given = fluence_of(allowed.points, apertures, task.sectors, maps.column_edges_mm)
    # Control points 6 degrees apart and sweeps of whole sectors: the sum of each map within 10 %.
    ratio = given.sum(axis=(1, 2)) / maps.mu.sum(axis=(1, 2))
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=0.15)
    closed = given[~inside].sum() / given.sum()
    assert closed < 0.15
    again = task.delivered(relative)
    assert np.all(again[~inside] == 0)


def test_what_is_delivered_is_within_all_limits(task) -> None:
    rng = np.random.default_rng(3)
    relative = rng.uniform(0, 3, task.given.open_bixels.shape) * task.given.open_bixels
    allowed, apertures = swept(task.prepared, task.sectors, task.maps(relative))
    plan = task.prepared.plan(allowed.points, apertures)
    assert violations(plan, task.prepared.task.machine) == []


def test_descents_lower_the_objective_from_any_start(task) -> None:
    rng = np.random.default_rng(4)
    relative = rng.uniform(0, 2, task.given.open_bixels.shape) * task.given.open_bixels
    objective = task.problem.objective
    values = [task.cost(task.descended(relative, objective, n), objective) for n in (4, 20)]
    assert values[1] < values[0] < task.cost(relative, objective)


def test_samples_repeat_and_differ(task, model) -> None:
    reverse = Reverse(steps=2, descents=2)
    first, again, other = (
        draw_sample(task, model, reverse, seed=seed, number=number).relative
        for seed, number in ((5, 0), (5, 0), (5, 1))
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.all(first[~task.given.open_bixels] == 0) and first.min() >= 0


def test_the_regression_is_held_to_physics_too(task, model) -> None:
    bare, bettered = (draw_sample(task, model, Reverse(0, n, project=False), seed=1) for n in (0, 6))
    objective = task.problem.objective
    assert task.cost(bettered.relative, objective) < task.cost(bare.relative, objective)


def test_every_generated_plan_is_deliverable_and_the_best_comes_first(model) -> None:
    asked = planning_task()
    made = generate_plans(
        asked.case, asked.sheet, asked.machine, model,
        samples=2, reverse=Reverse(steps=1, descents=3), settings=asked.settings,
    )  # fmt: skip
    assert [s.violations for s in made.samples] == [(), ()]
    assert made.samples[0].score <= made.samples[1].score
    assert violations(made.chosen.plan, asked.machine) == []
    assert made.chosen.fluence["ideal_mu"].shape[0] == len(made.chosen.fluence["sector_arc"])
    assert made.diversity_gy > 0
    level = asked.sheet.normalization
    where = asked.case.structures[level.structure].mask
    assert made.chosen.dose.on(asked.case.grid)[where].mean() > 0.9 * level.gy


def test_an_example_comes_back_from_its_file(example, tmp_path) -> None:
    file = tmp_path / "a.npz"
    with file.open("wb") as stream:
        example.save(stream)
    again = load_example(file)
    np.testing.assert_allclose(again.relative, example.relative, atol=2e-3)
    np.testing.assert_allclose(again.given.features, example.given.features, rtol=2e-3, atol=2e-3)
    assert again.record["patient"] == "small"


def test_a_mirror_image_is_mirrored_twice_to_itself(example) -> None:
    once = flipped(example, True, True)
    assert not np.array_equal(once.relative, example.relative)
    np.testing.assert_array_equal(flipped(once, True, True).relative, example.relative)


def test_training_learns_a_plan_and_goes_on_from_its_checkpoint(example, tmp_path) -> None:
    examples = [example, flipped(example, True, False)]
    settings = FluenceTraining(steps=60, rate=5e-3, size=SIZE, ema=0.9, regressions=1.0)
    notes: list[str] = []

    def tell(stage: str, share: float, note: str) -> None:
        notes.append(note)

    train_fluence(examples, settings, tmp_path / "c.pt", validation=examples, minutes=0, progress=tell)
    assert "step 1," in notes[-1]
    train_fluence(examples, settings, tmp_path / "c.pt", validation=examples, progress=tell)
    numbers = [float(note.split("validation error ")[1].split(",")[0]) for note in notes]
    assert "step 60," in notes[-1]
    assert numbers[-1] < 0.8 * numbers[0]
