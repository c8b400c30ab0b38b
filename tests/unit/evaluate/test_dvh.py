"""DVH: the definitions on hand-made voxels, and the way from dose grid to structure."""

from __future__ import annotations

import numpy as np
import pytest

from vmat_diffusion.case import Dose, Structure
from vmat_diffusion.errors import CaseError
from vmat_diffusion.evaluate.dvh import (
    Dvh,
    isodose_volume_cc,
    outside_percent,
    structure_dose_gy,
    structure_dvh,
)
from vmat_diffusion.geometry import Grid


def _ten() -> Dvh:
    return Dvh.of(np.arange(1.0, 11.0)[::-1], voxel_cc=0.5)


def test_near_maximum_is_the_hottest_voxel_up_to_one_voxel_and_falls_beyond() -> None:
    dvh = _ten()
    assert dvh.dose_at_cc_gy(0.0) == 10.0
    assert dvh.dose_at_cc_gy(0.03) == 10.0
    assert dvh.dose_at_cc_gy(0.5) == 10.0
    # Knots stand at 1, 1.5, 2.5 ... voxels: 1.25 voxels lie half-way between the two hottest.
    assert dvh.dose_at_cc_gy(0.625) == pytest.approx(9.5)
    assert dvh.dose_at_cc_gy(0.75) == pytest.approx(9.0)
    assert dvh.dose_at_cc_gy(1.0) == pytest.approx(8.5)
    assert dvh.dose_at_cc_gy(99.0) == 1.0


def test_dose_at_percent_is_the_median_and_the_extremes() -> None:
    dvh = _ten()
    assert dvh.dose_at_percent_gy(50) == pytest.approx(5.5)
    assert dvh.dose_at_percent_gy(0) == 10.0
    assert dvh.dose_at_percent_gy(100) == 1.0
    assert Dvh.of([3.0, 1.0, 2.0], 1.0).dose_at_percent_gy(50) == pytest.approx(2.0)


def test_dose_at_volume_never_rises_with_volume() -> None:
    dvh = Dvh.of(np.random.default_rng(3).gamma(2.0, 10.0, 57), 0.002)
    doses = [dvh.dose_at_cc_gy(v) for v in np.linspace(0, dvh.volume_cc, 1000)]
    assert np.all(np.diff(doses) <= 1e-12)


def test_one_and_two_voxels() -> None:
    assert Dvh.of([7.0], 0.1).dose_at_percent_gy(95) == 7.0
    two = Dvh.of([4.0, 8.0], 0.1)
    assert two.dose_at_percent_gy(50) == 8.0
    assert two.dose_at_percent_gy(95) == 4.0


def test_volume_counts_voxels_at_the_level_itself() -> None:
    dvh = Dvh.of(np.array([47.5, 50.0, 40.0, 59.85], np.float32), 2.0)
    assert float(dvh.volume_at_dose_percent(47.5)) == 75.0
    assert float(dvh.volume_at_dose_cc(59.85)) == 2.0
    assert Dvh.of([1, 2, 3, 4], 1.0).volume_at_dose_percent(2.5) == 50.0
    assert dvh.volume_at_dose_percent([0.0, 100.0]).tolist() == [100.0, 0.0]


def test_statistics() -> None:
    dvh = _ten()
    assert (dvh.volume_cc, dvh.mean_gy, dvh.max_gy, dvh.min_gy) == (5.0, 5.5, 10.0, 1.0)
    assert dvh.std_gy == pytest.approx(np.std(np.arange(1, 11)))
    gy, percent = dvh.curve(11, 10.0)
    assert percent[0] == 100 and percent[-1] == 10 and gy[-1] == 10


@pytest.mark.parametrize("percent", [-1, 100.1, float("nan")])
def test_impossible_volumes_are_refused(percent: float) -> None:
    with pytest.raises(CaseError, match="between 0 and 100"):
        _ten().dose_at_percent_gy(percent)


def test_equivalent_uniform_dose_lies_between_the_extremes() -> None:
    doses = [20.0, 40.0, 60.0, 80.0]
    dvh = Dvh.of(doses, 1.0)
    assert dvh.geud_gy(1.0) == pytest.approx(dvh.mean_gy)
    assert dvh.geud_gy(2.0) == pytest.approx(np.sqrt(np.mean(np.square(doses))))
    assert dvh.geud_gy(-1.0) == pytest.approx(4 / sum(1 / d for d in doses))
    values = [dvh.geud_gy(a) for a in (-400.0, -8.0, -1.0, 1.0, 8.0, 400.0)]
    assert values == sorted(values) and values[0] > 20.0 and values[-1] < 80.0
    assert values[0] == pytest.approx(20.0, rel=0.01) and values[-1] == pytest.approx(80.0, rel=0.01)
    assert Dvh.of([30.0, 30.0], 1.0).geud_gy(12.0) == pytest.approx(30.0)
    assert Dvh.of([0.0, 50.0], 1.0).geud_gy(-5.0) == 0.0 and Dvh.of([0.0, 0.0], 1.0).geud_gy(3.0) == 0.0


