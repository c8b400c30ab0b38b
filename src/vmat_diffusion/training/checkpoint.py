"""The files of a training run: the checkpoint from which it resumes, and the records of its progress."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.errors import InputError, LimitError, limit_of
from vmat_diffusion.files import parse_json, written_whole
from vmat_diffusion.training.checkpoint_schema import fault_of, is_metric, refuse_packed

CHECKPOINT, METRICS = "last.ckpt", "metrics.jsonl"
_FORMAT = 2


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The state of a training after `samples` samples of stage number `stage` (from 0).

    `net` and `ema` are the weights and their average, `optimizer` the state of AdamW, None before the first
    step. `mean` are the weights of the regression to which a residual is added. A later stage of the role
    residual starts from `residual`, or from the regression where that is None. `sums` holds the losses since
    the last record, `validations` counts validations, `settings` is plain data. `origin` is the record of the
    weights that the training began with.
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
    origin: dict[str, Any] | None = None


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint; the file appears whole or not at all."""
    record = {f.name: getattr(checkpoint, f.name) for f in fields(checkpoint)}
    with written_whole(path) as part:
        torch.save({"format": _FORMAT, **record}, part)
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint into the memory of the CPU; only tensors and plain data are accepted.

    Settings, counts and the names, shapes and values of all weights are checked. Raises InputError for a file
    that is missing, damaged, no checkpoint or of another format.
    """
    if not path.is_file():
        raise InputError(f"{path.parent} holds no {path.name}; name the folder of a training")
    remedy = "train again or restore the file"
    try:
        refuse_packed(path)
        record = torch.load(path, map_location="cpu", weights_only=True)
        stated = record.pop("format", None) if isinstance(record, dict) else None
    except Exception as fault:  # the reader of such files raises whatever a damaged one makes it stumble on
        if limit := limit_of(fault):
            raise LimitError(f"{path}: {limit}") from None
        raise InputError(f"{path} is no readable checkpoint; {remedy}") from None
    if not isinstance(stated, int) or stated != _FORMAT:
        raise InputError(f"{path} is a checkpoint of another version; go on with the version that made it")
    if wrong := fault_of(record):
        raise InputError(f"{path} is no checkpoint that a training can go on from: {wrong}; {remedy}")
    return Checkpoint(**record)


class TrainingRecords:
    """Writes the records of a run from `(stage, samples)` on, and removes later ones of an interrupted run.

    `step` counts the samples of all stages. Records are JSON lines and curves for TensorBoard.
    """

    def __init__(self, folder: Path, *, stage: int = 0, samples: int = 0, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / METRICS
        kept = [r for r in read_metrics(folder) if (r["stage"], r["samples"]) <= (stage, samples)]
        with written_whole(self.path) as part:
            part.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, record: Mapping[str, Any], step: int) -> None:
        """Write a record as a line, and each of its numbers as a point of a curve."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        group = str(record["role"]) + ("/validation" if "validation" in record else "")
        for name, value in {**record, **record.get("validation", {})}.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{group}/{name}", value, step)
        self._board.flush()

    def picture(self, name: str, gray: NDArray[np.float32], step: int) -> None:
        """Write an image `[rows, columns]` of values from 0 to 1."""
        self._board.add_image(name, gray, step, dataformats="HW")

    def close(self) -> None:
        """Finish the files."""
        self._board.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All records of a run so far, without an incomplete last line.

    Raises InputError for a damaged file: to go on would drop its records.
    """
    path = folder / METRICS
    if not path.exists():
        return []
    records = []
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, *([last] if last else [])], start=1):
        try:
            record = parse_json(line.decode("utf-8"), characters=1_000_000, finite=False)
            if not is_metric(record):
                raise ValueError("another record")
        except ValueError:
            if number > len(lines):  # cut off by a crash while it was written
                break
            raise InputError(
                f"{path}, line {number} is no record of a training; move the file away, then the training "
                "goes on without its earlier records"
            ) from None
        records.append(record)
    return records
