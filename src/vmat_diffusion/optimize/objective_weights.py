"""The numbers of the objective, each with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ObjectiveWeights:
    """Weights, margins and bounds of the objective; doses are relative to the highest prescription.

    Tuples `by_priority` hold one number each for must, should and wish. The equations are in
    `docs/optimiser.md`.
    """

    # Terms that are always there. Underdose of a target outweighs its overdose, both outweigh normal tissue;
    # sparing is small enough to give way to any goal that is missed.
    underdose: float = 240.0
    overdose: float = 60.0
    normal_tissue: float = 25.0
    sparing: float = 0.4
    # All goals, times the weight of each.
    goal: float = 40.0
    # A dose to aim at weighs less than a missed goal.
    aim: float = 10.0
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
    # A value on every voxel may be worse by this share than on samples. For coverage it is little: sheets
    # normalise to 0.2 % above it or more.
    report_above: float = 0.012
    report_below: float = 0.001
    # Above this normalisation factor the search raises the dose that sets the plan's level; below, scaling
    # the MU at the end changes nothing that matters.
    level_factor: float = 1.003
    # The normalisation factor of a state differs from 1 by at most this: little while goals are weighed, as
    # early states are far off; more where the question is which goals a plan would miss.
    normalization_while_weighing: float = 0.05
    normalization_while_judging: float = 0.25
    # A mean of powers is not differentiable at dose 0.
    least_dose: float = 1e-4
