"""Plan the TG-119 C-shape with this project and with PyDoseRT, one after the other.

    python benchmarks/peer_plans.py                # on all cores, 10 minutes for the peer
    python benchmarks/peer_plans.py --minutes 30

Arcs, collimators, leaf widths, transmission and control points are the same, goals as far as the peer's
objectives express them. Both plans are normalised to the same coverage, on the dose of their own engine and
on that of this project's, and looked at for what the linac cannot deliver. PyDoseRT begins with leaves
around the target and searches until its time is up; it has no limits of leaf speed to keep.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from computer import stamp
from figures import load, save
from peers import driver, environment, paragraph

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.pencil_beam import PencilBeam
from vmat_diffusion.dose.tissue import density_of, dose_grid
from vmat_diffusion.evaluate.dvh import structure_dvh
from vmat_diffusion.evaluate.goals import GoalSheet, fit_to_case, load_goals
from vmat_diffusion.geometry import Grid, average_onto, beam_axes, mask_bounds_mm, project
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.optimize import Settings, optimize
from vmat_diffusion.optimize.arcs import ArcFrame, arc_frames, isocenter_of, target_points
from vmat_diffusion.optimize.falloff import Falloff, ceiling_of
from vmat_diffusion.phantom import phantom
from vmat_diffusion.plan import Arc, Plan, violations

ROOT = Path(__file__).resolve().parents[1]
SHEET, MACHINE, TARGET, ORGAN = "tg119_cshape_hard", "generic_6mv", "PTV", "Core"
SPACING_DEG, PEER_GRID_MM, MARGIN_MM, CLOSED_MM = 6.0, 5.0, 3.0, 1.0


def frames_of(case: Case, machine: Machine, spacing_deg: float) -> tuple[ArcFrame, ...]:
    """The two arcs that the optimiser would choose."""
    settings = Settings()
    return arc_frames(
        case,
        (TARGET,),
        isocenter_of(case, (TARGET,)),
        machine,
        arcs=settings.arcs,
        start_deg=settings.arc_start_deg,
        stop_deg=settings.arc_stop_deg,
        spacing_deg=spacing_deg,
        collimators_deg=None,
    )


def conformal(case: Case, machine: Machine, frame: ArcFrame) -> np.ndarray:
    """Leaves `[control points, 2, pairs]` around the target, the others closed at the middle."""
    points, iso = target_points(case, (TARGET,)), isocenter_of(case, (TARGET,))
    rows = machine.row_edges_mm()
    leaves = np.tile(np.array([[-CLOSED_MM / 2], [CLOSED_MM / 2]]), (len(frame.gantry_deg), 1, len(rows) - 1))
    for k, gantry in enumerate(frame.gantry_deg):
        u, v, _ = project(points, beam_axes(gantry, frame.collimator_deg), iso, machine.sad_mm).T
        row = np.searchsorted(rows, v) - 1
        for r in np.unique(row):
            leaves[k, :, r] = u[row == r].min() - MARGIN_MM, u[row == r].max() + MARGIN_MM
    return leaves


def peer_grid(case: Case) -> Grid:
    """Around the isocentre, wide enough to be turned about it, and 2 cm longer than the target."""
    low, high = (np.array(side) for side in mask_bounds_mm(case.body.mask, case.grid))
    points, iso = target_points(case, (TARGET,)), np.array(isocenter_of(case, (TARGET,)))
    far = np.hypot(*np.maximum(iso - low, high - iso)[:2])
    half = np.array([far, far, np.ptp(points[:, 2]) / 2 + 20.0])
    count = np.ceil(half / PEER_GRID_MM).astype(int)
    nx, ny, nz = (2 * count + 1).tolist()
    x, y, z = (iso - count * PEER_GRID_MM).tolist()
    return Grid((nz, ny, nx), (PEER_GRID_MM,) * 3, (x, y, z))


def peer_case(case: Case, machine: Machine, file: Path) -> tuple[tuple[ArcFrame, ...], Grid]:
    """What the peer's driver reads: density, structures and first apertures on a grid of its own."""
    frames = frames_of(case, machine, SPACING_DEG)
    grid = peer_grid(case)
    inside = {n: average_onto(case.structures[n].mask, case.grid, grid) > 0.5 for n in (TARGET, ORGAN)}
    density = density_of(case, grid).g_cm3
    ceiling, away = ceiling_of(case, {TARGET: 1.0}, {TARGET: Falloff()}, grid)
    counts = [len(f.gantry_deg) for f in frames]
    np.savez(
        file,
        density=density,
        ptv=inside[TARGET],
        core=inside[ORGAN],
        around=(density > 0.1) & ~inside[TARGET] & (away < 60),
        ceiling=ceiling,
        arc_start=np.cumsum([0, *counts])[:-1],
        arc_stop=np.cumsum(counts),
        gantry_deg=np.concatenate([f.gantry_deg for f in frames]),
        collimator_deg=np.repeat([f.collimator_deg for f in frames], counts),
        leaves_mm=np.concatenate([conformal(case, machine, f) for f in frames]).transpose(0, 2, 1),
        jaws_y_mm=np.repeat([f.jaws_mm[2:] for f in frames], counts, axis=0),
        spacing_zyx_mm=np.array(grid.spacing_mm)[::-1],
        isocenter_zyx_mm=(np.array(isocenter_of(case, (TARGET,))) - grid.origin_mm)[::-1],
        leaf_edges_mm=machine.row_edges_mm(),
        transmission=machine.mlc.transmission,
    )
    return frames, grid


