"""A check that was inconclusive goes on: the same dose, a verdict, and what lies in the folder of the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from small_case import StandIn, open_arc

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dicom import read_dose, read_plan, write_case
from vmat_diffusion.dose.engines import DoseEngine
from vmat_diffusion.dose.monte_carlo import MonteCarlo
from vmat_diffusion.dose.pencil_beam import PencilBeam
from vmat_diffusion.errors import CaseError, PlanError
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.workflow import PlanningTools, plan_case, plan_settings
from vmat_diffusion.workflow.planning.check_again import check_again
from vmat_diffusion.workflow.planning.open_check import CHECK_FOLDER, Keep, read_open_check
from vmat_diffusion.workflow.settings import PlanSettings

SHEET = """
title = "no musts"
site = "phantom"
source = "x"
fractions = 25
[prescription_gy]
PTV = 50.0
[normalization]
PTV = "D95% = 50 Gy"
[[goals]]
structure = "PTV"
goal = "D95% >= 1 Gy"
source = "x"
priority = 2
"""
MACHINE = load_machine("generic_6mv")


def with_its_dose(made: SimpleNamespace, call: int) -> None:
    """The stand-in's plan gets the fast engine's dose."""
    from small_case import small_case

    dose = PencilBeam(MACHINE)(made.plan, small_case(), made.dose.grid)
    made.dose = Dose(dose.grid, dose.gy, provenance={"engine": "pencil-beam"})


class Checked:
    """Monte Carlo as the engine of a run; keeps its doses before their parts are dropped."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds, self.doses = seconds, []  # type: ignore[var-annotated]

    def __call__(self, machine: Machine, settings: PlanSettings, correction: int) -> DoseEngine:
        limit = self.seconds if settings.check_minutes is None else 60.0 * settings.check_minutes
        return _Noting(MonteCarlo(machine, settings.uncertainty, limit, seed=settings.seed), self.doses)


class _Noting:
    def __init__(self, engine: DoseEngine, doses: list[Dose]) -> None:
        self.engine, self.doses = engine, doses

    def deciding(self, enough: object, kept: Path | None) -> DoseEngine:
        return _Noting(self.engine.deciding(enough, kept), self.doses)  # type: ignore[attr-defined]

    def __call__(self, plan: object, case: Case, grid: Grid | None = None, progress: object = None) -> Dose:
        self.doses.append(self.engine(plan, case, grid, progress))  # type: ignore[arg-type]
        return self.doses[-1]


@pytest.fixture
def asked(tmp_path: Path) -> PlanSettings:
    (tmp_path / "goals.toml").write_text(SHEET)
    (tmp_path / "gate.toml").write_text("uncertainty_percent = 3.0\n")
    return plan_settings(
        goals=str(tmp_path / "goals.toml"), gate=str(tmp_path / "gate.toml"), uncertainty=0.029, grid_mm=3.0
    )


@pytest.mark.timeout(300)
def test_a_check_that_ran_out_of_time_goes_on_to_the_same_dose(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, asked: PlanSettings
) -> None:
    out = tmp_path / "out"

    def planned(folder: Path, checked: Checked) -> object:
        optimiser(open_arc(), change=with_its_dose)
        tools = PlanningTools(optimiser.optimize, checked, yardstick=optimiser.tools.yardstick)
        return plan_case(case_folder, folder, asked, tools=tools)

    short, whole = Checked(0.01), Checked(None)
    run = planned(out, short)
    assert run.verdict.outcome.value == "INCONCLUSIVE"  # type: ignore[attr-defined]
    assert "check-again" in next(c.why for c in run.verdict.undecided)  # type: ignore[attr-defined]
    # Nothing in the folder is a plan to anybody else, and all of it is listed.
    assert not (out / "RP.dcm").exists() and {f.name for f in (out / CHECK_FOLDER).iterdir()} == {
        "RP.unjudged",
        "RD.unjudged",
        "tallies.npz",
        "state.json",
        "asked.json",
    }
    assert CHECK_FOLDER in json.loads((out / "run.json").read_text())["files"]
    assert read_open_check(out).settings == asked

    again = Checked(None)
    done = check_again(out, tools=PlanningTools(check_engine=again))
    planned(tmp_path / "uninterrupted", whole)
    assert again.doses[-1].gy.tobytes() == whole.doses[-1].gy.tobytes()
    assert again.doses[-1].replicates_gy.tobytes() == whole.doses[-1].replicates_gy.tobytes()
    record, other = (json.loads((f / "run.json").read_text()) for f in (out, tmp_path / "uninterrupted"))
    assert (
        record["check"]["histories"] == other["check"]["histories"] > short.doses[0].provenance["histories"]
    )
    values = [[(c["name"], c["value"], c["result"]) for c in r["verdict"]["checks"]] for r in (record, other)]
    assert values[0] == values[1]
    assert record["verdict"]["outcome"] == done.verdict.outcome.value == "PASSED", done.verdict.failed
    assert not (out / CHECK_FOLDER).exists() and CHECK_FOLDER not in record["files"]
    # What was judged is what is written.
    assert (
        read_dose(out / "RD.dcm").provenance["plan_uid"]
        == read_plan(out / "RP.dcm").provenance["sop_instance_uid"]
    )
    np.testing.assert_allclose(read_dose(out / "RD.dcm").gy, run.dose.gy, atol=1e-4)  # type: ignore[attr-defined]
    assert "Gate passed" in (out / "report.html").read_text()
    assert sorted(f.name for f in out.iterdir()) == sorted(record["files"])
    with pytest.raises(PlanError, match="no check that is open"):
        check_again(out)


