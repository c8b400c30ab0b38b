"""Clinical goals as differentiable functions of the dose at sampled points.

All doses here are relative to the highest prescription. Goals become hinges that vanish once they
are met; besides them every target is pushed to uniform coverage, normal tissue below a falloff from
the targets, and every organ as low as the rest allows. Equations: `docs/optimiser.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.evaluate.dvh import Dvh
from vmat_diffusion.evaluate.goals import Goal, GoalSheet, Normalization, Status
from vmat_diffusion.evaluate.metrics import histogram_value
from vmat_diffusion.geometry import Grid, sample
from vmat_diffusion.optimize.falloff import BORDER, ceiling_of, falloff_of
from vmat_diffusion.optimize.sampling import Region, Shape, draw_samples, is_near_maximum

_UNDER, _OVER, _TISSUE, _GOAL, _SPARE = 240.0, 60.0, 25.0, 40.0, 0.4
# A dose to aim at: its weight, below that of a missed goal, and the dose below which nothing is asked of an
# organ, as a prediction ends where an arc's scatter does not.
_AIM, _LEAST_AIM = 10.0, 0.03
# While a goal is missed its strength grows by this factor up to this bound, by priority; a target's further.
_GROWTH = {1: 1.6, 2: 1.4, 3: 1.25}
_STRONGEST = {1: 60.0, 2: 25.0, 3: 6.0}
_TARGETS_FIRST = 2.0
_WEAKEST, _DECAY, _EASE = 0.5, 0.75, 0.97
# Of the strongest: what a goal weighs at least that a finished plan misses when it is searched on.
_RESUMED = 0.3
# Above this the search has to lift the dose that sets the plan's level, not leave it to the normalisation.
_LEVEL_FACTOR = 1.003
# A mean dose that is out of reach pulls with constant force beyond this relative excess.
_MEAN_KNEE, _MEAN = 0.03, 0.08
# D and V goals are pushed from this share of their level on, in targets too where that is near their dose.
_EARLY, _NEAR_TARGET = 0.985, 0.95
# A near-maximum is pushed from this share of its limit on, and counts as if so many points were too hot.
_NEAR_MAXIMUM, _HOT_SHARE, _HOT_POINTS = 0.97, 0.1, 40
# What the report finds on every voxel may be worse by this share than what the search sees on samples. Of
# coverage it is little: sheets normalise to 0.2 % above it or more.
_ROOM_ABOVE, _ROOM_BELOW = 0.012, 0.001
# No dose is below this for a mean of powers.
_LEAST_DOSE = 1e-4


@dataclass(eq=False)
class GoalTerm:
    """A hinge for one goal, with the weight that grows while the goal is missed.

    The one with `sets_level` is no goal of the sheet but the dose that its normalisation asks for.
    """

    goal: Goal
    region: Region
    strength: float = 1.0
    sets_level: bool = False


@dataclass(frozen=True, eq=False)
class Aim:
    """The relative doses of an organ's points in a dose to aim at: each point's, and in ascending order."""

    region: Region
    at_points: Tensor

    @cached_property
    def ascending(self) -> Tensor:
        """The same doses by rank."""
        return self.at_points.sort().values


@dataclass(eq=False)
class Objective:
    """The points at which dose is needed and the function that judges it.

    `points_mm[n, 3]`; `ceiling[n]` is the most that each point may receive; `reference_gy` is the
    highest prescription, in which all relative doses are measured. `factor` is what the plan's
    normalisation would multiply the dose by, and `held` the dose, as of the last call of `adapt`; organ goals
    count the factor in, and of their points inside targets the dose held. While `voxelwise`, each point of
    an organ is held below its own dose in the one to aim at, else the organ's histogram.
    """

    points_mm: NDArray[np.float64]
    regions: dict[str, Region]
    targets: dict[str, float]
    ceiling: Tensor
    tissue: slice
    normalization: Normalization
    terms: list[GoalTerm] = field(default_factory=list)
    aims: list[Aim] = field(default_factory=list)
    reference_gy: float = 1.0
    factor: float = 1.0
    voxelwise: bool = False
    held: Tensor = field(kw_only=True)

    def __call__(self, dose: Tensor) -> Tensor:
        """The scalar to minimise, for relative dose at all points.

        Added one by one, so that a goal that is met, and so 0, does not even change the rounding.
        """
        return sum(self.parts(dose).values(), start=dose.new_zeros(()))

    def parts(self, dose: Tensor) -> dict[str, Tensor]:
        """What the objective adds up, by name; the part of a goal has the goal's words as its name."""
        out: dict[str, Tensor] = {}
        for name, level in self.targets.items():
            d = dose[self.regions[name].points]
            hot = self.ceiling[self.regions[name].points]
            out[f"coverage of {name}"] = _UNDER * (level - d).clamp_min(0).square().mean() / level**2
            out[f"hot dose in {name}"] = _OVER * (d - hot).clamp_min(0).square().mean() / level**2
        d = dose[self.tissue]
        out["falloff"] = _TISSUE * (d - self.ceiling[self.tissue]).clamp_min(0).square().mean()
        for name, region in self.regions.items():
            if name not in self.targets and not region.in_target.all():
                outside = torch.from_numpy(~region.in_target)
                out[f"sparing of {name}"] = _SPARE * dose[region.points][outside].mean()
        for term in self.terms:
            name = str(term.goal)
            out[name] = out.get(name, dose.new_zeros(())) + _GOAL * term.strength * self._hinge(term, dose)
        for aim in self.aims:
            out[f"aim for {aim.region.name}"] = _AIM * self._excess(aim, dose)
        return out

    def _excess(self, aim: Aim, dose: Tensor) -> Tensor:
        """By how much an organ lies above the dose to aim at, squared: point by point or rank by rank."""
        d = self._outside_targets(aim.region, dose[aim.region.points] * self.factor)
        above = d - aim.at_points if self.voxelwise else d.sort().values - aim.ascending
        return above.clamp_min(0).square().mean()

    def _hinge(self, term: GoalTerm, dose: Tensor) -> Tensor:
        """Zero where the goal is met with a small margin, growing quadratically beyond."""
        goal, region = term.goal, term.region
        d = dose[region.points]
        if goal.structure not in self.targets:
            d = d * self.factor
        kind, at_least = goal.metric.kind, goal.comparator == ">="
        limit = goal.limit / self.reference_gy
        if goal.priority > 1 and not at_least:
            d = self._outside_targets(region, d, self._level(goal) if kind in ("D%", "V") else None)
        if kind in ("mean", "gEUD"):
            mean = d.mean() if kind == "mean" else _power_mean(d, goal.metric.value or 1.0)
            gap = (limit * 1.005 - mean) if at_least else (mean - limit * 0.985)
            excess = gap.clamp_min(0) / _MEAN_KNEE
            return _MEAN * _MEAN_KNEE**2 * ((1 + excess.square()).sqrt() - 1)
        if kind == "min" or is_near_maximum(goal):
            # Near-maximum and near-minimum: all points beyond the limit, a little early.
            gap = (limit * 1.01 - d) if at_least else (d - limit * _NEAR_MAXIMUM)
            if kind == "min" or not at_least:
                return gap.clamp_min(0).square().sum() / max(_HOT_POINTS, _HOT_SHARE * len(d))
            return gap.min().clamp_min(0).square()
        level = self._level(goal)
        share = self._share(goal, region)
        if level is None or share is None:
            return d.new_zeros(())
        ordered = torch.sort(d, descending=True).values
        first = int(np.clip(round(share * len(d)), 0, len(d)))
        if at_least:
            return (level * 1.004 - ordered[:first]).clamp_min(0).square().sum() / max(len(d), 1) * 3
        return (ordered[first:] - level * _EARLY).clamp_min(0).square().sum() / max(len(d) - first, 1) * 3

    def _outside_targets(self, region: Region, d: Tensor, level: float | None = None) -> Tensor:
        """Normalised dose of a region's points; those inside targets keep the dose held.

        Except where `level`, to which they are to be brought, costs the target little.
        They are the targets' business: they count but are not pushed. If they followed the dose, the value
        would change in ways that the gradient does not know of.
        """
        held = self.held[region.points].to(d.dtype) * self.factor
        kept = torch.from_numpy(region.in_target)
        if level is not None:
            kept = kept & (self.ceiling[region.points] * _NEAR_TARGET > level)
        return torch.where(kept, held, d)

    def _level(self, goal: Goal) -> float | None:
        """The relative dose level of a D% or V goal."""
        if goal.metric.kind in ("D%", "Dcc"):
            return goal.limit / self.reference_gy
        if goal.metric.kind == "V" and goal.metric.value is not None:
            if goal.metric.value_unit == "%":
                own = self.targets.get(goal.structure)
                return None if own is None else own * goal.metric.value / 100
            return goal.metric.value / self.reference_gy
        return None

    def _share(self, goal: Goal, region: Region) -> float | None:
        """The share of the volume that may (or must) receive the level."""
        if goal.metric.kind == "D%" and goal.metric.value is not None:
            return goal.metric.value / 100
        if goal.metric.kind == "Dcc" and goal.metric.value is not None:
            return min(goal.metric.value / max(region.volume_cc, 1e-6), 1.0)
        if goal.metric.kind == "V":
            return goal.limit / 100 if goal.unit == "%" else goal.limit / max(region.volume_cc, 1e-6)
        return None

    def value(self, goal: Goal, region: Region, dose: NDArray) -> float | None:
        """The goal's metric on relative dose at the sampled points, in the goal's unit."""
        gy = dose[region.points] * self.reference_gy
        level = self._level(goal)
        level_gy = None if level is None else level * self.reference_gy
        return histogram_value(goal.metric, Dvh.of(gy, region.volume_cc / len(gy)), level_gy)

    def adapt(self, dose: NDArray) -> int:
        """Re-weigh the goals by how the normalised dose meets them; returns how many miss their limit.

        Goals rank by priority; the musts are of one rank, below them targets come before organs. As long as
        a goal fails, that is misses what is still acceptable as well, those of the first rank with such a
        goal grow, failed goals of lower ranks weaken so that they do not stand in its way, and organ goals of
        higher ranks that are acceptable stay as they are. Where none fails, all that miss their limit grow by
        the same rule. Goals met with room ease.
        """
        self._hold(dose)
        scaled = dose * np.float32(self.factor)
        found = []
        for term in self.terms:
            if term.sets_level:
                self._strengthen(term, met=self.factor <= _LEVEL_FACTOR)
                continue
            value = self.value(term.goal, term.region, scaled)
            if value is not None:
                priority = term.goal.priority
                rank = (priority, priority > 1 and term.goal.structure not in self.targets)
                found.append((rank, term, value, _status(term.goal, value)))
        fails = [rank for rank, _, _, status in found if status == "fail"]
        first = min(fails or (rank for rank, _, _, status in found if status != "pass"), default=None)
        for rank, term, value, status in found:
            # A little inside the limit: the search sees samples, the report every voxel.
            at_most = term.goal.comparator == "<="
            limit = term.goal.limit * (0.985 if at_most else 1.002)
            if value <= limit if at_most else value >= limit:
                self._strengthen(term, met=True)
            elif first is not None and rank > first:
                if status != "pass":
                    term.strength = max(term.strength * _DECAY, _WEAKEST)
            elif not (fails and status == "acceptable") or term.goal.structure in self.targets:
                self._strengthen(term, met=False)
        return sum(term.goal.status(value) != "pass" for _, term, value, _ in found)

    def _hold(self, dose: NDArray) -> None:
        """Keep what the plan's normalisation would make of a dose, and the dose of points inside targets."""
        self.factor = self._normalizing(dose)
        self.held = torch.as_tensor(np.array(dose, np.float32))

    def _strengthen(self, term: GoalTerm, *, met: bool) -> None:
        """A goal that is met eases, one that is not grows up to the bound of its priority."""
        priority = term.goal.priority
        if met:
            term.strength = max(term.strength * _EASE, _WEAKEST)
            return
        most = _STRONGEST[priority]
        if priority > 1 and term.goal.structure in self.targets:
            most *= _TARGETS_FIRST
        term.strength = min(term.strength * _GROWTH[priority], most)

    def resume(self, strengths: Sequence[float], dose: NDArray) -> None:
        """Take up the weights of an earlier search; what `dose` then misses weighs much from the start."""
        for term, strength in zip(self.terms, strengths, strict=True):
            term.strength = strength
        self._hold(dose)
        missed = {str(goal) for goal in self.missed(dose)}
        for term in self.terms:
            if str(term.goal) in missed:
                term.strength = max(term.strength, _RESUMED * _STRONGEST[term.goal.priority])

    def missed(self, dose: NDArray) -> list[Goal]:
        """The goals that the normalised dose does not meet, neither fully nor within their variation."""
        scaled = dose * np.float32(self._normalizing(dose, most=0.25))
        values = ((t.goal, self.value(t.goal, t.region, scaled)) for t in self.terms if not t.sets_level)
        return [goal for goal, value in values if value is not None and _status(goal, value) == "fail"]

    def _normalizing(self, dose: NDArray, most: float = 0.05) -> float:
        """The factor that brings the sheet's normalisation about, `most` off 1; 1 where it says nothing."""
        wish = self.normalization
        region = self.regions.get(wish.structure)
        if region is None:
            return 1.0
        now = self.value(Goal(wish.structure, wish.metric, ">=", wish.gy, "Gy"), region, dose)
        return float(np.clip(wish.gy / now, 1 - most, 1 + most)) if now else 1.0


