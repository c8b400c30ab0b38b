"""What the beam's eye view shows: control points of all arcs, limits of the machine, projected outlines."""

from __future__ import annotations

from typing import Any

import numpy as np
from contourpy import contour_generator
from numpy.typing import NDArray
from scipy import ndimage

from vmat_diffusion.dose.collimator import plan_layers
from vmat_diffusion.errors import PlanError
from vmat_diffusion.geometry import Grid, Point, beam_axes, project
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Arc, Plan, timing
from vmat_diffusion.web.view.masks import PackedStructure
from vmat_diffusion.web.view.runs import Run

# Cells of a projection at the isocentre plane; outlines are good to about one.
_CELL_MM = 1.5
# A larger surface is thinned: a projection needs no more points than this.
_POINTS_MOST = 150_000
_SMOOTH_CELLS = 0.7
# Where no machine is known: as all linacs of today.
_SAD_MM = 1000.0


def control_points(run: Run) -> dict[str, Any]:
    """All arcs of a run's plan as plain data: angles, MU, times, speeds, jaws and leaves, rounded.

    Speeds, times and rates belong to the segment that starts at a control point. `limits` are those of the
    machine, None where it is not a shipped one. Raises PlanError where there is no plan to show.
    """
    plan, machine = run.plan, run.machine
    if plan is None:
        raise PlanError("the run's files hold no control points; plan the case again")
    layers = machine.mlc.layers if machine else plan_layers(plan)
    limits = machine.limits if machine else None
    return {
        "isocenter_mm": plan.isocenter_mm,
        "fractions": plan.fractions,
        "sad_mm": sad_mm(run),
        "layers": [{"boundaries_mm": layer.boundaries_mm} for layer in layers or ()],
        "limits": None
        if limits is None
        else {
            "leaf_speed_mm_s": limits.leaf_speed_mm_s,
            "gantry_speed_deg_s": limits.gantry_speed_deg_s,
            "gantry_speed_min_deg_s": limits.gantry_speed_min_deg_s,
            "dose_rate_mu_min": min(plan.dose_rate_mu_min or np.inf, limits.dose_rate_mu_min),
            "leaf_gap_mm": limits.leaf_gap_mm,
            "mu_per_deg_min": limits.mu_per_deg_min,
            "mu_per_deg_max": limits.mu_per_deg_max,
            "leaf_position_mm": limits.leaf_position_mm,
            "jaw_position_mm": limits.jaw_position_mm,
        },
        "arcs": [_arc(arc, plan, machine, run) for arc in plan.arcs],
    }


def sad_mm(run: Run) -> float:
    """Distance of the source from the axis."""
    stated = run.plan.provenance.get("sad_mm") if run.plan else None
    if isinstance(stated, float):
        return stated
    return run.machine.sad_mm if run.machine else _SAD_MM


def _arc(arc: Arc, plan: Plan, machine: Machine | None, run: Run) -> dict[str, Any]:
    time_s = timing(arc, machine.limits, plan.dose_rate_mu_min).time_s if machine else _stored_times(run, arc)
    out: dict[str, Any] = {
        "number": arc.number,
        "name": arc.name,
        "collimator_deg": arc.collimator_deg,
        "couch_deg": arc.couch_deg,
        "gantry_deg": _rounded(arc.gantry_deg % 360.0, 2),
        "cumulative_mu": _rounded(np.concatenate([[0.0], np.cumsum(arc.mu)]), 3),
        "mu": _rounded(arc.mu, 3),
        "jaws_mm": _rounded(arc.jaws_mm, 2),
        "leaves_mm": _rounded(arc.leaves_mm, 2),
        "mu_per_deg": _rounded(_over(arc.mu, np.abs(np.diff(arc.gantry_deg))), 3),
    }
    if time_s is not None:
        motion = np.abs(np.diff(arc.leaves_mm, axis=0)).max(axis=(1, 2), initial=0.0)
        out |= {
            "time_s": _rounded(time_s, 4),
            "gantry_speed_deg_s": _rounded(_over(np.abs(np.diff(arc.gantry_deg)), time_s), 3),
            "dose_rate_mu_min": _rounded(60.0 * _over(arc.mu, time_s), 1),
            "leaf_speed_mm_s": _rounded(_over(motion, time_s), 2),
        }
    return out


def _stored_times(run: Run, arc: Arc) -> NDArray | None:
    """Times of the segments as the run stored them."""
    stored = run.times_s.get(arc.number)
    return stored if stored is not None and len(stored) == len(arc.mu) else None


def _over(values: NDArray, by: NDArray) -> NDArray:
    return np.divide(values, by, out=np.zeros(len(values)), where=by > 1e-6)


def _rounded(values: NDArray, digits: int) -> list[Any]:
    return np.round(np.asarray(values, np.float64), digits).tolist()  # type: ignore[no-any-return]


def surface_mm(structure: PackedStructure, grid: Grid) -> NDArray[np.float32]:
    """Points `(n, 3)` in mm that cover a structure's surface, close enough for cells of a projection.

    Voxels of the surface are cut into pieces of at most a cell; a large surface is thinned evenly.
    """
    part, near = structure.part(grid)
    padded = np.pad(part.mask, 1)
    inside = ndimage.binary_erosion(padded)[1:-1, 1:-1, 1:-1]
    centres = near.points_mm(np.flatnonzero(part.mask & ~inside))
    pieces = [max(1, int(np.ceil(s / _CELL_MM))) for s in near.spacing_mm]
    steps = [s * ((np.arange(n) + 0.5) / n - 0.5) for s, n in zip(near.spacing_mm, pieces, strict=True)]
    within = np.stack(np.meshgrid(*steps, indexing="ij"), axis=-1).reshape(-1, 3)
    most = max(1, _POINTS_MOST // len(within))
    centres = centres[:: max(1, -(-len(centres) // most))]
    return (centres[:, None] + within).reshape(-1, 3).astype(np.float32)


def projection(
    points: NDArray, plan: Plan, arc: Arc, gantry_deg: float, source_axis_mm: float
) -> list[NDArray[np.float32]]:
    """The outlines of what the source sees of a surface: closed lines `(n, 2)` in mm at the isocentre plane.

    The axes are those of the beam-limiting device (IEC 61217): leaves travel along the first.
    """
    axes = beam_axes(gantry_deg, arc.collimator_deg, arc.couch_deg, plan.patient_position)
    place: Point = plan.isocenter_mm
    seen = project(points, axes, place, source_axis_mm)
    seen = seen[seen[:, 2] > 1.0, :2]
    if not len(seen):
        return []
    low = seen.min(axis=0) - 3 * _CELL_MM
    at = np.rint((seen - low) / _CELL_MM).astype(np.intp)
    shape = tuple(at.max(axis=0) + 4)
    cells = np.zeros(shape, np.float32)
    cells[at[:, 0], at[:, 1]] = 1.0
    # Points lie up to a cell and a half apart where the beam spreads: close what is thinner than that.
    filled = ndimage.binary_closing(cells > 0, np.ones((3, 3), bool))
    smooth = ndimage.gaussian_filter(filled.astype(np.float32), _SMOOTH_CELLS)
    lines = contour_generator(z=smooth.T, line_type="Separate").lines(0.5)
    return [(low + _CELL_MM * np.asarray(line)[:-1]).astype(np.float32) for line in lines if len(line) > 4]
