"""The files of a planning run: their names, and those that are not DICOM."""

from __future__ import annotations

import csv
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Dose
from vmat_diffusion.errors import CaseError, PlanError
from vmat_diffusion.files import written_whole
from vmat_diffusion.geometry import Grid, Point
from vmat_diffusion.lettering import csv_cell
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Arc, Plan, timing, trajectory
from vmat_diffusion.workflow.planning.open_check import CHECK_FOLDER, RECORD

# The names of a planning run's files; those of the expected positions, as a pattern for all arcs.
PLAN_FILE, DOSE_FILE, REPORT_FILE = "RP.dcm", "RD.dcm", "report.html"
REPORT_PDF = "report.pdf"
CONTROL_POINTS, FLUENCE, TRAJECTORIES = "control_points.csv", "fluence.npz", "trajectory_*.csv"
CHECK_DOSE = "check_dose.npz"
# Of `generate`: the doses of all samples, and their record.
SAMPLES, SAMPLES_RECORD = "samples.npz", "samples.json"
# What is believed of stored doses and places: no course reaches more, no patient lies farther away.
_GY_MAX, _SPACING_MM, _PLACE_MM = 1000.0, (0.05, 50.0), 1e5
_ARCS_MAX, _TIME_MAX_S = 100, 1e4
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
    arrays = _read_arrays(path, ("gy", "std_gy", "spacing_mm", "origin_mm"))
    gy, std_gy = arrays.get("gy"), arrays.get("std_gy")
    spacing, origin = (_triple(arrays.get(name)) for name in ("spacing_mm", "origin_mm"))
    if not _are_doses(gy, gy) or (std_gy is not None and not _are_doses(std_gy, gy)):
        raise CaseError(f"{path.name} holds no dose from 0 to {_GY_MAX:g} Gy; plan the case again")
    if spacing is None or origin is None or not all(_SPACING_MM[0] <= v <= _SPACING_MM[1] for v in spacing):
        raise CaseError(f"{path.name} does not say where its dose lies; plan the case again")
    assert gy is not None
    nz, ny, nx = gy.shape
    return Dose(Grid((nz, ny, nx), spacing, origin), gy, std_gy)


def _are_doses(values: NDArray | None, like: NDArray | None) -> bool:
    """Whether an array holds doses at voxels, of the shape of another one."""
    if values is None or like is None or values.dtype.kind != "f" or values.ndim != 3:
        return False
    in_range = values.size > 0 and bool(np.all((values >= 0) & (values <= _GY_MAX)))
    return in_range and values.shape == like.shape


def _triple(values: NDArray | None) -> tuple[float, float, float] | None:
    if values is None or values.dtype.kind not in "fiu" or values.shape != (3,):
        return None
    x, y, z = (float(v) for v in values)
    return (x, y, z) if max(abs(x), abs(y), abs(z)) <= _PLACE_MM else None


@dataclass(frozen=True, eq=False)
class StoredDelivery:
    """Arcs with their isocentre, and the times of their segments by the arcs' numbers, s."""

    isocenter_mm: Point
    arcs: tuple[Arc, ...]
    time_s: Mapping[int, NDArray]


def read_delivery(path: Path) -> StoredDelivery | None:
    """The delivery that `write_fluence` wrote; None where there is no such file or it holds none.

    Raises CaseError for a damaged one. Files of before held the optimiser's maps alone.
    """
    if not path.is_file():
        return None
    of_arc = (f"arc{k}_{name}" for k in range(1, _ARCS_MAX + 1) for name in (*_ARC_RANGES, "time_s"))
    arrays = _read_arrays(path, ("isocenter_mm", *of_arc))
    if "isocenter_mm" not in arrays:
        return None
    place = _triple(arrays["isocenter_mm"])
    numbers = [k for k in range(1, _ARCS_MAX + 1) if f"arc{k}_gantry_deg" in arrays]
    arcs = [_stored_arc(arrays, number) for number in numbers]
    if place is None or not arcs or None in arcs:
        raise CaseError(f"{path.name} holds no delivery that can be; plan the case again")
    times = {number: arrays.get(f"arc{number}_time_s") for number in numbers}
    known = {k: t for k, t in times.items() if t is not None and _in_range(t, 1, (0.0, _TIME_MAX_S))}
    return StoredDelivery(place, tuple(arc for arc in arcs if arc), known)


# No linac of any kind has more: mm, degrees, MU of a segment.
_ARC_RANGES = {
    "gantry_deg": (1, (-1e4, 1e4)),
    "collimator_deg": (0, (-1e4, 1e4)),
    "couch_deg": (0, (-1e4, 1e4)),
    "leaves_mm": (3, (-1e3, 1e3)),
    "jaws_mm": (2, (-1e3, 1e3)),
    "mu": (1, (0.0, 1e5)),
}


def _stored_arc(arrays: Mapping[str, NDArray], number: int) -> Arc | None:
    """An arc of the delivery; None where its arrays are not those of one."""
    of_arc = {name: arrays.get(f"arc{number}_{name}") for name in _ARC_RANGES}
    for name, (axes, limits) in _ARC_RANGES.items():
        if not _in_range(of_arc[name], axes, limits):
            return None
    held = {name: np.asarray(values, np.float64) for name, values in of_arc.items()}
    try:
        return Arc(
            np.rad2deg(np.unwrap(np.deg2rad(held["gantry_deg"]))),
            float(held["collimator_deg"]),
            float(held["couch_deg"]),
            held["leaves_mm"],
            held["jaws_mm"],
            held["mu"],
            number=number,
        )
    except PlanError:
        return None


def _in_range(values: NDArray | None, axes: int, limits: tuple[float, float]) -> bool:
    if values is None or values.dtype.kind not in "fiu" or values.ndim != axes:
        return False
    return bool(np.all((values >= limits[0]) & (values <= limits[1])))


def _read_arrays(path: Path, names: Collection[str]) -> dict[str, NDArray]:
    """Arrays of an npz of a run, those of `names` that it holds. Raises CaseError for a damaged file."""
    from vmat_diffusion.dataset.cases import UNREADABLE
    from vmat_diffusion.dataset.schema import check_sizes

    try:
        with np.load(path, allow_pickle=False) as file:
            held = [name for name in file.files if name in names]
            check_sizes(path, held)
            return {name: np.asarray(file[name]) for name in held}
    except CaseError:
        raise
    except UNREADABLE as error:
        raise CaseError(f"{path.name} cannot be read ({type(error).__name__}); plan the case again") from None
