"""`train-generator` and `simulate --maps`: who is kept out, what goes on, and what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vmat_diffusion.errors import InputError
from vmat_diffusion.generate.encode import FEATURES, FluenceInput
from vmat_diffusion.generate.examples import FluenceExample
from vmat_diffusion.generate.model import load_fluence_model
from vmat_diffusion.workflow.generation.train import kept_out, split_examples, train_generator
from vmat_diffusion.workflow.simulation.maps import SUFFIX


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Maps that follow one feature, of patients of both kinds."""
    rng = np.random.default_rng(0)
    for patient in ("openkbp_pt_3", "openkbp_pt_17", "synthetic_lung_1004", "openkbp_pt_203"):
        features = rng.normal(size=(3, len(FEATURES), 8, 10)).astype(np.float32)
        inside = rng.random((3, 8, 10)) < 0.7
        features[:, FEATURES.index("open")] = inside
        relative = np.abs(features[:, 0]) * inside
        given = FluenceInput(features, inside, np.array([0, 0, 1]), np.array([20.0, 65.0, 110.0]))
        with (tmp_path / f"{patient}{SUFFIX}").open("wb") as stream:
            FluenceExample(given, relative, {"patient": patient, "site": "x"}).save(stream)
    return tmp_path


def test_patients_of_other_splits_are_kept_out() -> None:
    kept = {
        name: kept_out({"patient": name})
        for name in (
            "openkbp_pt_200", "openkbp_pt_201", "openkbp_pt_300", "synthetic_head_neck_1009",
            "synthetic_lung_1010", "hospital_a", "theirs_250",
        )
    }  # fmt: skip
    assert [name for name, out in kept.items() if out] == [
        "openkbp_pt_201", "openkbp_pt_300", "synthetic_head_neck_1009",
    ]  # fmt: skip


def test_training_writes_weights_with_their_card(folder: Path, tmp_path_factory) -> None:
    out = tmp_path_factory.mktemp("out") / "weights.safetensors"
    card = train_generator(folder, out, iterations=4, minutes=0)
    assert card["plans"] == 3 and card["validation"]["plans"] == 1
    first = load_fluence_model(out)
    again = train_generator(folder, out, iterations=4)
    model = load_fluence_model(out)
    assert model.description.card == again
    assert model.description.known["cases"] == 3
    change = [
        (a - b).abs().max() for a, b in zip(model.net.parameters(), first.net.parameters(), strict=True)
    ]
    assert max(change) > 0  # it went on from the checkpoint
    learnt, held = split_examples(folder, 2)
    assert len(learnt) == 2 and len(held) == 1


def test_a_folder_without_maps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no maps to learn from; make them with simulate --maps"):
        train_generator(tmp_path, tmp_path.parent / "w.safetensors")
