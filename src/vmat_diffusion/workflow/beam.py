"""From water-tank scans to a machine file: the fit, its residuals, what is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmat_diffusion.errors import InputError
from vmat_diffusion.files import shipped_or_code, written_whole
from vmat_diffusion.machine import load_machine, machine_text
from vmat_diffusion.report.coding import machine_code
from vmat_diffusion.workflow.output import require_apart

if TYPE_CHECKING:
    from vmat_diffusion.progress import Progress


@dataclass(frozen=True)
class BeamReport:
    """What a fit gave: the files, the weighted residual, and one row of residuals per field."""

    files: tuple[Path, ...]
    rms_percent: float
    rows: tuple[dict[str, float], ...]

    def summary(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "files": [str(f) for f in self.files],
            "rms_percent": round(self.rms_percent, 3),
            "fields": [{k: round(v, 3) for k, v in row.items()} for row in self.rows],
        }


def fit_machine(
    pdd: Sequence[Path],
    profiles: Sequence[Path],
    output_factors: Path,
    out: Path,
    *,
    template: str = "generic_6mv",
    energy: str | None = None,
    fluence_mode: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BeamReport:
    """Fit the beam of a linac to its scans and write its machine file and a picture of the residuals.

    Limits and collimator are those of the template machine, as text with their sources; the new file
    takes its name from `out`. Raises InputError for an existing file, MachineError for unusable scans.
    """
    picture = out.with_name(f"{out.stem}_fit.png")
    for path in (out, picture):
        require_apart(path, *pdd, *profiles, output_factors, template)
    for path in (out, picture):
        if path.exists() and not overwrite:
            raise InputError(f"{path} exists; choose another name or pass --overwrite")
    if out.suffix != ".toml":
        raise InputError(f"{out} does not end in .toml; a machine file does")
    from vmat_diffusion.commissioning.beam_fit import absolute, beam_toml, fit_beam
    from vmat_diffusion.commissioning.residuals import residuals
    from vmat_diffusion.commissioning.scans import read_curves, read_output_factors
    from vmat_diffusion.report.beam import beam_fit_png

    curves = read_curves(*dict.fromkeys([*pdd, *profiles]))
    scan = absolute(curves, read_output_factors(output_factors))
    start = load_machine(template).require_beam()
    start = replace(start, energy=energy or start.energy, fluence_mode=fluence_mode or start.fluence_mode)
    fit = fit_beam(scan, start, progress=progress)
    scans = [str(p) for p in dict.fromkeys((*pdd, *profiles, output_factors))]
    source = "fit to " + ", ".join(str(shipped_or_code(scan)) for scan in scans)
    head = machine_text(template).split("\n[beam]")[0]
    lines = [line for line in head.splitlines() if not line.startswith(("name =", "title =", "#"))]
    geometry = machine_code(template)
    named = [f'name = "{out.stem}"', f'title = "{out.stem}, beam fitted to scans, geometry of {geometry}"']
    text = "\n".join([*named, *lines, "", beam_toml(fit.beam, source, f"as in {geometry}")])
    for path, data in ((picture, beam_fit_png(scan, fit.dose)), (out, text.encode())):
        with written_whole(path) as part:
            part.write_bytes(data)
    return BeamReport((out, picture), fit.rms_percent, tuple(residuals(scan, fit.dose)))
