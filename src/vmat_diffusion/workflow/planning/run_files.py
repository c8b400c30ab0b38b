"""The files of a planning run: their names, and those that are not DICOM."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vmat_diffusion.case import Dose
from vmat_diffusion.errors import CaseError, PlanError
from vmat_diffusion.files import written_whole
from vmat_diffusion.geometry import Grid
from vmat_diffusion.lettering import csv_cell
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan, timing, trajectory
from vmat_diffusion.workflow.planning.open_check import CHECK_FOLDER, RECORD

# The names of a planning run's files; those of the expected positions, as a pattern for all arcs.
PLAN_FILE, DOSE_FILE, REPORT_FILE = "RP.dcm", "RD.dcm", "report.html"
REPORT_PDF = "report.pdf"
CONTROL_POINTS, FLUENCE, TRAJECTORIES = "control_points.csv", "fluence.npz", "trajectory_*.csv"
CHECK_DOSE = "check_dose.npz"
# Of `generate`: the doses of all samples, and their record.
SAMPLES, SAMPLES_RECORD = "samples.npz", "samples.json"
FILES = (PLAN_FILE, DOSE_FILE, CHECK_DOSE, REPORT_FILE, REPORT_PDF, CONTROL_POINTS, FLUENCE, RECORD)


def write_control_points(path: Path, plan: Plan, machine: Machine) -> Path:
    """Every control point as a row of CSV: angles, MU, speeds, jaws and leaves.

    MU (per fraction), time and speeds belong to the segment that starts at the control point; they
    are empty at the last one of an arc. Leaves are numbered from 1 by ascending Y.
    """
    pairs = plan.arcs[0].leaves_mm.shape[2] if plan.arcs else 0
    names = ["arc", "name", "control_point", "gantry_deg", "collimator_deg", "couch_deg", "cumulative_mu"]
    segment_names = ["mu", "time_s", "gantry_speed_deg_s", "dose_rate_mu_min", "leaf_speed_mm_s"]
    with path.open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow([*names, *segment_names, *_position_names(pairs)])
        for arc in plan.arcs:
            pace = timing(arc, machine.limits, plan.dose_rate_mu_min)
            cumulative = np.concatenate([[0.0], np.cumsum(arc.mu)])
            segments = np.stack(
                [arc.mu, pace.time_s, pace.gantry_speed_deg_s, pace.dose_rate_mu_min, pace.leaf_speed_mm_s],
                axis=1,
            )
            for k, angle in enumerate(arc.gantry_deg):
                angles = (angle % 360.0, arc.collimator_deg, arc.couch_deg, cumulative[k])
                timed = _rounded(segments[k]) if k < len(arc.mu) else [""] * len(segment_names)
                positions = _rounded(np.concatenate([arc.jaws_mm[k], arc.leaves_mm[k].ravel()]))
                table.writerow([arc.number, csv_cell(arc.name), k, *_rounded(angles), *timed, *positions])
    return path


def _position_names(pairs: int) -> list[str]:
    """Columns of the jaws and leaves: X1, X2, Y1, Y2, then bank X1 and bank X2."""
    jaws = [f"jaw_{jaw}_mm" for jaw in ("x1", "x2", "y1", "y2")]
    return [*jaws, *(f"{bank}_leaf_{k + 1}_mm" for bank in ("x1", "x2") for k in range(pairs))]


def trajectory_name(arc_number: int) -> str:
    """The file of one arc's expected positions."""
    return TRAJECTORIES.replace("*", str(arc_number))


def names_of_run(plan: Plan) -> tuple[str, ...]:
    """All names that a run of this plan may have written."""
    return (
        *FILES,
        SAMPLES,
        SAMPLES_RECORD,
        CHECK_FOLDER,
        *(trajectory_name(arc.number) for arc in plan.arcs),
    )


