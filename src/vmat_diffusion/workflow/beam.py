"""From water-tank scans to a machine file: the fit, its residuals, what is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vmat_diffusion.errors import InputError
from vmat_diffusion.files import shipped_or_code, written_whole
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine, load_machine, machine_text
from vmat_diffusion.plan import Arc, Plan
from vmat_diffusion.report.coding import machine_code
from vmat_diffusion.workflow.output import require_apart

if TYPE_CHECKING:
    from vmat_diffusion.commissioning.beam_fit import Scan
    from vmat_diffusion.progress import Progress

# Gamma of profiles as beam commissioning reports them: percent of the axis at that depth, mm.
_PERCENT, _MM = 2.0, 2.0
_TANK_STEP_MM = 4.0


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


def tank_dose(machine: Machine, scan: Scan) -> np.ndarray:
    """Dose of the pencil-beam engine itself at the points of a scan, relative to the reference dose.

    The fit uses a closed form; this is what plans are computed with. A second per field.
    """
    from vmat_diffusion.dose.delivery import exposures
    from vmat_diffusion.dose.pencil_beam import point_dose
    from vmat_diffusion.dose.tissue import MEDIA, Density

    sad_mm = machine.sad_mm
    out = np.zeros(len(scan.dose))
    for side, ssd in np.unique(np.stack([scan.side_mm, scan.ssd_mm], axis=1), axis=0):
        at = (scan.side_mm == side) & (scan.ssd_mm == ssd)
        points = np.stack([scan.x_mm[at], scan.depth_mm[at], scan.y_mm[at]], axis=1)
        beyond = float(np.abs(points).max()) + _TANK_STEP_MM
        count = int(np.ceil(2 * beyond / _TANK_STEP_MM))
        first = -(count - 1) / 2 * _TANK_STEP_MM
        deep = int(np.ceil(beyond / _TANK_STEP_MM))
        grid = Grid((count, deep, count), (_TANK_STEP_MM,) * 3, (first, _TANK_STEP_MM / 2, first))
        out[at] = point_dose(
            machine,
            exposures(open_square(machine, float(side)), machine),
            Density(grid, np.ones(grid.shape, np.float32)),
            points,
            (0.0, float(sad_mm - ssd), 0.0),
            medium=np.full(len(points), MEDIA.index("water"), np.uint8),
        )
    return out / machine.require_beam().gy_per_mu


def open_square(machine: Machine, side_mm: float) -> Plan:
    """1 MU of a square field made by the jaws, all leaves withdrawn, gantry 0, isocentre at the origin."""
    reach = machine.limits.leaf_position_mm
    leaves = np.tile([[-reach], [reach]], (2, 1, machine.mlc.pairs))
    jaws = np.tile(np.array([-1.0, 1.0, -1.0, 1.0]) * side_mm / 2, (2, 1))
    return Plan(
        (Arc(np.zeros(2), 0.0, 0.0, leaves, jaws, np.array([1.0])),), (0.0, 0.0, 0.0), 1, machine.name
    )


def residuals(scan: Scan, dose: np.ndarray) -> list[dict[str, float]]:
    """For each field, in percent: depth dose from 15 mm and build-up from 3 mm, of its maximum; the level at
    100 mm, which is the output factor; and how many profile points are within 2 % and 2 mm."""
    rows = []
    for side in np.unique(scan.side_mm):
        own = (scan.side_mm == side) & (scan.kind == 0)
        depth, measured, model = scan.depth_mm[own], scan.dose[own], dose[own]
        # A depth dose is relative to its own maximum; the level at 100 mm is the output factor's affair.
        level = np.interp(100.0, depth, model) / np.interp(100.0, depth, measured)
        difference = 100 * (model / level - measured) / measured.max()
        beyond, build_up = (depth >= 15) & (depth <= 300), (depth >= 3) & (depth < 15)
        row = {
            "side_mm": float(side),
            "pdd_max_percent": float(np.abs(difference[beyond]).max()),
            "build_up_max_percent": float(np.abs(difference[build_up]).max()),
            "output_factor_percent": 100 * (float(level) - 1),
        }
        passed = profile_agreement(scan, dose, float(side))
        if len(passed):
            row["profile_points_percent"] = 100 * float(np.mean(passed))
        rows.append(row)
    return rows


def profile_agreement(scan: Scan, dose: np.ndarray, side_mm: float) -> np.ndarray:
    """Whether each profile point of a field, 15 to 200 mm deep, has gamma below 1 (2 % of the axis, 2 mm)."""
    out = []
    profile = (scan.side_mm == side_mm) & (scan.kind == 1) & (scan.depth_mm >= 15) & (scan.depth_mm <= 200)
    for depth in np.unique(scan.depth_mm[profile]):
        at = np.flatnonzero(profile & (scan.depth_mm == depth))
        order = at[np.argsort(scan.x_mm[at])]
        x, measured, model = scan.x_mm[order], scan.dose[order], dose[order]
        axis = np.interp(0.0, x, measured)
        fine = np.arange(x[0], x[-1], 0.1)
        curve = np.interp(fine, x, model / np.interp(0.0, x, model) * axis)
        for place, wanted in zip(x, measured, strict=True):
            gamma = np.hypot((fine - place) / _MM, 100 * (curve - wanted) / axis / _PERCENT)
            out.append(float(gamma.min()) <= 1.0)
    return np.array(out, bool)
