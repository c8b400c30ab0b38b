"""Augmentation of encoded cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from training_cases import small_training

from vmat_diffusion.diffusion.encode import Encoding
from vmat_diffusion.training.encoded import save_encoded
from vmat_diffusion.training.samples import (
    NO_AUGMENTATION,
    AugmentationSettings,
    EncodedCases,
    Sample,
    draw_augmentation,
)

ENCODING = Encoding()
NAMES = ENCODING.vector_names


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A case with a left parotid gland alone."""
    folder = tmp_path_factory.mktemp("encoded")
    return save_encoded(folder / "case.npz", small_training(right=False), ENCODING)


def sample(file: Path, settings: AugmentationSettings, *, epoch: int = 0) -> Sample:
    cases = EncodedCases((file,), ENCODING, multiple=8, settings=settings, seed=3)
    cases.epoch = epoch
    return cases[0]


def test_the_same_seed_and_epoch_make_the_same_sample(file: Path) -> None:
    settings = AugmentationSettings(turn=1.0, goals=1.0)
    first, again, later = (sample(file, settings, epoch=e) for e in (1, 1, 2))
    assert torch.equal(first.volume, again.volume) and torch.equal(first.vector, again.vector)
    assert not torch.equal(first.dose, later.dose)


def test_a_flip_mirrors_the_volume_and_swaps_the_sides(file: Path) -> None:
    plain = sample(file, NO_AUGMENTATION)
    drawn = draw_augmentation(
        np.random.default_rng(0), replace(NO_AUGMENTATION, flip=1.0), ENCODING, (12, 28, 32), 8
    )
    flipped = sample(file, replace(NO_AUGMENTATION, flip=1.0))
    assert drawn.flip and drawn.turn_deg == 0 and not drawn.without_organs.any()
    inside = plain.dose[plain.mask > 0]
    assert torch.equal(flipped.dose[flipped.mask > 0].sort().values, inside.sort().values)
    assert {s.name for s in plain.structures} == {"PTV_70", "PTV_56", "Parotid_L"}
    assert {s.name for s in flipped.structures} == {"PTV_70", "PTV_56", "Parotid_R"}
    for one, side in ((plain, "Parotid_L"), (flipped, "Parotid_R")):
        assert [NAMES[k] for k in one.vector[0].nonzero()[:, 0] if "Parotid" in NAMES[k]] == [f"has {side}"]


def test_an_organ_left_out_has_no_distance_no_flag_and_no_goal(file: Path) -> None:
    goals = replace(NO_AUGMENTATION, goals=1.0, goal=1.0)
    conditions = {NAMES[k] for k in sample(file, goals).vector[0].nonzero()[:, 0] if "asked" in NAMES[k]}
    assert conditions == {"mean asked Parotid_L", "hot asked Parotid_L"}
    without = sample(file, replace(goals, without_organ=1.0))
    assert not any("Parotid" in NAMES[k] for k in without.vector[0].nonzero()[:, 0])
    channel = without.volume[0, ENCODING.channels.index("distance_Parotid_L")]
    assert bool((channel == 1.0).all())
