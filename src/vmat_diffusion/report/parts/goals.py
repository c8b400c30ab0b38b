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
from vmat_diffusion.report.document import Box, Cell, Column, Rows, Standing, Table, Text
from vmat_diffusion.report.looks import Shown

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


def goals_box(results: Sequence[GoalResult]) -> Box:
    """How many required goals are missed, and all goals by their status; a missed group counts once."""
    count = {word: sum(r.word == word for r in results if r.value is not None) for word in _MARKS}
    unknown = sum(r.value is None for r in results)
    missed, evaluated = len(missed_of(results, 1)), len(results) - unknown
    if missed:
        heading = f"✗ {missed} required goal{'s' if missed != 1 else ''} missed"
    else:
        heading = "✓ All required goals met" if evaluated else "No goal evaluated"
    text = (
        f"of {evaluated} goals {count['pass']} pass, {count['acceptable']} acceptable, {count['fail']} fail"
        + (f", {count['excused']} fail in a group that is met" if count["excused"] else "")
        + (f"; {unknown} not evaluated" if unknown else "")
    )
    return Box(heading, text, not missed)


def goals_table(results: Sequence[GoalResult], shown: Sequence[Shown]) -> Table | Text:
    """The goals with a value and the groups by priority, each a row."""
    colour = {s.name: s.colour for s in shown}
    groups = group_results(results)
    found = []
    for priority, title in _PRIORITIES.items():
        rows = [
            _row(r, colour.get(r.goal.structure, ""))
            for r in results
            if r.goal.priority == priority and r.value is not None
        ]
        rows += [_group_row(g) for g in groups if g.priority == priority]
        if rows:
            found.append(Rows(tuple(rows), title, f"priority {priority}"))
    if not found:
        return Text("No goal was evaluated.")
    return Table(
        "Acceptable is the worst value that may still be taken where the goal itself is missed.",
        (Column("Structure"), Column("Goal"), Column("Acceptable"), Column("Result", True), Column("Status")),
        tuple(found),
    )


def sources_table(results: Sequence[GoalResult]) -> Table:
    """Where the goals come from."""
    rows = [(r.goal.structure, pretty(r.goal.statement), r.goal.source_text) for r in results]
    rows += [
        (f"Group {g.group.name}", pretty(g.statement), g.group.source_text) for g in group_results(results)
    ]
    return Table.of(
        "Where the goals come from, and how that was seen where not in print.",
        ("Structure", "Goal", "Source"),
        [(name, statement, Cell(source or "–", faint=True)) for name, statement, source in rows],
    )


def delivery_table(results: Sequence[DeliveryResult]) -> Table:
    """The goals on the delivery, each a row."""
    return Table.of(
        "Goals on the delivery. They rank as the goals above of the same priority; what the machine cannot "
        "deliver is no matter of goals.",
        ("Delivery", "Priority", "Acceptable", Column("Result", True), "Status", "Source"),
        [
            (
                Cell(pretty(r.goal.statement), note=r.goal.words),
                _PRIORITIES[r.goal.priority],
                "–" if r.goal.variation is None else f"{r.goal.variation:g} {r.goal.unit}",
                Cell(r.value_text, bold=True),
                _badge(
                    r.status if r.value is not None else "acceptable",
                    f"{_MARKS[r.status]} {r.status}".strip(),
                    r.note,
                ),
                Cell(r.goal.source_text, faint=True),
            )
            for r in results
        ],
    )


def _badge(status: str, word: str, note: str = "") -> Cell:
    standing: Standing = "pass" if status == "pass" else "fail" if status == "fail" else "acceptable"
    return Cell(word, standing, note=note)


def _row(result: GoalResult, colour: str) -> tuple[Cell, ...]:
    goal, word = result.goal, result.word
    member = f"group {result.group.name}" if result.group else ""
    note = "; ".join(part for part in (member, result.note) if part)
    said = "fails, group met" if word == "excused" else word
    return (
        Cell(goal.structure, swatch=colour),
        Cell(pretty(goal.statement)),
        Cell("–" if goal.variation is None else f"{goal.variation:g} {goal.unit}".rstrip()),
        Cell(value_text(result), bold=True),
        _badge(word, f"{_MARKS[word]} {said}".strip(), note),
    )


def _group_row(found: GroupResult) -> tuple[Cell, ...]:
    """A row for a group: `at least 1 of ...`."""
    status = found.status if found.status != "not evaluated" else "fail" if found.missed else "acceptable"
    return (
        Cell(f"Group {found.group.name}"),
        Cell(pretty(found.statement)),
        Cell("–"),
        Cell(found.counted, bold=True),
        _badge(status, f"{_MARKS[found.status]} {found.status}".strip()),
    )


def yardstick_table(record: Mapping[str, Any], shown: Sequence[Shown]) -> Table:
    """The goals on ideal fluence as rows, those that the plan misses first, from a yardstick's record."""
    colour = {s.name: s.colour for s in shown}
    goals = sorted(record["goals"], key=lambda goal: goal["loss"] is None)
    return Table.of(
        f"What the same goals reach with free fluence from {record['directions']} directions (without "
        f"leaves, "
        "leakage and price of MU), with free fluence of the arcs’ sectors, and with the fluence maps "
        "that the "
        "search began with. Values of the first three are from sampled points. A dash is a stage that "
        "was not "
        "needed or has no value.",
        (
            "Structure",
            "Goal",
            *(Column(stage, True) for stage in _STAGES.values()),
            "Where it is lost",
        ),
        [
            (
                Cell(goal["structure"], swatch=colour.get(goal["structure"], "")),
                pretty(goal["goal"]),
                *(_stage_text(goal["values"].get(s), goal["unit"]) for s in _STAGES),
                Cell(goal["words"] or "met", faint=goal["loss"] is None),
            )
            for goal in goals
        ],
    )


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
