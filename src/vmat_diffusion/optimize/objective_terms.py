"""The terms of what the search minimises, on dose and on apertures, and their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vmat_diffusion.evaluate.goals import Goal
from vmat_diffusion.optimize.sampling import Region

# Gaps below this width are narrow; a closed pair costs nothing.
_NARROW_MM = 10.0
# Differences of neighbours below this are no edge.
_SMOOTH_MM = 2.0
# x (1 - x)^2 times this has its maximum of 1 at x = 1/3.
_PEAK = 6.75


@dataclass(frozen=True)
class ObjectiveWeights:
    """Weights, margins and bounds of the objective; doses are relative to the highest prescription.

    Tuples `by_priority` hold one number each for must, should and wish. The equations are in
    `docs/optimiser.md`.
    """

    # Terms that are always there. Underdose of a target outweighs its overdose, both outweigh normal tissue;
    # sparing is small enough to give way to any goal that is missed.
    underdose: float = 16000.0
    overdose: float = 40.0
    normal_tissue: float = 25.0
    sparing: float = 10.0
    # All goals, times the weight of each.
    goal: float = 100.0
    # A dose to aim at weighs less than a missed goal.
    aim: float = 25.0
    # Below this dose nothing is asked of an organ: a predicted dose ends where an arc's scatter does not.
    least_aim: float = 0.03

    # While a goal is missed its weight grows by this factor in each round, up to a bound; a goal of a target
    # that is no must may grow further than one of an organ, as targets rank first.
    growth_by_priority: tuple[float, float, float] = (1.6, 1.4, 1.25)
    largest_by_priority: tuple[float, float, float] = (60.0, 25.0, 6.0)
    largest_of_target: float = 2.0
    # The weight of a goal that is met falls slowly, so that the goal stays met; that of a failed goal of a
    # lower rank falls fast, so that it does not stand in the way. Neither falls below the least.
    eased: float = 0.97
    yielding: float = 0.75
    least: float = 0.5
    # A search that is continued is short: a goal that is missed begins with at least this share of its bound.
    resumed: float = 0.3

    # Each hinge begins a little inside the limit, as the search sees samples and the report every voxel.
    mean_at_most: float = 0.985
    mean_at_least: float = 1.005
    min_at_least: float = 1.01
    # A near-maximum lies in few voxels, which differ most between samples and report.
    max_at_most: float = 0.97
    histogram_at_most: float = 0.985
    histogram_at_least: float = 1.004
    # A volume to be spared is asked for a little larger than the sheet has it.
    spared_at_least: float = 1.01
    # Brings the mean over the points that a histogram goal pushes to the size of other hinges.
    histogram: float = 3.0
    # A mean that is out of reach pulls with constant force beyond this relative excess, and does not bend
    # everything else.
    mean_knee: float = 0.03
    mean: float = 0.08
    # Hot points of a near-maximum are summed, and divided by this share of the structure's points or this
    # number, whichever is more: one hot point must count.
    hot_share: float = 0.1
    hot_points: int = 40
    # Organ points inside a target are pushed only by goals whose level is at least this share of what the
    # target may receive there, which costs the target little.
    near_target: float = 0.95

    # A goal counts as met with room inside these shares of its limit.
    room_at_most: float = 0.985
    room_at_least: float = 1.002
    room_spared: float = 1.008
    # A value on every voxel may be worse by this share than on samples. For coverage it is little: sheets
    # normalise to 0.2 % above it or more.
    report_above: float = 0.012
    report_below: float = 0.001
    report_spared: float = 0.005
    # Above this normalisation factor the search raises the dose that sets the plan's level; below, scaling
    # the MU at the end changes nothing that matters.
    level_factor: float = 1.003
    # The normalisation factor of a state differs from 1 by at most this: little while goals are weighed, as
    # early states are far off; more where the question is which goals a plan would miss.
    normalization_while_weighing: float = 0.05
    normalization_while_judging: float = 0.25
    # The mean of the highest targets in a normalised plan is not believed above this: early doses are uneven.
    highest_normalized_mean: float = 1.1
    # A mean of powers is not differentiable at dose 0.
    least_dose: float = 1e-4


@dataclass(frozen=True, eq=False)
class GoalTerm:
    """A hinge for one goal, with the weight that grows while the goal is missed.

    `goal` has the words of the sheet and the priority that counts in the search; `physical` is the same goal
    in Gy of the whole course. The term with `is_normalization` stands for the dose that the sheet's
    normalisation asks for. `pressed` says of a member of a group whether the search presses for it; None
    until a dose is known, and for other goals.
    """

    goal: Goal
    physical: Goal
    region: Region
    weight: float = 1.0
    is_normalization: bool = False
    pressed: bool | None = None


@dataclass(frozen=True)
class ObjectiveTerm:
    """A term beside those of the goals: `weight` times a penalty on the dose of a structure.

    `penalty` takes the dose of the course in Gy at the structure's sampled points, a tensor `[points]`
    before normalisation, and returns a scalar that torch can differentiate. The hinge of a goal missed by a
    tenth is about 0.1 to 1. `structure` is one that the goal sheet names.
    """

    name: str
    structure: str
    penalty: Callable[[Tensor], Tensor]
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class PointwiseAim:
    """Holds each point of an organ below its own dose in a dose to aim at: for fluence maps.

    `dose[points]` is the relative dose of the region's points in the dose to aim at.
    """

    region: Region
    dose: Tensor

    def excess(self, dose: Tensor) -> Tensor:
        """Mean square of what lies above, for the relative dose of the region's points."""
        return (dose - self.dose).clamp_min(0).square().mean()


