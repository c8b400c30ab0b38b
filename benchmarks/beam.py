"""Measure the dose engine against water-tank scans and Monte Carlo doses; fit the generic beam anew.

    python benchmarks/beam.py                     # residuals of the shipped beam, into docs/benchmarks.md
    python benchmarks/beam.py --fit beam.toml     # fit the scans again and write the [beam] section

Scans and reference doses come from the folder in VMAT_SHARED_DATA; what is absent is left out. The
figures are kept in docs/benchmarks_beam.json, from which `section` makes its part of the page.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Structure
from vmat_diffusion.dicom.read import read_plan
from vmat_diffusion.dose import PencilBeam
from vmat_diffusion.dose.beam_fit import Scan, beam_toml, fit_beam, read_scans
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Layer, Machine, load_machine
from vmat_diffusion.plan import Arc, Plan

ROOT = Path(__file__).resolve().parents[1]
FIGURES = ROOT / "docs" / "benchmarks_beam.json"
MACHINE = "generic_6mv"
SOURCE = "fit to representative 6 MV water-tank scans and output factors, docs/dose_engine.md"
SIDES_MM = (30, 40, 60, 80, 100, 200, 300)
REACH_MM = 250
# A point source without focal spot and detector: the width at which the reference penumbra is met.
POINT_SOURCE_SIGMA_MM = 2.0


def shared_data() -> Path:
    return Path(os.environ.get("VMAT_SHARED_DATA", ROOT / ".." / "shared" / "data"))


def scans() -> Scan | None:
    """The scans to which the generic beam is fitted, or None where they are not at hand."""
    names = ("scans.csv.gz", "output_factors.txt")
    files = [shared_data() / "beam" / f"truebeam_representative_6mv_{name}" for name in names]
    return read_scans(*files) if all(f.is_file() for f in files) else None


def box_of(low: tuple[float, ...], high: tuple[float, ...], step_mm: float = 4.0) -> Case:
    """A block of water between two corners (x, y, z)."""
    n = [round((b - a) / step_mm) for a, b in zip(low, high, strict=True)]
    origin = tuple(a + step_mm / 2 for a in low)
    grid = Grid((n[2], n[1], n[0]), (step_mm,) * 3, origin)  # type: ignore[arg-type]
    body = Structure("BODY", "body", np.ones(grid.shape, bool))
    return Case("water", "", grid, np.zeros(grid.shape, np.float32), {"BODY": body})


def square_field(machine: Machine, side_mm: float) -> Plan:
    """100 MU of a square field made by the jaws, gantry 0, isocentre at the origin."""
    leaves = np.tile([[-200.0], [200.0]], (2, 1, machine.mlc.pairs))
    jaws = np.tile(np.array([-1, 1, -1, 1]) * side_mm / 2, (2, 1))
    arc = Arc(np.zeros(2), 0.0, 0.0, leaves, jaws, np.array([100.0]))
    return Plan((arc,), (0.0, 0.0, 0.0), 1, machine.name)


# --- scans


def crossings(position: NDArray, dose: NDArray, level: float) -> NDArray:
    """First and last place where a profile crosses a level."""
    above = np.flatnonzero(dose >= level)
    first, last = above[0], above[-1]
    low = np.interp(level, dose[[first - 1, first]], position[[first - 1, first]])
    high = np.interp(-level, -dose[[last, last + 1]], position[[last, last + 1]])
    return np.array([low, high])


def penumbra_mm(position: NDArray, dose: NDArray, axis: float) -> float:
    """Distance from 80 % to 20 % of the axis dose, mean of both sides."""
    near, far = crossings(position, dose, 0.8 * axis), crossings(position, dose, 0.2 * axis)
    return float(np.mean(np.abs(far - near)))


def residuals(machine: Machine, scan: Scan) -> dict[str, Any]:
    """For each field: central axis in percent, half-value edges and penumbra in mm, profiles in percent."""
    water = box_of((-260.0, 0.0, -260.0), (260.0, 320.0, 260.0))
    where = Grid((1, 301, 2 * REACH_MM + 1), (1.0, 1.0, 1.0), (-float(REACH_MM), 0.0, 0.0))
    x = np.arange(-float(REACH_MM), REACH_MM + 1)
    out: dict[str, Any] = {}
    for side in SIDES_MM:
        plane = PencilBeam(machine)(square_field(machine, side), water, where).gy[0].astype(float)
        own = (scan.side_mm == side) & (scan.kind == 0) & (scan.depth_mm <= 300)
        depth = scan.depth_mm[own]
        ratio = 100 * (np.interp(depth, np.arange(301.0), plane[:, REACH_MM]) / scan.dose[own] - 1)
        profiles = [
            _profile(scan, side, d, x, plane[round(d)])
            for d in np.unique(scan.depth_mm[(scan.side_mm == side) & (scan.kind == 1)])
        ]
        at_100 = next(p for p in profiles if p["depth_mm"] == 100)
        out[str(side)] = {
            "axis_max_percent": float(np.abs(ratio[depth >= 15]).max()),
            "axis_mean_percent": float(ratio[depth >= 15].mean()),
            "buildup_max_percent": float(np.abs(ratio[(depth >= 3) & (depth < 15)]).max()),
            "edge_max_mm": max(p["edge_mm"] for p in profiles),
            "inside_max_percent": max(p["inside_percent"] for p in profiles),
            "outside_max_percent": max(p["outside_percent"] for p in profiles),
            "penumbra_mm": [at_100["penumbra_mm"], at_100["penumbra_scan_mm"]],
        }
    return out


def _profile(scan: Scan, side: int, depth: float, x: NDArray, dose: NDArray) -> dict[str, float]:
    at = (scan.side_mm == side) & (scan.kind == 1) & (scan.depth_mm == depth)
    order = np.argsort(scan.x_mm[at])
    place, measured = scan.x_mm[at][order], scan.dose[at][order]
    axis, edge = float(np.interp(0.0, place, measured)), side / 2 * (scan.ssd_mm[at][0] + depth) / 1000
    own = dose[len(dose) // 2]
    difference = 100 * np.abs(np.interp(place, x, dose) - measured) / own
    outside = difference[np.abs(place) > edge + 10]
    return {
        "depth_mm": float(depth),
        "edge_mm": float(np.abs(crossings(x, dose, own / 2) - crossings(place, measured, axis / 2)).max()),
        "inside_percent": float(difference[np.abs(place) < edge - 10].max()),
        "outside_percent": float(outside.max()) if len(outside) else 0.0,
        "penumbra_mm": penumbra_mm(x, dose, own),
        "penumbra_scan_mm": penumbra_mm(place, measured, axis),
    }


# --- Monte Carlo


def axis_doses(folder: Path, machine: Machine, side_mm: float) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Height y of the voxels, reference dose, engine's dose and density, averaged around the axis.

    Over 2 x 2 cm, less in small fields.
    """
    stored = np.load(folder / "dose.npz")
    x, y, z = (stored[k] for k in ("x_mm", "y_mm", "z_mm"))
    cx, cy, cz = ((e[1:] + e[:-1]) / 2 for e in (x, y, z))
    half = min(10.0, side_mm / 6)
    near = np.ix_(np.abs(cz) < half, np.ones(len(cy), bool), np.abs(cx) < half)
    reference = stored["dose"].astype(float)[near].mean(axis=(0, 2))
    density = stored["density_g_cm3"][len(cz) // 2, :, len(cx) // 2]
    case = box_of((x[0], y[0], z[0]), tuple(round(float(e[-1])) for e in (x, y, z)), 2.5)
    rows = np.searchsorted(y, case.grid.axes_mm[1]) - 1
    hu = np.interp(density[rows], [0.00121, 0.93, 1.0], [-1000.0, -98.0, 0.0]).astype(np.float32)
    case = replace(case, hu=np.broadcast_to(hu[None, :, None], case.grid.shape).copy())
    step = half / 5
    where = Grid((9, 300, 9), (step, 1.0, step), (-4 * step, float(y[0]) + 0.5, -4 * step))
    dose = PencilBeam(machine)(square_field(machine, side_mm), case, where).gy.mean(axis=(0, 2))
    return cy, reference, np.interp(cy, where.axes_mm[1], dose), density


def monte_carlo(machine: Machine) -> dict[str, Any]:
    """Depth doses, output factors, a lung slab and two clinical plans against EGSnrc."""
    folder = shared_data() / "reference_dose"
    out: dict[str, Any] = {}
    levels = {}
    for side in (30, 50, 100, 200):
        name = f"water_{side // 10}x{side // 10}"
        if not (folder / name).is_dir():
            continue
        y, reference, dose, _ = axis_doses(folder / name, machine, side)
        level = [np.interp(0.0, y, d) for d in (reference, dose)]  # 100 mm deep, at the isocentre
        levels[side] = level
        ratio = 100 * ((dose / level[1]) / (reference / level[0]) - 1)
        depth = y + 100
        out[name] = {
            "axis_max_percent": float(np.abs(ratio[(depth > 15) & (depth < 280)]).max()),
            "at_200_percent": float(np.interp(200.0, depth, ratio)),
            "at_20_percent": float(np.interp(20.0, depth, ratio)),
        }
    for side, level in levels.items():
        reference, own = (level[i] / levels[100][i] for i in (0, 1))
        out[f"water_{side // 10}x{side // 10}"]["output_factor"] = [float(own), float(reference)]
    if (folder / "lung_slab_10x10").is_dir():
        y, reference, dose, density = axis_doses(folder / "lung_slab_10x10", machine, 100)
        lung = density < 0.5
        front = (y > -80) & (y < y[lung][0] - 5)
        scale = np.mean(reference[front] / dose[front])
        ratio = 100 * (scale * dose / reference - 1)
        behind = ~lung & (y > y[lung][-1])
        out["lung_slab_10x10"] = {
            "in_lung_mean_percent": float(ratio[lung].mean()),
            "in_lung_max_percent": float(ratio[lung][np.abs(ratio[lung]).argmax()]),
            "first_10_mm_behind_percent": float(ratio[behind & (y < y[lung][-1] + 12)].mean()),
            "beyond_mean_percent": float(ratio[behind & (y > y[lung][-1] + 30)].mean()),
        }
    for name in ("static_oblique_cylinder", "vmat_cshape_cylinder"):
        if (folder / name).is_dir():
            out[name] = clinical(folder / name, machine)
    return out


def clinical(folder: Path, machine: Machine) -> dict[str, Any]:
    """Gamma of a plan, one factor fitted, with the generic penumbra and with that of a point source."""
    from pymedphys import gamma

    stored = np.load(folder / "dose.npz")
    reference = stored["dose"].astype(float)
    edges = [stored[k] for k in ("x_mm", "y_mm", "z_mm")]
    spacing, origin = (float(e[1] - e[0]) for e in edges), (float(e[0] + e[1]) / 2 for e in edges)
    grid = Grid(reference.shape, tuple(spacing), tuple(origin))  # type: ignore[arg-type]
    body = stored["density_g_cm3"] > 0
    hu = np.where(body, 0.0, -1000.0).astype(np.float32)
    case = Case(folder.name, "", grid, hu, {"BODY": Structure("BODY", "body", body)})
    plan = read_plan(folder / "plan.dcm")
    boundaries = plan.provenance["leaf_boundaries_mm"]["MLCX"]  # type: ignore[index]
    layers = (Layer("MLCX", tuple(float(b) for b in boundaries)),)
    mlc = replace(machine.mlc, layers=layers, transmission=0.0, gap_offset_mm=0.0)
    beam = machine.require_beam()
    narrow = replace(beam, kernel_sigma_mm=(POINT_SOURCE_SIGMA_MM, *beam.kernel_sigma_mm[1:]))
    out: dict[str, Any] = {}
    high = reference > 0.1 * reference.max()
    for label, model in (("generic", beam), ("point_source", narrow)):
        dose = PencilBeam(replace(machine, mlc=mlc, beam=model))(plan, case, grid).gy.astype(float)
        dose *= (reference[high] @ dose[high]) / (dose[high] @ dose[high])
        for percent, mm in ((3, 3), (2, 2)):
            axes = grid.axes_mm[::-1]
            found = gamma(
                axes, reference, axes, dose, percent, mm,
                lower_percent_dose_cutoff=10, interp_fraction=5, max_gamma=1.05,
            )  # fmt: skip
            out[f"gamma_{percent}_{mm}_{label}"] = float(100 * np.mean(found[~np.isnan(found)] <= 1))
    return out


# --- page


def section() -> Iterator[str]:
    """The lines of docs/benchmarks.md about the beam; none without figures."""
    if not FIGURES.is_file():
        return
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    yield ""
    yield f"## Dose engine, {figures['date']}"
    if scan := figures["scans"]:
        yield ""
        yield f"`{figures['machine']}` against the water-tank scans it was fitted to, SSD 1000 mm, absolute"
        yield "(1 Gy per 100 MU at the reference point). Axis from 15 mm depth (build-up: 3 to 15 mm);"
        yield "profiles at all measured depths, 10 mm and more from the edge, in percent of the axis there."
        yield ""
        yield (
            "| field, cm | axis max % | axis mean % | build-up max % | half-value edges max mm | "
            "inside max % | outside max % | penumbra 80-20 at 100 mm, engine / scan mm |"
        )
        yield "|---|---:|---:|---:|---:|---:|---:|---:|"
        for side, f in scan.items():
            names = ("axis_max_percent", "axis_mean_percent", "buildup_max_percent", "edge_max_mm")
            columns = [f"{f[k]:.2f}" for k in (*names, "inside_max_percent", "outside_max_percent")]
            columns.append(" / ".join(f"{v:.1f}" for v in f["penumbra_mm"]))
            yield f"| {int(side) / 10:g} x {int(side) / 10:g} | {' | '.join(columns)} |"
    if figures["monte_carlo"]:
        yield from _monte_carlo_lines(figures["monte_carlo"])


def _monte_carlo_lines(figures: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield "Against EGSnrc (point source, another spectrum, no head scatter, no contamination): shape only."
    yield ""
    water = {k: f for k, f in figures.items() if k.startswith("water")}
    if water:
        yield (
            "| field | axis, equal at 100 mm: max % from 15 mm | at 20 mm | at 200 mm | "
            "output factor, engine / EGSnrc |"
        )
        yield "|---|---:|---:|---:|---:|"
        for name, f in water.items():
            own, reference = f["output_factor"]
            yield (
                f"| {name} | {f['axis_max_percent']:.1f} | {f['at_20_percent']:+.1f} | "
                f"{f['at_200_percent']:+.1f} | {own:.3f} / {reference:.3f} |"
            )
        yield ""
    if lung := figures.get("lung_slab_10x10"):
        yield "Lung slab (density 0.26) in water, 10 x 10 cm, equal in front of the slab: in lung"
        yield f"{lung['in_lung_mean_percent']:+.1f} % (worst {lung['in_lung_max_percent']:+.1f} %),"
        yield f"in the first 10 mm behind it {lung['first_10_mm_behind_percent']:+.1f} %,"
        yield f"further on {lung['beyond_mean_percent']:+.1f} %."
        yield ""
    plans = {k: f for k, f in figures.items() if "gamma_3_3_generic" in f}
    if plans:
        yield (
            "| plan, one factor fitted | gamma 3 %/3 mm | 2 %/2 mm | "
            "with a point source's penumbra: 3/3 | 2/2 |"
        )
        yield "|---|---:|---:|---:|---:|"
        for name, f in plans.items():
            keys = [f"gamma_{n}_{n}_{label}" for label in ("generic", "point_source") for n in (3, 2)]
            yield f"| {name} | " + " | ".join(f"{f[k]:.1f} %" for k in keys) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fit", type=Path, metavar="FILE", help="fit the scans again and write [beam] here")
    arguments = parser.parse_args()
    machine, scan = load_machine(MACHINE), scans()
    if arguments.fit:
        if scan is None:
            sys.exit("no scans to fit: set VMAT_SHARED_DATA to the folder that holds beam/")
        fit = fit_beam(scan)
        beam = fit.beam_model(machine.require_beam())
        arguments.fit.write_text(beam_toml(beam, SOURCE), encoding="utf-8")
        print(f"weighted residual {fit.rms_percent:.2f} % of the reference dose", file=sys.stderr)
        machine = replace(machine, beam=beam)
    figures = {
        "machine": machine.name,
        "scans": residuals(machine, scan) if scan else {},
        "monte_carlo": monte_carlo(machine),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    if arguments.fit:
        print(json.dumps(figures, indent=1))
        return
    if not figures["scans"] and not figures["monte_carlo"]:
        print("beam: left out, no scans or reference doses in VMAT_SHARED_DATA", file=sys.stderr)
        return
    part = FIGURES.with_suffix(".part")
    part.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    part.replace(FIGURES)
    print("\n".join(section()))

    import plans  # which imports `section` from here

    plans.save(plans.load())


if __name__ == "__main__":
    main()
