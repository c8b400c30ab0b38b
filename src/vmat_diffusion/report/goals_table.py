"""The goals in the report: their table, those without a value, and what to know of the sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vmat_diffusion.evaluate.delivery_results import DeliveryResult
from vmat_diffusion.evaluate.goal_results import (
    GoalResult,
    GroupResult,
    group_results,
    left_out_text,
    missed_of,
    unpublished_text,
)
from vmat_diffusion.evaluate.goal_types import GoalSheet
from vmat_diffusion.report.content import Shown

_PRIORITIES = {1: "Must", 2: "Should", 3: "Wish"}
# The stages of a yardstick and how a column calls them.
_STAGES = {
    "ideal": "Ideal fluence",
    "sectors": "Free sectors",
    "maps": "Fluence maps",
    "delivered": "Plan",
}
_DIGITS = {"Gy": 2, "%": 1, "cc": 2}
_MARKS = {"pass": "✓", "acceptable": "~", "fail": "✗", "excused": "~", "not evaluated": ""}


def goals_verdict(results: Sequence[GoalResult], violations: Sequence[str]) -> dict[str, Any]:
    """Whether the plan can be delivered, and the goals by their status; a missed group counts once."""
    count = {word: sum(r.word == word for r in results if r.value is not None) for word in _MARKS}
    count["not evaluated"] = sum(r.value is None for r in results)
    return {
        "deliverable": not violations,
        "violations": len(violations),
        "count": count,
        "missed": len(missed_of(results, 1)),
        "evaluated": len(results) - count["not evaluated"],
    }


def goal_tables(results: Sequence[GoalResult], shown: Sequence[Shown]) -> list[dict[str, Any]]:
    """The goals with a value and the groups by priority, each a row."""
    colour = {s.name: s.colour for s in shown}
    groups = group_results(results)
    tables = []
    for priority, title in _PRIORITIES.items():
        rows = [
            _row(r, colour.get(r.goal.structure, "transparent"))
            for r in results
            if r.goal.priority == priority and r.value is not None
        ]
        rows += [_group_row(g) for g in groups if g.priority == priority]
        if rows:
            tables.append({"title": title, "priority": priority, "rows": rows})
    return tables


def delivery_rows(results: Sequence[DeliveryResult]) -> list[dict[str, Any]]:
    """The goals on the delivery, each a row."""
    return [
        {
            "priority": _PRIORITIES[r.goal.priority],
            "statement": pretty(r.goal.statement),
            "words": r.goal.words,
            "variation": "–" if r.goal.variation is None else f"{r.goal.variation:g} {r.goal.unit}",
            "value": r.value_text,
            "status": r.status if r.value is not None else "acceptable",
            "word": r.status,
            "mark": _MARKS[r.status],
            "note": r.note,
            "source": r.goal.source_text,
        }
        for r in results
    ]


def _row(result: GoalResult, colour: str) -> dict[str, Any]:
    goal, word = result.goal, result.word
    member = f"group {result.group.name}" if result.group else ""
    return {
        "structure": goal.structure,
        "colour": colour,
        "statement": pretty(goal.statement),
        "variation": "–" if goal.variation is None else f"{goal.variation:g} {goal.unit}".rstrip(),
        "value": value_text(result),
        "status": "acceptable" if word == "excused" else word,
        "word": "fails, group met" if word == "excused" else word,
        "mark": _MARKS[word],
        "note": "; ".join(part for part in (member, result.note) if part),
        "source": goal.source_text,
    }


def _group_row(found: GroupResult) -> dict[str, Any]:
    """A row for a group: `at least 1 of ...`."""
    status = found.status if found.status != "not evaluated" else "fail" if found.missed else "acceptable"
    return {
        "structure": f"Group {found.group.name}",
        "colour": "transparent",
        "statement": pretty(found.statement),
        "variation": "–",
        "value": found.counted,
        "status": status,
        "word": found.status,
        "mark": _MARKS[found.status],
        "note": "",
        "source": found.group.source_text,
    }


def yardstick_table(record: Mapping[str, Any], shown: Sequence[Shown]) -> dict[str, Any]:
    """The goals on ideal fluence as rows, those that the plan misses first, from a yardstick's record."""
    colour = {s.name: s.colour for s in shown}
    goals = sorted(record["goals"], key=lambda goal: goal["loss"] is None)
    rows = [
        {
            "structure": goal["structure"],
            "colour": colour.get(goal["structure"], "transparent"),
            "statement": pretty(goal["goal"]),
            "values": [_stage_text(goal["values"].get(s), goal["unit"]) for s in _STAGES],
            "words": goal["words"] or "met",
            "missed": goal["loss"] is not None,
        }
        for goal in goals
    ]
    return {"directions": record["directions"], "stages": list(_STAGES.values()), "rows": rows}


def _stage_text(value: float | None, unit: str) -> str:
    return "–" if value is None else f"{value:.{_DIGITS.get(unit, 3)}f} {unit}".rstrip()


def goals_without_value(results: Sequence[GoalResult]) -> dict[str, list[str]]:
    """Goals without a result, by the reason why."""
    out: dict[str, list[str]] = {}
    for result in results:
        if result.value is None:
            why = (result.note or "no value") + (", though required" if result.missed else "")
            out.setdefault(why, []).append(pretty(str(result.goal)))
    return out


def sheet_remarks(sheet: GoalSheet | None, results: Sequence[GoalResult]) -> list[str]:
    """What to know of the sheet: conditions, goals left out, sources, how current it is."""
    unpublished = unpublished_text(results)
    if sheet is None:
        return [unpublished] if unpublished else []
    holds = [f"Holds for the patient: {sheet.conditions.get(name, name)}" for name in sheet.conditions_on]
    current = [f"The sheet is current to {sheet.current_to}"] if sheet.current_to else []
    lines = [*holds, *map(pretty, left_out_text(sheet)), *([unpublished] if unpublished else []), *current]
    return [*lines, *sheet.remarks]


def pretty(statement: str) -> str:
    """A statement with the signs of print."""
    return statement.replace(">=", "≥").replace("<=", "≤")


def value_text(result: GoalResult) -> str:
    """The value in the goal's unit; a dash for none."""
    if result.value is None:
        return "–"
    return _stage_text(result.value, result.goal.unit)
