"""A trained generator of fluence and its file of weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vmat_diffusion.diffusion.process import STEPS
from vmat_diffusion.errors import InputError
from vmat_diffusion.files import parse_json, written_whole
from vmat_diffusion.generate.encode import FEATURES, FluenceInput
from vmat_diffusion.generate.network import FluenceNet, FluenceSize, Neighbours

SHIPPED = Path(__file__).with_name("weights") / "fluence.safetensors"
_FORMAT = "fluence-1"


@dataclass(frozen=True)
class FluenceDescription:
    """The units of the process and of the features, the network's size, and what is known of the weights.

    Fluence is (relative fluence - `middle`) / `spread` in the process. Features are divided by `scales`.
    `known` holds the ranges of the training plans for the check of the domain; `card` is the model card.
    """

    middle: float
    spread: float
    scales: tuple[float, ...]
    names: tuple[str, ...] = FEATURES
    size: FluenceSize = field(default_factory=FluenceSize)
    known: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class FluenceModel:
    """A network with its description."""

    description: FluenceDescription
    net: FluenceNet

    @property
    def name(self) -> str:
        """The name on the model card."""
        return str(self.description.card.get("name", "weights without a card"))

    def conditions(self, given: FluenceInput) -> Conditions:
        """A planning problem in the network's units."""
        return Conditions.of(given, self.description)

    def relative(self, x: Tensor, given: FluenceInput) -> NDArray[np.float64]:
        """Relative fluence `[sectors, rows, columns]` of a state of the process, 0 outside open bixels."""
        unit = x[:, 0].detach().double().numpy() * self.description.spread + self.description.middle
        out: NDArray[np.float64] = np.clip(unit, 0, None) * given.open_bixels
        return out

    def state(self, relative: NDArray, given: FluenceInput) -> Tensor:
        """The state of the process `[sectors, 1, rows, columns]` of a relative fluence, 0 where closed."""
        unit = (relative - self.description.middle) / self.description.spread * given.open_bixels
        return torch.as_tensor(unit, dtype=torch.float32)[:, None]

    def predicted(self, x: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """The network's x0 for a state at step `t[1]` of the process."""
        time = (t[:1].float() + 1) / STEPS
        out = self.net(x, time, conditions.features, conditions.neighbours)
        return out * conditions.mask  # type: ignore[no-any-return]


@dataclass(frozen=True, eq=False)
class Conditions:
    """Features `[s, f, r, c]`, open bixels `[s, 1, r, c]` and the neighbours of all sectors of a plan."""

    features: Tensor
    mask: Tensor
    neighbours: Neighbours

    @classmethod
    def of(cls, given: FluenceInput, description: FluenceDescription) -> Conditions:
        """In the units of a description."""
        scales = torch.tensor(description.scales)[None, :, None, None]
        return cls(
            torch.as_tensor(given.features) / scales,
            torch.as_tensor(given.open_bixels)[:, None].float(),
            Neighbours.of(torch.as_tensor(given.arc), torch.as_tensor(given.gantry_deg)),
        )


def save_fluence_model(path: Path, model: FluenceModel) -> Path:
    """Write the weights in half precision and their description as one safetensors file."""
    tensors = {k: v.detach().cpu().half().contiguous() for k, v in model.net.state_dict().items()}
    metadata = {"format": _FORMAT, "description": json.dumps(asdict(model.description), sort_keys=True)}
    with written_whole(path) as part:
        save_file(tensors, part, metadata=metadata)
    return path


def load_fluence_model(weights: str | Path = "shipped") -> FluenceModel:
    """The generator in a file, or the shipped one, on the CPU, ready to predict.

    Raises InputError for a file that is missing, has other features, or was not written by
    `save_fluence_model`.
    """
    path = SHIPPED if str(weights) == "shipped" else Path(weights)
    if not path.is_file():
        raise InputError(
            f"weights {weights} of the generator do not exist; give 'shipped' or a safetensors file"
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"format {metadata.get('format')}")
        if not all(bool(value.isfinite().all()) for value in tensors.values()):
            raise ValueError("weights that are no numbers")
        described = TypeAdapter(FluenceDescription).validate_python(parse_json(metadata["description"]))
        if described.names != FEATURES or len(described.scales) != len(FEATURES):
            raise ValueError("it was trained on other features")
        net = FluenceNet(len(FEATURES), described.size)
        net.load_state_dict(tensors)
    except (SafetensorError, ValidationError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path.name} holds no weights of a generator of this version ({reason}); train it anew"
        ) from error
    return FluenceModel(described, net.eval().requires_grad_(False))
