"""The generator's network: who sees whom, closed bixels, and its file."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vmat_diffusion.errors import InputError
from vmat_diffusion.generate.encode import FEATURES, FluenceInput
from vmat_diffusion.generate.model import (
    SHIPPED,
    FluenceDescription,
    FluenceModel,
    load_fluence_model,
    save_fluence_model,
)
from vmat_diffusion.generate.network import FluenceNet, FluenceSize, Neighbours

SIZE = FluenceSize(channels=8, deep_channels=8, embedding=8, blocks=1)


def _given(rng: np.random.Generator, sectors: int = 4) -> FluenceInput:
    features = rng.normal(size=(sectors, len(FEATURES), 7, 9)).astype(np.float32)
    inside = rng.random((sectors, 7, 9)) < 0.6
    features[:, FEATURES.index("open")] = inside
    arc = np.array([0] * (sectors // 2) + [1] * (sectors - sectors // 2))
    return FluenceInput(features, inside, arc, np.linspace(10.0, 300.0, sectors))


@pytest.fixture
def model() -> FluenceModel:
    torch.manual_seed(0)
    net = FluenceNet(len(FEATURES), SIZE)
    for parameter in net.parameters():  # no part is silent, as after training
        torch.nn.init.normal_(parameter, std=0.2)
    description = FluenceDescription(0.9, 0.6, (1.0,) * len(FEATURES), size=SIZE, card={"name": "test"})
    return FluenceModel(description, net.eval().requires_grad_(False))


def test_neighbours_stay_within_their_arc_and_contexts_are_means() -> None:
    seen = Neighbours.of(torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0.0, 45.0, 90.0, 200.0, 180.0]))
    assert seen.before.tolist() == [0, 0, 1, 3, 3]
    assert seen.after.tolist() == [1, 2, 2, 4, 4]
    torch.testing.assert_close(seen.context.sum(dim=2), torch.ones(3, 5))
    near, opposite, _ = seen.context
    assert near[0].argmax() == 1 and opposite[0].argmax() == 4
    assert near.diagonal().max() < 1e-6


def test_a_sector_answers_to_its_neighbours_and_closed_bixels_stay_closed(model) -> None:
    given = _given(np.random.default_rng(1))
    conditions = model.conditions(given)
    x = torch.randn(conditions.mask.shape, generator=torch.Generator().manual_seed(2))
    before = model.predicted(x, torch.tensor([500]), conditions)
    assert before.shape == x.shape
    assert np.all(model.relative(before, given)[~given.open_bixels] == 0)
    assert model.relative(before, given).min() >= 0
    changed = x.clone()
    changed[1] += 1.0
    after = model.predicted(changed, torch.tensor([500]), conditions)
    assert not torch.allclose(before[0], after[0])  # the neighbour in the arc
    assert not torch.allclose(before[3], after[3])  # another arc, by the context
    later = model.predicted(x, torch.tensor([10]), conditions)
    assert not torch.allclose(before, later)


def test_state_and_relative_fluence_are_inverse(model) -> None:
    given = _given(np.random.default_rng(3))
    relative = np.random.default_rng(4).uniform(0, 3, given.open_bixels.shape) * given.open_bixels
    np.testing.assert_allclose(model.relative(model.state(relative, given), given), relative, atol=1e-5)


def test_weights_come_back_from_their_file(model, tmp_path) -> None:
    file = save_fluence_model(tmp_path / "w.safetensors", model)
    again = load_fluence_model(file)
    assert again.description == model.description
    given = _given(np.random.default_rng(5))
    x = torch.zeros(model.conditions(given).mask.shape)
    for one in (model, again):
        assert torch.isfinite(one.predicted(x, torch.tensor([999]), one.conditions(given))).all()
    torch.testing.assert_close(
        again.predicted(x, torch.tensor([999]), again.conditions(given)),
        model.predicted(x, torch.tensor([999]), model.conditions(given)),
        atol=0.05,
        rtol=0.05,  # stored in half precision
    )


def test_other_files_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match="do not exist"):
        load_fluence_model(tmp_path / "none.safetensors")
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(InputError, match="no weights of a generator"):
        load_fluence_model(other)


def test_shipped_weights_are_small_and_say_what_they_are() -> None:
    model = load_fluence_model()
    assert SHIPPED.stat().st_size < 15e6
    card = model.description.card
    assert card["plans"] >= 12 and card["failures"] and "no image" in card["data"]
    assert card["validation"]["validation error"] < card["validation"]["of a flat map"]
    assert model.description.known["cases"] == card["plans"]
