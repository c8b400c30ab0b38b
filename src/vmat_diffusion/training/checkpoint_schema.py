"""What a checkpoint and a record of a training may hold, checked before anything is made of them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked
from torch import Tensor

from vmat_diffusion.diffusion.model import ModelDescription, new_network
from vmat_diffusion.errors import InputError
from vmat_diffusion.training.settings import TrainingSettings, training_settings

_FIELDS = (
    "settings",
    "stage",
    "samples",
    "net",
    "ema",
    "optimizer",
    "mean",
    "residual",
    "sums",
    "validations",
    "origin",
)
# State of AdamW for each parameter: two tensors like the parameter, beside the number of steps.
_MOMENTS = ("exp_avg", "exp_avg_sq")
# What AdamW would do differently; a training never asks for it.
_FLAGS = ("amsgrad", "maximize", "capturable", "differentiable")

_Count = Annotated[int, Field(strict=True, ge=0)]
_Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class _Counts:
    stage: _Count
    samples: _Count
    validations: _Count
    sums: dict[str, _Real] | None


@checked(frozen=True, config=ConfigDict(extra="ignore"))
class _Group:
    """The numbers of AdamW."""

    lr: Annotated[_Real, Field(ge=0, le=1)]
    betas: tuple[Annotated[_Real, Field(ge=0, lt=1)], Annotated[_Real, Field(ge=0, lt=1)]]
    eps: Annotated[_Real, Field(gt=0, le=1)]
    weight_decay: Annotated[_Real, Field(ge=0)]
    params: list[_Count]


@dataclass(frozen=True)
class _Metric:
    """What is used of a line of the records; it holds more."""

    stage: _Count
    samples: _Count
    role: Literal["mean", "residual"]
    validation: dict[str, float | None] | None = None


_COUNTS, _GROUP, _METRIC = TypeAdapter(_Counts), TypeAdapter(_Group), TypeAdapter(_Metric)


def refuse_packed(path: Path) -> None:
    """Raise ValueError where anything is compressed, and an error of zipfile for a file that is no zip.

    Torch stores all plainly; what is compressed may be a thousand times larger in memory than on the disk.
    """
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise ValueError(f"{member.filename} is compressed")


def is_metric(record: object) -> bool:
    """Whether a line of the records has the place of its samples."""
    try:
        _METRIC.validate_python(record)
    except ValidationError:
        return False
    return isinstance(record, dict)


def fault_of(record: Mapping[str, Any]) -> str:
    """What is wrong with the fields of a checkpoint, in words; "" for none."""
    if set(record) != set(_FIELDS):
        return f"it has not the fields {', '.join(_FIELDS)}"
    try:
        _COUNTS.validate_python({name: record[name] for name in ("stage", "samples", "validations", "sums")})
        if not isinstance(record["settings"], dict):
            return "its settings are no table"
        if record["origin"] is not None and not isinstance(record["origin"], dict):
            return "its origin is no table"
        settings = training_settings(record["settings"])
    except ValidationError as fault:
        first = fault.errors()[0]
        return f"{'.'.join(str(p)[:40] for p in first['loc'])}: {first['msg']}"
    except InputError as fault:
        return str(fault)
    return _place_fault(record, settings) or _weights_fault(record, settings)


def _place_fault(record: Mapping[str, Any], settings: TrainingSettings) -> str:
    """Whether stage, samples and sums are of one training."""
    if record["stage"] >= len(settings.stages):
        return f"stage {record['stage'] + 1} of {len(settings.stages)}"
    stage = settings.stages[record["stage"]]
    if record["samples"] > stage.samples or record["samples"] % stage.accumulate:
        return f"{record['samples']} samples of a stage of {stage.samples}"
    sums = record["sums"]
    if sums and not ("loss" in sums and sums.get("samples", 0) > 0):
        return "its sums lack the loss or the number of samples"
    if stage.role == "residual" and record["mean"] is None:
        return "it lacks the regression on which a residual is learnt"
    return ""


def _weights_fault(record: Mapping[str, Any], settings: TrainingSettings) -> str:
    """Whether the weights and the state of the optimiser are those of the network."""
    with torch.device("meta"):
        net = new_network(ModelDescription(settings.encoding, settings.size, settings.process))
    like = net.state_dict()
    for name in ("net", "ema", "mean", "residual"):
        weights = record[name]
        if weights is None and name in ("mean", "residual"):
            continue
        if not isinstance(weights, dict) or set(weights) != set(like):
            return f"{name} holds other weights than the network"
        for key, value in weights.items():
            if not _is_like(value, like[key]):
                return f"{name} holds a weight of another shape or type, or one that is not finite: {key}"
    state = record["optimizer"]
    return "" if state is None else _optimizer_fault(state, list(net.parameters()))


def _optimizer_fault(state: object, parameters: list[Any]) -> str:
    fault = "the state of the optimiser does not fit the network"
    if not isinstance(state, dict) or set(state) != {"state", "param_groups"}:
        return fault
    groups, moments = state["param_groups"], state["state"]
    if not isinstance(groups, list) or len(groups) != 1 or not isinstance(moments, dict):
        return fault
    try:
        numbers = _GROUP.validate_python(groups[0])
    except ValidationError:
        return fault
    if numbers.params != list(range(len(parameters))) or any(groups[0].get(flag) for flag in _FLAGS):
        return fault
    for index, one in moments.items():
        if type(index) is not int or not 0 <= index < len(parameters) or not isinstance(one, dict):
            return fault
        step = one.get("step")
        if set(one) != {"step", *_MOMENTS} or not (
            isinstance(step, Tensor) and _is_like(step, torch.ones(()))
        ):
            return fault
        if step < 0 or not all(_is_like(one[name], parameters[index]) for name in _MOMENTS):
            return fault
    return ""


def _is_like(value: object, like: Tensor) -> bool:
    """Whether a value is a plain tensor of the same shape and type with finite numbers."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.shape == like.shape
        and value.dtype == like.dtype
        and bool(torch.isfinite(value).all())
    )
