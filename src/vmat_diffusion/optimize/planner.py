"""Goals in, deliverable plan out: prepare, fluence maps, apertures, finish."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.evaluate.goals import GoalSheet, evaluate, evaluate_delivery
from vmat_diffusion.machine import Machine
from vmat_diffusion.optimize.aperture_stages import (
    FROM_MAPS,
    FROM_PLAN,
    FROM_SEARCH,
    SearchStart,
    SearchState,
    search_apertures,
)
from vmat_diffusion.optimize.arcs import target_points
from vmat_diffusion.optimize.conflicts import (
    Conflict,
    delivery_conflicts,
    merge_conflicts,
    proven_conflicts,
)
from vmat_diffusion.optimize.deliverable_set import Apertures
from vmat_diffusion.optimize.delivery import with_delivery
from vmat_diffusion.optimize.fluence_map import (
    SECTOR_DEG,
    FluenceMaps,
    FluenceProblem,
    Sectors,
    columns_over_jaws,
    cut_into_sectors,
    first_apertures,
    fluence_record,
    open_bixels,
    optimize_fluence,
)
from vmat_diffusion.optimize.normalization import normalized
from vmat_diffusion.optimize.objective_terms import ObjectiveTerm
from vmat_diffusion.optimize.objectives import Objective
from vmat_diffusion.optimize.plan_apertures import apertures_of
from vmat_diffusion.optimize.preparation import PlanningTask, Prepared, TimeLimit, prepare
from vmat_diffusion.optimize.result import Optimized, Outcome, Settings
from vmat_diffusion.optimize.sequence import LARGEST_CROSSING
from vmat_diffusion.plan import Plan, at_pace_of_leaves
from vmat_diffusion.progress import Clock, Progress, silent

# Evaluations of the objective for the fluence maps: so many at an effort of 1, not more than 1.5 times as
# many, where maps no longer change, and enough at the least that they resemble the targets.
_MAP_EVALUATIONS, _MOST_MAP_EFFORT, _LEAST_MAP_EVALUATIONS = 300, 1.5, 30


def optimize(
    case: Case,
    sheet: GoalSheet,
    machine: Machine,
    *,
    target: Dose | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
    finalize: Callable[[Plan], Plan] = lambda plan: plan,
    difference: Dose | None = None,
    start: Optimized | None = None,
    improve: Plan | None = None,
    terms: Sequence[ObjectiveTerm] = (),
    maps_of: Callable[[Prepared], OptimizedMaps] | None = None,
) -> Optimized:
    """Plan a case for a goal sheet that was fitted to it.

    `target` is a dose to aim at, on any grid: organs are pushed below its histograms where the goals allow.
    `finalize` turns the plan into what a file will hold (rounded), so that the dose is that of the
    file. Ctrl-C and `max_minutes` end the search with the best deliverable plan so far. About 2 to 5
    minutes and 2 to 4 GB on two cores for a head and neck. `difference` in Gy, such as a better
    engine's dose of a similar plan less this one's, is added to every dose, the returned one included.
    `start`, made for the same case, sheet, machine and settings, is continued by the last stage of the
    search alone, which takes about a third of the time. `improve` is a plan from any system whose arcs
    and apertures the search begins with in place of fluence maps. `terms` are added to those that the sheet
    makes. `maps_of` makes the fluence maps that leaves sweep at first, in place of `optimize_maps`. Without
    `settings` they are the defaults with the sheet's limits of the delivery.
    Raises GoalError for a case without the sheet's targets, PlanError for what cannot be planned.
    """
    settings = settings or with_delivery(Settings(), sheet, machine)
    task = PlanningTask(
        case=case,
        sheet=sheet,
        machine=machine,
        settings=settings,
        target=target,
        progress=progress or silent,
        finalize=finalize,
        difference=difference,
        start=start,
        improve=improve,
        time=TimeLimit(settings.max_minutes),
        terms=terms,
    )
    clock = Clock(None)
    with clock.stage("prepare"):
        prepared = prepare(task)
    if task.existing_plan is None:
        with clock.stage("fluence maps"):
            maps = (maps_of or optimize_maps)(prepared)
        with clock.stage("apertures"):
            state = search_apertures(prepared, _start_from_maps(prepared, maps))
        fluence: Mapping[str, NDArray] = fluence_record(maps.sectors, maps.maps, prepared.model.row_edges_mm)
    else:
        with clock.stage("apertures"):
            state = search_apertures(prepared, _start_from_plan(prepared, task.existing_plan))
        fluence = start.fluence if start else {}
    with clock.stage("dose"):
        optimized = finish(prepared, state, fluence)
    return replace(optimized, seconds={stage: round(s, 2) for stage, s in clock.seconds.items()})


@dataclass(frozen=True, eq=False)
class OptimizedMaps:
    """Fluence maps of all sectors, and the objective as it was adapted while they were found."""

    sectors: Sectors
    maps: FluenceMaps
    objective: Objective


def optimize_maps(prepared: Prepared) -> OptimizedMaps:
    """The fluence maps at the middle of every sector."""
    sectors = cut_into_sectors(prepared.frames)
    problem = fluence_problem(prepared, sectors, "fluence maps")
    effort = min(prepared.task.settings.effort, _MOST_MAP_EFFORT)
    maps, objective = optimize_fluence(
        problem,
        iterations=max(int(_MAP_EVALUATIONS * effort), _LEAST_MAP_EVALUATIONS),
        progress=prepared.task.progress,
    )
    return OptimizedMaps(sectors, maps, objective)


def fluence_problem(
    prepared: Prepared, sectors: Sectors, stage: str, *, free: bool = False
) -> FluenceProblem:
    """The problem of the maps of some sectors; `free` for fluence that no leaves deliver."""
    task = prepared.task
    bixels = open_bixels(
        sectors,
        target_points(task.case, task.targets),
        prepared.model,
        isocenter_mm=prepared.isocenter_mm,
        patient_position=task.case.patient_position,
        sad_mm=task.machine.sad_mm,
    )
    objective = prepared.objective_for_maps
    (sampled,) = prepared.sampled_doses(objective, sectors.middles, [prepared.model], stage)
    return FluenceProblem(
        objective,
        sampled,
        prepared.model,
        sectors.jaws_mm[:, 2:],
        bixels,
        prepared.relative_per_mu,
        prepared.mu_price,
        _crossing(bixels, prepared),
        free,
    )


def _crossing(open_bixels: NDArray[np.bool_], prepared: Prepared) -> NDArray[np.float64]:
    """The share of a sector's time in which leaves cross each row's open bixels, `[maps, leaf rows]`."""
    columns = columns_over_jaws(prepared.model)
    travel_mm = prepared.rates.travel_mm_per_deg(prepared.task.machine.limits) * SECTOR_DEG
    return np.minimum((open_bixels * np.diff(columns)).sum(axis=2) / travel_mm, LARGEST_CROSSING)


def _start_from_maps(prepared: Prepared, maps: OptimizedMaps) -> SearchStart:
    """Sweeps through the fluence maps, with jaws around the targets."""
    sweeps = first_apertures(
        maps.sectors,
        maps.maps,
        prepared.task.machine.limits,
        prepared.rates,
        every=FROM_MAPS[0].every,
    )
    objective = prepared.objective_for_first_leaves.weighted_as(maps.objective)
    return SearchStart(sweeps, objective, FROM_MAPS, tracking_jaws=False, mu_price=prepared.mu_price)


def _start_from_plan(prepared: Prepared, plan: Plan) -> SearchStart:
    """The apertures of a plan, at its dose per fraction, and what is known of the search that made it."""
    apertures = apertures_of(plan, prepared.frames, prepared.pairs)
    mu = apertures.mu * (plan.fractions / prepared.task.sheet.prescription.fractions)
    apertures, earlier = Apertures(apertures.leaves_mm, mu), prepared.task.start
    if earlier is None:
        return SearchStart(
            apertures,
            prepared.objective_for_leaves,
            FROM_PLAN,
            tracking_jaws=True,
            mu_price=prepared.mu_price,
        )
    return SearchStart(
        apertures,
        prepared.objective_for_leaves,
        FROM_SEARCH,
        tracking_jaws=True,
        mu_price=prepared.mu_price,
        history=earlier.history,
        goal_weights=earlier.goal_weights,
        continues=True,
    )


def finish(prepared: Prepared, state: SearchState, fluence: Mapping[str, NDArray]) -> Optimized:
    """The plan as it is written, normalised on its full dose, with what the search leaves open."""
    task = prepared.task
    task.progress("dose", 0.0, "final dose")

    def written(plan: Plan) -> Plan:
        return task.finalize(at_pace_of_leaves(plan, task.machine.limits))

    def full_dose(plan: Plan) -> Dose:
        grid = prepared.density.grid
        return prepared.full_dose(plan, grid, task.progress)

    plan = written(prepared.plan(state.points, state.apertures))
    plan, dose = normalized(plan, full_dose, task.case, task.sheet, task.machine.limits, finalize=written)
    conflicts = _conflicts(task, state, plan, dose)
    return Optimized(
        plan,
        dose,
        _outcome(task, state, conflicts),
        state.history,
        fluence,
        goal_weights=state.objective.goal_weights,
        conflicts=conflicts,
        frames=prepared.frames,
    )


def _conflicts(task: PlanningTask, state: SearchState, plan: Plan, dose: Dose) -> tuple[Conflict, ...]:
    """The goals that fail on the final plan, each with the goals that oppose it, observed or proven."""
    observed = {str(conflict.goal): conflict for conflict in state.conflicts}
    results = evaluate(task.sheet, task.case, dose)
    failed = [r.goal for r in results if r.status == "fail" and not r.excused]
    still_open = [observed.get(str(goal), Conflict(goal, ())) for goal in failed]
    delivered = delivery_conflicts(evaluate_delivery(task.sheet, plan, task.machine), state.conflicts)
    return merge_conflicts(proven_conflicts(task.case, task.sheet), [*still_open, *delivered])


def _outcome(task: PlanningTask, state: SearchState, conflicts: tuple[Conflict, ...]) -> Outcome:
    """How the search ended; a search that continues an unfinished one stays unfinished."""
    if state.interrupted:
        return Outcome.INTERRUPTED
    if state.out_of_time:
        return Outcome.OUT_OF_TIME
    if task.start is not None and task.start.outcome in (Outcome.INTERRUPTED, Outcome.OUT_OF_TIME):
        return task.start.outcome
    if any(conflict.proven for conflict in conflicts):
        return Outcome.INFEASIBLE
    return Outcome.STALLED if conflicts else Outcome.CONVERGED
