"""The command that measures how good the planner is, on the cases of AAPM TG-119."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmat_diffusion.cli.display import progress_bar, show, stdout_kept, table
from vmat_diffusion.cli.options import (
    AsJson,
    CheckMinutes,
    GateFile,
    GridMm,
    MachineName,
    Overwrite,
    Uncertainty,
)

if TYPE_CHECKING:
    from vmat_diffusion.workflow.benchmark_tg119 import CaseResult, Tg119Result


def benchmark_tg119(
    cases: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="multitarget, prostate, headneck, cshape_easy, cshape_hard."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Keep the plans here, and go on here after a stop.")
    ] = None,
    max_minutes: Annotated[float, typer.Option(help="Stop optimising each case after this time.")] = 5.0,
    machine: MachineName = "generic_6mv",
    grid_mm: GridMm = 3.0,
    seed: Annotated[int, typer.Option(help="Same seed, same plans, on one device.")] = 0,
    uncertainty: Uncertainty = 0.02,
    check_minutes: CheckMinutes = None,
    gate: GateFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Plan the TG-119 cases and score them beside the report; run again with --out to go on after a stop."""
    from vmat_diffusion.evaluate.tg119 import CASES
    from vmat_diffusion.workflow.benchmark_tg119 import Tg119Settings
    from vmat_diffusion.workflow.benchmark_tg119 import benchmark_tg119 as run

    settings = Tg119Settings(
        cases=tuple(cases or CASES),
        machine=machine,
        max_minutes=max_minutes,
        grid_mm=grid_mm,
        seed=seed,
        uncertainty=uncertainty,
        check_minutes=check_minutes,
        gate=str(gate) if gate else None,
    )
    with stdout_kept(), progress_bar() as progress:
        done = run(settings, out=out, overwrite=overwrite, progress=progress)
    show(json.dumps(done.summary()) if as_json else _text(done))


def _text(done: Tg119Result) -> str:
    passed = sum(case.passed for case in done.cases)
    return "\n\n".join([*map(_case, done.cases), f"{passed} of {len(done.cases)} cases passed"])


def _case(found: CaseResult) -> str:
    rows = [
        [
            goal.goal.structure,
            goal.goal.statement,
            "" if goal.value_gy is None else f"{goal.value_gy:.2f}",
            f"{goal.published.mean_gy:.2f} +- {goal.published.sd_gy:.2f}",
            f"{goal.needed_gy:g}",
            "yes" if goal.reached else "NO",
        ]
        for goal in found.goals
    ]
    failed = ", ".join(check["name"] for check in found.run["verdict"]["checks"] if not check["passed"])
    head = (
        f"{found.case.name}: {'PASSED' if found.passed else 'NOT PASSED'}; {found.minutes:.1f} minutes, "
        f"{found.run['mu']:.0f} MU, gate {'passed' if found.gated else f'NOT PASSED: {failed}'}"
    )
    return head + "\n" + table(["structure", "goal", "Gy", "published", "needed", "reached"], rows, left=2)
