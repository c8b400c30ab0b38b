"""A sheet of format 2 through plan, dvh and qa: groups, conditions, made structures, defaults, EQD2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_case import UNIFORM_GY, StandIn

from vmat_diffusion.cli.display import goals_text
from vmat_diffusion.errors import GoalError, InputError
from vmat_diffusion.workflow import dose_statistics, plan_case, plan_settings
from vmat_diffusion.workflow.planning.request import sheet_defaults

SHEET = """
format = 2
title = "Test"
site = "phantom"
source = "here"
fractions = 25
current_to = "2026-11"
conditions = { chemo = "concurrent chemotherapy" }

[prescription_gy]
PTV = 50.0

[normalization]
PTV = "D95% = 100 %"

[structures]
Core_PRV = "Core + 6 mm"

[plan]
arcs = 3
collimator_deg = [10, 350, 45]

[groups.either]
at_least = 1
priority = 1
source = "practice of the house"
seen = "practice"

[[goals]]
structure = "PTV"
goal = "D95% >= 100 %"
priority = 1
source = "here"
seen = "publication"

[[goals]]
structure = "Core"
goal = "mean <= 60 Gy"
group = "either"
source = "here"
seen = "template"
applies_to = "both cores"

[[goals]]
structure = "Core_PRV"
goal = "max <= 40 Gy"
group = "either"
source = ""

