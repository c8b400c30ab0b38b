"""The optimiser as a run uses it: once, or once for each dose that a plan may aim at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.machine import Machine
from vmat_diffusion.workflow.candidates import Job, made_together, turns_of
from vmat_diffusion.workflow.clock import Progress
from vmat_diffusion.workflow.prior import Prior
from vmat_diffusion.workflow.settings import PlanSettings

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.goals import GoalSheet
    from vmat_diffusion.evaluate.ranking import GoalScore
    from vmat_diffusion.optimize import Optimized
    from vmat_diffusion.plan import Plan


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
    from vmat_diffusion.dicom.write import as_written
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
