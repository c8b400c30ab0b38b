"""One planning run, from a DICOM folder to a folder of results, stage by stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.engines import dose_engine
from vmat_diffusion.errors import PlanError
from vmat_diffusion.evaluate.goals import goal_record
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.plan import Plan, delivery_s, timing, violations
from vmat_diffusion.progress import Clock, Progress
from vmat_diffusion.qa.limits import gate_limits
from vmat_diffusion.workflow.predict import Prior, prior_of
from vmat_diffusion.workflow.provenance import peak_gb, provenance
from vmat_diffusion.workflow.recompute import belongs, plan_and_machine
from vmat_diffusion.workflow.run_files import (
    TRAJECTORIES,
    appearing_whole,
    trajectory_name,
    write_control_points,
    write_fluence,
    write_json,
    write_trajectories,
)
from vmat_diffusion.workflow.search_and_check import Candidate, Gated, plans_for, through_gate
from vmat_diffusion.workflow.settings import PlanSettings, plan_settings, read_with_goals

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.complexity import Complexity
    from vmat_diffusion.evaluate.goals import GoalResult, GoalSheet
    from vmat_diffusion.evaluate.ranking import GoalScore
    from vmat_diffusion.optimize import Optimized
    from vmat_diffusion.qa import Verdict


# torch, numba and matplotlib take seconds to load: the stages that need them import them, so that a
# wrong input is refused at once.

STAGES = ("read", "optimise", "dose", "check", "write", "report")
FILES = ("RP.dcm", "RD.dcm", "report.html", "control_points.csv", "fluence.npz", "run.json")
_CANDIDATES = tuple(f"candidate_{k}" for k in range(16))


@dataclass(frozen=True, eq=False)
class PlanRun:
    """What one planning run made. `files` are absolute paths; `violations` is empty if deliverable.

    `check` is the independent dose that `verdict` rests on, None for a plan that cannot be delivered;
    `first_verdict` is there if the optimiser then had to take the engines' difference into account.
    `candidates` are the plans among which this one was chosen; `conflicts` say what stands in the way of
    goals that stay open; `before` is how the plan that was to be bettered stood to the goals.
    """

    case: Case
    sheet: GoalSheet
    machine: Machine
    plan: Plan
    dose: Dose
    results: tuple[GoalResult, ...]
    violations: tuple[str, ...]
    verdict: Verdict
    check: Dose | None
    first_verdict: Verdict | None
    outcome: str
    delivery_s: float
    complexity: Complexity
    seconds: Mapping[str, float]
    peak_gb: float | None
    files: tuple[Path, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    conflicts: tuple[str, ...] = ()
    before: GoalScore | None = None

    @property
    def corrected(self) -> bool:
        """Whether the plan is the second one, made in the knowledge of the independent dose."""
        return self.first_verdict is not None

    @property
    def passed(self) -> bool:
        """Whether the plan went through the gate, so that RP.dcm is there."""
        return self.verdict.passed

    def summary(self) -> dict[str, Any]:
        """The object that `plan --json` prints."""
        return {
            "outcome": self.outcome,
            "conflicts": list(self.conflicts),
            "before": self.before.record() if self.before else None,
            "goals": [goal_record(r) for r in self.results],
            "mu": round(self.plan.total_mu, 2),
            "delivery_s": round(self.delivery_s, 2),
            "arc_delivery_s": arc_delivery_s(self.plan, self.machine),
            "complexity": self.complexity.record(),
            "violations": list(self.violations),
            "verdict": {**self.verdict.summary(), "corrected": self.corrected},
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
    progress: Progress | None = None,
) -> PlanRun:
    """Plan the case in a DICOM folder and write `FILES`, and trajectories if asked, into `out`.

    Every plan is recomputed by Monte Carlo and judged. If only the engines disagree, the optimiser goes
    on from it once with their difference, and the new plan is judged. A plan that does not pass gets its
    report and RD.dcm, but no RP.dcm. Of several candidates each is judged and written whole, the best into
    `out`, the others into folders in it.
    Ctrl-C while optimising keeps the best plan so far, unless `keep_interrupted` is false; at any other
    time nothing is left behind.
    Raises InputError where the input, the settings or the folder `out` cannot be used.
    """
    clock = Clock(progress)
    with appearing_whole(out, overwrite=overwrite, names=(*FILES, TRAJECTORIES, *_CANDIDATES)) as folder:
        with clock.stage("read"):
            case, sheet, machine = _read(case_folder, settings)
            gate = gate_limits(settings.gate, settings.uncertainty)
            given, machine = _given(settings, case, machine)
        prior = Prior()
        if settings.prior == "diffusion":
            with clock.stage("predict"):
                prior = prior_of(case, sheet, settings, clock.report)
        with clock.stage("optimise"):
            made = plans_for(case, sheet, machine, settings, prior, clock.report, improve=given)
        _go_on([one.optimized for one in made], keep_interrupted=keep_interrupted)
        clock.split("optimise", "dose", sum(one.optimized.seconds.get("dose", 0.0) for one in made))
        places = [folder / name for name in _CANDIDATES[: len(made)]] if len(made) > 1 else [folder]
        gated = []
        for place, one in zip(places, made, strict=True):
            place.mkdir(exist_ok=True)
            gated.append(through_gate(place, case, sheet, machine, settings, gate, one, prior.checks, clock))
        _go_on([one.optimized for one in gated], keep_interrupted=keep_interrupted)
        before = _score(sheet, case, machine, given, gated[0].optimized.dose.grid) if given else None
        origin = {**provenance(case_folder, case, settings), "gate": asdict(gate), **prior.record()}
        runs = [_run(case, sheet, machine, one, clock, before, origin) for one in gated]
        chosen, candidates = _chosen(runs)
        for k, place in enumerate(places):
            if len(prior.doses) > 1:
                runs[k] = replace(runs[k], candidates=candidates)
            home = out if k == chosen else out / place.name
            runs[k] = _written(place, home, runs[k], gated[k].optimized, settings, clock)
        if len(made) > 1:
            for file in places[chosen].iterdir():
                file.replace(folder / file.name)
            places[chosen].rmdir()
    return runs[chosen]


def _run(
    case: Case,
    sheet: GoalSheet,
    machine: Machine,
    gated: Gated,
    clock: Clock,
    before: GoalScore | None,
    origin: Mapping[str, Any],
) -> PlanRun:
    """What is known of a judged plan before its files are written."""
    plan, dose = gated.optimized.plan, gated.optimized.dose
    return PlanRun(
        case=case,
        sheet=sheet,
        machine=machine,
        plan=plan,
        dose=dose,
        results=_evaluate(sheet, case, dose),
        violations=tuple(violations(plan, machine)),
        verdict=gated.judged.verdict,
        check=gated.judged.check,
        first_verdict=gated.first,
        outcome=gated.optimized.outcome.name,
        conflicts=tuple(map(str, gated.optimized.conflicts)),
        before=before,
        delivery_s=delivery_s(plan, machine),
        complexity=_complexity(plan, machine, sheet),
        seconds=clock.seconds,
        peak_gb=None,
        files=(),
        provenance=origin,
    )


def _chosen(runs: Sequence[PlanRun]) -> tuple[int, tuple[Candidate, ...]]:
    """Which run is the best, those that passed the gate before others, and all as candidates."""
    from vmat_diffusion.evaluate.ranking import goal_score

    scores = [goal_score(run.results) for run in runs]
    best = min(range(len(runs)), key=lambda k: (not runs[k].passed, scores[k]))
    return best, tuple(
        Candidate(k, score, run.outcome, run.passed, k == best)
        for k, (score, run) in enumerate(zip(scores, runs, strict=True))
    )


def _written(
    folder: Path, home: Path, run: PlanRun, optimized: Optimized, settings: PlanSettings, clock: Clock
) -> PlanRun:
    """The run with its files in `folder`, which will be called `home`."""
    with clock.stage("write"):
        write_control_points(folder / "control_points.csv", run.plan, run.machine)
        write_fluence(folder / "fluence.npz", run.plan, run.machine, optimized.fluence)
        if settings.trajectory and not run.violations:
            write_trajectories(folder, run.plan, run.machine)
    with clock.stage("report"):
        _report(folder, run, optimized)
    asked = (trajectory_name(arc.number) for arc in run.plan.arcs)
    names = [name for name in (*FILES, *asked) if name == "run.json" or (folder / name).exists()]
    files = tuple(home.resolve() / name for name in names)
    run = replace(run, peak_gb=peak_gb(), seconds=dict(clock.seconds), files=files)
    write_json(folder / "run.json", _run_record(run, optimized))
    return run


def _go_on(made: Sequence[Optimized], *, keep_interrupted: bool) -> None:
    """End the run after Ctrl-C if its plan is not wanted: the optimiser has kept its best one instead."""
    if not keep_interrupted and any(one.outcome.name == "INTERRUPTED" for one in made):
        raise KeyboardInterrupt


def _read(case_folder: Path, settings: PlanSettings) -> tuple[Case, GoalSheet, Machine]:
    """The case with the sheet's prescription, the sheet for its targets, and the machine."""
    machine = load_machine(settings.machine)
    machine.require_beam()
    case, sheet = read_with_goals(case_folder, settings.goals, settings.reading)
    if settings.normalize_gy is not None:
        from vmat_diffusion.evaluate.goals import normalized_at

        sheet = normalized_at(sheet, settings.normalize_gy)
    return case, sheet, machine


