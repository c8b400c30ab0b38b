"""Which dose meets a sheet best: priorities first, then by how much, then the room that is left."""

from __future__ import annotations

from dataclasses import replace

from vmat_diffusion.evaluate.goals import Goal, GoalResult, Group
from vmat_diffusion.evaluate.metrics import Metric
from vmat_diffusion.evaluate.ranking import goal_score

MUST = Goal("PTV", Metric.parse("D95%"), ">=", 50.0, "Gy", priority=1)
SHOULD = Goal("Cord", Metric.parse("max"), "<=", 40.0, "Gy", variation=45.0, priority=2)
WISH = Goal("Lung", Metric.parse("mean"), "<=", 10.0, "Gy", priority=3)


def score(must: float | None, should: float, wish: float):
    values = zip((MUST, SHOULD, WISH), (must, should, wish), strict=True)
    return goal_score([GoalResult(g, v, "not evaluated" if v is None else g.status(v)) for g, v in values])


def test_one_missed_must_is_worse_than_any_wishes() -> None:
    assert score(50, 50, 100) < score(49, 10, 1)
    assert score(50, 40, 100) < score(50, 46, 1)


def test_by_how_much_limits_are_missed_counts_the_acceptable_too() -> None:
    assert score(50, 44, 5).missed == (0, 0, 0)
    assert score(50, 44, 5).excess_percent == 10.0
    assert score(50, 40, 5) < score(50, 42, 1) < score(50, 44, 1)


def test_with_all_goals_met_the_room_decides() -> None:
    assert score(50, 30, 5) < score(60, 39, 9)
    assert score(50, 30, 5).used_percent == (75 + 50) / 2


def test_what_has_no_value_does_not_count() -> None:
    assert score(None, 30, 5) == score(50, 30, 5)


def grouped(at_least: int, *values: float | None, every: bool = False):
    group = Group("glands", at_least, 2, every=every)
    goals = [replace(SHOULD, structure=f"Gland_{k}", group="glands") for k in range(len(values))]
    return goal_score(
        [
            GoalResult(g, v, "not evaluated" if v is None else g.status(v), group=group)
            for g, v in zip(goals, values, strict=True)
        ]
    )


def test_a_group_counts_once_and_only_for_what_it_lacks() -> None:
    assert grouped(1, 30, 60).missed == (0, 0, 0) and grouped(1, 30, 60).excess_percent == 0.0
    assert grouped(1, 50, 60).missed == (0, 1, 0) and grouped(1, 50, 60).excess_percent == 25.0
    assert grouped(2, 50, 60).missed == (0, 1, 0) and grouped(2, 50, 60).excess_percent == 75.0
    assert grouped(2, 30, 44).missed == (0, 0, 0) and grouped(2, 30, 44).excess_percent == 10.0
    assert grouped(1, 30, 50, every=True).missed == (0, 1, 0)
    assert grouped(1, 50, 60, every=True).excess_percent == 75.0
    assert grouped(1, 60, None).missed == (0, 1, 0) and grouped(1, None, None).missed == (0, 0, 0)
