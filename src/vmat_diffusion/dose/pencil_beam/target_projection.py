"""The projection of the targets: dose of conformal fields of equal weight, voxel by voxel.

A network that predicts dose must know from which directions it comes. Each beam opens on the targets as its
source sees them; a voxel receives what its ray carries, by depth and distance from the source.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from vmat_diffusion.compiled import watching
from vmat_diffusion.dose.pencil_beam.beam_tables import tables
from vmat_diffusion.dose.pencil_beam.loops import DEPTH_STEP_MM, SCALES
from vmat_diffusion.dose.pencil_beam.rays import DepthField, depth_field
from vmat_diffusion.dose.tissue import Density
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Point, beam_axes
from vmat_diffusion.machine import BeamModel

# Cells of the beam's-eye view at the isocentre plane, and the blur of a field's edge in tissue.
_CELL_MM = 3.0
_EDGE_MM = 4.0
_FIELD_MM = 50.0


def target_projection(
    density: Density,
    target_gy: NDArray[np.float32],
    beam: BeamModel,
    gantry_deg: Sequence[float],
    isocenter_mm: Point,
    *,
    patient_position: str = "HFS",
) -> NDArray[np.float32]:
    """Relative dose of conformal fields of equal weight, `[3, z, y, x]` on the grid of `density`.

    `target_gy` is the prescription of each voxel, 0 outside targets. First: the fields carry the highest
    prescription that each ray meets, relative to the highest of all. Second: the same for the highest
    prescription alone. Third: the share of the beams that meet any target on their way through the voxel.
    Zero outside the body. The first two are relative to a depth of 10 cm at the isocentre. Raises
    CaseError where there is no target. Cost: 0.1 s per beam for a head and neck of 4 mm voxels.
    """
    top = float(target_gy.max())
    if top <= 0:
        raise CaseError("no target has a prescription, so no field can be opened on one; prescribe a dose")
    fall = _depth_dose(beam)
    inside = np.flatnonzero(density.g_cm3.ravel() > 0)
    points = (density.grid.points_mm(inside) - np.asarray(isocenter_mm)).astype(np.float32)
    lit = np.flatnonzero(target_gy.ravel() > 0)
    source_points = (density.grid.points_mm(lit) - np.asarray(isocenter_mm)).astype(np.float32)
    level = (target_gy.ravel()[lit] / top).astype(np.float32)
    half_mm = 0.5 * float(np.linalg.norm(density.grid.spacing_mm)) / np.sqrt(3.0)
    relative = np.zeros((len(inside), 3), np.float32)
    for angle in gantry_deg:
        axes = beam_axes(angle, 0.0, 0.0, patient_position)
        rays = depth_field(density, axes, isocenter_mm, beam.sad_mm)
        frame = np.stack([axes.x, axes.y, axes.to_source])
        view = _beams_eye_view(source_points, level, frame, beam.sad_mm, half_mm)
        relative += _relative_dose(points, rays, fall, view)
    out = np.zeros((3, target_gy.size), np.float32)
    out[:, inside] = relative.T / len(gantry_deg)
    return out.reshape(3, *target_gy.shape)


def _depth_dose(beam: BeamModel) -> NDArray[np.float32]:
    """Dose on the axis of a field of 10 cm by depth every 1 mm, without inverse square, 1 at 10 cm."""
    table = tables(beam, _FIELD_MM)
    nearest = int(np.abs(np.log(SCALES)).argmin())
    curve = (table.primary[:, nearest] + table.scatter[:, nearest]).sum(axis=1)
    return (curve / curve[round(100.0 / DEPTH_STEP_MM)]).astype(np.float32)


class _BeamsEyeView(NamedTuple):
    """`level[v, u, 3]` of one direction: highest level, top level alone, any target.

    `low_mm` is the position (u, v) of the first cell's centre at the isocentre plane; the rows of `frame` are
    the directions of u, v and to the source.
    """

    level: NDArray[np.float32]
    low_mm: NDArray[np.float64]
    frame: NDArray[np.float64]
    sad_mm: float


def _projected(points: NDArray, frame: NDArray, sad_mm: float) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Isocentre-plane coordinates u and v, height above the isocentre, and magnification of points."""
    height = points @ frame[2]
    scale = sad_mm / (sad_mm - height)
    return points @ frame[0] * scale, points @ frame[1] * scale, height, scale


def _beams_eye_view(
    points: NDArray, level: NDArray, frame: NDArray, sad_mm: float, half_mm: float
) -> _BeamsEyeView:
    """The targets as the source sees them; `half_mm` is half the width of a target voxel."""
    u, v, _, _ = _projected(points, frame, sad_mm)
    margin = half_mm + 4 * _EDGE_MM
    low = np.array([u.min() - margin, v.min() - margin])
    shape = (
        int(np.ceil((v.max() + margin - low[1]) / _CELL_MM)) + 2,
        int(np.ceil((u.max() + margin - low[0]) / _CELL_MM)) + 2,
    )
    view = np.zeros((*shape, 3), np.float32)
    _cast(u, v, level, low, half_mm, view)
    blurred = [gaussian_filter(view[..., k], _EDGE_MM / _CELL_MM) for k in range(3)]
    return _BeamsEyeView(np.stack(blurred, axis=-1), low, frame, sad_mm)


@numba.njit(cache=True)
def _cast(u, v, level, low, half, view):  # type: ignore[no-untyped-def]
    """Mark the cells that each target voxel of half width `half` covers."""
    for i in range(len(u)):
        first_u = max(int(np.ceil((u[i] - half - low[0]) / _CELL_MM)), 0)
        last_u = min(int((u[i] + half - low[0]) / _CELL_MM), view.shape[1] - 1)
        first_v = max(int(np.ceil((v[i] - half - low[1]) / _CELL_MM)), 0)
        last_v = min(int((v[i] + half - low[1]) / _CELL_MM), view.shape[0] - 1)
        for b in range(first_v, last_v + 1):
            for a in range(first_u, last_u + 1):
                view[b, a, 0] = max(view[b, a, 0], level[i])
                view[b, a, 1] = max(view[b, a, 1], 1.0 if level[i] > 0.999 else 0.0)
                view[b, a, 2] = 1.0


def _relative_dose(
    points: NDArray, rays: DepthField, fall: NDArray, view: _BeamsEyeView
) -> NDArray[np.float32]:
    """Dose of one direction at every point, `[points, 3]`: what its ray meets, by depth and distance."""
    u, v, height, scale = _projected(points, view.frame, view.sad_mm)
    at = (v - rays.low[1], rays.low[2] - height, u - rays.low[0])
    steps = (rays.lateral_mm, rays.step_mm, rays.lateral_mm)
    where = np.stack([a / s for a, s in zip(at, steps, strict=True)])
    depth = map_coordinates(rays.field[..., 0], where, order=1, mode="nearest")
    carried = np.interp(depth, DEPTH_STEP_MM * np.arange(len(fall)), fall) * scale**2
    cells = np.stack([v - view.low_mm[1], u - view.low_mm[0]]) / _CELL_MM
    seen = np.stack([map_coordinates(view.level[..., k], cells, order=1) for k in range(3)], axis=1)
    seen[:, :2] *= carried[:, None]
    return seen


watching(_cast, Path(__file__).parents[3])
