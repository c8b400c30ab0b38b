"""To the voxels of a model and back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_case import small_case
from training_cases import small_training

from vmat_diffusion.case import Case, Dose, Prescription, Structure
from vmat_diffusion.diffusion.grid import REACH_MM, dose_voxels, near_targets, on_model_grid, onto_case
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid, average_onto

VOXEL_MM = (3.9, 3.9, 2.5)


def fine_case() -> Case:
    """A cylinder of 1 x 1 x 3 mm voxels, 18 cm long, with a target of 2 cm in the middle."""
    grid = Grid((60, 90, 100), (1.0, 1.0, 3.0), (-49.5, -44.5, -88.5))
    x, y, z = grid.axes_mm
    r2 = x[None, None, :] ** 2 + y[None, :, None] ** 2 + 0 * z[:, None, None]
    body = r2 <= 40**2
    target = (r2 <= 10**2) & (abs(z)[:, None, None] <= 10)
    organ = (r2 > 15**2) & (r2 < 20**2) & (abs(z)[:, None, None] <= 10)
    structures = {
        "BODY": Structure("BODY", "body", body),
        "PTV_70": Structure("PTV_70", "target", target),
        "Larynx": Structure("Larynx", "organ", organ),
        "Other": Structure("Other", "organ", organ),
    }
    hu = np.where(body, 0, -1000)
    return Case("fine", "head_neck", grid, hu, structures, Prescription(35, {"PTV_70": 70.0}))


def test_fine_voxels_become_the_model_s_and_volumes_stay() -> None:
    case = fine_case()
    made = on_model_grid(case, VOXEL_MM, ("Larynx",))
    assert made.case.grid.spacing_mm == VOXEL_MM
    assert set(made.case.structures) == {
        "BODY",
        "PTV_70",
        "Larynx",
    }  # what the model does not know is left out
    for name in ("PTV_70", "Larynx"):
        before = case.structures[name].voxels * case.grid.voxel_cc
        after = made.case.structures[name].voxels * made.case.grid.voxel_cc
        assert after == pytest.approx(before, rel=0.02)


def test_voxels_like_the_model_s_stay_as_they_are() -> None:
    training = small_training()  # 4 x 4 x 5 mm
    made = on_model_grid(training.case, (3.9, 3.9, 4.0), ())
    assert made.case.grid is training.case.grid
    assert made.case.reference_dose is None
    other = on_model_grid(training.case, VOXEL_MM, ())
    assert other.case.grid.spacing_mm == VOXEL_MM


def test_a_mask_of_its_own_is_kept_or_brought_along() -> None:
    case = fine_case()
    z = case.grid.axes_mm[2]
    own = case.body.mask & (abs(z)[:, None, None] <= 22)
    kept = on_model_grid(case, VOXEL_MM, (), possible=own, keep_grid=True)
    assert kept.case.grid is case.grid and kept.possible_dose is own
    made = on_model_grid(case, VOXEL_MM, (), possible=own)
    assert made.case.grid.spacing_mm == VOXEL_MM
    volume = np.count_nonzero(made.possible_dose) * made.case.grid.voxel_cc
    assert volume == pytest.approx(np.count_nonzero(own) * case.grid.voxel_cc, rel=0.02)
    assert not (made.possible_dose & ~made.case.body.mask).any()


def test_dose_is_possible_in_the_body_around_the_targets() -> None:
    case = fine_case()
    mask = near_targets(case)
    z = case.grid.axes_mm[2][np.flatnonzero(mask.any(axis=(1, 2)))]
    target = case.grid.axes_mm[2][np.flatnonzero(case.structures["PTV_70"].mask.any(axis=(1, 2)))]
    assert (target[0] - z[0], z[-1] - target[-1]) == (REACH_MM, REACH_MM)
    assert not (mask & ~case.body.mask).any()
    with pytest.raises(CaseError, match="no target"):
        near_targets(replace(case, prescription=Prescription(35, {"PTV_9": 9.0})))


def test_a_dose_comes_back_on_joined_voxels_with_its_means() -> None:
    case = fine_case()
    made = on_model_grid(case, VOXEL_MM, ("Larynx",))
    grid = dose_voxels(case, made.case.grid, made.possible_dose)
    assert grid.spacing_mm == (3.0, 3.0, 3.0)
    border = (np.array(grid.bounds_mm[0]) - case.grid.bounds_mm[0]) / case.grid.spacing_mm
    assert border == pytest.approx(np.round(border))  # its voxels are whole voxels of the case
    x, y, z = made.case.grid.axes_mm
    bell = np.exp(-(x**2 + y[:, None] ** 2 + z[:, None, None] ** 2) / (2 * 25**2))
    gy = np.where(made.possible_dose, 70 * bell, 0).astype(np.float32)
    back = onto_case(Dose(made.case.grid, gy, gy / 10), case, grid)
    for name in ("PTV_70", "Larynx"):
        shares = average_onto(case.structures[name].mask, case.grid, grid)
        mean = float((back.gy * shares).sum() / shares.sum())
        assert mean == pytest.approx(float(gy[made.case.structures[name].mask].mean()), rel=0.02)
    assert back.std_gy == pytest.approx(back.gy / 10, abs=0.02)
    outside = average_onto(case.body.mask, case.grid, grid) < 0.5
    assert outside.any() and not back.gy[outside].any()


def test_coarse_cases_get_their_own_voxels_back() -> None:
    case = small_case()  # 5 x 5 x 6 mm
    made = on_model_grid(case, VOXEL_MM, ())
    assert dose_voxels(case, made.case.grid, made.possible_dose).spacing_mm == case.grid.spacing_mm
    same = on_model_grid(case, case.grid.spacing_mm, ())
    grid = dose_voxels(case, case.grid, same.possible_dose)
    gy = np.random.default_rng(0).uniform(1, 70, case.grid.shape).astype(np.float32)
    gy[~same.possible_dose] = 0
    back = onto_case(Dose(case.grid, gy), case, grid)
    np.testing.assert_allclose(back.on(case.grid), gy, atol=2e-3)
