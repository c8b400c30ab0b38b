"""Options that several commands share, with the words of their help."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from vmat_diffusion.jobs.cluster import Cluster, Kind

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
MachineName = Annotated[str, typer.Option("--machine", help="A shipped machine's name or a TOML file.")]
MappingFile = Annotated[
    Path | None, typer.Option("--mapping", help="Structure names: your own oar_mapping.json.")
]
CtTableFile = Annotated[
    Path | None, typer.Option("--ct-table", help="HU to density: your own CSV with hu,density_g_cm3.")
]
PatientPosition = Annotated[
    str | None, typer.Option(help="HFS, HFP, FFS or FFP, where the CT does not state it.")
]
AllowOutsideBody = Annotated[
    bool, typer.Option("--allow-outside-body", help="Accept targets that reach out of the body.")
]


def reading_options(
    mapping: Path | None, ct_table: Path | None, patient_position: str | None, *, allow_outside_body: bool
) -> dict[str, Any]:
    """The settings by which a case is read, as its commands keep them."""
    return {
        "mapping": str(mapping) if mapping else None,
        "ct_table": str(ct_table) if ct_table else None,
        "patient_position": patient_position,
        "allow_outside_body": allow_outside_body,
    }


Uncertainty = Annotated[
    float, typer.Option(help="Monte Carlo ends at this mean sigma above half of the maximum (0.02 = 2 %).")
]
CheckMinutes = Annotated[
    float | None, typer.Option("--check-minutes", help="Monte Carlo ends after this time at the latest.")
]
GateFile = Annotated[Path | None, typer.Option("--gate", help="Limits of the gate: your own gate.toml.")]
TrajectoryKind = Annotated[
    str | None,
    typer.Option(
        "--trajectory", metavar="csv", help="Also write where every axis is expected, a file per arc."
    ),
]
GridMm = Annotated[float, typer.Option("--grid-mm", help="Spacing of the dose grid, mm.")]
Seed = Annotated[int, typer.Option(help="Same seed, same dose.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the data set in OUT.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]

ClusterKind = Annotated[
    str,
    typer.Option(
        "--cluster",
        metavar="serial|local|slurm|sge",
        help="Where the cases run: in this process, on this computer's cores, or as batch jobs.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", help="Cases at a time. Without it: as many as cores and memory allow."),
]
MemoryGb = Annotated[float, typer.Option("--memory-gb", help="Limit of each worker, GB.")]
Queue = Annotated[str | None, typer.Option("--queue", help="SLURM partition or SGE queue of the workers.")]
Project = Annotated[
    str | None, typer.Option("--project", help="SLURM account or SGE project that is charged.")
]
Walltime = Annotated[str, typer.Option("--walltime", help="Of each batch job, H:MM:SS.")]
BatchOptions = Annotated[
    list[str] | None,
    typer.Option("--batch-option", help='Further directive of the batch jobs: "-pe smp 2". Repeatable.'),
]
Dashboard = Annotated[
    bool, typer.Option("--dashboard", help="Serve a page that shows the workers, on this computer only.")
]


def chosen_cluster(
    kind: str,
    workers: int | None,
    memory_gb: float,
    queue: str | None,
    project: str | None,
    walltime: str,
    batch_options: list[str] | None,
    *,
    dashboard: bool,
) -> Cluster:
    """Where the cases run, by the options of a command.

    Raises:
        InputError: An option is unknown, out of range or without effect.
    """
    from vmat_diffusion.jobs.cluster import Cluster

    extra = tuple(batch_options or ())
    return Cluster(cast("Kind", kind), workers, memory_gb, queue, project, walltime, extra, dashboard)
