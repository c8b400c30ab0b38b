"""The weight of each goal in the objective: how it follows from how far the dose is from the goals.

Goals rank by priority; the musts are of one rank, below them targets come before organs. A goal fails that
misses what is still acceptable as well. As long as one fails, goals of the first rank with such a goal grow;
failed goals of lower ranks weaken, so that they do not stand in the way; organ goals of higher ranks that are
acceptable stay as they are. Where none fails, all that miss their limit grow by the same rule. Goals met with
room ease. Of a group of goals the members that the search presses for count as the group does, the others as
wishes; a group that is met has no goal that fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from vmat_diffusion.evaluate.goals import Goal, Group, Status
from vmat_diffusion.optimize.groups import WISH, excess, missing_members, of_groups, pressed_for
from vmat_diffusion.optimize.objective_terms import GoalTerm, ObjectiveWeights

# Priority, and whether the goal is an organ's and no must: the lower comes first.
_Rank = tuple[int, bool]


class _Standing(NamedTuple):
    """A goal's rank, its value on a dose, and how the value stands to the goal."""

    rank: _Rank
    value: float | None
    status: Status | None


@dataclass(frozen=True)
class GoalWeighing:
    """How goals are weighed: the bounds of their weights, the prescribed targets, and the groups of goals."""

    weights: ObjectiveWeights
    targets: frozenset[str]
    groups: Mapping[str, Group]

    def of_target(self, goal: Goal) -> bool:
        """Whether a goal is on the dose in a target; R50% and D2cm are on the tissue around it."""
        return goal.structure in self.targets and goal.metric.kind not in ("R", "Dcm")

    def adapted(
        self, terms: Sequence[GoalTerm], values: Sequence[float | None], *, level_met: bool
    ) -> tuple[tuple[GoalTerm, ...], int]:
        """The terms weighed anew for the values of their goals, and how many goals miss their limit.

        The value is None for a goal that has none, and for the normalisation, whose term eases where its
        level is met.
        """
        terms = self.pressed(terms, values)
        standings = [self._standing(t, v) for t, v in zip(terms, values, strict=True)]
        fails = [s.rank for s in standings if s.status == "fail"]
        first = min(fails or (s.rank for s in standings if s.status not in ("pass", None)), default=None)
        weights = [
            (self._eased(term) if level_met else self._grown(term))
            if term.is_normalization
            else self._weight(term, standing, first, any_fails=bool(fails))
            for term, standing in zip(terms, standings, strict=True)
        ]
        short = [t.goal for t, v in zip(terms, values, strict=True) if _limit_missed(t, v)]
        missed = len(self._counted(terms, short))
        return tuple(replace(t, weight=w) for t, w in zip(terms, weights, strict=True)), missed

    def failed(self, terms: Sequence[GoalTerm], values: Sequence[float | None]) -> list[Goal]:
        """The goals that are not met, neither fully nor within their variation.

        Of a group those that it lacks, with its priority.
        """
        pairs = zip(self.pressed(terms, values), values, strict=True)
        failing = [t.goal for t, v in pairs if v is not None and self.status(t.physical, v) == "fail"]
        return self._counted(terms, failing)

    def pressed(self, terms: Sequence[GoalTerm], values: Sequence[float | None]) -> tuple[GoalTerm, ...]:
        """The terms with the priority of their group or of a wish, as the search presses for them or not.

        A member that takes another's place takes its weight as well.
        """
        out = list(terms)
        for name, members in of_groups([t.goal for t in terms], self.groups).items():
            group = self.groups[name]
            members = tuple(k for k in members if values[k] is not None)
            distances = [excess(terms[k].physical, values[k] or 0.0) for k in members]
            decided = all(terms[k].pressed is not None for k in members)
            before = frozenset(i for i, k in enumerate(members) if terms[k].pressed) if decided else None
            chosen = pressed_for(group.at_least, distances, before)
            heaviest = max((terms[k].weight for k in members), default=0.0)
            for i, k in enumerate(members):
                priority = group.priority if i in chosen else WISH
                weight = terms[k].weight
                if i in chosen and before is not None and i not in before:
                    weight = heaviest
                elif i not in chosen:
                    weight = min(weight, self.weights.largest_by_priority[WISH - 1])
                goal = replace(terms[k].goal, priority=priority)
                out[k] = replace(terms[k], goal=goal, pressed=i in chosen, weight=weight)
        return tuple(out)

    def status(self, goal: Goal, value: float) -> Status:
        """How a value on samples stands to a goal, with room for what the report will find beyond it."""
        if goal.metric.kind == "CV":
            sign = 1 if goal.comparator == "<=" else -1
            return goal.status(value * (1 + sign * self.weights.report_spared))
        if goal.comparator == "<=":
            return goal.status(value * (1 + self.weights.report_above))
        return goal.status(value * (1 - self.weights.report_below))

    def _counted(self, terms: Sequence[GoalTerm], failing: Sequence[Goal]) -> list[Goal]:
        """The failing goals without members of groups that are met without them."""
        members = of_groups([t.goal for t in terms], self.groups)
        out = [goal for goal in failing if goal.group not in members]
        for name, positions in members.items():
            lacking = [goal for goal in failing if goal.group == name]
            out += missing_members(self.groups[name], lacking, len(positions))
        return out

    def _standing(self, term: GoalTerm, value: float | None) -> _Standing:
        """How a term's goal stands; the normalisation itself is not judged."""
        goal = term.goal
        rank = goal.priority, goal.priority > 1 and not self.of_target(goal)
        return _Standing(rank, value, None if value is None else self.status(term.physical, value))

    def _weight(self, term: GoalTerm, standing: _Standing, first: _Rank | None, *, any_fails: bool) -> float:
        """The new weight of a goal's term, where goals of rank `first` come first."""
        if standing.value is None:
            return term.weight
        if self._met_with_room(term.physical, standing.value):
            return self._eased(term)
        if first is not None and standing.rank > first:
            yielding = max(term.weight * self.weights.yielding, self.weights.least)
            return term.weight if standing.status == "pass" else yielding
        if any_fails and standing.status == "acceptable" and not self.of_target(term.goal):
            return term.weight
        return self._grown(term)

    def _eased(self, term: GoalTerm) -> float:
        return max(term.weight * self.weights.eased, self.weights.least)

    def _grown(self, term: GoalTerm) -> float:
        index = term.goal.priority - 1
        largest = self.weights.largest_by_priority[index]
        if index > 0 and self.of_target(term.goal):
            largest *= self.weights.largest_of_target
        return min(term.weight * self.weights.growth_by_priority[index], largest)

    def _met_with_room(self, goal: Goal, value: float) -> bool:
        """Whether a value is a little inside the limit: the search sees samples, the report every voxel."""
        if goal.metric.kind == "CV" and goal.comparator == ">=":
            return value >= goal.limit * self.weights.room_spared
        if goal.comparator == "<=":
            return value <= goal.limit * self.weights.room_at_most
        return value >= goal.limit * self.weights.room_at_least


def _limit_missed(term: GoalTerm, value: float | None) -> bool:
    return value is not None and term.physical.status(value) != "pass"
