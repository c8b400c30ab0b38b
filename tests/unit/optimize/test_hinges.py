"""The hinge of every kind of goal: by hand, with exact gradients, and no kind without an answer."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from small_case import small_case

from vmat_diffusion.case import Case
from vmat_diffusion.dose import dose_grid
from vmat_diffusion.evaluate.goals import Goal, GoalSheet, evaluate, fit_to_case, load_goals, parse_goals
from vmat_diffusion.evaluate.metrics import Kind, Metric
from vmat_diffusion.optimize.hinges import HINGES, WITHOUT_HINGE, goal_hinge, wanted
from vmat_diffusion.optimize.objective_terms import ObjectiveWeights
from vmat_diffusion.optimize.objectives import Objective, build_objective

WEIGHTS = ObjectiveWeights()
REFERENCE_GY = 50.0
FORMS = (
    "Core CV15Gy >= 20 cc",
    "Core CV15Gy >= 60 %",
    "Core meanhot30% <= 10 Gy",
    "Core meanhot5cc <= 10 Gy",
    "Core meancold40% <= 4 Gy",
    "PTV meancold10% >= 49 Gy",
    "Core D0.03cc <= 40 %",
    "Core mean <= 15 %",
    "Core max <= 50 %",
    "Core V10Gy <= 0 cc",
    "Core gEUD4 <= 10 Gy",
    "PTV D2% <= 107 %",
    "PTV R50% <= 4",
    "PTV R100% <= 1.1",
    "PTV D2cm <= 30 %",
    "BODY D0.03cc <= 105 %",
    "BODY mean <= 2 Gy",
)

# Forms that pull only where a target's own dose is exceeded.
_HOT = ("PTV D2% <= 107 %", "PTV R100% <= 1.1", "BODY D0.03cc <= 105 %")


def goal_of(text: str, priority: int = 2) -> Goal:
    structure, statement = text.split(" ", 1)
    metric, comparator, limit, *unit = statement.split()
    own = Metric.parse(metric).in_unit(unit[0] if unit else "")
    assert own is not None
    return Goal(structure, own, comparator, float(limit), own.result_unit, priority=priority)  # type: ignore[arg-type]


def pull(text: str, d: torch.Tensor, structure_cc: float = 1000.0) -> float:
    want = wanted(goal_of(text), structure_cc, structure_cc, {"PTV": REFERENCE_GY}, REFERENCE_GY)
    return float(goal_hinge(want, d, WEIGHTS))


def test_every_kind_of_metric_has_a_hinge_or_a_reason() -> None:
    """A new kind must be thought of here: the search acts on it, or its page says why not."""
    kinds = set(get_args(Kind))
    assert kinds == set(HINGES) | set(WITHOUT_HINGE)
    assert not set(HINGES) & set(WITHOUT_HINGE)
    assert all(len(reason) > 20 for reason in WITHOUT_HINGE.values())


def test_a_spared_volume_pushes_the_coldest_points_that_are_not_spared() -> None:
    """100 points of 10 cc, 40 of them with 25 Gy: 600 cc are spared where 700 cc (and 1 %) are asked for."""
    d = torch.zeros(100, dtype=torch.float64)
    d[:40] = 0.5
    # All but 707 cc, 29 points, may be hot: 11 of the 71 others lie above 98.5 % of 15 Gy = 0.3.
    expected = 3 * 11 * (0.5 - 0.985 * 0.3) ** 2 / 71
    assert pull("Liver CV15Gy >= 700 cc", d) == pytest.approx(expected, rel=1e-9)
    assert pull("Liver CV15Gy >= 70 %", d) == pytest.approx(expected, rel=1e-9)
    d[20:40] = 0.2
    assert pull("Liver CV15Gy >= 700 cc", d) == 0


def test_a_volume_larger_than_the_structure_pushes_all_of_it() -> None:
    d = torch.full((50,), 0.5, dtype=torch.float64)
    expected = 3 * (0.5 - 0.985 * 0.3) ** 2
    assert pull("Liver CV15Gy >= 700 cc", d, structure_cc=600.0) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("text", "mean"),
    [
        ("Organ meanhot20% <= 5 Gy", 0.85),
        ("Organ meanhot200cc <= 5 Gy", 0.85),
        # One and a half of ten points: the second by half.
        ("Organ meanhot15% <= 5 Gy", (0.9 + 0.5 * 0.8) / 1.5),
        ("Organ meancold30% <= 5 Gy", 0.1),
        ("Organ meanhot100% <= 5 Gy", 0.45),
    ],
)
def test_a_partial_mean_counts_the_hottest_or_the_coldest(text: str, mean: float) -> None:
    d = torch.arange(10, dtype=torch.float64) / 10
    excess = (mean - 0.1 * 0.985) / 0.03
    assert pull(text, d) == pytest.approx(0.08 * 0.03**2 * (np.sqrt(1 + excess**2) - 1), rel=1e-9)
    assert pull(text.replace("<= 5", "<= 49"), d) == 0


def test_the_coldest_of_a_target_is_pulled_up() -> None:
    d = torch.ones(100, dtype=torch.float64)
    d[:10] = 0.8
    gap = (0.98 * 1.005 - 0.8) / 0.03
    expected = 0.08 * 0.03**2 * (np.sqrt(1 + gap**2) - 1)
    assert pull("PTV meancold10% >= 49 Gy", d) == pytest.approx(expected, rel=1e-9)


def test_none_above_a_dose_is_a_maximum() -> None:
    d = torch.rand(1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert pull("Organ V20Gy <= 0 cc", d) == pytest.approx(pull("Organ max <= 20 Gy", d), rel=1e-12)
    assert pull("Organ V20Gy <= 0 cc", d * 0.3) == 0


def test_an_isodose_may_fill_so_many_times_the_targets_volume() -> None:
    """R50% <= 2 of a target of 100 cc: all but 200 cc of 1000 cc, 20 of 100 points, must be below half."""
    d = torch.full((100,), 0.1, dtype=torch.float64)
    d[:25] = 0.8
    want = wanted(goal_of("PTV R50% <= 2"), 1000.0, 100.0, {"PTV": REFERENCE_GY}, REFERENCE_GY)
    expected = 3 * 5 * (0.8 - 0.985 * 0.5) ** 2 / 80
    assert float(goal_hinge(want, d, WEIGHTS)) == pytest.approx(expected, rel=1e-9)


@pytest.fixture(scope="module")
def case() -> Case:
    return small_case()


def sheet_with(case: Case, *texts: str, priority: int = 2) -> GoalSheet:
    sheet = load_goals("tg119_cshape_easy")
    goals = tuple(goal_of(text, priority) for text in texts)
    return fit_to_case(replace(sheet, goals=(*sheet.goals, *goals)), case)


def objective_of(case: Case, *texts: str, priority: int = 2) -> Objective:
    sheet = sheet_with(case, *texts, priority=priority)
    return build_objective(case, sheet, dose_grid(case, 5.0), np.random.default_rng(0))


@pytest.mark.parametrize("priority", [1, 2])
@pytest.mark.parametrize("text", FORMS)
def test_the_gradient_of_each_form_is_that_of_the_function(case: Case, text: str, priority: int) -> None:
    objective = objective_of(case, text, priority=priority)
    term = next(t for t in objective.terms if str(t.goal) == str(goal_of(text)))
    rng = np.random.default_rng(3)
    # Hot around and in the organ, cold in the target: every form pulls.
    base = np.where(objective.ceiling.numpy() > 1, 0.7, 0.75)
    hot = base + rng.uniform(0, 0.1, len(base)) + (0.6 if text in _HOT else 0.0)
    dose = torch.tensor(hot, requires_grad=True)
    value = objective.hinge(term, dose)
    assert float(value.detach()) > 0
    value.backward()
    direction = torch.tensor(rng.normal(size=len(base)))
    with torch.no_grad():
        step = 1e-7
        up, down = (float(objective.hinge(term, dose + s * step * direction)) for s in (1, -1))
    assert dose.grad is not None
    assert float(dose.grad @ direction) == pytest.approx((up - down) / (2 * step), rel=1e-3)
    # More dose is worse, but for what a target must have.
    sign = -1 if text == "PTV meancold10% >= 49 Gy" else 1
    assert float((sign * dose.grad).min()) >= 0 and float(dose.grad.abs().sum()) > 0


@pytest.mark.parametrize("text", FORMS)
def test_the_search_sees_the_value_that_the_report_will_have(case: Case, text: str) -> None:
    """On a dose that falls smoothly, within what samples and a coarse grid allow."""
    from vmat_diffusion.case import Dose
    from vmat_diffusion.geometry import sample

    sheet = sheet_with(case, text)
    objective = build_objective(case, sheet, dose_grid(case, 3.0), np.random.default_rng(0))
    grid = dose_grid(case, 3.0)
    points = grid.points_mm(np.arange(np.prod(grid.shape)))
    gy = 65.0 * np.exp(-((np.linalg.norm(points, axis=1) / 32.0) ** 2)).reshape(grid.shape)
    dose = Dose(grid, gy.astype(np.float32))
    result = next(r for r in evaluate(sheet, case, dose) if str(r.goal) == str(goal_of(text)))
    term = next(t for t in objective.terms if t.goal == result.goal)
    relative = sample(dose.gy, grid, objective.points_mm).astype(np.float32) / objective.reference_gy
    seen = objective.value(term.physical, term.region, relative)
    assert seen is not None and result.value is not None
    in_unit = seen * result.goal.limit / term.physical.limit if result.goal.limit else seen
    assert in_unit == pytest.approx(result.value, rel=0.05)


def test_a_goal_that_is_met_changes_not_even_the_rounding(case: Case) -> None:
    """Its points come after all others, so that these are the same, and its hinge adds nothing."""
    plain = objective_of(case)
    more = objective_of(
        case, "PTV R50% <= 50", "PTV D2cm <= 300 %", "BODY max <= 300 %", "Core CV49Gy >= 1 cc"
    )
    count = len(plain.points_mm)
    np.testing.assert_array_equal(more.points_mm[:count], plain.points_mm)
    dose = np.random.default_rng(1).uniform(0, 0.9, len(more.points_mm)).astype(np.float32)
    one, two = plain(torch.from_numpy(dose[:count])), more(torch.from_numpy(dose))
    assert one.numpy().tobytes() == two.numpy().tobytes()


def test_a_condition_that_is_off_leaves_no_term() -> None:
    text = """
format = 2
title = "t"
site = "any"
source = "test"
fractions = 25
conditions = { chemotherapy = "concurrent chemotherapy" }
prescription_gy = { PTV = 50.0 }
normalization = { PTV = "D50% = 50 Gy" }
[[goals]]
structure = "Core"
goal = "mean <= 20 Gy"
priority = 2
source = "test"
[[goals]]
structure = "Core"
goal = "mean <= 10 Gy"
priority = 2
source = "test"
if = "chemotherapy"
"""
    case = small_case()
    terms = {}
    for on in ((), ("chemotherapy",)):
        sheet = fit_to_case(parse_goals(text, "t"), case, on)
        objective = build_objective(case, sheet, dose_grid(case, 5.0), np.random.default_rng(0))
        terms[on] = [str(t.goal) for t in objective.terms if not t.is_normalization]
    assert terms[()] == ["Core mean <= 20 Gy"]
    assert terms["chemotherapy",] == ["Core mean <= 20 Gy", "Core mean <= 10 Gy"]
