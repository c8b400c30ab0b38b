"""The search within a planning run: with which tools, from which starts, and what the optimiser is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.engines import DoseEngine, dose_engine
from vmat_diffusion.evaluate.task import Task
from vmat_diffusion.jobs.together import Job, made_together, turns_of
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan
from vmat_diffusion.progress import Progress
from vmat_diffusion.workflow.planning.prior import Prior
from vmat_diffusion.workflow.settings import PlanSettings

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.goals import GoalResult, GoalSheet
    from vmat_diffusion.optimize import Optimized, Settings
    from vmat_diffusion.optimize.ideal import Yardstick


class Optimizer(Protocol):
    """Searches a plan; the arguments are those of `vmat_diffusion.optimize.optimize`."""

    def __call__(self, case: Case, sheet: GoalSheet, machine: Machine, **options: Any) -> Optimized:
        """A plan with its dose by the fast engine."""
        ...


def _own_optimizer(case: Case, sheet: GoalSheet, machine: Machine, **options: Any) -> Optimized:
    from vmat_diffusion.optimize import optimize

    return optimize(case, sheet, machine, **options)


def _ideal_fluence(
    task: Task,
    made: Optimized,
    results: Sequence[GoalResult],
    settings: PlanSettings,
    progress: Progress,
) -> Yardstick | None:
    """What ideal fluence makes of the goals of a plan."""
    from vmat_diffusion.optimize.ideal import yardstick

    return yardstick(
        task,
        made,
        results,
        settings=optimizer_settings(settings, task.sheet, task.machine),
        whole=settings.yardstick == "always",
        progress=progress,
    )


def _monte_carlo(machine: Machine, settings: PlanSettings, correction: int) -> DoseEngine:
    """The project's independent engine, with other random numbers for each correction of a plan."""
    return dose_engine(
        "monte-carlo",
        machine,
        uncertainty=settings.uncertainty,
        max_minutes=settings.check_minutes,
        seed=(settings.seed + correction) % 2**32,
    )


@dataclass(frozen=True)
class PlanningTools:
    """What a planning run works with; the defaults are the project's own.

    `check_engine(machine, settings, correction)` makes the independent engine for the first check
    (correction 0) and for those after corrections. `run_together(jobs, progress)` searches the candidates;
    its default starts processes, which import `optimizer` by its name. `yardstick` measures a plan's goals
    against ideal fluence.
    """

    optimizer: Optimizer = _own_optimizer
    check_engine: Callable[[Machine, PlanSettings, int], DoseEngine] = _monte_carlo
    run_together: Callable[[Sequence[Job], Progress], Sequence[Optimized | None]] = made_together
    yardstick: Callable[[Task, Optimized, Sequence[GoalResult], PlanSettings, Progress], Yardstick | None] = (
        _ideal_fluence
    )


def search_plan(
    task: Task,
    settings: PlanSettings,
    progress: Progress,
    *,
    optimizer: Optimizer = _own_optimizer,
    **start: Any,
) -> Optimized:
    """The plan exactly as its file will hold it, with the dose of that plan.

    `start` is what the optimiser takes besides: `target`, `improve`, `difference`, `start`.
    """
    from vmat_diffusion.dicom import as_written
    from vmat_diffusion.workflow.planning.request import arranged

    settings, _ = arranged(task, settings)
    return optimizer(
        task.case,
        task.sheet,
        task.machine,
        settings=optimizer_settings(settings, task.sheet, task.machine),
        progress=progress,
        finalize=as_written,
        **start,
    )


def search_plans(
    task: Task,
    settings: PlanSettings,
    prior: Prior,
    *,
    improve: Plan | None,
    tools: PlanningTools,
    progress: Progress,
) -> list[tuple[Optimized, Dose | None]]:
    """A search for each of the prior's doses, with that dose; one by the goals alone if there is none.

    Several are made at the same time and end within the time limit together. After Ctrl-C those without a
    plan are left out.
    """
    start: dict[str, Any] = {"improve": improve, "optimizer": tools.optimizer}
    aims: list[Dose | None] = [*prior.doses]
    if len(aims) < 2 and settings.start == "generated":
        aims = (aims or [None]) * settings.candidates
    starts = [{"target": aim, **start, **_first_maps(settings, k)} for k, aim in enumerate(aims or [None])]
    if len(starts) == 1:
        return [(search_plan(task, settings, progress, **starts[0]), starts[0]["target"])]
    share = replace(settings, search_minutes=settings.search_minutes / turns_of(len(starts)))
    jobs = [Job(search_plan, (task, share), own) for own in starts]
    found = zip(tools.run_together(jobs, progress), aims, strict=True)
    return [(optimized, target) for optimized, target in found if optimized is not None]


def _first_maps(settings: PlanSettings, number: int) -> dict[str, Any]:
    """What makes the fluence maps of the n-th search, where it is not the optimiser itself."""
    if settings.start != "generated":
        return {}
    from vmat_diffusion.generate.sample import GeneratedMaps

    return {"maps_of": GeneratedMaps(settings.generator, settings.seed, number)}


def optimizer_settings(settings: PlanSettings, sheet: GoalSheet, machine: Machine) -> Settings:
    """What was chosen and what the sheet asks of the delivery, in the optimiser's words.

    The settings are those of `arranged`.
    """
    from vmat_diffusion.optimize import Settings
    from vmat_diffusion.optimize.delivery import with_delivery

    arcs = settings.arcs or Settings.arcs

    def for_each_arc(angles: tuple[float, ...] | None) -> tuple[float, ...] | None:
        return angles * arcs if angles is not None and len(angles) == 1 else angles

    chosen = Settings(
        arcs=arcs,
        partial=settings.span == "partial",
        collimator_deg=for_each_arc(settings.collimator_deg),
        couch_deg=for_each_arc(settings.couch_deg),
        avoid_deg=settings.avoid_deg or (),
        jaw_tracking=None if settings.jaws is None else settings.jaws == "tracking",
        grid_mm=settings.grid_mm,
        seed=settings.seed,
        max_minutes=settings.search_minutes,
    )
    if settings.arc_start_deg is not None and settings.arc_stop_deg is not None:
        chosen = replace(chosen, arc_start_deg=settings.arc_start_deg, arc_stop_deg=settings.arc_stop_deg)
    chosen = with_delivery(chosen, sheet, machine)
    if settings.seconds_per_turn is None:
        return chosen
    return replace(chosen, seconds_per_turn=settings.seconds_per_turn)
