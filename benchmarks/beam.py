"""Measure the pencil beam against water-tank scans and against Monte Carlo doses.

    python benchmarks/beam.py

Scans and reference doses come from the folder in VMAT_SHARED_DATA; what is absent is left out.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from computer import today
from figures import load, save

from vmat_diffusion.anatomy import synthetic_case
from vmat_diffusion.case import Dose
from vmat_diffusion.commissioning.beam_fit import absolute
from vmat_diffusion.commissioning.residuals import residuals, tank_dose
from vmat_diffusion.commissioning.scans import read_curves, read_output_factors
from vmat_diffusion.dicom import read_plan
from vmat_diffusion.dose.delivery import exposures, jaw_box
from vmat_diffusion.dose.pencil_beam import PencilBeam
from vmat_diffusion.dose.pencil_beam.influence_matrix import influence_matrix
from vmat_diffusion.dose.tissue import density_of, dose_grid
from vmat_diffusion.evaluate.gamma import gamma
from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import Arc, Plan
from vmat_diffusion.qa.reference_doses import pencil_beam_engine, reference_check

ROOT = Path(__file__).resolve().parents[1]
SCANS = {"generic_6mv": "truebeam_representative_6mv", "generic_6fff": "truebeam_representative_6fff"}
# What an optimiser samples of a head and neck: so many voxels, so near to the isocentre.
_MATRIX_VOXELS, _NEAR_MM = 10_600, 120.0


def shared_data() -> Path:
    return Path(os.environ.get("VMAT_SHARED_DATA", ROOT / ".." / "shared" / "data"))


def scans(machine: str) -> list[dict[str, float]]:
    """Residuals of the engine's own dose for each field; none where the scans are not at hand."""
    stem = shared_data() / "beam" / SCANS[machine]
    files = [stem.with_name(f"{stem.name}_{rest}") for rest in ("scans.csv.gz", "output_factors.txt")]
    if not all(f.is_file() for f in files):
        return []
    scan = absolute(read_curves(files[0]), read_output_factors(files[1]))
    return residuals(scan, tank_dose(load_machine(machine), scan))


def reference_cases() -> list[dict[str, Any]]:
    """Every reference case with the pencil beam: absolute, gamma without allowance for noise."""

    def rate(reference: Dose, evaluated: Dose, percent: float, mm: float) -> float:
        found = gamma(reference, evaluated, dose_percent=percent, distance_mm=mm, max_gamma=1.1, sigmas=0.0)
        return found.pass_percent

    folder = shared_data() / "reference_dose"
    if not folder.is_dir():
        return []
    engine = pencil_beam_engine()
    reference_check(folder, engine, read_plan=read_plan)  # compiles, so that seconds are the engine's own
    return [vars(result) for result in reference_check(folder, engine, read_plan=read_plan, gamma=rate)]


