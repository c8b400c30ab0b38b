"""A goal sheet as `goals show` prints it: what it asks for, every number with its source."""

from __future__ import annotations

from typing import Any

from vmat_diffusion.cli.display import table
from vmat_diffusion.evaluate.goal_sources import (
    NOT_STATED,
    counts_by_kind,
    delivery_entries,
    source_record,
    stated_numbers,
)
from vmat_diffusion.evaluate.goals import Goal, GoalSheet


def sheet_record(sheet: GoalSheet) -> dict[str, Any]:
    """The object that `goals show --json` prints."""
    return {
        "title": sheet.title,
        "format": sheet.format,
        "current_to": sheet.current_to or NOT_STATED,
        "prescription_gy": dict(sheet.prescription.target_gy),
        "fractions": sheet.prescription.fractions,
        "source": sheet.source,
        "seen": sheet.seen or NOT_STATED,
        "normalization": [str(n) for n in sheet.normalizations],
        "structures": dict(sheet.structures),
        "plan": dict(sheet.plan),
        "conditions": dict(sheet.conditions),
        "groups": {
            name: {
                "at_least": g.at_least,
                "every": g.every,
                "priority": g.priority,
                "source": g.source,
                "seen": g.seen or NOT_STATED,
            }
            for name, g in sheet.groups.items()
        },
        "goals": [
            {
                "priority": g.priority,
                "structure": g.structure,
                "goal": g.statement,
                "acceptable": "" if g.variation is None else f"{g.variation:g}",
                **source_record(g),
            }
            for g in sheet.goals
        ],
        "delivery": delivery_entries(sheet),
        "numbers_seen_as": counts_by_kind(stated_numbers(sheet)),
        "remarks": list(sheet.remarks),
    }


def sheet_text(sheet: GoalSheet) -> str:
    """What `goals show` prints."""
    record = sheet_record(sheet)
    levels = ", ".join(f"{target} {gy:g} Gy" for target, gy in sheet.prescription.target_gy.items())
    head = [
        sheet.title,
        f"{levels} in {sheet.prescription.fractions} fractions",
        f"Normalised to {' or else '.join(str(n) for n in sheet.normalizations)}",
        f"Source ({sheet.seen or NOT_STATED}): {sheet.source or NOT_STATED}",
        f"Current to {sheet.current_to or NOT_STATED}",
    ]
    head += [f"Made where not contoured: {name} = {text}" for name, text in sheet.structures.items()]
    head += [f"Condition {name}: {words} (--with {name})" for name, words in sheet.conditions.items()]
    head += [
        f"Group {name}: {g.rule} of its goals, priority {g.priority} "
        f"({g.seen or NOT_STATED}: {g.source or NOT_STATED})"
        for name, g in sheet.groups.items()
    ]
    if sheet.plan:
        head.append("Defaults of plan: " + ", ".join(f"{key} {value}" for key, value in sheet.plan.items()))
    counts = ", ".join(f"{seen} {count}" for seen, count in record["numbers_seen_as"].items())
    header = ["priority", "structure", "goal", "acceptable", "seen as", "source"]
    rows = [
        [
            g.priority,
            g.structure,
            _with_words(g),
            "" if g.variation is None else f"{g.variation:g}",
            _both(g.seen or NOT_STATED, g.variation_seen),
            _both(g.source or NOT_STATED, g.variation_source),
        ]
        for g in sheet.goals
    ]
    for g in record["delivery"]:
        both = [_both(g[key], g[f"variation_{key}"] or "") for key in ("seen", "source")]
        rows.append([g["priority"], "(delivery)", g["goal"], g["acceptable"], *both])
    return (
        "\n".join(head)
        + "\n\n"
        + table(header, rows, left=6)
        + "\n\n"
        + "\n".join([f"Numbers seen as: {counts}", *sheet.remarks])
    )


def _with_words(goal: Goal) -> str:
    """A goal with what the source speaks of, its condition and its group."""
    words = [
        goal.applies_to,
        f"if {goal.condition}" if goal.condition else "",
        f"group {goal.group}" if goal.group else "",
    ]
    said = "; ".join(word for word in words if word)
    return f"{goal.statement} ({said})" if said else goal.statement


def _both(limit: str, variation: str) -> str:
    """What is said of the limit, and of the acceptable value where that is something else."""
    return f"{limit}; acceptable: {variation}" if variation and variation != limit else limit
