"""The aperture stages: the search at few control points, then at more, and at last at all of them.

Every state that a stage yields is frozen and deliverable. So Ctrl-C or the time limit can end the search at
any point, and the newest state is kept.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from vmat_diffusion.geometry import sample_dose
from vmat_diffusion.optimize.aperture import ApertureProblem, Score, SearchStep, Stage, refine_mu, search
from vmat_diffusion.optimize.conflicts import Conflict, observed_conflicts
from vmat_diffusion.optimize.deliverable_set import (
    Apertures,
    ControlPoints,
    DeliverableSet,
    control_points,
    interpolated,
)
from vmat_diffusion.optimize.jaws import with_tracking_jaws
from vmat_diffusion.optimize.mu_price import MuPrice
from vmat_diffusion.optimize.objectives import Objective
from vmat_diffusion.optimize.preparation import Prepared

# From coarse to fine: coarse stages move whole openings, which fine ones cannot.
FROM_MAPS = (
    Stage("apertures", 3, 150, 4.0, 0.8, 0.16, adapt_every=15, time_share=0.4, nodes_mm=4.0),
    Stage("refine", 2, 60, 1.6, 0.4, 0.08, adapt_every=10, time_share=0.6, nodes_mm=4.0),
    Stage("finish", 1, 30, 1.0, 0.15, 0.04, adapt_every=5, time_share=0.8),
)
# The apertures of a plan that exists are too good for coarse steps.
FROM_PLAN = (Stage("improve", 1, 120, 1.2, 0.15, 0.04, adapt_every=15, time_share=0.8),)
# An earlier search has done all but the last steps.
FROM_SEARCH = (Stage("continue", 1, 35, 0.7, 0.15, 0.03, adapt_every=10, time_share=0.8),)
# Between jaws and open leaves: while leaves are searched for, so that they can move, and in the plan.
_JAW_ROOM_MM, JAW_MARGIN_MM = 8.0, 2.0


@dataclass(frozen=True, eq=False)
class SearchStart:
    """Where the search begins: apertures at the control points of the first stage.

    `tracking_jaws` says whether the jaws may follow these apertures at once. A search that `continues` an
    earlier one takes over its `history` and `goal_weights`, and leaves out no stage when time is short.
    """

    apertures: Apertures
    objective: Objective
    stages: tuple[Stage, ...]
    tracking_jaws: bool
    mu_price: MuPrice
    history: tuple[Mapping[str, object], ...] = ()
    goal_weights: tuple[float, ...] = ()
    continues: bool = False


@dataclass(frozen=True, eq=False)
class SearchState:
    """A deliverable state of the search.

    `allowed` is the set that `apertures` lie in, with their control points. `conflicts` are those observed at
    the end of the last stage. `out_of_time`: the time limit ended a stage, or left one out.
    """

    allowed: DeliverableSet
    apertures: Apertures
    objective: Objective
    history: tuple[Mapping[str, object], ...]
    mu_price: MuPrice
    conflicts: tuple[Conflict, ...] = ()
    out_of_time: bool = False
    interrupted: bool = False

    @property
    def points(self) -> ControlPoints:
        """The control points of the apertures."""
        return self.allowed.points


def search_apertures(prepared: Prepared, start: SearchStart) -> SearchState:
    """The last state of all stages, or the newest one at Ctrl-C or the time limit, at all control points."""
    points = control_points(prepared.frames, start.stages[0].every)
    allowed, apertures = deliverable(prepared, points, start.apertures, tracking_jaws=start.tracking_jaws)
    newest = SearchState(allowed, apertures, start.objective, start.history, start.mu_price)
    try:
        for state in _states(prepared, start, newest):
            newest = state
    except KeyboardInterrupt:
        newest = replace(newest, interrupted=True)
    return _at_every(prepared, newest, 1)


def _states(prepared: Prepared, start: SearchStart, state: SearchState) -> Iterator[SearchState]:
    """The states of all stages in turn."""
    if start.continues:
        yield from _refined(prepared, state, start.stages[0], start.goal_weights)
        return
    for stage in start.stages:
        state = _at_every(prepared, state, stage.every)
        if not prepared.task.time.leaves_time(stage.time_share):
            state = replace(state, out_of_time=True)
            yield state
            continue
        yield state
        if stage.every > 1:
            problem = prepared.problem(state.allowed, state.objective, state.mu_price, stage)
            state, _ = yield from _searched(prepared, state, problem, stage)
        else:
            state = yield from _refined(prepared, state, stage)


def _searched(
    prepared: Prepared, state: SearchState, problem: ApertureProblem, stage: Stage
) -> Generator[SearchState, None, tuple[SearchState, Apertures]]:
    """The best state of each iteration; returns the last one, and the leader of the search."""
    stage = stage.scaled(prepared.effort)
    limit, leader, iterations = prepared.task.time, state.apertures, 0
    steps = search(problem, stage, state.apertures)
    while limit.leaves_time(stage.time_share) and (step := next(steps, None)) is not None:
        leader, iterations = step.leader, iterations + 1
        row = _history_row(stage, step, limit.spent_s)
        state = replace(
            state,
            apertures=step.best,
            objective=step.objective,
            mu_price=step.mu_price,
            history=(*state.history, row),
        )
        yield state
        prepared.task.progress(
            stage.name,
            (step.iteration + 1) / stage.iterations,
            f"objective {step.value:.4f}, {step.missed} goals open",
        )
    if iterations < stage.iterations:
        state = replace(state, out_of_time=True)
        yield state
    return state, leader


def _history_row(stage: Stage, step: SearchStep, seconds: float) -> dict[str, object]:
    return {
        "stage": stage.name,
        "round": step.round,
        "iteration": step.iteration,
        "objective": step.value,
        "best": step.best_value,
        "missed": step.missed,
        "seconds": round(seconds, 2),
    }


def _refined(
    prepared: Prepared, state: SearchState, stage: Stage, goal_weights: Sequence[float] = ()
) -> Generator[SearchState, None, SearchState]:
    """Search at all control points, then the MU alone, both on the full dose; returns the last state.

    Five states are compared: the one before, the two that the search found, and these two with their MU
    refined. The state that fails fewest goals is kept, higher priorities first. `goal_weights` are the
    weights to begin with.
    """
    problem = prepared.problem(state.allowed, prepared.objective_for_leaves, state.mu_price, stage)
    problem = replace(problem, correction=_correction_at_points(prepared, problem, state.apertures))
    objective = problem.objective.weighted_as(state.objective, problem.dose(state.apertures))
    problem, state = replace(problem, objective=objective), replace(state, objective=objective)
    if goal_weights:
        objective = problem.objective.resume(goal_weights, problem.dose(state.apertures))
        problem, state = replace(problem, objective=objective), replace(state, objective=objective)
    before = state.apertures
    state, leader = yield from _searched(prepared, state, problem, stage)
    problem, last = replace(problem, objective=state.objective, mu_price=state.mu_price), state.apertures
    candidates = [before, leader, refine_mu(problem, leader), last, refine_mu(problem, last)]
    state = replace(state, apertures=_best(problem, candidates)[0])
    if (wide_mm := prepared.task.settings.open_gap_mm) is not None:
        state = replace(state, apertures=state.allowed.closed_or_wide(state.apertures, wide_mm))
    yield state
    # The leaves have moved since the full dose was read, and the jaws come nearer. The full dose is read
    # again, and the MU alone make the difference good.
    points = control_points(prepared.frames, 1)
    allowed, apertures = deliverable(
        prepared, points, state.apertures, tracking_jaws=True, room_mm=JAW_MARGIN_MM
    )
    state = replace(state, allowed=allowed, apertures=apertures)
    yield state
    problem = problem.within(allowed)
    problem = replace(problem, correction=_correction(prepared, problem, apertures))
    objective, _ = problem.objective.adapt(problem.dose(apertures))
    problem = replace(problem, objective=objective)
    apertures, score = _best(problem, [apertures, refine_mu(problem, apertures)])
    state = replace(state, apertures=apertures, objective=objective)
    yield state
    limit = problem.mu_price.goal
    missed = (*score.missed, *(() if score.within_mu or limit is None else (limit,)))
    if missed:
        conflicts = observed_conflicts(missed, problem.gradients(apertures))
        state = replace(state, conflicts=conflicts)
        yield state
    return state


def _best(problem: ApertureProblem, candidates: list[Apertures]) -> tuple[Apertures, Score]:
    """The apertures that fail fewest goals, of equals those of the lowest objective, with their score."""
    scores = [problem.score(apertures) for apertures in candidates]
    best = min(range(len(scores)), key=lambda k: (scores[k].missed_by_priority, scores[k].objective))
    return candidates[best], scores[best]


def _correction_at_points(prepared: Prepared, problem: ApertureProblem, apertures: Apertures) -> torch.Tensor:
    """As `_correction`, with the full dose computed at the points: leaves are still to move."""
    objective, plan = problem.objective, prepared.plan(problem.points, apertures)
    full = prepared.full_dose.at_points(plan, prepared.density, objective.points_mm)
    return _added(problem, apertures, full / objective.reference_gy)


def _correction(prepared: Prepared, problem: ApertureProblem, apertures: Apertures) -> torch.Tensor:
    """The correction with which the problem's dose of these apertures is the full dose, read off its grid."""
    objective = problem.objective
    full = prepared.full_dose(prepared.plan(problem.points, apertures), prepared.density.grid)
    read = sample_dose(full.gy, full.grid, objective.points_mm) / objective.reference_gy
    return _added(problem, apertures, read)


