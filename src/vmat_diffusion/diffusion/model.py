"""A trained dose model and its file of weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vmat_diffusion.diffusion.encode import Encoding
from vmat_diffusion.diffusion.network import DoseNet, Size
from vmat_diffusion.diffusion.process import Method, Process
from vmat_diffusion.errors import InputError
from vmat_diffusion.files import parse_json, sha256_of, written_whole

SHIPPED = Path(__file__).with_name("weights") / "shipped.safetensors"
_FORMAT = "2"
# It scales the spread of samples so that bands cover what they state; 1 is no change, above 10 no model.
_SPREAD_MAX = 10.0


@dataclass(frozen=True)
class Calibration:
    """The factor on the standard deviation of samples at which their bands hold the share that they state.

    It is on that of samples as the network draws them (temperature 1), and holds for `steps` of `method`:
    samplers with few steps lose some of the spread, and not the same share.
    `spread` is that of voxels, `points` that of DVH points. `patients` are those on whom they were fitted.
    `inherited` says that the weights were trained on since.
    """

    method: Method
    steps: int
    spread: float
    points: float | None = None
    patients: tuple[str, ...] = ()
    inherited: bool = False


@dataclass(frozen=True)
class ModelDescription:
    """The encoding, the network and the diffusion process of some weights; kept in their file.

    `calibration` is that of the samples, None where none was fitted. `known` holds the figures of the
    training cases for the check of the domain; `card` is the model card.
    """

    encoding: Encoding = field(default_factory=Encoding)
    size: Size = field(default_factory=Size)
    process: Process = field(default_factory=Process)
    calibration: Calibration | None = None
    known: Mapping[str, Any] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class DoseModel:
    """The regression of the dose (`mean`) and, if there is one, the diffusion of the residual."""

    description: ModelDescription
    mean: DoseNet
    residual: DoseNet | None = None

    @property
    def encoding(self) -> Encoding:
        """The description of the network's input."""
        return self.description.encoding

    @property
    def name(self) -> str:
        """The name on the model card."""
        return str(self.description.card.get("name", "weights without a card"))

    def require_samples(self, count: int, instead: str = "--samples 0") -> None:
        """Raise InputError for samples of a model without diffusion; `instead` is the option to give."""
        if count and self.residual is None:
            raise InputError(
                f"{count} samples are asked of weights without diffusion; give {instead} or weights with the "
                "residual role"
            )

    def spread(self, method: Method, steps: int) -> float:
        """The factor on the standard deviation of samples in `steps` of `method`; 1 where none was fitted.

        Raises InputError where it was fitted for another method or number of steps.
        """
        fitted = self.description.calibration
        if fitted is None:
            return 1.0
        if (fitted.method, fitted.steps) != (method, steps):
            raise InputError(
                f"the spread of the weights {self.name} holds for {fitted.steps} steps of {fitted.method}, "
                f"and {steps} steps of {method} are asked for; give --steps {fitted.steps} --method "
                f"{fitted.method}, or fit it for yours with benchmark openkbp --fit-spread"
            )
        return fitted.spread

    def networks_sha256(self) -> str:
        """SHA-256 of the weights as they are stored, whatever their description says."""
        return _checksum(_stored(self), "")

    def to(self, device: str | torch.device) -> DoseModel:
        """The same model on a device; moves the networks in place."""
        residual = None if self.residual is None else self.residual.to(device)
        return replace(self, mean=self.mean.to(device), residual=residual)


def new_network(description: ModelDescription) -> DoseNet:
    """A network with random weights."""
    return DoseNet(len(description.encoding.channels), description.encoding.layout.size, description.size)


def save_model(path: Path, model: DoseModel) -> Path:
    """Write the weights in half precision and their description as one safetensors file."""
    tensors = _stored(model)
    described = json.dumps(asdict(model.description), sort_keys=True)
    metadata = {"format": _FORMAT, "description": described, "sha256": _checksum(tensors, described)}
    with written_whole(path) as part:
        save_file(tensors, part, metadata=metadata)
    return path


def _stored(model: DoseModel) -> dict[str, Tensor]:
    """The weights in half precision, by role and name."""
    return {
        f"{role}.{name}": value.detach().cpu().to(torch.float16).contiguous()
        for role, net in (("mean", model.mean), ("residual", model.residual))
        if net is not None
        for name, value in net.state_dict().items()
    }


def _checksum(tensors: Mapping[str, Tensor], described: str) -> str:
    """SHA-256 over the description and the names, types and values of all weights."""
    digest = hashlib.sha256(described.encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous().reshape(-1)
        digest.update(f"{name} {value.dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(value.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weights_path(weights: str | Path) -> Path:
    """The file of weights: `shipped` or a path."""
    return SHIPPED if str(weights) == "shipped" else Path(weights)


def load_model(weights: str | Path = "shipped") -> DoseModel:
    """The model in a file, or the shipped one; on the CPU, in single precision, ready to predict.

    Raises InputError for a file that is missing, or was not written by `save_model`.
    """
    path = weights_path(weights)
    if not path.is_file():
        what = "are a folder" if path.is_dir() else "do not exist"
        raise InputError(f"weights {weights} {what}; give 'shipped' or a safetensors file of `train`")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"format {metadata.get('format')}")
        whole = metadata.get("sha256") == _checksum(stored, metadata["description"])
        # The shipped weights are older than the checksum; a copy of them is known by its bytes.
        if not whole and path != SHIPPED and ("sha256" in metadata or sha256_of(path) != sha256_of(SHIPPED)):
            raise ValueError("its checksum is absent or does not fit its content")
        tensors = {name: value.float() for name, value in stored.items()}
        described = parse_json(metadata["description"])
        description = TypeAdapter(ModelDescription).validate_python(described)
        fitted = description.calibration
        for factor in () if fitted is None else (fitted.spread, fitted.points or 0.0):
            if not 0 <= factor <= _SPREAD_MAX:
                raise ValueError(f"spread {factor:g} is outside 0 to {_SPREAD_MAX:g}")
        if broken := [name for name, value in tensors.items() if not bool(torch.isfinite(value).all())]:
            raise ValueError(f"{broken[0]} holds a weight that is not finite")
        return DoseModel(description, _loaded("mean", tensors, description), _residual(tensors, description))
    except (SafetensorError, ValidationError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path.name} holds no weights of this program's format {_FORMAT} ({reason}); "
            "write them again with `train`"
        ) from error


def _residual(tensors: Mapping[str, Tensor], description: ModelDescription) -> DoseNet | None:
    if not any(name.startswith("residual.") for name in tensors):
        return None
    return _loaded("residual", tensors, description)


def _loaded(role: str, tensors: Mapping[str, Tensor], description: ModelDescription) -> DoseNet:
    with torch.device("meta"):
        net = new_network(description)
    start = f"{role}."
    own = {name[len(start) :]: value for name, value in tensors.items() if name.startswith(start)}
    net.load_state_dict(own, assign=True)
    return net.eval().requires_grad_(False)
