"""Radiological depth against an exact ray tracing through the voxels, written here for itself.

Method: Siddon, Med Phys 12:252 (1985).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from water import block

from vmat_diffusion.case import Case, density_g_cm3
from vmat_diffusion.dose import dose_grid
from vmat_diffusion.dose.pencil_beam.rays import depth_field
from vmat_diffusion.dose.tissue import Density, density_of, electron_density
from vmat_diffusion.geometry import Grid, beam_axes, project, source_position_mm

ISOCENTER = (6.0, -8.0, 10.0)


def siddon_mm(density: Density, source: NDArray, target: NDArray) -> float:
    """Length of each voxel on the way from source to target times its electron density, 1 in water."""
    low, high = (np.asarray(b) for b in density.grid.bounds_mm)
    way = target - source
    cuts = [np.array([0.0, 1.0])]
    for k in range(3):
        if abs(way[k]) > 1e-12:
            borders = np.linspace(low[k], high[k], density.grid.shape[2 - k] + 1)
            cuts.append((borders - source[k]) / way[k])
    t = np.unique(np.concatenate(cuts))
    t = t[(t >= 0) & (t <= 1)]
    middle = source + (t[1:, None] + t[:-1, None]) / 2 * way
    index = np.floor((middle - low) / density.grid.spacing_mm).astype(int)
    inside = np.all((index >= 0) & (index < np.array(density.grid.shape[::-1])), axis=1)
    ix, iy, iz = index[inside].T
    return float(
        np.sum(np.diff(t)[inside] * electron_density(density.g_cm3[iz, iy, ix])) * np.linalg.norm(way)
    )


def engine_mm(density: Density, gantry_deg: float, couch_deg: float, points: NDArray) -> NDArray:
    """Depths at the same points between the rays of the dose engine."""
    axes = beam_axes(gantry_deg, 0.0, couch_deg)
    rays = depth_field(density, axes, ISOCENTER, 1000.0)
    u, v, distance = project(points, axes, ISOCENTER, 1000.0).T
    first_u, first_v, top = rays.low
    at = (
        (v - first_v) / rays.lateral_mm,
        (top - 1000.0 + distance) / rays.step_mm,
        (u - first_u) / rays.lateral_mm,
    )
    return map_coordinates(rays.field[..., 0], at, order=1, mode="nearest")


@pytest.fixture(scope="module")
def thorax() -> Case:
    """A trunk with two lungs (density 0.26 to 0.31), a spine (1.6) and an air cavity, 3 mm voxels."""
    case = block((-150.0, -105.0, -60.0), (150.0, 105.0, 60.0), 3.0)
    x, y, _ = np.meshgrid(*case.grid.axes_mm, indexing="ij")
    x, y, z = (np.moveaxis(a, (0, 1, 2), (2, 1, 0)) for a in np.meshgrid(*case.grid.axes_mm, indexing="ij"))
    body = (x / 148) ** 2 + (y / 103) ** 2 < 1
    hu = np.zeros(case.grid.shape, np.float32)
    for side in (-1, 1):
        hu[((x - side * 70) / 50) ** 2 + (y / 70) ** 2 < 1] = -720.0 - 20 * side
    hu[(x**2 + (y - 70) ** 2 < 18**2)] = 900.0
    hu[(np.abs(x) < 9) & (np.abs(y + 50) < 12) & (z > 0)] = -1000.0
    return replace(case, hu=hu, structures={"BODY": replace(case.body, mask=body)})


@pytest.mark.parametrize(
    ("gantry_deg", "couch_deg"), [(0, 0), (37, 0), (90, 0), (200, 0), (310, 25), (20, 90)]
)
def test_depth_in_a_thorax_equals_the_exact_ray_tracing(
    thorax: Case, gantry_deg: float, couch_deg: float
) -> None:
    """Densities are interpolated between voxel centres 3 mm apart and between rays 4 mm apart.

    That blurs edges along which a ray runs: the median says how good it is elsewhere, the root mean
    square bounds what edges add. 1 mm of depth is 0.4 % of dose.
    """
    density = density_of(thorax, dose_grid(thorax, 3.0))
    x, y, _ = (points := density.grid.points_mm(np.arange(density.g_cm3.size))).T
    inside = np.flatnonzero((x / 148) ** 2 + (y / 103) ** 2 < 0.85)
    points = points[np.random.default_rng(7).choice(inside, 400, replace=False)]
    source = np.asarray(source_position_mm(gantry_deg, ISOCENTER, 1000.0, couch_deg))
    exact = np.array([siddon_mm(density, source, p) for p in points])
    difference = engine_mm(density, gantry_deg, couch_deg, points) - exact
    assert exact.max() > 120
    assert abs(difference.mean()) < 0.4
    assert np.median(np.abs(difference)) < 0.8
    assert np.sqrt(np.mean(difference**2)) < 2.3


def test_depth_in_slabs_across_the_beam_is_exact_but_for_the_interfaces() -> None:
    case = block((-60.0, -80.0, -60.0), (60.0, 80.0, 60.0), 4.0)
    hu = case.hu.copy()
    hu[:, 10:20] = -740.0  # 40 to 80 mm deep
    hu[:, 25:28] = 900.0  # 100 to 112 mm deep
    density = density_of(replace(case, hu=hu), case.grid)
    # Electrons per gram relative to water: lung 0.990, cortical bone 0.939.
    light, heavy = density_g_cm3(np.array([-740.0, 900.0])) * [0.990, 0.939]
    deep = np.array([38.0, 90.0, 140.0])
    expected = np.array([38.0, 40 + 40 * light + 10, 40 + 40 * light + 20 + 12 * heavy + 28])
    axis = np.asarray(ISOCENTER) + np.array([0.0, 1.0, 0.0]) * (deep - 80.0 + 8.0)[:, None]
    found = engine_mm(density, 0.0, 0.0, axis)
    assert np.allclose(found, expected, atol=0.4)


def test_density_of_a_coarser_grid_keeps_the_mass(thorax: Case) -> None:
    for spacing in (2.5, 4.0, 5.0):
        density = density_of(thorax, dose_grid(thorax, spacing))
        fine = density_g_cm3(thorax.hu) * thorax.body.mask
        mass = density.g_cm3.sum(dtype=float) * density.grid.voxel_cc
        assert mass == pytest.approx(fine.sum(dtype=float) * thorax.grid.voxel_cc, rel=1e-4)


def test_the_independent_ray_tracing_itself() -> None:
    """Through a cube of 4 cm of water along an edge-parallel and a diagonal ray."""
    cube = Density(Grid((4, 4, 4), (10.0,) * 3, (-15.0,) * 3), np.full((4, 4, 4), 1.0, np.float32))
    assert siddon_mm(cube, np.array([-100.0, 1, 1]), np.array([100.0, 1, 1])) == pytest.approx(40)
    diagonal = np.array([100.0, 100.0, 100.0])
    assert siddon_mm(cube, -diagonal, diagonal) == pytest.approx(40 * 3**0.5)
