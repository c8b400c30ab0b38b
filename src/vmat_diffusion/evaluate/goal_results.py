"""What a dose makes of goals: the result of each, of groups of them, and which are missed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vmat_diffusion.evaluate.goal_sheets import goal_sheet_names
from vmat_diffusion.evaluate.goal_sources import NOT_STATED, stated_sources
from vmat_diffusion.evaluate.goal_types import Goal, GoalSheet, Group
from vmat_diffusion.evaluate.goal_words import Status


@dataclass(frozen=True)
class GoalResult:
    """A goal with its value on one dose; `value` is None where it could not be evaluated.

    `note` says what a reader must know, such as voxels outside the dose grid. `excused` is a member of a
    group that is met, and `group` that group. `physical_gy` is the physical dose beside a value in EQD2.
    """

    goal: Goal
    value: float | None
    status: Status
    note: str = ""
    excused: bool = False
    group: Group | None = None
    physical_gy: float | None = None

    @property
    def missed(self) -> bool:
        """Whether the goal is not met: it failed, or a must could not be evaluated and is not optional.

        A goal whose group is met is not missed.
        """
        if self.excused:
            return False
        required = self.goal.priority == 1 and not self.goal.optional
        return self.status == "fail" or (self.status == "not evaluated" and required)

    @property
    def word(self) -> str:
        """The status in a word, where a goal that fails in a group that is met is "excused"."""
        return "excused" if self.excused and self.status in ("fail", "not evaluated") else self.status


@dataclass(frozen=True)
class GroupResult:
    """A group with how many of its goals are met (`met`), of those that have a value (`evaluated`).

    `status` is "pass" where enough goals meet their limits, "acceptable" where enough do with their
    variations; "not evaluated" where too few have a value, though none of them fails. In a group of which
    `every` goal counts, enough are all that have a value.
    """

    group: Group
    results: tuple[GoalResult, ...]
    met: int
    evaluated: int
    status: Status

    @property
    def missed(self) -> bool:
        """Whether the group is not met: too few of its goals are, or a must could not be evaluated."""
        return any(result.missed for result in self.results)

    @property
    def priority(self) -> int:
        """The priority of the group."""
        return self.group.priority

    @property
    def needed(self) -> int:
        """How many goals must be met."""
        return max(self.group.at_least, self.evaluated) if self.group.every else self.group.at_least

    def excuses(self, result: GoalResult) -> bool:
        """Whether a member is no miss although it may not be met: its group is met without it."""
        if self.status in ("pass", "acceptable"):
            return True
        return self.group.every and result.value is None and self.evaluated >= self.group.at_least

    @property
    def statement(self) -> str:
        """`at least 1 of Parotid_L mean <= 26 Gy, Parotid_R mean <= 26 Gy`."""
        return f"{self.group.rule} of {', '.join(str(r.goal) for r in self.results)}"

    @property
    def counted(self) -> str:
        """`1 of 2 met`, or `1 of 1 met, 1 not evaluated`."""
        absent = len(self.results) - self.evaluated
        return f"{self.met} of {self.evaluated} met" + (f", {absent} not evaluated" if absent else "")

    def __str__(self) -> str:
        return f"{self.group.name}: {self.statement} ({self.counted})"


def group_results(results: Sequence[GoalResult]) -> tuple[GroupResult, ...]:
    """The groups of the goals, in the order of their first goal.

    A group passes where at least so many goals as it asks for pass, and is acceptable where they do with
    their variations. What was not evaluated is not met.
    """
    out = []
    for group in dict.fromkeys(r.group for r in results if r.group is not None):
        own = tuple(r for r in results if r.group == group)
        full = sum(r.status == "pass" for r in own)
        met = full + sum(r.status == "acceptable" for r in own)
        evaluated = sum(r.status != "not evaluated" for r in own)
        found = GroupResult(group, own, met, evaluated, "fail" if evaluated > met else "not evaluated")
        if met >= found.needed:
            found = replace(found, status="pass" if full >= found.needed else "acceptable")
        out.append(found)
    return tuple(out)


def missed_of(results: Sequence[GoalResult], priority: int) -> tuple[GoalResult | GroupResult, ...]:
    """What is missed of a priority: goals that stand alone, and each group once."""
    alone = [r for r in results if r.group is None and r.goal.priority == priority and r.missed]
    groups = [g for g in group_results(results) if g.priority == priority and g.missed]
    return (*alone, *groups)


def goal_record(result: GoalResult) -> dict[str, Any]:
    """A goal's result as plain data; `value` is None where it could not be evaluated."""
    goal = result.goal
    return {
        "goal": goal.statement,
        "structure": goal.structure,
        "value": None if result.value is None else round(result.value, 4),
        "limit": goal.limit if math.isfinite(goal.limit) else None,
        "unit": goal.unit,
        "status": result.status,
        "missed": result.missed,
        "group": goal.group,
        "excused": result.excused,
    }


