"""The ceiling around targets: the usual one, and the steeper one of stereotactic sheets."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from vmat_diffusion.case import Case
from vmat_diffusion.evaluate.goals import Goal, GoalSheet, load_goals
from vmat_diffusion.evaluate.metrics import Metric
from vmat_diffusion.evaluate.spillage import rtog_limit
from vmat_diffusion.optimize.falloff import Falloff, ceiling_of, falloff_of
from vmat_diffusion.phantom import phantom

RADIUS_MM = 15.0


@pytest.fixture(scope="module")
def case() -> Case:
    """A sphere of 14 cc in the middle of the C-shape's phantom."""
    base = phantom("tg119_cshape")
    points = base.grid.points_mm(np.arange(base.hu.size))
    middle = points.mean(axis=0)
    ball = (np.linalg.norm(points - middle, axis=1) <= RADIUS_MM).reshape(base.grid.shape)
    target = replace(base.structures["PTV"], name="PTV_50", mask=ball)
    return replace(base, structures={"BODY": base.body, "PTV_50": target})


@pytest.fixture(scope="module")
def sheet() -> GoalSheet:
    return load_goals("lung_sbrt_50_5")


def test_a_usual_sheet_has_the_usual_falloff(case: Case, sheet: GoalSheet) -> None:
    assert falloff_of("PTV_50", replace(sheet, stereotactic=False), case) == Falloff()


def test_the_half_prescription_lies_where_the_protocol_has_it(case: Case, sheet: GoalSheet) -> None:
    own = falloff_of("PTV_50", sheet, case)
    ceiling, away = ceiling_of(case, {"PTV_50": 1.0}, {"PTV_50": own}, case.grid)
    # 4.7 times the volume of a target of 13.2 cc, so its radius times the third root of that.
    voxels = case.structures["PTV_50"].voxels
    inside = ceiling[np.isfinite(away)]
    assert (inside >= 0.5).sum() / voxels == pytest.approx(4.7, rel=0.12)
    usual, _ = ceiling_of(case, {"PTV_50": 1.0}, {"PTV_50": Falloff()}, case.grid)
    outside = np.isfinite(away) & (away > 4)
    assert np.all(ceiling[outside] < usual[outside])


def test_the_target_may_be_as_hot_as_the_sheet_says(case: Case, sheet: GoalSheet) -> None:
    assert falloff_of("PTV_50", sheet, case).hot == pytest.approx(1.4)
    silent = replace(sheet, goals=tuple(g for g in sheet.goals if g.comparator == ">="))
    assert falloff_of("PTV_50", silent, case).hot == 1.25


def test_larger_targets_fall_off_more_slowly(case: Case, sheet: GoalSheet) -> None:
    grown = ndimage.binary_dilation(case.structures["PTV_50"].mask, iterations=6)
    large = replace(case.structures["PTV_50"], mask=grown)
    bigger = replace(case, structures={**case.structures, "PTV_50": large})
    assert falloff_of("PTV_50", sheet, bigger).length_mm > falloff_of("PTV_50", sheet, case).length_mm


def test_a_goal_on_the_isodose_says_how_steep_the_falloff_is(case: Case, sheet: GoalSheet) -> None:
    """The table's own limit changes nothing; a stricter one is followed."""
    target = next(iter(sheet.prescription.target_gy))
    without = replace(sheet, goals=tuple(g for g in sheet.goals if g.metric.kind != "R"))
    own = falloff_of(target, without, case)
    cc = case.structures[target].voxels * case.grid.voxel_cc

    def asked(limit: float) -> GoalSheet:
        return replace(without, goals=(*without.goals, Goal(target, Metric.parse("R50%"), "<=", limit, "")))

    assert falloff_of(target, asked(rtog_limit("R50%", cc).limit), case) == own
    assert falloff_of(target, asked(3.0), case).length_mm < own.length_mm
