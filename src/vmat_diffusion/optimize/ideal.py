"""How far a plan is from ideal: free fluence from all around as its yardstick, and where a goal is lost.

The convex optimum of the fluence under the plan's own objective, from 36 directions, without leaves, leakage
and price, is what no coplanar plan of the machine's beam betters by much. Between it and the plan stand the
fluence of the arcs' sectors, free as well, and the maps that the search began with, whose rises and MU have
a price. All are judged at the objective's points, normalised as the sheet asks. See `docs/optimiser.md`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vmat_diffusion.case import Dose
from vmat_diffusion.dose.pencil_beam.fluence import fluence_model
from vmat_diffusion.evaluate.goals import Goal, GoalResult, GoalSheet
from vmat_diffusion.evaluate.task import Task
from vmat_diffusion.geometry import sample_dose
from vmat_diffusion.optimize.aperture import NODES_MM
from vmat_diffusion.optimize.arcs import ArcFrame, all_around
from vmat_diffusion.optimize.conflicts import as_stated
from vmat_diffusion.optimize.fluence_map import Sectors, cut_into_sectors, optimize_fluence
from vmat_diffusion.optimize.objectives import Objective
from vmat_diffusion.optimize.planner import fluence_problem
from vmat_diffusion.optimize.preparation import PlanningTask, Prepared, prepare
from vmat_diffusion.optimize.result import Optimized, Outcome, Settings
from vmat_diffusion.optimize.sequence import Sector
from vmat_diffusion.plan import Plan
from vmat_diffusion.progress import Progress, silent

DIRECTIONS = 36
# Evaluations of the objective, at an effort of 1; beyond them values change by less than samples can tell.
_EVALUATIONS, _LEAST_EVALUATIONS, _MOST_EFFORT = 1200, 60, 1.5
# A value at sampled points and the report's on every voxel differ by up to this share: limits, and coverage
# (`ObjectiveWeights.report_above`, `report_below` with rounding). A goal this near its limit is undecided.
_ROOM_AT_MOST, _ROOM_AT_LEAST = 0.012, 0.002
# A plan at this share of its limit on MU is held by it.
_AT_MU_LIMIT = 0.95
# Stages in the order in which a goal can be lost.
IDEAL, SECTORS, MAPS, DELIVERED = "ideal", "sectors", "maps", "delivered"
STAGES = (IDEAL, SECTORS, MAPS, DELIVERED)


class Loss(str, Enum):
    """Where a goal that the plan misses is lost, in words."""

    OUT_OF_REACH = "out of reach for any plan beside the other goals"
    UNDECIDED = "at the edge of what any plan can reach"
    SECTORS = "lost by the sectors: the arcs' directions are too few"
    MAPS = "lost by the price of modulation in the fluence maps"
    MU = "lost by the limit on MU"
    LEAVES = "lost by the leaves"
    TIME = "lost by the leaves, in a search that ran out of time"
    NOT_SAMPLED = "not known: the yardstick does not evaluate this goal"


@dataclass(frozen=True)
class GoalReach:
    """A goal with its value at each stage, in its unit, and where it is lost.

    `values` holds the stages that were computed; `delivered` is the report's value on every voxel. `loss` is
    None for a goal that the plan does not miss.
    """

    goal: Goal
    values: Mapping[str, float]
    loss: Loss | None

    @property
    def ideal(self) -> float | None:
        """What free fluence reaches; None where the goal is not evaluated."""
        return self.values.get(IDEAL)

    def __str__(self) -> str:
        unit = f" {self.goal.unit}".rstrip()
        stages = ", ".join(f"{_WORDS[s]} {self.values[s]:.1f}{unit}" for s in STAGES if s in self.values)
        return f"{self.goal}: {self.loss.value if self.loss else 'met'} ({stages})"

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "structure": self.goal.structure,
            "goal": self.goal.statement,
            "unit": self.goal.unit,
            "values": {stage: round(value, 4) for stage, value in self.values.items()},
            "loss": self.loss.name if self.loss else None,
            "words": self.loss.value if self.loss else "",
        }


_WORDS = {IDEAL: "free fluence", SECTORS: "free sectors", MAPS: "fluence maps", DELIVERED: "plan"}


@dataclass(frozen=True)
class Yardstick:
    """What the ideal fluence makes of each goal of a plan, and how it was found.

    `organ_means_gy` are the means of organs at sampled points, by organ and stage.
    """

    goals: tuple[GoalReach, ...]
    organ_means_gy: Mapping[str, Mapping[str, float]]
    directions: int
    evaluations: int
    seconds: float

    @property
    def missed(self) -> tuple[GoalReach, ...]:
        """The goals that the plan misses."""
        return tuple(goal for goal in self.goals if goal.loss is not None)

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "directions": self.directions,
            "evaluations": self.evaluations,
            "seconds": round(self.seconds, 1),
            "goals": [goal.record() for goal in self.goals],
            "organ_means_gy": {
                organ: {stage: round(gy, 3) for stage, gy in means.items()}
                for organ, means in self.organ_means_gy.items()
            },
        }


@dataclass(frozen=True, eq=False)
class Stages:
    """The relative dose of each stage at the points of an objective, scaled to the sheet's normalisation."""

    objective: Objective
    sheet: GoalSheet
    doses: Mapping[str, NDArray[np.float32]]

    def goals(self, stage: str) -> dict[str, float]:
        """The value of each goal at a stage by the goal's words, in the goal's unit; those that have one."""
        reached = self.objective.reached(self.doses[stage])
        out = {}
        for goal, physical in zip(self.sheet.goals, self.sheet.in_gy().goals, strict=True):
            value = reached.get(str(goal))
            if value is not None:
                out[str(goal)] = as_stated(goal, physical, value, self.sheet)
        return out

    def organ_means_gy(self) -> dict[str, dict[str, float]]:
        """The mean dose of each sampled organ at each stage."""
        regions, level_gy = self.objective.regions, self.objective.reference_gy
        return {
            name: {
                s: float(self.doses[s][region.points].mean()) * level_gy for s in STAGES if s in self.doses
            }
            for name, region in regions.items()
            if name not in self.objective.target_gy
        }


