"""The first stage of planning: structures sampled, arcs placed, the dose models and objectives set up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.pencil_beam.fluence import FluenceModel, fluence_model, split_models
from vmat_diffusion.dose.pencil_beam.sampled import ApertureDose, SampledDose, sampled_doses
from vmat_diffusion.dose.tissue import Density, density_of, dose_grid
from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.goals import GoalSheet
from vmat_diffusion.geometry import Point
from vmat_diffusion.machine import Machine
from vmat_diffusion.optimize.aperture import NODES_MM, ApertureProblem, Stage
from vmat_diffusion.optimize.arcs import ArcFrame, arc_frames, isocenter_of, partial_span
from vmat_diffusion.optimize.deliverable_set import (
    Apertures,
    ControlPoints,
    DeliverableSet,
    DeliveryRates,
    beam_directions,
    delivery_rates,
    jaws_of,
)
from vmat_diffusion.optimize.jaws import jaws_track
from vmat_diffusion.optimize.mu_price import MuPrice
from vmat_diffusion.optimize.normalization import FullDose
from vmat_diffusion.optimize.objective_terms import HistogramAim, ObjectiveTerm, PointwiseAim
from vmat_diffusion.optimize.objectives import Objective, build_objective
from vmat_diffusion.optimize.plan_apertures import frames_of, plan_of
from vmat_diffusion.optimize.result import Optimized, Settings
from vmat_diffusion.plan import Plan
from vmat_diffusion.progress import Progress, silent, under_name

# Of the most points of a structure, so many do while openings are far from their places.
_COARSE_SHARE = 0.35
# More structures with goals need more iterations, from this number on, up to this many times as many.
_FEW_STRUCTURES, _MOST_EFFORT = 3, 1.4


@dataclass(frozen=True)
class TimeLimit:
    """When the search began and how long it may take; None is no limit."""

    minutes: float | None
    begun_s: float = field(default_factory=time.monotonic)

    @property
    def spent_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.begun_s

    def leaves_time(self, share: float) -> bool:
        """Whether less than a share of the time is spent."""
        return self.minutes is None or self.spent_s < 60 * self.minutes * share


def _unchanged(plan: Plan) -> Plan:
    return plan


@dataclass(frozen=True, eq=False)
class PlanningTask:
    """What `optimize` was asked for."""

    case: Case
    sheet: GoalSheet
    machine: Machine
    settings: Settings
    target: Dose | None = None
    progress: Progress = silent
    finalize: Callable[[Plan], Plan] = _unchanged
    difference: Dose | None = None
    start: Optimized | None = None
    improve: Plan | None = None
    time: TimeLimit = field(default_factory=lambda: TimeLimit(None))
    terms: Sequence[ObjectiveTerm] = ()

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """The sheet's targets that the case has; GoalError if there is none."""
        names = tuple(n for n in self.sheet.prescription.target_gy if n in self.case.structures)
        if not names:
            raise GoalError(
                f"goal sheet {self.sheet.name}: none of its targets is in the case; map the names first"
            )
        return names

    @property
    def existing_plan(self) -> Plan | None:
        """The plan that the search begins with, if there is one."""
        return self.start.plan if self.start else self.improve


