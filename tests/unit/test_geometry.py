"""Grids, resampling, and IEC 61217 angles against positions worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmat_diffusion.errors import CaseError, PlanError
from vmat_diffusion.geometry import (
    PATIENT_POSITIONS,
    Grid,
    average_onto,
    beam_axes,
    bounding_box,
    mask_bounds_mm,
    project,
    resample,
    resample_dose,
    sample,
    sample_dose,
    source_position_mm,
    subgrid,
)

GRID = Grid((4, 5, 6), (2.0, 3.0, 4.0), (-10.0, 5.0, 100.0))


# --- grids


def test_axes_bounds_and_volume_of_a_grid() -> None:
    x, y, z = GRID.axes_mm
    assert x.tolist() == [-10, -8, -6, -4, -2, 0]
    assert y.tolist() == [5, 8, 11, 14, 17]
    assert z.tolist() == [100, 104, 108, 112]
    assert GRID.bounds_mm == ((-11.0, 3.5, 98.0), (1.0, 18.5, 114.0))
    assert GRID.voxel_cc == pytest.approx(0.024)


def test_flat_index_to_point_and_back() -> None:
    flat = np.arange(4 * 5 * 6)
    points = GRID.points_mm(flat)
    assert points[1].tolist() == [-8, 5, 100]  # x runs fastest
    assert points[6].tolist() == [-10, 8, 100]
    assert points[30].tolist() == [-10, 5, 104]
    index = GRID.index(points)
    assert np.array_equal(np.ravel_multi_index(tuple(index.astype(int).T), GRID.shape), flat)


@pytest.mark.parametrize(
    ("shape", "spacing", "origin", "named"),
    [
        ((0, 5, 5), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), "shape"),
        ((5, 5, 5), (1.0, -1.0, 1.0), (0.0, 0.0, 0.0), "positive"),
        ((5, 5, 5), (1.0, 0.0, 1.0), (0.0, 0.0, 0.0), "positive"),
        ((5, 5, 5), (1.0, 1.0, 1.0), (0.0, float("nan"), 0.0), "finite"),
        ((5, 5, 5), (1.0, float("inf"), 1.0), (0.0, 0.0, 0.0), "finite"),
    ],
)
def test_impossible_grids_are_refused(shape: tuple, spacing: tuple, origin: tuple, named: str) -> None:
    with pytest.raises(CaseError, match=named):
        Grid(shape, spacing, origin)


def test_grids_match_within_a_tolerance_over_the_whole_extent() -> None:
    near = Grid(GRID.shape, (2.0, 3.0, 4.0001), GRID.origin_mm)
    assert GRID.matches(near)
    assert not GRID.matches(Grid(GRID.shape, (2.0, 3.0, 4.001), GRID.origin_mm))
    assert not GRID.matches(Grid(GRID.shape, GRID.spacing_mm, (-10.0, 5.0, 100.01)))
    assert not GRID.matches(Grid((4, 5, 7), GRID.spacing_mm, GRID.origin_mm))


def test_a_grid_around_a_box_holds_the_box_and_stays_inside() -> None:
    outer = Grid((50, 60, 70), (1.0, 1.0, 2.0), (-30.0, -20.0, 7.0))
    low, high = (-11.3, 2.2, 20.0), (13.9, 17.0, 61.0)
    inner = outer.around(low, high, (3.0, 3.0, 3.0))
    a, b = inner.bounds_mm
    assert np.all(np.array(a) <= low) and np.all(np.array(b) >= high)
    assert np.all(np.array(a) > np.array(low) - 3) and np.all(np.array(b) < np.array(high) + 3)
    whole = outer.around((-1e3,) * 3, (1e3,) * 3, (3.0, 3.0, 3.0))
    assert whole.bounds_mm[0] == outer.bounds_mm[0]
    assert np.all(np.array(whole.bounds_mm[1]) - outer.bounds_mm[1] < 3)


# --- resampling


def linear(grid: Grid) -> np.ndarray:
    x, y, z = grid.axes_mm
    return 2 * x[None, None, :] - y[None, :, None] + 0.5 * z[:, None, None] + 3


def test_resampling_reproduces_a_linear_field_and_fills_outside() -> None:
    source = Grid((20, 30, 40), (2.0, 2.5, 3.0), (-40.0, -30.0, -25.0))
    target = Grid((9, 11, 13), (3.1, 3.3, 4.1), (-15.0, -10.0, -12.0))
    assert np.allclose(resample(linear(source), source, target), linear(target), atol=1e-4)
    shifted = Grid(target.shape, target.spacing_mm, (-15.0, -10.0, -400.0))
    assert np.all(resample(linear(source), source, shifted, fill=-7.0) == -7.0)


def test_border_value_reaches_half_a_voxel_and_no_further() -> None:
    source = Grid((1, 1, 3), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    values = np.array([[[10.0, 20.0, 30.0]]])
    points = np.array([[-0.9, 0, 0], [-1.1, 0, 0], [4.9, 0.9, -0.9], [5.1, 0, 0], [1.0, 0, 0]])
    assert sample(values, source, points, fill=-1.0).tolist() == [10, -1, 30, -1, 15]
    target = Grid((1, 1, 5), (1.0, 2.0, 2.0), (-1.5, 0.0, 0.0))
    assert resample(values, source, target, fill=-1.0).ravel().tolist() == [-1, 10, 12.5, 17.5, 22.5]


def test_averaging_keeps_the_integral_and_counts_the_outside_as_fill() -> None:
    rng = np.random.default_rng(0)
    fine = Grid((12, 20, 16), (1.0, 1.3, 2.0), (0.5, 0.65, 1.0))
    values = rng.random(fine.shape)
    coarse = Grid((9, 8, 7), (3.0, 4.0, 5.0), (0.0, 1.0, -7.0))  # reaches beyond on all sides
    mean = average_onto(values, fine, coarse)
    assert mean.sum() * coarse.voxel_cc == pytest.approx(values.sum() * fine.voxel_cc, rel=1e-5)
    assert np.allclose(average_onto(np.ones(fine.shape), fine, coarse, fill=1.0), 1.0, atol=1e-6)


def test_array_that_does_not_fit_its_grid_is_refused() -> None:
    with pytest.raises(CaseError, match="does not fit"):
        resample(np.zeros((4, 5, 5)), GRID, GRID)


# --- IEC 61217, head-first supine: patient's left is +x, posterior +y, head +z


@pytest.mark.parametrize(
    ("gantry_deg", "direction"),
    [(0, (0, -1, 0)), (90, (1, 0, 0)), (180, (0, 1, 0)), (270, (-1, 0, 0))],
)
def test_source_of_a_supine_patient(gantry_deg: float, direction: tuple[float, ...]) -> None:
    """Gantry 0 looks at the front; turning clockwise as seen facing it, 90 is the patient's left."""
    expected = np.array([10.0, 20.0, 30.0]) + 1000 * np.array(direction)
    assert np.allclose(source_position_mm(gantry_deg, (10.0, 20.0, 30.0), 1000.0), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("position", "gantry_0", "gantry_90", "towards_gantry"),
    [
        ("HFS", (0, -1, 0), (1, 0, 0), (0, 0, 1)),  # above is the front, the right-hand side the left
        ("HFP", (0, 1, 0), (-1, 0, 0), (0, 0, 1)),  # turned over: above is the back
        ("FFS", (0, -1, 0), (-1, 0, 0), (0, 0, -1)),  # turned end to end: feet towards the gantry
        ("FFP", (0, 1, 0), (1, 0, 0), (0, 0, -1)),
    ],
)
def test_all_patient_positions(
    position: str, gantry_0: tuple, gantry_90: tuple, towards_gantry: tuple
) -> None:
    assert np.allclose(beam_axes(0, patient_position=position).to_source, gantry_0, atol=1e-12)
    assert np.allclose(beam_axes(90, patient_position=position).to_source, gantry_90, atol=1e-12)
    assert np.allclose(beam_axes(37, patient_position=position).y, towards_gantry, atol=1e-12)


