"""The command that lays several plans of one case side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmat_diffusion.cli.display import show, stdout_kept, table
from vmat_diffusion.cli.options import AsJson, Overwrite

if TYPE_CHECKING:
    from vmat_diffusion.workflow.trade_off import TradeOff


def trade_off(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN ...", help="Folders of `plan`, of one case.")],
    out: Annotated[Path, typer.Option("--out", help="PNG to write.")] = Path("trade_off.png"),
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Show target coverage against organ doses of several plans of one case, as a table and a plot."""
    from vmat_diffusion.workflow.trade_off import read_trade_off, write_trade_off

    with stdout_kept():
        found = read_trade_off(runs)
        file = write_trade_off(out, found, overwrite=overwrite)
    if as_json:
        show(json.dumps({**found.summary(), "file": str(file)}))
    else:
        show(f"{_text(found)}\n\n{file}")


def _text(found: TradeOff) -> str:
    plans = found.plans
    rows = [
        ["gate", *("passed" if not p.failed_checks else "NOT PASSED" for p in plans)],
        ["target coverage, % of goal", *(_number(p.coverage_percent) for p in plans)],
        *([g.label, *(_number(p.values[g.label]) for p in plans)] for g in found.goals),
        ["MU", *(f"{p.mu:.1f}" for p in plans)],
        ["beam on, s", *(f"{p.delivery_s:.0f}" for p in plans)],
    ]
    shown = [row for row in rows if any(row[1:])]
    return "\n\n".join([table(["", *(p.name for p in plans)], shown, left=1), *found.remarks])


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
