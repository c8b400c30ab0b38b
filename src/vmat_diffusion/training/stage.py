"""One stage of a training for Lightning: the networks, their loss, their optimiser, their average."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from vmat_diffusion.diffusion.network import DoseNet
from vmat_diffusion.training.checkpoint import Checkpoint
from vmat_diffusion.training.encoded import Sample
from vmat_diffusion.training.objective import LOSSES
from vmat_diffusion.training.settings import TrainingSettings
from vmat_diffusion.training.stream import SampleStream, stream_loader

# What the network has for the role "residual" alone: without gradient in the role "mean".
_RESIDUAL_ONLY = ("sample_stem.", "from_sample.")


def new_network(settings: TrainingSettings) -> DoseNet:
    """A network of the settings' size with random weights, decided by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        net = DoseNet(len(settings.encoding.channels), settings.encoding.numbers, settings.size)
    return net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload,no-any-return]


class StageModule(LightningModule):
    """The stage of a checkpoint, from where it stands.

    `samples` counts what all processes have seen together, `sums` the losses of the current step in this one.
    """

    def __init__(
        self, settings: TrainingSettings, start: Checkpoint, stream: SampleStream, *, workers: int
    ) -> None:
        super().__init__()
        self.settings, self.stream, self.workers = settings, stream, workers
        self.stage = settings.stages[start.stage]
        self.first = sum(s.samples for s in settings.stages[: start.stage])
        self.samples = start.samples
        self.net = new_network(settings)
        self.net.load_state_dict(start.net)
        self.ema = copy.deepcopy(self.net).requires_grad_(False)
        self.ema.load_state_dict(start.ema)
        self.optimizer_state = start.optimizer
        if self.stage.role == "mean":
            for name, parameter in self.net.named_parameters():
                parameter.requires_grad_(not name.startswith(_RESIDUAL_ONLY))
        self.sums: dict[str, Tensor] = {}

    def train_dataloader(self) -> DataLoader:
        """This process's share of the samples still to come: every n-th, n being the number of processes."""
        numbers = range(
            self.first + self.samples + self.global_rank,
            self.first + self.stage.samples,
            self.trainer.world_size,
        )
        return stream_loader(self.stream, numbers, workers=self.workers)

    def transfer_batch_to_device(
        self, batch: tuple[int, Sample], device: torch.device, dataloader_idx: int
    ) -> tuple[int, Sample]:
        """The tensors of a sample on the device."""
        return batch[0], on_device(batch[1], device)

    def training_step(self, batch: tuple[int, Sample], batch_idx: int) -> Tensor:
        """The weighted losses of one sample."""
        number, sample = batch
        predicted = regression(self.net, sample) * sample.mask
        values = {name: LOSSES[name](predicted, sample) for name in self.stage.losses}
        weights = self.stage.weights(number - self.first)
        loss = sum((weights[name] * value for name, value in values.items()), start=predicted.new_zeros(()))
        for name, value in {"loss": loss, **values}.items():
            told = value.detach() * (1.0 if name == "loss" else sample.top_gy)
            self.sums[name] = self.sums.get(name, 0.0) + told
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW with the state of the checkpoint."""
        stage = self.stage
        optimizer = torch.optim.AdamW(
            self.net.parameters(),
            lr=stage.learning_rate,
            weight_decay=stage.weight_decay,
            betas=stage.betas,
        )
        if self.optimizer_state is not None:
            optimizer.load_state_dict(self.optimizer_state)
        return optimizer

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The learning rate of the step's last sample."""
        rate = self.stage.rate(self.samples + self.stage.accumulate - 1)
        for group in optimizer.param_groups:
            group["lr"] = rate

    def stepped(self) -> None:
        """Take a step of the optimiser into the average and the count."""
        self.samples += self.stage.accumulate
        steps = self.samples / self.stage.accumulate
        decay = min(self.stage.ema, (1 + steps) / (10 + steps))
        with torch.no_grad():
            for mean, now in zip(self.ema.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(now, 1 - decay)

    def predict_ema(self, sample: Sample) -> Tensor:
        """The dose of a sample by the averaged weights, in units of its highest prescription."""
        return regression(self.ema, sample)

    def state(self) -> dict[str, Any]:
        """The fields of a checkpoint that this module knows."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        return {
            "samples": self.samples,
            "net": self.net.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": optimizer.state_dict(),
        }


def regression(net: DoseNet, sample: Sample) -> Tensor:
    """The regression of the dose `[z, y, x]`, in single precision."""
    time = torch.ones(1, device=sample.volume.device)
    return net(net.anatomy(sample.volume, sample.vector), time)[0, 0].float()


def on_device(sample: Sample, device: torch.device) -> Sample:
    """The sample with its tensors on a device."""
    if device.type == "cpu":
        return sample
    moved = {
        k: getattr(sample, k).to(device, non_blocking=True) for k in ("volume", "vector", "dose", "mask")
    }
    regions = tuple(replace(r, flat=r.flat.to(device, non_blocking=True)) for r in sample.regions)
    return replace(sample, regions=regions, **moved)
