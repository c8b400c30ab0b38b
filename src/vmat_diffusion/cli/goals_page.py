"""The table of sources in `docs/goals.md`, made from the shipped goal sheets.

`python -m vmat_diffusion.cli.goals_page docs/goals.md` writes what stands between the page's marks
`<!-- sheets -->`, `<!-- delivery -->`, `<!-- sources -->` and their ends anew; the prose around them stays.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.delivery_goals import QUANTITIES, DeliveryGoal
from vmat_diffusion.evaluate.goal_sources import MEANING, StatedNumber, counts_by_kind, stated_numbers
from vmat_diffusion.evaluate.goals import GoalSheet, goal_sheet_names, load_goals
from vmat_diffusion.files import written_whole

_BLOCK = re.compile(r"<!-- (sheets|delivery|sources) -->\n.*?<!-- /\1 -->", re.DOTALL)


def with_sources(page: str) -> str:
    """The page with the tables of today's sheets. Raises InputError where a mark is missing."""
    marked = [match[1] for match in _BLOCK.finditer(page)]
    if sorted(marked) != ["delivery", "sheets", "sources"]:
        raise InputError(
            "the page needs the marks <!-- sheets -->, <!-- delivery --> and <!-- sources -->, each once "
            "with its end"
        )
    sheets = [load_goals(name) for name in goal_sheet_names()]
    blocks = {"sheets": _overview(sheets), "delivery": _delivery(sheets), "sources": _sources(sheets)}
    return _BLOCK.sub(
        lambda mark: f"<!-- {mark[1]} -->\n" + "\n".join(blocks[mark[1]]) + f"\n<!-- /{mark[1]} -->", page
    )


def _overview(sheets: list[GoalSheet]) -> list[str]:
    lines = ["", "| sheet | for | plan's defaults | current to |", "|---|---|---|---|"]
    for sheet in sheets:
        defaults = ", ".join(f"{key} {value}" for key, value in sheet.plan.items())
        kind = "; stereotactic" if sheet.stereotactic else ""
        lines.append(f"| `{sheet.name}` | {_cell(sheet.title)}{kind} | {defaults} | {sheet.current_to} |")
    return [*lines, ""]


def _delivery(sheets: list[GoalSheet]) -> list[str]:
    """The limits of every sheet, in brackets what is acceptable, and the sources of each limit, once."""
    lines = ["", "| sheet | " + " | ".join(f"{q}, {known.unit}" for q, known in QUANTITIES.items()) + " |"]
    lines.append("|---|" + "---:|" * len(QUANTITIES))
    reasons: dict[str, str] = {}
    for sheet in sheets:
        cells = []
        for quantity in QUANTITIES:
            goals = [goal for goal in sheet.delivery if goal.quantity == quantity]
            cells.append(", ".join(_limit(goal) for goal in goals))
            reasons |= {f"{goal} for {sheet.name}": goal.source_text for goal in goals}
        lines.append(f"| `{sheet.name}` | " + " | ".join(cells) + " |")
    by_reason: dict[tuple[str, str], list[str]] = {}
    for label, reason in reasons.items():
        statement, _, name = label.partition(" for ")
        by_reason.setdefault((statement, reason), []).append(name)
    lines += ["", "| limit | sheets | source |", "|---|---|---|"]
    for (statement, reason), names in sorted(by_reason.items()):
        listed = "all" if len(names) == len(sheets) else ", ".join(f"`{name}`" for name in names)
        lines.append(f"| {_cell(statement)} | {listed} | {_cell(reason)} |")
    return [*lines, ""]


def _limit(goal: DeliveryGoal) -> str:
    return f"{goal.limit:g}" if goal.variation is None else f"{goal.limit:g} ({goal.variation:g})"


def _sources(sheets: list[GoalSheet]) -> list[str]:
    numbers = {sheet.name: stated_numbers(sheet) for sheet in sheets}
    whole = [number for of_sheet in numbers.values() for number in of_sheet]
    counts = counts_by_kind(whole)
    lines = ["", f"{len(whole)} numbers in {len(sheets)} sheets.", ""]
    lines += ["| seen as | means | numbers |", "|---|---|---:|"]
    lines += [f"| {seen} | {MEANING[seen]} | {counts.get(seen, 0)} |" for seen in MEANING]
    lines += ["", "| sheet | " + " | ".join(MEANING) + " |", "|---|" + "---:|" * len(MEANING)]
    for name, of_sheet in numbers.items():
        own = counts_by_kind(of_sheet)
        lines.append(f"| `{name}` | " + " | ".join(str(own.get(seen, 0)) for seen in MEANING) + " |")
    for sheet in sheets:
        lines += _of_sheet(sheet, numbers[sheet.name])
    return [*lines, ""]


def _of_sheet(sheet: GoalSheet, numbers: tuple[StatedNumber, ...]) -> Iterator[str]:
    yield from ("", f"### {sheet.name}", "")
    yield from ("| number of | number | seen as | source |", "|---|---|---|---|")
    # Those on the delivery stand in a table of their own.
    own = [number for number in numbers if "delivery" not in (number.kind, number.structure)]
    for number in own:
        what = number.structure or number.kind
        said = f"acceptable: {number.statement}" if number.kind == "acceptable" else number.statement
        said += f" ({number.applies_to})" if number.applies_to else ""
        yield f"| {what} | {_cell(said)} | {number.seen} | {_cell(number.source)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace(">", "&gt;")


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        page = Path(argument)
        made = with_sources(page.read_text(encoding="utf-8"))
        with written_whole(page) as part:
            part.write_text(made, encoding="utf-8")
