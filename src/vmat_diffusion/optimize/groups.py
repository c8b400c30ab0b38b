"""Groups of goals of which some must be met: which members the search presses for.

A sheet that asks for one parotid or the other does not say which. The search presses for the members that
are nearest to their goals, with the priority of the group; the others count as wishes. What is nearest is
asked again whenever the weights change; a member gives its place up only to one that is nearer by a margin,
so that the search does not go to and fro between two of about the same distance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from vmat_diffusion.evaluate.goals import Goal, Group

# Priority of the members that a group is not pressed for.
WISH = 3
# By this share of its limit another member must be nearer to its goal to take a place.
_MARGIN = 0.1
_LEAST_LIMIT = 1e-6


def excess(goal: Goal, value: float) -> float:
    """How far a value is beyond a goal's limit, as a share of the limit; negative within."""
    beyond = value - goal.limit if goal.comparator == "<=" else goal.limit - value
    return beyond / max(abs(goal.limit), _LEAST_LIMIT)


def pressed_for(
    at_least: int, distances: Sequence[float], before: frozenset[int] | None = None
) -> frozenset[int]:
    """The members, by position, that a group is pressed for: the `at_least` nearest to their goals.

    `distances` are the members' `excess`. Those of `before` keep their place unless they miss their goal and
    another is nearer by a margin.
    """
    order = sorted(range(len(distances)), key=lambda k: distances[k])
    if before is None or len(before) != min(at_least, len(order)):
        return frozenset(order[:at_least])
    inside = sorted(before, key=lambda k: -distances[k])
    outside = [k for k in order if k not in before]
    for place, (now, other) in enumerate(zip(tuple(inside), outside, strict=False)):
        if distances[now] <= 0 or distances[other] >= distances[now] - _MARGIN:
            break
        inside[place] = other
    return frozenset(inside)


def missing_members(group: Group, failing: Sequence[Goal], members: int) -> tuple[Goal, ...]:
    """The goals that a group of so many `members` lacks, of its failing ones, those of higher priority first.

    Each with the group's priority. None where enough of them are met.
    """
    lacking = min(group.at_least, members) - (members - len(failing))
    first = sorted(failing, key=lambda goal: goal.priority)[: max(lacking, 0)]
    return tuple(replace(goal, priority=group.priority) for goal in first)


def of_groups(goals: Sequence[Goal], groups: Mapping[str, Group]) -> dict[str, tuple[int, ...]]:
    """The positions of the members of each group in which one goal may be met in place of another.

    Not so where every goal of the group must be met that can be evaluated: those stand for themselves.
    """
    out: dict[str, tuple[int, ...]] = {}
    for k, goal in enumerate(goals):
        if goal.group is not None and goal.group in groups and not groups[goal.group].every:
            out[goal.group] = (*out.get(goal.group, ()), k)
    return out
