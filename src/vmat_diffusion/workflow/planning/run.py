"""`plan` and `demo`: one planning run, from a DICOM folder to a folder of results, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmat_diffusion.case import Case
from vmat_diffusion.dose.engines import dose_engine
from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.task import Task
from vmat_diffusion.files import write_json
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import load_machine
from vmat_diffusion.origin import Comparison
from vmat_diffusion.plan import Plan, delivery_s, violations
from vmat_diffusion.progress import Clock, Progress, silent
from vmat_diffusion.qa.limits import gate_limits
from vmat_diffusion.qa.verdict import warning
from vmat_diffusion.report.coding import Coding, coding_of
from vmat_diffusion.workflow.output import appearing_whole, require_apart
from vmat_diffusion.workflow.planning.open_check import CHECK_FOLDER, Keep, tied, write_asked
from vmat_diffusion.workflow.planning.prior import Prior, prior_of
from vmat_diffusion.workflow.planning.prior_file import prior_from_file, require_prior_file
from vmat_diffusion.workflow.planning.request import arranged, plan_settings, with_asked_delivery
from vmat_diffusion.workflow.planning.result import Candidate, PlanRun, run_record
from vmat_diffusion.workflow.planning.run_files import (
    CHECK_DOSE,
    CONTROL_POINTS,
    DOSE_FILE,
    FILES,
    FLUENCE,
    PLAN_FILE,
    RECORD,
    REPORT_FILE,
    SAMPLES,
    SAMPLES_RECORD,
    TRAJECTORIES,
    names_of_run,
    write_check_dose,
    write_control_points,
    write_fluence,
    write_trajectories,
)
from vmat_diffusion.workflow.planning.search import PlanningTools
from vmat_diffusion.workflow.planning.search_and_check import (
    CANDIDATE_FOLDERS,
    JudgedPlan,
    measure,
    plan_folder,
    search_and_check,
)
from vmat_diffusion.workflow.provenance import peak_gb, profile_shown, provenance
from vmat_diffusion.workflow.reading import plan_and_machine, read_with_goals
from vmat_diffusion.workflow.settings import PlanSettings

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.goals import GoalSheet
    from vmat_diffusion.evaluate.ranking import GoalScore


# torch, numba and matplotlib take seconds to load: the stages that need them import them, so that a
# wrong input is refused at once.

STAGES = ("read", "optimise", "dose", "check", "write", "report")
# The row of the verdict that names what --force let pass.
IMPROVED = "plan to improve"
# The row of the verdict that names gantry angles where the CT cuts the body off.
SECTORS = "sectors to avoid"


def plan_case(
    case_folder: Path,
    out: Path,
    settings: PlanSettings,
    *,
    overwrite: bool = False,
    keep: Keep = Keep.PLAN_AND_CHECK,
    tools: PlanningTools | None = None,
    progress: Progress | None = None,
) -> PlanRun:
    """Plan the case in a DICOM folder and write `FILES`, and trajectories if asked, into `out`.

    `search_and_check` makes and judges the plans. One that does not pass gets its report and RD.dcm, but
    no RP.dcm. Of several candidates each is judged and written whole, the best into `out`, the others into
    folders in it. `tools` stand in for the optimiser and the independent engine.
    Ctrl-C while optimising keeps the best plan so far, and ends Monte Carlo with what it has, so that the
    check can go on, unless `keep` says less. At any other time nothing is left behind.
    Raises InputError where the input, the settings or the folder `out` cannot be used.
    """
    clock = Clock(progress)
    require_apart(out, case_folder, settings.improve, settings.prior_file, settings.generator_file)
    if settings.start == "generated":
        from vmat_diffusion.generate.model import load_fluence_model

        load_fluence_model(settings.generator)  # wrong weights are refused before anything is read
    with appearing_whole(
        out,
        overwrite=overwrite,
        names=(*FILES, SAMPLES, SAMPLES_RECORD, TRAJECTORIES, CHECK_FOLDER, *CANDIDATE_FOLDERS),
    ) as folder:
        with clock.stage("read"):
            task = read_task(case_folder, settings)
            gate = gate_limits(settings.gate, settings.uncertainty, settings.robustness)
            improve, task, forced = _plan_to_improve(settings, task)
            prior = Prior()
            if settings.prior_file is not None:
                prior = prior_from_file(settings.prior_file, task.case, task.sheet, force=settings.force)
            arcs_chosen, arrangement = arranged(task, settings)
        if settings.prior == "diffusion":
            with clock.stage("predict"):
                prior = prior_of(task.case, task.sheet, settings, clock.report)
        if forced:
            prior = replace(prior, checks=(*prior.checks, warning(IMPROVED, forced, "")))
        if arrangement and arrangement.cautions:
            prior = replace(prior, checks=(*prior.checks, warning(SECTORS, arrangement.cautions, "")))
        judged = search_and_check(
            folder,
            task,
            arcs_chosen,
            gate=gate,
            clock=clock,
            prior=prior,
            improve=improve,
            keep=keep,
            tools=tools,
        )
        before = _score(task, improve, judged[0].optimized.dose.grid) if improve else None
        coding = coding_of(
            task.case,
            task.machine,
            machine_file=settings.machine,
            folder=case_folder,
            files=[Path(settings.improve) if settings.improve else None, settings.prior_file],
            plans=[improve],
            mapping=settings.mapping,
            shareable=settings.shareable,
        )
        origin = {
            **provenance(case_folder, task.case, settings),
            "arrangement": arrangement.record() if arrangement else None,
            "gate": asdict(gate),
            **prior.record(),
        }
        runs = [planning_run(task, one, clock, before=before, origin=origin) for one in judged]
        chosen, candidates = _choose(runs)
        if len(prior.doses) > 1 or (settings.start == "generated" and settings.candidates > 1):
            runs = [replace(run, candidates=candidates) for run in runs]
        best = runs[chosen]
        ideal = measure(task, best.judged, best.results, arcs_chosen, clock=clock, tools=tools)
        runs[chosen] = replace(best, yardstick=ideal)
        places = [plan_folder(folder, k, len(runs)) for k in range(len(runs))]
        for k, place in enumerate(places):
            home = out if k == chosen else out / place.name
            write_asked(place, case_folder, settings)
            runs[k] = _write(place, home, runs[k], settings, clock, coding=coding)
        if len(runs) > 1:
            for file in places[chosen].iterdir():
                file.replace(folder / file.name)
            places[chosen].rmdir()
    return runs[chosen]


def read_task(case_folder: Path, settings: PlanSettings) -> Task:
    """The case with the sheet's prescription, the sheet for its targets, and the machine."""
    if settings.prior_file is not None:
        require_prior_file(settings.prior_file)
    machine = load_machine(settings.machine)
    machine.require_beam()
    case, sheet = read_with_goals(case_folder, settings.goals, settings, settings.conditions)
    if settings.normalize_gy is not None:
        from vmat_diffusion.evaluate.goals import normalized_at

        sheet = normalized_at(sheet, settings.normalize_gy)
    _require_organs(case, sheet)
    return Task(case, with_asked_delivery(sheet, settings), machine)


