"""How far the dose of a structure's points is from a goal: a hinge for each kind of metric.

A hinge is zero where the goal is met with a little room and grows smoothly beyond. Its gradient is exact as
long as no two points change rank. Equations: `docs/optimiser.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vmat_diffusion.evaluate.goals import Goal
from vmat_diffusion.evaluate.metrics import Bound, Kind
from vmat_diffusion.optimize.objective_terms import ObjectiveWeights
from vmat_diffusion.optimize.sampling import is_near_maximum


@dataclass(frozen=True)
class Wanted:
    """What a goal asks of the relative dose of a structure's points.

    `limit` is the dose that a goal on a dose allows, and `level` that of the point of the histogram which the
    goal bounds; both relative to the highest prescription. `share`, 0 to 1, is the part of the volume at the
    level. `more` says that the goal asks for more dose. `near_maximum`: the goal concerns every point above
    the level.
    """

    goal: Goal
    limit: float
    level: float | None
    share: float
    more: bool
    near_maximum: bool


def wanted(
    goal: Goal, structure_cc: float, target_cc: float, target_gy: Mapping[str, float], reference_gy: float
) -> Wanted:
    """What a goal in physical Gy asks of points that stand for `structure_cc`.

    `target_cc` is the volume of the goal's structure where it is a target, `target_gy` are the prescribed
    doses, `reference_gy` is the highest of them.
    """
    bound = _bound(goal, target_cc, target_gy)
    limit = goal.limit / reference_gy
    level = None if bound is None else bound.level_gy / reference_gy
    share = 0.0 if bound is None else bound.share(structure_cc)
    return Wanted(goal, limit, level, share, goal.demands_dose, is_near_maximum(goal))


def _bound(goal: Goal, target_cc: float, target_gy: Mapping[str, float]) -> Bound | None:
    """The point of the histogram that a goal bounds; of a partial mean its volume."""
    metric = goal.metric
    if metric.kind in ("meanhot", "meancold") and metric.value is not None:
        return Bound(goal.limit, metric.value, "cc" if metric.value_unit == "cc" else "%")
    if metric.kind == "R":
        level = metric.level_gy(target_gy.get(goal.structure))
        return None if level is None else Bound(level, goal.limit * target_cc, "cc")
    return goal.bound(target_gy)


def goal_hinge(want: Wanted, d: Tensor, weights: ObjectiveWeights) -> Tensor:
    """Zero where relative dose `d` of the points meets the goal with room, growing quadratically beyond.

    0 for a kind of `WITHOUT_HINGE`.
    """
    kind = want.goal.metric.kind
    function = _spot if want.near_maximum else HINGES.get(kind)
    return d.new_zeros(()) if function is None else function(want, d, weights)


def _mean(want: Wanted, d: Tensor, weights: ObjectiveWeights) -> Tensor:
    """The mean of all points, of the hottest or coldest, or of powers: a constant force far from the goal."""
    mean = _mean_of(want, d, weights.least_dose)
    limit = want.limit
    gap = limit * weights.mean_at_least - mean if want.more else mean - limit * weights.mean_at_most
    excess = gap.clamp_min(0) / weights.mean_knee
    return weights.mean * weights.mean_knee**2 * ((1 + excess.square()).sqrt() - 1)


def _mean_of(want: Wanted, d: Tensor, least_dose: float) -> Tensor:
    metric = want.goal.metric
    if metric.kind == "gEUD":
        return _power_mean(d, metric.value or 1.0, least_dose)
    if metric.kind == "mean":
        return d.mean()
    ordered = torch.sort(d, descending=metric.kind == "meanhot").values
    points = want.share * len(d)
    whole = int(np.clip(int(points + 1e-9), 1, len(d)))
    rest = points - whole
    if rest <= 1e-9 or whole == len(d):
        return ordered[:whole].mean()
    return (ordered[:whole].sum() + rest * ordered[whole]) / points


def _power_mean(d: Tensor, exponent: float, least_dose: float) -> Tensor:
    """The generalised equivalent uniform dose, scaled so that no power over- or underflows."""
    d = d.clamp_min(least_dose)
    top = (d.max() if exponent > 0 else d.min()).detach()
    return top * (d / top).pow(exponent).mean().pow(1 / exponent)


def _spot(want: Wanted, d: Tensor, weights: ObjectiveWeights) -> Tensor:
    """Near-maximum and near-minimum: all points beyond the limit, a little early."""
    limit = want.limit if want.goal.metric.kind not in ("V", "CV") or want.level is None else want.level
    gap = (limit * weights.min_at_least - d) if want.more else (d - limit * weights.max_at_most)
    if want.goal.metric.kind == "min" or not want.more:
        return gap.clamp_min(0).square().sum() / max(weights.hot_points, weights.hot_share * len(d))
    return gap.min().clamp_min(0).square()


def _histogram(want: Wanted, d: Tensor, weights: ObjectiveWeights) -> Tensor:
    """The points beyond the share of the volume that the goal allows, or below the one that it asks for."""
    if want.level is None:
        return d.new_zeros(())
    ordered = torch.sort(d, descending=True).values
    share = want.share
    if want.goal.metric.kind == "CV" and not want.more:
        share = 1 - (1 - share) * weights.spared_at_least
    first = int(np.clip(round(share * len(d)), 0, len(d)))
    if want.more:
        below = (want.level * weights.histogram_at_least - ordered[:first]).clamp_min(0)
        return below.square().sum() / max(len(d), 1) * weights.histogram
    above = (ordered[first:] - want.level * weights.histogram_at_most).clamp_min(0)
    return above.square().sum() / max(len(d) - first, 1) * weights.histogram


_Hinge = Callable[[Wanted, Tensor, ObjectiveWeights], Tensor]
HINGES: Mapping[Kind, _Hinge] = {
    "mean": _mean,
    "meanhot": _mean,
    "meancold": _mean,
    "gEUD": _mean,
    "min": _spot,
    "max": _spot,
    "Dcm": _spot,
    "D%": _histogram,
    "Dcc": _histogram,
    "V": _histogram,
    "CV": _histogram,
    "R": _histogram,
}
# Kinds on which the search does not act, and why.
WITHOUT_HINGE: Mapping[Kind, str] = {
    "conformity": "the falloff and the limit on hot dose around each target act in its stead; "
    "a goal on R100% has a term of its own",
    "homogeneity": "coverage and the limit on hot dose of each target act in its stead; goals on D2% and "
    "D98% have terms of their own",
}
