"""The command that makes a machine from water-tank scans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vmat_diffusion.cli.display import progress_bar, show, stdout_kept, table
from vmat_diffusion.cli.options import AsJson, Overwrite


def beam_fit(
    pdd: Annotated[list[Path], typer.Option("--pdd", help="Depth doses; may be given again.")],
    profiles: Annotated[list[Path], typer.Option("--profiles", help="Profiles; may be the same file.")],
    output_factors: Annotated[Path, typer.Option("--output-factors", help="Output factors.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Machine file to write, ending in .toml.")],
    template: Annotated[
        str, typer.Option(help="Machine that lends limits, collimator and the start of the fit.")
    ] = "generic_6mv",
    energy: Annotated[str | None, typer.Option(help="Such as '6 MV'; the template's by default.")] = None,
    fluence_mode: Annotated[str | None, typer.Option(help="STANDARD or FFF; the template's.")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Fit the beam of a linac to its water-tank scans: a machine file and a picture of the residuals."""
    from vmat_diffusion.workflow.beam import fit_machine

    with stdout_kept(), progress_bar() as progress:
        done = fit_machine(
            pdd,
            profiles,
            output_factors,
            out,
            template=template,
            energy=energy,
            fluence_mode=fluence_mode,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        show(json.dumps(done.summary()))
        return
    heads = ["field, mm", "depth dose, max %", "build-up, max %", "output factor, %", "profile points, %"]
    rows = [[f"{v:.2f}" for v in row.values()] for row in done.rows]
    show(table(heads, rows, left=0))
    show(f"\nweighted residual {done.rms_percent:.2f} % of the reference dose\n")
    show("\n".join(map(str, done.files)))