[[goals]]
structure = "BODY - PTV"
goal = "max <= 55 Gy"
priority = 2
if = "chemo"
source = "here"
seen = "recalled"
"""


@pytest.fixture
def sheet(tmp_path: Path) -> str:
    file = tmp_path / "mine.toml"
    file.write_text(SHEET)
    return str(file)


def test_a_run_shows_groups_conditions_sources_and_made_structures(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, sheet: str
) -> None:
    optimiser()
    settings = plan_settings(goals=sheet)
    run = plan_case(case_folder, tmp_path / "out", settings, tools=optimiser.tools)
    assert run.passed  # the PRV gets 52 Gy, but one of the two goals of its group is enough
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["settings"]["arcs"] == 3 and record["settings"]["collimator_deg"] == [10, 350, 45]
    assert "Core_PRV made as Core + 6 mm" in record["inputs"]["steps"]
    by_name = {g["structure"]: g for g in record["goals"]}
    prv = by_name["Core_PRV"]
    assert (prv["status"], prv["missed"], prv["excused"], prv["group"]) == ("fail", False, True, "either")
    assert by_name["Core"]["seen"] == "template" and by_name["Core"]["applies_to"] == "both cores"
    assert record["groups"][0] | {"of": []} == {
        "group": "either", "at_least": 1, "every": False, "met": 1, "evaluated": 2, "of": [],
        "priority": 1, "status": "pass", "missed": False,
        "source": "practice of the house", "seen": "practice",
    }  # fmt: skip
    assert record["sheet"]["left_out"] == [{"goal": "BODY - PTV max <= 55 Gy", "condition": "chemo"}]
    (required,) = (c for c in record["verdict"]["checks"] if c["name"] == "required goals")
    assert required["passed"] and "all 2 required goals" in required["why"]
    page = (tmp_path / "out" / "report.html").read_text()
    for said in (
        "fails, group met",
        "at least 1 of Core mean ≤ 60 Gy, Core_PRV max ≤ 40 Gy",
        "1 of 2 met",
        "made as Core + 6 mm",
        "here (a clinic&#39;s template); applies to: both cores",
        "source not stated",
        "Left out, as concurrent chemotherapy does not hold (--with chemo): BODY - PTV max ≤ 55 Gy.",
        "Sources not seen in print, of 3 goals: template 1, no source 1.",
        "The sheet is current to 2026-11.",
        "All required goals met",
    ):
        assert said in page, said
    text = goals_text(run.results, run.task.sheet)
    assert "excused" in text and "Group either, priority 1: pass, 1 of 2 met" in text
    assert (
        "Left out, as concurrent chemotherapy does not hold" in text
        and "Warning: no source is stated" in text
    )


def test_a_group_that_is_missed_keeps_the_plan_back_and_is_named_once(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, sheet: str
) -> None:
    optimiser()
    Path(sheet).write_text(SHEET.replace("mean <= 60 Gy", "mean <= 20 Gy"))
    run = plan_case(case_folder, tmp_path / "out", plan_settings(goals=sheet), tools=optimiser.tools)
    assert not run.passed and not (tmp_path / "out" / "RP.dcm").exists()
    (why,) = (c.why for c in run.verdict.checks if c.name == "required goals")
    assert "at least 1 of either: Core mean <= 20 Gy (52.00 Gy), Core_PRV max <= 40 Gy (52.00 Gy)" in why
    assert "1 required goal missed" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('structure = "Core"', 'structure = "Core - GTV"', ""),
        (
            'structure = "PTV"',
            'structure = "Core - GTV"',
            "GTV is not contoured, so Core - GTV cannot be made",
        ),
    ],
)
def test_a_must_on_what_cannot_be_made_is_refused_before_the_search(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, sheet: str, old: str, new: str, why: str
) -> None:
    calls = optimiser()
    Path(sheet).write_text(SHEET.replace(old, new).replace("D95% >= 100 %", "mean >= 1 Gy"))
    settings = plan_settings(goals=sheet)
    if why:
        with pytest.raises(GoalError, match=why):
            plan_case(case_folder, tmp_path / "out", settings, tools=optimiser.tools)
        assert not calls
    else:  # the other goal of its group is there
        plan_case(case_folder, tmp_path / "out", settings, tools=optimiser.tools)
        assert calls


def test_conditions_are_turned_on_by_name(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, sheet: str
) -> None:
    optimiser()
    settings = plan_settings(goals=sheet, conditions=("chemo",))
    run = plan_case(case_folder, tmp_path / "out", settings, tools=optimiser.tools)
    assert [r.goal.structure for r in run.results] == ["PTV", "Core", "Core_PRV", "BODY - PTV"]
    assert "Holds: concurrent chemotherapy" in goals_text(run.results, run.task.sheet)
    with pytest.raises(GoalError, match="'age' is not known; it has chemo"):
        plan_case(
            case_folder,
            tmp_path / "b",
            plan_settings(goals=sheet, conditions=("age",)),
            tools=optimiser.tools,
        )


def test_dvh_gives_physical_dose_and_eqd2(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, sheet: str
) -> None:
    optimiser()
    run = plan_case(case_folder, tmp_path / "out", plan_settings(goals=sheet), tools=optimiser.tools)
    dose = next(file for file in run.files if file.name == "RD.dcm")
    found = dose_statistics(case_folder, dose, goals=sheet, eqd2=3.0)
    (core,) = (row for row in found.rows() if row["structure"] == "Core")
    assert core["mean_gy"] == pytest.approx(UNIFORM_GY, rel=1e-4)
    expected = UNIFORM_GY * (UNIFORM_GY / 25 + 3) / 5
    assert core["eqd2_mean_gy"] == core["eqd2_d95_gy"] == pytest.approx(expected, rel=1e-4)
    assert found.summary()["eqd2"] == {"alpha_beta_gy": 3.0, "fractions": 25}
    assert {r["structure"] for r in found.rows()} >= {"Core_PRV"}
    plain = dose_statistics(case_folder, dose, goals=sheet)
    assert "eqd2_mean_gy" not in next(plain.rows())
    with pytest.raises(InputError, match="give --eqd2-fractions or --goals"):
        dose_statistics(case_folder, dose, eqd2=3.0)
    with pytest.raises(InputError, match="no effect without --eqd2"):
        dose_statistics(case_folder, dose, eqd2_fractions=25)


def test_what_is_given_goes_before_the_sheet(sheet: str) -> None:
    assert sheet_defaults({"goals": sheet}) == {"arcs": 3, "collimator_deg": [10, 350, 45]}
    assert plan_settings(goals=sheet).arcs == 3
    assert plan_settings(goals=sheet, arcs=2).arcs == 2  # and its angles are for three
    assert plan_settings(goals=sheet, arcs=2).collimator_deg is None
    assert plan_settings(goals=sheet, collimator_deg=(5.0,)).collimator_deg == (5.0,)
    assert sheet_defaults({"goals": sheet, "improve": "RP.dcm"}) == {}
    assert sheet_defaults({"goals": "tg119_cshape_easy"}).keys() <= {"arcs", "span", "grid_mm"}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("arks = 3", "plan may not say arks"),
        ("arcs = 30", "plan: --arcs 30"),
        ('gate = "x"', "may not say gate"),
    ],
)
def test_a_wrong_default_of_a_sheet_is_refused(sheet: str, line: str, why: str) -> None:
    Path(sheet).write_text(SHEET.replace("arcs = 3\n", line + "\n"))
    with pytest.raises(GoalError, match=why):
        plan_settings(goals=sheet)


def test_the_command_takes_the_sheets_defaults(
    case_folder: Path, tmp_path: Path, sheet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from vmat_diffusion.cli.program import app

    asked: list[object] = []

    def stop(folder: Path, out: Path, settings: object, **rest: object) -> None:
        asked.append(settings)
        raise InputError("stopped")

    monkeypatch.setattr("vmat_diffusion.workflow.plan_case", stop)
    command = ["plan", str(case_folder), "--goals", sheet, "-o", str(tmp_path / "o")]
    for more, arcs in (([], 3), (["--arcs", "2"], 2)):
        CliRunner().invoke(app, [*command, *more, "--with", "chemo"])
        settings = asked.pop()
        assert settings.arcs == arcs and settings.conditions == ("chemo",)  # type: ignore[attr-defined]
