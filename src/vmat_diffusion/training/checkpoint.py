"""Where a training stands, in one file from which it goes on as if it had never stopped."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmat_diffusion.errors import InputError
from vmat_diffusion.files import written_whole

CHECKPOINT = "last.ckpt"
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """After `samples` samples of stage number `stage` (from 0).

    `net` and `ema` are the weights and their average, `optimizer` the state of AdamW, None before the first
    step. `mean` is the regression that a residual refers to, `residual` what a later stage for it begins with
    instead of the mean's. `sums` holds the losses since the last record,
    `validations` counts those done, `settings` is plain data.
    """

    settings: dict[str, Any]
    stage: int
    samples: int
    net: dict[str, Tensor]
    ema: dict[str, Tensor]
    optimizer: dict[str, Any] | None = None
    mean: dict[str, Tensor] | None = None
    residual: dict[str, Tensor] | None = None
    sums: dict[str, float] | None = None
    validations: int = 0


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint; the file appears whole or not at all."""
    record = {f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)}
    with written_whole(path) as part:
        torch.save({"format": _FORMAT, **record}, part)
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint to the processor's memory; only tensors and plain data are accepted.

    Raises InputError for a file that is missing, damaged, no checkpoint or of another format.
    """
    if not path.is_file():
        raise InputError(f"{path.parent} holds no {path.name}; name the folder of a training")
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
        if record.pop("format") != _FORMAT:
            raise InputError(
                f"{path} is a checkpoint of another version; go on with the version that made it"
            )
        return Checkpoint(**record)
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, pickle.UnpicklingError):
        raise InputError(f"{path} is no readable checkpoint; train again or restore the file") from None
