"""Clinical goals as differentiable functions of the dose at sampled points.

All doses here are relative to the highest prescription. Each goal becomes a hinge that vanishes once the
goal is met. Besides, every target is pushed to uniform coverage, normal tissue below a falloff from the
targets, and every organ as low as the rest allows. Equations: `docs/optimiser.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.dvh import Dvh
from vmat_diffusion.evaluate.goals import Goal, GoalSheet, Normalization, Status
from vmat_diffusion.evaluate.metrics import Bound, histogram_value
from vmat_diffusion.geometry import Grid, sample, sample_dose
from vmat_diffusion.optimize.falloff import BORDER, ceiling_of, falloff_of
from vmat_diffusion.optimize.objective_terms import (
    Aim,
    GoalTerm,
    HistogramAim,
    ObjectiveTerm,
    ObjectiveWeights,
    PointwiseAim,
)
from vmat_diffusion.optimize.sampling import CeilingMap, Region, draw_samples

# Priority, and whether the goal is an organ's and no must: the lower comes first.
_Rank = tuple[int, bool]


class _Standing(NamedTuple):
    """A goal's rank, its value on a dose, and how the value stands to the goal."""

    rank: _Rank
    value: float | None
    status: Status | None


@dataclass(frozen=True, eq=False)
class Objective:
    """The points at which dose is needed and the function that judges it.

    `points_mm[n, 3]`; `ceiling[n]` is the most that each point may receive; `reference_gy` is the
    highest prescription, in which all relative doses are measured. Three fields are as of the last `adapt`:
    the weights of the `terms`; `normalization_factor`, by which the plan's normalisation would multiply the
    dose; and `fixed_dose[n]`, the dose at all points. Organ goals count the factor in, and count organ points
    inside targets with their fixed dose.
    """

    points_mm: NDArray[np.float64]
    regions: Mapping[str, Region]
    target_gy: Mapping[str, float]
    ceiling: Tensor
    tissue: slice
    normalization: Normalization
    reference_gy: float
    fixed_dose: Tensor
    terms: tuple[GoalTerm, ...] = ()
    aims: tuple[Aim, ...] = ()
    extra_terms: tuple[ObjectiveTerm, ...] = ()
    normalization_factor: float = 1.0
    weights: ObjectiveWeights = field(default_factory=ObjectiveWeights)

    @cached_property
    def target_levels(self) -> dict[str, float]:
        """The relative dose prescribed to each target."""
        return {name: gy / self.reference_gy for name, gy in self.target_gy.items()}

    @property
    def goal_weights(self) -> tuple[float, ...]:
        """The weight of each term, in order."""
        return tuple(term.weight for term in self.terms)

    def aiming_at(self, dose: Dose | None, aim: type[PointwiseAim] | type[HistogramAim]) -> Objective:
        """The objective with each organ held below a dose to aim at, in one of two ways; None for no dose."""
        if dose is None:
            return replace(self, aims=())
        organs = [region for name, region in self.regions.items() if name not in self.target_gy]
        aims = []
        for region in organs:
            gy = sample_dose(dose.gy, dose.grid, self.points_mm[region.points])
            relative = torch.as_tensor(gy / self.reference_gy, dtype=torch.float32)
            aims.append(aim(region, relative.clamp_min(self.weights.least_aim)))
        return replace(self, aims=tuple(aims))

    def __call__(self, dose: Tensor) -> Tensor:
        """The scalar to minimise, for relative dose at all points.

        Added one by one, so that a goal that is met, and so 0, does not even change the rounding.
        """
        return sum(self.parts(dose).values(), start=dose.new_zeros(()))

    def parts(self, dose: Tensor) -> dict[str, Tensor]:
        """What the objective adds up, by name; the part of a goal has the goal's words as its name."""
        weights = self.weights
        out: dict[str, Tensor] = {}
        for name, level in self.target_levels.items():
            d = dose[self.regions[name].points]
            hot = self.ceiling[self.regions[name].points]
            out[f"coverage of {name}"] = (
                weights.underdose * (level - d).clamp_min(0).square().mean() / level**2
            )
            out[f"hot dose in {name}"] = weights.overdose * (d - hot).clamp_min(0).square().mean() / level**2
        d = dose[self.tissue]
        out["falloff"] = weights.normal_tissue * (d - self.ceiling[self.tissue]).clamp_min(0).square().mean()
        for name, region in self.regions.items():
            if name not in self.target_gy and not region.in_target.all():
                outside = torch.from_numpy(~region.in_target)
                out[f"sparing of {name}"] = weights.sparing * dose[region.points][outside].mean()
        for term in self.terms:
            name = str(term.goal)
            hinge = weights.goal * term.weight * self.hinge(term, dose)
            out[name] = out.get(name, dose.new_zeros(())) + hinge
        for aim in self.aims:
            out[f"aim for {aim.region.name}"] = weights.aim * self.excess(aim, dose)
        for extra in self.extra_terms:
            gy = dose[self.regions[extra.structure].points] * self.reference_gy
            out[extra.name] = extra.weight * extra.penalty(gy)
        return out

    def excess(self, aim: Aim, dose: Tensor) -> Tensor:
        """How far an organ lies above the dose to aim at, squared; points inside targets are not pushed."""
        points = dose[aim.region.points] * self.normalization_factor
        return aim.excess(self._fixed_in_targets(aim.region, points))

    def hinge(self, term: GoalTerm, dose: Tensor) -> Tensor:
        """Zero where the goal is met with a small margin, growing quadratically beyond."""
        weights, goal, region = self.weights, term.goal, term.region
        bound = self._bound(goal)
        d = dose[region.points]
        if goal.structure not in self.target_gy:
            d = d * self.normalization_factor
        kind, at_least = goal.metric.kind, goal.comparator == ">="
        limit = goal.limit / self.reference_gy
        level = None if bound is None else bound.level_gy / self.reference_gy
        if goal.priority > 1 and not at_least:
            d = self._fixed_in_targets(region, d, level if kind in ("D%", "V") else None)
        if kind in ("mean", "gEUD"):
            exponent = goal.metric.value or 1.0
            mean = d.mean() if kind == "mean" else _power_mean(d, exponent, weights.least_dose)
            gap = limit * weights.mean_at_least - mean if at_least else mean - limit * weights.mean_at_most
            excess = gap.clamp_min(0) / weights.mean_knee
            return weights.mean * weights.mean_knee**2 * ((1 + excess.square()).sqrt() - 1)
        if kind == "min" or goal.metric.is_near_maximum:
            # Near-maximum and near-minimum: all points beyond the limit, a little early.
            gap = (limit * weights.min_at_least - d) if at_least else (d - limit * weights.max_at_most)
            if kind == "min" or not at_least:
                return gap.clamp_min(0).square().sum() / max(weights.hot_points, weights.hot_share * len(d))
            return gap.min().clamp_min(0).square()
        if bound is None or level is None:
            return d.new_zeros(())
        ordered = torch.sort(d, descending=True).values
        first = int(np.clip(round(bound.share(region.volume_cc) * len(d)), 0, len(d)))
        if at_least:
            below = (level * weights.histogram_at_least - ordered[:first]).clamp_min(0)
            return below.square().sum() / max(len(d), 1) * weights.histogram
        above = (ordered[first:] - level * weights.histogram_at_most).clamp_min(0)
        return above.square().sum() / max(len(d) - first, 1) * weights.histogram

    def _fixed_in_targets(self, region: Region, d: Tensor, level: float | None = None) -> Tensor:
        """Normalised dose of a region's points, with the fixed dose at those inside targets.

        Organ points inside a target are controlled by the target's goals: they count but are not pushed. If
        their value followed the dose, it would change in ways that the gradient does not know of. A goal with
        a `level` pushes there too where that level costs the target little.
        """
        fixed_dose = self.fixed_dose[region.points].to(d.dtype) * self.normalization_factor
        fixed = torch.from_numpy(region.in_target)
        if level is not None:
            fixed = fixed & (self.ceiling[region.points] * self.weights.near_target > level)
        return torch.where(fixed, fixed_dose, d)

    def _bound(self, goal: Goal) -> Bound | None:
        return goal.bound(self.target_gy)

    def value(self, goal: Goal, region: Region, dose: NDArray) -> float | None:
        """The goal's metric on relative dose at the sampled points, in the goal's unit."""
        gy = dose[region.points] * self.reference_gy
        level_gy = goal.metric.level_gy(self.target_gy.get(goal.structure))
        return histogram_value(goal.metric, Dvh.of(gy, region.volume_cc / len(gy)), level_gy)

    def adapt(self, dose: NDArray) -> tuple[Objective, int]:
        """The objective with goals weighed anew for a dose, and how many goals miss their limit.

        Goals rank by priority; the musts are of one rank, below them targets come before organs. A goal fails
        that misses what is still acceptable as well. As long as one fails, goals of the first rank with such
        a goal grow; failed goals of lower ranks weaken, so that they do not stand in the way; organ goals of
        higher ranks that are acceptable stay as they are. Where none fails, all that miss their limit grow by
        the same rule. Goals met with room ease.
        """
        objective = self._normalized_for(dose)
        scaled = dose * np.float32(objective.normalization_factor)
        standings = [self._standing(term, scaled) for term in self.terms]
        fails = [s.rank for s in standings if s.status == "fail"]
        first = min(fails or (s.rank for s in standings if s.status not in ("pass", None)), default=None)
        weights = [
            objective._weight_for_level(term)
            if term.is_normalization
            else self._weight(term, standing, first, any_fails=bool(fails))
            for term, standing in zip(self.terms, standings, strict=True)
        ]
        values = zip(self.terms, (s.value for s in standings), strict=True)
        missed = sum(t.goal.status(value) != "pass" for t, value in values if value is not None)
        return objective.with_goal_weights(weights), missed

    def _standing(self, term: GoalTerm, dose: NDArray) -> _Standing:
        """How a term's goal stands on a normalised dose; the normalisation itself is not judged."""
        goal = term.goal
        rank = goal.priority, goal.priority > 1 and goal.structure not in self.target_gy
        value = None if term.is_normalization else self.value(goal, term.region, dose)
        return _Standing(rank, value, None if value is None else self._status(goal, value))

    def _weight(self, term: GoalTerm, standing: _Standing, first: _Rank | None, *, any_fails: bool) -> float:
        """The new weight of a goal's term, where goals of rank `first` come first."""
        if standing.value is None:
            return term.weight
        if self._met_with_room(term.goal, standing.value):
            return self._eased(term)
        if first is not None and standing.rank > first:
            yielding = max(term.weight * self.weights.yielding, self.weights.least)
            return term.weight if standing.status == "pass" else yielding
        if any_fails and standing.status == "acceptable" and term.goal.structure not in self.target_gy:
            return term.weight
        return self._grown(term)

    def _weight_for_level(self, term: GoalTerm) -> float:
        """The new weight of the normalisation's term."""
        met = self.normalization_factor <= self.weights.level_factor
        return self._eased(term) if met else self._grown(term)

    def with_goal_weights(self, weights: Sequence[float]) -> Objective:
        """The objective with a weight for each term, in order."""
        terms = zip(self.terms, weights, strict=True)
        return replace(self, terms=tuple(replace(term, weight=weight) for term, weight in terms))

    def weighted_as(self, other: Objective) -> Objective:
        """The objective at the point where another of the same terms was last adapted."""
        return replace(
            self.with_goal_weights(other.goal_weights),
            normalization_factor=other.normalization_factor,
            fixed_dose=other.fixed_dose,
        )

    def resume(self, weights: Sequence[float], dose: NDArray) -> Objective:
        """The objective with the weights of an earlier search, raised for goals that `dose` misses."""
        objective = self.with_goal_weights(weights)._normalized_for(dose)
        missed = {str(goal) for goal in objective.missed_goals(dose)}
        largest = self.weights.largest_by_priority
        return objective.with_goal_weights(
            [
                max(term.weight, self.weights.resumed * largest[term.goal.priority - 1])
                if str(term.goal) in missed
                else term.weight
                for term in objective.terms
            ]
        )

    def missed_goals(self, dose: NDArray) -> list[Goal]:
        """The goals that the normalised dose does not meet, neither fully nor within their variation."""
        scaled = dose * np.float32(self._factor_for(dose, self.weights.normalization_while_judging))
        terms = [t for t in self.terms if not t.is_normalization]
        values = ((t.goal, self.value(t.goal, t.region, scaled)) for t in terms)
        return [goal for goal, value in values if value is not None and self._status(goal, value) == "fail"]

    def _normalized_for(self, dose: NDArray) -> Objective:
        """The objective with the normalisation factor of a dose, and that dose as the fixed one."""
        factor = self._factor_for(dose, self.weights.normalization_while_weighing)
        fixed = torch.as_tensor(np.array(dose, np.float32))
        return replace(self, normalization_factor=factor, fixed_dose=fixed)

    def _factor_for(self, dose: NDArray, most: float) -> float:
        """The factor that brings the sheet's normalisation about, `most` off 1; 1 where it says nothing."""
        normalization = self.normalization
        region = self.regions.get(normalization.structure)
        if region is None:
            return 1.0
        now_gy = self.value(_as_goal(normalization), region, dose)
        return float(np.clip(normalization.gy / now_gy, 1 - most, 1 + most)) if now_gy else 1.0

    def _eased(self, term: GoalTerm) -> float:
        return max(term.weight * self.weights.eased, self.weights.least)

    def _grown(self, term: GoalTerm) -> float:
        index = term.goal.priority - 1
        largest = self.weights.largest_by_priority[index]
        if index > 0 and term.goal.structure in self.target_gy:
            largest *= self.weights.largest_of_target
        return min(term.weight * self.weights.growth_by_priority[index], largest)

    def _met_with_room(self, goal: Goal, value: float) -> bool:
        """Whether a value is a little inside the limit: the search sees samples, the report every voxel."""
        if goal.comparator == "<=":
            return value <= goal.limit * self.weights.room_at_most
        return value >= goal.limit * self.weights.room_at_least

    def _status(self, goal: Goal, value: float) -> Status:
        """How a value on samples stands to a goal, with room for what the report will find beyond it."""
        if goal.comparator == "<=":
            return goal.status(value * (1 + self.weights.report_above))
        return goal.status(value * (1 - self.weights.report_below))


