"""`check-again`: a check that was inconclusive goes on where it stopped."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import StrictBool, StrictFloat, TypeAdapter

from vmat_diffusion.case import Dose
from vmat_diffusion.errors import CaseError, PlanError
from vmat_diffusion.evaluate.task import Task
from vmat_diffusion.files import content_hash, is_plain_name, read_json, write_json
from vmat_diffusion.progress import Clock, Progress, under_name
from vmat_diffusion.qa.limits import gate_limits
from vmat_diffusion.report.coding import coding_of
from vmat_diffusion.workflow.output import appearing_whole, require_apart
from vmat_diffusion.workflow.planning.open_check import (
    CHECK_FOLDER,
    OpenCheck,
    read_open_check,
    tied,
    write_asked,
)
from vmat_diffusion.workflow.planning.result import PlanRun, run_record
from vmat_diffusion.workflow.planning.run import planning_run, read_task, write_run_report
from vmat_diffusion.workflow.planning.run_files import (
    CHECK_DOSE,
    FILES,
    RECORD,
    names_of_run,
    write_check_dose,
)
from vmat_diffusion.workflow.planning.search import PlanningTools
from vmat_diffusion.workflow.planning.search_and_check import JudgedPlan, judge_files
from vmat_diffusion.workflow.reading import plan_and_machine

if TYPE_CHECKING:
    from vmat_diffusion.optimize import Optimized
    from vmat_diffusion.workflow.settings import PlanSettings

# Of `run.json`, what a continued check finds anew.
_ANEW = ("verdict", "robustness", "check", "check_goals", "seconds", "files")


def check_again(
    run: Path,
    *,
    out: Path | None = None,
    case_folder: Path | None = None,
    check_minutes: float | None = None,
    tools: PlanningTools | None = None,
    progress: Progress | None = None,
) -> PlanRun:
    """Go on with the check of the plan in the folder of a run that was inconclusive, and judge it again.

    Monte Carlo goes on with the tallies of the first part, until all is decided or for `check_minutes`;
    Ctrl-C ends it and leaves the check open again. Report, record and, with a passed verdict, RP.dcm and
    RD.dcm are written anew, into `out` or else in the place of `run`, which stays as it is where there is an
    `out`. `case_folder` says where the case lies now. Raises PlanError for a folder without an open check and
    for an `out` that is not empty, CaseError for another case.
    """
    clock, tools = Clock(progress), tools or PlanningTools()
    state, record = read_open_check(run), _record(run / RECORD)
    place = case_folder or state.case_folder
    if not place.is_dir():
        raise CaseError(
            "the case is no longer in its folder; name the one that it is in now with --case-folder"
        )
    home = out or run
    require_apart(home, place)
    with clock.stage("read"):
        if content_hash(place) != record["inputs"].get("sha256"):
            raise CaseError("the files of the case are not those of the run; name the folder with its files")
        settings = replace(state.settings, check_minutes=check_minutes)
        # What the plan aimed at is not judged again, and may lie elsewhere by now.
        task = read_task(place, replace(settings, prior="goals", improve=None, force=False))
    with appearing_whole(home, overwrite=out is None, names=(*FILES, CHECK_FOLDER)) as folder:
        _copy_run(run, folder, record)
        read, machine = plan_and_machine(state.plan_file, task.machine)
        # The plan is the run's own; what its file says of itself was not there when it was judged first.
        plan = replace(read, provenance={})
        task = replace(task, machine=machine)
        with clock.stage("check"):
            judged = judge_files(
                folder,
                task,
                _searched(state, record, plan),
                engine=tools.check_engine(machine, settings, state.correction),
                gate=gate_limits(settings.gate, settings.uncertainty, settings.robustness),
                settings=settings,
                earlier=state.earlier,
                correction=state.correction,
                may_go_on=True,
                progress=under_name(clock.report, "check"),
            )
        write_asked(folder, place, state.settings)
        return _written(
            folder, home, task, judged, settings=settings, place=place, record=record, clock=clock
        )


@dataclass(frozen=True)
class _Verdict:
    corrected: StrictBool


@dataclass(frozen=True)
class _Record:
    """What of the record of a run goes on with its check; it holds more."""

    inputs: dict[str, Any]
    outcome: Literal["CONVERGED", "STALLED", "TIME_LIMIT", "INTERRUPTED"]
    verdict: _Verdict
    dose: dict[str, Any]
    files: list[str]
    history: list[dict[str, Any]]
    candidates: list[dict[str, Any]]
    seconds: dict[str, StrictFloat]
    yardstick: dict[str, Any] | None


def _record(file: Path) -> dict[str, Any]:
    found = read_json(file)
    try:
        TypeAdapter(_Record).validate_python(found)
    except ValueError:  # of pydantic too
        raise PlanError(f"{file.name} is no record of a run that can go on; plan the case again") from None
    assert isinstance(found, dict)
    return found


def _copy_run(run: Path, folder: Path, record: Mapping[str, Any]) -> None:
    """Everything of the run into the folder that will stand in its place."""
    for name in filter(is_plain_name, record.get("files", [])):
        if (run / name).is_file():
            shutil.copy2(run / name, folder / name)
    shutil.copytree(run / CHECK_FOLDER, folder / CHECK_FOLDER)


def _searched(state: OpenCheck, record: Mapping[str, Any], plan: Any) -> Optimized:
    """What the search made, as far as the check and the report need it."""
    from vmat_diffusion.dicom import read_dose
    from vmat_diffusion.optimize import Optimized, Outcome

    read = read_dose(state.dose_file)
    # The file rounds the places of voxels; the tallies belong to those that the check began with.
    dose = Dose(state.grid, read.gy, provenance=dict(record.get("dose", {})))
    return Optimized(plan, dose, Outcome[record["outcome"]], tuple(record.get("history", ())), {})


def _written(
    folder: Path,
    home: Path,
    task: Task,
    judged: JudgedPlan,
    *,
    settings: PlanSettings,
    place: Path,
    record: Mapping[str, Any],
    clock: Clock,
) -> PlanRun:
    """The run with its report and record in `folder`, which will be called `home`."""
    made = planning_run(task, judged, clock, before=None, origin={})
    known = run_record(made).keys() - {"arrangement"}
    made = replace(made, provenance={key: value for key, value in record.items() if key not in known})
    coding = coding_of(
        task.case,
        task.machine,
        machine_file=settings.machine,
        folder=place,
        files=[Path(settings.improve) if settings.improve else None, settings.prior_file],
        mapping=settings.mapping,
        shareable=settings.shareable,
    )
    candidates = [
        {**one, "passed": made.passed} if one.get("chosen") else one for one in record["candidates"]
    ]
    if made.check is not None:
        write_check_dose(folder / CHECK_DOSE, made.check)
    with clock.stage("report"):
        write_run_report(
            folder,
            made,
            settings,
            coding,
            yardstick=record.get("yardstick"),
            candidates=candidates,
        )
    seconds = {**record.get("seconds", {}), **clock.seconds}
    seconds["check"] = float(record.get("seconds", {}).get("check", 0.0)) + clock.seconds["check"]
    names = [name for name in names_of_run(made.plan) if name == RECORD or (folder / name).exists()]
    made = replace(made, seconds=seconds, files=tuple(home.resolve() / name for name in names))
    found = coding.record(run_record(made))
    found["verdict"]["corrected"] = record["verdict"]["corrected"]
    anew = {**record, **{key: found[key] for key in _ANEW}, "candidates": candidates}
    write_json(folder / RECORD, tied(folder, anew))
    return made
