"""The commands that show what is shipped with the package: machines and goal sheets."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from vmat_diffusion.cli.display import short, show, table
from vmat_diffusion.cli.options import AsJson


def machine_list() -> None:
    """Names of the shipped machines."""
    from vmat_diffusion.machine import load_machine, machine_names

    show(table(["name", "title"], [[n, load_machine(n).title] for n in machine_names()], left=2))


def machine_show(
    name: Annotated[str, typer.Argument(help="A shipped machine's name or a TOML file.")],
    as_json: AsJson = False,
) -> None:
    """Every number of a machine with its source."""
    from vmat_diffusion.workflow import machine_table

    title, rows = machine_table(name)
    if as_json:
        records = {key: {"value": value, "source": source} for key, value, source in rows}
        show(json.dumps({"title": title, **records}))
    else:
        shown = [[key, short(value), source] for key, value, source in rows]
        show(f"{title}\n\n" + table(["key", "value", "source"], shown, left=3))


def goals_list() -> None:
    """Names of the shipped goal sheets."""
    from vmat_diffusion.evaluate.goals import goal_sheet_names, load_goals

    sheets = [load_goals(name) for name in goal_sheet_names()]
    show(
        table(
            ["name", "fractions", "title"],
            [[s.name, s.prescription.fractions, s.title] for s in sheets],
            left=3,
        )
    )


def goals_show(
    name: Annotated[str, typer.Argument(help="A shipped sheet's name or a TOML file.")],
) -> None:
    """The prescription, the normalisation and the goals of a sheet, with their sources."""
    from vmat_diffusion.evaluate.goals import load_goals

    sheet = load_goals(name)
    levels = ", ".join(f"{target} {gy:g} Gy" for target, gy in sheet.prescription.target_gy.items())
    rows = [
        [g.priority, g.structure, g.statement, "" if g.variation is None else f"{g.variation:g}", g.source]
        for g in sheet.goals
    ]
    show(
        f"{sheet.title}\n{levels} in {sheet.prescription.fractions} fractions\n"
        f"Normalised to {' or else '.join(str(n) for n in sheet.normalizations)}\n\n"
        + table(["priority", "structure", "goal", "acceptable", "source"], rows, left=5)
    )
