"""From a checkpoint to a model, and from a model to the start of another training, also for another site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vmat_diffusion.diffusion.encode import Encoding
from vmat_diffusion.diffusion.model import DoseModel, ModelDescription
from vmat_diffusion.diffusion.model import new_network as random_network
from vmat_diffusion.diffusion.network import DoseNet
from vmat_diffusion.errors import InputError
from vmat_diffusion.training.checkpoint import Checkpoint
from vmat_diffusion.training.encoded import Changes
from vmat_diffusion.training.settings import Stage, TrainingSettings, Weight, plain, training_settings

# How cases of a site are encoded if nothing else is said.
SITES: Mapping[str, Encoding] = {
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
# Inputs of the network by the layer that takes them: channels of the volume, numbers of the vector.
_LAST_LAYER = ("head.3.weight", "head.3.bias")
_TAKE_CHANNELS, _TAKE_NUMBERS = ("stem.weight", "from_volume.weight"), ("vector.0.weight",)
_TUNED = Stage(
    samples=4000,
    learning_rate=2e-4,
    schedule="cosine",
    warm_up=100,
    losses={"l1": 1.0, "dvh": Weight(0.25), "gradient": 0.1},
)


def description(settings: TrainingSettings) -> ModelDescription:
    """What a model of these settings is made for."""
    return ModelDescription(settings.encoding, settings.size, settings.process)


def new_network(settings: TrainingSettings) -> DoseNet:
    """A network of the settings' size with random weights, decided by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return random_network(description(settings))


def fresh(settings: TrainingSettings) -> Checkpoint:
    """A training before its first sample, from random weights."""
    weights = new_network(settings).state_dict()
    return Checkpoint(settings=plain(settings), stage=0, samples=0, net=weights, ema=weights)


def model_of(checkpoint: Checkpoint, card: Mapping[str, Any]) -> DoseModel:
    """The model of the averaged weights as they are now."""
    settings = training_settings(checkpoint.settings)
    described = replace(description(settings), card=dict(card))
    if settings.stages[checkpoint.stage].role == "mean":
        return DoseModel(described, _network(settings, checkpoint.ema))
    assert checkpoint.mean is not None  # a stage of this role does not begin without
    return DoseModel(described, _network(settings, checkpoint.mean), _network(settings, checkpoint.ema))


def _network(settings: TrainingSettings, weights: Mapping[str, Tensor]) -> DoseNet:
    net = new_network(settings)
    net.load_state_dict(weights)
    return net.eval().requires_grad_(False)


def tuning_settings(
    model: DoseModel, site: str, settings: TrainingSettings | None = None
) -> TrainingSettings:
    """Settings for going on with a model on cases of a site: short stages at a low learning rate.

    `settings` may give others; the encoding is always the site's, network and process are the model's. Raises
    InputError for an unknown site.
    """
    if site not in SITES:
        raise InputError(f"--site {site} is unknown; known are {', '.join(SITES)}")
    encoding = SITES[site]
    if settings is None:
        residual = replace(_TUNED, role="residual", losses={"residual": 1.0})
        # Turned by 40 degrees nine fields are the same nine; arcs of any other kind need not be.
        changes = Changes() if encoding.beams == "nine fields" else Changes(turn=0.0)
        settings = TrainingSettings(
            stages=(_TUNED, residual) if model.residual is not None else (_TUNED,), changes=changes
        )
    described = model.description
    return replace(settings, encoding=encoding, network=described.size, process=described.process)


def start_from(model: DoseModel, settings: TrainingSettings) -> Checkpoint:
    """A training before its first sample, from the weights of a model.

    Inputs that the model's encoding has as well keep their weights, new ones begin with 0. Raises InputError
    where the model's network or process is another.
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
        weights = residual or answering_nothing(mean)
        return Checkpoint(plain(settings), 0, 0, weights, weights, mean=mean)
    return Checkpoint(plain(settings), 0, 0, mean, mean, residual=residual)


def answering_nothing(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights with a last layer of zeros: what a regression says of a dose is no residual."""
    return {
        name: torch.zeros_like(value) if name in _LAST_LAYER else value for name, value in weights.items()
    }


def _adapted(net: DoseNet, old: Encoding, new: Encoding) -> dict[str, Tensor]:
    """The weights of a network for the inputs of another encoding."""
    weights = {name: value.detach().clone() for name, value in net.state_dict().items()}
    for names, before, after in (
        (_TAKE_CHANNELS, old.channels, new.channels),
        (_TAKE_NUMBERS, _numbers(old), _numbers(new)),
    ):
        for name in names:
            weights[name] = _rearranged(weights[name], before, after)
    return weights


def _rearranged(weight: Tensor, before: Sequence[str], after: Sequence[str]) -> Tensor:
    """A weight `[out, in, ...]` for other inputs; those that are new have no weight yet."""
    out = torch.zeros(weight.shape[0], len(after), *weight.shape[2:], dtype=weight.dtype)
    for k, name in enumerate(after):
        if name in before:
            out[:, k] = weight[:, before.index(name)]
    return out


def _numbers(encoding: Encoding) -> tuple[str, ...]:
    """What each number of the vector is, in the order of `encode`."""
    organs = encoding.organs
    kinds = ("mean", "hot", "mean asked", "hot asked")
    return (
        *(f"level {level:g}" for level in encoding.levels),
        *(f"has {organ}" for organ in organs),
        "has ct",
        *(f"spacing {axis}" for axis in "xyz"),
        *(f"{kind} {organ}" for kind in kinds for organ in organs),
    )
