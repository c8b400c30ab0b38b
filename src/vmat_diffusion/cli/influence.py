"""The command that writes influence matrices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vmat_diffusion.cli.display import progress_bar, show, stdout_kept
from vmat_diffusion.cli.options import AsJson, CtTableFile, GridMm, MachineName, MappingFile, Overwrite, Seed


def influence(
    case: Annotated[Path, typer.Option("--case", help="Folder with CT and structure set.")],
    out: Annotated[Path, typer.Option("--out", help="File to write, ending in .npz.")],
    machine: MachineName = "generic_6mv",
    arcs: Annotated[int, typer.Option(help="Full arcs around the targets.")] = 2,
    spacing_deg: Annotated[float, typer.Option(help="Between control points.")] = 4.0,
    grid_mm: GridMm = 3.0,
    beamlet_mm: Annotated[float, typer.Option(help="Along the leaves; across them it is the leaf.")] = 5.0,
    voxels_per_structure: Annotated[int, typer.Option(help="Drawn from each structure at most.")] = 2000,
    cut: Annotated[
        float, typer.Option(help="Smaller doses, relative to a centred beamlet, are sampled.")
    ] = 0.005,
    max_gb: Annotated[float, typer.Option(help="Refuse a matrix above this memory.")] = 4.0,
    seed: Seed = 0,
    mapping: MappingFile = None,
    ct_table: CtTableFile = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Write the sparse influence matrix of full arcs around the targets: Gy per MU of each beamlet."""
    from vmat_diffusion.workflow.influence import write_influence

    with stdout_kept(), progress_bar() as progress:
        done = write_influence(
            case,
            out,
            machine=machine,
            arcs=arcs,
            spacing_deg=spacing_deg,
            grid_mm=grid_mm,
            beamlet_mm=beamlet_mm,
            voxels_per_structure=voxels_per_structure,
            cut=cut,
            max_gb=max_gb,
            seed=seed,
            mapping=mapping,
            ct_table=ct_table,
            overwrite=overwrite,
            announce=lambda text: typer.echo(text, err=True),
            progress=progress,
        )
    if as_json:
        show(json.dumps(done.summary()))
    else:
        show(f"{done.path}\n{done.voxels} voxels, {done.beamlets} beamlets, {done.entries} entries")
