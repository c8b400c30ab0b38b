"""The optimiser as a run uses it: once, or once for each dose that a plan may aim at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.machine import Machine
from vmat_diffusion.workflow.prior import Prior
from vmat_diffusion.workflow.settings import PlanSettings

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.goals import GoalSheet
    from vmat_diffusion.evaluate.ranking import GoalScore
    from vmat_diffusion.optimize import Optimized
    from vmat_diffusion.plan import Plan

Progress = Callable[[str, float, str], None]


@dataclass(frozen=True)
class Candidate:
    """One of several plans: how it meets the goals, how its search ended, whether it is the one."""

    number: int
    score: GoalScore
    outcome: str
    chosen: bool = False

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "candidate": self.number,
            "chosen": self.chosen,
            **self.score.record(),
            "outcome": self.outcome,
        }


@dataclass(frozen=True, eq=False)
class BestPlan:
    """The plan that is kept, the dose it aims at, and all plans that were made if there were several."""

    optimized: Optimized
    target: Dose | None = None
    candidates: tuple[Candidate, ...] = ()


def best_plan(
    case: Case,
    sheet: GoalSheet,
    machine: Machine,
    settings: PlanSettings,
    prior: Prior,
    report: Progress,
    *,
    improve: Plan | None = None,
) -> BestPlan:
    """A plan for each of the prior's doses within the time limit, and the one that meets the goals best.

    `improve` is a plan to start from each time. After Ctrl-C no further one is begun.
    """
    from vmat_diffusion.evaluate.goals import evaluate
    from vmat_diffusion.evaluate.ranking import goal_score
    from vmat_diffusion.optimize import Outcome

    if len(prior.doses) < 2:
        target = prior.doses[0] if prior.doses else None
        made = optimised(case, sheet, machine, settings, report, target=target, improve=improve)
        return BestPlan(made, target)
    count = len(prior.doses)
    share = replace(settings, max_minutes=settings.max_minutes / count)
    tried: list[tuple[GoalScore, Optimized]] = []
    for k in range(count):

        def part(stage: str, done: float, note: str, first: str = f"{k + 1}/{count}") -> None:
            report(f"{first} {stage}", done, note)

        made = optimised(case, sheet, machine, share, part, target=prior.doses[k], improve=improve)
        tried.append((goal_score(evaluate(sheet, case, made.dose)), made))
        if made.outcome == Outcome.INTERRUPTED:
            break
    best = min(range(len(tried)), key=lambda k: tried[k][0])
    candidates = tuple(
        Candidate(k, score, made.outcome.name, k == best) for k, (score, made) in enumerate(tried)
    )
    return BestPlan(tried[best][1], prior.doses[best], candidates)


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

    collimators = settings.collimator_deg
    if collimators is not None and len(collimators) == 1:
        collimators *= settings.arcs
    own = Settings(
        arcs=settings.arcs,
        collimator_deg=collimators,
        avoid_deg=settings.avoid_deg,
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
