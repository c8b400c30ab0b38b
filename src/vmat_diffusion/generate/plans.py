"""Samples as plans: fluence swept by leaves, deliverable by construction, ranked by the goals."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.tissue import dose_grid
from vmat_diffusion.evaluate.goals import GoalSheet, evaluate
from vmat_diffusion.evaluate.ranking import GoalScore, goal_score
from vmat_diffusion.generate.deliver import swept
from vmat_diffusion.generate.known import fluence_warnings
from vmat_diffusion.generate.model import FluenceModel
from vmat_diffusion.generate.sample import FluenceSample, FluenceTask, Reverse, draw_sample
from vmat_diffusion.machine import Machine
from vmat_diffusion.optimize.aperture import Stage
from vmat_diffusion.optimize.aperture_stages import (
    JAW_MARGIN_MM,
    SearchStart,
    SearchState,
    deliverable,
    search_apertures,
)
from vmat_diffusion.optimize.delivery import with_delivery
from vmat_diffusion.optimize.fluence_map import first_apertures, fluence_record
from vmat_diffusion.optimize.normalization import normalized
from vmat_diffusion.optimize.planner import finish
from vmat_diffusion.optimize.preparation import PlanningTask, Prepared, TimeLimit, prepare
from vmat_diffusion.optimize.result import Optimized, Settings
from vmat_diffusion.plan import Plan, at_pace_of_leaves, violations
from vmat_diffusion.progress import Progress, silent

# Voxels of the doses by which samples are ranked: an eighth of those of the final dose.
_RANKING_MM = 6.0
# Points of the objective, as for the planner's own maps.
_SHARE = 0.35
# Leaves move at control points so many times as far apart as in the plan, where they are searched at all.
_EVERY = 3


@dataclass(frozen=True, eq=False)
class PlanSample:
    """One sample as a plan.

    `state` is what the leaves do, `dose` the normalised dose on coarse voxels in Gy, `score` how it meets the
    goals there, `violations` what the machine could not deliver, and `seconds` its cost.
    """

    number: int
    state: SearchState
    fluence: FluenceSample
    plan: Plan
    dose: Dose
    score: GoalScore
    violations: tuple[str, ...]
    seconds: float

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "sample": self.number,
            **self.score.record(),
            "mu": round(self.plan.total_mu, 1),
            "violations": len(self.violations),
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True, eq=False)
class GeneratedPlans:
    """All samples, the best first, the best as the optimiser returns a plan, and the domain's warnings."""

    samples: tuple[PlanSample, ...]
    chosen: Optimized
    warnings: tuple[str, ...]
    model: str
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def spread_gy(self) -> NDArray[np.float32]:
        """Standard deviation of the samples' doses in each coarse voxel, Gy; 0 for one sample."""
        return np.std([s.dose.gy for s in self.samples], axis=0).astype(np.float32)

    @property
    def diversity_gy(self) -> float:
        """Mean of `spread_gy` where the mean dose is above a tenth of its highest."""
        mean = np.mean([s.dose.gy for s in self.samples], axis=0)
        return float(self.spread_gy[mean > 0.1 * mean.max()].mean())


