"""`plan` and `demo`: one planning run, from a DICOM folder to a folder of results, stage by stage.

A little over 400 lines: what a run is and what is recorded of it change together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.engines import dose_engine
from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.goals import (
    DeliveryResult,
    delivery_record,
    evaluate_delivery,
    goal_details,
    goal_record,
    group_record,
    group_results,
    sheet_record,
)
from vmat_diffusion.evaluate.task import Task
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.origin import Comparison
from vmat_diffusion.plan import Plan, delivery_s, timing, violations
from vmat_diffusion.progress import Clock, Progress, silent
from vmat_diffusion.qa.limits import gate_limits
from vmat_diffusion.qa.verdict import warning
from vmat_diffusion.report.coding import Coding, coding_of
from vmat_diffusion.workflow.arrangement import arranged
from vmat_diffusion.workflow.delivery import with_asked_delivery
from vmat_diffusion.workflow.output import appearing_whole, require_apart
from vmat_diffusion.workflow.predict import Prior, prior_of
from vmat_diffusion.workflow.prior_file import prior_from_file, require_prior_file
from vmat_diffusion.workflow.provenance import peak_gb, provenance
from vmat_diffusion.workflow.reading import read_with_goals
from vmat_diffusion.workflow.recompute import plan_and_machine
from vmat_diffusion.workflow.run_files import (
    CONTROL_POINTS,
    DOSE_FILE,
    FLUENCE,
    PLAN_FILE,
    RECORD,
    REPORT_FILE,
    TRAJECTORIES,
    trajectory_name,
    write_control_points,
    write_fluence,
    write_json,
    write_trajectories,
)
from vmat_diffusion.workflow.search_and_check import (
    CANDIDATE_FOLDERS,
    JudgedPlan,
    PlanningTools,
    measure,
    plan_folder,
    search_and_check,
)
from vmat_diffusion.workflow.settings import PlanSettings, plan_settings

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.complexity import Complexity
    from vmat_diffusion.evaluate.goals import GoalResult, GoalSheet
    from vmat_diffusion.evaluate.ranking import GoalScore
    from vmat_diffusion.optimize.ideal import Yardstick
    from vmat_diffusion.qa import Verdict


# torch, numba and matplotlib take seconds to load: the stages that need them import them, so that a
# wrong input is refused at once.

STAGES = ("read", "optimise", "dose", "check", "write", "report")
# The row of the verdict that names what --force let pass.
IMPROVED = "plan to improve"
# The row of the verdict that names gantry angles where the CT cuts the body off.
SECTORS = "sectors to avoid"
FILES = (PLAN_FILE, DOSE_FILE, REPORT_FILE, CONTROL_POINTS, FLUENCE, RECORD)


@dataclass(frozen=True)
class Candidate:
    """One of several plans: how it meets the goals, how its search ended, its gate, whether it is the one."""

    number: int
    score: GoalScore
    outcome: str
    passed: bool
    chosen: bool = False

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "candidate": self.number,
            "chosen": self.chosen,
            **self.score.record(),
            "outcome": self.outcome,
            "passed": self.passed,
        }


@dataclass(frozen=True, eq=False)
class PlanRun:
    """What one planning run made. `files` are absolute paths; `violations` is empty if deliverable.

    `results` are the goals on the plan's dose. `candidates` are the plans among which this one was chosen;
    `before` says how the plan that the search started from met the goals; `yardstick` what ideal fluence
    makes of them, where that was asked for.
    """

    task: Task
    judged: JudgedPlan
    results: tuple[GoalResult, ...]
    violations: tuple[str, ...]
    delivery_s: float
    complexity: Complexity
    seconds: Mapping[str, float]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    before: GoalScore | None = None
    yardstick: Yardstick | None = None
    candidates: tuple[Candidate, ...] = ()
    files: tuple[Path, ...] = ()
    peak_gb: float | None = None

    @property
    def plan(self) -> Plan:
        """The plan, exactly as its file holds it."""
        return self.judged.plan

    @property
    def dose(self) -> Dose:
        """The plan's dose by the fast engine."""
        return self.judged.optimized.dose

    @property
    def delivery_results(self) -> tuple[DeliveryResult, ...]:
        """The sheet's goals on the delivery, judged on the plan."""
        return evaluate_delivery(self.task.sheet, self.plan, self.task.machine)

    @property
    def verdict(self) -> Verdict:
        """What the gate says of the plan."""
        return self.judged.verdict

    @property
    def check(self) -> Dose | None:
        """The independent dose; None for a plan that cannot be delivered."""
        return self.judged.check

    @property
    def corrected(self) -> bool:
        """Whether the search went on after a first verdict, knowing how the engines differ."""
        return self.judged.first_verdict is not None

    @property
    def passed(self) -> bool:
        """Whether the plan went through the gate, so that RP.dcm is there."""
        return self.verdict.passed

    @property
    def outcome(self) -> str:
        """How the search ended."""
        return self.judged.optimized.outcome.name

    @property
    def arrangement(self) -> str:
        """Which arcs the plan got and why; empty where they are those of a plan that was improved."""
        found = self.provenance.get("arrangement")
        return str(found["text"]) if found else ""

    @property
    def conflicts(self) -> tuple[str, ...]:
        """What stands in the way of the goals that stay open."""
        return tuple(map(str, self.judged.optimized.conflicts))

    def summary(self) -> dict[str, Any]:
        """The object that `plan --json` prints."""
        return {
            "outcome": self.outcome,
            "conflicts": list(self.conflicts),
            "yardstick": self.yardstick.record() if self.yardstick else None,
            "arrangement": self.provenance.get("arrangement"),
            "before": self.before.record() if self.before else None,
            "goals": [goal_record(r) for r in self.results],
            "groups": [group_record(g) for g in group_results(self.results)],
            "delivery_goals": [delivery_record(r) for r in self.delivery_results],
            "remarks": list(self.task.sheet.remarks),
            "mu": round(self.plan.total_mu, 2),
            "delivery_s": round(self.delivery_s, 2),
            "arc_delivery_s": arc_delivery_s(self.plan, self.task.machine),
            "complexity": self.complexity.record(),
            "violations": list(self.violations),
            "verdict": {**self.verdict.summary(), "corrected": self.corrected},
            "robustness": self.verdict.robustness.record() if self.verdict.robustness else None,
            "seconds": {name: round(s, 2) for name, s in self.seconds.items()},
            "peak_gb": self.peak_gb,
            "files": [str(f) for f in self.files],
        }


