"""The commands that look at plans and doses that anybody made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vmat_diffusion.cli.display import goals_text, progress_bar, show, stdout_kept, table, verdict_text
from vmat_diffusion.cli.options import (
    AsJson,
    CheckMinutes,
    CtTableFile,
    GateFile,
    GridMm,
    MachineName,
    MappingFile,
    Overwrite,
    Seed,
    TrajectoryKind,
    Uncertainty,
)
from vmat_diffusion.errors import InputError


def check(
    plan_file: Annotated[Path, typer.Argument(metavar="RP.dcm", help="Any RTPLAN.")],
    machine: MachineName = "generic_6mv",
    trajectory: TrajectoryKind = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the trajectories.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say whether a machine can deliver an RTPLAN; exit code 1 if it cannot."""
    from vmat_diffusion.workflow import check_plan

    if trajectory not in (None, "csv"):
        raise InputError(f"trajectory format {trajectory!r} is not known; give csv")
    if (trajectory is None) != (out is None):
        raise InputError("--trajectory csv and --out FOLDER belong together; give both or neither")
    with stdout_kept():
        checked = check_plan(plan_file, machine, trajectories=out)
    if as_json:
        show(json.dumps(checked.summary()))
    else:
        show("\n".join([str(checked), *checked.violations]))
    raise typer.Exit(1 if checked.violations else 0)


def dvh(
    case: Annotated[Path, typer.Option("--case", help="Folder with CT and structure set.")],
    dose: Annotated[Path, typer.Option("--dose", help="RTDOSE file.")],
    goals: Annotated[str | None, typer.Option("--goals", help="Judge these goals too.")] = None,
    mapping: MappingFile = None,
    as_json: AsJson = False,
) -> None:
    """Dose and volume of every structure, and the goals of a sheet, for any RTDOSE."""
    from vmat_diffusion.workflow import dose_statistics

    with stdout_kept():
        statistics = dose_statistics(case, dose, goals=goals, mapping=mapping)
    if as_json:
        show(json.dumps(statistics.summary()))
        return
    records = list(statistics.rows())
    rows = [[f"{v:.2f}" if isinstance(v, float) else v for v in record.values()] for record in records]
    show(table(list(records[0]) if records else ["structure", "role"], rows, left=2))
    if statistics.results:
        show("\n" + goals_text(statistics.results))


def gamma(
    reference: Annotated[Path, typer.Argument(metavar="REF.dcm", help="RTDOSE at whose voxels is compared.")],
    evaluated: Annotated[Path, typer.Argument(metavar="EVAL.dcm", help="RTDOSE that is searched.")],
    dose_percent: Annotated[float, typer.Option(help="Dose criterion, percent.")] = 3.0,
    distance_mm: Annotated[float, typer.Option(help="Distance criterion, mm.")] = 3.0,
    local: Annotated[bool, typer.Option("--local", help="Percent of the local dose.")] = False,
    threshold_percent: Annotated[float, typer.Option(help="Leave out lower reference doses.")] = 10.0,
    max_gamma: Annotated[float, typer.Option(help="Search up to this gamma.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Gamma index between two RTDOSE files, in three dimensions; their grids may differ."""
    from vmat_diffusion.workflow import compare_doses

    with stdout_kept():
        found = compare_doses(
            reference,
            evaluated,
            dose_percent=dose_percent,
            distance_mm=distance_mm,
            local=local,
            threshold_percent=threshold_percent,
            max_gamma=max_gamma,
        )
    if as_json:
        show(json.dumps(found.summary()))
        return
    left_out = f"; {found.outside} more have no evaluated dose near" if found.outside else ""
    show(
        f"{found.pass_percent:.2f} % of {found.points} voxels pass, mean gamma {found.mean:.3f} "
        f"({found.criteria}, 100 % = {found.maximum_gy:.2f} Gy{left_out})"
    )


def dose(
    plan_file: Annotated[Path, typer.Option("--plan", help="Any RTPLAN.")],
    case: Annotated[Path, typer.Option("--case", help="Folder with CT and structure set.")],
    out: Annotated[Path, typer.Option("--out", help="RTDOSE file to write.")],
    engine: Annotated[str, typer.Option(help="pencil-beam or monte-carlo.")] = "monte-carlo",
    machine: MachineName = "generic_6mv",
    uncertainty: Uncertainty = 0.02,
    max_minutes: Annotated[float | None, typer.Option(help="Monte Carlo ends after this time.")] = None,
    grid_mm: GridMm = 3.0,
    seed: Seed = 0,
    mapping: MappingFile = None,
    ct_table: CtTableFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Compute the dose of an RTPLAN from any system and write it as RTDOSE."""
    from vmat_diffusion.workflow import compute_dose

    with stdout_kept(), progress_bar() as progress:
        found = compute_dose(
            plan_file,
            case,
            out,
            engine=engine,
            machine=machine,
            uncertainty=uncertainty,
            max_minutes=max_minutes,
            grid_mm=grid_mm,
            seed=seed,
            mapping=mapping,
            ct_table=ct_table,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        record = {"file": str(out.resolve()), "max_gy": float(found.gy.max()), **found.provenance}
        show(json.dumps(record, default=str))
    else:
        show(f"{out.resolve()}\nhighest dose {found.gy.max():.2f} Gy")


def qa(
    plan_file: Annotated[Path, typer.Option("--plan", help="Any RTPLAN.")],
    case: Annotated[Path, typer.Option("--case", help="Folder with CT and structure set.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")],
    dose_file: Annotated[
        Path | None, typer.Option("--dose", help="The planned RTDOSE; without it the fast engine's.")
    ] = None,
    goals: Annotated[str | None, typer.Option("--goals", help="Ask these goals too.")] = None,
    engine: Annotated[str, typer.Option(help="The second engine.")] = "monte-carlo",
    machine: MachineName = "generic_6mv",
    uncertainty: Uncertainty = 0.02,
    check_minutes: CheckMinutes = None,
    grid_mm: GridMm = 3.0,
    seed: Seed = 0,
    gate: GateFile = None,
    mapping: MappingFile = None,
    ct_table: CtTableFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Check a plan from any system a second time; exit code 1 if a check fails."""
    from vmat_diffusion.workflow import second_check

    with stdout_kept(), progress_bar() as progress:
        done = second_check(
            plan_file,
            case,
            out,
            dose_file=dose_file,
            machine=machine,
            goals=goals,
            engine=engine,
            uncertainty=uncertainty,
            max_minutes=check_minutes,
            grid_mm=grid_mm,
            seed=seed,
            gate=gate,
            mapping=mapping,
            ct_table=ct_table,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        show(json.dumps(done.summary()))
    else:
        show("\n".join([verdict_text(done.verdict), "", *map(str, done.files)]))
    raise typer.Exit(0 if done.verdict.passed else 1)


def reference_check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of reference cases.")],
    engine: Annotated[str, typer.Option(help="The engine to check.")] = "monte-carlo",
    uncertainty: Uncertainty = 0.01,
    max_minutes: Annotated[float, typer.Option(help="Monte Carlo ends after this time in each case.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Compare an engine with reference doses, case by case."""
    from vmat_diffusion.workflow import check_references

    with stdout_kept(), progress_bar() as progress:
        found = check_references(
            folder, engine=engine, uncertainty=uncertainty, max_minutes=max_minutes, progress=progress
        )
    if as_json:
        show(json.dumps(found))
        return
    rows = [["" if v is None else v for v in case.values()] for case in found["cases"]]
    show(table(list(found["cases"][0]), rows, left=1))
