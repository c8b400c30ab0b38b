"""The command that plans public patients and compares the plans with their clinical doses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmat_diffusion.cli.display import progress_bar, show, stdout_kept, table
from vmat_diffusion.cli.options import AsJson, CheckMinutes, MachineName, Overwrite, Seed, Uncertainty
from vmat_diffusion.errors import InputError

if TYPE_CHECKING:
    from vmat_diffusion.workflow.benchmark_plans import PlansResult
    from vmat_diffusion.workflow.plans_patient import Level


def benchmark_plans(
    data: Annotated[
        Path, typer.Option("--data", help="Folder with pt_N.npz files or pt_N folders, in folders by split.")
    ],
    cases: Annotated[int, typer.Option("--cases", help="Plan so many validation patients.")],
    first: Annotated[int, typer.Option(help="The lowest patient number.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for plans, tables and plots.")] = None,
    prior: Annotated[str, typer.Option(metavar="goals|diffusion", help="As of `plan`.")] = "goals",
    weights: Annotated[str, typer.Option(help="Of the prior diffusion.")] = "shipped",
    level: Annotated[
        str,
        typer.Option(
            metavar="clinical|sheet",
            help="At the clinical coverage where that is above the goal sheet's, or at the sheet's.",
        ),
    ] = "clinical",
    machine: MachineName = "generic_6mv",
    arcs: Annotated[int, typer.Option(help="Number of arcs.")] = 2,
    max_minutes: Annotated[float, typer.Option(help="Of optimisation for each plan.")] = 5.0,
    uncertainty: Uncertainty = 0.02,
    check_minutes: CheckMinutes = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Plan OpenKBP patients and compare with their clinical doses; run again to go on after a stop."""
    from vmat_diffusion.training.openkbp import GOALS
    from vmat_diffusion.workflow import plan_settings
    from vmat_diffusion.workflow.benchmark_plans import PlansSettings
    from vmat_diffusion.workflow.benchmark_plans import benchmark_plans as run

    plan = plan_settings(
        goals=GOALS,
        machine=machine,
        prior=prior,
        weights=weights,
        arcs=arcs,
        seed=seed,
        max_minutes=max_minutes,
        uncertainty=uncertainty,
        check_minutes=check_minutes,
    )
    settings = PlansSettings(data=data, cases=cases, first=first, plan=plan, level=_level(level))
    with stdout_kept(), progress_bar() as progress:
        done = run(settings, out=out, overwrite=overwrite, progress=progress)
    show(json.dumps(done.summary()) if as_json else _text(done))


def _level(name: str) -> Level:
    """A level by its name; InputError for any other."""
    from vmat_diffusion.workflow.plans_patient import LEVELS

    if name not in LEVELS:
        raise InputError(f"--level {name!r} is not known; choose {' or '.join(LEVELS)}")
    return name


def _text(done: PlansResult) -> str:
    from vmat_diffusion.workflow.plans_output import criteria_rows, metric_rows, patient_rows, sentences

    summary = done.summary()
    parts = ["\n".join(sentences(summary))]
    if done.patients:
        parts += [
            table(*patient_rows(done.patients), left=2),
            "DVH points, coverage matched\n" + table(*metric_rows(summary), left=2),
            "Patients who meet a criterion\n" + table(*criteria_rows(summary), left=1),
        ]
    for title, those in (("Failed", done.failed), ("Left out", done.left_out)):
        if those:
            cells = [[r.case, r.reason, r.remedy] for r in those]
            parts.append(f"{title}\n" + table(["patient", "reason", "remedy"], cells, left=3))
    return "\n\n".join(parts)
