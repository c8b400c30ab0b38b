"""The loaders of a data set for Lightning; needs the extra `train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from vmat_diffusion.errors import InputError
from vmat_diffusion.training.augment import AugmentSettings
from vmat_diffusion.training.cache import default_cache
from vmat_diffusion.training.data import CaseDataset, DataSettings, EpochSampler, entries_of
from vmat_diffusion.training.splits import FILE, Split, load_splits


@dataclass(frozen=True)
class LoaderSettings:
    """How items become batches: `workers` processes that each keep `prefetch` batches ready.

    `pin_memory` None pins where there is a GPU. Workers live as long as the loader.
    """

    batch_size: int = 2
    workers: int = 2
    prefetch: int = 2
    pin_memory: bool | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0 or self.prefetch < 1:
            raise InputError(
                f"loading: batch_size = {self.batch_size} and prefetch = {self.prefetch} must be at least 1, "
                f"workers = {self.workers} at least 0"
            )


class CaseDataModule(LightningDataModule):
    """Loaders of the splits of a data set folder: training cases augmented, the others whole and in order.

    Items are in physical units (`docs/loading.md`). `cache` None takes the user's own temporary folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: DataSettings | None = None,
        augment: AugmentSettings | None = None,
        loader: LoaderSettings | None = None,
        cache: Path | None = None,
    ) -> None:
        super().__init__()
        self.folder = folder
        self.settings = settings or DataSettings()
        self.augment = augment or AugmentSettings()
        self.loader = loader or LoaderSettings()
        self.cache = cache or default_cache()
        self._datasets: dict[Split, CaseDataset] = {}

    def dataset(self, split: Split) -> CaseDataset:
        """The data set of a split, made once."""
        if split not in self._datasets:
            self._datasets[split] = CaseDataset(
                self.folder,
                split_ids(self.folder, split),
                settings=self.settings,
                augment=self.augment if split == "train" else None,
                cache=self.cache,
            )
        return self._datasets[split]

    def train_dataloader(self) -> DataLoader:
        """Augmented training cases, shuffled anew in each epoch."""
        dataset = self.dataset("train")
        replicas, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        return self._loader(dataset, EpochSampler(dataset, replicas=replicas, rank=rank))

    def val_dataloader(self) -> DataLoader:
        """Validation cases as they are."""
        return self._loader(self.dataset("validation"))

    def test_dataloader(self) -> DataLoader:
        """Test cases as they are."""
        return self._loader(self.dataset("test"))

    def _loader(self, dataset: CaseDataset, sampler: EpochSampler | None = None) -> DataLoader:
        wanted = self.loader
        several = wanted.workers > 0
        return DataLoader(
            dataset,
            batch_size=wanted.batch_size,
            sampler=sampler,
            num_workers=wanted.workers,
            pin_memory=torch.cuda.is_available() if wanted.pin_memory is None else wanted.pin_memory,
            persistent_workers=several,
            prefetch_factor=wanted.prefetch if several else None,
        )


def split_ids(folder: Path, split: Split) -> tuple[str, ...]:
    """The ids of a split of a data set.

    Raises CaseError where splits.json is absent, was changed, or does not fit the index.
    """
    return load_splits(folder / FILE, [entry.id for entry in entries_of(folder)]).ids(split)
