"""One planning run, from a DICOM folder to a folder of results, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.plan import Plan, delivery_s, violations
from vmat_diffusion.workflow.engines import Engine, dose_engine
from vmat_diffusion.workflow.files import appearing_whole, write_control_points, write_fluence, write_json
from vmat_diffusion.workflow.gate import Judged, gate_limits, pass_gate
from vmat_diffusion.workflow.optimising import BestPlan, Candidate, best_plan, optimised
from vmat_diffusion.workflow.prior import Prior, prior_of
from vmat_diffusion.workflow.provenance import peak_gb, provenance
from vmat_diffusion.workflow.reading import read_with_goals
from vmat_diffusion.workflow.settings import PlanSettings

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.goals import GoalResult, GoalSheet
    from vmat_diffusion.optimize import Optimized
    from vmat_diffusion.qa import Check, GateSettings, Verdict

# torch, numba and matplotlib take seconds to load: the stages that need them import them, so that a
# wrong input is refused at once.

Progress = Callable[[str, float, str], None]
STAGES = ("read", "optimise", "dose", "check", "write", "report")
# The most of the time limit that the correction of a plan may take.
_CORRECTION_SHARE = 1 / 3
FILES = ("RP.dcm", "RD.dcm", "report.html", "control_points.csv", "fluence.npz", "run.json")


@dataclass(frozen=True, eq=False)
class PlanRun:
    """What one planning run made. `files` are absolute paths; `violations` is empty if deliverable.

    `check` is the independent dose that `verdict` rests on, None for a plan that cannot be delivered;
    `first_verdict` is there if the optimiser then had to take the engines' difference into account.
    `candidates` are the plans among which this one was chosen.
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
    seconds: Mapping[str, float]
    peak_gb: float | None
    files: tuple[Path, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()

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
            "goals": [goal_record(r) for r in self.results],
            "mu": round(self.plan.total_mu, 2),
            "delivery_s": round(self.delivery_s, 2),
            "violations": list(self.violations),
            "verdict": {**self.verdict.summary(), "corrected": self.corrected},
            "seconds": {name: round(s, 2) for name, s in self.seconds.items()},
            "peak_gb": self.peak_gb,
            "files": [str(f) for f in self.files],
        }


def goal_record(result: GoalResult) -> dict[str, Any]:
    """A goal's result as plain data; `value` is None where it could not be evaluated."""
    return {
        "goal": result.goal.statement,
        "structure": result.goal.structure,
        "value": None if result.value is None else round(result.value, 4),
        "limit": result.goal.limit,
        "unit": result.goal.unit,
        "status": result.status,
    }


def plan_case(
    case_folder: Path,
    out: Path,
    settings: PlanSettings,
    *,
    overwrite: bool = False,
    keep_interrupted: bool = True,
    progress: Progress | None = None,
) -> PlanRun:
    """Plan the case in a DICOM folder and write `FILES` into `out`.

    Every plan is recomputed by Monte Carlo and judged. If only the engines disagree, the optimiser goes
    on from it once with their difference, and the new plan is judged. A plan that does not pass gets its
    report and RD.dcm, but no RP.dcm.
    Ctrl-C while optimising keeps the best plan so far, unless not `keep_interrupted`; at any other time
    nothing is left behind.
    Raises InputError where the input, the settings or the folder `out` cannot be used.
    """
    clock = _Clock(progress)
    with appearing_whole(out, overwrite=overwrite, names=FILES) as folder:
        with clock.stage("read"):
            case, sheet, machine = _read(case_folder, settings)
            gate = gate_limits(settings.gate, settings.uncertainty)
        prior = Prior()
        if settings.prior == "diffusion":
            with clock.stage("predict"):
                prior = prior_of(case, sheet, settings, clock.report)
        with clock.stage("optimise"):
            best = best_plan(case, sheet, machine, settings, prior, clock.report)
        _respect_interrupt(best.optimized, keep_interrupted)
        clock.split("optimise", "dose", best.optimized.seconds.get("dose", 0.0))
        optimized, judged, first = _through_gate(
            folder, case, sheet, machine, settings, gate, best, prior.checks, clock
        )
        _respect_interrupt(optimized, keep_interrupted)
        plan, dose = optimized.plan, optimized.dose
        run = PlanRun(
            case=case,
            sheet=sheet,
            machine=machine,
            plan=plan,
            dose=dose,
            results=_evaluate(sheet, case, dose),
            violations=tuple(violations(plan, machine)),
            verdict=judged.verdict,
            check=judged.check,
            first_verdict=first,
            outcome=optimized.outcome.name,
            delivery_s=delivery_s(plan, machine),
            seconds=clock.seconds,
            peak_gb=None,
            files=(),
            provenance={**provenance(case_folder, case, settings), "gate": asdict(gate), **prior.record()},
            candidates=best.candidates,
        )
        with clock.stage("write"):
            write_control_points(folder / "control_points.csv", plan, machine)
            write_fluence(folder / "fluence.npz", plan, machine, optimized.fluence)
        with clock.stage("report"):
            _report(folder, run, optimized)
        names = [name for name in FILES if name == "run.json" or (folder / name).exists()]
        run = replace(
            run,
            peak_gb=peak_gb(),
            seconds=dict(clock.seconds),
            files=tuple(out.resolve() / name for name in names),
        )
        write_json(folder / "run.json", _run_record(run, optimized))
    return run


