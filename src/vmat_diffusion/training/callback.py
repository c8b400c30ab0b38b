"""Between the steps of a training: records, validation, checkpoints, and the end by a signal."""

from __future__ import annotations

import math
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from vmat_diffusion.errors import InputError
from vmat_diffusion.progress import Progress
from vmat_diffusion.training.checkpoint import CHECKPOINT, Checkpoint, TrainingRecords, save_checkpoint
from vmat_diffusion.training.encoded import TrainingData
from vmat_diffusion.training.samples import SIGNALS, EncodedCases
from vmat_diffusion.training.stage import StageModule
from vmat_diffusion.training.validation import CaseValidation, picture, summary, validate


class TrainingCallback(Callback):
    """Records, validates and saves after the steps of the optimiser in one stage.

    `signal` is the signal that ended the stage, if any; it is the same in all processes. The project handles
    signals and checkpoints itself, between steps: Lightning would save in the middle of a step and begin
    the epoch anew, so that a resumed training would follow another curve.
    """

    def __init__(
        self,
        module: StageModule,
        start: Checkpoint,
        data: TrainingData,
        out: Path,
        *,
        progress: Progress,
    ) -> None:
        self.module, self.start, self.data, self.out = module, start, data, out
        self.settings, self.stage = module.settings, module.stage
        self.progress = progress
        self.sums, self.validations = dict(start.sums or {}), start.validations
        self.cases = EncodedCases(
            data.validation, self.settings.encoding, multiple=self.settings.size.multiple
        )
        self.signal: int | None = None
        self.note = ""
        self._received: int | None = None
        self._records: TrainingRecords | None = None
        self._handlers: dict[int, Any] = {}
        self._logged = self._saved = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Handle the signals, and go on with the records of the checkpoint."""
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        if trainer.is_global_zero:
            self._records = TrainingRecords(
                self.out,
                stage=self.start.stage,
                samples=self.module.samples,
                step=self.module.first + self.module.samples,
            )
        self._logged = self._saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record, validate and save when it is time; stop after a signal."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        before = self.module.samples
        self.module.after_step()
        self._gather(trainer)
        finished = self.module.samples == self.stage.samples
        if before // self.settings.log_every != self.module.samples // self.settings.log_every:
            self._log()
        every = self.settings.validate_every
        if finished or before // every != self.module.samples // every:
            self._validate(trainer)
        old = time.monotonic() - self._saved > 60 * self.settings.checkpoint_minutes
        if trainer.is_global_zero and (old or finished or self.signal):
            save_checkpoint(self.out / CHECKPOINT, self.checkpoint())
            self._saved = time.monotonic()
        self._report()
        trainer.should_stop = self.signal is not None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the signal handlers."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the signal handlers."""
        self._close()

    def checkpoint(self) -> Checkpoint:
        """The state of the stage between two steps."""
        return replace(self.start, sums=dict(self.sums), validations=self.validations, **self.module.state())

    def _close(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self._records:
            self._records.close()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:  # Ctrl-C again: at once
            raise KeyboardInterrupt
        self._received = number

    def _gather(self, trainer: Trainer) -> None:
        """Collect the losses of the step and the signals of all processes: all take the same decision."""
        names = sorted(self.module.sums)
        mine = torch.stack([*(self.module.sums[n].double() for n in names)]).cpu()
        row = torch.cat([mine, torch.tensor([float(self._received or 0)], dtype=torch.float64)])
        rows = trainer.strategy.all_gather(row.to(self.module.device)).reshape(-1, len(row)).cpu()
        for name, value in zip(names, rows[:, :-1].sum(0).tolist(), strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.sums["samples"] = self.sums.get("samples", 0.0) + self.stage.accumulate
        self.signal = int(rows[:, -1].max()) or None
        self.module.sums.clear()
        if not math.isfinite(self.sums["loss"]):
            raise InputError(
                f"the loss is no number after {self.module.samples} samples; lower the learning rate "
                "and go on from the last checkpoint, or train with precision 32-true"
            )

    def _log(self) -> None:
        """Record the mean losses since the last record."""
        count = self.sums.pop("samples")
        seconds = time.monotonic() - self._logged
        means = {name: value / count for name, value in self.sums.items()}
        self.note = f"loss {means['loss']:.4f}"
        rates = {
            "learning_rate": self.stage.rate(self.module.samples - 1),
            "samples_per_s": count / seconds,
        }
        self._write({**means, **rates})
        self.sums = {}
        self._logged = time.monotonic()

    def _validate(self, trainer: Trainer) -> None:
        """Record the scores of the averaged weights on all validation cases, which the processes share."""
        began = time.monotonic()
        self._report("validation")
        every = self.settings.gamma_every
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            mine = validate(
                self.module.predict_ema,
                self.cases,
                self.data.spacings_mm,
                device=self.module.device,
                gamma_cases=self.settings.gamma_cases if every and self.validations % every == 0 else 0,
                first=trainer.global_rank,
                every=trainer.world_size,
            )
            if self._records:
                shown = picture(self.module.predict_ema, self.cases[0], self.module.device)
                name = f"{self.stage.role}/reference, prediction, difference"
                self._records.picture(name, shown, self.module.first + self.module.samples)
        self.validations += 1
        figures = summary(_gathered(mine, trainer.world_size))
        self._write({"validation": {**figures, "seconds": time.monotonic() - began}})
        self.note = (
            f"dose score {figures['dose_score_gy']:.3f} Gy, DVH score {figures['dvh_score_gy']:.3f} Gy"
        )
        self._logged += time.monotonic() - began

    def _write(self, figures: dict[str, Any]) -> None:
        where = {"stage": self.start.stage, "role": self.stage.role, "samples": self.module.samples}
        if self._records:
            self._records.write({**where, **figures}, self.module.first + self.module.samples)

    def _report(self, note: str | None = None) -> None:
        share = self.module.samples / self.stage.samples
        self.progress(
            "train", share, f"{self.module.samples} of {self.stage.samples} samples, {note or self.note}"
        )


def _gathered(mine: list[CaseValidation], processes: int) -> list[CaseValidation]:
    """The results of all processes, by case."""
    shares: list[list[CaseValidation]] = [mine]
    if processes > 1:
        shares = [[] for _ in range(processes)]
        torch.distributed.all_gather_object(shares, mine)
    return sorted((r for share in shares for r in share), key=lambda r: r.name)
