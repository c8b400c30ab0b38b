"""Drawing and making augmentations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from training_cases import decoded, small_training, with_marker

from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.geometry import beam_axes
from vmat_diffusion.training.augment import (
    Augmentation,
    AugmentSettings,
    augment,
    centred,
    draw_augmentation,
    mirrored_name,
)
from vmat_diffusion.training.prepare import target_middle_mm

STILL = AugmentSettings(
    flip_left_right=0, rotate=0, hu_scale=0, hu_offset=0, hu_noise=0, drop_organ=0, drop_ct=0
)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("Parotid_L", "Parotid_R"),
        ("OpticNrv_R_PRV", "OpticNrv_L_PRV"),
        ("Larynx", "Larynx"),
        ("Lungs", "Lungs"),
        ("PTV_70", "PTV_70"),
        ("Glnd_Submand_L", "Glnd_Submand_R"),
    ],
)
def test_sides_in_names(name: str, other: str) -> None:
    assert mirrored_name(name) == other
    assert mirrored_name(other) == name


def test_flip_swaps_the_sides_of_everything() -> None:
    before = decoded(small_training())
    after = augment(before, Augmentation(flip_left_right=True))
    case, flipped = before.training.case, after.training.case
    left, right = (case.structures[f"Parotid_{s}"].mask for s in "LR")
    assert np.array_equal(flipped.structures["Parotid_R"].mask, left[:, :, ::-1])
    assert np.array_equal(flipped.structures["Parotid_L"].mask, right[:, :, ::-1])
    assert left.sum() != right.sum()
    assert np.array_equal(flipped.hu, case.hu[:, :, ::-1])
    assert np.array_equal(flipped.reference_dose.gy, case.reference_dose.gy[:, :, ::-1])
    assert np.array_equal(after.sdf_tenth_mm["Parotid_R"], before.sdf_tenth_mm["Parotid_L"][:, :, ::-1])
    assert [(c.structure, c.limit) for c in after.training.constraints] == [
        ("PTV_70", 66.5),
        ("Parotid_R", 26.0),
    ]
    assert after.training.padding == ((1, 2), (0, 0), (0, 3))
    assert after.training.plan is None
    assert before.training.plan is not None


def test_organ_of_one_side_changes_its_name() -> None:
    after = augment(decoded(small_training(right=False)), Augmentation(flip_left_right=True))
    assert "Parotid_R" in after.training.case.structures
    assert "Parotid_L" not in after.training.case.structures
    assert "Parotid_L" not in after.sdf_tenth_mm


def test_head_feet_flip_keeps_names() -> None:
    before = decoded(small_training())
    after = augment(before, Augmentation(flip_head_feet=True))
    assert np.array_equal(after.training.case.hu, before.training.case.hu[::-1])
    left = before.training.case.structures["Parotid_L"].mask
    assert np.array_equal(after.training.case.structures["Parotid_L"].mask, left[::-1])


def test_no_change_is_the_identity_and_keeps_the_plan() -> None:
    before = decoded(small_training())
    after = augment(before, Augmentation(rotation_deg=360.0))
    assert np.array_equal(after.training.case.hu, before.training.case.hu)
    assert np.array_equal(after.training.case.reference_dose.gy, before.training.case.reference_dose.gy)
    assert after.training.case.grid == before.training.case.grid
    assert after.training.padding == before.training.padding
    assert after.training.plan is before.training.plan


def test_rotation_goes_towards_larger_gantry_angles() -> None:
    """A marker on the way to the source of gantry 0 lies on that of gantry 90 after a turn by 90 degrees."""
    training = small_training(shape=(12, 32, 32), target=(6, 14, 13))
    middle = np.array(target_middle_mm(training.case))
    to_source = beam_axes(0.0).to_source
    marked = training.case.grid.index(middle + 32.0 * to_source).round().astype(int)
    after = augment(decoded(with_marker(training, tuple(marked))), Augmentation(rotation_deg=90.0))
    hot = np.argwhere(after.training.case.hu > 1000).mean(axis=0)
    wanted = training.case.grid.index(middle + 32.0 * beam_axes(90.0).to_source)
    assert hot == pytest.approx(wanted, abs=0.51)
    assert abs(hot - marked)[1:].min() > 5


def test_jitter_stays_within_the_body_and_is_repeatable() -> None:
    before = decoded(small_training())
    change = Augmentation(hu_scale=1.02, hu_offset=10.0, hu_noise=5.0, seed=3)
    hu = augment(before, change).training.case.hu
    body = before.training.case.body.mask
    assert np.array_equal(hu[~body], before.training.case.hu[~body])
    expected = (before.training.case.hu[body] + 1000.0) * 1.02 - 990.0
    difference = hu[body] - expected
    assert difference.std() == pytest.approx(5.0, rel=0.1)
    assert abs(difference.mean()) < 5.0 / np.sqrt(body.sum()) * 4
    assert np.array_equal(hu, augment(before, change).training.case.hu)
    assert not np.array_equal(hu, augment(before, replace(change, seed=4)).training.case.hu)


def test_dropped_organs_and_ct_are_absent() -> None:
    after = augment(decoded(small_training()), Augmentation(dropped=("Parotid_L",), drop_ct=True))
    assert "Parotid_L" not in after.training.case.structures
    assert "Parotid_L" not in after.sdf_tenth_mm
    assert [c.structure for c in after.training.constraints] == ["PTV_70"]
    assert not after.training.has_ct
    assert set(np.unique(after.training.case.hu)) == {-1000, 0}


def test_window_beyond_the_volume_is_air_and_is_counted() -> None:
    before = decoded(small_training())
    after = augment(before, Augmentation(start=(-2, 0, 4), shape=(16, 28, 28)))
    case = after.training.case
    assert np.array_equal(case.hu[2:14], before.training.case.hu[:, :, 4:])
    assert (case.hu[:2] == -1000).all()
    assert (case.hu[14:] == -1000).all()
    assert case.reference_dose.gy[:2].max() == 0
    assert not case.body.mask[:2].any()
    # 2 and 2 slices beside the 1 and 2 of the file; of its 3 columns none are left.
    assert after.training.padding == ((3, 4), (0, 0), (0, 0))
    assert case.grid.origin_mm == pytest.approx((-61 + 16, 40, 7 - 10))
    # Distances go on with their border, not with a surface there.
    assert (after.sdf_tenth_mm["PTV_70"][0] == after.sdf_tenth_mm["PTV_70"][2]).all()


def test_centred_window_has_the_targets_in_its_middle() -> None:
    training = small_training()
    change = centred(training, (8, 12, 16))
    case = augment(decoded(training), change).training.case
    middle = case.grid.index(np.array(target_middle_mm(case)))
    assert np.abs(middle - (np.array(case.grid.shape) - 1) / 2).max() <= 0.5
    assert case.structures["PTV_56"].voxels == training.case.structures["PTV_56"].voxels
    assert centred(training, (12, 28, 32)).start == (0, 0, 0)
    assert centred(training) == Augmentation()


def test_targets_larger_than_the_crop_are_refused() -> None:
    with pytest.raises(CaseError, match="the targets take 8 voxels along x, the crop has 6; give a larger"):
        centred(small_training(), (8, 12, 6))


def test_still_settings_change_nothing() -> None:
    training = small_training()
    assert draw_augmentation(np.random.default_rng(0), STILL, training) == replace(
        Augmentation(), seed=draw_augmentation(np.random.default_rng(0), STILL, training).seed
    )


def test_ninefold_angles_are_multiples_of_40() -> None:
    settings = replace(STILL, rotate=1.0, rotation_deg="ninefold")
    training = small_training()
    angles = {draw_augmentation(np.random.default_rng(s), settings, training).rotation_deg for s in range(80)}
    assert angles == {40.0 * k for k in range(1, 9)} | ({360.0} & angles)


def test_angle_that_would_cut_a_target_is_not_drawn() -> None:
    """Two rows fit along y, so that only angles near 0 and 180 degrees leave the flat target whole."""
    settings = replace(STILL, rotate=1.0, rotation_deg="ninefold")
    training = small_training()
    change = [draw_augmentation(np.random.default_rng(s), settings, training, (8, 6, 16)) for s in range(40)]
    assert {c.rotation_deg % 360 for c in change} == {0.0}


def test_shares_of_changes_are_as_asked() -> None:
    settings = AugmentSettings(flip_left_right=0.3, drop_organ=0.2, drop_ct=0.1)
    training = small_training()
    rng = np.random.default_rng(1)
    drawn = [draw_augmentation(rng, settings, training) for _ in range(1500)]
    # Four standard deviations of a binomial share.
    assert np.mean([d.flip_left_right for d in drawn]) == pytest.approx(0.3, abs=4 * (0.21 / 1500) ** 0.5)
    assert np.mean([len(d.dropped) / 2 for d in drawn]) == pytest.approx(0.2, abs=4 * (0.16 / 3000) ** 0.5)
    assert np.mean([d.drop_ct for d in drawn]) == pytest.approx(0.1, abs=4 * (0.09 / 1500) ** 0.5)
    assert max(abs(d.hu_offset) for d in drawn) <= 20
    assert all("PTV" not in name for d in drawn for name in d.dropped)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"flip_left_right": 1.5}, "flip_left_right = 1.5 is no share"),
        ({"rotation_deg": "tenfold"}, "'tenfold' must be 0 to 180 degrees or 'ninefold'"),
        ({"rotation_deg": -3.0}, "-3.0 must be"),
        ({"hu_noise": -1.0}, "not negative"),
        ({"reach_voxels": (1, -1, 0)}, "at least 0"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        AugmentSettings(**wrong)