def _require_organs(case: Case, sheet: GoalSheet) -> None:
    """Refuse a case that lacks the structure of a must: no plan for it could pass, however long it takes."""
    from vmat_diffusion.evaluate.goal_fitting import why_absent
    from vmat_diffusion.evaluate.goals import missing_required

    if missing := missing_required(sheet, case):
        goal = missing[0]
        group = sheet.groups.get(goal.group or "")
        of_group = f", of which the group {group.name} needs at least {group.at_least}," if group else ""
        raise GoalError(
            f"goal sheet {sheet.name}: {goal.structure} of the required goal {goal}{of_group} is not in the "
            f"case ({why_absent(goal.structure, sheet, case)}); contour it, map the structure's name, or "
            "write optional = true into that goal"
        )


def _plan_to_improve(settings: PlanSettings, task: Task) -> tuple[Plan | None, Task, tuple[str, ...]]:
    """The plan to start from, if one is named, the task for the machine with its collimator, and what was
    forced.
    """
    if settings.improve is None:
        return None, task, ()
    plan, machine = plan_and_machine(Path(settings.improve), task.machine)
    from vmat_diffusion.qa.files import belonging

    together = belonging(task.case, plan, None) or Comparison()
    # What the file leaves unsaid is harmless here: the improved plan is judged like any other.
    forced = replace(together, silences=()).require(force=settings.force)
    # The arcs are a start; whatever position the file names, the plan is made and judged on this case.
    plan = replace(plan, patient_position=task.case.patient_position)
    return plan, replace(task, machine=machine), forced


def _score(task: Task, plan: Plan, grid: Grid) -> GoalScore:
    """How a plan stands to the goals by the fast engine."""
    from vmat_diffusion.evaluate.goals import evaluate
    from vmat_diffusion.evaluate.ranking import goal_score

    dose = dose_engine("pencil-beam", task.machine)(plan, task.case, grid)
    return goal_score(evaluate(task.sheet, task.case, dose))


def planning_run(
    task: Task,
    judged: JudgedPlan,
    clock: Clock,
    *,
    before: GoalScore | None,
    origin: Mapping[str, Any],
) -> PlanRun:
    """What is known of a judged plan before its files are written."""
    from vmat_diffusion.evaluate.complexity import complexity
    from vmat_diffusion.evaluate.goals import evaluate

    plan, dose = judged.plan, judged.optimized.dose
    gy_per_fraction = max(task.sheet.prescription.target_gy.values()) / plan.fractions
    return PlanRun(
        task=task,
        judged=judged,
        results=evaluate(task.sheet, task.case, dose),
        violations=tuple(violations(plan, task.machine)),
        delivery_s=delivery_s(plan, task.machine),
        complexity=complexity(plan, task.machine, gy_per_fraction),
        seconds=clock.seconds,
        provenance=origin,
        before=before,
    )


