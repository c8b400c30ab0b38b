"""Goals in, deliverable plan out: fluence maps, leaf sequences, apertures, dose, normalisation."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.pencil_beam.fluence import FluenceModel, fluence_model, jaw_parts
from vmat_diffusion.dose.pencil_beam.sampled import SampledDose, sampled_dose
from vmat_diffusion.dose.tissue import Density, density_of, dose_grid
from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.goals import GoalSheet, evaluate
from vmat_diffusion.geometry import Point, sample
from vmat_diffusion.machine import Machine
from vmat_diffusion.optimize.aperture import ApertureProblem, Judged, Stage, refine_mu, search
from vmat_diffusion.optimize.arcs import ArcFrame, arc_frames, isocenter_of, partial_span, target_points
from vmat_diffusion.optimize.conflicts import Conflict, merged, proven_conflicts, seen_conflicts
from vmat_diffusion.optimize.existing import apertures_of, frames_of, plan_of
from vmat_diffusion.optimize.fluence_map import (
    FluenceMaps,
    Sectors,
    cut_into_sectors,
    first_apertures,
    map_arrays,
    open_bixels,
    optimize_fluence,
)
from vmat_diffusion.optimize.jaws import following, tracking
from vmat_diffusion.optimize.normalization import FullDose, normalized
from vmat_diffusion.optimize.objectives import Objective, build_objective
from vmat_diffusion.optimize.reach import (
    Apertures,
    Reach,
    Track,
    angles_only,
    interpolated,
    jaws_of,
    pace_of,
    track,
)
from vmat_diffusion.optimize.result import Optimized, Outcome, Settings
from vmat_diffusion.plan import Plan, at_pace_of_leaves
from vmat_diffusion.progress import Progress, under_name

_SEARCH_STEP_MM = 2.5
# Between jaws and open leaves while these are searched for, and in the plan.
_JAW_ROOM_MM, _JAW_MARGIN_MM = 8.0, 2.0
# From coarse to fine, each with the share of the time limit by which it must have ended.
_STAGES = (
    (Stage("apertures", 3, 150, 3.0, 1.0, 0.08, adapt_every=15), 0.4),
    (Stage("refine", 2, 60, 1.2, 0.5, 0.04, adapt_every=15), 0.6),
    (Stage("finish", 1, 45, 0.7, 0.15, 0.03, adapt_every=11), 0.8),
)
_IMPROVE = Stage("improve", 1, 120, 1.2, 0.15, 0.04, adapt_every=15)
_CONTINUE = Stage("continue", 1, 35, 0.7, 0.15, 0.03, adapt_every=10)
_SEARCH_SHARE = _STAGES[-1][1]


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
) -> Optimized:
    """Plan a case for a goal sheet that was fitted to it.

    `target` is a dose to aim at, on any grid: organs are pushed below its histograms where the goals allow.
    `finalize` turns the plan into what a file will hold (rounded), so that the dose is that of the
    file. Ctrl-C and `max_minutes` end the search with the best deliverable plan so far. About 2 to 5
    minutes and 2 to 4 GB on two cores for a head and neck. `difference` in Gy, such as a better
    engine's dose of a like plan less this one's, is added to every dose, the returned one included.
    `start`, made for the same case, sheet, machine and settings, is continued by the last stage of the
    search alone, which takes about a third of the time. `improve` is a plan, whoever made it, whose arcs
    and apertures are searched from in place of fluence maps.
    """
    report = progress or (lambda *_: None)
    return _Run(
        case, sheet, machine, target, settings or Settings(), report, finalize, difference, start, improve
    ).run()


class _Run:
    """One optimisation: the stages in order, and the clock."""

    def __init__(
        self,
        case: Case,
        sheet: GoalSheet,
        machine: Machine,
        target: Dose | None,
        settings: Settings,
        progress: Progress,
        finalize: Callable[[Plan], Plan],
        difference: Dose | None,
        before: Optimized | None,
        improve: Plan | None,
    ) -> None:
        self.case, self.sheet, self.machine, self.settings = case, sheet, machine, settings
        self.progress, self.finalize = progress, finalize
        self.full_dose = FullDose(machine, case, difference)
        self.target, self.before = target, before
        # The plan to search from, if there is one.
        self.given = before.plan if before else improve
        self.targets = tuple(n for n in sheet.prescription.target_gy if n in case.structures)
        if not self.targets:
            raise GoalError(
                f"goal sheet {sheet.name}: none of its targets is in the case; map the names first"
            )
        self.begun = time.monotonic()
        self.interrupted = False
        self.truncated = False
        self.share = _STAGES[0][1]
        self.seen: tuple[Conflict, ...] = ()
        self.history: list[Mapping[str, object]] = list(before.history) if before else []
        self.seconds: dict[str, float] = {}

    def keep_going(self) -> bool:
        """Whether the present stage still has time."""
        limit = self.settings.max_minutes
        spent = time.monotonic() - self.begun
        return not self.interrupted and (limit is None or spent < 60 * limit * self.share)

    def run(self) -> Optimized:
        settings, rng = self.settings, np.random.default_rng(self.settings.seed)
        start = time.monotonic()
        self.tracking = tracking(self.machine, settings.jaw_tracking)
        self.progress("prepare", 0.0, "sampling structures")
        grid = dose_grid(self.case, settings.grid_mm)
        self.density: Density = density_of(self.case, grid)
        self.objective: Objective = build_objective(self.case, self.sheet, grid, rng, self.target)
        self.isocenter: Point = (
            self.given.isocenter_mm if self.given else isocenter_of(self.case, self.targets)
        )
        self.frames = frames = self._frames()
        boxes = np.array([f.jaws_mm for f in frames])
        box = (boxes[:, 0].min(), boxes[:, 1].max(), boxes[:, 2].min(), boxes[:, 3].max())
        # The report reads doses between the nodes of the dose grid, which blurs them like h^2/6 does.
        blur_mm2 = settings.grid_mm**2 / 6
        self.model: FluenceModel = fluence_model(self.machine, box, _SEARCH_STEP_MM, blur_mm2)
        fraction_gy = self.objective.reference_gy / self.sheet.prescription.fractions
        self.pace = pace_of(frames, self.machine, fraction_gy, settings.seconds_per_turn)
        start = self._lap("prepare", start)
        fluence: Mapping[str, NDArray] = {}
        if self.given is None:
            sectors = cut_into_sectors(frames)
            maps = self._fluence(sectors)
            fluence = map_arrays(sectors, maps, self.model.row_edges_mm)
            start = self._lap("fluence maps", start)
            every = _STAGES[0][0].every
            swept = first_apertures(sectors, maps, self.machine.limits, self.pace.mu_cap_per_deg, every)
            self._apertures(swept, _STAGES)
        else:
            own = apertures_of(self.given, frames, self._inside)
            own.mu *= self.given.fractions / self.sheet.prescription.fractions
            if self.before is not None:
                fluence = self.before.fluence
                self._continued(own, self.before)
            else:
                self._apertures(own, ((_IMPROVE, _SEARCH_SHARE),))
        start = self._lap("apertures", start)
        self.progress("dose", 0.0, "final dose")

        def written(plan: Plan) -> Plan:
            return self.finalize(at_pace_of_leaves(plan, self.machine.limits))

        plan = written(self._plan(self.reach.way, self.newest[0]))
        plan, dose = normalized(
            plan,
            lambda plan: self.full_dose(plan, grid, self.progress),
            self.case,
            self.sheet,
            self.machine.limits,
            finalize=written,
        )
        self._lap("dose", start)
        conflicts = self._conflicts(dose)
        return Optimized(
            plan,
            dose,
            self._outcome(conflicts),
            tuple(self.history),
            fluence,
            self.seconds,
            tuple(term.strength for term in self.objective.terms),
            conflicts,
            self.frames,
        )

    def _frames(self) -> tuple[ArcFrame, ...]:
        settings = self.settings
        if self.before is not None and self.before.frames:
            return self.before.frames
        if self.given is not None:
            return frames_of(self.given, self.machine, settings.spacing_deg)
        start, stop = settings.arc_start_deg, settings.arc_stop_deg
        if settings.partial:
            start, stop = partial_span(self.case, self.targets)
        return arc_frames(
            self.case,
            self.targets,
            self.isocenter,
            self.machine,
            arcs=settings.arcs,
            start_deg=start,
            stop_deg=stop,
            spacing_deg=settings.spacing_deg,
            collimators_deg=settings.collimator_deg,
            couches_deg=settings.couch_deg,
            avoid_deg=settings.avoid_deg,
        )

    def _lap(self, name: str, since: float) -> float:
        now = time.monotonic()
        self.seconds[name] = round(now - since, 2)
        return now

    def _conflicts(self, dose: Dose) -> tuple[Conflict, ...]:
        """The goals that fail on the final dose, with what is seen or proven to be in their way."""
        seen = {str(conflict.goal): conflict for conflict in self.seen}
        failed = [r.goal for r in evaluate(self.sheet, self.case, dose) if r.status == "fail"]
        left = [seen.get(str(goal), Conflict(goal, ())) for goal in failed]
        return merged(proven_conflicts(self.case, self.sheet), left)

    def _outcome(self, conflicts: tuple[Conflict, ...]) -> Outcome:
        if self.interrupted:
            return Outcome.INTERRUPTED
        if self.truncated:
            return Outcome.OUT_OF_TIME
        if self.before is not None and self.before.outcome in (Outcome.INTERRUPTED, Outcome.OUT_OF_TIME):
            return self.before.outcome
        if any(conflict.proven for conflict in conflicts):
            return Outcome.INFEASIBLE
        return Outcome.STALLED if conflicts else Outcome.CONVERGED

    @property
    def relative_per_mu(self) -> float:
        """Relative dose of the course for one MU per fraction at the reference point."""
        beam = self.machine.require_beam()
        return beam.gy_per_mu * self.sheet.prescription.fractions / self.objective.reference_gy

    @property
    def effort(self) -> float:
        """What multiplies the steps of the search: the wish of the user, more for more structures."""
        return self.settings.effort * float(np.clip(len(self.objective.regions) / 3, 1.0, 2.0))

    def _sampled(self, way: Track, name: str) -> SampledDose:
        return sampled_dose(
            self.machine,
            self.density,
            self.objective.points_mm,
            angles_only(way),
            self.model,
            isocenter_mm=self.isocenter,
            patient_position=self.case.patient_position,
            progress=under_name(self.progress, name),
        )

    def _fluence(self, sectors: Sectors) -> FluenceMaps:
        """Fluence maps at the middle of every sector.

        They aim at a predicted dose where it lies; what follows, leaves of arcs where it is one of fixed
        fields, at its histograms.
        """
        self.objective.voxelwise = True
        sampled = self._sampled(sectors.middles, "fluence maps")
        opened = open_bixels(
            sectors,
            target_points(self.case, self.targets),
            self.isocenter,
            self.case.patient_position,
            self.machine.sad_mm,
            self.model,
        )
        maps = optimize_fluence(
            self.objective, sampled, self.model, sectors.jaws_mm[:, 2:], opened, self.relative_per_mu,
            iterations=max(int(400 * min(self.settings.effort, 1.5)), 30),
            progress=lambda done, note: self.progress("fluence maps", done, note),
        )  # fmt: skip
        self.objective.voxelwise = False
        return maps

    def _apertures(self, start: Apertures, stages: tuple[tuple[Stage, float], ...]) -> None:
        """Search at few control points, then at more, at last at all of them.

        However it ends, the newest deliverable state is one of all control points.
        """
        self._set(track(self.frames, stages[0][0].every), start, follow=self.given is not None)
        try:
            for stage, share in stages:
                self._at_every(stage.every)
                self.share = share
                self.truncated |= not self.keep_going()
                if not self.keep_going():
                    continue
                if stage.every > 1:
                    self._stage(self._problem(stage.name), stage)
                else:
                    self._refine(stage)
        except KeyboardInterrupt:
            self.interrupted = True
        self._at_every(1)

    def _continued(self, start: Apertures, before: Optimized) -> None:
        """The last stage alone, shortened, with the weights that an earlier search ended with."""
        self._set(track(self.frames, 1), start, follow=True)
        self.share = _SEARCH_SHARE
        try:
            self._refine(_CONTINUE, before.strengths)
        except KeyboardInterrupt:
            self.interrupted = True

    def _at_every(self, every: int) -> None:
        """The newest state at every n-th control point, with jaws that follow it, unless it is there."""
        way = track(self.frames, every)
        if not np.array_equal(way.angles_deg, self.reach.way.angles_deg):
            self._set(way, interpolated(self.reach.way, way, self.newest[0]), follow=True)

    def _set(self, way: Track, state: Apertures, *, follow: bool, room_mm: float = _JAW_ROOM_MM) -> None:
        """A state along a track as the newest; the jaws follow its leaves where they can."""
        state = self._reach_of(way).project(state)
        if follow and self.tracking:
            way = following(way, state, self.machine, self.model.row_edges_mm, room_mm)
        reach = self._reach_of(way)
        newest = reach.project(state)
        # Both at once, so that whoever is interrupted finds a state at its own control points.
        self.reach, self.newest = reach, [newest]

    def _reach_of(self, way: Track) -> Reach:
        return Reach(way, self.machine, self.pace)

    def _refine(self, stage: Stage, strengths: Sequence[float] = ()) -> None:
        """Better the newest state at all control points, then its MU alone, on the full dose.

        Of the state before, the two that the search found, and those with their MU refined, the one stays
        that fails fewest goals, higher priorities first. `strengths` are the weights to begin with.
        """
        problem = self._problem(stage.name, self._correction)
        if strengths:
            self.objective.resume(strengths, problem.dose(self.newest[0]))
        before, (found, leader) = self.newest[0], self._stage(problem, stage)
        self._keep_best(
            problem, [before, leader, refine_mu(problem, leader), found, refine_mu(problem, found)]
        )
        # The leaves have moved since the full dose was read, and the jaws have come nearer. Read anew, it is
        # made good by the MU alone.
        self._set(track(self.frames, 1), self.newest[0], follow=True, room_mm=_JAW_MARGIN_MM)
        problem = problem.along(self.reach)
        problem = replace(problem, correction=self._correction(problem))
        self.objective.adapt(problem.dose(self.newest[0]))
        judged = self._keep_best(problem, [self.newest[0], refine_mu(problem, self.newest[0])])
        if judged.missed:
            self.seen = seen_conflicts(judged.missed, problem.pulls(self.newest[0]))

    def _keep_best(self, problem: ApertureProblem, tried: list[Apertures]) -> Judged:
        """Make the state the newest that fails fewest goals; of equals the one of the lowest objective."""
        judged = [problem.judged(state) for state in tried]
        best = min(range(len(tried)), key=lambda k: (judged[k].failed, judged[k].objective))
        self.newest[0] = tried[best]
        return judged[best]

    def _correction(self, problem: ApertureProblem) -> torch.Tensor:
        """What the full dose, read through its grid, has over the sampled dose of the newest state."""
        state = self.newest[0]
        full = self.full_dose(self._plan(problem.way, state), self.density.grid)
        read = sample(full.gy, full.grid, self.objective.points_mm) / self.objective.reference_gy
        return problem.correction + torch.as_tensor(read - problem.dose(state)).float()

    def _problem(
        self, name: str, correct: Callable[[ApertureProblem], torch.Tensor] | None = None
    ) -> ApertureProblem:
        problem = ApertureProblem(
            self.reach,
            self.model,
            self._sampled(self.reach.way, name),
            self.objective,
            self.relative_per_mu,
            self.full_dose.difference_at(self.objective.points_mm, self.objective.reference_gy),
            jaw_parts(self.model, jaws_of(self.reach.way)),
            self.settings.prices,
        )
        return replace(problem, correction=correct(problem)) if correct else problem

    def _stage(self, problem: ApertureProblem, stage: Stage) -> tuple[Apertures, Apertures]:
        # A longer search takes longer rounds, not more of them: the weights end where a short one's do.
        stage = replace(
            stage,
            iterations=max(int(stage.iterations * self.effort), 1),
            adapt_every=int(stage.adapt_every * max(self.effort, 1.0)),
        )

        def report(k: int, value: float, best: float, turn: int, missed: int) -> None:
            self.history.append(
                {
                    "stage": stage.name,
                    "round": turn,
                    "iteration": k,
                    "objective": value,
                    "best": best,
                    "missed": missed,
                    "seconds": round(time.monotonic() - self.begun, 2),
                }
            )
            self.progress(
                stage.name, (k + 1) / stage.iterations, f"objective {value:.4f}, {missed} goals open"
            )

        before = len(self.history)
        state = search(problem, stage, keep_going=self.keep_going, report=report, newest=self.newest)
        self.truncated |= len(self.history) - before < stage.iterations
        return state

    @property
    def _inside(self) -> NDArray[np.intp]:
        """The leaf pair of each of the search's strips; one layer, as arc_frames refuses stacked ones."""
        return self.machine.row_pairs()[self.model.rows, 0]

    def _plan(self, way: Track, state: Apertures) -> Plan:
        return plan_of(
            way,
            state,
            self.machine,
            self._inside,
            self.isocenter,
            self.sheet.prescription.fractions,
            self.case.patient_position,
        )