@pytest.mark.timeout(300)
def test_a_check_of_which_nothing_is_kept_promises_no_way_on(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, asked: PlanSettings
) -> None:
    optimiser(open_arc(), change=with_its_dose)
    tools = PlanningTools(optimiser.optimize, Checked(0.01), yardstick=optimiser.tools.yardstick)
    run = plan_case(case_folder, tmp_path / "out", asked, tools=tools, keep=Keep.NOTHING)
    assert run.verdict.outcome.value == "INCONCLUSIVE" and not (tmp_path / "out" / CHECK_FOLDER).exists()
    said = [check.why for check in run.verdict.undecided]
    assert any("begin again with --check-minutes" in why for why in said)
    assert not any("go on with" in why for why in said)
    assert CHECK_FOLDER not in json.loads((tmp_path / "out" / "run.json").read_text())


@pytest.mark.timeout(300)
def test_only_the_same_case_is_gone_on_with(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, asked: PlanSettings
) -> None:
    out = tmp_path / "out"
    optimiser(open_arc(), change=with_its_dose)
    plan_case(case_folder, out, asked, tools=PlanningTools(optimiser.optimize, Checked(0.01)))
    before = {f.name: f.read_bytes() for f in out.iterdir() if f.is_file()}
    from small_case import small_case

    write_case(tmp_path / "other", small_case())
    with pytest.raises(CaseError, match="not those of the run"):
        check_again(out, case_folder=tmp_path / "other")
    with pytest.raises(CaseError, match="--case-folder"):
        check_again(out, case_folder=tmp_path / "nowhere")
    still = check_again(out, tools=PlanningTools(check_engine=Checked(0.01)))
    assert still.verdict.outcome.value == "INCONCLUSIVE" and (out / CHECK_FOLDER).is_dir()
    assert {f.name for f in out.iterdir() if f.is_file()} == set(before)
    moved = shutil.copytree(out, tmp_path / "moved")
    record = json.loads((out / "run.json").read_text())
    (moved / "run.json").write_text(json.dumps({**record, CHECK_FOLDER: "0" * 64}))
    with pytest.raises(PlanError, match="not the one that the run in moved left open"):
        check_again(moved)
    # Into a folder of its own: the run stays as it is, and its check can go on from either.
    kept = {f.relative_to(out): f.read_bytes() for f in out.rglob("*") if f.is_file()}
    elsewhere = check_again(out, out=tmp_path / "next", tools=PlanningTools(check_engine=Checked(0.01)))
    assert {f.relative_to(out): f.read_bytes() for f in out.rglob("*") if f.is_file()} == kept
    assert {f.parent.name for f in elsewhere.files} == {"next"}
    assert read_open_check(tmp_path / "next").plan_file.is_file()
    with pytest.raises(PlanError, match="not empty"):
        check_again(out, out=tmp_path / "next")
    (moved / "run.json").write_text(json.dumps({**record, "candidates": {}}))
    with pytest.raises(PlanError, match="no record of a run that can go on"):
        check_again(moved)
    (tmp_path / "gate.toml").write_text("uncertainty_percent = 2.95\n")
    with pytest.raises(PlanError, match="no longer those"):
        check_again(out)
    (out / CHECK_FOLDER / "state.json").write_text("{}")
    with pytest.raises(PlanError, match="damaged"):
        check_again(out)
