from __future__ import annotations

import numpy as np
import pytest

from vmat_diffusion.distance import FAR_MM, signed_distance_mm
from vmat_diffusion.geometry import Grid


def _radius(grid: Grid) -> np.ndarray:
    x, y, z = grid.axes_mm
    return np.sqrt(x[None, None] ** 2 + y[None, :, None] ** 2 + z[:, None, None] ** 2)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.0, 3.0), (2.0, 2.0, 2.5)])
def test_a_sphere_has_its_analytic_distances(spacing: tuple[float, float, float]) -> None:
    """To within a voxel's diagonal: the surface of a mask is known no better than that."""
    shape = tuple(int(90 / s) | 1 for s in spacing[::-1])
    origin = tuple(-(n - 1) / 2 * s for n, s in zip(shape[::-1], spacing, strict=True))
    radius = _radius(Grid(shape, spacing, origin))  # type: ignore[arg-type]
    mm = signed_distance_mm(radius <= 20, spacing)
    error = mm - (radius - 20)
    assert np.abs(error).max() <= np.linalg.norm(spacing)
    assert abs(error.mean()) <= 0.5 * max(spacing)
    assert mm[tuple(n // 2 for n in shape)] == pytest.approx(-20, abs=max(spacing))
    assert np.all((mm < 0) == (radius <= 20))


def test_far_away_is_cut_off_and_costs_nothing() -> None:
    mask = np.zeros((5, 300, 300), bool)
    mask[2, 10, 10] = True
    mm = signed_distance_mm(mask, (1.0, 1.0, 3.0), limit_mm=50.0)
    assert mm.max() == 50.0 and mm[2, 290, 290] == 50.0
    assert mm[2, 10, 40] == pytest.approx(29.5)


def test_a_volume_that_is_all_inside_has_no_surface() -> None:
    mm = signed_distance_mm(np.ones((4, 4, 4), bool), (1.0, 1.0, 1.0))
    assert np.all(mm < -100) and np.all(mm >= -FAR_MM)
