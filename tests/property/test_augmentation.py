"""What holds for every augmentation, and the rotation against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from training_cases import decoded, small_training

from vmat_diffusion.training.augment import Augmentation, AugmentSettings, augment, draw_augmentation
from vmat_diffusion.training.motion import Turn, Window, moved
from vmat_diffusion.training.prepare import target_middle_mm

FREE = AugmentSettings(
    flip_head_feet=0.5, rotate=0.8, rotation_deg=180.0, reach_voxels=(3, 5, 5), drop_organ=0.3, drop_ct=0.2
)


@given(head_feet=st.booleans(), left_right=st.booleans(), right=st.booleans())
def test_flip_twice_is_the_identity(head_feet: bool, left_right: bool, right: bool) -> None:
    before = decoded(small_training(right=right))
    change = Augmentation(flip_head_feet=head_feet, flip_left_right=left_right)
    after = augment(augment(before, change), change)
    assert np.array_equal(after.training.case.hu, before.training.case.hu)
    assert after.training.constraints == before.training.constraints
    assert after.training.padding == before.training.padding
    for name, structure in before.training.case.structures.items():
        assert np.array_equal(after.training.case.structures[name].mask, structure.mask)
    for name, distances in before.sdf_tenth_mm.items():
        assert np.array_equal(after.sdf_tenth_mm[name], distances)


@given(
    seed=st.integers(0, 2**32 - 1),
    depth=st.integers(6, 16),
    height=st.integers(10, 36),
    width=st.integers(12, 40),
)
def test_window_always_holds_the_targets(seed: int, depth: int, height: int, width: int) -> None:
    training = small_training()
    change = draw_augmentation(np.random.default_rng(seed), FREE, training, (depth, height, width))
    crop = augment(decoded(training), change)
    whole = augment(
        decoded(training),
        Augmentation(
            flip_head_feet=change.flip_head_feet,
            flip_left_right=change.flip_left_right,
            rotation_deg=change.rotation_deg,
            start=(-20, -20, -20),
            shape=(52, 68, 72),
        ),
    )
    assert crop.training.case.hu.shape == (depth, height, width)
    for name in ("PTV_70", "PTV_56"):
        kept, all_ = (d.training.case.structures[name].voxels for d in (crop, whole))
        assert kept == all_ > 0


@given(angle=st.floats(-180, 180))
@settings(max_examples=25)
def test_rotation_keeps_volumes_and_distances(angle: float) -> None:
    before = decoded(small_training(shape=(12, 48, 48), target=(6, 22, 20), left=False, right=False))
    after = augment(before, Augmentation(rotation_deg=angle))
    body, turned = (d.training.case.body.voxels for d in (before, after))
    assert turned == pytest.approx(body, rel=0.01)
    for name in ("PTV_70", "PTV_56"):
        voxels = [d.training.case.structures[name].voxels for d in (before, after)]
        assert voxels[1] == pytest.approx(voxels[0], abs=1)
    # The turned mask is a staircase again, whose corners are off by a voxel of 4 mm.
    again = decoded(after.training).sdf_tenth_mm["PTV_70"]
    error = np.abs(after.sdf_tenth_mm["PTV_70"].astype(float) - again)[after.training.case.body.mask]
    assert error.max() <= 60.0
    assert np.median(error) <= 15.0


@given(angle=st.floats(-180, 180), start=st.integers(-6, 6), flips=st.tuples(st.booleans(), st.booleans()))
@settings(max_examples=25)
def test_rotation_equals_scipy(angle: float, start: int, flips: tuple[bool, bool]) -> None:
    """The same rotation as an affine map of the volume in voxels, with other spacings along x and y."""
    training = small_training()
    case = training.case
    spaced = case.grid.__class__(case.grid.shape, (4.0, 3.0, 5.0), case.grid.origin_mm)
    case = case.__class__(case.id, case.site, spaced, case.hu, case.structures)
    volume = case.hu.astype(np.float64) + 1000
    window = Window((start, -start, start), case.grid.shape)
    turn = Turn.of(case, *flips, angle)
    mine = moved((case.hu + np.float32(1000))[None], turn, window, 0)[0]

    flipped = volume[:: -1 if flips[0] else 1, :, :: -1 if flips[1] else 1]
    _, cy, cx = spaced.index(np.array(target_middle_mm(case)))
    cx = case.grid.shape[2] - 1 - cx if flips[1] else cx
    c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    to_mm = np.diag([1.0, 3.0, 4.0])
    back = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])  # (z, y, x), by minus the angle
    matrix = np.linalg.inv(to_mm) @ back @ to_mm
    centre = np.array([0, cy, cx])
    offset = centre + matrix @ (np.array(window.start) - centre)
    theirs = ndimage.affine_transform(flipped, matrix, offset, window.shape, order=1, mode="constant", cval=0)
    # Within the last voxel before its border scipy cuts off what fades to air here.
    inside = ndimage.binary_erosion(
        ndimage.affine_transform(np.ones_like(flipped), matrix, offset, window.shape, order=1) > 0.999,
        iterations=1,
    )
    assert np.abs(mine - theirs)[inside].max(initial=0) < 0.02  # float32 of values up to 2000


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_same_seed_same_item_and_dose_within_its_mask(seed: int) -> None:
    training = small_training()
    made = [
        augment(
            decoded(training), draw_augmentation(np.random.default_rng(seed), FREE, training, (12, 24, 24))
        )
        for _ in range(2)
    ]
    a, b = (d.training.case for d in made)
    assert np.array_equal(a.hu, b.hu)
    assert np.array_equal(a.reference_dose.gy, b.reference_dose.gy)
    assert a.reference_dose.gy[~made[0].training.possible_dose].max(initial=0) == 0
    assert a.reference_dose.gy.min() >= 0
    assert a.reference_dose.gy.max() <= training.case.reference_dose.gy.max() * (1 + 1e-6)
