"""Weights of one training as the start of another."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from training_runs import TINY, mean_stage, residual_stage, tiny_settings

from vmat_diffusion.diffusion.encode import DoseGoals, Encoding, goal_numbers
from vmat_diffusion.diffusion.model import DoseModel, ModelDescription
from vmat_diffusion.diffusion.network import DoseNet, Size
from vmat_diffusion.diffusion.process import Process
from vmat_diffusion.errors import InputError
from vmat_diffusion.training.weights import (
    SITE_ENCODINGS,
    description,
    initial_network,
    model_of,
    start_fresh,
    start_from,
    tuning_settings,
)


def _model(seed: int = 5, *, residual: bool = False) -> DoseModel:
    """A model whose every weight is random, those that begin with 0 as well."""
    settings = replace(tiny_settings(mean_stage()), seed=seed)
    nets = [initial_network(settings), initial_network(replace(settings, seed=seed + 1))]
    for net in nets:
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(seed))
    return DoseModel(description(settings), nets[0], nets[1] if residual else None)


def _answer(net: DoseNet, volume: Tensor, vector: Tensor) -> Tensor:
    with torch.no_grad():
        return net(net.anatomy(volume, vector, torch.ones(volume.shape[2:])), torch.ones(1))


def test_inputs_that_both_encodings_have_keep_their_meaning() -> None:
    model = _model()
    old, new = Encoding(), replace(Encoding(), organs=("Rectum", "SpinalCord", "Brainstem"))
    settings = replace(tiny_settings(mean_stage()), encoding=new)
    net = initial_network(settings)
    net.load_state_dict(start_from(model, settings).net)
    rng = torch.Generator().manual_seed(0)
    volume = torch.randn(1, len(old.channels), 16, 16, 16, generator=rng)
    shared = [c for c in old.channels if c in new.channels]
    for k, channel in enumerate(old.channels):
        if channel not in shared:
            volume[:, k] = 0.0
    moved = torch.randn(1, len(new.channels), 16, 16, 16, generator=rng)  # what is new has no weight yet
    for channel in shared:
        moved[:, new.channels.index(channel)] = volume[:, old.channels.index(channel)]
    goals = DoseGoals({"SpinalCord": 20.0}, {"Brainstem": 30.0})

    def vector(encoding: Encoding) -> Tensor:
        flags = [float(o in ("SpinalCord", "Brainstem")) for o in encoding.organs]
        told = goal_numbers(goals, encoding, 70.0).tolist()
        return torch.tensor([[1.0, 0.9, 0.0, *flags, 1.0, 0.5, 0.6, 0.7, *told]])

    assert vector(old).shape == (1, old.layout.size) and vector(new).shape == (1, new.layout.size)
    expected = _answer(model.mean, volume, vector(old))
    assert torch.allclose(_answer(net, moved, vector(new)), expected, atol=1e-5)
    assert not torch.allclose(_answer(net, moved.flip(1), vector(new)), expected, atol=1e-2)


def test_a_residual_begins_with_the_residual_of_the_weights() -> None:
    model = _model(residual=True)
    assert model.residual is not None
    both = start_from(model, tiny_settings(mean_stage(), residual_stage()))
    assert torch.equal(both.net["stem.weight"], model.mean.state_dict()["stem.weight"])
    assert both.residual is not None
    assert torch.equal(both.residual["stem.weight"], model.residual.state_dict()["stem.weight"])
    only = start_from(model, tiny_settings(residual_stage()))
    assert only.mean is not None
    assert torch.equal(only.mean["stem.weight"], model.mean.state_dict()["stem.weight"])
    assert torch.equal(only.net["stem.weight"], model.residual.state_dict()["stem.weight"])


def test_tuning_takes_the_network_of_the_weights_and_the_organs_of_the_site() -> None:
    settings = tuning_settings(_model(residual=True), "prostate")
    assert settings.size == TINY and settings.encoding == SITE_ENCODINGS["prostate"]
    assert [s.role for s in settings.stages] == ["mean", "residual"]
    assert settings.changes.turn == 0  # arcs that leave out an angle are not the same after a turn
    with pytest.raises(InputError, match="--site elbow is unknown; known are head_neck, prostate, lung"):
        tuning_settings(_model(), "elbow")


def test_every_site_has_both_sides_of_its_organs() -> None:
    for encoding in SITE_ENCODINGS.values():
        for organ in encoding.organs:
            other = {"_L": "_R", "_R": "_L"}.get(organ[-2:])
            assert other is None or organ[:-2] + other in encoding.organs


def test_weights_of_another_network_or_process_are_refused() -> None:
    with pytest.raises(InputError, match=r"widths \(8, 8, 16, 16\)"):
        start_from(_model(), replace(tiny_settings(mean_stage()), network=Size(widths=(8, 8, 8, 8))))
    with pytest.raises(InputError, match="another process"):
        start_from(
            _model(residual=True),
            replace(tiny_settings(mean_stage()), process=Process(scale=0.1)),
        )


def test_a_checkpoint_becomes_the_model_of_its_average() -> None:
    settings = tiny_settings(mean_stage(), residual_stage())
    start = start_fresh(settings)
    ema = {k: v + 1 for k, v in start.net.items()}
    model = model_of(replace(start, ema=ema), {"name": "test"})
    assert model.residual is None and model.description.card["name"] == "test"
    assert model.description == ModelDescription(
        settings.encoding, TINY, settings.process, card={"name": "test"}
    )
    assert torch.equal(model.mean.state_dict()["stem.bias"], ema["stem.bias"])
    later = model_of(replace(start, stage=1, ema=ema, mean=start.net), {})
    assert later.residual is not None
    assert torch.equal(later.mean.state_dict()["stem.bias"], start.net["stem.bias"])
    assert torch.equal(later.residual.state_dict()["stem.bias"], ema["stem.bias"])