def _choose(runs: Sequence[PlanRun]) -> tuple[int, tuple[Candidate, ...]]:
    """Which run is the best, those that passed the gate before others, and all as candidates."""
    from vmat_diffusion.evaluate.ranking import goal_score

    scores = [goal_score(run.results) for run in runs]
    best = min(range(len(runs)), key=lambda k: (not runs[k].passed, scores[k]))
    return best, tuple(
        Candidate(k, score, run.outcome, run.passed, k == best)
        for k, (score, run) in enumerate(zip(scores, runs, strict=True))
    )


def _write(
    folder: Path, home: Path, run: PlanRun, settings: PlanSettings, clock: Clock, *, coding: Coding
) -> PlanRun:
    """The run with its files in `folder`, which will be called `home`."""
    plan, machine = coding.plan(run.plan), run.task.machine
    with clock.stage("write"):
        write_control_points(folder / CONTROL_POINTS, plan, machine)
        write_fluence(folder / FLUENCE, plan, machine, run.judged.optimized.fluence)
        if run.check is not None:
            write_check_dose(folder / CHECK_DOSE, run.check)
        if settings.trajectory and not run.violations:
            write_trajectories(folder, plan, machine)
    with clock.stage("report"):
        ideal = coding.tree(run.yardstick.record()) if run.yardstick else None
        others = [c.record() for c in run.candidates]
        write_run_report(folder, run, settings, coding, yardstick=ideal, candidates=others)
    names = [name for name in names_of_run(plan) if name == RECORD or (folder / name).exists()]
    files = tuple(home.resolve() / name for name in names)
    run = replace(run, peak_gb=peak_gb(), seconds=dict(clock.seconds), files=files)
    write_json(folder / RECORD, tied(folder, coding.record(run_record(run))))
    return run


def write_run_report(
    folder: Path,
    run: PlanRun,
    settings: PlanSettings,
    coding: Coding,
    *,
    yardstick: Mapping[str, Any] | None,
    candidates: Sequence[Mapping[str, Any]],
) -> None:
    """The report of a run; `yardstick` and `candidates` are records in codes already."""
    from vmat_diffusion.dicom import instance_uid, patient_named
    from vmat_diffusion.report import Identity, Reported, write_report

    source, origins = run.task.case.source, settings.origins
    patient = patient_named(source.image_path) if settings.identity else ()
    plan_uid, dose_uid = (coding.own_uid(instance_uid(folder / name)) for name in (PLAN_FILE, DOSE_FILE))
    history = run.judged.optimized.history
    write_report(
        folder / REPORT_FILE,
        Reported(
            **coding.report(
                case=run.task.case,
                plan=run.plan,
                machine=run.task.machine,
                provenance={
                    **run.provenance,
                    "profile": profile_shown(origins, shareable=settings.shareable),
                    "outcome": run.outcome,
                    "normalization": str(run.task.sheet.normalization),
                },
            ),
            dose=coding.dose(run.dose),
            results=coding.results(run.results),
            sheet=coding.sheet(run.task.sheet),
            violations=list(map(coding.shown, run.violations)),
            verdict=coding.verdict(run.verdict),
            check=coding.dose(run.check),
            history=[float(str(step["objective"])) for step in history if "objective" in step],
            seconds=run.seconds,
            candidates=candidates,
            yardstick=yardstick,
            identity=Identity(plan_uid, dose_uid, patient),
        ),
    )


def run_demo(out: Path, *, shareable: bool = False, progress: Progress | None = None) -> tuple[PlanRun, Path]:
    """Plan the TG-119 C-shape phantom into `out/plan`; returns the run and the path of its picture."""
    from vmat_diffusion.dicom import files_of_case, write_case
    from vmat_diffusion.phantom import phantom
    from vmat_diffusion.report import plan_picture

    report = progress or silent
    report("phantom", 0.0, "")
    case = phantom("tg119_cshape")
    before = files_of_case(out / "phantom", case)
    with appearing_whole(out / "phantom", overwrite=True, names=before, listed=before) as folder:
        write_case(folder, case)
    report("phantom", 1.0, "")
    settings = plan_settings(goals="tg119_cshape_easy", shareable=shareable)
    run = plan_case(out / "phantom", out / "plan", settings, overwrite=True, progress=progress)
    picture = plan_picture(
        out.resolve() / "plan.png", case=run.task.case, plan=run.plan, dose=run.dose, results=run.results
    )
    return run, picture