def write_trajectories(folder: Path, plan: Plan, machine: Machine) -> tuple[Path, ...]:
    """Where every axis is expected, a CSV per arc: a row every 20 ms and one at every control point.

    `control_point` counts from 0 and is whole at the control points, MU are cumulative. Raises PlanError
    where a file exists already.
    """
    paths = tuple(folder / trajectory_name(arc.number) for arc in plan.arcs)
    for path in paths:
        if path.exists():
            raise PlanError(f"trajectory file {path} exists; name another folder")
    for path, arc in zip(paths, plan.arcs, strict=True):
        track = trajectory(arc, timing(arc, machine.limits, plan.dose_rate_mu_min))
        count = len(track.time_s)
        columns = np.column_stack(
            [
                track.time_s,
                track.control_point,
                track.gantry_deg % 360.0,
                np.full(count, arc.collimator_deg),
                np.full(count, arc.couch_deg),
                track.mu,
                track.jaws_mm,
                track.leaves_mm.reshape(count, -1),
            ]
        )
        names = ["time_s", "control_point", "gantry_deg", "collimator_deg", "couch_deg", "mu"]
        with (
            written_whole(path, overwrite=False) as part,
            part.open("w", newline="", encoding="utf-8") as stream,
        ):
            table = csv.writer(stream)
            table.writerow([*names, *_position_names(arc.leaves_mm.shape[2])])
            table.writerows(_rounded(row) for row in columns)
    return paths


def _rounded(values: Sequence[float] | np.ndarray) -> list[float]:
    return [round(float(v), 4) + 0.0 for v in values]


def write_fluence(path: Path, plan: Plan, machine: Machine, fluence: Mapping[str, Any]) -> Path:
    """The delivery and the fluence maps as arrays, `arc1_...` for the first arc and so on.

    `isocenter_mm` and per arc: `gantry_deg[n]`, `leaves_mm[n, 2, pairs]`, `jaws_mm[n, 4]`,
    `collimator_deg`, `couch_deg`, and per segment `mu[n-1]`, `time_s`, `gantry_speed_deg_s`,
    `dose_rate_mu_min`. The optimiser's maps of the arc sectors keep the names it gave them.
    """
    arrays: dict[str, Any] = {**fluence, "isocenter_mm": np.asarray(plan.isocenter_mm, np.float64)}
    for arc in plan.arcs:
        pace = timing(arc, machine.limits, plan.dose_rate_mu_min)
        arrays |= {
            f"arc{arc.number}_{name}": np.asarray(value)
            for name, value in {
                "gantry_deg": arc.gantry_deg % 360.0,
                "collimator_deg": arc.collimator_deg,
                "couch_deg": arc.couch_deg,
                "leaves_mm": arc.leaves_mm,
                "jaws_mm": arc.jaws_mm,
                "mu": arc.mu,
                "time_s": pace.time_s,
                "gantry_speed_deg_s": pace.gantry_speed_deg_s,
                "dose_rate_mu_min": pace.dose_rate_mu_min,
            }.items()
        }
    np.savez_compressed(path, **arrays)
    return path


def write_check_dose(path: Path, dose: Dose) -> Path:
    """The independent dose of the whole course and its standard error, in Gy, with their grid, as arrays."""
    arrays = {"gy": dose.gy.astype(np.float32)}
    if dose.std_gy is not None:
        arrays["std_gy"] = dose.std_gy.astype(np.float32)
    spacing, origin = np.asarray(dose.grid.spacing_mm), np.asarray(dose.grid.origin_mm)
    np.savez_compressed(path, spacing_mm=spacing, origin_mm=origin, **arrays)  # type: ignore[arg-type]
    return path


def read_check_dose(path: Path) -> Dose | None:
    """What `write_check_dose` wrote; None where there is no such file. Raises CaseError for a damaged one."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            gy = arrays["gy"]
            std_gy = arrays.get("std_gy")
            (sx, sy, sz), (x, y, z) = arrays["spacing_mm"].tolist(), arrays["origin_mm"].tolist()
            nz, ny, nx = gy.shape
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CaseError(f"{path.name} cannot be read ({type(error).__name__}); plan the case again") from None
    return Dose(Grid((nz, ny, nx), (sx, sy, sz), (x, y, z)), gy, std_gy)
