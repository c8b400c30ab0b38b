from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_case import small_case

from vmat_diffusion.case import Case, Prescription, Structure
from vmat_diffusion.dataset.variation import (
    Variation,
    apply_variation,
    draw_variation,
    fitting_sheets,
    relabel_target,
)
from vmat_diffusion.errors import GoalError
from vmat_diffusion.machine import load_machine

MACHINE = load_machine("generic_6mv")


def _case(site: str, target: str, organs: tuple[str, ...], shift: int = 0) -> Case:
    """The small block with a target and organs of a site; the target `shift` voxels to the patient's left."""
    base = small_case()
    ptv, core = (base.structures[n].mask for n in ("PTV", "Core"))
    structures = {
        "BODY": base.structures["BODY"],
        target: Structure(target, "target", np.roll(ptv, shift, axis=2)),
        **{name: Structure(name, "organ", np.roll(core, k, axis=0)) for k, name in enumerate(organs)},
    }
    return replace(base, site=site, structures=structures, prescription=None)


def _draws(case: Case, count: int = 200) -> list[Variation]:
    sheets = fitting_sheets(case)
    return [draw_variation(np.random.default_rng([1, k]), sheets, case, MACHINE) for k in range(count)]


def test_the_same_seed_draws_the_same_variation() -> None:
    case = _case("prostate", "PTV_60", ("Rectum", "Bladder"))
    assert _draws(case, 20) == _draws(case, 20)
    assert len({str(v) for v in _draws(case, 20)}) == 20


def test_conditions_hold_for_the_sheets_that_know_them() -> None:
    case = _case("prostate", "PTV_60", ("Rectum", "Bladder"))
    sheets = {s.name: s for s in fitting_sheets(case, ("summed", "chemotherapy"))}
    assert {n for n, s in sheets.items() if s.conditions_on} == {"prostate_nodes_79_2_44"}
    sheet = sheets["prostate_nodes_79_2_44"]
    plain = next(s for s in fitting_sheets(case) if s.name == sheet.name)
    more = {(g.structure, str(g)) for g in sheet.goals} - {(g.structure, str(g)) for g in plain.goals}
    assert more  # the goals on the sum of both phases
    drawn = draw_variation(np.random.default_rng(0), [sheet], case, MACHINE)
    assert drawn.conditions == ("summed",)
    for variation, goals in ((drawn, sheet.goals), (replace(drawn, conditions=()), plain.goals)):
        _, applied = apply_variation(variation, case)
        assert [g.structure for g in applied.goals] == [g.structure for g in goals]


def test_draws_cover_their_range_and_stay_within() -> None:
    draws = _draws(_case("prostate", "PTV_60", ("Rectum", "Bladder")))
    assert {v.arcs for v in draws} == {1, 2, 3} and {v.goals for v in draws} == {
        "prostate_60_20",
        "prostate_78",
        "prostate_nodes_79_2_44",  # its limits are those of the prostate's target alone
    }
    factors = np.array([list(v.factors.values()) for v in draws])
    assert factors.shape[1] == 2 and 0.6 <= factors.min() < 0.65 and 1.15 < factors.max() <= 1.2
    assert abs(np.corrcoef(factors.T)[0, 1]) < 0.2  # each organ for itself
    for v in draws:
        assert 182 <= v.arc_start_deg <= 222 and v.arc_stop_deg == 360 - v.arc_start_deg
        assert v.collimator_deg is None or len(v.collimator_deg) == v.arcs
    assert 0.3 < np.mean([v.collimator_deg is None for v in draws]) < 0.7
    assert 0.3 < np.mean([v.arc_start_deg == 182 for v in draws]) < 0.7


@pytest.mark.parametrize(("shift", "side"), [(-5, "right"), (5, "left")])
def test_a_breast_is_planned_with_the_sheets_of_its_side(shift: int, side: str) -> None:
    case = _case("breast", "PTV_50", ("Heart", "Lung_L", "Lung_R"), shift)
    names = {sheet.name for sheet in fitting_sheets(case)}
    assert f"breast_{side}_nodes_50_25" in names and all(f"_{side}_" in name for name in names)
    partial = [v for v in _draws(case, 60) if (v.arc_start_deg, v.arc_stop_deg) != (182, 178)]
    assert 10 < len(partial) < 50


def test_doses_in_percent_may_be_above_100_after_scaling() -> None:
    case = _case("lung", "PTV_60", ("Esophagus",))
    _, sheet = apply_variation(Variation("lung_60", 2, 182.0, 178.0, None, {"Esophagus": 1.1}, 0), case)
    assert [g.limit for g in sheet.goals if str(g.metric) == "D0.1cc[%]"] == [115.5]


