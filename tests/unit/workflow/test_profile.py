"""A site's profile: what it says, what goes before it, what is refused, and where each value came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from small_case import StandIn
from typer.testing import CliRunner

from vmat_diffusion.cli import main
from vmat_diffusion.cli.options import fields_of, has_profile
from vmat_diffusion.cli.program import COMMANDS, app, function_of
from vmat_diffusion.errors import InputError
from vmat_diffusion.workflow import plan_case, plan_settings
from vmat_diffusion.workflow.profile import SAID, load_profile

SHEETS = 'prostate = "prostate_78"\nbreast = "own/breast.toml"\n'


def written(folder: Path, text: str) -> Path:
    file = folder / "site.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_files_are_relative_to_the_profile_and_shipped_names_stay(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        'title = "North"\nmachine = "generic_6mv"\nct_table = "own/ct.csv"\nmapping = "/far/names.json"\n'
        f"[goals]\n{SHEETS}",
    )
    found = load_profile(file)
    assert (found.title, found.machine, found.gate) == ("North", "generic_6mv", None)
    assert (found.ct_table, found.mapping) == (str(tmp_path / "own/ct.csv"), "/far/names.json")
    assert found.goals == {"prostate": "prostate_78", "breast": str(tmp_path / "own/breast.toml")}
    assert found.code == load_profile(file).code and len(found.code) == 16


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('machin = "x"', "machin is not known; write machine"),
        ('xyzzy = "x"', "xyzzy is not known; known are title, machine, ct_table, mapping, gate, goals"),
        ('code = "x"', "code is not known"),
        ("machine = 3", "machine must be a text"),
        ('goals = "prostate_78"', "goals must be a table of sites"),
        ("[goals]\nprostate = 3", "goals.prostate must be the name or file of a sheet"),
        ("machine = ", "is no TOML"),
    ],
)
def test_a_wrong_profile_is_one_sentence_and_exit_code_2(
    text: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = written(tmp_path, text)
    words = ["vmat-diffusion", "plan", "case", "-o", "out", "--goals", "x", "--profile", str(file)]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stopped:
        main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and sentence in error and error.count("\n") == 1


def test_a_profile_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist; give a file such as `setup` writes"):
        load_profile(tmp_path / "none.toml")


def test_what_is_given_goes_first_then_the_profile_then_the_sheet(tmp_path: Path) -> None:
    file = written(
        tmp_path, f'machine = "generic_6fff"\nct_table = "ct.csv"\nmapping = "m.json"\n[goals]\n{SHEETS}'
    )
    asked = plan_settings(profile=file, goals="prostate", machine="generic_6mv", seed=4)
    assert (asked.goals, asked.machine, asked.seed) == ("prostate_78", "generic_6mv", 4)
    assert asked.ct_table == str(tmp_path / "ct.csv") and asked.gate is None
    origins = asked.origins
    assert origins is not None and origins.profile == load_profile(file).code
    of = origins.of
    assert (of["goals"], of["machine"], of["ct_table"], of["gate"]) == (
        "profile",
        "caller",
        "profile",
        "default",
    )
    own = plan_settings(profile=file, goals="prostate_60_20", arcs=1)
    assert (own.goals, own.machine) == ("prostate_60_20", "generic_6fff")
    sheet = plan_settings(goals="spine_sbrt_24_2").origins
    assert sheet is not None and "goal sheet" in sheet.of.values() and sheet.profile == ""


def test_one_site_needs_no_goals_and_several_are_named(tmp_path: Path) -> None:
    only = written(tmp_path, '[goals]\nprostate = "prostate_78"\n')
    assert plan_settings(profile=only).goals == "prostate_78"
    with pytest.raises(InputError, match="goal sheets for prostate, breast; give --goals with one of these"):
        plan_settings(profile=written(tmp_path, f"[goals]\n{SHEETS}"))


def test_every_command_with_such_an_option_takes_a_profile() -> None:
    """No command declares it: the fields that a profile may say are marked where they are declared."""
    for path in COMMANDS:
        kind = function_of(path).__annotations__["options"]
        kind = getattr(__import__(function_of(path).__module__, fromlist=[kind]), kind)
        names = {f.name for f in fields_of(kind)} & set(SAID)
        marked = {f.name for f in fields_of(kind) if f.mark.profile}
        assert marked <= set(SAID), path
        if path == "setup":
            assert not has_profile(kind)
        elif names - {"goals"}:
            assert has_profile(kind) and names - marked <= {"goals"}, path


def test_a_run_records_where_values_came_from(case_folder: Path, tmp_path: Path, optimiser: StandIn) -> None:
    (tmp_path / "ct.csv").write_text("hu,density_g_cm3\n-1000,0\n0,1\n3000,2.5\n")
    (tmp_path / "gate.toml").write_text("gamma_pass_percent = 96.0\n")
    file = written(
        tmp_path,
        'title = "Nordklinik"\nct_table = "ct.csv"\ngate = "gate.toml"\n'
        '[goals]\nwater = "tg119_cshape_easy"\n',
    )
    optimiser()
    asked = plan_settings(profile=file, seed=3, identity=True)
    run = plan_case(case_folder, tmp_path / "out", asked, tools=optimiser.tools)
    record: dict[str, Any] = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["profile"] == load_profile(file).code
    assert {k: record["origins"][k] for k in ("ct_table", "gate", "goals", "seed", "machine")} == {
        **dict.fromkeys(("ct_table", "gate", "goals"), "profile"),
        "seed": "caller",
        "machine": "default",
    }
    assert "origins" not in record["settings"] and "Nordklinik" not in json.dumps(record)
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"Nordklinik ({record['profile']})" in page
    assert "profile: goals, gate, ct_table" in page
    assert "caller: identity, seed" in page and "gamma_pass_percent 96 (95)" in page
    assert "-1000: 0; 0: 1; 3000: 2.5" in page
    patient = run.task.case.id  # the phantom's patient is called after its case
    assert "Patient ID" in page and "not named here" not in page and patient
    from vmat_diffusion.dicom import instance_uid

    assert f"Plan UID {instance_uid(tmp_path / 'out' / 'RP.dcm')}" in page.replace("\\", "")


def test_a_name_that_is_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--identity names the patient, whom --shareable leaves out"):
        plan_settings(goals="tg119_cshape_easy", identity=True, shareable=True)


def test_setup_writes_what_it_is_told_and_refuses_what_is_wrong(tmp_path: Path) -> None:
    out = tmp_path / "site.toml"
    (tmp_path / "own").mkdir()
    ct = tmp_path / "own" / "ct.csv"
    ct.write_text("hu,density_g_cm3\n-1000,0\n0,1\n")
    given = ["setup", "--title", 'The "North"', "--machine", "generic_6fff", "--ct-table", str(ct)]
    done = CliRunner().invoke(app, [*given, "--sheet", "lung=lung_60", "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert 'ct_table = "own/ct.csv"' in out.read_text()
    found = load_profile(out)
    assert (found.title, found.machine, found.goals) == ('The "North"', "generic_6fff", {"lung": "lung_60"})
    assert found.ct_table == str(ct)
    for wrong, sentence in (
        (["--machine", "nosuch"], "machine 'nosuch' is not known"),
        (["--machine", "generic_halcyon"], "has a geometry but no beam model"),
        (["--sheet", "lung"], "is no site with its sheet"),
        (["--sheet", "lung_60=lung_60"], "has the name of a goal sheet"),
        (["--sheet", "lung=nosuch"], "goal sheet 'nosuch' is not known"),
    ):
        refused = CliRunner().invoke(app, ["setup", *wrong, "-o", str(tmp_path / "other.toml")])
        assert sentence in str(refused.exception) and not (tmp_path / "other.toml").exists()
    again = CliRunner().invoke(app, [*given, "-o", str(out)])
    assert "exists; name another file or pass --overwrite" in str(again.exception)


def test_a_sheet_is_checked_by_its_site(tmp_path: Path) -> None:
    file = written(tmp_path, '[goals]\nbrust = "breast_left_26_5"\nprostate = "prostate_78"\n')
    by_site, by_name = (
        CliRunner().invoke(app, ["goals", "check", *words, "--json"])
        for words in (["prostate", "--profile", str(file)], ["prostate_78"])
    )
    assert by_site.output == by_name.output and '"sheet": "prostate_78"' in by_site.output
    unknown = CliRunner().invoke(app, ["goals", "check", "prostate"])
    assert "goal sheet 'prostate' is not known" in str(unknown.exception)


def test_setup_asks_where_nothing_is_given(tmp_path: Path) -> None:
    out = tmp_path / "site.toml"
    answers = "North\ngeneric_6mv\n\n\n\nprostate=prostate_78\nlung=lung_60\n\n"
    done = CliRunner().invoke(app, ["setup", "-o", str(out)], input=answers)
    assert done.exit_code == 0, done.output
    found = load_profile(out)
    assert (found.title, found.machine, found.ct_table) == ("North", "generic_6mv", None)
    assert found.goals == {"prostate": "prostate_78", "lung": "lung_60"}
