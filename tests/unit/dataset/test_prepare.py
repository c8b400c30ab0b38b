from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_case import small_case

from vmat_diffusion.case import Case, Dose, Structure
from vmat_diffusion.dataset.prepare import (
    AIR_HU,
    Extent,
    common_shape,
    cut_to,
    extent_of,
    mask_onto,
    on_spacing,
    onto,
    restore_dose,
    target_middle_mm,
)
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid, Point, resample


def smooth_dose(grid: Grid, width_mm: float = 25.0) -> Dose:
    """A round dose of 60 Gy that falls over centimetres, as planned doses do."""
    x, y, z = grid.axes_mm
    r = np.sqrt(x[None, None] ** 2 + y[None, :, None] ** 2 + z[:, None, None] ** 2)
    return Dose(grid, (60 / (1 + np.exp((r - width_mm) / 6))).astype(np.float32))


def dosed() -> Case:
    case = small_case()
    return replace(case, reference_dose=smooth_dose(case.grid))


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 3.0), (2.5, 2.5, 2.5), (7.0, 6.0, 8.0)])
def test_structures_keep_their_volume_and_mean_dose(spacing: Point) -> None:
    case = dosed()
    training = on_spacing(case, spacing)
    dose, true = training.case.reference_dose, smooth_dose(training.case.grid)
    assert dose is not None
    for name, structure in case.structures.items():
        new = training.case.structures[name]
        volume = structure.voxels * case.grid.voxel_cc
        assert new.voxels * training.case.grid.voxel_cc == pytest.approx(
            volume, abs=0.51 * training.case.grid.voxel_cc
        )
        if name != "BODY" and max(spacing) < 5:
            assert dose.gy[new.mask].mean() == pytest.approx(true.gy[new.mask].mean(), rel=0.005)


def test_the_middle_of_the_targets_is_the_middle_of_the_cut_volume() -> None:
    training, _ = cut_to(on_spacing(dosed(), (2.0, 2.0, 3.0)), (32, 48, 64))
    low, high = training.case.grid.bounds_mm
    for a, b, m in zip(low, high, target_middle_mm(training.case), strict=True):
        assert (a + b) / 2 == pytest.approx(m, abs=1.5)  # half a voxel


def test_padding_is_air_outside_body_and_recorded() -> None:
    whole = on_spacing(dosed(), (2.0, 2.0, 3.0))
    training, lost = cut_to(whole, (64, 80, 80))
    (z0, z1), (y0, y1), (x0, x1) = training.padding
    assert min(z0, z1, y0, y1, x0, x1) > 0 and not lost
    inner = training.case.hu[z0:-z1, y0:-y1, x0:-x1]
    np.testing.assert_array_equal(inner, whole.case.hu)
    assert np.all(training.case.hu[:z0] == AIR_HU) and np.all(training.case.hu[:, :, -x1:] == AIR_HU)
    assert not training.possible_dose[:z0].any()
    assert training.case.reference_dose is not None and not training.case.reference_dose.gy[:, :y0].any()


def test_what_is_cut_is_told_and_targets_never_are() -> None:
    whole = on_spacing(dosed(), (2.0, 2.0, 3.0))
    training, lost = cut_to(whole, (16, 24, 20))
    assert set(lost) == {"Core"} and 0 < lost["Core"] <= 100
    assert training.case.structures["PTV"].voxels == whole.case.structures["PTV"].voxels
    with pytest.raises(CaseError, match=r"PTV would lose .* % of its voxels .*; give a larger --shape"):
        cut_to(whole, (16, 24, 8))


def test_extents_are_about_targets_organs_and_dose() -> None:
    extent = extent_of(on_spacing(replace(small_case(), reference_dose=None), (1.0, 1.0, 3.0)))
    np.testing.assert_allclose(extent.targets_mm, 15.0, atol=1.6)
    # Core: 40 to 55 mm from the left border of the block, the target's middle at 60 - 57.5 mm.
    assert extent.wanted_mm[0] == pytest.approx(40.0, abs=1.6) and extent.wanted_mm[1] == extent.targets_mm[1]
    wide = extent_of(on_spacing(dosed(), (1.0, 1.0, 3.0)))
    assert min(wide.wanted_mm) > 30


def test_the_common_shape_holds_every_target() -> None:
    small, large = (
        Extent((20.0, 20.0, 20.0), (40.0, 40.0, 40.0)),
        Extent((70.0, 20.0, 20.0), (75.0, 90.0, 40.0)),
    )
    shape = common_shape([small] * 99 + [large], (1.0, 1.0, 3.0))
    assert shape == (32, 80, 144)
    assert common_shape([small] * 10 + [large] * 90, (1.0, 1.0, 3.0)) == (32, 192, 160)
    with pytest.raises(CaseError, match=r"see rejected\.csv"):
        common_shape([], (1.0, 1.0, 3.0))