def goal_details(result: GoalResult) -> dict[str, Any]:
    """Everything about a goal and its result as plain data, with its sources."""
    goal = result.goal
    eqd2 = {"alpha_beta_gy": goal.eqd2, "physical_gy": _rounded(result.physical_gy)} if goal.eqd2 else None
    return {
        **goal_record(result),
        "variation": goal.variation,
        "priority": goal.priority,
        "note": result.note,
        "applies_to": goal.applies_to,
        "condition": goal.condition,
        "table": goal.table,
        "eqd2": eqd2,
        **stated_sources(goal),
    }


def group_record(result: GroupResult) -> dict[str, Any]:
    """A group's result as plain data."""
    return {
        "group": result.group.name,
        "at_least": result.group.at_least,
        "every": result.group.every,
        "met": result.met,
        "evaluated": result.evaluated,
        "of": [str(r.goal) for r in result.results],
        "priority": result.priority,
        "status": result.status,
        "missed": result.missed,
        "source": result.group.source,
        "seen": result.group.seen or NOT_STATED,
    }


def sheet_record(sheet: GoalSheet) -> dict[str, Any]:
    """What a fitted sheet is and how it was read, as plain data, without its goals.

    `name` is that of a shipped sheet, None for a sheet of one's own: the name of its file is not for sharing.
    """
    return {
        "name": sheet.name if sheet.name in goal_sheet_names() else None,
        "title": sheet.title,
        "format": sheet.format,
        "source": sheet.source,
        "current_to": sheet.current_to or None,
        "conditions_on": list(sheet.conditions_on),
        "left_out": [{"goal": str(goal), "condition": goal.condition} for goal in sheet.left_out],
        "structures": dict(sheet.structures),
        "remarks": list(sheet.remarks),
    }


def left_out_text(sheet: GoalSheet) -> tuple[str, ...]:
    """A sentence for each condition that leaves goals out, and how that is changed."""
    by_condition: dict[str, list[str]] = {}
    for goal in sheet.left_out:
        by_condition.setdefault(goal.condition or "", []).append(str(goal))
    out = []
    for condition, goals in by_condition.items():
        name = condition.removeprefix("not ")
        words = sheet.conditions.get(name, name)
        why = f"{words} does not hold (--with {name})" if name == condition else f"{words} holds"
        out.append(f"Left out, as {why}: {', '.join(goals)}")
    return tuple(out)


def unpublished_text(results: Sequence[GoalResult]) -> str:
    """How many goals have a source that was not seen in print, by how it was; "" where all were."""
    counts: dict[str, int] = {}
    for goal in (r.goal for r in results):
        if not goal.source.strip() or goal.seen != "publication":
            words = (goal.seen or "not stated") if goal.source.strip() else "no source"
            counts[words] = counts.get(words, 0) + 1
    listed = ", ".join(f"{words} {count}" for words, count in counts.items())
    return f"Sources not seen in print, of {len(results)} goals: {listed}" if listed else ""


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
