"""The command line: what goes to stdout, what to stderr, and how it ends."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from small_case import StandIn, open_arc

from vmat_diffusion import __version__, cli
from vmat_diffusion.workflow import plan_case


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


Command = Callable[..., Ended]


def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Stands in for optimiser and independent engine in the runs of the command line."""
    made = StandIn()
    monkeypatch.setattr("vmat_diffusion.workflow.plan_case", partial(plan_case, tools=made.tools))
    return made


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process."""
    monkeypatch.setenv("VMAT_DEBUG", "")  # set, so that what --debug makes of it is undone

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["vmat-diffusion", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        # --debug sets the variable for the process; the next command starts without it.
        monkeypatch.setenv("VMAT_DEBUG", "")
        return Ended(0 if code is None else int(code), *capsys.readouterr())

    return run


@pytest.fixture
def planned(
    case_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> tuple[Path, Ended]:
    """A results folder made with the stand-in optimiser, and how its command ended."""
    stand_in(monkeypatch)()
    ended = command("plan", case_folder, "--goals", "tg119_cshape_easy", "--out", tmp_path / "out", "--json")
    return tmp_path / "out", ended


def test_version(command: Command) -> None:
    assert command("--version") == Ended(0, f"{__version__}\n", "")


def test_plan_prints_one_json_object_and_nothing_else_on_stdout(planned: tuple[Path, Ended]) -> None:
    out, ended = planned
    assert ended.code == 0
    summary = json.loads(ended.out)
    assert ended.out.count("\n") == 1
    assert summary["violations"] == []
    assert [g["status"] for g in summary["goals"]] == ["pass", "pass", "fail"]
    assert all(Path(f).parent == out for f in summary["files"])
    assert "read" in ended.err


def test_what_libraries_print_does_not_reach_stdout(
    case_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    stand_in(monkeypatch)(noise="chatter of a library")
    ended = command("plan", case_folder, "--goals", "tg119_cshape_easy", "--out", tmp_path / "o", "--json")
    json.loads(ended.out)
    assert "chatter of a library" in ended.err


def test_plan_without_json_prints_goals_and_files(
    case_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    stand_in(monkeypatch)()
    ended = command("plan", case_folder, "--goals", "tg119_cshape_easy", "--out", tmp_path / "o")
    assert ended.code == 0
    assert "D95% >= 50 Gy" in ended.out
    assert "FAIL" in ended.out
    assert str(tmp_path / "o" / "RP.dcm") in ended.out
    assert "no violations" in ended.out


def test_plan_ends_with_1_where_the_machine_cannot_deliver(
    case_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    arc = open_arc().arcs[0]
    stand_in(monkeypatch)(replace(open_arc(), arcs=(replace(arc, mu=np.full(18, 1e-4)),)))
    ended = command("plan", case_folder, "--goals", "tg119_cshape_easy", "--out", tmp_path / "o")
    assert ended.code == 1
    assert "NOT DELIVERABLE" in ended.out
    assert "MU/deg" in ended.out


def test_plan_refuses_a_folder_in_use(
    planned: tuple[Path, Ended], case_folder: Path, command: Command
) -> None:
    out, _ = planned
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    ended = command("plan", case_folder, "--goals", "tg119_cshape_easy", "--out", out)
    assert ended.code == 2
    assert ended.out == ""
    assert ended.err.startswith("Error: ")
    assert "--overwrite" in ended.err
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["plan", "NOWHERE", "--goals", "tg119_cshape_easy", "--out", "OUT"], "NOWHERE"),
        (["plan", "CASE", "--goals", "no_such_sheet", "--out", "OUT"], "no_such_sheet"),
        (["plan", "CASE", "--goals", "prostate_78", "--out", "OUT"], "PTV_78"),
        (["plan", "CASE", "--goals", "tg119_cshape_easy", "--out", "OUT", "--machine", "m"], "'m'"),
        (["plan", "CASE", "--goals", "tg119_cshape_easy", "--out", "OUT", "--grid-mm", "90"], "grid-mm"),
        (["plan", "CASE", "--goals", "tg119_cshape_easy", "--out", "OUT", "--prior", "magic"], "prior"),
        (["inspect", "NOWHERE"], "does not exist"),
        (["check", "NOWHERE"], "does not exist"),
        (["check", "TEXT"], "TEXT"),
        (["dvh", "CASE", "NOWHERE"], "does not exist"),
        (["dvh", "CASE", "TEXT"], "TEXT"),
        (["phantom", "no_such_phantom", "--out", "OUT"], "tg119_cshape"),
        (["phantom", "no_such_phantom", "--out", "OUT"], "head_neck"),
        (["phantom", "thorax", "--seed", "1", "--out", "OUT"], "--seed"),
        (["phantom", "lung", "--seed", "-1", "--out", "OUT"], "negative"),
        (["machine", "show", "no_such_machine"], "generic_6mv"),
        (["goals", "show", "no_such_sheet"], "tg119_cshape_easy"),
    ],
)
def test_bad_input_ends_with_one_sentence_and_2(
    arguments: list[str], named: str, case_folder: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "TEXT").write_text("this is no DICOM file")
    places = {"CASE": case_folder, **{n: tmp_path / n for n in ("NOWHERE", "TEXT", "OUT")}}
    ended = command(*(places.get(a, a) for a in arguments))
    assert ended.code == 2
    assert ended.out == ""
    errors = [line for line in ended.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert named in errors[0]
    assert "Traceback" not in ended.err
    assert [f.name for f in tmp_path.iterdir()] == ["TEXT"]


def test_a_missing_option_is_named_and_ends_with_2(case_folder: Path, command: Command) -> None:
    ended = command("plan", case_folder)
    assert ended.code == 2
    assert "--goals" in ended.err


def test_a_defect_ends_with_3_and_a_traceback_only_on_demand(
    case_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    stand_in(monkeypatch)(failing=ZeroDivisionError("a defect"))
    arguments = ("plan", case_folder, "--goals", "tg119_cshape_easy", "--out", tmp_path / "o")
    ended = command(*arguments)
    assert ended.code == 3
    assert "report" in ended.err
    assert "Traceback" not in ended.err
    assert "Traceback" in command("--debug", *arguments).err
    assert not list(tmp_path.iterdir())


def test_an_interrupt_outside_the_optimiser_leaves_nothing(
    case_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    stand_in(monkeypatch)(failing=KeyboardInterrupt())
    ended = command("plan", case_folder, "--goals", "tg119_cshape_easy", "--out", tmp_path / "o")
    assert ended.code == 130
    assert ended.err.endswith("Error: interrupted; nothing unfinished was kept\n")
    assert "Traceback" not in ended.err
    assert not list(tmp_path.iterdir())


def test_a_termination_leaves_nothing_and_the_signal_as_it_was(
    case_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    stand_in(monkeypatch)(change=lambda made, call: signal.raise_signal(signal.SIGTERM))
    ended = command("plan", case_folder, "--goals", "tg119_cshape_easy", "--out", tmp_path / "new" / "o")
    assert ended.code == 143
    assert ended.err.endswith("Error: terminated; nothing unfinished was kept\n")
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_check_says_whether_a_plan_can_be_delivered(
    planned: tuple[Path, Ended], tmp_path: Path, command: Command
) -> None:
    out, _ = planned
    good = command("check", out / "RP.dcm", "--machine", "generic_6mv", "--json")
    assert good.code == 0
    assert json.loads(good.out)["violations"] == []
    assert json.loads(good.out)["mu"] == pytest.approx(72.0)
    import vmat_diffusion.machine as machines

    text = (Path(machines.__file__).parent / "machines" / "generic_6mv.toml").read_text()
    assert "mu_per_deg_max = { value = 20.0" in text
    weak = tmp_path / "weak.toml"
    weak.write_text(text.replace("mu_per_deg_max = { value = 20.0", "mu_per_deg_max = { value = 1.5"))
    bad = command("check", out / "RP.dcm", "--machine", weak)
    assert bad.code == 1
    assert "above the maximum 1.5 MU/deg" in bad.out


def test_check_writes_trajectories_once(
    planned: tuple[Path, Ended], tmp_path: Path, command: Command
) -> None:
    out, _ = planned
    asked = ("check", out / "RP.dcm", "--trajectory", "csv", "--out", tmp_path / "t", "--json")
    found = command(*asked)
    assert found.code == 0 and [f.name for f in (tmp_path / "t").iterdir()] == ["trajectory_1.csv"]
    record = json.loads(found.out)
    assert record["arc_delivery_s"] == [record["delivery_s"]]
    assert 0 < record["complexity"]["mcs"] <= 1 and record["outside_published"] == []
    # Of the highest dose that the file prescribes.
    assert record["complexity"]["mu_per_gy"] == pytest.approx(36.0)
    told = command("check", out / "RP.dcm").out
    assert "MU per Gy of the prescription" in told and "at most 400 MU/Gy" in told
    before = (tmp_path / "t" / "trajectory_1.csv").read_bytes()
    again = command(*asked)
    assert again.code == 2 and "trajectory_1.csv exists; name another folder" in again.err
    assert (tmp_path / "t" / "trajectory_1.csv").read_bytes() == before
    for wrong, named in (
        (("--trajectory", "csv"), "belong together"),
        (("--out", tmp_path / "u"), "belong together"),
        (("--trajectory", "xml", "--out", tmp_path / "u"), "xml is not known; choose csv"),
    ):
        ended = command("check", out / "RP.dcm", *wrong)
        assert ended.code == 2 and named in ended.err
    assert not (tmp_path / "u").exists()


def test_dvh_measures_every_structure(
    planned: tuple[Path, Ended], case_folder: Path, command: Command
) -> None:
    out, _ = planned
    ended = command("dvh", case_folder, out / "RD.dcm", "--goals", "tg119_cshape_easy", "--json")
    assert ended.code == 0
    found = json.loads(ended.out)
    rows = {row["structure"]: row for row in found["structures"]}
    assert set(rows) == {"BODY", "PTV", "Core"}
    # 5 x 6 x 6 voxels of 5 x 5 x 6 mm; contours of voxel borders rasterise to the same voxels.
    assert rows["PTV"]["volume_cc"] == pytest.approx(180 * 0.15)
    assert rows["PTV"]["d95_gy"] == pytest.approx(52.0, abs=1e-3)
    assert [g["status"] for g in found["goals"]] == ["pass", "pass", "fail"]
    text = command("dvh", case_folder, out / "RD.dcm").out
    assert "PTV" in text
    assert "52.00" in text


def test_inspect_shows_the_structures(case_folder: Path, command: Command) -> None:
    ended = command("inspect", case_folder)
    assert ended.code == 0
    assert "PTV (target)" in ended.out
    assert {s["name"] for s in json.loads(command("inspect", case_folder, "--json").out)["structures"]} == {
        "BODY", "PTV", "Core",
    }  # fmt: skip


def test_machine_show_gives_every_number_its_source(command: Command) -> None:
    from vmat_diffusion.machine import load_machine

    shown = json.loads(command("machine", "show", "generic_6mv", "--json").out)
    sources = load_machine("generic_6mv").sources
    assert {key: shown[key]["source"] for key in sources} == dict(sources)
    assert shown["limits.gantry_speed_deg_s"]["value"] == 6.0
    assert len(shown["mlc.layers[0].boundaries_mm"]["value"]) == 61
    assert "generic_6mv" in command("machine", "list").out


def test_goals_are_listed_and_shown(command: Command) -> None:
    assert "head_neck_70_63_56" in command("goals", "list").out
    shown = command("goals", "show", "head_neck_70_63_56").out
    assert "D95% >= 70 Gy" in shown
    assert "35 fractions" in shown


def test_phantom_writes_a_readable_case(tmp_path: Path, command: Command) -> None:
    ended = command("phantom", "water_cylinder", "--out", tmp_path / "p")
    assert ended.code == 0
    assert all(Path(line).is_file() for line in ended.out.splitlines())
    assert command("inspect", tmp_path / "p").code == 0
    again = command("phantom", "water_cylinder", "--out", tmp_path / "p")
    assert again.code == 2
    assert "not empty" in again.err


@pytest.mark.slow
def test_phantom_writes_a_synthetic_patient(tmp_path: Path, command: Command) -> None:
    assert command("phantom", "prostate", "--seed", "7", "--out", tmp_path / "p").code == 0
    found = command("inspect", tmp_path / "p")
    assert found.code == 0
    assert "Femur_Head_L" in found.out


def test_other_vendors_plans_are_checked_or_refused(shared_data: Path, command: Command) -> None:
    files = sorted((shared_data / "rtplans").glob("*.dcm"))
    assert files
    for file in files:
        ended = command("check", file, "--machine", "generic_6mv")
        assert ended.code in (1, 2), ended.err  # none of them is for this machine
        assert "Traceback" not in ended.err
        assert ended.out or ended.err.startswith("Error: ")


def test_odd_inputs_are_described_or_refused(shared_data: Path, command: Command) -> None:
    folders = sorted(f for f in (shared_data / "odd_inputs").iterdir() if f.is_dir())
    assert folders
    for folder in folders:
        ended = command("inspect", folder)
        assert ended.code in (0, 2), ended.err
        assert "Traceback" not in ended.err
        assert ended.out or ended.err.startswith("Error: ")


def test_plan_ends_with_1_where_the_gate_does_not_pass(
    case_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    stand_in(monkeypatch)(engine=(1.3,))
    asked = ("--goals", "tg119_cshape_easy", "--out", tmp_path / "o")
    ended = command("plan", case_folder, *asked)
    assert ended.code == 1
    assert "FAILED: " in ended.out and "mean dose of PTV" in ended.out
    assert "RP.dcm" not in ended.out and not (tmp_path / "o" / "RP.dcm").exists()
    for option in (("--no-gate",), ("--check", "none")):
        refused = command("plan", case_folder, *asked, *option)
        assert refused.code == 2 and "No such option" in refused.err


def test_gamma_compares_two_dose_files(planned: tuple[Path, Ended], tmp_path: Path, command: Command) -> None:
    out, _ = planned
    ended = command("gamma", out / "RD.dcm", out / "RD.dcm", "--dose-percent", 2, "--local", "--json")
    assert ended.code == 0
    found = json.loads(ended.out)
    assert found["pass_percent"] == 100.0 and found["local"] is True and found["dose_percent"] == 2.0
    assert "100.00 % of" in command("gamma", out / "RD.dcm", out / "RD.dcm").out
    missing = command("gamma", out / "RD.dcm", tmp_path / "none.dcm")
    assert missing.code == 2 and "does not exist" in missing.err
    wrong = command("gamma", out / "RD.dcm", out / "RD.dcm", "--distance-mm", "-1")
    assert wrong.code == 2 and "distance criterion" in wrong.err


def test_dose_and_qa_of_a_plan_file(
    planned: tuple[Path, Ended], case_folder: Path, tmp_path: Path, command: Command
) -> None:
    """The fast engine checks the stand-in's uniform dose, which is none of this plan: it must not pass."""
    out, _ = planned
    options = (out / "RP.dcm", case_folder, "--engine", "pencil-beam", "--grid-mm", 3)
    made = command("dose", *options, "--out", tmp_path / "RD.dcm", "--json")
    assert made.code == 0 and json.loads(made.out)["max_gy"] > 0
    assert command("dose", *options, "--out", tmp_path / "RD.dcm").code == 2
    ended = command("qa", *options, "--dose", out / "RD.dcm", "--out", tmp_path / "qa", "--json")
    verdict = json.loads(ended.out)["verdict"]
    assert ended.code == 1 and verdict["passed"] is False
    failed = {c["name"] for c in verdict["checks"] if not c["passed"]}
    assert {"gamma 3 %/3 mm", "mean dose of PTV"} <= failed
    assert (tmp_path / "qa" / "report.html").is_file()
    # The dose that the same engine computed for this plan agrees with it, whatever it is worth.
    good = command("qa", *options, "--dose", tmp_path / "RD.dcm", "--out", tmp_path / "qa2")
    assert good.code == 0 and "PASSED" in good.out