def _power_mean(d: Tensor, exponent: float) -> Tensor:
    """The generalised equivalent uniform dose, scaled so that no power over- or underflows."""
    d = d.clamp_min(_LEAST_DOSE)
    top = (d.max() if exponent > 0 else d.min()).detach()
    return top * (d / top).pow(exponent).mean().pow(1 / exponent)


def _status(goal: Goal, value: float) -> Status:
    """How a value on sampled points stands to a goal, with room for what the report will find beyond it."""
    return goal.status(value * (1 + _ROOM_ABOVE) if goal.comparator == "<=" else value * (1 - _ROOM_BELOW))


def build_objective(
    case: Case, sheet: GoalSheet, grid: Grid, rng: np.random.Generator, target: Dose | None = None
) -> Objective:
    """Sample the structures that the sheet names, and normal tissue, and set up all terms.

    `grid` is the dose grid; `sheet` must already be fitted to the case. `target` is a dose whose histograms
    the organs are to keep below.
    """
    reference = max(sheet.prescription.target_gy.values())
    targets = {n: gy / reference for n, gy in sheet.prescription.target_gy.items() if n in case.structures}
    falloffs = {name: falloff_of(name, sheet, case) for name in targets}
    ceiling_map, distance = ceiling_of(case, targets, falloffs, grid)
    drawn = draw_samples(case, sheet, tuple(targets), Shape(grid, ceiling_map, distance), rng)
    where, regions = drawn.points_mm, drawn.regions
    most = sample(ceiling_map, grid, where, fill=min(f.far for f in falloffs.values()))
    held = most.copy()
    for name, level in targets.items():
        own = regions[name].points
        most[own] = np.maximum(most[own], level * falloffs[name].hot)
        held[own] = np.maximum(held[own], level * BORDER)
    ceiling = torch.as_tensor(most, dtype=torch.float32)
    terms = [GoalTerm(g, drawn.region_of(g)) for g in sheet.goals if g.structure in regions]
    wish = sheet.normalization
    if wish.structure in regions:
        asked = Goal(wish.structure, wish.metric, ">=", wish.gy, "Gy")
        terms.append(GoalTerm(asked, regions[wish.structure], sets_level=True))
    organs = [region for name, region in regions.items() if name not in targets]
    return Objective(
        where,
        regions,
        targets,
        ceiling,
        drawn.tissue,
        sheet.normalization,
        terms,
        [] if target is None else [_aim(target, region, where, reference) for region in organs],
        reference,
        held=torch.as_tensor(held / BORDER, dtype=torch.float32),
    )


def _aim(target: Dose, region: Region, points_mm: NDArray, reference_gy: float) -> Aim:
    gy = sample(target.gy, target.grid, points_mm[region.points])
    relative = torch.as_tensor(gy / reference_gy, dtype=torch.float32)
    return Aim(region, relative.clamp_min(_LEAST_AIM))