@pytest.mark.parametrize(
    ("angles", "x", "y"),
    [
        # gantry, collimator, couch; where the device's x and y point in the patient
        ((0, 0, 0), (1, 0, 0), (0, 0, 1)),
        ((90, 0, 0), (0, 1, 0), (0, 0, 1)),  # x of the device turns down with the gantry
        ((180, 0, 0), (-1, 0, 0), (0, 0, 1)),
        ((270, 0, 0), (0, -1, 0), (0, 0, 1)),
        ((0, 90, 0), (0, 0, 1), (-1, 0, 0)),  # counter-clockwise as seen from the source
        ((90, 90, 0), (0, 0, 1), (0, -1, 0)),
        (
            (0, 0, 90),
            (0, 0, -1),
            (1, 0, 0),
        ),  # couch counter-clockwise from above: head to the observer's left
        ((0, 0, 270), (0, 0, 1), (-1, 0, 0)),
    ],
)
def test_axes_of_the_collimator(angles: tuple[float, float, float], x: tuple, y: tuple) -> None:
    axes = beam_axes(*angles)
    assert np.allclose(axes.x, x, atol=1e-12)
    assert np.allclose(axes.y, y, atol=1e-12)


def test_couch_at_90_brings_gantry_90_to_the_vertex_or_the_feet() -> None:
    """With the couch at 90 the head lies to the observer's left, the feet towards gantry 90."""
    assert np.allclose(
        source_position_mm(90, (0.0, 0.0, 0.0), 1000.0, couch_deg=90), (0, 0, -1000), atol=1e-9
    )
    assert np.allclose(
        source_position_mm(90, (0.0, 0.0, 0.0), 1000.0, couch_deg=270), (0, 0, 1000), atol=1e-9
    )