def _given(settings: PlanSettings, case: Case, machine: Machine) -> tuple[Plan | None, Machine]:
    """The plan to start from, if one is named, and the machine with its collimator."""
    if settings.improve is None:
        return None, machine
    plan, machine = plan_and_machine(Path(settings.improve), machine)
    if not belongs(plan, case):
        raise PlanError(
            f"plan {settings.improve} has another frame of reference than the CT; give the CT that it was "
            "made on"
        )
    if plan.patient_position != case.patient_position:
        raise PlanError(
            f"plan {settings.improve} is for position {plan.patient_position}, the CT is "
            f"{case.patient_position}; plan this case anew"
        )
    return plan, machine


def _score(sheet: GoalSheet, case: Case, machine: Machine, plan: Plan, grid: Grid) -> GoalScore:
    """How a plan stands to the goals by the fast engine."""
    from vmat_diffusion.evaluate.ranking import goal_score

    return goal_score(_evaluate(sheet, case, dose_engine("pencil-beam", machine)(plan, case, grid)))


def _evaluate(sheet: GoalSheet, case: Case, dose: Dose) -> tuple[GoalResult, ...]:
    from vmat_diffusion.evaluate.goals import evaluate

    return evaluate(sheet, case, dose)


def _complexity(plan: Plan, machine: Machine, sheet: GoalSheet) -> Complexity:
    from vmat_diffusion.evaluate.complexity import complexity

    return complexity(plan, machine, max(sheet.prescription.target_gy.values()) / plan.fractions)


