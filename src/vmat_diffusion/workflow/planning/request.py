"""What a plan is asked for: by the user, else by its goal sheet, else by what suits the case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmat_diffusion.errors import GoalError, InputError
from vmat_diffusion.options import marks_of
from vmat_diffusion.workflow.profile import SAID, Chosen, load_profile
from vmat_diffusion.workflow.settings import IDENTITY_SHARED, PlanSettings

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.delivery_goals import Quantity
    from vmat_diffusion.evaluate.goal_types import GoalSheet
    from vmat_diffusion.evaluate.task import Task
    from vmat_diffusion.optimize.arrangement import Arrangement

# What a goal sheet may have in [plan]: how the arcs lie and how finely is computed. What is given beside one
# of the first decides over the others.
_ARCS = ("span", "arc_start_deg", "arc_stop_deg", "collimator_deg", "couch_deg", "avoid_deg", "arcs")
_SHEET_MAY_SAY = (*_ARCS, "seconds_per_turn", "jaws", "grid_mm", "search_minutes", "uncertainty")


def sheet_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a plan that its goal sheet has in [plan], but for those that are `given`.

    A given sector or angle decides over what it contradicts, and the arcs of a plan to be improved over all.
    Of a sheet that cannot be read there are none: it is refused where its goals are read. Raises GoalError
    for a sheet that names a setting that it may not or that is wrong.
    """
    from vmat_diffusion.evaluate.goals import load_goals

    goals = str(given.get("goals"))
    try:
        sheet = load_goals(goals)
    except GoalError:
        return {}
    for name in sheet.plan:
        if name not in _SHEET_MAY_SAY:
            raise GoalError(
                f"goal sheet {sheet.name}: plan may not say {name}; it may say {', '.join(_SHEET_MAY_SAY)}"
            )
    try:
        PlanSettings(goals=goals, **sheet.plan)
    except InputError as fault:
        raise GoalError(f"goal sheet {sheet.name}: plan: {fault}") from None
    without: set[str] = set(_ARCS) if given.get("improve") else set()
    if given.get("arc_start_deg") is not None or given.get("arc_stop_deg") is not None:
        without |= {"span", "arc_start_deg", "arc_stop_deg"}
    if "span" in given:
        without |= {"arc_start_deg", "arc_stop_deg"}
    if given.get("arcs", sheet.plan.get("arcs")) != sheet.plan.get("arcs"):
        without |= {"collimator_deg", "couch_deg"}
    return {name: value for name, value in sheet.plan.items() if name not in without and name not in given}


# What a profile may say of a plan, and whether it must be said.
_PROFILE_MAY_SAY = {name: name == "goals" for name in SAID}
# The least that each of several searches gets: preparation counts in it, and would leave little of less.
_LEAST_MINUTES = 1.0


def plan_settings(*, profile: Path | str | None = None, **values: Any) -> PlanSettings:
    """Checked settings from keywords; raises InputError with one sentence for a wrong one.

    What is not given is as the site's `profile` says, then as the goal sheet has it in [plan], else the
    default.
    """
    chosen = Chosen(values, dict.fromkeys(values, "caller"))
    if profile is not None:
        chosen = chosen.with_profile(load_profile(profile), _PROFILE_MAY_SAY)
    chosen = chosen.with_weaker(sheet_defaults(chosen.values), "goal sheet")
    names = [name for name, (_, _, mark) in marks_of(PlanSettings).items() if not mark.internal]
    settings = PlanSettings(**({"origins": chosen.record(names)} | dict(chosen.values)))
    if settings.identity and settings.shareable:
        raise InputError(IDENTITY_SHARED)
    if (settings.arc_start_deg is None) != (settings.arc_stop_deg is None):
        raise InputError("an arc needs both a start and a stop angle; give both or neither")
    if settings.span == "partial" and settings.arc_start_deg is not None:
        raise InputError("start and stop say where arcs go; leave them out or --span partial")
    angles = (settings.collimator_deg, settings.couch_deg, settings.avoid_deg)
    geometry = (settings.arc_start_deg, settings.span, settings.arcs)
    if settings.improve and (any(given is not None for given in geometry) or any(angles)):
        raise InputError(
            f"the arcs of {settings.improve} are kept, so angles have no effect; leave out --arcs, "
            "--arc-start-deg, --arc-stop-deg, --span, --collimator-deg, --couch-deg and --avoid-deg, or "
            "--improve"
        )
    if settings.force and not settings.improve and settings.prior_file is None:
        raise InputError(
            "--force is for a plan or dose that contradicts the case, of --improve or --prior; leave it out"
        )
    generated = settings.start == "generated"
    if settings.candidates > 1 and settings.prior != "diffusion" and not generated:
        raise InputError(
            f"{settings.candidates} candidates need as many doses to aim at, which the prior "
            f"{Path(settings.prior).name} does not give; choose --prior diffusion, --start generated or one "
            "candidate"
        )
    if generated and settings.improve:
        raise InputError(
            f"the search begins with {settings.improve}; leave out --start generated or --improve"
        )
    from vmat_diffusion.jobs.together import turns_of, workers_for

    least = _LEAST_MINUTES * turns_of(settings.candidates)
    if settings.candidates > 1 and settings.search_minutes < least:
        raise InputError(
            f"{settings.search_minutes:g} minutes are too short for {settings.candidates} "
            f"candidates of at least {_LEAST_MINUTES:g} minute each, {workers_for(settings.candidates)} at a "
            f"time; give --search-minutes {least:g} or fewer --candidates"
        )
    # Angles of their own are an answer to how many arcs there are.
    several = {len(a) for a in (settings.collimator_deg, settings.couch_deg) if a is not None and len(a) > 1}
    if settings.arcs is None and several:
        settings = replace(settings, arcs=max(several))
    for what, given in (("collimator", settings.collimator_deg), ("couch", settings.couch_deg)):
        if given is not None and settings.arcs and len(given) not in (1, settings.arcs):
            raise InputError(
                f"{len(given)} {what} angles for {settings.arcs} arcs; give one for all or one for each"
            )
    return settings


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


def with_asked_delivery(sheet: GoalSheet, settings: PlanSettings) -> GoalSheet:
    """The sheet with the delivery goals that hold for a plan; `remarks` name those that do not.

    A limit in the settings goes before the sheet's, "off" leaves it out. Where both are silent, MU and leaf
    motion have the limits of `default_delivery`.
    """
    from vmat_diffusion.evaluate.delivery_goals import QUANTITIES, asked_delivery, default_delivery

    asked: dict[Quantity, float | None] = {}
    for quantity, known in QUANTITIES.items():
        given = getattr(settings, known.setting)
        if given is not None:
            asked[quantity] = None if given == "off" else float(given)
    defaults = default_delivery(sheet.site, stereotactic=sheet.stereotactic)
    goals, remarks = asked_delivery(sheet.delivery, defaults, asked)
    return replace(sheet, delivery=goals, remarks=(*sheet.remarks, *remarks))