def generate_plans(
    case: Case,
    sheet: GoalSheet,
    machine: Machine,
    model: FluenceModel,
    *,
    samples: int,
    reverse: Reverse,
    leaf_steps: int = 0,
    settings: Settings | None = None,
    finalize: Callable[[Plan], Plan] = lambda plan: plan,
    progress: Progress = silent,
) -> GeneratedPlans:
    """Draw plans for a case and a goal sheet that was fitted to it.

    `leaf_steps` are iterations of the planner's search for leaves on every sample, at a third of the control
    points; 0 leaves the sweeps as they are. The settings' seed decides the samples. Ctrl-C during such a
    search and the time limit end the drawing after the sample that is under way. Raises GoalError for a case
    without the sheet's targets, PlanError for what cannot be planned.
    """
    settings = settings or with_delivery(Settings(), sheet, machine)
    started = time.perf_counter()
    task = PlanningTask(
        case=case,
        sheet=sheet,
        machine=machine,
        settings=settings,
        progress=progress,
        finalize=finalize,
        time=TimeLimit(settings.max_minutes),
    )
    prepared = prepare(task, maps_share=_SHARE)
    fluence_task = FluenceTask.of(prepared)
    seconds = {"prepare": time.perf_counter() - started}
    drawn = []
    for number in range(samples):
        progress("samples", number / samples, f"sample {number + 1} of {samples}")
        begun = time.perf_counter()
        sample = draw_sample(fluence_task, model, reverse, seed=settings.seed, number=number)
        seconds["fluence"] = seconds.get("fluence", 0.0) + time.perf_counter() - begun
        state = _state(prepared, fluence_task, sample, leaf_steps)
        drawn.append(_plan_sample(prepared, number, state, sample, begun))
        seconds["plans"] = seconds.get("plans", 0.0) + drawn[-1].seconds
        if state.interrupted or not task.time.leaves_time(1.0):
            break
    ranked = tuple(sorted(drawn, key=lambda s: (bool(s.violations), s.score)))
    best = ranked[0]
    begun = time.perf_counter()
    maps = fluence_task.maps(best.fluence.relative)
    record = fluence_record(fluence_task.sectors, maps, prepared.model.row_edges_mm)
    stopped = any(sample.state.interrupted for sample in drawn)
    late = best.state.out_of_time or (len(drawn) < samples and not stopped)
    chosen = finish(prepared, replace(best.state, interrupted=stopped, out_of_time=late), record)
    seconds["dose"] = time.perf_counter() - begun
    rounded = {stage: round(s, 2) for stage, s in seconds.items()}
    return GeneratedPlans(
        ranked,
        replace(chosen, seconds={"dose": rounded["dose"]}),
        fluence_warnings(fluence_task.given, model),
        model.name,
        rounded,
    )


def _state(prepared: Prepared, task: FluenceTask, sample: FluenceSample, leaf_steps: int) -> SearchState:
    """The leaves of a sample at every control point, projected onto the deliverable set, jaws around them."""
    maps = task.maps(sample.relative)
    objective = prepared.objective_for_first_leaves.weighted_as(sample.objective)
    if leaf_steps:
        stage = Stage("apertures", _EVERY, leaf_steps, 4.0, 0.8, 0.12, adapt_every=15, time_share=1.0)
        sweeps = first_apertures(
            task.sectors, maps, prepared.task.machine.limits, prepared.rates, every=_EVERY
        )
        start = SearchStart(sweeps, objective, (stage,), tracking_jaws=False, mu_price=prepared.mu_price)
        return search_apertures(prepared, start)
    allowed, apertures = swept(prepared, task.sectors, maps)
    allowed, apertures = deliverable(
        prepared, allowed.points, apertures, tracking_jaws=True, room_mm=JAW_MARGIN_MM
    )
    return SearchState(allowed, apertures, objective, (), prepared.mu_price)


def _plan_sample(
    prepared: Prepared, number: int, state: SearchState, fluence: FluenceSample, begun: float
) -> PlanSample:
    """A state as a plan with its dose on coarse voxels, scaled to the sheet's normalisation."""
    task, limits = prepared.task, prepared.task.machine.limits
    grid = dose_grid(task.case, _RANKING_MM)
    plan, dose = normalized(
        at_pace_of_leaves(prepared.plan(state.points, state.apertures), limits),
        lambda plan: prepared.full_dose(plan, grid),
        task.case,
        task.sheet,
        limits,
        finalize=lambda plan: at_pace_of_leaves(plan, limits),
    )
    return PlanSample(
        number,
        state,
        fluence,
        plan,
        dose,
        goal_score(evaluate(task.sheet, task.case, dose)),
        tuple(map(str, violations(plan, task.machine))),
        time.perf_counter() - begun,
    )