def _power_mean(d: Tensor, exponent: float, least_dose: float) -> Tensor:
    """The generalised equivalent uniform dose, scaled so that no power over- or underflows."""
    d = d.clamp_min(least_dose)
    top = (d.max() if exponent > 0 else d.min()).detach()
    return top * (d / top).pow(exponent).mean().pow(1 / exponent)


def _as_goal(normalization: Normalization) -> Goal:
    return Goal(normalization.structure, normalization.metric, ">=", normalization.gy, "Gy")


def build_objective(
    case: Case,
    sheet: GoalSheet,
    grid: Grid,
    rng: np.random.Generator,
    extra_terms: Sequence[ObjectiveTerm] = (),
) -> Objective:
    """Sample the structures that the sheet names, and normal tissue, and set up the terms of all goals.

    `grid` is the dose grid; `sheet` must already be fitted to the case. Raises GoalError for an extra term
    on a structure that is not sampled.
    """
    target_gy = {n: gy for n, gy in sheet.prescription.target_gy.items() if n in case.structures}
    reference = max(sheet.prescription.target_gy.values())
    levels = {name: gy / reference for name, gy in target_gy.items()}
    falloffs = {name: falloff_of(name, sheet, case) for name in levels}
    ceiling_map = CeilingMap(grid, *ceiling_of(case, levels, falloffs, grid))
    samples = draw_samples(case, sheet, tuple(levels), ceiling_map, rng)
    points_mm, regions = samples.points_mm, samples.regions
    ceiling = sample(ceiling_map.dose, grid, points_mm, fill=min(f.far for f in falloffs.values()))
    fixed_dose = ceiling.copy()
    for name, level in levels.items():
        inside = regions[name].points
        ceiling[inside] = np.maximum(ceiling[inside], level * falloffs[name].hot)
        fixed_dose[inside] = np.maximum(fixed_dose[inside], level * BORDER)
    for extra in extra_terms:
        if extra.structure not in regions:
            raise GoalError(
                f"objective term {extra.name}: goal sheet {sheet.name} has nothing on {extra.structure}, "
                f"so it is not sampled; name one of {', '.join(regions)} or add a goal on it"
            )
    terms = [GoalTerm(g, samples.region_of(g)) for g in sheet.goals if g.structure in regions]
    normalization = sheet.normalization
    if normalization.structure in regions:
        region = regions[normalization.structure]
        terms.append(GoalTerm(_as_goal(normalization), region, is_normalization=True))
    return Objective(
        points_mm,
        regions,
        target_gy,
        torch.as_tensor(ceiling, dtype=torch.float32),
        samples.tissue,
        normalization,
        reference,
        torch.as_tensor(fixed_dose / BORDER, dtype=torch.float32),
        tuple(terms),
        extra_terms=tuple(extra_terms),
    )
