"""Whatever the shape and the grids, resampling keeps volumes and integral doses."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vmat_diffusion.case import Dose
from vmat_diffusion.dataset.prepare import mask_onto
from vmat_diffusion.geometry import Grid, Point, average_onto

_SPACING = st.tuples(*(st.floats(0.7, 5.0) for _ in range(3)))
_OFFSET = st.tuples(*(st.floats(-3.0, 3.0) for _ in range(3)))


def _around(grid: Grid, spacing: Point, offset: Point) -> Grid:
    """A grid of another spacing that reaches at least a voxel beyond the first one everywhere."""
    low, high = grid.bounds_mm
    shape = tuple(int((b - a + 8) / s) + 3 for a, b, s in zip(low, high, spacing, strict=True))[::-1]
    return Grid(
        shape, spacing, tuple(a - 4 + 0.5 * s + o for a, s, o in zip(low, spacing, offset, strict=True))
    )  # type: ignore[arg-type]


@given(st.integers(0, 2**32 - 1), _SPACING, _SPACING, _OFFSET)
def test_masks_keep_their_volume(seed: int, source: Point, target: Point, offset: Point) -> None:
    grid = Grid((6, 9, 8), source, (0.0, 0.0, 0.0))
    mask = np.random.default_rng(seed).random(grid.shape) < 0.4
    other = _around(grid, target, offset)
    volume = mask_onto(mask, grid, other).sum() * other.voxel_cc
    assert (
        abs(volume - mask.sum() * grid.voxel_cc) <= 0.51 * other.voxel_cc + 1e-3 * mask.sum() * grid.voxel_cc
    )


@given(st.integers(0, 2**32 - 1), _SPACING, _SPACING, _OFFSET)
def test_averages_keep_the_integral(seed: int, source: Point, target: Point, offset: Point) -> None:
    grid = Grid((5, 7, 6), source, (0.0, 0.0, 0.0))
    values = np.random.default_rng(seed).random(grid.shape).astype(np.float32)
    other = _around(grid, target, offset)
    total = average_onto(values, grid, other).sum(dtype=np.float64) * other.voxel_cc
    np.testing.assert_allclose(total, values.sum(dtype=np.float64) * grid.voxel_cc, rtol=1e-4)


@given(st.integers(0, 2**32 - 1), _SPACING, _OFFSET)
def test_a_uniform_dose_stays_uniform(seed: int, target: Point, offset: Point) -> None:
    grid = Grid((12, 12, 12), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0))
    gy = np.random.default_rng(seed).uniform(1, 80)
    inner = Grid((4, 5, 5), target, tuple(9 + o for o in offset))  # type: ignore[arg-type]
    low, high = inner.bounds_mm
    covered = all(a > -1.5 and b < 34.5 for a, b in zip(low, high, strict=True))
    there = Dose(grid, np.full(grid.shape, gy, np.float32)).on(inner)
    if covered:
        np.testing.assert_allclose(there, gy, rtol=1e-4)
    assert there.max() <= gy * (1 + 1e-5)