def _added(problem: ApertureProblem, apertures: Apertures, full: NDArray) -> torch.Tensor:
    """The problem's correction and what the full relative dose at its points has beyond its own."""
    return problem.correction + torch.as_tensor(full - problem.dose(apertures)).float()


def _at_every(prepared: Prepared, state: SearchState, every: int) -> SearchState:
    """The state at every n-th control point, with jaws that follow it; the same if these are its own."""
    points = control_points(prepared.frames, every)
    if np.array_equal(points.angles_deg, state.points.angles_deg):
        return state
    fine = interpolated(state.points, points, state.apertures)
    allowed, apertures = deliverable(prepared, points, fine, tracking_jaws=True)
    return replace(state, allowed=allowed, apertures=apertures)


def deliverable(
    prepared: Prepared,
    points: ControlPoints,
    apertures: Apertures,
    *,
    tracking_jaws: bool,
    room_mm: float = _JAW_ROOM_MM,
) -> tuple[DeliverableSet, Apertures]:
    """Apertures projected onto the deliverable set, and that set; jaws follow the leaves where they can."""
    machine = prepared.task.machine
    allowed = DeliverableSet(points, machine, prepared.rates)
    apertures = allowed.project(apertures)
    if tracking_jaws and prepared.tracking_jaws:
        edges = prepared.model.row_edges_mm
        points = with_tracking_jaws(points, apertures, machine, edges, room_mm)
    allowed = DeliverableSet(points, machine, prepared.rates)
    return allowed, allowed.project(apertures)
