"""The training of a dose model, stage by stage, from one checkpoint to the next."""

from __future__ import annotations

import logging
import os
import subprocess
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from lightning import Trainer
from lightning.fabric.plugins.environments import SLURMEnvironment

from vmat_diffusion.errors import InputError, LimitError
from vmat_diffusion.progress import Progress, silent
from vmat_diffusion.training.callback import TrainingCallback
from vmat_diffusion.training.checkpoint import CHECKPOINT, Checkpoint, save_checkpoint
from vmat_diffusion.training.encoded import TrainingData
from vmat_diffusion.training.samples import SampleStream
from vmat_diffusion.training.settings import TrainingSettings
from vmat_diffusion.training.stage import StageModule
from vmat_diffusion.training.weights import with_zero_output


@dataclass(frozen=True)
class Machinery:
    """The hardware of a training: devices of each of `nodes` computers, loading processes of each device."""

    devices: int = 1
    nodes: int = 1
    workers: int = 1

    @property
    def processes(self) -> int:
        """Number of training processes."""
        return self.devices * self.nodes


@dataclass(frozen=True, eq=False)
class TrainingEnd:
    """The last checkpoint of a training, and the signal that ended it; None if all stages are done."""

    checkpoint: Checkpoint
    signal: int | None
    first_process: bool


def train(
    settings: TrainingSettings,
    start: Checkpoint,
    data: TrainingData,
    out: Path,
    machinery: Machinery = Machinery(),
    *,
    progress: Progress = silent,
) -> TrainingEnd:
    """Train from `start` to the end of the last stage or to a signal, with checkpoints and records in `out`.

    SIGINT, SIGTERM and SIGUSR1 end the training after the current step, with a checkpoint. Raises InputError
    where the processes cannot share the samples of a step and where the loss is no number.
    """
    for number, stage in enumerate(settings.stages, start=1):
        if stage.accumulate % machinery.processes:
            raise InputError(
                f"training stage {number}: {machinery.processes} devices cannot share the {stage.accumulate} "
                "samples of a step evenly; make accumulate a multiple of the number of devices"
            )
    checkpoint = start
    while True:
        end = _run_stage(settings, checkpoint, data, out, machinery=machinery, progress=progress)
        if end.signal or end.checkpoint.stage + 1 == len(settings.stages):
            return end
        checkpoint = _next_stage(settings, end.checkpoint)
        if end.first_process:
            save_checkpoint(out / CHECKPOINT, checkpoint)


def _next_stage(settings: TrainingSettings, done: Checkpoint) -> Checkpoint:
    """The start of the next stage: from the averaged weights, or from a residual that came with the start."""
    role = settings.stages[done.stage + 1].role
    weights = done.ema if done.residual is None or role == "mean" else done.residual
    before = settings.stages[done.stage].role
    if before != role and done.residual is None:
        weights = with_zero_output(weights)
    return replace(
        done,
        stage=done.stage + 1,
        samples=0,
        net=weights,
        ema=weights,
        optimizer=None,
        mean=done.ema if before == "mean" else done.mean,
        residual=done.residual if role == "mean" else None,
        sums=None,
    )


def _run_stage(
    settings: TrainingSettings,
    start: Checkpoint,
    data: TrainingData,
    out: Path,
    *,
    machinery: Machinery,
    progress: Progress,
) -> TrainingEnd:
    """Train one stage from a checkpoint in it."""
    stage = settings.stages[start.stage]
    stream = SampleStream(
        data.train,
        settings.encoding,
        multiple=settings.size.multiple,
        settings=settings.changes,
        seed=settings.seed,
        order_seed=settings.order_seed,
    )
    module = StageModule(settings, start, stream, workers=machinery.workers)
    callback = TrainingCallback(module, start, data, out, progress=progress)
    with _quiet():
        trainer = Trainer(
            accelerator="gpu" if torch.cuda.is_available() else "cpu",
            devices=machinery.devices,
            num_nodes=machinery.nodes,
            strategy="ddp" if machinery.processes > 1 else "auto",
            precision=_precision(settings),
            plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else None,
            max_epochs=1,
            accumulate_grad_batches=stage.accumulate // machinery.processes,
            gradient_clip_val=stage.clip,
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        if start.samples == stage.samples:
            return TrainingEnd(start, None, trainer.is_global_zero)
        with _processes_in_step(out):
            trainer.fit(module)
    return TrainingEnd(callback.checkpoint(), callback.signal, trainer.is_global_zero)


def _precision(settings: TrainingSettings) -> Literal["bf16-mixed", "32-true"]:
    if settings.precision != "auto":
        return settings.precision
    return "bf16-mixed" if torch.cuda.is_available() else "32-true"


@contextmanager
def _processes_in_step(out: Path) -> Iterator[None]:
    """LimitError with the way on where training processes have lost each other.

    Torch raises RuntimeError of the transport's words where one has ended, or all have slept for 30 minutes.
    """
    try:
        yield
    except RuntimeError as fault:
        if not any(transport in str(fault) for transport in ("gloo", "NCCL", "ProcessGroup")):
            raise
        raise LimitError(
            "a training process stopped answering, as one that ended or slept for 30 minutes; "
            f"the last checkpoint is in {out}, go on with --resume"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of Lightning and torch about choices that are made on purpose here."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def requeue() -> bool:
    """Put this SLURM job into the queue again; False where there is none or it cannot be."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    try:
        return subprocess.run(["scontrol", "requeue", job], stdout=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False