def peer_plan(
    found: Any, frames: tuple[ArcFrame, ...], case: Case, machine: Machine, sheet: GoalSheet
) -> Plan:
    """What the peer found as a plan of the machine, its leaves cut to the X jaws."""
    arcs, point, segment = [], 0, 0
    for number, frame in enumerate(frames, 1):
        n = len(frame.gantry_deg)
        x1, x2 = frame.jaws_mm[:2]
        arcs.append(
            Arc(
                frame.gantry_deg,
                frame.collimator_deg,
                0.0,
                np.clip(found["leaves_mm"][point : point + n], x1, x2),
                np.tile(np.array(frame.jaws_mm), (n, 1)),
                found["mu"][segment : segment + n - 1],
                number=number,
            )
        )
        point, segment = point + n, segment + n - 1
    return Plan(tuple(arcs), isocenter_of(case, (TARGET,)), sheet.prescription.fractions, machine.name)


def scores(dose: Dose, case: Case, sheet: GoalSheet) -> dict[str, float]:
    """Target and organ D10 in Gy at the coverage that the sheet normalises to."""
    target, organ = (structure_dvh(dose, case.structures[n], case.grid) for n in (TARGET, ORGAN))
    factor = sheet.normalization.gy / target.dose_at_percent_gy(95)
    return {
        "target_d10_gy": factor * target.dose_at_percent_gy(10),
        "target_d99_gy": factor * target.dose_at_percent_gy(99),
        "organ_d10_gy": factor * organ.dose_at_percent_gy(10),
        "organ_mean_gy": factor * organ.mean_gy,
    }


def measure(python: Path, minutes: float, threads: int) -> dict[str, Any]:
    """Both plans, one after the other."""
    machine, case = load_machine(MACHINE), phantom("tg119_cshape")
    sheet = fit_to_case(load_goals(SHEET), case)
    engine = PencilBeam(machine)

    def judged(plan: Plan, own: Dose) -> dict[str, Any]:
        return {
            "mu": plan.total_mu,
            "own": scores(own, case, sheet),
            "recomputed": scores(engine(plan, case, dose_grid(case)), case, sheet),
            "violations": len(violations(plan, machine)),
        }

    # Fixed jaws, as the peer's; compiled code is loaded before the clock starts, as in a session of planning.
    settings = Settings(max_minutes=None, jaw_tracking=False)
    optimize(case, sheet, machine, settings=replace(settings, effort=0.05))
    begun = time.perf_counter()
    made = optimize(case, sheet, machine, settings=settings)
    ours = {"seconds": time.perf_counter() - begun, "steps": len(made.history)} | judged(made.plan, made.dose)
    with tempfile.TemporaryDirectory(prefix="vmat_peers_") as folder:
        at, out = Path(folder) / "case.npz", Path(folder) / "plan.npz"
        frames, grid = peer_case(case, machine, at)
        peer = driver(python, "pydosert_plan", threads, minutes, at, out)
        with np.load(out) as found:
            plan = peer_plan(found, frames, case, machine, sheet)
            own = Dose(grid, found["dose"].astype(np.float32))
    return {"threads": threads, "ours": ours, "peer": peer | judged(plan, own)}


def section() -> Iterator[str]:
    """The lines of docs/benchmarks.md about both planners; none without figures."""
    row = load("peer_plans")
    if not row:
        return
    yield ""
    yield f"## Planning beside PyDoseRT {row['peer']['version']}"
    yield ""
    yield from paragraph(
        f"""`python benchmarks/peer_plans.py`. TG-119 C-shape, hard version, {row["threads"]} cores, one after
        the other. The same two arcs,
        collimators, leaf widths, transmission and fixed jaws. PyDoseRT: its engine on a grid of
        {PEER_GRID_MM:g} mm, control points {SPACING_DEG:g} degrees apart, its map from free variables to
        apertures and its penalties (target under and over, core, falloff) with Adam from leaves around
        the target, until its time was up; it has no limits of leaf speed. Ours: as `plan`, without Monte
        Carlo, points 2 degrees apart, code compiled before. All at PTV D95 of 50.2 Gy."""
    )[1:]
    yield (
        "| program | s | steps | dose of | PTV D10, Gy | PTV D99, Gy | core D10, Gy | core mean, Gy | MU | "
        "violations |"
    )
    yield "|---|---:|---:|---|---:|---:|---:|---:|---:|---:|"
    for name, key in (("VMAT Diffusion", "ours"), ("PyDoseRT", "peer")):
        f = row[key]
        for which, at in (("its own engine", "own"), ("our engine, from the plan", "recomputed")):
            s = f[at]
            yield (
                f"| {name} | {f['seconds']:.0f} | {f['steps']} | {which} | {s['target_d10_gy']:.2f} | "
                f"{s['target_d99_gy']:.2f} | {s['organ_d10_gy']:.2f} | {s['organ_mean_gy']:.2f} | "
                f"{f['mu']:.0f} | {f['violations']} |"
            )
    yield ""
    yield f"MU of PyDoseRT are in its own units. Measured on {row['date']} on {row['machine']}."


def main() -> None:
    """Measure, keep the figures and write the page."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venvs", type=Path, default=ROOT / ".venv-peers", help="folder of the environments")
    parser.add_argument("--minutes", type=float, default=10.0, help="of the peer's search")
    arguments = parser.parse_args()
    python = environment("pydosert", arguments.venvs.resolve())
    if python is None:
        sys.exit(1)
    row = measure(python, arguments.minutes, cores)
    row |= stamp()
    save("peer_plans", row)
    print("\n".join(section()))


if __name__ == "__main__":
    main()
