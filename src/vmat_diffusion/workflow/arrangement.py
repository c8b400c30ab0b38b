"""The arcs of a plan in its settings: chosen by target and site where neither user nor sheet says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from vmat_diffusion.evaluate.task import Task
from vmat_diffusion.workflow.settings import PlanSettings

if TYPE_CHECKING:
    from vmat_diffusion.optimize.arrangement import Arrangement


def arranged(task: Task, settings: PlanSettings) -> tuple[PlanSettings, Arrangement | None]:
    """The settings with every choice of arcs made, and why; None where nothing was left to choose.

    The arcs of a plan to be improved are kept. Raises PlanError for targets or a machine that no arcs can be
    planned for.
    """
    chosen = (settings.arcs, settings.span, settings.avoid_deg)
    if settings.improve or None not in chosen:
        return settings, None
    from vmat_diffusion.optimize.arrangement import Asked, arrange

    asked = Asked(
        arcs=settings.arcs,
        span=settings.span,
        start_deg=settings.arc_start_deg,
        stop_deg=settings.arc_stop_deg,
        avoid_deg=settings.avoid_deg,
        collimators_deg=settings.collimator_deg,
        couches_deg=settings.couch_deg,
    )
    found = arrange(task.case, task.sheet.prescription, task.machine, site=task.sheet.site, asked=asked)
    return replace(settings, arcs=found.arcs, span=found.span, avoid_deg=found.avoid_deg), found
