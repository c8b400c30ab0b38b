"""The points that stand for structures: fair shares for histograms, no gaps where a maximum may be."""

from dataclasses import replace

import numpy as np
import pytest

from vmat_diffusion.dose import dose_grid
from vmat_diffusion.evaluate.goals import fit_to_case, load_goals
from vmat_diffusion.evaluate.metrics import Metric
from vmat_diffusion.optimize import sampling
from vmat_diffusion.optimize.objectives import build_objective
from vmat_diffusion.phantom import phantom


@pytest.fixture
def large(monkeypatch):
    """A case whose cord has far more voxels than points, and its sheet with a mean and a maximum."""
    monkeypatch.setattr(sampling, "_TAIL_SAMPLING", (8.0, 300))
    case = phantom("tg119_headneck")
    sheet = load_goals("tg119_headneck")
    maximum = next(g for g in sheet.goals if g.structure == "SpinalCord")
    mean = replace(maximum, metric=Metric.parse("mean"), limit=20.0, variation=None)
    assert maximum.metric.is_near_maximum and not mean.metric.is_near_maximum
    sheet = fit_to_case(replace(sheet, goals=(*sheet.goals, mean)), case)
    return case, sheet, build_objective(case, sheet, dose_grid(case, 4.0), np.random.default_rng(0))


def test_the_hottest_voxel_of_a_large_organ_is_never_between_samples(large):
    case, _, objective = large
    cord = case.structures["SpinalCord"]
    terms = {t.goal.metric.kind: t for t in objective.terms if t.goal.structure == "SpinalCord"}
    assert cord.voxels > 1000
    assert terms["mean"].region is objective.regions["SpinalCord"]
    hot = terms["max"].region
    points = hot.points.stop - hot.points.start
    # Voxels are 10 mm3: every one of a part near the targets that is as large as the points allow.
    assert case.grid.voxel_cc == pytest.approx(0.01) and points == 300
    assert hot.volume_cc == pytest.approx(3.0)
    allowed = objective.ceiling.numpy()
    elsewhere = allowed[objective.regions["SpinalCord"].points]
    assert allowed[hot.points].min() >= np.quantile(elsewhere, 0.5)
    assert allowed[hot.points].max() == pytest.approx(elsewhere.max(), rel=0.02)


def test_a_maximum_is_judged_there_and_a_mean_on_fair_shares(large):
    _, _, objective = large
    terms = {t.goal.metric.kind: t for t in objective.terms if t.goal.structure == "SpinalCord"}
    dose = np.full(len(objective.points_mm), 0.2, np.float32)
    dose[terms["max"].region.points.start] = 0.9
    at = {kind: objective.value(t.goal, t.region, dose) for kind, t in terms.items()}
    assert at == {"max": pytest.approx(45.0), "mean": pytest.approx(10.0)}
    assert "SpinalCord max <= 40 Gy" in {str(g) for g in objective.missed_goals(dose)}


def test_an_organ_that_is_sampled_whole_needs_no_other_points():
    case = phantom("tg119_headneck")
    sheet = fit_to_case(load_goals("tg119_headneck"), case)
    whole = case.structures["SpinalCord"]
    small = replace(whole, mask=whole.mask & (np.arange(case.grid.shape[0]) % 24 == 0)[:, None, None])
    case = replace(case, structures={**case.structures, "SpinalCord": small})
    objective = build_objective(case, sheet, dose_grid(case, 4.0), np.random.default_rng(0))
    term = next(t for t in objective.terms if t.goal.structure == "SpinalCord")
    assert term.region is objective.regions["SpinalCord"]