def yardstick(
    task: Task,
    made: Optimized,
    results: Sequence[GoalResult],
    *,
    settings: Settings | None = None,
    whole: bool = False,
    progress: Progress = silent,
) -> Yardstick:
    """What ideal fluence makes of the goals of a plan, and where each that it misses is lost.

    `task` and `settings` are those of `optimize`, which has `made` the plan; `results` are its goals. 20 to
    30 s on two cores for a head and neck. Free fluence of the arcs' sectors takes half as much again: it is
    computed where it has to say whether sectors lose a goal, or with `whole`. A dose that the search aimed at
    does not count.
    """
    began = time.monotonic()
    settings = settings or Settings()
    sheet = task.sheet
    prepared = prepared_for(task, made, settings, progress)
    found = stage_doses(prepared, made, (IDEAL, MAPS))
    missed = {str(r.goal) for r in results if r.missed}
    further = [DELIVERED]
    if whole or _sectors_matter(sheet, found, missed):
        further.append(SECTORS)
    found = replace(found, doses={**found.doses, **stage_doses(prepared, made, further).doses})
    at_limit = _held_by_mu(made.plan, sheet, settings)
    by_stage = {stage: found.goals(stage) for stage in STAGES[:-1] if stage in found.doses}
    goals = []
    for result in results:
        words = str(result.goal)
        values = {stage: reached[words] for stage, reached in by_stage.items() if words in reached}
        loss = None
        if words in missed:
            loss = _loss(result.goal, values, made.outcome, settings, at_limit=at_limit)
        if result.value is not None:
            values[DELIVERED] = result.value
        goals.append(GoalReach(result.goal, values, loss))
    seconds = time.monotonic() - began
    return Yardstick(tuple(goals), found.organ_means_gy(), DIRECTIONS, _evaluations(settings), seconds)


def prepared_for(task: Task, made: Optimized, settings: Settings, progress: Progress = silent) -> Prepared:
    """Points, arcs and objective of the last stage of a plan's search, without a dose to aim at."""
    asked = PlanningTask(
        case=task.case,
        sheet=task.sheet,
        machine=task.machine,
        settings=settings,
        progress=progress,
        start=made,
    )
    return prepare(asked)


def stage_doses(prepared: Prepared, made: Optimized, stages: Sequence[str] = STAGES) -> Stages:
    """The doses of some stages of a plan. A plan that no maps began with has none of the stage `maps`."""
    objective = prepared.objective_for_maps
    doses: dict[str, NDArray[np.float32]] = {}
    sectors = cut_into_sectors(prepared.frames)
    for stage in stages:
        if stage == IDEAL:
            doses[stage] = _free_dose(*_all_directions(prepared), "ideal fluence")
        elif stage == SECTORS:
            doses[stage] = _free_dose(prepared, sectors, "free sectors")
        elif stage == MAPS and len(made.fluence.get("ideal_mu", ())) == len(sectors.each):
            problem = fluence_problem(prepared, sectors, "ideal fluence")
            with torch.no_grad():
                mu = torch.as_tensor(np.asarray(made.fluence["ideal_mu"], np.float32))
                doses[stage] = problem.dose(mu).numpy()
        elif stage == DELIVERED:
            doses[stage] = _sampled(made.dose, objective)
    scaled = {s: d * np.float32(objective.factor_to_normalization(d)) for s, d in doses.items()}
    return Stages(objective, prepared.task.sheet, scaled)


