"""What holds for every pair of doses: bounds, monotony, translation, and the search's early exit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial import cKDTree

from vmat_diffusion.case import Dose
from vmat_diffusion.evaluate.gamma import _shells, _spikes, gamma
from vmat_diffusion.geometry import Grid, sample

few = settings(max_examples=15)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Dose, Dose]:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = tuple(draw(st.integers(5, 9)) for _ in range(3))
    spacing = tuple(draw(st.floats(1.0, 4.0)) for _ in range(3))
    grid = Grid(shape, spacing, (3.0, -7.0, 11.0))
    first = 60 * ndimage.gaussian_filter(random.random(shape), draw(st.floats(0.3, 1.5)))
    second = first + random.normal(0, draw(st.floats(0.0, 3.0)), shape)
    return Dose(grid, first.astype(np.float32)), Dose(grid, np.maximum(second, 0).astype(np.float32))


@few
@given(pairs())
def test_gamma_is_at_most_the_dose_difference_at_the_point(pair: tuple[Dose, Dose]) -> None:
    reference, evaluated = pair
    result = gamma(reference, evaluated)
    direct = np.abs(evaluated.gy - reference.gy) / (0.03 * reference.gy.max())
    scored = ~np.isnan(result.map)
    assert np.all(result.map[scored] <= np.minimum(direct[scored], 2.0) + 1e-4)
    assert np.all(result.map[scored] >= 0)


@few
@given(pairs())
def test_wider_criteria_never_fail_more(pair: tuple[Dose, Dose]) -> None:
    strict = gamma(*pair, dose_percent=2.0, distance_mm=2.0)
    wide = gamma(*pair, dose_percent=4.0, distance_mm=2.0)
    assert wide.pass_percent >= strict.pass_percent
    scored = ~np.isnan(strict.map)
    assert np.all(wide.map[scored] <= strict.map[scored] + 1e-5)


@few
@given(pairs(), st.floats(-50, 50), st.floats(0.2, 3.0))
def test_gamma_depends_on_neither_origin_nor_unit(pair: tuple[Dose, Dose], by: float, scale: float) -> None:
    reference, evaluated = pair

    def changed(dose: Dose) -> Dose:
        grid = Grid(dose.grid.shape, dose.grid.spacing_mm, tuple(o + by for o in dose.grid.origin_mm))
        return replace(dose, grid=grid, gy=(dose.gy * scale).astype(np.float32))

    first, second = gamma(reference, evaluated), gamma(changed(reference), changed(evaluated))
    both = ~np.isnan(first.map) & ~np.isnan(second.map)  # rounding may move a voxel over the threshold
    np.testing.assert_allclose(first.map[both], second.map[both], atol=2e-3)


@few
@given(pairs())
def test_the_early_exit_changes_nothing(pair: tuple[Dose, Dose]) -> None:
    """All positions tried, point by point, with another interpolation."""
    reference, evaluated = pair
    result = gamma(reference, evaluated, distance_mm=4.0)
    offsets, square = _shells(4.0, 2.0)
    low, high = reference.grid.bounds_mm
    half = np.array(reference.grid.spacing_mm) / 2
    # There the lines between voxels are searched as well.
    steep = _spikes(evaluated.gy, np.array(evaluated.grid.spacing_mm)[::-1], 0.4, reference.gy.max()).any()
    scored = np.flatnonzero(~np.isnan(result.map))
    for flat in scored[:: max(len(scored) // 5, 1)]:
        at = reference.grid.points_mm(np.array([flat]))[0] + offsets[:, ::-1]
        known = np.all((at >= np.array(low) + half - 1e-6) & (at <= np.array(high) - half + 1e-6), axis=1)
        gy = sample(evaluated.gy, evaluated.grid, at[known])
        difference = (gy - reference.gy.ravel()[flat]) / (0.03 * float(reference.gy.max()))
        expected = min(float(np.sqrt((square[known] + difference**2).min())), 2.0)
        found = result.map.ravel()[flat]
        assert found <= expected + 1e-4
        if not steep:
            assert abs(found - expected) < 1e-4


def test_neighbouring_positions_are_never_farther_apart_than_a_tenth() -> None:
    """Every point within reach has a searched position nearer than a tenth of the criterion."""
    offsets, square = _shells(3.0, 2.0)
    np.testing.assert_allclose((offsets**2).sum(axis=1), 9.0 * square, atol=1e-9)
    assert np.all(np.diff(square) >= 0)
    random = np.random.default_rng(1)
    points = random.uniform(-5.7, 5.7, (2000, 3))
    points = points[(points**2).sum(axis=1) < 5.7**2]
    assert cKDTree(offsets).query(points)[0].max() < 0.3


@few
@given(st.integers(0, 2**32 - 1), st.permutations([0, 1, 2]), st.sampled_from([0.5, 1.0]))
def test_a_single_hot_voxel_is_found_along_every_axis(seed: int, order: list[int], fine: float) -> None:
    """A reference of 1 Gy against one voxel of 1 Gy: what lies within the distance of it passes.

    Gamma is the distance over its criterion, whichever way the axes go; swapping them changes nothing.
    """
    random = np.random.default_rng(seed)
    mm = float(random.choice([1.0, 1.5, 2.0, 2.5]))
    counts = tuple(int(n) for n in random.integers(9, 15, 3))
    reference = Grid((11, 11, 11), (1.0, 1.0, 1.0), (-5.0, -5.0, -5.0))
    grid = Grid(counts, (fine,) * 3, tuple(-fine * (n // 2) for n in counts[::-1]))
    gy = np.zeros(counts, np.float32)
    gy[tuple(n // 2 for n in counts)] = 1.0
    one = Dose(reference, np.ones(reference.shape, np.float32))
    found = gamma(one, Dose(grid, gy), distance_mm=mm, threshold_percent=0).map
    square = sum(np.meshgrid(*[np.arange(-5.0, 6.0) ** 2] * 3, indexing="ij"))
    # Within the evaluated grid: beyond it nothing is compared.
    inside = np.ix_(*[np.abs(np.arange(-5, 6)) <= fine * (n // 2) - fine for n in counts])
    np.testing.assert_array_equal(found[inside] <= 1.0, square[inside] <= mm * mm)
    turned = Grid(
        tuple(counts[a] for a in order), (fine,) * 3, tuple(grid.origin_mm[::-1][a] for a in order)[::-1]
    )
    other = gamma(one, Dose(turned, gy.transpose(order)), distance_mm=mm, threshold_percent=0).map
    passed = np.nan_to_num(found, nan=9.0) <= 1.0
    np.testing.assert_array_equal(np.nan_to_num(other, nan=9.0) <= 1.0, passed.transpose(order))


@few
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2]), st.booleans())
def test_a_plane_gives_the_same_gamma_whichever_way_it_lies(seed: int, axis: int, local: bool) -> None:
    random = np.random.default_rng(seed)
    first = 60 * ndimage.gaussian_filter(random.random((16, 14)), 1.5)
    second = first + random.normal(0, 1.0, first.shape)

    def lying(values: np.ndarray, across: int) -> Dose:
        gy = np.expand_dims(values.astype(np.float32), across)
        return Dose(Grid(gy.shape, (2.0, 2.0, 2.0), (1.0, -3.0, 8.0)), gy)

    axial = gamma(lying(first, 0), lying(second, 0), local=local, distance_mm=2.5)
    turned = gamma(lying(first, axis), lying(second, axis), local=local, distance_mm=2.5)
    np.testing.assert_allclose(np.squeeze(turned.map), np.squeeze(axial.map), atol=1e-5)
    assert turned.outside == 0
