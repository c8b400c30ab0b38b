"""A score of doses by a goal sheet; the dose with the smallest score meets it best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vmat_diffusion.evaluate.goal_results import GoalResult, group_results


@dataclass(frozen=True, order=True)
class GoalScore:
    """The score of a dose; smaller is better, and the first field that differs decides.

    `missed` counts failed goals by priority: must, should and wish. `excess_percent` is the sum of the misses
    relative to the limits, within the acceptable variation or beyond. `used_percent` is the mean of the
    values relative to the upper limits.
    """

    missed: tuple[int, int, int]
    excess_percent: float
    used_percent: float = 0.0

    def __str__(self) -> str:
        must, should, wish = self.missed
        return (
            f"{must} must, {should} should and {wish} wish goals missed, by {self.excess_percent:.1f} % of "
            f"their limits in sum, upper limits used to {self.used_percent:.1f} %"
        )

    def record(self) -> dict[str, Any]:
        """Plain data."""
        names = ("missed_must", "missed_should", "missed_wish")
        return {
            **dict(zip(names, self.missed, strict=True)),
            "excess_percent": round(self.excess_percent, 3),
            "used_percent": round(self.used_percent, 3),
        }


def goal_score(results: Sequence[GoalResult]) -> GoalScore:
    """The score of evaluated goals; those without a value do not count.

    A group counts once, with the misses of as many of its goals as it lacks, the smallest of them.
    """
    missed, excess = [0, 0, 0], 0.0
    valued = [r for r in results if r.value is not None]
    for r in valued:
        if r.group is None:
            missed[r.goal.priority - 1] += r.status == "fail"
            excess += _excess_percent(r)
    for g in group_results(results):
        missed[g.priority - 1] += g.status == "fail"
        lacking = max(g.needed - sum(r.status == "pass" for r in g.results), 0)
        misses = sorted(_excess_percent(r) for r in g.results if r.value is not None and r.status != "pass")
        excess += sum(misses[:lacking])
    used = [
        100 * r.value / _size(r.goal.limit)
        for r in valued
        if r.value is not None and r.goal.comparator == "<="
    ]
    return GoalScore((missed[0], missed[1], missed[2]), excess, sum(used) / max(len(used), 1))


def _size(limit: float) -> float:
    return max(abs(limit), 1e-9)


def _excess_percent(result: GoalResult) -> float:
    """What a goal is missed by, in percent of its limit; 0 where it passes."""
    if result.value is None or result.status == "pass":
        return 0.0
    return 100 * abs(result.value - result.goal.limit) / _size(result.goal.limit)