def arc_delivery_s(plan: Plan, machine: Machine) -> list[float]:
    """Beam-on time of each arc, rounded for a record."""
    paces = (timing(arc, machine.limits, plan.dose_rate_mu_min) for arc in plan.arcs)
    return [round(pace.total_s, 2) for pace in paces]


def plan_case(
    case_folder: Path,
    out: Path,
    settings: PlanSettings,
    *,
    overwrite: bool = False,
    keep_interrupted: bool = True,
    tools: PlanningTools | None = None,
    progress: Progress | None = None,
) -> PlanRun:
    """Plan the case in a DICOM folder and write `FILES`, and trajectories if asked, into `out`.

    `search_and_check` makes and judges the plans. One that does not pass gets its report and RD.dcm, but
    no RP.dcm. Of several candidates each is judged and written whole, the best into `out`, the others into
    folders in it. `tools` stand in for the optimiser and the independent engine.
    Ctrl-C while optimising keeps the best plan so far, unless `keep_interrupted` is false; at any other
    time nothing is left behind.
    Raises InputError where the input, the settings or the folder `out` cannot be used.
    """
    clock = Clock(progress)
    require_apart(out, case_folder, settings.improve, settings.prior_file)
    with appearing_whole(
        out, overwrite=overwrite, names=(*FILES, TRAJECTORIES, *CANDIDATE_FOLDERS)
    ) as folder:
        with clock.stage("read"):
            task = _read(case_folder, settings)
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
            keep_interrupted=keep_interrupted,
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
        runs = [_planning_run(task, one, clock, before=before, origin=origin) for one in judged]
        chosen, candidates = _choose(runs)
        if len(prior.doses) > 1:
            runs = [replace(run, candidates=candidates) for run in runs]
        best = runs[chosen]
        ideal = measure(task, best.judged, best.results, arcs_chosen, clock=clock, tools=tools)
        runs[chosen] = replace(best, yardstick=ideal)
        places = [plan_folder(folder, k, len(runs)) for k in range(len(runs))]
        for k, place in enumerate(places):
            home = out if k == chosen else out / place.name
            runs[k] = _write(place, home, runs[k], settings, clock, coding=coding)
        if len(runs) > 1:
            for file in places[chosen].iterdir():
                file.replace(folder / file.name)
            places[chosen].rmdir()
    return runs[chosen]


def _read(case_folder: Path, settings: PlanSettings) -> Task:
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


def _planning_run(
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
        if settings.trajectory and not run.violations:
            write_trajectories(folder, plan, machine)
    with clock.stage("report"):
        _report(folder, run, coding)
    asked = (trajectory_name(arc.number) for arc in plan.arcs)
    names = [name for name in (*FILES, *asked) if name == RECORD or (folder / name).exists()]
    files = tuple(home.resolve() / name for name in names)
    run = replace(run, peak_gb=peak_gb(), seconds=dict(clock.seconds), files=files)
    write_json(folder / RECORD, coding.record(_run_record(run)))
    return run


def _report(folder: Path, run: PlanRun, coding: Coding) -> None:
    from vmat_diffusion.report import write_report

    history = run.judged.optimized.history
    write_report(
        folder / REPORT_FILE,
        **coding.report(
            case=run.task.case,
            plan=run.plan,
            machine=run.task.machine,
            provenance={
                **run.provenance,
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
        candidates=[c.record() for c in run.candidates],
        yardstick=coding.tree(run.yardstick.record()) if run.yardstick else None,
    )


def _run_record(run: PlanRun) -> dict[str, Any]:
    """Everything about the run that is not in its other files."""
    sheet, first = run.task.sheet, run.judged.first_verdict
    return {
        **run.provenance,
        **run.summary(),
        "goals": [goal_details(r) for r in run.results],
        "sheet": sheet_record(sheet),
        "files": [file.name for file in run.files],
        "fractions": run.plan.fractions,
        "prescription_gy": dict(sheet.prescription.target_gy),
        "normalization": str(sheet.normalization),
        "dose": dict(run.dose.provenance),
        "check": dict(run.check.provenance) if run.check else None,
        "first_verdict": first.summary() if first else None,
        "candidates": [c.record() for c in run.candidates],
        "optimiser_seconds": dict(run.judged.optimized.seconds),
        "history": list(run.judged.optimized.history),
    }


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
    # Within the default gate, for four fifths of the usual time.
    settings = plan_settings(goals="tg119_cshape_easy", uncertainty=0.022, shareable=shareable)
    run = plan_case(out / "phantom", out / "plan", settings, overwrite=True, progress=progress)
    picture = plan_picture(
        out.resolve() / "plan.png", case=run.task.case, plan=run.plan, dose=run.dose, results=run.results
    )
    return run, picture