@dataclass(frozen=True, eq=False)
class Prepared:
    """What stays the same during the search.

    `frames` are the arcs with the most that their jaws open. The objectives differ in how they aim at a
    predicted dose: point by point for fluence maps, by histogram for leaves. Those for maps and first leaves
    have fewer points, unless the search begins with a plan. `model` is for fluence maps; leaves have two
    models, for narrow and for wide kernels, of the same `jaw_box_mm` (x1, x2, y1, y2).
    """

    task: PlanningTask
    isocenter_mm: Point
    frames: tuple[ArcFrame, ...]
    density: Density
    full_dose: FullDose
    model: FluenceModel
    jaw_box_mm: tuple[float, float, float, float]
    rates: DeliveryRates
    tracking_jaws: bool
    objective_for_maps: Objective
    objective_for_first_leaves: Objective
    objective_for_leaves: Objective

    @property
    def relative_per_mu(self) -> float:
        """Relative dose of the course for one MU per fraction at the reference point."""
        beam = self.task.machine.require_beam()
        fractions = self.task.sheet.prescription.fractions
        return beam.gy_per_mu * fractions / self.objective_for_maps.reference_gy

    @property
    def effort(self) -> float:
        """What multiplies the iterations: the user's wish, times more for more structures."""
        structures = len(self.objective_for_maps.regions)
        return self.task.settings.effort * float(np.clip(structures / _FEW_STRUCTURES, 1.0, _MOST_EFFORT))

    @property
    def pairs(self) -> NDArray[np.intp]:
        """The leaf pair of each of the search's leaf rows; one layer, as stacked ones are refused."""
        return self.task.machine.row_pairs()[self.model.rows, 0]

    def sampled_doses(
        self, objective: Objective, points: ControlPoints, models: Sequence[FluenceModel], stage: str
    ) -> tuple[SampledDose, ...]:
        """The maps from convolved fluence at the segments' middles to dose at the objective's points."""
        return sampled_doses(
            self.task.machine,
            self.density,
            objective.points_mm,
            beam_directions(points),
            models,
            isocenter_mm=self.isocenter_mm,
            patient_position=self.task.case.patient_position,
            progress=under_name(self.task.progress, stage),
        )

    @property
    def mu_price(self) -> MuPrice:
        """The price of MU as the search begins."""
        gy_per_mu = self.task.machine.require_beam().gy_per_mu
        fraction_gy = self.objective_for_maps.reference_gy / self.task.sheet.prescription.fractions
        return MuPrice(fraction_gy, 1 / gy_per_mu, self.task.settings.mu_per_gy)

    def problem(
        self, allowed: DeliverableSet, objective: Objective, mu_price: MuPrice, stage: Stage
    ) -> ApertureProblem:
        """The problem of one stage of the search, not yet corrected by the full dose."""
        models = split_models(self.task.machine, self.jaw_box_mm, stage.nodes_mm)
        maps = self.sampled_doses(objective, allowed.points, models, stage.name)
        return ApertureProblem(
            allowed,
            ApertureDose.between(jaws_of(allowed.points), models, maps),
            objective,
            self.relative_per_mu,
            self.full_dose.difference_at(objective.points_mm, objective.reference_gy),
            self.task.settings.penalties,
            mu_price,
        )

    def plan(self, points: ControlPoints, apertures: Apertures) -> Plan:
        """The plan of the search's apertures."""
        return plan_of(
            points,
            apertures,
            self.task.machine,
            pairs=self.pairs,
            isocenter_mm=self.isocenter_mm,
            fractions=self.task.sheet.prescription.fractions,
            patient_position=self.task.case.patient_position,
        )


def prepare(task: PlanningTask, *, maps_share: float | None = None) -> Prepared:
    """Sample the structures, place the arcs, and set up what the search computes dose and objective with.

    With `maps_share` only fluence maps are wanted: every objective has this share of the points.
    Raises GoalError for a case without targets, PlanError for arcs or a machine that cannot be planned.
    """
    case, machine, settings = task.case, task.machine, task.settings
    full_dose = FullDose(machine, case, task.difference)
    targets = task.targets
    tracking_jaws = jaws_track(machine, settings.jaw_tracking)
    task.progress("prepare", 0.0, "sampling structures")
    grid = dose_grid(case, settings.grid_mm)
    density = density_of(case, grid)
    rng = np.random.default_rng(settings.seed)
    objective = build_objective(case, task.sheet, grid, rng, task.terms, share=maps_share or 1.0)
    plan = task.existing_plan
    # A search that begins with a plan has no coarse stages.
    first = objective
    if plan is None and maps_share is None:
        first = build_objective(case, task.sheet, grid, rng, task.terms, share=_COARSE_SHARE)
    isocenter = plan.isocenter_mm if plan else isocenter_of(case, targets)
    frames = _frames(task, isocenter)
    boxes = np.array([f.jaws_mm for f in frames])
    box = (boxes[:, 0].min(), boxes[:, 1].max(), boxes[:, 2].min(), boxes[:, 3].max())
    model = fluence_model(machine, box, NODES_MM)
    fraction_gy = objective.reference_gy / task.sheet.prescription.fractions
    return Prepared(
        task,
        isocenter,
        frames,
        density,
        full_dose,
        model,
        box,
        delivery_rates(frames, machine, fraction_gy, settings),
        tracking_jaws,
        objective_for_maps=first.aiming_at(task.target, PointwiseAim),
        objective_for_first_leaves=first.aiming_at(task.target, HistogramAim),
        objective_for_leaves=objective.aiming_at(task.target, HistogramAim),
    )


def _frames(task: PlanningTask, isocenter_mm: Point) -> tuple[ArcFrame, ...]:
    """The arcs of the search or plan to begin with, or new ones."""
    settings = task.settings
    if task.start is not None and task.start.frames:
        return task.start.frames
    if task.existing_plan is not None:
        return frames_of(task.existing_plan, task.machine, settings.spacing_deg)
    start, stop = settings.arc_start_deg, settings.arc_stop_deg
    if settings.partial:
        start, stop = partial_span(task.case, task.targets)
    return arc_frames(
        task.case,
        task.targets,
        isocenter_mm,
        task.machine,
        arcs=settings.arcs,
        start_deg=start,
        stop_deg=stop,
        spacing_deg=settings.spacing_deg,
        collimators_deg=settings.collimator_deg,
        couches_deg=settings.couch_deg,
        avoid_deg=settings.avoid_deg,
    )
