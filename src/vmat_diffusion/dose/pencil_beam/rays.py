"""Radiological depth: the water-equivalent path length from the source to any point of a patient."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.compiled import watching
from vmat_diffusion.dose.delivery import Exposures
from vmat_diffusion.dose.pencil_beam.loops import RAY_LANES
from vmat_diffusion.dose.tissue import Density
from vmat_diffusion.geometry import BeamAxes, Point, beam_axes
from vmat_diffusion.progress import Progress

_STEP_MM = 2.5
_LATERAL_MM = 4.0
# Water-equivalent lengths over which density counts for the lateral spread of primary dose (charged
# particles) and of scatter. Chosen on lung slabs, docs/dose_engine.md.
NEAR_MM, WIDE_MM = 7.0, 70.0
_F, _I, _U = np.float32, np.int32, np.uint32
_LEAST_DENSITY = 1e-4  # relative to water; below it there is no body and no spread


class DepthField(NamedTuple):
    """Depth and density along the rays of one gantry angle, on a divergent lattice.

    `field[v, w, u, RAY_LANES]`: water-equivalent depth in mm, and the density relative to water that
    widens primary dose and scatter: the harmonic mean over the last NEAR_MM and WIDE_MM of depth, with
    exponential weights; the rest is zero. u and v are isocentre-plane coordinates at collimator 0. `low`
    holds the first u and v and the height above the isocentre of the uppermost plane, from which w runs
    down along the beam axis. Rays are `lateral_mm` apart at the isocentre plane, planes `step_mm`.
    """

    field: NDArray[np.float32]
    low: NDArray[np.float64]
    lateral_mm: float
    step_mm: float


def depth_field(density: Density, axes: BeamAxes, isocenter_mm: Point, sad_mm: float) -> DepthField:
    """Trace all rays of a lattice that covers all density; 11 to 20 ms for a head and neck on one core.

    Density is interpolated trilinearly and summed by the trapezoidal rule every 2.5 mm along the
    axis, rays 4 mm apart at the isocentre plane. `axes` must be those of collimator 0.
    """
    # The lattice hangs on the grid's corners, so that it is the same whatever lies inside; only the part
    # around what does is traced. Interpolated density ends one voxel beyond the last centre.
    step = np.array([_LATERAL_MM, _LATERAL_MM, -_STEP_MM])
    corners = np.array(list(itertools.product(*zip(*density.grid.bounds_mm, strict=True))))
    low, high = _span(corners - np.asarray(isocenter_mm), axes, sad_mm)
    origin = np.array([low[0], low[1], high[2]]) - step
    low, high = _span(density.outline_mm - np.asarray(isocenter_mm), axes, sad_mm)
    margin = max(density.grid.spacing_mm) * sad_mm / (sad_mm - high[2])
    low, high = low - margin, high + margin
    first = np.floor((np.array([low[0], low[1], high[2]]) - origin) / step)
    last = np.ceil((np.array([high[0], high[1], low[2]]) - origin) / step)
    low, count = origin + first * step, (last - first).astype(int) + 1
    field = np.empty((count[1], count[2], count[0], RAY_LANES), np.float32)
    _trace(
        density.bordered_electrons,
        np.asarray(density.grid.origin_mm) - np.asarray(isocenter_mm),
        1.0 / np.asarray(density.grid.spacing_mm),
        np.stack([axes.x, axes.y, axes.to_source]),
        low,
        sad_mm,
        _LATERAL_MM,
        _STEP_MM,
        (NEAR_MM, WIDE_MM),
        field,
    )
    return DepthField(field, low, _LATERAL_MM, _STEP_MM)


def _span(relative_mm: NDArray, axes: BeamAxes, sad_mm: float) -> tuple[NDArray, NDArray]:
    """Least and largest isocentre-plane coordinates u and v and heights of points about the isocentre."""
    height = relative_mm @ axes.to_source
    scale = sad_mm / (sad_mm - height)
    seen = np.stack([relative_mm @ axes.x * scale, relative_mm @ axes.y * scale, height])
    return seen.min(axis=1), seen.max(axis=1)


@numba.njit(inline="always")
def _decay(x):  # type: ignore[no-untyped-def]
    """exp(-x) for x >= 0 within 2e-5, as a polynomial that the compiler computes for several rays at once."""
    y = x * _F(-0.125)
    eighth = _F(1) + y * (_F(1) + y * (_F(1 / 2) + y * (_F(1 / 6) + y * _F(1 / 24))))
    quarter = eighth * eighth
    half = quarter * quarter
    return half * half


@numba.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def _trace(density, origin, inverse_spacing, axes, low, sad, lateral, step, reach, out):  # type: ignore[no-untyped-def]
    """Cumulative trapezoid of density along each ray, in mm of water, and its running harmonic means.

    `density` has a border of zeros one voxel wide. All rays of a row go down together; voxel indices are
    linear along the row.
    """
    nv, nw, nu, _ = out.shape
    nz, ny, nx = density.shape
    row, plane = _I(nx), _I(nx * ny)
    flat = density.reshape(-1)
    end_x, end_y, end_z = _F(nx - 1.001), _F(ny - 1.001), _F(nz - 1.001)
    per_near, per_wide = _F(1 / reach[0]), _F(1 / reach[1])
    for iv in numba.prange(nv):
        # Rows: how much longer each ray is than the axis, density here and before, depth, both means, place.
        slant, here, before = np.empty(nu, np.float32), np.empty(nu, np.float32), np.zeros(nu, np.float32)
        total, near, wide = np.zeros(nu, np.float32), np.ones(nu, np.float32), np.ones(nu, np.float32)
        at, part = np.empty(nu, np.int32), np.empty((3, nu), np.float32)
        v = low[1] + iv * lateral
        for iu in range(nu):
            u = low[0] + iu * lateral
            slant[iu] = step * np.sqrt(1.0 + (u * u + v * v) / (sad * sad))
        for iw in range(nw):
            w = low[2] - iw * step
            k = (sad - w) / sad
            first = ((low[0] * axes[0] + v * axes[1]) * k + w * axes[2] - origin) * inverse_spacing + 1.0
            slope = lateral * k * axes[0] * inverse_spacing
            x0, y0, z0 = _F(first[0]), _F(first[1]), _F(first[2])
            dx, dy, dz = _F(slope[0]), _F(slope[1]), _F(slope[2])
            for iu in range(nu):
                n = _F(iu)
                x, y, z = x0 + n * dx, y0 + n * dy, z0 + n * dz
                outside = (min(x, min(y, z)) < _F(0)) | (x > end_x) | (y > end_y) | (z > end_z)
                x, y, z = min(max(x, _F(0)), end_x), min(max(y, _F(0)), end_y), min(max(z, _F(0)), end_z)
                ix, iy, iz = _I(x), _I(y), _I(z)
                part[0, iu], part[1, iu], part[2, iu] = x - _F(ix), y - _F(iy), z - _F(iz)
                place = _I(_I(iz * plane) + _I(iy * row)) + ix
                at[iu] = _I(-1) if outside else place
            for iu in range(nu):
                here[iu] = 0.0
                if at[iu] >= 0:
                    here[iu] = _cell(flat, at[iu], row, plane, part[0, iu], part[1, iu], part[2, iu])
            for iu in range(nu):
                length = slant[iu]
                added = _F(0.5) * (here[iu] + before[iu]) * length
                before[iu] = here[iu]
                total[iu] += added
                # Each mean is of length per depth; its weights fall exponentially with depth.
                least = _F(_LEAST_DENSITY) * length
                lightness = length / max(added, least)
                counts = added > least
                keep = _decay(added * per_near)
                near[iu] = near[iu] * keep + lightness * (_F(1) - keep) if counts else near[iu]
                keep = _decay(added * per_wide)
                wide[iu] = wide[iu] * keep + lightness * (_F(1) - keep) if counts else wide[iu]
            for iu in range(nu):
                out[iv, iw, iu, 0], out[iv, iw, iu, 1] = total[iu], _F(1) / near[iu]
                out[iv, iw, iu, 2], out[iv, iw, iu, 3] = _F(1) / wide[iu], _F(0)


@numba.njit(inline="always")
def _cell(flat, at, row, plane, tx, ty, tz):  # type: ignore[no-untyped-def]
    """Trilinear value in the cell of a flat array that begins at index `at`."""
    edges = (flat[_U(at)], flat[_U(at + row)], flat[_U(at + plane)], flat[_U(at + plane + row)])
    a = edges[0] + tx * (flat[_U(at + 1)] - edges[0])
    b = edges[1] + tx * (flat[_U(at + row + 1)] - edges[1])
    c = edges[2] + tx * (flat[_U(at + plane + 1)] - edges[2])
    d = edges[3] + tx * (flat[_U(at + plane + row + 1)] - edges[3])
    a, c = a + ty * (b - a), c + ty * (d - c)
    return a + tz * (c - a)


def same_beam_direction(exposed: Exposures) -> list[NDArray[np.intp]]:
    """Indices of exposures that share gantry and couch angle, so that their rays are traced once."""
    keys = np.round(np.stack([exposed.gantry_deg % 360.0, exposed.couch_deg], axis=1), 3)
    _, inverse = np.unique(keys, axis=0, return_inverse=True)
    order = np.argsort(inverse.ravel(), kind="stable")
    return np.split(order, np.flatnonzero(np.diff(inverse.ravel()[order])) + 1)


def trace_directions(
    density: Density,
    exposed: Exposures,
    isocenter_mm: Point,
    sad_mm: float,
    patient_position: str,
    *,
    progress: Progress | None = None,
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float64], DepthField]]:
    """For each beam direction its exposures, its axes (rows x, y, to source; collimator 0) and its depths."""
    groups = same_beam_direction(exposed)
    for done, members in enumerate(groups):
        gantry_deg, couch_deg = exposed.gantry_deg[members[0]], exposed.couch_deg[members[0]]
        if progress and done % 8 == 0:
            progress("dose", done / len(groups), f"gantry {gantry_deg % 360:.0f} deg")
        axes = beam_axes(gantry_deg, 0.0, couch_deg, patient_position)
        rays = depth_field(density, axes, isocenter_mm, sad_mm)
        yield members, np.stack([axes.x, axes.y, axes.to_source]), rays


watching(_trace, Path(__file__).parents[3])