def speed() -> dict[str, Any]:
    """Two conformal arcs on a synthetic head and neck: the dose of its whole body, and its dose matrix."""
    sys.path.insert(0, str(ROOT / "tests"))
    from synthetic_plans import conformal_arc

    case, machine = synthetic_case("head_neck", 1), load_machine("generic_6mv")
    angles = np.arange(-178.0, 179.0, 2.0)
    arcs = tuple(
        conformal_arc(case, machine, angles, collimator_deg=turn, number=k)
        for k, turn in enumerate((10.0, 350.0), start=1)
    )
    plan = Plan(arcs, (0.0, 0.0, 0.0), 30, machine.name)
    grid, engine, delivered = dose_grid(case, 3.0), PencilBeam(machine), exposures(plan, machine)
    body = int(np.count_nonzero(density_of(case, grid).g_cm3))
    engine(plan, case, grid)  # compiles
    forward = min((_timed(lambda: engine(plan, case, grid)) for _ in range(3)), key=lambda t: t["s"])
    coarse = replace(plan, arcs=tuple(_every_second(arc) for arc in arcs))
    density = density_of(case, grid)
    inside = np.flatnonzero(density.g_cm3.ravel() > 0)
    near = inside[np.abs(grid.points_mm(inside)).max(axis=1) < _NEAR_MM]
    points = grid.points_mm(np.random.default_rng(0).choice(near, _MATRIX_VOXELS, replace=False))
    every = exposures(coarse, machine, max_step_deg=4.5, max_travel_mm=1e9)
    made: list[Any] = []

    def matrix() -> None:
        made[:] = [
            influence_matrix(
                machine, density, points, every, jaw_box(every), isocenter_mm=(0.0, 0.0, 0.0), max_gb=9
            )
        ]

    matrix()
    built = min((_timed(matrix) for _ in range(2)), key=lambda t: t["s"])
    return {
        "forward": {**forward, "voxels": body, "exposures": len(delivered.mu)},
        "matrix": {
            **built,
            "voxels": len(points),
            "directions": len(every.mu),
            "beamlets": made[0].matrix.shape[1],
            "gb": made[0].gigabytes,
        },
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def _every_second(arc: Arc) -> Arc:
    """The arc with every second control point left out."""
    pairs = arc.mu[: len(arc.mu) // 2 * 2].reshape(-1, 2).sum(axis=1)
    kept = slice(None, 2 * len(pairs) + 1, 2)
    positions = {n: getattr(arc, n)[kept] for n in ("gantry_deg", "leaves_mm", "jaws_mm")}
    return replace(arc, **positions, mu=pairs)


def _timed(work: Callable[[], Any]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def section() -> Iterator[str]:
    """The lines of docs/benchmarks.md about the pencil beam; none without figures."""
    figures = load("beam")
    if not figures:
        return
    yield from ("", "## Pencil beam", "", f"`python benchmarks/beam.py`, {figures['date']}.")
    for machine, rows in figures["scans"].items():
        yield from (
            "",
            f"`{machine}` against the water-tank scans it was fitted to, computed by the engine:",
            "",
        )
        yield (
            "| field, cm | depth dose from 15 mm, max % | 3 to 15 mm, max % | output factor % | "
            "profile points in 2 %/2 mm |"
        )
        yield "|---|---:|---:|---:|---:|"
        for row in rows:
            side = row["side_mm"] / 10
            yield (
                f"| {side:g} x {side:g} | {row['pdd_max_percent']:.2f} | {row['build_up_max_percent']:.1f} | "
                f"{row['output_factor_percent']:+.2f} | {row['profile_points_percent']:.1f} % |"
            )
    if figures["reference"]:
        yield from (
            "",
            "Against EGSnrc, absolute, in percent of the maximum; axis beyond 15 mm, all depths:",
            "",
        )
        yield ("| case | mean % | axis max % | noise of one depth % | gamma 3 %/3 mm | 2 %/2 mm | seconds |")
        yield "|---|---:|---:|---:|---:|---:|---:|"
    for case in figures["reference"]:
        axis = "" if case["cax_diff_pct"] is None else f"{case['cax_diff_pct']:.1f}"
        noise = "" if case["cax_diff_pct"] is None else f"{case['noise_pct']:.2f}"
        yield (
            f"| {case['name']} | {case['mean_diff_pct']:+.2f} | {axis} | {noise} | "
            f"{case['gamma_3_3']:.1f} % | {case['gamma_2_2']:.1f} % | {case['seconds']:.1f} |"
        )
    if speed_of := figures.get("speed"):
        forward, matrix = speed_of["forward"], speed_of["matrix"]
        yield (
            "\nA synthetic head and neck, two arcs, `generic_6mv`, all cores. Dose of the whole body on 3 mm "
            f"({forward['voxels']} voxels, {forward['exposures']} exposures): {forward['s']:.1f} s "
            f"({forward['cpu_s']:.1f} CPU). Dose matrix of {matrix['directions']} control points, 4 degrees "
            f"apart, and {matrix['voxels']} voxels ({matrix['beamlets']} beamlets): {matrix['s']:.1f} s "
            f"({matrix['cpu_s']:.1f} CPU), {matrix['gb']:.2f} GB with its transpose. Peak memory "
            f"{speed_of['peak_gb']:.1f} GB."
        )


def main() -> None:
    found = {machine: rows for machine in SCANS if (rows := scans(machine))}
    reference = reference_cases()
    if not found and not reference:
        print("beam: left out, no scans or reference doses in VMAT_SHARED_DATA", file=sys.stderr)
        return
    save("beam", {"scans": found, "reference": reference, "speed": speed(), "date": today()})
    print("\n".join(section()))


if __name__ == "__main__":
    main()
