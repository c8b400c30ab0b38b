"""Goal sheets: what they say, what is refused, and how a dose is judged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vmat_diffusion.case import Case, Dose, Prescription, Structure
from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.dvh import Dvh
from vmat_diffusion.evaluate.goals import (
    Goal,
    add_structures,
    evaluate,
    fit_to_case,
    load_goals,
    missing_required,
    normalization_gy,
    normalized_at,
    parse_goals,
)
from vmat_diffusion.evaluate.metrics import Metric, homogeneity, paddick
from vmat_diffusion.geometry import Grid

SHEET = """
title = "Test"
site = "pelvis"
source = "here"
fractions = 20

[prescription_gy]
PTV = 60.0

[normalization]
PTV = "D95% = 57 Gy"

[[goals]]
structure = "PTV"
goal = "D95% >= 57 Gy"
variation = 55
priority = 1
source = "here"

[[goals]]
structure = "Rectum"
goal = "V40Gy <= 35 %"
priority = 2
source = "here"
"""


def _case(**boxes: tuple[str, slice]) -> Case:
    """A 20 x 10 x 10 case of 2 mm voxels; each structure is a range of slices."""
    grid = Grid((20, 10, 10), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    structures = {"BODY": Structure("BODY", "body", np.ones(grid.shape, bool))}
    for name, (role, slices) in boxes.items():
        mask = np.zeros(grid.shape, bool)
        mask[slices] = True
        structures[name] = Structure(name, role, mask)  # type: ignore[arg-type]
    return Case("test", "pelvis", grid, np.zeros(grid.shape, np.int16), structures)


def _step_dose(case: Case) -> Dose:
    """Slice k receives 3 k Gy."""
    gy = np.broadcast_to(3.0 * np.arange(20, dtype=np.float32)[:, None, None], case.grid.shape)
    return Dose(case.grid, np.ascontiguousarray(gy))


@pytest.mark.parametrize(
    ("text", "kind", "value", "unit", "result"),
    [
        ("D95%", "D%", 95.0, "%", "Gy"),
        ("D0.03cc", "Dcc", 0.03, "cc", "Gy"),
        ("V20Gy", "V", 20.0, "Gy", "%"),
        ("V20Gy[cc]", "V", 20.0, "Gy", "cc"),
        ("V95%", "V", 95.0, "%", "%"),
        ("V95%[cc]", "V", 95.0, "%", "cc"),
        ("mean", "mean", None, None, "Gy"),
        ("max", "max", None, None, "Gy"),
        ("min", "min", None, None, "Gy"),
        ("conformity95%", "conformity", 95.0, "%", ""),
        ("gEUD8", "gEUD", 8.0, None, "Gy"),
        ("gEUD-10", "gEUD", -10.0, None, "Gy"),
        ("gEUD0.5", "gEUD", 0.5, None, "Gy"),
        ("homogeneity", "homogeneity", None, None, ""),
    ],
)
def test_metrics_are_read_and_written_alike(
    text: str, kind: str, value: float | None, unit: str | None, result: str
) -> None:
    metric = Metric.parse(text)
    assert (metric.kind, metric.value, metric.value_unit, metric.result_unit) == (kind, value, unit, result)
    assert str(metric) == text and Metric.parse(str(metric)) == metric


def test_conformity_means_the_95_percent_isodose() -> None:
    assert Metric.parse("conformity") == Metric.parse("conformity95%")


@pytest.mark.parametrize(
    "text",
    [
        "D95",
        "95%",
        "V20",
        "D120%",
        "Vmax",
        "d95%",
        "D-1cc",
        "",
        "mean%",
        "conformity0%",
        "gEUD",
        "gEUD0",
        "gEUD8%",
    ],
)
def test_unknown_metrics_are_refused(text: str) -> None:
    with pytest.raises(GoalError, match="is not known; write D95%"):
        Metric.parse(text)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title =", "titel =", "titel"),
        ("priority = 1\n", "", "goals 1 priority"),
        ("priority = 1\n", "priority = 4\n", "priority 4 is not 1"),
        ("priority = 1\n", 'priority = "1"\n', "goals 1 priority"),
        ("priority = 1\n", "priority = 1\nlimit = 3\n", "goals 1 limit"),
        ("variation = 55", "variation = 58", "variation 58 is stricter"),
        ("variation = 55", "variation = nan", "goals.1.variation"),
        ("D95% >= 57 Gy", "D95% > 57 Gy", "cannot read"),
        ("D95% >= 57 Gy", "D95% >= 57", "needs Gy"),
        ("D95% >= 57 Gy", "D95% >= 57 cc", "needs Gy or %"),
        ("D95% >= 57 Gy", "D95% >= RTOG 0915", "D95% is not in the RTOG's table"),
        ("D95% >= 57 Gy", "D95% = 57 Gy", "needs >= or <="),
        ("D95% >= 57 Gy", "D95 >= 57 Gy", "metric 'D95' is not known"),
        ("V40Gy <= 35 %", "V40Gy <= 35 Gy", "needs % or cc"),
        ("V40Gy <= 35 %", "V40% <= 35 %", "relative to a prescription, but Rectum has none"),
        ("PTV = 60.0", "PTV = 600.0", "outside 0 to 200"),
        ("PTV = 60.0", "PTV = true", "prescription_gy PTV"),
        ("PTV = 60.0", "", "names no target"),
        ("fractions = 20", "fractions = 0", "0 fractions"),
        ("fractions = 20", "fractions = 20.5", "fractions"),
        ('PTV = "D95% = 57 Gy"', 'PTV = "D95% >= 57 Gy"', "must read"),
        ('PTV = "D95% = 57 Gy"', 'GTV = "D95% = 57 Gy"', "GTV, which has no prescription_gy"),
        ('PTV = "D95% = 57 Gy"', "", "normalization is empty"),
        ("fractions = 20", 'fractions = 20\noptional_targets = ["GTV"]', "optional_targets names GTV"),
        ("fractions = 20", "fractions = ", "not valid TOML"),
    ],
)
def test_a_faulty_sheet_is_refused_in_one_sentence(old: str, new: str, message: str) -> None:
    assert old in SHEET
    with pytest.raises(GoalError) as caught:
        parse_goals(SHEET.replace(old, new, 1), "mine")
    text = str(caught.value)
    assert text.startswith("goal sheet mine") and message in text and "\n" not in text


def test_a_sheet_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(SHEET)
    sheet = load_goals(file)
    assert sheet.name == "mine" and load_goals(str(file)) == sheet
    assert str(sheet.goals[1]) == "Rectum V40Gy <= 35 %"
    with pytest.raises(GoalError, match="does not exist"):
        load_goals(tmp_path / "other.toml")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(GoalError, match="UTF-8"):
        load_goals(file)
    with pytest.raises(GoalError, match="known are anal_54_30"):
        load_goals("breast")


def test_v_goal_in_cc_takes_its_unit_from_the_limit() -> None:
    sheet = parse_goals(SHEET.replace("V40Gy <= 35 %", "V40Gy <= 3 cc"), "mine")
    assert sheet.goals[1].metric == Metric.parse("V40Gy[cc]")


@pytest.mark.parametrize(
    ("metric", "limit", "level_gy", "volume", "unit"),
    [
        ("D95%", 66.5, 66.5, 95.0, "%"),
        ("D0.03cc", 45.0, 45.0, 0.03, "cc"),
        ("V20Gy", 30.0, 20.0, 30.0, "%"),
        ("V20Gy[cc]", 300.0, 20.0, 300.0, "cc"),
        ("V95%", 98.0, 66.5, 98.0, "%"),
        ("max", 50.0, 50.0, 0.0, "%"),
        ("min", 60.0, 60.0, 100.0, "%"),
    ],
)
def test_a_goal_bounds_a_dose_level_and_a_volume(
    metric: str, limit: float, level_gy: float, volume: float, unit: str
) -> None:
    bound = Metric.parse(metric).bound(limit, prescription_gy=70.0)
    assert bound is not None
    assert (bound.level_gy, bound.volume, bound.unit) == (pytest.approx(level_gy), volume, unit)
    # 200 voxels of 0.5 cc.
    share = volume / 100 if unit == "%" else min(volume / 100.0, 1.0)
    assert bound.share(100.0) == pytest.approx(share)
    assert bound.voxels(200, 0.5) == pytest.approx(2 * volume)


@pytest.mark.parametrize("metric", ["mean", "gEUD8", "conformity", "homogeneity"])
def test_other_goals_bound_no_single_point_of_the_histogram(metric: str) -> None:
    assert Metric.parse(metric).bound(10.0, prescription_gy=70.0) is None


def test_a_percentage_of_no_prescription_bounds_nothing() -> None:
    assert Metric.parse("V95%").bound(98.0) is None and Metric.parse("V95%").level_gy(None) is None


def test_near_maxima_are_maxima_and_small_volumes() -> None:
    of = {text: Metric.parse(text).is_near_maximum for text in ("max", "D0.03cc", "D0.2cc")}
    assert all(of.values())
    assert not any(Metric.parse(text).is_near_maximum for text in ("D2%", "D1cc", "mean", "V20Gy"))


def test_status_at_and_around_limit_and_variation() -> None:
    at_least = Goal("PTV", Metric.parse("D95%"), ">=", 66.5, "Gy", 65.0, 1)
    assert [at_least.status(v) for v in (66.5, 66.49, 65.0, 64.99)] == [
        "pass",
        "acceptable",
        "acceptable",
        "fail",
    ]
    at_most = Goal("SpinalCord", Metric.parse("D0.03cc"), "<=", 45.0, "Gy", 48.0, 1)
    assert [at_most.status(v) for v in (45.0, 45.01, 48.0, 48.01)] == [
        "pass",
        "acceptable",
        "acceptable",
        "fail",
    ]
    assert at_most.status(float(np.float32(45.0000001))) == "pass"


def test_evaluate_by_hand() -> None:
    """Slices of the target receive 45, 48, 51, 54 and 57 Gy, those of the rectum 3 k Gy up to 27 Gy."""
    case = _case(PTV=("target", slice(15, 20)), Rectum=("organ", slice(0, 10)))
    sheet = parse_goals(SHEET, "mine")
    metrics = {
        "PTV": [
            "D50% >= 1 Gy",
            "D0.03cc <= 1 Gy",
            "V85% >= 1 %",
            "V85% >= 1 cc",
            "mean <= 1 Gy",
            "max <= 1 Gy",
        ],
        "Rectum": ["V12Gy <= 1 %", "V12Gy <= 1 cc", "min <= 1 Gy", "D20% <= 1 Gy"],
    }
    text = SHEET.split("[[goals]]")[0]
    for structure, goals in metrics.items():
        for goal in goals:
            text += f'[[goals]]\nstructure = "{structure}"\ngoal = "{goal}"\npriority = 2\nsource = "x"\n'
    results = evaluate(parse_goals(text, "mine"), case, _step_dose(case))
    # 60 Gy prescribed: 85 % are 51 Gy, reached in three of five slices of 0.8 cc.
    # A fifth of the rectum is two of ten slices: half-way between 24 and 21 Gy.
    expected = [51.0, 57.0, 60.0, 2.4, 51.0, 57.0, 60.0, 4.8, 0.0, 22.5]
    assert [r.value for r in results] == pytest.approx(expected, abs=1e-4)
    assert results[0].status == "pass" and results[1].status == "fail"
    assert evaluate(sheet, case, _step_dose(case))[0].value == pytest.approx(45.0)


def test_absent_and_empty_organs_are_not_evaluated() -> None:
    sheet = parse_goals(SHEET, "mine")
    for case, why in (
        (_case(PTV=("target", slice(15, 20))), "not contoured"),
        (_case(PTV=("target", slice(15, 20)), Rectum=("organ", slice(0, 0))), "contour is empty"),
    ):
        result = evaluate(fit_to_case(sheet, case), case, _step_dose(case))[1]
        assert (result.value, result.status, result.note) == (None, "not evaluated", why)


def test_structures_beyond_the_dose_grid_are_noted() -> None:
    case = _case(PTV=("target", slice(15, 20)), Rectum=("organ", slice(0, 10)))
    whole = _step_dose(case)
    half = Dose(Grid((15, 10, 10), (2.0, 2.0, 2.0), (0.0, 0.0, 10.0)), whole.gy[5:])
    rectum = evaluate(parse_goals(SHEET, "mine"), case, half)[1]
    assert "50.0 % of the structure lies outside the dose grid" in rectum.note


def test_missing_target_stops() -> None:
    case = _case(Rectum=("organ", slice(0, 10)), GTV=("target", slice(3, 4)))
    with pytest.raises(GoalError, match=r"target PTV is not in the case \(its targets: GTV\)"):
        fit_to_case(parse_goals(SHEET, "mine"), case)


def test_optional_levels_are_left_out_and_normalisation_falls_to_the_next() -> None:
    sheet = load_goals("head_neck_70_63_56")
    both = fit_to_case(sheet, _case(PTV_70=("target", slice(8, 12)), PTV_56=("target", slice(5, 15))))
    assert dict(both.prescription.target_gy) == {"PTV_70": 70.0, "PTV_56": 56.0}
    assert both.prescription.fractions == 35
    assert not any(g.structure == "PTV_63" for g in both.goals)
    assert any(g.structure == "Larynx" for g in both.goals)
    assert both.normalization.structure == "PTV_70"
    low = fit_to_case(sheet, _case(PTV_63=("target", slice(8, 12)), PTV_70=("target", slice(0, 0))))
    assert str(low.normalization) == "PTV_63 D95% = 63 Gy"
    with pytest.raises(GoalError, match="PTV_70 and PTV_63 and PTV_56"):
        fit_to_case(sheet, _case(GTV=("target", slice(8, 12))))


def test_a_sheet_can_be_normalised_at_another_dose_near_its_own() -> None:
    sheet = load_goals("head_neck_70_63_56")
    higher = normalized_at(sheet, 71.5)
    assert str(higher.normalization) == "PTV_70 D95% = 71.5 Gy"
    assert higher.goals == sheet.goals and higher.prescription == sheet.prescription
    assert str(higher.normalizations[1]) == "PTV_63 D95% = 63 Gy"
    for gy in (55.9, 84.1):
        with pytest.raises(GoalError, match=rf"normalisation at {gy:g} Gy is outside 56 to 84 Gy"):
            normalized_at(sheet, gy)


def test_what_the_sheet_normalises_is_measured_on_a_dose() -> None:
    case = _case(PTV=("target", slice(0, 10)))
    sheet = parse_goals(SHEET, "mine")
    dose = Dose(case.grid, np.full(case.grid.shape, 61.0, np.float32))
    assert normalization_gy(dose, case, sheet) == pytest.approx(61.0)
    maximum = replace(sheet, normalizations=(replace(sheet.normalization, metric=Metric.parse("max")),))
    with pytest.raises(GoalError, match="must be a mean or a D% metric"):
        normalization_gy(dose, case, maximum)


def test_unions_fill_in_only_what_is_not_contoured() -> None:
    sheet = load_goals("lung_60")
    parts = _case(Lung_L=("organ", slice(0, 5)), Lung_R=("organ", slice(5, 9)))
    made = add_structures(sheet, parts)
    assert made.structures["Lungs"].voxels == 900
    assert made.source.steps == ("Lungs made as the union of Lung_L and Lung_R",)
    own = _case(Lung_L=("organ", slice(0, 5)), Lung_R=("organ", slice(5, 9)), Lungs=("organ", slice(0, 8)))
    assert add_structures(sheet, own) is own
    one = _case(Lung_L=("organ", slice(0, 5)))
    assert add_structures(sheet, one) is one


def test_indices_by_hand() -> None:
    # Four of five target voxels at the level, and an isodose of eight voxels: 4^2 / (5 * 8).
    dvh = Dvh.of([60, 60, 58, 57, 50], 0.1)
    assert paddick(dvh, 57.0, 0.8) == pytest.approx(16 / 40)
    assert paddick(dvh, 70.0, 0.0) == 0.0
    uniform = Dvh.of(np.linspace(50.0, 70.0, 10001), 0.001)
    assert homogeneity(uniform) == pytest.approx(0.96 * 20 / 60, abs=1e-4)
    assert np.isnan(homogeneity(Dvh.of([0.0, 0.0], 1.0)))


def test_conformity_and_homogeneity_through_a_sheet() -> None:
    case = _case(PTV=("target", slice(15, 20)))
    text = SHEET.split("[[goals]]")[0]
    for goal in ("conformity85% >= 0.5", "homogeneity <= 0.1"):
        text += f'[[goals]]\nstructure = "PTV"\ngoal = "{goal}"\npriority = 3\nsource = "x"\n'
    conformity, spread = evaluate(parse_goals(text, "mine"), case, _step_dose(case))
    # The 51 Gy isodose fills three slices, all within the target of five: 3^2 / (5 * 3).
    assert conformity.value == pytest.approx(0.6)
    assert spread.value == pytest.approx((57 - 45) / 51)
    nothing = Dose(case.grid, np.zeros(case.grid.shape, np.float32))
    assert evaluate(parse_goals(text, "mine"), case, nothing)[1].status == "not evaluated"


def test_results_do_not_depend_on_the_case_being_replaced() -> None:
    case = _case(PTV=("target", slice(15, 20)), Rectum=("organ", slice(0, 10)))
    other = replace(case, prescription=Prescription(5, {"PTV": 30.0}))
    sheet = parse_goals(SHEET.replace("D95% >= 57 Gy", "V95% >= 57 %"), "mine")
    a, b = (evaluate(sheet, c, _step_dose(c))[0].value for c in (case, other))
    assert a == b == pytest.approx(20.0)


def _sheet_with(name: str, extra: str = "") -> GoalSheet:
    row = f'[[goals]]\nstructure = "{name}"\ngoal = "max <= 45 Gy"\npriority = 1\nsource = "x"\n{extra}'
    return parse_goals(SHEET.split("[[goals]]")[0] + row, "mine")


@pytest.mark.parametrize(
    "name", ["Spinal Cord", "Cord", "SPINAL_CORD", "spinalcord", "Spinal_Cord", "SpinalCord"]
)
def test_a_goal_names_its_structure_as_a_structure_set_may(name: str) -> None:
    """The kind: whatever name a contour may have means the same in a sheet, and is evaluated."""
    case = _case(PTV=("target", slice(15, 20)), SpinalCord=("organ", slice(0, 10)))
    sheet = fit_to_case(_sheet_with(name), case)
    (result,) = evaluate(sheet, case, _step_dose(case))
    assert sheet.goals[0].structure == "SpinalCord" and result.value is not None
    assert missing_required(sheet, case) == ()


def test_every_alias_of_the_name_table_is_understood() -> None:
    from vmat_diffusion.dicom.names import default_table

    for alias, match in default_table().exact.items():
        if match.role == "organ":
            case = _case(**{"PTV": ("target", slice(15, 20)), match.name: ("organ", slice(0, 10))})
            assert fit_to_case(_sheet_with(alias), case).goals[0].structure == match.name, alias


def test_a_structures_own_name_in_its_file_is_understood() -> None:
    case = _case(PTV=("target", slice(15, 20)), SpinalCord=("organ", slice(0, 10)))
    named = {**case.structures, "SpinalCord": replace(case.structures["SpinalCord"], alias="Myelon dorsal")}
    sheet = fit_to_case(_sheet_with("myelon_dorsal"), replace(case, structures=named))
    assert sheet.goals[0].structure == "SpinalCord"


@pytest.mark.parametrize("name", ["PTV 60", "Nothing Known"])
def test_a_must_that_is_not_evaluated_is_not_met(name: str) -> None:
    case = _case(PTV=("target", slice(15, 20)))
    sheet = fit_to_case(_sheet_with(name), case)
    (result,) = evaluate(sheet, case, _step_dose(case))
    assert result.status == "not evaluated" and result.missed and len(missing_required(sheet, case)) == 1
    sheet = fit_to_case(_sheet_with(name, "optional = true\n"), case)
    (result,) = evaluate(sheet, case, _step_dose(case))
    assert result.status == "not evaluated" and not result.missed and not missing_required(sheet, case)
    (wish,) = evaluate(replace(sheet, goals=(replace(sheet.goals[0], priority=3),)), case, _step_dose(case))
    assert not wish.missed


def test_two_names_of_one_target_are_refused() -> None:
    case = _case(PTV=("target", slice(15, 20)))
    text = SHEET.replace("[prescription_gy]\n", "[prescription_gy]\nptv = 50\n")
    with pytest.raises(GoalError, match="names PTV twice"):
        fit_to_case(parse_goals(text, "mine"), case)


def test_a_sheet_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_bytes(b"\xef\xbb\xbf" + SHEET.encode())
    assert load_goals(file) == parse_goals(SHEET, "mine")