def _report(folder: Path, run: PlanRun, optimized: Optimized) -> None:
    from vmat_diffusion.report import write_report

    write_report(
        folder / "report.html",
        case=run.case,
        plan=run.plan,
        machine=run.machine,
        dose=run.dose,
        results=run.results,
        violations=run.violations,
        verdict=run.verdict,
        check=run.check,
        provenance={**run.provenance, "outcome": run.outcome, "normalization": str(run.sheet.normalization)},
        history=[float(str(step["objective"])) for step in optimized.history if "objective" in step],
        seconds=run.seconds,
        candidates=[c.record() for c in run.candidates],
    )


def _run_record(run: PlanRun, optimized: Optimized) -> dict[str, Any]:
    """Everything about the run that is not in its other files."""
    goals = [
        {
            **goal_record(r),
            "variation": r.goal.variation,
            "priority": r.goal.priority,
            "note": r.note,
            "source": r.goal.source,
        }
        for r in run.results
    ]
    return {
        **run.provenance,
        **run.summary(),
        "goals": goals,
        "files": [file.name for file in run.files],
        "fractions": run.plan.fractions,
        "prescription_gy": dict(run.sheet.prescription.target_gy),
        "normalization": str(run.sheet.normalization),
        "dose": dict(run.dose.provenance),
        "check": dict(run.check.provenance) if run.check else None,
        "first_verdict": run.first_verdict.summary() if run.first_verdict else None,
        "candidates": [c.record() for c in run.candidates],
        "optimiser_seconds": dict(optimized.seconds),
        "history": list(optimized.history),
    }


def run_demo(out: Path, *, progress: Progress | None = None) -> tuple[PlanRun, Path]:
    """Plan the TG-119 C-shape phantom into `out/plan`; returns the run and the path of its picture."""
    from vmat_diffusion.dicom import write_case
    from vmat_diffusion.phantom import phantom
    from vmat_diffusion.report import plan_picture

    report: Callable[[str, float, str], None] = progress or (lambda stage, fraction, note: None)
    report("phantom", 0.0, "")
    with appearing_whole(out / "phantom", overwrite=True) as folder:
        write_case(folder, phantom("tg119_cshape"))
    report("phantom", 1.0, "")
    # Within the default gate, for four fifths of the usual time.
    settings = plan_settings(goals="tg119_cshape_easy", uncertainty=0.022)
    run = plan_case(out / "phantom", out / "plan", settings, overwrite=True, progress=progress)
    picture = plan_picture(
        out.resolve() / "plan.png", case=run.case, plan=run.plan, dose=run.dose, results=run.results
    )
    return run, picture
