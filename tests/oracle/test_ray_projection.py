"""What rays meet on their way against chords in closed form: a sphere, slabs and a box of water."""

from __future__ import annotations

import numpy as np
import pytest

from vmat_diffusion.case import Case, Structure
from vmat_diffusion.generate.projection import ATTENUATION_PER_MM, RAY_FEATURES, project_rays, volumes_of
from vmat_diffusion.geometry import Grid, beam_axes

SAD_MM, RADIUS_MM, SPACING_MM = 1000.0, 40.0, 2.0
HALF_MM = 120.0
# A nearest voxel and a step of 2 mm at each of two ends, along a slanted ray.
LENGTH_MM = 4.0
ROWS = np.array([-55.0, -20.0, 0.0, 10.0, 35.0])
COLUMNS = np.array([-30.0, -12.5, 0.0, 25.0, 60.0])


def _case() -> Case:
    """A box of water with a spherical target around the isocentre, and organs as slabs across y."""
    n = int(2 * HALF_MM / SPACING_MM)
    grid = Grid((n, n, n), (SPACING_MM,) * 3, (-HALF_MM + SPACING_MM / 2,) * 3)
    x, y, z = grid.axes_mm
    radius = np.sqrt(x[None, None, :] ** 2 + y[None, :, None] ** 2 + z[:, None, None] ** 2)
    full = np.ones(grid.shape, bool)
    front = full & (y > -90)[None, :, None] & (y < -70)[None, :, None]
    back = full & (y > 70)[None, :, None] & (y < 80)[None, :, None]
    structures = {
        "BODY": Structure("BODY", "body", full),
        "PTV_70": Structure("PTV_70", "target", radius < RADIUS_MM),
        "Cord": Structure("Cord", "organ", front),
        "Bowel": Structure("Bowel", "organ", back),
    }
    return Case("box", "head_neck", grid, np.zeros(grid.shape, np.float32), structures)


@pytest.fixture(scope="module")
def volumes():
    return volumes_of(_case(), {"PTV_70": 1.0}, {"Cord": (0.8, 0.0), "Bowel": (0.0, 0.5)})


def _rays(axes):
    """Direction of each ray from the source, `[rows, columns, 3]`, and the source."""
    source = SAD_MM * axes.to_source
    at = ROWS[:, None, None] * axes.y + COLUMNS[None, :, None] * axes.x
    ray = at - source
    return source, ray / np.linalg.norm(ray, axis=-1, keepdims=True)


def _named(features):
    return dict(zip(RAY_FEATURES, features, strict=True))


@pytest.mark.parametrize("gantry", [0.0, 45.0, 90.0, 215.0])
@pytest.mark.parametrize("collimator", [0.0, 30.0])
def test_length_in_a_sphere_is_its_chord(volumes, gantry, collimator) -> None:
    axes = beam_axes(gantry, collimator)
    got = _named(project_rays(volumes, axes, (0.0, 0.0, 0.0), sad_mm=SAD_MM, row_mm=ROWS, column_mm=COLUMNS))
    source, ray = _rays(axes)
    apart = np.linalg.norm(np.cross(-source, ray), axis=-1)
    chord = 2 * np.sqrt(np.clip(RADIUS_MM**2 - apart**2, 0, None))
    # Where the ray only grazes the sphere, a fraction of a voxel decides over many mm of chord.
    sure = np.abs(apart - RADIUS_MM) > 2 * SPACING_MM
    assert sure.sum() > 15 and (chord[sure] == 0).any()
    np.testing.assert_allclose(100 * got["top_level"][sure], chord[sure], atol=LENGTH_MM)
    assert np.all(got["lower_levels"] == 0)
    np.testing.assert_allclose(got["mean_level"][sure], chord[sure] > 0, atol=1e-6)


def test_depths_in_a_box_of_water(volumes) -> None:
    axes = beam_axes(0.0)  # the source at -y
    got = _named(project_rays(volumes, axes, (0.0, 0.0, 0.0), sad_mm=SAD_MM, row_mm=ROWS, column_mm=COLUMNS))
    source, ray = _rays(axes)
    to_surface = (-HALF_MM - source[1]) / ray[..., 1]
    through = (HALF_MM - source[1]) / ray[..., 1] - to_surface
    inside = np.abs((source + ray * (to_surface + through)[..., None])[..., [0, 2]]).max(axis=-1) < HALF_MM
    np.testing.assert_allclose(300 * got["total_depth"][inside], through[inside], rtol=0.02)
    along = -(ray @ source)  # to the point nearest to the isocentre
    apart = np.linalg.norm(np.cross(-source, ray), axis=-1)
    hit = apart < RADIUS_MM - 2 * SPACING_MM
    entry = along - np.sqrt(np.clip(RADIUS_MM**2 - apart**2, 0, None)) - to_surface
    np.testing.assert_allclose(100 * got["entry_depth"][hit], entry[hit], atol=LENGTH_MM)
    np.testing.assert_allclose(100 * got["middle_depth"][hit], (along - to_surface)[hit], atol=LENGTH_MM)


def test_organs_lie_before_from_one_side_and_behind_from_the_other(volumes) -> None:
    row, column = np.array([0.0]), np.array([0.0])
    seen = {
        gantry: _named(
            project_rays(
                volumes, beam_axes(gantry), (0.0, 0.0, 0.0), sad_mm=SAD_MM, row_mm=row, column_mm=column
            )[:, 0, 0]
        )
        for gantry in (0.0, 180.0)
    }
    # The cord's slab lies 70 to 90 mm from the middle of the target: less attenuated on the way in.
    toward, away = (
        100 * (np.exp(ATTENUATION_PER_MM * sign * 90) - np.exp(ATTENUATION_PER_MM * sign * 70))
        / (100 * ATTENUATION_PER_MM * sign) * 0.8
        for sign in (1, -1)
    )  # fmt: skip
    assert 100 * seen[0.0]["serial_before"] == pytest.approx(toward, rel=0.1)
    assert 100 * seen[180.0]["serial_behind"] == pytest.approx(away, rel=0.1)
    assert seen[0.0]["serial_behind"] == seen[180.0]["serial_before"] == 0
    assert seen[0.0]["parallel_behind"] > 0 == seen[0.0]["parallel_before"]
    assert seen[0.0]["overlap"] == 0
