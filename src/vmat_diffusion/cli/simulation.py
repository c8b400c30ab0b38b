"""The command that plans many patients for training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmat_diffusion.cli.display import progress_bar, rejected_text, show, stdout_kept, table
from vmat_diffusion.cli.options import (
    AsJson,
    BatchOptions,
    ClusterKind,
    Dashboard,
    GridMm,
    MachineName,
    MemoryGb,
    Project,
    Queue,
    Resume,
    Seed,
    Walltime,
    Workers,
    chosen_cluster,
)
from vmat_diffusion.errors import InputError

if TYPE_CHECKING:
    from vmat_diffusion.workflow.simulate import PatientSource, SimulationRun

_COLUMNS = ("site", "goals", "outcome", "arcs", "mu", "goals_met", "goals_judged", "violations", "minutes")


def simulate(
    out: Annotated[Path, typer.Option("--out", help="Folder of the data set.")],
    cases: Annotated[
        Path | None, typer.Option("--cases", help="Data set of training cases to be planned.")
    ] = None,
    synthetic: Annotated[
        int | None, typer.Option("--synthetic", help="Plan so many synthetic patients.")
    ] = None,
    sites: Annotated[
        list[str] | None, typer.Option(help="Only these sites; repeat it. All if not given.")
    ] = None,
    plans_per_case: Annotated[int, typer.Option("--plans-per-case", help="Plans of each patient.")] = 2,
    machine: MachineName = "generic_6mv",
    seed: Seed = 0,
    grid_mm: GridMm = 3.0,
    spacing_mm: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="X Y Z", help="Voxels of synthetic patients, mm; 2 2 2.5 if not given."),
    ] = None,
    effort: Annotated[float, typer.Option(help="Scales the optimiser's iterations.")] = 1.0,
    max_minutes: Annotated[
        float | None,
        typer.Option("--max-minutes", help="Ends each plan's search; plans then depend on the computer."),
    ] = None,
    cluster: ClusterKind = "local",
    workers: Workers = None,
    memory_gb: MemoryGb = 4.0,
    queue: Queue = None,
    project: Project = None,
    walltime: Walltime = "04:00:00",
    batch_option: BatchOptions = None,
    dashboard: Dashboard = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Plan patients under varied goals and arcs, and store dose and control points as training cases."""
    from vmat_diffusion.workflow.simulate import Simulation
    from vmat_diffusion.workflow.simulate import simulate as run

    if spacing_mm is not None and synthetic is None:
        raise InputError("--spacing-mm is for synthetic patients; cases keep their own grid, leave it out")
    grid = {} if spacing_mm is None else {"spacing_mm": spacing_mm}
    settings = Simulation(
        machine=machine, seed=seed, grid_mm=grid_mm, effort=effort, max_minutes=max_minutes, **grid
    )
    where = chosen_cluster(
        cluster, workers, memory_gb, queue, project, walltime, batch_option, dashboard=dashboard
    )
    patients = _patients(cases, synthetic, tuple(sites or ()), seed)
    with stdout_kept(), progress_bar() as progress:
        done = run(
            patients,
            out,
            settings,
            plans_per_case=plans_per_case,
            cluster=where,
            resume=resume,
            progress=progress,
        )
    show(json.dumps(done.summary()) if as_json else _text(done))


def _patients(
    cases: Path | None, synthetic: int | None, sites: tuple[str, ...], seed: int
) -> tuple[PatientSource, ...]:
    from vmat_diffusion.workflow.simulate import patients_of, synthetic_patients

    if cases is not None and synthetic is None:
        return patients_of(cases, sites)
    if synthetic is not None and cases is None:
        return synthetic_patients(synthetic, seed=seed, sites=sites)
    raise InputError("simulate needs one of --cases DIR and --synthetic N; give exactly one")


def _text(done: SimulationRun) -> str:
    """The plans in figures, and why the others are not there."""
    rows = [[name, *(record[c] for c in _COLUMNS)] for name, record in done.plans.items()]
    parts = [
        table(["plan", *(c.replace("_", " ") for c in _COLUMNS)], rows, left=4),
        f"{len(rows)} plans in {done.out}, {done.made} of them made now in {done.seconds / 60:.1f} min",
    ]
    if done.rejections:
        parts.append(rejected_text(done.rejections))
    return "\n\n".join(parts)
