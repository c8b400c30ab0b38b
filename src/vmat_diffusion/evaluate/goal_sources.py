"""Every number of a goal sheet with its source and how that was seen, for people to read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vmat_diffusion.evaluate.delivery_goals import DeliveryGoal
from vmat_diffusion.evaluate.goal_types import Goal, GoalSheet
from vmat_diffusion.evaluate.goal_words import SEEN

NOT_STATED = "not stated"
# What each kind of looking means, for the pages and the terminal.
MEANING = {
    "publication": "the publication's own abstract or table was read",
    "transcription": "a full transcription of the publication's table by others was read",
    "template": "a clinic's public planning template that names the protocol was read",
    "practice": "no single source exists, or a secondary list alone was read",
    "recalled": "written down from memory or from texts that were not seen: verify",
    "chosen": "chosen by the author of the sheet, for the reason that stands as its source",
}


@dataclass(frozen=True)
class StatedNumber:
    """A number of a sheet: `kind` is prescription, limit, acceptable, group or delivery.

    `structure` and `statement` say what is limited, `seen` how the `source` was looked at ("not stated" where
    the sheet does not say), `applies_to` what the source speaks of.
    """

    kind: str
    structure: str
    statement: str
    source: str
    seen: str
    applies_to: str = ""


def stated_numbers(sheet: GoalSheet) -> tuple[StatedNumber, ...]:
    """All numbers of a sheet with their sources: prescription, groups, limits and variations, delivery.

    Goals that a condition leaves out are in it as well.
    """
    levels = ", ".join(f"{name} {gy:g} Gy" for name, gy in sheet.prescription.target_gy.items())
    count = sheet.prescription.fractions
    course = f"{levels} in {count} fraction{'s' if count > 1 else ''}"
    out = [StatedNumber("prescription", "", course, sheet.source or NOT_STATED, sheet.seen or NOT_STATED)]
    for group in sheet.groups.values():
        said = str(group)
        out.append(StatedNumber("group", "", said, group.source or NOT_STATED, group.seen or NOT_STATED))
    for goal in (*sheet.goals, *sheet.left_out):
        out += _of_goal(goal)
    for wish in sheet.delivery:
        out += _of_delivery(wish)
    return tuple(out)


def _of_delivery(goal: DeliveryGoal) -> list[StatedNumber]:
    source, seen = goal.source or NOT_STATED, goal.seen or NOT_STATED
    out = [StatedNumber("delivery", "", goal.statement, source, seen)]
    if goal.variation is not None:
        text = goal.statement_of(goal.variation)
        own = goal.variation_source or source, goal.variation_seen or seen
        out.append(StatedNumber("acceptable", "delivery", text, *own))
    return out


def _of_goal(goal: Goal) -> list[StatedNumber]:
    said = "; ".join(
        part for part in (goal.applies_to, f"if {goal.condition}" if goal.condition else "") if part
    )
    source, seen = goal.source or NOT_STATED, goal.seen or NOT_STATED
    out = [StatedNumber("limit", goal.structure, goal.statement, source, seen, said)]
    if goal.variation is not None and goal.table is None:
        text = f"{goal.metric.plain_text} {goal.comparator} {goal.variation:g} {goal.unit}".rstrip()
        out.append(
            StatedNumber(
                "acceptable",
                goal.structure,
                text,
                goal.variation_source or source,
                goal.variation_seen or seen,
                said,
            )
        )
    return out


def delivery_entries(sheet: GoalSheet) -> list[dict[str, Any]]:
    """The sheet's goals on the delivery with their sources, as plain data."""
    return [
        {
            "priority": g.priority,
            "goal": g.statement,
            "acceptable": "" if g.variation is None else f"{g.variation:g}",
            "source": g.source or NOT_STATED,
            "seen": g.seen or NOT_STATED,
            "variation_source": g.variation_source or None,
            "variation_seen": g.variation_seen or None,
        }
        for g in sheet.delivery
    ]


def counts_by_kind(numbers: Iterable[StatedNumber]) -> dict[str, int]:
    """How many numbers were seen in each way, the best first; ways without any are left out."""
    found = Counter(number.seen for number in numbers)
    return {seen: found[seen] for seen in (*SEEN, NOT_STATED) if found[seen]}


def source_record(goal: Goal) -> dict[str, Any]:
    """Where a goal's numbers come from, as plain data."""
    return {
        "source": goal.source or NOT_STATED,
        "seen": goal.seen or NOT_STATED,
        "variation_source": (goal.variation_source or goal.source) if goal.variation is not None else None,
        "variation_seen": (goal.variation_seen or goal.seen or NOT_STATED)
        if goal.variation is not None
        else None,
        "applies_to": goal.applies_to or None,
        "condition": goal.condition,
        "group": goal.group,
        "optional": goal.optional,
    }


def stated_sources(goal: Goal | DeliveryGoal) -> dict[str, Any]:
    """The sources of limit and variation as the sheet states them, as plain data."""
    return {
        "source": goal.source,
        "seen": goal.seen or NOT_STATED,
        "variation_source": goal.variation_source or None,
        "variation_seen": goal.variation_seen or None,
    }