@pytest.mark.parametrize("shift", [-5, 5])
def test_partial_arcs_of_a_lung_are_on_the_side_of_the_tumour(shift: int) -> None:
    draws = _draws(_case("lung", "PTV_60", ("SpinalCord", "Heart"), shift))
    partial = [v for v in draws if (v.arc_start_deg, v.arc_stop_deg) != (182, 178)]
    assert 0.3 * len(draws) < len(partial) < 0.7 * len(draws)
    for v in partial:
        turn = (v.arc_stop_deg - v.arc_start_deg) % 360
        assert 180 < turn < 250
        on_the_left = (90 - v.arc_start_deg) % 360 < turn  # IEC: 90 degrees is the patient's left, +x
        assert on_the_left == (shift > 0)


def test_a_tumour_near_the_midline_and_other_sites_get_full_arcs() -> None:
    for case in (
        _case("lung", "PTV_60", ("SpinalCord",)),
        _case("head_neck", "PTV_70", ("SpinalCord",)),
    ):
        assert {(v.arc_start_deg, v.arc_stop_deg) for v in _draws(case, 50)} == {(182, 178)}


def test_wide_targets_get_more_than_one_arc_and_small_collimator_angles() -> None:
    case = _case("prostate", "PTV_60", ("Rectum",))
    wide = np.zeros(case.grid.shape, bool)
    wide[2:-2, 4:-4, 4:-4] = True
    structures = {**case.structures, "PTV_60": Structure("PTV_60", "target", wide)}
    draws = _draws(replace(case, structures=structures), 100)
    assert {v.arcs for v in draws} == {2, 3}
    turned = {min(a, 360 - a) for v in draws for a in v.collimator_deg or ()}
    assert min(turned) == 5 and max(turned) == 12


def test_limits_of_organs_are_scaled_and_targets_stay() -> None:
    case = _case("prostate", "PTV_60", ("Rectum", "Bladder"))
    sheets = fitting_sheets(case)
    plain = next(s for s in sheets if s.name == "prostate_60_20")
    variation = Variation("prostate_60_20", 2, 182.0, 178.0, None, {"Rectum": 0.7}, 0)
    planned, sheet = apply_variation(variation, case)
    assert planned.prescription == Prescription(20, {"PTV_60": 60.0})
    assert sheet.normalization == plain.normalization and len(sheet.goals) == len(plain.goals)
    for before, after in zip(plain.goals, sheet.goals, strict=True):
        factor = 0.7 if before.structure == "Rectum" else 1.0
        assert after.limit == pytest.approx(factor * before.limit, rel=1e-3)
        assert float(after.statement.split()[-2 if after.unit else -1]) == after.limit
        if before.variation is not None:
            assert after.variation == pytest.approx(factor * before.variation, rel=1e-3)


def test_goals_that_must_hold_get_no_looser() -> None:
    case = _case("lung", "PTV_60", ("SpinalCord", "Heart"))
    sheets = fitting_sheets(case)
    for factor in (0.8, 1.2):
        variation = Variation("lung_60", 2, 182.0, 178.0, None, {"SpinalCord": factor, "Heart": factor}, 0)
        _, sheet = apply_variation(variation, case)
        pairs = [(a, b) for a, b in zip(sheets[0].goals, sheet.goals, strict=True) if a.comparator == "<="]
        organs = [(a, b) for a, b in pairs if a.structure in ("SpinalCord", "Heart")]
        assert {a.priority == 1 for a, _ in organs} == {True, False}
        for before, after in organs:
            expected = min(factor, 1.0) if before.priority == 1 else factor
            assert after.limit == pytest.approx(expected * before.limit, rel=1e-3)


def test_a_percentage_stays_within_100() -> None:
    case = _case("prostate", "PTV_60", ("Rectum",))
    variation = Variation("prostate_60_20", 2, 182.0, 178.0, None, {"Rectum": 50.0}, 0)
    _, sheet = apply_variation(variation, case)
    assert all(g.limit <= 100 for g in sheet.goals if g.unit == "%")


def test_a_target_is_planned_at_another_dose_level_by_name() -> None:
    case = _case("prostate", "PTV_60", ("Rectum",))
    sheet = next(s for s in fitting_sheets(case) if s.name == "prostate_78")
    other = relabel_target(case, sheet)
    assert [s.name for s in other.targets] == ["PTV_78"] and "PTV_60" not in other.structures
    assert np.array_equal(other.targets[0].mask, case.targets[0].mask)
    assert list(other.structures) == ["BODY", "PTV_78", "Rectum"]
    assert other.source.steps == ("relabel-target: PTV_60 planned as PTV_78",)
    named = replace(sheet, prescription=Prescription(20, {"PTV": 60.0}))
    assert relabel_target(case, named) is case


def test_a_case_without_goals_is_refused() -> None:
    with pytest.raises(GoalError, match="no goal sheet of the site 'elbow' fits the case"):
        fitting_sheets(_case("elbow", "PTV_60", ("Rectum",)))
    with pytest.raises(GoalError, match=r"its targets: PTV_60"):
        fitting_sheets(_case("prostate", "PTV_60", ("Heart",)))
