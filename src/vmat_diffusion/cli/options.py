"""Options that several commands share, with the words of their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
Uncertainty = Annotated[
    float, typer.Option(help="Monte Carlo ends at this mean sigma above half of the maximum (0.02 = 2 %).")
]
CheckMinutes = Annotated[
    float | None, typer.Option("--check-minutes", help="Monte Carlo ends after this time at the latest.")
]
GateFile = Annotated[Path | None, typer.Option("--gate", help="Limits of the gate: your own gate.toml.")]
GridMm = Annotated[float, typer.Option("--grid-mm", help="Spacing of the dose grid, mm.")]
Seed = Annotated[int, typer.Option(help="Same seed, same dose.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
ClusterKind = Annotated[str, typer.Option("--cluster", help="serial, local, slurm or sge.")]
Workers = Annotated[int | None, typer.Option(help="Processes, or jobs of a cluster.")]
MemoryGb = Annotated[float, typer.Option("--memory-gb", help="Limit of each worker.")]
Queue = Annotated[str | None, typer.Option(help="Partition or queue of the cluster.")]
Project = Annotated[str | None, typer.Option(help="Account or project to be charged.")]
Walltime = Annotated[str, typer.Option(help="Of each worker on a cluster, H:MM:SS.")]
Extra = Annotated[list[str] | None, typer.Option(help="Further directive of the cluster's jobs; repeat it.")]
Dashboard = Annotated[bool, typer.Option("--dashboard", help="Serve a status page.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the data set in OUT.")]
