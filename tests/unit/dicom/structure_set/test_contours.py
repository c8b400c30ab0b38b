from __future__ import annotations

import numpy as np
import pytest

from vmat_diffusion.dicom.structure_set.contours import contours_from_mask, fill_between, fill_even_odd
from vmat_diffusion.geometry import Grid


def box(i0: float, j0: float, i1: float, j1: float) -> np.ndarray:
    return np.array([(i0, j0), (i1, j0), (i1, j1), (i0, j1)], float)


def fill(*outlines: np.ndarray, size: int = 12) -> np.ndarray:
    return fill_even_odd([(0, outline) for outline in outlines], (1, size, size))[0]


def test_pixels_are_inside_by_their_centres() -> None:
    mask = fill(box(1.5, 2.5, 4.4, 3.6))
    assert sorted(zip(*np.nonzero(mask), strict=True)) == [(3, 2), (3, 3), (3, 4)]


def test_contour_inside_another_is_a_hole_and_a_third_an_island() -> None:
    mask = fill(box(0.5, 0.5, 10.5, 10.5), box(2.5, 2.5, 8.5, 8.5), box(4.5, 4.5, 6.5, 6.5))
    assert mask.sum() == 100 - 36 + 4
    assert not mask[3, 3] and mask[5, 5] and mask[1, 1]


def test_keyhole_contour_equals_outer_and_inner_contour() -> None:
    outer, inner = box(0.5, 0.5, 10.5, 10.5), box(3.5, 3.5, 7.5, 7.5)
    # From the outer corner along a channel of no width to the inner contour, round it and back.
    keyhole = np.concatenate([outer, outer[:1], inner[:1], inner[:0:-1], inner[:1], outer[:1]])
    np.testing.assert_array_equal(fill(keyhole), fill(outer, inner))


def test_contours_side_by_side_share_no_pixel_and_leave_none_out() -> None:
    left, right = fill(box(0.2, 0.2, 5.3, 9.7)), fill(box(5.3, 0.2, 9.7, 9.7))
    assert not (left & right).any()
    np.testing.assert_array_equal(left | right, fill(box(0.2, 0.2, 9.7, 9.7)))


def test_direction_and_first_point_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    outline = rng.uniform(0, 11, (9, 2))
    np.testing.assert_array_equal(fill(outline), fill(outline[::-1]))
    np.testing.assert_array_equal(fill(outline), fill(np.roll(outline, 4, axis=0)))


def test_border_pixel_outlines_give_their_mask_back() -> None:
    """Outlines that run through the centres of border pixels, lines and single points included."""
    mask = np.zeros((12, 12), bool)
    mask[2:6, 3:9] = True
    mask[8, 2:5] = True
    mask[10, 10] = True
    outlines = box(3, 2, 8, 5), np.array([(2, 8), (4, 8)], float), np.array([(10, 10)], float)
    np.testing.assert_array_equal(fill(*outlines), mask)
    # The same with the rounding of decimal text in the file.
    np.testing.assert_array_equal(fill(*(o + 4e-6 for o in outlines)), mask)


def test_contours_may_reach_beyond_the_image() -> None:
    assert fill(box(-50.5, -50.5, 50.5, 50.5)).all()
    assert fill(box(-9.5, 3.5, 2.5, 4.5)).sum() == 3
    assert not fill(box(20.5, 20.5, 30.5, 30.5)).any()
    assert not fill(box(-30.5, 2.5, -20.5, 5.5)).any()


def test_nothing_drawn_is_nothing_filled() -> None:
    assert not fill_even_odd([], (2, 3, 4)).any()


GRID = Grid((4, 11, 9), (1.5, 2.0, 3.0), (-6.0, 4.0, -9.0))


def refilled(mask: np.ndarray, grid: Grid) -> np.ndarray:
    outlines = []
    for points in contours_from_mask(mask, grid):
        assert np.ptp(points[:, 2]) == 0
        index = grid.index(points)
        outlines.append((round(index[0, 0]), index[:, :0:-1]))
    return fill_even_odd(outlines, grid.shape)


@pytest.mark.parametrize("seed", range(5))
def test_mask_to_contours_and_back_is_the_same_mask(seed: int) -> None:
    """Noise has holes, islands, diagonal neighbours and pixels at every border."""
    mask = np.random.default_rng(seed).random(GRID.shape) < 0.5
    np.testing.assert_array_equal(refilled(mask, GRID), mask)


def test_contours_of_a_full_and_an_empty_mask() -> None:
    full = np.ones(GRID.shape, bool)
    np.testing.assert_array_equal(refilled(full, GRID), full)
    assert contours_from_mask(~full, GRID) == []


def test_contour_lies_half_way_between_voxels() -> None:
    mask = np.zeros(GRID.shape, bool)
    mask[1, 4:7, 3:6] = True
    (points,) = contours_from_mask(mask, GRID)
    x, y, z = GRID.axes_mm
    assert points[:, 0].min() == pytest.approx(x[3] - 0.75) and points[:, 0].max() == pytest.approx(
        x[5] + 0.75
    )
    assert points[:, 1].min() == pytest.approx(y[4] - 1.0) and points[:, 1].max() == pytest.approx(y[6] + 1.0)
    assert set(points[:, 2]) == {z[1]}


def disk(radius: float, size: int = 41) -> np.ndarray:
    j, i = np.mgrid[:size, :size] - size // 2
    return np.hypot(i, j) <= radius


def test_shape_interpolation_of_a_cone_gives_the_disk_between() -> None:
    mask = np.zeros((5, 41, 41), bool)
    mask[0], mask[4] = disk(16), disk(8)
    filled, count = fill_between(mask, [0, 4], reach=3)
    assert count == 3
    for k, radius in ((1, 14), (2, 12), (3, 10)):
        # A distance map of pixels is right to within half a pixel.
        assert np.all(filled[k] >= disk(radius - 1)) and np.all(filled[k] <= disk(radius + 1))


def test_gaps_are_left_open_where_too_wide_or_where_the_pieces_do_not_overlap() -> None:
    mask = np.zeros((5, 41, 41), bool)
    mask[0], mask[4] = disk(10), disk(10)
    assert fill_between(mask, [0, 4], reach=2)[1] == 0
    mask[4] = np.roll(disk(3), 15, axis=1)
    mask[0] = disk(3)
    assert fill_between(mask, [0, 4], reach=3)[1] == 0
