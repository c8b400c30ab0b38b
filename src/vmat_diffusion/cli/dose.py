"""The commands that compute dose, and the one that fits the beam it is computed with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from vmat_diffusion.cli.display import show, table, work_shown
from vmat_diffusion.cli.fields import TO_FILE, CaseFolder, Overwrite, PlanFile, Working
from vmat_diffusion.cli.options import keywords, part
from vmat_diffusion.lettering import legible
from vmat_diffusion.options import Option, settings
from vmat_diffusion.workflow.settings import CheckMinutes, DoseSettings, Force, InfluenceSettings


@settings
class DoseOptions(DoseSettings, Working):
    """What `dose` takes."""

    plan: PlanFile
    case: CaseFolder
    out: Annotated[Path, Field(description="Where to write: an RTDOSE file."), TO_FILE]
    check_minutes: Annotated[CheckMinutes, Option(old=("--max-minutes",))] = None
    force: Force = False
    overwrite: Overwrite = False


def dose(options: DoseOptions) -> None:
    """Compute the dose of an RTPLAN from any system and write it as RTDOSE."""
    from vmat_diffusion.workflow import compute_dose

    asked = DoseSettings(**part(DoseSettings, options))
    with work_shown(options) as progress:
        found = compute_dose(
            options.plan,
            options.case,
            options.out,
            asked,
            force=options.force,
            overwrite=options.overwrite,
            progress=progress,
        )
    file = options.out.resolve()
    if options.json:
        record = {"file": str(file), "max_gy": float(found.gy.max()), **found.provenance}
        show(json.dumps(record, default=str))
    else:
        warned = [f"Warning: {remark}" for remark in found.provenance["remarks"]]  # type: ignore[attr-defined]
        show("\n".join([f"{file}", f"highest dose {found.gy.max():.2f} Gy", *warned]))


@settings
class InfluenceOptions(InfluenceSettings, Working):
    """What `influence` takes."""

    case: CaseFolder
    out: Annotated[Path, Field(description="Where to write: a file ending in .npz."), TO_FILE]
    overwrite: Overwrite = False


def influence(options: InfluenceOptions) -> None:
    """Write the sparse influence matrix of full arcs around the targets: Gy per MU of each beamlet."""
    from vmat_diffusion.workflow.influence import write_influence

    def announce(text: str) -> None:
        if not options.quiet:
            typer.echo(legible(text), err=True)

    asked = InfluenceSettings(**part(InfluenceSettings, options))
    with work_shown(options) as progress:
        done = write_influence(
            options.case,
            options.out,
            asked,
            overwrite=options.overwrite,
            announce=announce,
            progress=progress,
        )
    if options.json:
        show(json.dumps(done.summary()))
    else:
        show(f"{done.path}\n{done.voxels} voxels, {done.beamlets} beamlets, {done.entries} entries")


@settings
class BeamFitOptions(Working):
    """What `beam fit` takes."""

    pdd: Annotated[tuple[Path, ...], Field(description="Depth doses."), Option(metavar="FILE")]
    profiles: Annotated[
        tuple[Path, ...],
        Field(description="Profiles; they may be in the same file."),
        Option(metavar="FILE"),
    ]
    output_factors: Annotated[Path, Field(description="Output factors."), Option(metavar="FILE")]
    out: Annotated[Path, Field(description="Where to write: a machine file ending in .toml."), TO_FILE]
    template: Annotated[
        str,
        Field(description="Machine that gives limits, collimator and the start of the fit."),
        Option(metavar="NAME"),
    ] = "generic_6mv"
    energy: Annotated[
        str | None, Field(description="Nominal energy, such as '6 MV'; by default the template's.")
    ] = None
    fluence_mode: Annotated[str | None, Field(description="STANDARD or FFF; by default the template's.")] = (
        None
    )
    overwrite: Overwrite = False


def beam_fit(options: BeamFitOptions) -> None:
    """Fit the beam of a linac to its water-tank scans: a machine file and a picture of the residuals."""
    from vmat_diffusion.workflow.beam import fit_machine

    with work_shown(options) as progress:
        done = fit_machine(**keywords(fit_machine, options), progress=progress)
    if options.json:
        show(json.dumps(done.summary()))
        return
    heads = ["field, mm", "depth dose, max %", "build-up, max %", "output factor, %", "profile points, %"]
    rows = [[f"{v:.2f}" for v in row.values()] for row in done.rows]
    show(table(heads, rows, left=0))
    show(f"\nweighted residual {done.rms_percent:.2f} % of the reference dose\n")
    show("\n".join(map(str, done.files)))
