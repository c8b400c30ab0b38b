"""Gamma: answers known on paper, edges of the volume, what is left out, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from vmat_diffusion.case import Dose
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.evaluate.gamma import gamma
from vmat_diffusion.geometry import Grid

GRID = Grid((15, 15, 21), (2.0, 2.5, 3.0), (-20.0, 5.0, 100.0))


def uniform(gy: float, grid: Grid = GRID) -> Dose:
    return Dose(grid, np.full(grid.shape, gy, np.float32))


def ramp(gy_per_mm: float, shift_mm: float = 0.0, grid: Grid = GRID) -> Dose:
    x = grid.axes_mm[0]
    values = 50.0 + gy_per_mm * (x - shift_mm - x.mean())
    return Dose(grid, np.broadcast_to(values, grid.shape).astype(np.float32))


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("percent", [-4.0, -1.5, 0.0, 0.6, 3.0, 4.5])
def test_uniform_scaling_gives_the_dose_ratio(percent: float, local: bool) -> None:
    result = gamma(uniform(60.0), uniform(60.0 * (1 + percent / 100)), local=local)
    np.testing.assert_allclose(result.map, abs(percent) / 3.0, atol=1e-4)
    assert result.pass_percent == (100.0 if abs(percent) <= 3.0 else 0.0)
    assert result.points == np.prod(GRID.shape)


def test_global_and_local_differ_where_the_dose_is_low() -> None:
    values = np.full(GRID.shape, 20.0, np.float32)
    values[0, 0, 0] = 80.0  # the maximum that a global criterion refers to
    off = Dose(GRID, values + 1.2)  # 6 % of 20 Gy, 1.5 % of 80 Gy
    at = (10, 10, 10)
    assert gamma(Dose(GRID, values), off).map[at] == pytest.approx(0.5, abs=1e-4)
    assert gamma(Dose(GRID, values), off, local=True).map[at] == pytest.approx(2.0, abs=1e-4)


@pytest.mark.parametrize("gy_per_mm", [0.02, 0.3, 2.0])
@pytest.mark.parametrize("shift_mm", [-2.0, 0.9, 2.4])
def test_a_shifted_ramp_gives_the_closed_form(gy_per_mm: float, shift_mm: float) -> None:
    """min over r of (r/dta)^2 + (g (r - s)/dd)^2 = (g s)^2 / (dd^2 + (g dta)^2).

    Away from the edge; the nearest point of the lattice is at most 0.15 mm from the best one.
    """
    result = gamma(ramp(gy_per_mm), ramp(gy_per_mm, shift_mm), maximum_gy=100.0, dose_percent=2.0)
    expected = abs(gy_per_mm * shift_mm) / math.hypot(2.0, gy_per_mm * 3.0)
    middle = result.map[3:-3, 3:-3, 4:-4]
    assert middle.min() >= expected - 1e-4
    assert middle.max() <= math.hypot(expected, 0.15 / 3.0, gy_per_mm * 0.15 / 2.0) + 1e-4


def test_a_shift_by_exactly_the_distance_passes_and_more_fails() -> None:
    step = np.zeros(GRID.shape, np.float32)
    step[:, :, 10:] = 50.0
    reference = Dose(GRID, step)

    def moved(mm: float) -> Dose:
        return Dose(Grid(GRID.shape, GRID.spacing_mm, (GRID.origin_mm[0] + mm, *GRID.origin_mm[1:])), step)

    inner = np.zeros(GRID.shape, bool)
    inner[:, :, 4:-4] = True
    assert gamma(reference, moved(2.9), mask=inner, threshold_percent=0).pass_percent == 100.0
    assert gamma(reference, moved(3.6), mask=inner, threshold_percent=0, dose_percent=1).pass_percent < 100.0


def test_the_edge_voxels_are_compared_like_all_others() -> None:
    result = gamma(ramp(0.3), ramp(0.3))
    assert result.points == np.prod(GRID.shape) and result.outside == 0
    np.testing.assert_allclose(result.map, 0.0, atol=1e-5)


def test_points_without_evaluated_dose_within_reach_are_counted_apart() -> None:
    half = Grid((15, 15, 11), GRID.spacing_mm, GRID.origin_mm)
    result = gamma(uniform(50.0), uniform(50.0, half))
    np.testing.assert_allclose(result.map[:, :, :11], 0.0, atol=1e-5)
    # The next planes are 2 and 4 mm beyond the last known dose; from 6 mm on they are out of reach.
    for plane, mm in ((11, 2.1), (12, 4.2)):
        np.testing.assert_allclose(result.map[:, :, plane], mm / 3.0, atol=1e-5)
    assert np.isnan(result.map[:, :, 13:]).all()
    assert result.outside == 15 * 15 * 8 and result.points == 15 * 15 * 13
    assert result.pass_percent == pytest.approx(100 * 12 / 13)


def test_doses_far_apart_are_refused() -> None:
    away = Grid(GRID.shape, GRID.spacing_mm, (500.0, 500.0, 500.0))
    with pytest.raises(CaseError, match="nowhere near"):
        gamma(uniform(50.0), uniform(50.0, away))


def test_grids_may_differ() -> None:
    fine = Grid((60, 40, 44), (1.0, 1.1, 1.2), (-21.0, 4.0, 99.0))
    middle = np.broadcast_to(50.0 + 0.4 * (fine.axes_mm[0] - GRID.axes_mm[0].mean()), fine.shape)
    result = gamma(ramp(0.4), Dose(fine, middle.astype(np.float32)))
    np.testing.assert_allclose(result.map, 0.0, atol=1e-3)
    assert result.outside == 0


def test_single_slice_doses_are_compared_in_their_plane() -> None:
    plane = Grid((1, 15, 21), (2.0, 2.5, 3.0), (-20.0, 5.0, 100.0))
    result = gamma(uniform(60.0, plane), uniform(60.9, plane))
    np.testing.assert_allclose(result.map, 0.5, atol=1e-4)


def test_a_film_in_a_volume_and_planes_that_are_not_the_same() -> None:
    plane = Grid((1, 15, 21), (2.0, 2.5, 3.0), (-20.0, 5.0, 121.0))
    assert gamma(uniform(60.0, plane), uniform(60.9)).map == pytest.approx(0.5, abs=1e-4)
    with pytest.raises(CaseError, match="give the plane as the reference"):
        gamma(uniform(60.0), uniform(60.0, plane))
    coronal = Grid((15, 1, 21), (2.0, 2.5, 3.0), (-20.0, 5.0, 100.0))
    with pytest.raises(CaseError, match="the reference plane is axial, the evaluated one coronal"):
        gamma(uniform(60.0, plane), uniform(60.0, coronal))
    for mm, same in ((0.4, True), (1.6, False)):
        other = Grid(plane.shape, plane.spacing_mm, (-20.0, 5.0, 121.0 + mm))
        if same:
            assert gamma(uniform(60.0, plane), uniform(60.9, other)).pass_percent == 100.0
        else:
            with pytest.raises(CaseError, match=r"planes lie 1\.60 mm apart along z"):
                gamma(uniform(60.0, plane), uniform(60.9, other))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_ramp_across_a_plane_gives_the_closed_form_in_two_dimensions(axis: int) -> None:
    """Dose rises along one direction of the plane; the evaluated one is moved by 0.7 mm."""
    shape = tuple(1 if a == axis else 41 for a in range(3))
    grid = Grid(shape, (1.0, 1.0, 1.0), (-20.0, -20.0, -20.0))
    along = (axis + 1) % 3
    position = np.arange(-20.0, 21.0).reshape([-1 if a == along else 1 for a in range(3)])
    moved = [
        Dose(grid, np.broadcast_to(50 + 1.5 * (position - s), shape).astype(np.float32)) for s in (0, 0.7)
    ]
    result = gamma(*moved, dose_percent=1, distance_mm=1, maximum_gy=100.0)
    inner = tuple(slice(None) if a == axis else slice(5, -5) for a in range(3))
    assert result.map[inner] == pytest.approx(1.5 * 0.7 / np.hypot(1.0, 1.5), abs=0.02)


def test_threshold_and_mask_leave_points_out() -> None:
    values = np.full(GRID.shape, 5.0, np.float32)
    values[7] = 100.0
    mask = np.zeros(GRID.shape, bool)
    mask[:, :, 0] = True
    dose = Dose(GRID, values)
    assert gamma(dose, dose).points == 15 * 21
    assert gamma(dose, dose, mask=mask).points == 15
    assert gamma(dose, dose, threshold_percent=5.0).points == values.size
    result = gamma(dose, dose, mask=mask)
    assert np.isnan(result.map[0]).all() and np.count_nonzero(~np.isnan(result.map)) == 15


def test_maximum_gy_sets_criterion_and_threshold() -> None:
    result = gamma(uniform(60.0), uniform(61.0), maximum_gy=100.0)
    np.testing.assert_allclose(result.map, 1.0 / 3.0, atol=1e-4)
    with pytest.raises(CaseError, match="10 % of 1000 Gy"):
        gamma(uniform(60.0), uniform(60.0), maximum_gy=1000.0)


def test_sigmas_widen_the_dose_criterion_in_quadrature() -> None:
    reference = replace(uniform(60.0), std_gy=np.full(GRID.shape, 1.2, np.float32))
    evaluated = replace(uniform(63.0), std_gy=np.full(GRID.shape, 0.9, np.float32))
    criterion = math.sqrt(1.8**2 + 1.2**2 + 0.9**2)
    np.testing.assert_allclose(gamma(reference, evaluated, sigmas=1.0).map, 3.0 / criterion, atol=1e-4)
    np.testing.assert_allclose(gamma(reference, evaluated).map, 3.0 / 1.8, atol=1e-4)


def test_max_gamma_caps_the_map_and_not_the_pass_rate() -> None:
    values = np.full(GRID.shape, 60.0, np.float32)
    values[:, :, :10] = 72.0
    narrow, wide = (gamma(uniform(60.0), Dose(GRID, values), max_gamma=most) for most in (1.1, 3.0))
    assert narrow.map.max() == np.float32(1.1) and wide.map.max() == 3.0
    assert narrow.pass_percent == wide.pass_percent == pytest.approx(100 * 11 / 21, abs=5)


def test_summary_states_every_setting() -> None:
    summary = gamma(uniform(60.0), uniform(61.0), dose_percent=2.0, distance_mm=1.5, local=True).summary()
    assert summary["dose_percent"] == 2.0 and summary["distance_mm"] == 1.5 and summary["local"] is True
    assert summary["threshold_percent"] == 10.0 and summary["max_gamma"] == 2.0
    assert summary["maximum_gy"] == 60.0 and summary["points"] == np.prod(GRID.shape)
    assert summary["interpolation_points_per_distance"] == 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"dose_percent": 0.0},
        {"distance_mm": -1.0},
        {"threshold_percent": 120.0},
        {"max_gamma": 0.5},
        {"max_gamma": math.nan},
        {"sigmas": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="is outside"):
        gamma(uniform(60.0), uniform(60.0), **wrong)


def test_an_empty_reference_and_a_wrong_mask_are_refused() -> None:
    with pytest.raises(CaseError, match="positive dose"):
        gamma(uniform(0.0), uniform(60.0))
    with pytest.raises(CaseError, match="mask of shape"):
        gamma(uniform(60.0), uniform(60.0), mask=np.ones((2, 2, 2), bool))
