"""Free fluence: what is asked of an organ comes down, the gradient is the cost's, roughness costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_case import small_case

from vmat_diffusion.case import Dose
from vmat_diffusion.dataset.wishes import (
    Beams,
    OrganWish,
    Setting,
    Wish,
    apply_setting,
    apply_wish,
)
from vmat_diffusion.evaluate.goals import GoalSheet, normalization_gy
from vmat_diffusion.machine import load_machine
from vmat_diffusion.optimize.free_fields import (
    FieldSetup,
    Weights,
    normalized_fields,
    prepare_fields,
)

MACHINE = load_machine("generic_6mv")
BASE_GY = {("Core", "mean"): 30.0, ("Core", "D0.1cc"): 45.0}


@pytest.fixture(scope="module")
def ground() -> tuple[FieldSetup, GoalSheet]:
    case = replace(small_case(), site="phantom")
    setting = Setting("tg119_cshape_easy", {"PTV": 50.0}, Beams("nine fields", tuple(range(0, 360, 40))), 0)
    case, sheet = apply_setting(setting, case)
    return prepare_fields(case, sheet, MACHINE, setting.beams.gantry_deg, seed=0, density_mm=5.0), sheet


def _dose(
    ground: tuple[FieldSetup, GoalSheet], *, mean: float | None, roughness: float = 1.0
) -> tuple[Dose, np.ndarray, GoalSheet]:
    setup, sheet = ground
    wish = Wish({"Core": OrganWish(None, mean, None, 0.02)}, 1.0, 1.0, 1.0, 1.0, roughness, 1.0)
    made, pairs = apply_wish(wish, sheet, BASE_GY)
    weights = Weights({"Core": 0.02}, roughness=roughness)
    x = setup.search(pairs, weights, made.normalization)
    fields, gy = normalized_fields(setup, x, setup.case.body.mask, made)
    return Dose(setup.case.grid, gy), fields.mu, made


def test_a_tighter_goal_lowers_the_mean_of_its_organ(ground: tuple[FieldSetup, GoalSheet]) -> None:
    core = ground[0].case.structures["Core"].mask
    doses = [_dose(ground, mean=share) for share in (None, 0.8, 0.5)]
    means = [dose.gy[core].mean() for dose, _, _ in doses]
    # Each limit lies below what the goal before it gives, so each lowers the mean by more than noise.
    assert means[0] > means[1] + 0.5 and means[1] > means[2] + 0.5
    for dose, _, sheet in doses:
        assert normalization_gy(dose, ground[0].case, sheet) == pytest.approx(
            sheet.normalization.gy, rel=1e-4
        )


def test_roughness_has_a_price(ground: tuple[FieldSetup, GoalSheet]) -> None:
    variation = []
    for roughness in (0.3, 10.0):
        _, mu, _ = _dose(ground, mean=0.5, roughness=roughness)
        variation.append(np.abs(np.diff(mu, axis=2)).sum() / mu.sum())
    assert variation[1] < 0.9 * variation[0]


def test_the_gradient_is_that_of_the_cost(ground: tuple[FieldSetup, GoalSheet]) -> None:
    setup, _ = ground
    rng = np.random.default_rng(0)
    x = rng.uniform(0.5, 1.5, np.count_nonzero(setup.open_bixels))
    direction = rng.normal(size=len(x))
    step = 1e-2  # single precision: smaller steps drown in rounding, larger ones bend
    cost, gradient = setup.cost(x, setup.objective, 1.0)
    assert cost > 0
    ahead, back = (setup.cost(x + s * step * direction, setup.objective, 1.0)[0] for s in (1, -1))
    assert (ahead - back) / (2 * step) == pytest.approx(float(gradient @ direction), rel=0.02)
