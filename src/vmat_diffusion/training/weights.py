"""Weights between trainings: a checkpoint becomes a model, and a model the start of another training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vmat_diffusion.diffusion.encode import Encoding
from vmat_diffusion.diffusion.model import DoseModel, ModelDescription, new_network
from vmat_diffusion.diffusion.network import DoseNet
from vmat_diffusion.errors import InputError
from vmat_diffusion.training.checkpoint import Checkpoint
from vmat_diffusion.training.samples import AugmentationSettings
from vmat_diffusion.training.settings import (
    TrainingSettings,
    TrainingStage,
    Weight,
    settings_record,
    training_settings,
)

# The default encoding of each site.
SITE_ENCODINGS: Mapping[str, Encoding] = {
    "head_neck": Encoding(),
    "prostate": Encoding(
        organs=("Rectum", "Bladder", "Femur_Head_R", "Femur_Head_L", "PenileBulb", "Bag_Bowel"),
        beams="full arc",
    ),
    "lung": Encoding(
        organs=("Lung_R", "Lung_L", "Heart", "SpinalCord", "Esophagus", "BrachialPlex_R", "BrachialPlex_L"),
        beams="full arc",
    ),
}
_LAST_LAYER = ("head.3.weight", "head.3.bias")
# The layers that take the channels of the volume, and those that take the numbers of the vector.
_CHANNEL_LAYERS, _VECTOR_LAYERS = ("stem.weight", "from_volume.weight"), ("vector.0.weight",)
_TUNING = TrainingStage(
    samples=4000,
    learning_rate=2e-4,
    schedule="cosine",
    warm_up=100,
    losses={"l1": 1.0, "dvh": Weight(0.25), "gradient": 0.1},
)


def description(settings: TrainingSettings) -> ModelDescription:
    """The description of a model with these settings."""
    return ModelDescription(settings.encoding, settings.size, settings.process)


def initial_network(settings: TrainingSettings) -> DoseNet:
    """A network of the settings' size with random weights, decided by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return new_network(description(settings))


def start_fresh(settings: TrainingSettings) -> Checkpoint:
    """The start of a training from random weights."""
    weights = initial_network(settings).state_dict()
    return Checkpoint(settings=settings_record(settings), stage=0, samples=0, net=weights, ema=weights)


def model_of(checkpoint: Checkpoint, card: Mapping[str, Any]) -> DoseModel:
    """The model of the averaged weights of a checkpoint."""
    settings = training_settings(checkpoint.settings)
    described = replace(description(settings), card=dict(card))
    if settings.stages[checkpoint.stage].role == "mean":
        # The residual of the weights that the training began with, if there was one.
        residual = None if checkpoint.residual is None else _network(settings, checkpoint.residual)
        return DoseModel(described, _network(settings, checkpoint.ema), residual)
    assert checkpoint.mean is not None  # `StageModule` starts no stage of this role without it
    return DoseModel(described, _network(settings, checkpoint.mean), _network(settings, checkpoint.ema))


def _network(settings: TrainingSettings, weights: Mapping[str, Tensor]) -> DoseNet:
    net = initial_network(settings)
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)


def tuning_settings(
    model: DoseModel, site: str, settings: TrainingSettings | None = None
) -> TrainingSettings:
    """Settings to fine-tune a model on cases of a site: short stages at a low learning rate.

    `settings` replaces them; the encoding is always the site's, network and process are the model's. Raises
    InputError for an unknown site.
    """
    if site not in SITE_ENCODINGS:
        raise InputError(f"--site {site} is unknown; known are {', '.join(SITE_ENCODINGS)}")
    encoding = SITE_ENCODINGS[site]
    if settings is None:
        residual = replace(_TUNING, role="residual", losses={"residual": 1.0})
        # A turn by 40 degrees maps nine equidistant fields onto themselves; it need not map arcs.
        changes = (
            AugmentationSettings() if encoding.beams == "nine fields" else AugmentationSettings(turn=0.0)
        )
        settings = TrainingSettings(
            stages=(_TUNING, residual) if model.residual is not None else (_TUNING,), changes=changes
        )
    described = model.description
    return replace(settings, encoding=encoding, network=described.size, process=described.process)


def start_from(model: DoseModel, settings: TrainingSettings) -> Checkpoint:
    """The start of a training from the weights of a model.

    Inputs that the encoding of the model has too keep their weights; weights of new inputs start at 0. Raises
    InputError where the network or the process of the model differs from the settings.
    """
    described = model.description
    if described.size != settings.size:
        raise InputError(
            f"the weights are of a network with widths {described.size.widths}, the settings ask for "
            f"{settings.size.widths}; give the same network"
        )
    if model.residual is not None and described.process != settings.process:
        raise InputError("the weights were trained with another process; give the same in the settings")
    mean = _adapted(model.mean, described.encoding, settings.encoding)
    residual = None
    if model.residual is not None:
        residual = _adapted(model.residual, described.encoding, settings.encoding)
    if settings.stages[0].role == "residual":
        weights = residual or with_zero_output(mean)
        return Checkpoint(settings_record(settings), 0, 0, weights, weights, mean=mean)
    return Checkpoint(settings_record(settings), 0, 0, mean, mean, residual=residual)


def with_zero_output(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with a last layer of zeros: a residual that starts from a regression starts at 0."""
    return {
        name: torch.zeros_like(value) if name in _LAST_LAYER else value for name, value in weights.items()
    }


def _adapted(net: DoseNet, old: Encoding, new: Encoding) -> dict[str, Tensor]:
    """The weights of a network, for the inputs of another encoding."""
    weights = {name: value.detach().clone() for name, value in net.state_dict().items()}
    for names, before, after in (
        (_CHANNEL_LAYERS, old.channels, new.channels),
        (_VECTOR_LAYERS, old.vector_names, new.vector_names),
    ):
        for name in names:
            weights[name] = _rearranged(weights[name], before, after)
    return weights


def _rearranged(weight: Tensor, before: Sequence[str], after: Sequence[str]) -> Tensor:
    """A weight `[out, k x in]` for other inputs; the weights of new inputs are 0."""
    old = weight.unflatten(1, (-1, len(before)))
    out = old.new_zeros(*old.shape[:2], len(after))
    for k, name in enumerate(after):
        if name in before:
            out[:, :, k] = old[:, :, before.index(name)]
    return out.flatten(1)