@dataclass(frozen=True, eq=False)
class HistogramAim:
    """Holds an organ's histogram below that of a dose to aim at, rank by rank: for leaves.

    A predicted dose of fixed fields lies elsewhere than that of arcs, so the place does not count.
    """

    region: Region
    dose: Tensor

    @cached_property
    def ascending(self) -> Tensor:
        """The dose to aim at by rank."""
        return self.dose.sort().values

    def excess(self, dose: Tensor) -> Tensor:
        """Mean square of what lies above, for the relative dose of the region's points."""
        return (dose.sort().values - self.ascending).clamp_min(0).square().mean()


Aim = PointwiseAim | HistogramAim


@dataclass(frozen=True)
class ModulationPenalties:
    """Weights of the three penalties, in units of the objective; 0 switches one off."""

    narrow: float = 0.05
    edges: float = 0.02
    travel: float = 0.01


def modulation_penalty(
    leaves: Tensor,
    mu: Tensor,
    first: Tensor,
    last: Tensor,
    penalties: ModulationPenalties,
    *,
    least_gap_mm: float,
) -> Tensor:
    """The penalty of apertures `leaves[control points, 2, leaf rows]` (mm) with `mu[segments]`.

    `first[s]`, `last[s]` are the control points that bound segment s. Each penalty is a mean over the field,
    weighted by MU, so that more MU alone cost nothing.
    """
    share = mu.detach() / mu.detach().sum()
    weight = leaves.new_zeros(len(leaves)).index_add(0, first, share / 2).index_add(0, last, share / 2)
    gap = leaves[:, 1] - leaves[:, 0]
    # 0 where closed, 1 from _NARROW_MM on.
    open_share = ((gap - least_gap_mm) / (_NARROW_MM - least_gap_mm)).clamp(0, 1)
    narrow = (weight * (_PEAK * open_share * (1 - open_share).square()).mean(1)).sum()
    step = (leaves[:, :, 1:] - leaves[:, :, :-1]).square().add(_SMOOTH_MM**2).sqrt().sum(1) - 2 * _SMOOTH_MM
    both = torch.minimum(open_share[:, 1:], open_share[:, :-1]).detach()
    edges = (weight * (both * step).mean(1)).sum() / _NARROW_MM
    moved = (leaves[last] - leaves[first]).square().add(_SMOOTH_MM**2).sqrt() - _SMOOTH_MM
    travel = (share * moved.mean((1, 2))).sum() / _NARROW_MM
    return penalties.narrow * narrow + penalties.edges * edges + penalties.travel * travel
