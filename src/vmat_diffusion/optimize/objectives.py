"""Clinical goals as differentiable functions of the dose at sampled points.

All doses here are relative to the highest prescription. Each goal becomes a hinge that vanishes once the
goal is met. Besides, every target is pushed to uniform coverage, normal tissue below a falloff from the
targets, and every organ as low as the rest allows. Equations: `docs/optimiser.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.dvh import Dvh
from vmat_diffusion.evaluate.goals import Goal, GoalSheet, Group, Normalization
from vmat_diffusion.evaluate.metrics import histogram_value
from vmat_diffusion.geometry import Grid, sample, sample_dose
from vmat_diffusion.optimize.falloff import BORDER, CeilingMap, ceiling_of, falloff_of
from vmat_diffusion.optimize.goal_weights import GoalWeighing
from vmat_diffusion.optimize.hinges import Wanted, goal_hinge, wanted
from vmat_diffusion.optimize.objective_terms import (
    Aim,
    GoalTerm,
    HistogramAim,
    ObjectiveTerm,
    ObjectiveWeights,
    PointwiseAim,
)
from vmat_diffusion.optimize.sampling import Region, Samples, draw_samples

# An organ is held below a dose to aim at only where the dose's grid holds at least this share of it: outside
# nothing is known, and 0 Gy would be asked for.
LEAST_HELD = 0.95


@dataclass(frozen=True, eq=False)
class Objective:
    """The points at which dose is needed and the function that judges it.

    `points_mm[n, 3]`; `ceiling[n]` is the most that each point may receive; `reference_gy` is the
    highest prescription, in which all relative doses are measured. Four fields are as of the last `adapt`:
    the weights of the `terms`; `normalization_factor`, by which the plan's normalisation would multiply the
    dose; `normalized_mean`, the mean that the highest targets would then have; and `fixed_dose[n]`, the dose
    at all points. Organ goals count the factor in, and count organ points inside targets with their fixed
    dose.
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
    groups: Mapping[str, Group] = field(default_factory=dict)
    aims: tuple[Aim, ...] = ()
    extra_terms: tuple[ObjectiveTerm, ...] = ()
    normalization_factor: float = 1.0
    normalized_mean: float = 1.0
    weights: ObjectiveWeights = field(default_factory=ObjectiveWeights)

    @cached_property
    def target_levels(self) -> dict[str, float]:
        """The relative dose prescribed to each target."""
        return {name: gy / self.reference_gy for name, gy in self.target_gy.items()}

    def highest_level(self, dose: Tensor) -> Tensor:
        """Mean dose of the highest targets in units of what they have in the plan once it is normalised.

        For relative dose at all points. The inverse is what normalisation multiplies the MU by.
        """
        return self._mean_of_highest(dose) / self.normalized_mean

    def _mean_of_highest(self, dose: Tensor) -> Tensor:
        highest = max(self.target_levels.values())
        names = [name for name, level in self.target_levels.items() if level == highest]
        return torch.cat([dose[self.regions[name].points] for name in names]).mean()

    @property
    def goal_weights(self) -> tuple[float, ...]:
        """The weight of each term, in order."""
        return tuple(term.weight for term in self.terms)

    def aiming_at(self, dose: Dose | None, aim: type[PointwiseAim] | type[HistogramAim]) -> Objective:
        """The objective with each organ held below a dose to aim at, in one of two ways; None for no dose.

        An organ that the dose's grid does not hold keeps its goals alone.
        """
        if dose is None:
            return replace(self, aims=())
        organs = [region for name, region in self.regions.items() if name not in self.target_gy]
        aims = []
        for region in organs:
            if dose.grid.holds(self.points_mm[region.points]).mean() < LEAST_HELD:
                continue
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
            lacking = (level - d).clamp_min(0).square().mean() / level**2
            out[f"coverage of {name}"] = weights.underdose * lacking
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
        goal, region = term.physical, term.region
        want = self._wanted(goal, region)
        d = dose[region.points]
        if not self.weighing.of_target(goal):
            d = d * self.normalization_factor
        if term.goal.priority > 1 and not want.more:
            d = self._fixed_in_targets(region, d, want.level if self._acts_in_targets(goal) else None)
        return goal_hinge(want, d, self.weights)

    def _wanted(self, goal: Goal, region: Region) -> Wanted:
        whole = self.regions.get(goal.structure, region)
        return wanted(goal, region.volume_cc, whole.volume_cc, self.target_gy, self.reference_gy)

    def _acts_in_targets(self, goal: Goal) -> bool:
        """Whether an organ's goal may push points inside targets: it bounds a point of the histogram."""
        return goal.metric.kind in ("D%", "V", "CV") or goal.structure not in self.regions

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

    def value(self, goal: Goal, region: Region, dose: NDArray) -> float | None:
        """The metric of a goal in physical Gy on relative dose at its points, in the goal's unit."""
        gy = dose[region.points] * self.reference_gy
        if goal.metric.kind == "Dcm":
            return float(gy.max())
        level_gy = goal.metric.level_gy(self.target_gy.get(goal.structure))
        dvh = Dvh.of(gy, region.volume_cc / len(gy))
        if goal.metric.kind == "R":
            target_cc = self.regions[goal.structure].volume_cc
            return None if level_gy is None else float(dvh.volume_at_dose_cc(level_gy)) / target_cc
        return histogram_value(goal.metric, dvh, level_gy)

    @cached_property
    def weighing(self) -> GoalWeighing:
        """How the goals are weighed."""
        return GoalWeighing(self.weights, frozenset(self.target_gy), self.groups)

    def adapt(self, dose: NDArray) -> tuple[Objective, int]:
        """The objective with goals weighed anew for a dose, and how many goals miss their limit.

        By the rules of `goal_weights`, on the normalised dose.
        """
        objective = self._normalized_for(dose)
        factor = objective.normalization_factor
        values = self._values(dose, factor)
        terms, missed = self.weighing.adapted(
            self.terms, values, level_met=factor <= self.weights.level_factor
        )
        return replace(objective, terms=terms), missed

    def _values(self, dose: NDArray, factor: float) -> list[float | None]:
        """The value of each term's goal on the normalised dose; None for the normalisation itself."""
        scaled = dose * np.float32(factor)
        return [None if t.is_normalization else self.value(t.physical, t.region, scaled) for t in self.terms]

    def with_goal_weights(self, weights: Sequence[float]) -> Objective:
        """The objective with a weight for each term, in order."""
        terms = zip(self.terms, weights, strict=True)
        return replace(self, terms=tuple(replace(term, weight=weight) for term, weight in terms))

    def weighted_as(self, other: Objective, dose: NDArray | None = None) -> Objective:
        """The objective as it is where another of the same terms was last adapted.

        Where the other has points of its own, `dose` is the relative dose at the points of this one.
        """
        pairs = zip(self.terms, other.terms, strict=True)
        weighted = replace(
            self,
            terms=tuple(replace(t, goal=o.goal, weight=o.weight, pressed=o.pressed) for t, o in pairs),
            normalization_factor=other.normalization_factor,
            normalized_mean=other.normalized_mean,
        )
        if dose is not None:
            return weighted._normalized_for(dose)
        return replace(weighted, fixed_dose=other.fixed_dose)

    def resume(self, weights: Sequence[float], dose: NDArray) -> Objective:
        """The objective with the weights of an earlier search, raised for goals that `dose` misses."""
        objective = self.with_goal_weights(weights)._normalized_for(dose)
        values = objective._values(
            dose, objective._factor_for(dose, self.weights.normalization_while_judging)
        )
        objective = replace(objective, terms=self.weighing.pressed(objective.terms, values))
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
        factor = self._factor_for(dose, self.weights.normalization_while_judging)
        return self.weighing.failed(self.terms, self._values(dose, factor))

    def reached(self, dose: NDArray) -> dict[str, float | None]:
        """The value of each goal, by its words, on relative dose scaled to the sheet's normalisation.

        Physical, in the unit of the goal in Gy; None for a goal that has no value.
        """
        values = self._values(dose, self.factor_to_normalization(dose))
        pairs = zip(self.terms, values, strict=True)
        return {str(term.goal): value for term, value in pairs if not term.is_normalization}

    def factor_to_normalization(self, dose: NDArray) -> float:
        """By how much the sheet's normalisation multiplies a dose; 1 where it says nothing."""
        return self._factor_for(dose, np.inf)

    def _normalized_for(self, dose: NDArray) -> Objective:
        """The objective with the normalisation factor of a dose, and that dose as the fixed one."""
        factor = self._factor_for(dose, self.weights.normalization_while_weighing)
        fixed = torch.as_tensor(np.array(dose, np.float32))
        normalized = self._factor_for(dose, np.inf) * float(self._mean_of_highest(fixed))
        mean = float(np.clip(normalized, 1.0, self.weights.highest_normalized_mean))
        return replace(self, normalization_factor=factor, normalized_mean=mean, fixed_dose=fixed)

    def _factor_for(self, dose: NDArray, most: float) -> float:
        """The factor that brings the sheet's normalisation about, `most` off 1; 1 where it says nothing."""
        normalization = self.normalization
        region = self.regions.get(normalization.structure)
        if region is None:
            return 1.0
        now_gy = self.value(_as_goal(normalization), region, dose)
        return float(np.clip(normalization.gy / now_gy, 1 - most, 1 + most)) if now_gy else 1.0


