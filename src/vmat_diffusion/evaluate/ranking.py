"""A score of doses by a goal sheet; the dose with the smallest score meets it best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vmat_diffusion.evaluate.goals import GoalResult


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
    """The score of evaluated goals; those without a value do not count."""
    missed, excess, used = [0, 0, 0], 0.0, []
    for r in results:
        if r.value is None:
            continue
        limit = max(abs(r.goal.limit), 1e-9)
        if r.goal.comparator == "<=":
            used.append(100 * r.value / limit)
        if r.status != "pass":
            missed[r.goal.priority - 1] += r.status == "fail"
            excess += 100 * abs(r.value - r.goal.limit) / limit
    return GoalScore((missed[0], missed[1], missed[2]), excess, sum(used) / max(len(used), 1))
