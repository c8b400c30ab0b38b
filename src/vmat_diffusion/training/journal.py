"""The record of a training: `metrics.jsonl`, and the same with images for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.files import written_whole

METRICS = "metrics.jsonl"


class Journal:
    """Writes the records of a run from `(stage, samples)` on; later ones, of a run cut short, are removed.

    `step` counts the samples of all stages.
    """

    def __init__(self, folder: Path, *, stage: int = 0, samples: int = 0, step: int = 0) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / METRICS
        kept = [r for r in read_metrics(folder) if (r["stage"], r["samples"]) <= (stage, samples)]
        with written_whole(self.path) as part:
            part.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, record: Mapping[str, Any], step: int) -> None:
        """One line, and every number of it as a curve."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")
        group = str(record["role"]) + ("/validation" if "validation" in record else "")
        for name, value in {**record, **record.get("validation", {})}.items():
            if isinstance(value, float):
                self._board.add_scalar(f"{group}/{name}", value, step)
        self._board.flush()

    def picture(self, name: str, gray: NDArray[np.float32], step: int) -> None:
        """An image `[rows, columns]` of values from 0 to 1."""
        self._board.add_image(name, gray, step, dataformats="HW")

    def close(self) -> None:
        """Finish the files."""
        self._board.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All records of a run so far; a last line that was cut off is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records
