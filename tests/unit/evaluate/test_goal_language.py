"""The language of goal sheets, format 2: groups, conditions, structures made of others, sources, metrics."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from vmat_diffusion.case import Case, Dose, Structure
from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.goals import (
    GoalSheet,
    add_structures,
    evaluate,
    fit_to_case,
    judge_groups,
    load_goals,
    missing_required,
    parse_goals,
    with_conditions,
)
from vmat_diffusion.evaluate.metrics import Metric
from vmat_diffusion.evaluate.spillage import rtog_limit
from vmat_diffusion.geometry import Grid

HEAD = """
format = 2
title = "Test"
site = "pelvis"
source = "here"
fractions = 20
current_to = "2026-11"
conditions = { chemo = "concurrent chemotherapy" }
optional_targets = ["PTV_50"]

[prescription_gy]
PTV_60 = 60.0
PTV_50 = 50.0

[normalization]
PTV_60 = "D95% = 95 %"
PTV_50 = "D95% = 95 %"
"""


def _text(*goals: str, head: str = HEAD, **tables: str) -> str:
    """A sheet of goals, each `structure | goal | further lines`, with tables of TOML text before them."""
    text = head + "".join(f"\n[{name}]\n{lines}\n" for name, lines in tables.items())
    for goal in goals:
        structure, statement, *further = (part.strip() for part in goal.split("|"))
        lines = [f'structure = "{structure}"', f'goal = "{statement}"', *further]
        text += "\n[[goals]]\n" + "\n".join(lines) + "\n"
        if not any(line.startswith("priority") for line in further):
            text += "priority = 2\n"
        if not any(line.startswith("source") for line in further):
            text += 'source = "x"\nseen = "publication"\n'
    return text


def _sheet(*goals: str, **tables: str) -> GoalSheet:
    return parse_goals(_text(*goals, **tables), "mine")


def _case(**slices: slice) -> Case:
    """20 x 10 x 10 voxels of 2 mm; each structure is a range of slices, PTVs are targets."""
    grid = Grid((20, 10, 10), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    structures = {"BODY": Structure("BODY", "body", np.ones(grid.shape, bool))}
    for name, where in {"PTV_60": slice(15, 20), **slices}.items():
        mask = np.zeros(grid.shape, bool)
        mask[where] = True
        structures[name] = Structure(name, "target" if name.startswith("PTV") else "organ", mask)
    return Case("test", "pelvis", grid, np.zeros(grid.shape, np.int16), structures)


def _step_dose(case: Case) -> Dose:
    """Slice k receives 3 k Gy."""
    gy = np.broadcast_to(3.0 * np.arange(20, dtype=np.float32)[:, None, None], case.grid.shape)
    return Dose(case.grid, np.ascontiguousarray(gy))


def _judged(sheet: GoalSheet, case: Case) -> list[float | None]:
    fitted = fit_to_case(sheet, case)
    made = add_structures(fitted, case)
    return [r.value for r in evaluate(fitted, made, _step_dose(made))]


# --- metrics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "value", "unit", "result"),
    [
        ("CV15Gy", "CV", 15.0, "Gy", "%"),
        ("CV15Gy[cc]", "CV", 15.0, "Gy", "cc"),
        ("meanhot95%", "meanhot", 95.0, "%", "Gy"),
        ("meancold30cc", "meancold", 30.0, "cc", "Gy"),
        ("R50%", "R", 50.0, "%", ""),
        ("D2cm", "Dcm", 2.0, "cm", "%"),
        ("D2cm[Gy]", "Dcm", 2.0, "cm", "Gy"),
        ("D0.03cc[%]", "Dcc", 0.03, "cc", "%"),
        ("max[%]", "max", None, None, "%"),
    ],
)
def test_new_metrics_are_read_and_written_alike(
    text: str, kind: str, value: float | None, unit: str | None, result: str
) -> None:
    metric = Metric.parse(text)
    assert (metric.kind, metric.value, metric.value_unit, metric.result_unit) == (kind, value, unit, result)
    assert str(metric) == text and Metric.parse(str(metric)) == metric


@pytest.mark.parametrize(
    "text", ["CV15", "meanhot", "meanhot0%", "meanhot101%", "R0%", "R50", "mean[cc]", "V20Gy[Gy]"]
)
def test_what_is_no_metric_is_refused(text: str) -> None:
    with pytest.raises(GoalError, match="is not known; write D95%"):
        Metric.parse(text)


def test_values_by_hand() -> None:
    """The organ's ten slices of 0.8 cc receive 0, 3, ... 27 Gy, the target's five 45 to 57 Gy."""
    case = _case(Rectum=slice(0, 10))
    expected = {
        "Rectum | CV12Gy >= 1 cc": 3.2,  # 0, 3, 6, 9 Gy
        "Rectum | CV12Gy >= 1 %": 40.0,
        "Rectum | meanhot50% <= 1 Gy": (15 + 18 + 21 + 24 + 27) / 5,
        "Rectum | meancold2cc >= 1 Gy": (0 + 3 + 0.5 * 6) / 2.5,
        "Rectum | meanhot100cc <= 1 Gy": 13.5,
        "Rectum | D0.03cc <= 1 %": 45.0,  # 27 of the highest prescription, 60 Gy
        "PTV_60 | D0.03cc <= 1 %": 95.0,
        "PTV_60 | mean <= 1 %": 85.0,
        "PTV_60 | R85% <= 1": 3 / 5,  # 51 Gy in three slices
        "PTV_60 | R20% <= 1": 16 / 5,  # 12 Gy from slice 4 on
        "PTV_60 | D2cm <= 1 %": 100 * 12 / 60,  # slice 15 less 11 slices of 2 mm
        "PTV_60 | D2cm <= 1 Gy": 12.0,
    }
    assert _judged(_sheet(*expected), case) == pytest.approx(list(expected.values()), abs=1e-4)


def test_a_spared_volume_is_a_bound_on_the_rest() -> None:
    bound = Metric.parse("CV15Gy[cc]").bound(700.0)
    assert bound is not None and bound.spared
    assert bound.share(1400.0) == 0.5 and bound.share(500.0) == 0.0
    assert bound.voxels(1400, 1.0) == 700 and bound.voxels(100, 1.0) == 0
    small = _case(Liver=slice(0, 3))
    sheet = fit_to_case(_sheet("Liver | CV15Gy >= 700 cc"), small)
    (result,) = evaluate(sheet, small, _step_dose(small))
    assert result.status == "fail" and "only 2.4 cc" in result.note


def test_the_signs_of_print_are_read() -> None:
    assert _sheet("PTV_60 | D95% \u2265 57 Gy").goals == _sheet("PTV_60 | D95% >= 57 Gy").goals


def test_which_goals_ask_for_dose() -> None:
    goals = _sheet("PTV_60 | D95% >= 57 Gy", "Liver | CV15Gy >= 700 cc", "Liver | mean <= 15 Gy").goals
    assert [goal.demands_dose for goal in goals] == [True, False, False]


# --- the RTOG's table ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "cc", "limit", "variation"),
    [
        ("R50%", 1.8, 5.9, 7.5),
        ("R50%", 163.0, 2.9, 3.7),
        ("R50%", 28.0, 4.4, 5.4),
        ("D2cm", 13.2, 50.0, 58.0),
        ("D2cm", 42.0, 60.0, 72.5),
        ("R100%", 80.0, 1.2, 1.5),
    ],
)
def test_limits_of_the_table_and_between_its_columns(
    metric: str, cc: float, limit: float, variation: float
) -> None:
    row = rtog_limit(Metric.parse(metric), cc)
    assert (row.limit, row.variation, row.note) == (pytest.approx(limit), pytest.approx(variation), "")


@pytest.mark.parametrize(
    ("cc", "side", "limit"),
    [(1.0, "below the table's 1.8 cc", 5.9), (300.0, "above the table's 163 cc", 2.9)],
)
def test_beyond_the_table_the_edge_is_used_and_named(cc: float, side: str, limit: float) -> None:
    row = rtog_limit("R50%", cc)
    assert row.limit == limit and side in row.note and "whose limit is used" in row.note


def test_a_table_goal_gets_its_numbers_from_the_case() -> None:
    sheet = _sheet("PTV_60 | R50% <= RTOG 0915", "PTV_60 | D2cm <= RTOG 0813")
    assert math.isnan(sheet.goals[0].limit) and str(sheet.goals[0]) == "PTV_60 R50% <= RTOG 0915"
    case = _case(Rectum=slice(0, 10))
    fitted = fit_to_case(sheet, case)  # a target of 4 cc
    limits = [(g.limit, g.variation) for g in fitted.goals]
    assert limits[0] == (
        pytest.approx(np.interp(4.0, [3.8, 7.4], [5.5, 5.1])),
        pytest.approx(np.interp(4.0, [3.8, 7.4], [6.5, 6.0])),
    )
    assert limits[1] == (50.0, pytest.approx(np.interp(4.0, [3.8, 7.4], [57, 58])))
    tiny = _case(PTV_60=slice(19, 20))
    note = evaluate(fit_to_case(sheet, tiny), tiny, _step_dose(tiny))[0].note
    assert "0.8 cc is below the table's 1.8 cc" in note


# --- groups ----------------------------------------------------------------------------------------------

GROUP = 'at_least = 1\npriority = 1\nsource = "x"\nseen = "publication"'
EITHER = ("Rectum | mean <= 14 Gy | group = 'either'", "Bladder | mean <= 14 Gy | group = 'either'")


@pytest.mark.parametrize(
    ("slices", "status", "missed", "members"),
    [
        # The rectum gets 13.5 Gy in its ten slices, and 28.5 Gy further up.
        ({"Rectum": slice(0, 10), "Bladder": slice(5, 15)}, "pass", False, ["pass", "fail"]),
        ({"Rectum": slice(5, 15), "Bladder": slice(5, 15)}, "fail", True, ["fail", "fail"]),
        ({"Rectum": slice(0, 10)}, "pass", False, ["pass", "not evaluated"]),
        ({"Rectum": slice(5, 15)}, "fail", True, ["fail", "not evaluated"]),
        ({}, "not evaluated", True, ["not evaluated", "not evaluated"]),
    ],
)
def test_at_least_one_of_two(slices: dict[str, slice], status: str, missed: bool, members: list[str]) -> None:
    case = _case(**slices)
    sheet = fit_to_case(_sheet(*EITHER, **{"groups.either": GROUP}), case)
    results = evaluate(sheet, case, _step_dose(case))
    (group,) = judge_groups(sheet, results)
    assert (group.status, group.missed, [r.status for r in results]) == (status, missed, members)
    # What a group is met without is no miss anywhere.
    assert any(r.missed for r in results) is missed and all(r.excused is not missed for r in results)
    assert bool(missing_required(sheet, case)) is (not slices)


def test_n_of_and_variations_and_wishes() -> None:
    group = {"groups.all": GROUP.replace("at_least = 1", "at_least = 2")}
    goals = [
        f"{name} | mean <= 14 Gy | variation = 30 | group = 'all'" for name in ("Rectum", "Bladder", "Colon")
    ]
    case = _case(Rectum=slice(0, 10), Bladder=slice(5, 15), Colon=slice(10, 20))
    sheet = fit_to_case(_sheet(*goals, **group), case)
    (found,) = judge_groups(sheet, evaluate(sheet, case, _step_dose(case)))
    assert (found.status, found.met, found.evaluated) == ("acceptable", 2, 3)
    one = _case(Rectum=slice(0, 10))
    fitted = fit_to_case(sheet, one)
    (found,) = judge_groups(fitted, evaluate(fitted, one, _step_dose(one)))
    assert found.status == "not evaluated" and found.missed  # one of two cannot be enough
    assert {g.structure for g in missing_required(fitted, one)} == {"Bladder", "Colon"}
    none = _case()
    wish = fit_to_case(
        _sheet(*EITHER, **{"groups.either": GROUP.replace("priority = 1", "priority = 3")}), none
    )
    (found,) = judge_groups(wish, evaluate(wish, none, _step_dose(none)))
    assert found.status == "not evaluated" and not found.missed


@pytest.mark.parametrize(
    ("slices", "status", "missed", "names"),
    [
        # A cauda that is spared does not excuse the cord.
        ({"Rectum": slice(5, 15), "Bladder": slice(0, 10)}, "fail", True, ["Rectum"]),
        ({"Rectum": slice(0, 10), "Bladder": slice(0, 9)}, "pass", False, []),
        ({"Rectum": slice(0, 10)}, "pass", False, []),
        ({"Rectum": slice(5, 15)}, "fail", True, ["Rectum"]),
        ({}, "not evaluated", True, ["Rectum", "Bladder"]),
    ],
)
def test_every_contoured_one_of_two(
    slices: dict[str, slice], status: str, missed: bool, names: list[str]
) -> None:
    case = _case(**slices)
    sheet = fit_to_case(_sheet(*EITHER, **{"groups.either": GROUP + "\nevery = true"}), case)
    results = evaluate(sheet, case, _step_dose(case))
    (group,) = judge_groups(sheet, results)
    assert (group.status, group.missed) == (status, missed)
    assert [r.goal.structure for r in results if r.missed] == names
    assert bool(missing_required(sheet, case)) is (not slices)


def test_a_members_priority_is_the_groups() -> None:
    sheet = _sheet(*EITHER, **{"groups.either": GROUP})
    assert [g.priority for g in sheet.goals] == [1, 1]


# --- conditions ------------------------------------------------------------------------------------------


def test_goals_of_conditions_that_are_off_are_left_out() -> None:
    sheet = _sheet(
        "Rectum | mean <= 1 Gy | if = 'chemo'",
        "Rectum | mean <= 2 Gy | if = 'not chemo'",
        "Rectum | mean <= 3 Gy",
    )
    case = _case(Rectum=slice(0, 10))

    def limits(fitted: GoalSheet) -> tuple[list[float], list[float]]:
        return [g.limit for g in fitted.goals], [g.limit for g in fitted.left_out]

    off, on = fit_to_case(sheet, case), fit_to_case(sheet, case, ["chemo"])
    assert limits(off) == ([2.0, 3.0], [1.0]) and limits(on) == ([1.0, 3.0], [2.0])
    assert on.conditions_on == ("chemo",) and limits(fit_to_case(on, case)) == limits(on)
    assert limits(fit_to_case(with_conditions(sheet, ["chemo"]), case)) == limits(on)
    with pytest.raises(GoalError, match=r"condition 'age' is not known; it has chemo \(concurrent chemo"):
        fit_to_case(sheet, case, ["age"])


# --- structures made of others ---------------------------------------------------------------------------


def test_structures_are_made_of_others_as_a_named_step() -> None:
    case = _case(Lung_L=slice(0, 4), Lung_R=slice(4, 12), GTV=slice(10, 14), SpinalCord=slice(8, 9))
    sheet = _sheet(
        "Lungs - GTV | mean <= 20 Gy",
        "Cord_PRV5 | max <= 50 Gy",
        "BODY - (PTV_50 + PTV_60) | max <= 50 Gy",
        structures='Lungs = "Lung_L + Lung_R"\nCord_PRV5 = "Spinal Cord + 4 mm"',
    )
    fitted = fit_to_case(sheet, case)
    made = add_structures(fitted, case)
    # The optional level that is absent counts as empty; the table knows Lungs-GTV.
    assert [g.structure for g in fitted.goals] == ["Lungs-GTV", "Cord_PRV5", "BODY - PTV_60"]
    assert made.source.steps == (
        "Lungs made as the union of Lung_L and Lung_R",
        "Cord_PRV5 made as SpinalCord + 4 mm",
        "BODY - PTV_60 made as BODY - PTV_60",
        "Lungs-GTV made as Lungs - GTV",
    )
    roles = {name: made.structures[name].role for name in ("Lungs", "Lungs-GTV", "BODY - PTV_60")}
    assert roles == {"Lungs": "organ", "Lungs-GTV": "organ", "BODY - PTV_60": "other"}
    assert made.structures["Lungs-GTV"].voxels == 1000 and made.structures["Cord_PRV5"].voxels == 500
    assert [r.value for r in evaluate(fitted, made, _step_dose(made))] == pytest.approx([13.5, 30.0, 42.0])
    again = fit_to_case(fitted, made)
    assert again.goals == fitted.goals and add_structures(again, made) is made


def test_what_is_missing_or_empty_is_named_and_not_evaluated() -> None:
    sheet = _sheet(
        "Lungs - GTV | mean <= 20 Gy | priority = 1",
        "Kidneys - PTV_60 | mean <= 20 Gy",
        "Heart - PTV_60 | mean <= 20 Gy",
        structures='Kidneys = "Kidney_L + Kidney_R"',
    )
    case = _case(Lungs=slice(0, 5), Kidney_L=slice(2, 4), Kidney_R=slice(0, 0), Heart=slice(16, 18))
    fitted = fit_to_case(sheet, case)
    made = add_structures(fitted, case)
    results = evaluate(fitted, made, _step_dose(made))
    assert [r.note for r in results] == [
        "GTV is not contoured, so Lungs - GTV cannot be made",
        "Kidney_R is empty, so Kidneys - PTV_60 cannot be made",
        "nothing is left of Heart - PTV_60",
    ]
    assert all(r.status == "not evaluated" for r in results) and results[0].missed
    assert missing_required(fitted, made) == (fitted.goals[0],)
    assert made.source.steps == ("Heart - PTV_60 made as Heart - PTV_60; nothing is left",)


def test_what_is_contoured_is_not_made() -> None:
    own = _case(Lungs=slice(0, 5), GTV=slice(2, 3), **{"Lungs-GTV": slice(0, 2)})
    fitted = fit_to_case(_sheet("Lungs - GTV | mean <= 20 Gy"), own)
    assert add_structures(fitted, own) is own and fitted.goals[0].structure == "Lungs-GTV"


def test_a_minus_is_no_separator_of_a_name() -> None:
    case = _case(Heart=slice(12, 18), Heart_PTV=slice(16, 18))
    fitted = fit_to_case(_sheet("Heart - PTV_60 | mean <= 20 Gy"), case)
    assert fitted.goals[0].structure == "Heart - PTV_60"
    overlap = _case(Heart=slice(12, 18), HeartPTV60=slice(16, 18))
    made = add_structures(fit_to_case(_sheet("Heart - PTV_60 | mean <= 20 Gy"), overlap), overlap)
    assert made.structures["Heart - PTV_60"].voxels == 300


def test_names_inside_expressions_go_through_the_table() -> None:
    case = _case(SpinalCord=slice(8, 9), Kidney_L=slice(0, 2), Kidney_R=slice(2, 4))
    for text, expected in (
        ("Cord + 2 mm", "SpinalCord + 2 mm"),
        ("Left Kidney + kidney_right", "Kidney_L + Kidney_R"),
    ):
        fitted = fit_to_case(_sheet(f"{text} | mean <= 1 Gy"), case)
        assert list(fitted.structures.values()) == [expected]
        assert evaluate(fitted, add_structures(fitted, case), _step_dose(case))[0].value is not None


# --- sources, formats, faults ----------------------------------------------------------------------------


def test_an_old_sheet_loads_with_one_line() -> None:
    text = _text("Lungs | mean <= 1 Gy", unions='Lungs = ["Lung_L", "Lung_R"]').replace("format = 2\n", "")
    old = parse_goals(text, "mine")
    assert old.format == 1 and dict(old.structures) == {"Lungs": "Lung_L + Lung_R"}
    (remark,) = old.remarks
    assert remark.startswith("the goal sheet is of format 1; its [unions] are read as [structures]")
    assert "format = 2" in remark and "\n" not in remark


def test_what_only_looks_like_an_expression_stays_a_name_in_an_old_sheet() -> None:
    text = _text("Foo + (old | mean <= 1 Gy")
    case = _case()
    with pytest.raises(GoalError, match=r"goal sheet mine: structure 'Foo \+ \(old': a parenthesis"):
        fit_to_case(parse_goals(text, "mine"), case)
    old = fit_to_case(parse_goals(text.replace("format = 2\n", ""), "mine"), case)
    assert evaluate(old, case, _step_dose(case))[0].note == "not contoured"


def test_numbers_without_source_are_remarked() -> None:
    assert _sheet("Rectum | mean <= 1 Gy").remarks == ()
    without = _sheet("Rectum | mean <= 1 Gy | source = ''", "Rectum | mean <= 2 Gy | source = 'x'")
    assert without.remarks == (
        "no source is stated for Rectum mean <= 1 Gy; state it with source",
        "it is not said how the source of Rectum mean <= 2 Gy was seen; state it with seen",
    )


@pytest.mark.parametrize(
    ("goal", "tables", "message"),
    [
        ("Rectum | mean <= 1 Gy | group = 'x'", {}, "group x is not in the sheet"),
        (
            "Rectum | mean <= 1 Gy | group = 'either'",
            {"groups.either": GROUP.replace("= 1\np", "= 2\np")},
            "asks for 2 of 1",
        ),
        ("Rectum | mean <= 1 Gy", {"groups.either": GROUP}, "asks for 1 of 0"),
        (
            "Rectum | mean <= 1 Gy",
            {"groups.either": GROUP.replace("at_least = 1", "at_least = 0")},
            "at_least 0",
        ),
        ("Rectum | mean <= 1 Gy | if = 'age'", {}, "condition 'age' is not in conditions"),
        ("Rectum | mean <= 1 Gy | source = 'x' | seen = 'dreamt'", {}, "goals 1 seen"),
        ("Rectum | mean <= 1 Gy | seen_by = 'me'", {}, "seen_by"),
        ("Rectum | R50% <= RTOG 0915", {}, "relative to a prescription"),
        ("PTV_60 | R50% <= RTOG 1234", {}, "write a number, or RTOG 0813 or RTOG 0915"),
        ("PTV_60 | R50% >= RTOG 0915", {}, "gives limit and variation"),
        ("PTV_60 | R50% <= RTOG 0915 | variation = 6", {}, "gives limit and variation"),
        ("Rectum | mean <= 1 Gy | variation_source = 'x'", {}, "but no variation"),
        ("Rectum | mean <= 1 cc", {}, "needs Gy or %"),
        ("Rectum | V20Gy <= 20 % | eqd2 = 3\nfractions_of_source = 0", {}, "in 0 fractions"),
        ("PTV_60 | V20% <= 20 % | eqd2 = 3", {}, "eqd2 is for goals on a dose in Gy"),
        ("PTV_60 | homogeneity <= 1 | eqd2 = 3", {}, "eqd2 is for goals on a dose in Gy"),
        ("Rectum | mean <= 1 Gy | fractions_of_source = 35", {}, "no effect without eqd2"),
        ("Rectum | mean <= 1 Gy", {"structures": 'PTV_60 = "GTV + 5 mm"'}, "targets must be contoured"),
        ("Rectum | mean <= 1 Gy", {"structures": 'A = "B + 5 mm"\nB = "A - 5 mm"'}, "is made of itself"),
        ("Rectum | mean <= 1 Gy", {"structures": 'A = "B +"'}, "a name is missing"),
    ],
)
def test_faults_of_the_language_are_refused(goal: str, tables: dict[str, str], message: str) -> None:
    with pytest.raises(GoalError) as caught:
        _sheet(goal, **tables)
    text = str(caught.value)
    assert text.startswith("goal sheet mine") and message in text and "\n" not in text


@pytest.mark.parametrize(("old", "new"), [("format = 2", "format = 3"), ('"2026-11"', '"November"')])
def test_the_head_is_checked(old: str, new: str) -> None:
    with pytest.raises(GoalError, match=r"goal sheet mine: (format 3|current_to 'November')"):
        parse_goals(_text("Rectum | mean <= 1 Gy", head=HEAD.replace(old, new)), "mine")


# --- fractionation ---------------------------------------------------------------------------------------


def test_eqd2_in_closed_form() -> None:
    """30 Gy in 20 fractions of 1.5 Gy with alpha/beta 3: 30 (1.5 + 3) / 5 = 27 Gy."""
    case = _case(Rectum=slice(9, 11))  # 27 and 30 Gy
    sheet = fit_to_case(
        _sheet("Rectum | max <= 26.9 Gy | eqd2 = 3", "Rectum | V27Gy <= 60 % | eqd2 = 3"), case
    )
    top, volume = evaluate(sheet, case, _step_dose(case))
    assert (
        top.value == pytest.approx(27.0) and top.status == "fail" and top.physical_gy == pytest.approx(30.0)
    )
    assert "30.00 Gy in 20 fractions" in top.note and "EQD2 (alpha/beta 3 Gy)" in str(top.goal)
    assert volume.value == pytest.approx(50.0) and "27 Gy EQD2 are 30.00 Gy" in volume.note
    physical = sheet.in_gy()
    assert physical.goals[0].limit == pytest.approx(29.9166, abs=0.001) and physical.goals[0].eqd2 is None
    assert physical.goals[1].metric.value == pytest.approx(30.0)


def test_limits_of_another_fractionation() -> None:
    """40 Gy in 10 fractions of 4 Gy, alpha/beta 2: 40 * 6 / 4 = 60 Gy; in 20 fractions of 2.47 Gy: 47.8."""
    sheet = _sheet("Rectum | max <= 40 Gy | variation = 44 | eqd2 = 2 | fractions_of_source = 10")
    (goal,) = sheet.goals
    assert goal.limit == pytest.approx(60.0) and goal.variation == pytest.approx(44 * 6.4 / 4)
    assert "stated as max <= 40 Gy in 10 fractions, acceptable 44" in goal.applies_to
    gy = goal.in_gy(sheet.prescription).limit
    assert gy * (gy / 20 + 2) / 4 == pytest.approx(60.0)


def test_doses_in_percent_become_gy_for_a_search() -> None:
    sheet = _sheet(
        "PTV_60 | D0.03cc <= 110 % | variation = 115", "Rectum | max <= 90 %", "Rectum | mean <= 9 Gy"
    ).in_gy()
    assert [str(g) for g in sheet.goals] == [
        "PTV_60 D0.03cc <= 66 Gy",
        "Rectum max <= 54 Gy",
        "Rectum mean <= 9 Gy",
    ]
    assert sheet.goals[0].variation == pytest.approx(69.0)
    assert str(load_goals("head_neck_70_63_56").in_gy().goals) == str(load_goals("head_neck_70_63_56").goals)


def test_bounds_of_percent_goals_are_in_gy() -> None:
    goal = _sheet("PTV_50 | D2% <= 107 %").goals[0]
    bound = goal.bound({"PTV_60": 60.0, "PTV_50": 50.0})
    assert bound is not None and bound.level_gy == pytest.approx(53.5) and bound.volume == 2.0
    organ = replace(goal, structure="Rectum").bound({"PTV_60": 60.0, "PTV_50": 50.0})
    assert organ is not None and organ.level_gy == pytest.approx(64.2)
