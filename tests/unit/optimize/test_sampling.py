"""The points that stand for structures: fair shares for histograms, no gaps where a maximum may be."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree

from vmat_diffusion.dose import dose_grid
from vmat_diffusion.evaluate.goals import Goal, fit_to_case, load_goals
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


@pytest.fixture(scope="module")
def around():
    """The C-shape with goals that are judged in the body."""
    case = phantom("tg119_cshape")
    sheet = load_goals("tg119_cshape_easy")
    forms = (("PTV", "R50%", 3.0), ("PTV", "D2cm[%]", 60.0), ("BODY", "max", 55.0), ("BODY", "mean", 5.0))
    goals = tuple(Goal(s, Metric.parse(m), "<=", v, Metric.parse(m).result_unit) for s, m, v in forms)
    sheet = fit_to_case(replace(sheet, goals=(*sheet.goals, *goals)), case)
    return case, build_objective(case, sheet, dose_grid(case, 4.0), np.random.default_rng(0))


def test_fewer_points_are_fewer_of_large_structures_alone(around):
    """A third of the most points: the same terms, small structures whole, percentiles as before."""
    case, _ = around
    sheet = fit_to_case(load_goals("tg119_cshape_easy"), case)
    grid, rng = dose_grid(case, 4.0), np.random.default_rng(0)
    full = build_objective(case, sheet, grid, rng)
    few = build_objective(case, sheet, grid, rng, share=0.3)
    count = {
        name: tuple(o.regions[name].points.stop - o.regions[name].points.start for o in (few, full))
        for name in full.regions
    }
    assert [str(t.goal) for t in few.terms] == [str(t.goal) for t in full.terms]
    assert count["PTV"] == (2100, 7000) and count["Core"][0] <= count["Core"][1]
    tissue = few.tissue.stop - few.tissue.start, full.tissue.stop - full.tissue.start
    assert tissue[0] == pytest.approx(0.3 * tissue[1], rel=0.01)
    x = [o.points_mm[o.regions["PTV"].points][:, 0] for o in (few, full)]
    assert np.percentile(x[0], [5, 50, 95]) == pytest.approx(np.percentile(x[1], [5, 50, 95]), abs=1.0)


def test_an_isodose_is_looked_for_in_twice_the_volume_that_it_may_have(around):
    case, objective = around
    target = case.structures["PTV"]
    region = next(t.region for t in objective.terms if t.goal.metric.kind == "R")
    target_cc = target.voxels * case.grid.voxel_cc
    assert region.volume_cc == pytest.approx(2 * 3.0 * target_cc, rel=0.01)
    # The target's own nodes are among them, as many as a grid of 4 mm has.
    assert region.in_target.mean() * region.volume_cc == pytest.approx(target_cc, rel=0.1)


def test_the_points_beyond_a_distance_are_where_the_report_looks(around):
    case, objective = around
    region = next(t.region for t in objective.terms if t.goal.metric.kind == "Dcm")
    points = objective.points_mm[region.points]
    target = case.grid.points_mm(np.flatnonzero(case.structures["PTV"].mask))
    nearest = cKDTree(target).query(points)[0]
    assert 20.0 < nearest.min() < 22.5 and nearest.max() < 40.0
    assert not region.in_target.any() and len(points) > 1000


def test_a_goal_on_the_body_itself_is_sampled_where_it_may_be_hottest(around):
    case, objective = around
    hot, fair = (
        next(t.region for t in objective.terms if t.goal.structure == "BODY" and t.goal.metric.kind == kind)
        for kind in ("max", "mean")
    )
    assert hot.in_target.mean() > 5 * fair.in_target.mean() > 0
    assert fair.volume_cc == pytest.approx(case.body.voxels * case.grid.voxel_cc, rel=0.05)


@pytest.mark.parametrize(
    ("text", "limit", "near"),
    [
        ("V50Gy[cc]", 0.0, True),
        ("V50Gy[cc]", 0.2, True),
        ("V50Gy[cc]", 1.0, False),
        ("V50Gy", 0.0, True),
        ("V50Gy", 1.0, False),
        ("D2cm", 50.0, True),
        ("D0.03cc[%]", 50.0, True),
        ("CV50Gy[cc]", 0.0, False),
    ],
)
def test_a_goal_on_hardly_any_volume_is_one_on_the_hottest_spot(text, limit, near):
    metric = Metric.parse(text)
    assert sampling.is_near_maximum(Goal("Core", metric, "<=", limit, metric.result_unit)) is near
