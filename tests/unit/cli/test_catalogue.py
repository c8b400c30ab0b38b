"""The commands that show and copy what is shipped."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from small_case import small_case

from vmat_diffusion import cli
from vmat_diffusion.cli.catalogue import SHELVES
from vmat_diffusion.cli.goals_page import with_sources
from vmat_diffusion.dicom import write_case
from vmat_diffusion.dicom.names import load_table
from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.goals import goal_sheet_names, load_goals
from vmat_diffusion.machine import load_machine, machine_names
from vmat_diffusion.qa.limits import GateSettings, load_gate

LOAD = {"goals": load_goals, "machine": load_machine, "mapping": load_table, "gate": load_gate}
SHIPPED = [(kind, name) for kind, shelf in SHELVES.items() for name in shelf.all_names()]


def _run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["vmat-diffusion", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), *capsys.readouterr()


def test_the_shelves_hold_what_the_package_knows() -> None:
    assert SHELVES["goals"].all_names() == goal_sheet_names()
    assert SHELVES["machine"].all_names() == machine_names()


@pytest.mark.parametrize(("kind", "name"), SHIPPED)
def test_a_copy_can_be_used_and_replaces_nothing(
    kind: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / f"mine{SHELVES[kind].ending}"
    code, out, _ = _run(monkeypatch, capsys, kind, "copy", name, "--out", file)
    assert (code, out.strip()) == (0, str(file))
    assert LOAD[kind](file) is not None
    text = file.read_text(encoding="utf-8")
    code, out, _ = _run(monkeypatch, capsys, kind, "copy", name)
    assert code == 0 and out.rstrip("\n") == text.rstrip("\n")
    file.write_text("my own work")
    code, out, error = _run(monkeypatch, capsys, kind, "copy", name, "-o", file)
    assert code == 2 and not out and "mine" in error and "exists; name another file" in error
    assert file.read_text() == "my own work"


def test_the_only_one_needs_no_name_and_a_wrong_name_is_answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "gamma_pass_percent = 95.0" in _run(monkeypatch, capsys, "gate", "copy")[1]
    for wrong in ((), ("no_such",)):
        code, _, error = _run(monkeypatch, capsys, "goals", "copy", *wrong)
        assert code == 2 and "give one of" in error and "prostate_78" in error


@pytest.mark.parametrize("kind", SHELVES)
def test_lists_name_all_as_table_and_as_json(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = list(SHELVES[kind].all_names())
    shown = _run(monkeypatch, capsys, kind, "list")[1].splitlines()[2:]
    assert [line.split()[0] for line in shown] == names
    assert [row["name"] for row in json.loads(_run(monkeypatch, capsys, kind, "list", "--json")[1])] == names


def test_what_is_shown_is_what_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = json.loads(_run(monkeypatch, capsys, "gate", "show", "--json")[1])
    assert GateSettings(**limits) == load_gate()
    (tmp_path / "gate.toml").write_text("gamma_pass_percent = 90.0\n")
    assert "90.0" in _run(monkeypatch, capsys, "gate", "show", tmp_path / "gate.toml")[1]
    shown = json.loads(_run(monkeypatch, capsys, "mapping", "show", "--json")[1])
    assert shown["BODY"]["role"] == "body"
    assert "external" in _run(monkeypatch, capsys, "mapping", "show")[1]
    sheet = json.loads(_run(monkeypatch, capsys, "goals", "show", "prostate_78", "--json")[1])
    assert sheet["prescription_gy"] == dict(load_goals("prostate_78").prescription.target_gy)
    assert len(sheet["goals"]) == len(load_goals("prostate_78").goals)
    bulb = next(goal for goal in sheet["goals"] if goal["structure"] == "PenileBulb")
    assert (bulb["seen"], bulb["variation_seen"]) == ("transcription", "publication")
    assert "Roach" in bulb["variation_source"] and "Marks" in bulb["source"] and "95 %" in bulb["applies_to"]


def test_sources_are_shown_and_copied_with_every_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = _run(monkeypatch, capsys, "goals", "show", "head_neck_70_63_56")[1]
    for said in ("Current to 2026-11", "seen as", "publication; acceptable: template", "if not chemotherapy",
                 "Group parotids: at least 1", "Numbers seen as: publication", "BODY-PTVs"):  # fmt: skip
        assert said in shown, said
    assert "(delivery)" in shown and "leaf motion <= 3.75 mm/deg" in shown
    record = json.loads(_run(monkeypatch, capsys, "goals", "show", "head_neck_70_63_56", "--json")[1])
    assert [g["goal"] for g in record["delivery"]] == [
        str(g) for g in load_goals("head_neck_70_63_56").delivery
    ]
    assert record["delivery"][0]["seen"] == "chosen" and record["delivery"][0]["acceptable"] == "350"
    copied = _run(monkeypatch, capsys, "goals", "copy", "head_neck_70_63_56")[1]
    assert copied.count("\nseen = ") >= len(load_goals("head_neck_70_63_56").goals)
    (tmp_path / "old.toml").write_text(
        'title = "t"\nsite = "s"\nsource = "ours"\nfractions = 20\n[prescription_gy]\nPTV = 50.0\n'
        '[normalization]\nPTV = "D95% = 50 Gy"\n'
        '[[goals]]\nstructure = "PTV"\ngoal = "D95% >= 50 Gy"\npriority = 1\nsource = "ours"\n'
    )
    own = _run(monkeypatch, capsys, "goals", "show", tmp_path / "old.toml")[1]
    assert "not stated" in own and "format 1" in own


def test_the_page_of_sources_is_that_of_todays_sheets() -> None:
    """To write it anew: python -m vmat_diffusion.cli.goals_page docs/goals.md"""
    page = (Path(__file__).parents[3] / "docs" / "goals.md").read_text(encoding="utf-8")
    assert with_sources(page) == page
    for name in goal_sheet_names():
        sheet = load_goals(name)
        section = page.split(f"### {name}\n")[1].split("\n### ")[0]
        rows = [line for line in section.splitlines() if line.startswith("|")][2:]
        acceptable = [g for g in sheet.goals if g.variation is not None]
        assert len(rows) == 1 + len(sheet.groups) + len(sheet.goals) + len(acceptable)
        table = page.split("<!-- delivery -->")[1].split("<!-- /delivery -->")[0]
        (limits,) = [line for line in table.splitlines() if line.startswith(f"| `{name}` |")]
        assert all(f"{g.limit:g} ({g.variation:g})" in limits for g in sheet.delivery)
    with pytest.raises(InputError, match="needs the marks"):
        with_sources(page.replace("<!-- sources -->", ""))


_SHEET = """
format = 2
title = "t"
site = "any"
source = "test"
current_to = "2026-11"
fractions = 25
prescription_gy = { PTV = 50.0 }
normalization = { PTV = "D95% = 50 Gy" }
[[goals]]
structure = "PTV"
goal = "D98% >= 47.5 Gy"
priority = 1
source = "test"
seen = "practice"
[[goals]]
structure = "Core"
goal = "GOAL"
priority = 2
source = "test"
seen = "practice"
"""


def test_a_sheet_is_checked_alone_and_for_a_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 without a finding, 1 with one, 2 for what cannot be read; one line each."""
    case = small_case()
    write_case(tmp_path / "case", case)
    file = tmp_path / "mine.toml"
    file.write_text(_SHEET.replace("GOAL", "CV10Gy >= 15 cc"))
    code, out, _ = _run(monkeypatch, capsys, "goals", "check", file)
    assert (code, out) == (0, "mine: 2 goals, 0 to settle, 0 remarks\n")
    code, out, _ = _run(monkeypatch, capsys, "goals", "check", file, tmp_path / "case")
    assert code == 1 and len(out.splitlines()) == 2
    assert out.startswith("FINDING conflict: Core CV10Gy >= 15 cc cannot be met beside the volume of Core")
    file.write_text(_SHEET.replace("GOAL", "CV10Gy >= 10 cc"))
    code, out, _ = _run(monkeypatch, capsys, "goals", "check", file, tmp_path / "case", "--json")
    assert code == 0 and json.loads(out) == {"sheet": "mine", "of_weight": 0, "findings": []}
    file.write_text(_SHEET.replace("GOAL", "max <= 5 Gy").replace("Core", "Corre"))
    code, out, _ = _run(monkeypatch, capsys, "goals", "check", file)
    assert code == 1 and "no table knows Corre; write Core" in out
    for wrong in (("no_such",), (file, tmp_path / "nowhere")):
        code, out, error = _run(monkeypatch, capsys, "goals", "check", *wrong)
        assert code == 2 and not out and error.startswith("Error: ")
