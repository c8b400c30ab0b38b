"""The endless stream of samples that a training draws: each depends on the seeds and its number alone."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Dataset

from vmat_diffusion.diffusion.encode import Encoding
from vmat_diffusion.training.encoded import Changes, EncodedCases, Sample


class SampleStream(Dataset):
    """Sample `n` is a case of the order drawn for epoch `n // cases`, changed as is drawn for that epoch."""

    def __init__(
        self,
        files: Sequence[Path],
        encoding: Encoding,
        *,
        multiple: int,
        changes: Changes,
        seed: int,
        order_seed: int,
    ) -> None:
        self.cases = EncodedCases(tuple(files), encoding, multiple=multiple, changes=changes, seed=seed)
        self.order_seed = order_seed

    def __getitem__(self, n: int) -> tuple[int, Sample]:
        epoch, place = divmod(n, len(self.cases))
        order = np.random.default_rng([self.order_seed, epoch]).permutation(len(self.cases))
        self.cases.epoch = epoch
        return n, self.cases[int(order[place])]


def stream_loader(stream: SampleStream, numbers: range, *, workers: int) -> DataLoader:
    """Samples of these numbers one by one, read by `workers` processes (0: by this one)."""
    return DataLoader(
        stream,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_deaf,
    )


def _deaf(worker: int) -> None:
    """Leave signals to the process that trains: it still needs samples to finish its step."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
