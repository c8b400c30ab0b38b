"""Radiological depth: the water-equivalent way from the source to any point of a patient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, density_g_cm3
from vmat_diffusion.dose.fluence import Exposures
from vmat_diffusion.dose.materials import electron_density, medium_of
from vmat_diffusion.geometry import BeamAxes, Grid, Point, average_onto, beam_axes

Progress = Callable[[float, str], None]

_STEP_MM = 2.5
_LATERAL_MM = 4.0
# Water-equivalent lengths over which density counts for lateral spread: what charged particles, and
# scattered photons, have come through. Chosen on lung slabs, docs/dose_engine.md.
NEAR_MM, WIDE_MM = 7.0, 70.0
_NOTHING = 1e-4  # below this density there is no body, and nothing to spread in


@dataclass(frozen=True, eq=False)
class Density:
    """Mass density in g/cm3 on a grid, zero outside the body contour."""

    grid: Grid
    g_cm3: NDArray[np.float32]

    @cached_property
    def electrons(self) -> NDArray[np.float32]:
        """Electrons per volume relative to water."""
        return electron_density(self.g_cm3)


def density_of(case: Case, grid: Grid) -> Density:
    """Density of a case on a grid, averaged over each voxel; nothing outside the body counts.

    Couch, mask and clothing outside the body contour are therefore not in the beam's way.
    """
    fine = density_g_cm3(case.hu, case.ct_table)
    fine *= case.body.mask
    return Density(grid, np.ascontiguousarray(average_onto(fine, case.grid, grid)))


def medium_at(density: Density, points_mm: NDArray) -> NDArray[np.uint8]:
    """Index into MEDIA at points `[n, 3]` in mm: that of the voxel in which each lies, or next to it."""
    at = (np.asarray(points_mm) - density.grid.origin_mm) / density.grid.spacing_mm
    x, y, z = np.clip(np.rint(at), 0, np.array(density.grid.shape[::-1]) - 1).astype(np.intp).T
    return medium_of(density.g_cm3[z, y, x])


class DepthField(NamedTuple):
    """What lies in the way of the rays of one gantry angle, on a divergent lattice.

    `field[w, v, u, 3]`: water-equivalent depth in mm, and the density relative to water that widens
    primary dose and scatter: the harmonic mean over the last NEAR_MM and WIDE_MM of depth, with
    exponential weights. u and v are isocentre-plane coordinates at collimator 0. `low` holds the first
    u and v and the height above the isocentre of the uppermost plane, from which w runs down along the
    beam axis. Rays are `lateral_mm` apart at the isocentre plane, planes `step_mm`.
    """

    field: NDArray[np.float32]
    low: NDArray[np.float64]
    lateral_mm: float
    step_mm: float


def depth_field(density: Density, axes: BeamAxes, isocenter_mm: Point, sad_mm: float) -> DepthField:
    """Trace all rays of a lattice that covers the density grid; about 20 ms for a head and neck.

    Density is interpolated trilinearly and summed by the trapezoidal rule every 2.5 mm along the
    axis, rays 4 mm apart at the isocentre plane. `axes` must be those of collimator 0.
    """
    low_corner, high_corner = density.grid.bounds_mm
    corners = np.array(
        [
            [x, y, z]
            for x in (low_corner[0], high_corner[0])
            for y in (low_corner[1], high_corner[1])
            for z in (low_corner[2], high_corner[2])
        ]
    ) - np.asarray(isocenter_mm)
    height = corners @ axes.to_source
    scale = sad_mm / (sad_mm - height)
    u, v = corners @ axes.x * scale, corners @ axes.y * scale
    top, bottom = height.max() + _STEP_MM, height.min() - _STEP_MM
    low = np.array([u.min() - _LATERAL_MM, v.min() - _LATERAL_MM, top])
    count = [
        int(np.ceil((u.max() + _LATERAL_MM - low[0]) / _LATERAL_MM)) + 1,
        int(np.ceil((v.max() + _LATERAL_MM - low[1]) / _LATERAL_MM)) + 1,
        int(np.ceil((top - bottom) / _STEP_MM)) + 1,
    ]
    field = np.zeros((*count[::-1], 3), np.float32)
    _trace(
        density.electrons,
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


@numba.njit(parallel=True, cache=True, fastmath=True)
def _trace(density, origin, inverse_spacing, axes, low, sad, lateral, step, reach, out):  # type: ignore[no-untyped-def]
    """Cumulative trapezoid of density along each ray, in mm of water, and its running harmonic means."""
    nw, nv, nu, _ = out.shape
    nz, ny, nx = density.shape
    for iv in numba.prange(nv):
        v = low[1] + iv * lateral
        for iu in range(nu):
            u = low[0] + iu * lateral
            slant = np.sqrt(1.0 + (u * u + v * v) / (sad * sad))
            before, total, near, wide = 0.0, 0.0, 1.0, 1.0
            for iw in range(nw):
                w = low[2] - iw * step
                k = (sad - w) / sad
                a, b = u * k, v * k
                fx = (a * axes[0, 0] + b * axes[1, 0] + w * axes[2, 0] - origin[0]) * inverse_spacing[0]
                fy = (a * axes[0, 1] + b * axes[1, 1] + w * axes[2, 1] - origin[1]) * inverse_spacing[1]
                fz = (a * axes[0, 2] + b * axes[1, 2] + w * axes[2, 2] - origin[2]) * inverse_spacing[2]
                here = 0.0
                if -1.0 < fx < nx and -1.0 < fy < ny and -1.0 < fz < nz:
                    ix, iy, iz = int(np.floor(fx)), int(np.floor(fy)), int(np.floor(fz))
                    tx, ty, tz = fx - ix, fy - iy, fz - iz
                    for cz in range(2):
                        jz = iz + cz
                        if jz < 0 or jz >= nz:
                            continue
                        wz = tz if cz else 1.0 - tz
                        for cy in range(2):
                            jy = iy + cy
                            if jy < 0 or jy >= ny:
                                continue
                            wy = wz * (ty if cy else 1.0 - ty)
                            if ix >= 0:
                                here += wy * (1.0 - tx) * density[jz, jy, ix]
                            if ix + 1 < nx:
                                here += wy * tx * density[jz, jy, ix + 1]
                length = step * slant
                added = 0.5 * (here + before) * length
                if added > _NOTHING * length:
                    # Each mean is of length per depth; its weights fall exponentially with depth.
                    keep = np.exp(-added / reach[0])
                    near = near * keep + length / added * (1.0 - keep)
                    keep = np.exp(-added / reach[1])
                    wide = wide * keep + length / added * (1.0 - keep)
                total += added
                before = here
                out[iw, iv, iu, 0], out[iw, iv, iu, 1], out[iw, iv, iu, 2] = total, 1.0 / near, 1.0 / wide


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
    progress: Progress | None = None,
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float64], DepthField]]:
    """For each beam direction its exposures, its axes (rows x, y, to source; collimator 0) and its depths."""
    groups = same_beam_direction(exposed)
    for done, members in enumerate(groups):
        gantry_deg, couch_deg = exposed.gantry_deg[members[0]], exposed.couch_deg[members[0]]
        if progress and done % 8 == 0:
            progress(done / len(groups), f"gantry {gantry_deg % 360:.0f} deg")
        axes = beam_axes(gantry_deg, 0.0, couch_deg, patient_position)
        rays = depth_field(density, axes, isocenter_mm, sad_mm)
        yield members, np.stack([axes.x, axes.y, axes.to_source]), rays