@given(st.floats(-720, 720), st.floats(-360, 360), st.floats(-360, 360), st.sampled_from(PATIENT_POSITIONS))
def test_axes_are_a_right_handed_frame(gantry: float, collimator: float, couch: float, position: str) -> None:
    axes = beam_axes(gantry, collimator, couch, position)
    frame = np.stack([axes.x, axes.y, axes.to_source])
    assert np.allclose(frame @ frame.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(frame) == pytest.approx(1.0)


def test_unknown_patient_position_is_refused_by_name() -> None:
    with pytest.raises(PlanError, match="HFDR"):
        beam_axes(0, patient_position="HFDR")


def test_projection_magnifies_with_the_distance_from_the_source() -> None:
    axes = beam_axes(0)
    points = np.array([[10.0, 0.0, 20.0], [10.0, -100.0, 20.0], [10.0, 250.0, 20.0]])
    found = project(points, axes, (0.0, 0.0, 0.0), 1000.0)
    assert np.allclose(found[0], [10, 20, 1000])
    assert np.allclose(found[1], [10 / 0.9, 20 / 0.9, 900])
    assert np.allclose(found[2], [8, 16, 1250])


@given(st.floats(0, 360), st.floats(0, 360), st.floats(0, 360))
def test_points_on_one_ray_project_onto_one_place(gantry: float, collimator: float, couch: float) -> None:
    axes, isocenter = beam_axes(gantry, collimator, couch), (5.0, -7.0, 11.0)
    source = np.asarray(source_position_mm(gantry, isocenter, 1000.0, couch))
    target = np.asarray(isocenter) + 31 * axes.x - 17 * axes.y
    ray = source + np.array([[0.85], [1.0], [1.2]]) * (target - source)
    found = project(ray, axes, isocenter, 1000.0)
    assert np.allclose(found[:, 0], 31) and np.allclose(found[:, 1], -17)
    assert np.allclose(found[:, 2], [850, 1000, 1200])


def test_bounding_box_and_subgrid() -> None:
    grid = Grid((4, 5, 6), (1.0, 2.0, 3.0), (10.0, 20.0, 30.0))
    mask = np.zeros(grid.shape, bool)
    assert bounding_box(mask) is None
    mask[1, 2, 3] = mask[2, 4, 3] = True
    box = bounding_box(mask)
    assert box == (slice(1, 3), slice(2, 5), slice(3, 4))
    assert subgrid(grid, box) == Grid((2, 3, 1), (1.0, 2.0, 3.0), (13.0, 24.0, 33.0))
    assert mask_bounds_mm(mask, grid) == ((12.5, 23.0, 31.5), (13.5, 29.0, 37.5))
    assert mask_bounds_mm(mask, grid) == subgrid(grid, box).bounds_mm
    with pytest.raises(CaseError, match="has no voxels; contour it"):
        mask_bounds_mm(np.zeros(grid.shape, bool), grid)


def test_dose_at_points_is_what_resampling_reads_there() -> None:
    """At the voxels of a finer grid that reaches beyond the dose, and on a grid of a single slice."""
    rng = np.random.default_rng(3)
    for shape in ((9, 11, 13), (1, 6, 5), (2, 3, 4)):
        source = Grid(shape, (3.0, 2.5, 4.0), (-7.0, 3.0, 11.0))
        gy = rng.uniform(0, 70, shape).astype(np.float32)
        target = Grid((17, 19, 23), (2.0, 1.3, 2.2), (-9.0, 1.0, 9.0))
        points = target.points_mm(np.arange(17 * 19 * 23))
        expected = resample_dose(gy, source, target).ravel()
        assert np.allclose(sample_dose(gy, source, points), expected, atol=1e-3)
