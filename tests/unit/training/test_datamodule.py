"""The loaders for Lightning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training_cases import save_dataset, small_training

from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.training.augment import AugmentSettings
from vmat_diffusion.training.data import DataSettings

lightning = pytest.importorskip("lightning")
from vmat_diffusion.training.datamodule import CaseDataModule, LoaderSettings, split_ids  # noqa: E402

SPLITS = {
    "case_0001": "train",
    "case_0002": "train",
    "case_0003": "train",
    "case_0004": "validation",
    "case_0005": "test",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dataset(tmp_path_factory.mktemp("set"), [small_training(name) for name in SPLITS], SPLITS)


def _module(folder: Path, cache: Path, workers: int = 0) -> CaseDataModule:
    return CaseDataModule(
        folder,
        settings=DataSettings(crop=(8, 16, 20)),
        augment=AugmentSettings(rotation_deg="ninefold"),
        loader=LoaderSettings(batch_size=2, workers=workers),
        cache=cache,
    )


class _Seen(lightning.LightningModule):
    """A model that notes what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.trained: list[tuple[str, float]] = []
        self.validated: list[str] = []

    def training_step(self, batch: dict, index: int) -> torch.Tensor:
        self.trained += zip(batch["id"], batch["ct_hu"].sum(dim=(1, 2, 3, 4)).tolist(), strict=True)
        return self.weight * batch["dose_gy"].mean()

    def validation_step(self, batch: dict, index: int) -> None:
        self.validated += batch["id"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_fit_sees_each_case_once_per_epoch_and_newly_augmented(folder: Path, tmp_path: Path) -> None:
    model = _Seen()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(model, datamodule=_module(folder, tmp_path, workers=2))
    names = [name for name, _ in model.trained]
    assert sorted(names[:3]) == sorted(names[3:]) == ["case_0001", "case_0002", "case_0003"]
    assert model.validated == ["case_0004"] * 2
    first, second = (dict(model.trained[:3]), dict(model.trained[3:]))
    assert all(first[name] != second[name] for name in first)


def test_validation_is_not_augmented(folder: Path, tmp_path: Path) -> None:
    module = _module(folder, tmp_path)
    (validation,), (test,) = module.val_dataloader(), module.test_dataloader()
    assert (validation["id"], test["id"]) == (["case_0004"], ["case_0005"])
    assert not validation["flipped"].any()
    (again,) = module.val_dataloader()
    assert torch.equal(validation["ct_hu"], again["ct_hu"])


def test_refusals(folder: Path, tmp_path: Path) -> None:
    save_dataset(tmp_path, [small_training("case_0001")])
    with pytest.raises(CaseError, match=r"splits.json is missing; make it with vmat-diffusion split"):
        split_ids(tmp_path, "train")
    save_dataset(tmp_path, [small_training("case_0001")], {"case_0001": "train"})
    save_dataset(tmp_path, [small_training(name) for name in ("case_0001", "case_0002")])
    with pytest.raises(CaseError, match="1 cases of the data set have no split, the first is case_0002"):
        split_ids(tmp_path, "train")
    with pytest.raises(InputError, match="batch_size = 0"):
        LoaderSettings(batch_size=0)