def test_a_dose_there_and_back_is_what_it_was() -> None:
    """Where the dose is spread over 6 mm, 2.5 mm voxels through 1 x 1 x 3 mm and back cost 0.1 Gy."""
    grid = Grid((40, 48, 48), (2.5, 2.5, 2.5), (-58.75, -58.75, -48.75))
    dose = smooth_dose(grid)
    between = Grid((44, 150, 150), (1.0, 1.0, 3.0), (-74.6, -74.6, -64.4))
    back = restore_dose(Dose(between, dose.on(between)), grid)
    error = np.abs(back.gy - dose.gy)
    assert error.mean() < 0.02 and error[dose.gy > 6].mean() < 0.1
    assert restore_dose(dose, grid) is dose


def test_a_peak_between_points_keeps_its_height() -> None:
    grid = Grid((20, 20, 20), (4.0, 4.0, 4.0), (-38.0, -38.0, -38.0))

    def peak(where: Grid) -> Dose:
        x, y, z = where.axes_mm
        square = x[None, None] ** 2 + y[None, :, None] ** 2 + z[:, None, None] ** 2
        return Dose(where, (50 * np.exp(-square / 18**2)).astype(np.float32))

    fine = Grid((20, 60, 60), (1.0, 1.0, 3.0), (-29.5, -29.5, -28.5))
    dose, there = peak(grid), peak(fine)
    middle = np.zeros(grid.shape, bool)
    middle[7:13, 7:13, 7:13] = True
    where = mask_onto(middle, grid, fine)
    assert dose.on(fine)[where].mean() == pytest.approx(there.gy[where].mean(), rel=0.002)
    assert resample(dose.gy, grid, fine)[where].mean() < 0.985 * there.gy[where].mean()
    assert dose.on(fine).max() <= dose.gy.max()


def test_hu_are_averaged_where_voxels_grow_and_interpolated_where_they_shrink() -> None:
    grid = Grid((4, 4, 4), (1.0, 1.0, 3.0), (0.0, 0.0, 0.0))
    values = np.arange(64.0).reshape(4, 4, 4)
    coarse = Grid((4, 2, 2), (2.0, 2.0, 3.0), (0.5, 0.5, 0.0))
    np.testing.assert_allclose(onto(values, grid, coarse), values.reshape(4, 2, 2, 2, 2).mean(axis=(2, 4)))
    fine = Grid((7, 4, 4), (1.0, 1.0, 1.5), (0.0, 0.0, 0.0))
    np.testing.assert_allclose(onto(values, grid, fine)[1], (values[0] + values[1]) / 2)


def test_ends_of_a_structure_keep_their_share() -> None:
    """A column that ends within coarse slices at both ends: the middle of its mass does not move."""
    source = Grid((30, 20, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    mask = np.zeros(source.shape, bool)
    mask[5:20, 5:15, 5:15] = True
    target = Grid((10, 20, 20), (1.0, 1.0, 3.0), (0.0, 0.0, 1.0))
    there = mask_onto(mask, source, target)
    assert there.sum() * 3 == pytest.approx(mask.sum(), abs=1.5)
    middle = [
        np.average(g.axes_mm[2], weights=m.sum(axis=(1, 2))) for g, m in ((source, mask), (target, there))
    ]
    assert middle[1] == pytest.approx(middle[0], abs=0.02)


def test_a_mask_beyond_the_grid_is_empty_there() -> None:
    source = Grid((4, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    away = Grid((4, 4, 4), (1.0, 1.0, 1.0), (100.0, 0.0, 0.0))
    assert not mask_onto(np.ones((4, 4, 4), bool), source, away).any()
    assert not mask_onto(np.zeros((4, 4, 4), bool), source, source).any()


def test_a_structure_that_is_cut_off_whole_is_absent_not_empty() -> None:
    case = small_case()
    corner = np.zeros(case.grid.shape, bool)
    corner[0, case.grid.shape[1] // 2, case.grid.shape[2] // 2] = True
    structures = {**case.structures, "Lens_L": Structure("Lens_L", "organ", corner)}
    cut, lost = cut_to(on_spacing(replace(case, structures=structures), case.grid.spacing_mm), (16, 24, 20))
    assert lost["Lens_L"] == 100.0 and "Lens_L" not in cut.case.structures


def test_hu_that_do_not_fit_are_clipped_by_a_named_step() -> None:
    case = small_case()
    metal = np.where(case.targets[0].mask, 49_000, case.hu.astype(np.int32))
    done = on_spacing(replace(case, hu=metal), case.grid.spacing_mm).case
    assert done.hu.max() == 32767 and done.hu.min() >= AIR_HU
    assert any(step.startswith("clip-hu: ") for step in done.source.steps)


def test_a_case_without_target_is_refused() -> None:
    case = small_case()
    structures = {n: s for n, s in case.structures.items() if s.role != "target"}
    with pytest.raises(CaseError, match="no target is contoured"):
        on_spacing(replace(case, structures=structures), (1.0, 1.0, 3.0))
    structures["PTV"] = Structure("PTV", "target", np.zeros(case.grid.shape, bool))
    with pytest.raises(CaseError, match="no target is contoured"):
        on_spacing(replace(case, structures=structures), (1.0, 1.0, 3.0))