def _evaluations(settings: Settings) -> int:
    return max(int(_EVALUATIONS * min(settings.effort, _MOST_EFFORT)), _LEAST_EVALUATIONS)


def _free_dose(prepared: Prepared, sectors: Sectors, stage: str) -> NDArray[np.float32]:
    """The dose at the objective's points of the free fluence that minimises the objective."""
    task = prepared.task
    problem = fluence_problem(prepared, sectors, stage, free=True)
    maps, _ = optimize_fluence(
        problem, iterations=_evaluations(task.settings), stage=stage, progress=task.progress
    )
    with torch.no_grad():
        dose: NDArray[np.float32] = problem.dose(torch.as_tensor(maps.mu).float()).numpy()
    return dose


def _all_directions(prepared: Prepared) -> tuple[Prepared, Sectors]:
    """Sectors of equal width all around, and those of the plan's arcs with a turned couch besides."""
    task = prepared.task
    ring = all_around(
        task.case,
        task.targets,
        prepared.isocenter_mm,
        task.machine,
        directions=DIRECTIONS,
        collimator_deg=prepared.frames[0].collimator_deg,
    )
    frames = [ring]
    for frame in prepared.frames:
        if frame.couch_deg:
            span_deg = float(np.ptp(frame.gantry_deg))
            cuts = np.linspace(frame.gantry_deg[0], frame.gantry_deg[-1], _parts(span_deg) + 1)
            frames.append(ArcFrame(cuts, frame.collimator_deg, frame.jaws_mm, frame.couch_deg))
    each = [Sector(k, i, i + 1) for k, frame in enumerate(frames) for i in range(len(frame.gantry_deg) - 1)]
    boxes = np.array([frame.jaws_mm for frame in frames])
    box = (boxes[:, 0].min(), boxes[:, 1].max(), boxes[:, 2].min(), boxes[:, 3].max())
    model = fluence_model(task.machine, box, NODES_MM)
    return replace(prepared, frames=tuple(frames), model=model), Sectors(tuple(frames), tuple(each))


def _parts(span_deg: float) -> int:
    return max(round(span_deg / (360.0 / DIRECTIONS)), 1)


def _sampled(dose: Dose, objective: Objective) -> NDArray[np.float32]:
    gy = sample_dose(dose.gy, dose.grid, objective.points_mm)
    return np.asarray(gy / objective.reference_gy, np.float32)


def _held_by_mu(plan: Plan, sheet: GoalSheet, settings: Settings) -> bool:
    if settings.mu_per_gy is None:
        return False
    fraction_gy = max(sheet.prescription.target_gy.values()) / plan.fractions
    return plan.total_mu / fraction_gy >= _AT_MU_LIMIT * settings.mu_per_gy


def _stands(goal: Goal, value: float) -> bool | None:
    """Whether a value at sampled points meets a goal at least within its variation; None near the edge."""
    room = _ROOM_AT_MOST if goal.comparator == "<=" else _ROOM_AT_LEAST
    worse, better = (1 + room, 1 - room) if goal.comparator == "<=" else (1 - room, 1 + room)
    if goal.status(value * worse) != "fail":
        return True
    return False if goal.status(value * better) == "fail" else None


def _sectors_matter(sheet: GoalSheet, found: Stages, missed: set[str]) -> bool:
    """Whether a goal is missed that free fluence may meet and the maps, or nobody knows, may not."""
    ideal = found.goals(IDEAL)
    maps = found.goals(MAPS) if MAPS in found.doses else {}
    for goal in sheet.goals:
        words = str(goal)
        if words not in missed or words not in ideal or _stands(goal, ideal[words]) is not True:
            continue
        if words not in maps or _stands(goal, maps[words]) is False:
            return True
    return False


def _loss(
    goal: Goal, values: Mapping[str, float], outcome: Outcome, settings: Settings, *, at_limit: bool
) -> Loss:
    """The first stage at which a goal is surely lost, for a goal that the plan misses."""
    if IDEAL not in values:
        return Loss.NOT_SAMPLED
    reach = _stands(goal, values[IDEAL])
    if reach is not True:
        return Loss.UNDECIDED if reach is None else Loss.OUT_OF_REACH
    if SECTORS in values and _stands(goal, values[SECTORS]) is False:
        return Loss.SECTORS
    if MAPS in values and _stands(goal, values[MAPS]) is False:
        return Loss.MAPS if settings.mu_per_gy is None else Loss.MU
    if outcome in (Outcome.OUT_OF_TIME, Outcome.INTERRUPTED):
        return Loss.TIME
    return Loss.MU if at_limit else Loss.LEAVES