def _as_goal(normalization: Normalization) -> Goal:
    return Goal(normalization.structure, normalization.metric, ">=", normalization.gy, "Gy")


def build_objective(
    case: Case,
    sheet: GoalSheet,
    grid: Grid,
    rng: np.random.Generator,
    extra_terms: Sequence[ObjectiveTerm] = (),
    *,
    share: float = 1.0,
) -> Objective:
    """Sample the structures that the sheet names, and normal tissue, and set up the terms of all goals.

    `grid` is the dose grid; `sheet` must already be fitted to the case; `share` as in `draw_samples`. Raises
    GoalError for an extra term on a structure that is not sampled.
    """
    target_gy = {n: gy for n, gy in sheet.prescription.target_gy.items() if n in case.structures}
    reference = max(sheet.prescription.target_gy.values())
    levels = {name: gy / reference for name, gy in target_gy.items()}
    falloffs = {name: falloff_of(name, sheet, case) for name in levels}
    ceiling_map = CeilingMap(grid, *ceiling_of(case, levels, falloffs, grid))
    samples = draw_samples(case, sheet, tuple(levels), ceiling_map, rng, share=share)
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
    terms = _goal_terms(sheet, samples)
    normalization = sheet.normalization
    if normalization.structure in regions:
        norm = _as_goal(normalization)
        terms.append(GoalTerm(norm, norm, regions[normalization.structure], is_normalization=True))
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
        groups=sheet.groups,
        extra_terms=tuple(extra_terms),
    )


def _goal_terms(sheet: GoalSheet, samples: Samples) -> list[GoalTerm]:
    """A term for each goal whose structure is sampled; members of a group have its priority to begin with."""
    terms = []
    for goal, physical in zip(sheet.goals, sheet.in_gy().goals, strict=True):
        region = samples.region_of(goal)
        if region is None:
            continue
        group = sheet.groups.get(goal.group or "")
        ranked = goal if group is None else replace(goal, priority=group.priority)
        terms.append(GoalTerm(ranked, physical, region))
    return terms
