"""One stage of a training as a Lightning module: networks, loss, optimiser, average of the weights (EMA)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from vmat_diffusion.diffusion.network import DoseNet
from vmat_diffusion.errors import InputError
from vmat_diffusion.training.checkpoint import Checkpoint
from vmat_diffusion.training.losses import LOSSES, RESIDUAL
from vmat_diffusion.training.roles import denoise, regression, residual_base, sample_doses
from vmat_diffusion.training.samples import Sample, SampleStream, stream_loader
from vmat_diffusion.training.settings import TrainingSettings
from vmat_diffusion.training.weights import initial_network

# A training ends after so many steps in a row without a finite gradient.
_MOST_LEFT_OUT = 10
# Layers of the role "residual" alone; they have no gradient in the role "mean".
_RESIDUAL_ONLY = ("sample_stem.", "from_sample.")


class StageModule(LightningModule):
    """The stage of a checkpoint; it goes on after the checkpoint's last sample.

    `samples` counts the samples of the stage in all processes together; `sums` are the losses of the current
    step in this process.
    """

    def __init__(
        self, settings: TrainingSettings, start: Checkpoint, stream: SampleStream, *, workers: int
    ) -> None:
        super().__init__()
        self.settings, self.stream, self.workers = settings, stream, workers
        self.stage = settings.stages[start.stage]
        self.first = sum(s.samples for s in settings.stages[: start.stage])
        self.samples = start.samples
        self.net = initial_network(settings)
        self.net.load_state_dict(start.net)
        self.ema = _frozen_copy(self.net, start.ema)
        self.mean: DoseNet | None = None
        if self.stage.role == "mean":
            for name, parameter in self.net.named_parameters():
                parameter.requires_grad_(not name.startswith(_RESIDUAL_ONLY))
        elif start.mean is None:
            raise InputError("a residual is learnt on a mean; put a stage with role mean before it")
        else:
            self.mean = _frozen_copy(self.net, start.mean)
        self.optimizer_state = start.optimizer
        self.sums: dict[str, Any] = {}
        self.left_out = 0

    def train_dataloader(self) -> DataLoader:
        """This process's share of the samples still to come: every n-th of n processes."""
        numbers = range(
            self.first + self.samples + self.global_rank,
            self.first + self.stage.samples,
            self.trainer.world_size,
        )
        return stream_loader(self.stream, numbers, workers=self.workers)

    def transfer_batch_to_device(
        self, batch: tuple[int, Sample | InputError], device: torch.device, dataloader_idx: int
    ) -> tuple[int, Sample]:
        """The tensors of a sample on the device. Raises InputError where its file could not be read."""
        number, sample = batch
        if isinstance(sample, InputError):
            raise sample
        return number, on_device(sample, device)

    def training_step(self, batch: tuple[int, Sample], batch_idx: int) -> Tensor:
        """The weighted losses of one sample."""
        number, sample = batch
        values: dict[str, Tensor] = {}
        if self.mean is None:
            predicted = regression(self.net, sample)
        else:
            seed = (self.settings.seed, number)
            base = residual_base(self.mean, sample)
            predicted, values[RESIDUAL] = denoise(self.net, base, sample, self.settings.process, seed)
        predicted = predicted * sample.mask
        values |= {n: LOSSES[n](predicted, sample) for n in self.stage.losses if n in LOSSES}
        weights = self.stage.weights(number - self.first)
        loss = sum((weights[n] * values[n] for n in self.stage.losses), start=predicted.new_zeros(()))
        self._add("loss", loss)
        for name, value in values.items():
            in_gy = name in LOSSES
            self._add(f"{name}_gy" if in_gy else name, value * sample.top_gy if in_gy else value)
        return loss

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + value.detach()

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
            # AdamW would go on in the tensors of the checkpoint itself.
            optimizer.load_state_dict(copy.deepcopy(self.optimizer_state))
        return optimizer

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The learning rate of the step's last sample."""
        rate = self.stage.rate(self.samples + self.stage.accumulate - 1)
        for group in optimizer.param_groups:
            group["lr"] = rate

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of the gradient, and leave out a step whose gradient is not finite.

        bfloat16 sometimes gives such a gradient for very small volumes. Raises InputError after several in a
        row.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), gradient_clip_val or self.stage.clip)
        self.left_out = 0 if norm.isfinite() else self.left_out + 1
        if self.left_out:
            optimizer.zero_grad(set_to_none=True)
        if self.left_out == _MOST_LEFT_OUT:
            raise InputError(
                f"the gradient is not finite in {self.left_out} steps in a row after {self.samples} samples; "
                "lower the learning rate and go on from the last checkpoint, or train with precision 32-true"
            )

    def after_step(self) -> None:
        """Update the average of the weights (EMA) and the count of samples after a step of the optimiser."""
        self.samples += self.stage.accumulate
        steps = self.samples / self.stage.accumulate
        decay = min(self.stage.ema, (1 + steps) / (10 + steps))
        with torch.no_grad():
            for average, current in zip(self.ema.parameters(), self.net.parameters(), strict=True):
                average.lerp_(current, 1 - decay)

    def predict_ema(self, sample: Sample) -> Tensor:
        """Doses `[k, z, y, x]` of the averaged weights in units of the prescription: one, or the samples."""
        if self.mean is None:
            return regression(self.ema, sample)[None]
        return sample_doses(
            self.ema,
            residual_base(self.mean, sample),
            sample,
            self.settings.process,
            samples=self.settings.validate_samples,
            steps=self.settings.validate_steps,
        )

    def state(self) -> dict[str, Any]:
        """The fields of a checkpoint that come from this module."""
        optimizer: Any = self.optimizers(use_pl_optimizer=False)
        return {
            "samples": self.samples,
            "net": self.net.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": optimizer.state_dict(),
        }


def on_device(sample: Sample, device: torch.device) -> Sample:
    """The sample with its tensors on a device."""
    if device.type == "cpu":
        return sample
    moved = {
        k: getattr(sample, k).to(device, non_blocking=True) for k in ("volume", "vector", "dose", "mask")
    }
    structures = tuple(replace(s, flat=s.flat.to(device, non_blocking=True)) for s in sample.structures)
    return replace(sample, structures=structures, **moved)


def _frozen_copy(like: DoseNet, weights: Mapping[str, Tensor]) -> DoseNet:
    """A network like another, with weights that are not trained."""
    net = copy.deepcopy(like).requires_grad_(False)
    net.load_state_dict(weights)
    return net