class _Clock:
    """Times the stages and hands their progress on."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self.report: Progress = progress or (lambda stage, fraction, note: None)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.report(name, 0.0, "")
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
        self.report(name, 1.0, "")

    def split(self, name: str, part: str, seconds: float) -> None:
        """Count some of a stage's time as a stage of its own."""
        self.seconds[name] -= seconds
        self.seconds[part] = seconds


def _read(case_folder: Path, settings: PlanSettings) -> tuple[Case, GoalSheet, Machine]:
    """The case with the sheet's prescription, the sheet for its targets, and the machine."""
    machine = load_machine(settings.machine)
    machine.require_beam()
    return *read_with_goals(case_folder, settings.goals, settings.reading), machine


def _respect_interrupt(made: Optimized, keep: bool) -> None:
    """Go on with an interrupt that the optimiser answered with its best plan, if that is not to be kept."""
    if made.outcome.name == "INTERRUPTED" and not keep:
        raise KeyboardInterrupt


def _engines(machine: Machine, settings: PlanSettings) -> tuple[Engine, Engine]:
    """The independent engine for the plan and, with other random numbers, for a corrected one."""
    first, second = (
        dose_engine(
            "monte-carlo",
            machine,
            uncertainty=settings.uncertainty,
            max_minutes=settings.check_minutes,
            seed=(settings.seed + again) % 2**32,
        )
        for again in (0, 1)
    )
    return first, second


def _through_gate(
    folder: Path,
    case: Case,
    sheet: GoalSheet,
    machine: Machine,
    settings: PlanSettings,
    gate: GateSettings,
    best: BestPlan,
    more: Sequence[Check],
    clock: _Clock,
) -> tuple[Optimized, Judged, Verdict | None]:
    """The plan judged; if only the engines disagree, a corrected one judged, and the first verdict."""

    def judged(candidate: Optimized, engine: Engine, stage: str) -> Judged:
        with clock.stage(stage):
            return pass_gate(
                folder,
                case,
                sheet,
                machine,
                candidate.plan,
                candidate.dose,
                engine=engine,
                settings=gate,
                more=more,
                progress=lambda done, note: clock.report(stage, done, note),
            )

    first_engine, second_engine = _engines(machine, settings)
    found = judged(best.optimized, first_engine, "check")
    if not found.verdict.correctable:
        return best.optimized, found, None
    with clock.stage("optimise again"):
        better = _corrected(case, sheet, machine, settings, best, found, clock.report)
    return better, judged(better, second_engine, "check again"), found.verdict


def _corrected(
    case: Case,
    sheet: GoalSheet,
    machine: Machine,
    settings: PlanSettings,
    best: BestPlan,
    judged: Judged,
    report: Progress,
) -> Optimized:
    """The plan led on in the knowledge of what the independent engine finds."""
    from vmat_diffusion.qa import smooth_difference

    assert judged.check is not None  # or it would not be correctable
    difference = smooth_difference(best.optimized.dose, judged.check)
    quick = replace(settings, max_minutes=settings.max_minutes * _CORRECTION_SHARE)
    return optimised(
        case, sheet, machine, quick, report, target=best.target, difference=difference, start=best.optimized
    )


def _evaluate(sheet: GoalSheet, case: Case, dose: Dose) -> tuple[GoalResult, ...]:
    from vmat_diffusion.evaluate.goals import evaluate

    return evaluate(sheet, case, dose)


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
