"""What stands between an optimised plan and RP.dcm: its files read back, recomputed and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.engines import Engine, dose_engine
from vmat_diffusion.jobs.together import Job, made_together, turns_of
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan, violations
from vmat_diffusion.progress import Clock, Progress
from vmat_diffusion.workflow.predict import Prior
from vmat_diffusion.workflow.settings import PlanSettings

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.goals import GoalSheet
    from vmat_diffusion.evaluate.ranking import GoalScore
    from vmat_diffusion.optimize import Optimized
    from vmat_diffusion.plan import Plan
    from vmat_diffusion.qa import Check, GateSettings, Verdict


PLAN_FILE, DOSE_FILE = "RP.dcm", "RD.dcm"


@dataclass(frozen=True, eq=False)
class Judged:
    """The verdict on a plan, and the independent dose it rests on; None where none was computed."""

    verdict: Verdict
    check: Dose | None


def pass_gate(
    folder: Path,
    case: Case,
    sheet: GoalSheet,
    machine: Machine,
    plan: Plan,
    dose: Dose,
    *,
    engine: Engine,
    settings: GateSettings,
    more: Sequence[Check] = (),
    progress: Callable[[float, str], None] | None = None,
) -> Judged:
    """Write plan and dose into `folder`, recompute what the files say, and judge it, `more` included.

    The independent engine gets the plan as it is read back, so that a fault in writing shows as well. If
    any check fails, RP.dcm is removed and RD.dcm refers to no plan. A plan that the machine cannot deliver
    is neither written nor recomputed; its dose is written.
    """
    from vmat_diffusion.dicom import read_plan, write_dose, write_plan
    from vmat_diffusion.qa import PlanFiles, judge

    rp, rd = folder / PLAN_FILE, folder / DOSE_FILE
    check: Dose | None = None
    files: PlanFiles | None = None
    if not violations(plan, machine):
        write_plan(rp, plan, case, machine, prescription=sheet.prescription, overwrite=True)
        write_dose(rd, dose, case, plan_file=rp, overwrite=True)
        files = PlanFiles(rp, rd)
        check = engine(read_plan(rp, machine), case, dose.grid, progress=progress)
    verdict = judge(case, sheet, plan, machine, dose, check, settings=settings, files=files, more=more)
    if not verdict.passed:
        rp.unlink(missing_ok=True)
        write_dose(rd, dose, case, plan_file=None, overwrite=True)
    return Judged(verdict, check)


# The most of the time limit that a correction of a plan may take, and how many there may be: the difference
# found belongs to the plan before, and where it is large, as in the air of a target, one is not enough.
_CORRECTION_SHARE, _CORRECTIONS = 1 / 3, 2


@dataclass(frozen=True, eq=False)
class Gated:
    """A plan with its verdict; `first` is that of the plan before it was corrected, if it was."""

    optimized: Optimized
    judged: Judged
    first: Verdict | None = None


def _engine(machine: Machine, settings: PlanSettings, again: int) -> Engine:
    """The independent engine, with other random numbers for each correction of a plan."""
    return dose_engine(
        "monte-carlo",
        machine,
        uncertainty=settings.uncertainty,
        max_minutes=settings.check_minutes,
        seed=(settings.seed + again) % 2**32,
    )


def through_gate(
    folder: Path,
    case: Case,
    sheet: GoalSheet,
    machine: Machine,
    settings: PlanSettings,
    gate: GateSettings,
    made: Made,
    more: Sequence[Check],
    clock: Clock,
) -> Gated:
    """The plan judged, its files in `folder` if it passes.

    If only the engines disagree it is led on in the knowledge of what the independent engine finds, and
    judged again, at most twice.
    """
    from vmat_diffusion.qa import smooth_difference

    quick = replace(settings, max_minutes=settings.max_minutes * _CORRECTION_SHARE)

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

    now, first, difference = made.optimized, None, None
    found = judged(now, _engine(machine, settings, 0), "check")
    for again in range(1, _CORRECTIONS + 1):
        if not found.verdict.correctable or found.check is None:
            break
        first = first or found.verdict
        difference = _more(smooth_difference(now.dose, found.check), difference)
        with clock.stage("optimise again"):
            now = optimised(
                case, sheet, machine, quick, clock.report,
                target=made.target, difference=difference, start=now,
            )  # fmt: skip
        found = judged(now, _engine(machine, settings, again), "check again")
    return Gated(now, found, first)


def _more(found: Dose, before: Dose | None) -> Dose:
    """What is to be added to the fast engine's dose: what a check finds, beside what was added before."""
    return found if before is None else replace(found, gy=found.gy + before.on(found.grid))


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
class Made:
    """A plan and the dose that it aims at, if there is one."""

    optimized: Optimized
    target: Dose | None = None


def plans_for(
    case: Case,
    sheet: GoalSheet,
    machine: Machine,
    settings: PlanSettings,
    prior: Prior,
    report: Progress,
    *,
    improve: Plan | None = None,
) -> tuple[Made, ...]:
    """A plan for each of the prior's doses, made at the same time; one by the goals if there is none.

    All together end within the time limit. `improve` is a plan to start from each time. After Ctrl-C those
    that have no plan yet are left out.
    """
    if len(prior.doses) < 2:
        target = prior.doses[0] if prior.doses else None
        return (
            Made(optimised(case, sheet, machine, settings, report, target=target, improve=improve), target),
        )
    share = replace(settings, max_minutes=settings.max_minutes / turns_of(len(prior.doses)))
    jobs = [
        Job(optimised, (case, sheet, machine, share), {"target": target, "improve": improve})
        for target in prior.doses
    ]
    found = zip(made_together(jobs, report), prior.doses, strict=True)
    return tuple(Made(one, target) for one, target in found if one is not None)


def optimised(
    case: Case,
    sheet: GoalSheet,
    machine: Machine,
    settings: PlanSettings,
    report: Progress,
    *,
    target: Dose | None = None,
    **start: Any,
) -> Optimized:
    """The plan exactly as its file will hold it, with the dose of that plan; `start` is handed on."""
    from vmat_diffusion.dicom import as_written
    from vmat_diffusion.optimize import Settings, optimize

    def for_each_arc(angles: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return angles * settings.arcs if angles is not None and len(angles) == 1 else angles

    own = Settings(
        arcs=settings.arcs,
        partial=settings.span == "partial",
        collimator_deg=for_each_arc(settings.collimator_deg),
        couch_deg=for_each_arc(settings.couch_deg),
        avoid_deg=settings.avoid_deg,
        seconds_per_turn=settings.seconds_per_turn,
        jaw_tracking=None if settings.jaws is None else settings.jaws == "tracking",
        grid_mm=settings.grid_mm,
        seed=settings.seed,
        max_minutes=settings.max_minutes,
    )
    if settings.arc_start_deg is not None and settings.arc_stop_deg is not None:
        own = replace(own, arc_start_deg=settings.arc_start_deg, arc_stop_deg=settings.arc_stop_deg)
    return optimize(
        case,
        sheet,
        machine,
        settings=own,
        progress=report,
        finalize=as_written,
        target=target,
        **start,
    )