def test_an_empty_structure_has_no_dvh() -> None:
    grid = Grid((3, 4, 5), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    empty = Structure("Lens_L", "organ", np.zeros(grid.shape, bool))
    dose = Dose(grid, np.ones(grid.shape, np.float32))
    assert structure_dose_gy(dose, empty, grid).size == 0
    with pytest.raises(CaseError, match="Lens_L has no voxel"):
        structure_dvh(dose, empty, grid)


def test_dose_is_interpolated_at_the_voxels_of_the_mask_in_c_order() -> None:
    grid = Grid((20, 30, 40), (1.0, 1.5, 2.0), (-7.0, 3.0, 11.0))
    coarse = Grid((14, 16, 18), (3.0, 3.5, 4.0), (-12.0, -2.0, 4.0))
    x, y, z = coarse.axes_mm
    linear = 10 + 0.3 * x[None, None, :] - 0.2 * y[None, :, None] + 0.1 * z[:, None, None]
    dose = Dose(coarse, linear.astype(np.float32))
    mask = np.random.default_rng(5).random(grid.shape) < 0.02
    got = structure_dose_gy(dose, Structure("PTV", "target", mask), grid)
    p = grid.points_mm(np.flatnonzero(mask))
    assert outside_percent(dose, Structure("PTV", "target", mask), grid) == 0
    assert got == pytest.approx(10 + p @ np.array([0.3, -0.2, 0.1]), abs=1e-4)


def test_slabs_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid((9, 6, 7), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    rng = np.random.default_rng(0)
    dose = Dose(Grid((12, 9, 9), (1.7, 1.7, 1.9), (-1.0, -1.0, -1.0)), rng.random((12, 9, 9), np.float32))
    structure = Structure("PTV", "target", rng.random(grid.shape) < 0.5)
    whole = structure_dose_gy(dose, structure, grid)
    monkeypatch.setattr("vmat_diffusion.evaluate.dvh._SLAB_VOXELS", 1)
    assert structure_dose_gy(dose, structure, grid) == pytest.approx(whole, abs=1e-6)
    assert whole == pytest.approx(dose.on(grid)[structure.mask], abs=1e-6)


def test_voxels_outside_the_dose_grid_get_zero_and_are_counted() -> None:
    grid = Grid((1, 1, 10), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    dose = Dose(Grid((3, 3, 5), (1.0, 1.0, 1.0), (0.0, -1.0, -1.0)), np.full((3, 3, 5), 2.0, np.float32))
    structure = Structure("Rectum", "organ", np.ones(grid.shape, bool))
    assert outside_percent(dose, structure, grid) == 50.0
    assert structure_dose_gy(dose, structure, grid).tolist() == [2.0] * 5 + [0.0] * 5


def test_isodose_volume_counts_body_voxels_only() -> None:
    grid = Grid((10, 10, 10), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    gy = np.zeros(grid.shape, np.float32)
    gy[2:6, 3:7, 1:9] = 40.0
    mask = np.zeros(grid.shape, bool)
    mask[:, :, :5] = True
    body = Structure("BODY", "body", mask)
    assert isodose_volume_cc(Dose(grid, gy), 40.0, body, grid) == pytest.approx(4 * 4 * 4 * 0.008)
    assert isodose_volume_cc(Dose(grid, gy), 41.0, body, grid) == 0.0


def test_isodose_volume_equals_the_count_on_the_whole_grid() -> None:
    """The shortcut through the hot region must not lose voxels between dose points."""
    rng = np.random.default_rng(1)
    grid = Grid((24, 25, 26), (1.1, 0.9, 1.3), (0.2, -0.4, 0.1))
    coarse = Grid((9, 8, 9), (3.3, 3.1, 4.0), (-1.0, -2.0, 0.0))
    dose = Dose(coarse, (60 * rng.random(coarse.shape) ** 4).astype(np.float32))
    body = Structure("BODY", "body", np.ones(grid.shape, bool))
    for level in (5.0, 30.0, 50.0):
        expected = np.count_nonzero(dose.on(grid) >= level) * grid.voxel_cc
        assert isodose_volume_cc(dose, level, body, grid) == pytest.approx(expected)
