"""`train` and `fine-tune`: a dose model from a data set folder."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from vmat_diffusion.errors import InputError
from vmat_diffusion.files import remove_dead_parts, written_whole
from vmat_diffusion.progress import Progress, silent
from vmat_diffusion.workflow.export import KNOWN, WEIGHTS, export_checkpoint, origin_of
from vmat_diffusion.workflow.output import require_apart

if TYPE_CHECKING:
    from vmat_diffusion.dataset.index import Entry
    from vmat_diffusion.dataset.splits import Split
    from vmat_diffusion.diffusion.model import DoseModel
    from vmat_diffusion.training.checkpoint import Checkpoint
    from vmat_diffusion.training.encoded import TrainingData
    from vmat_diffusion.training.loop import Machinery
    from vmat_diffusion.training.settings import TrainingSettings

SETTINGS = "settings.json"
# The file with a hash of the cases of a training.
DATA = "cases.sha256"
_SPLITS: tuple[Split, ...] = ("train", "validation")
# With fewer cases there is no range.
_FEWEST_KNOWN = 2
# Settings that may change when a training is resumed: they change no weight.
_FREE = (
    "validate_every",
    "validate_samples",
    "validate_steps",
    "log_every",
    "checkpoint_minutes",
    "gamma_every",
    "gamma_cases",
)


@dataclass(frozen=True)
class TrainingRun:
    """The result of a training: samples of the last stage, the signal that ended it, the last scores."""

    out: Path
    stage: int
    stages: int
    samples: int
    of: int
    signal: int | None
    requeued: bool
    first_process: bool
    validation: Mapping[str, float]
    seconds: float

    @property
    def finished(self) -> bool:
        """Whether every stage is done."""
        return self.stage == self.stages and self.samples == self.of

    def summary(self) -> dict[str, Any]:
        """The object that `train --json` prints."""
        return {
            "out": str(self.out),
            "stage": self.stage,
            "stages": self.stages,
            "samples": self.samples,
            "of": self.of,
            "finished": self.finished,
            "requeued": self.requeued,
            "validation": dict(self.validation),
            "seconds": round(self.seconds, 1),
        }


def train_model(
    config: Path | str,
    data: Path,
    out: Path,
    *,
    machinery: Machinery,
    weights: Path | None = None,
    cache: Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> TrainingRun:
    """Train by the settings of `config` on the data set folder `data`, with everything in `out`.

    `config` is a shipped recipe's name or a TOML file, `weights` a file of weights to begin with (None:
    random). `resume` goes on with the checkpoint in
    `out`, if there is one, and follows the same curve. `cache` keeps
    the encoded cases (None: `out/encoded`). Raises InputError where `out` holds another training.
    """
    from vmat_diffusion.diffusion.model import load_model
    from vmat_diffusion.training.settings import load_settings
    from vmat_diffusion.training.weights import start_fresh

    folders = _Folders.of(data, out, cache)
    settings = load_settings(config)
    start = _resumed(out, settings, resume=resume)
    if start is None:
        start = start_fresh(settings) if weights is None else _started(load_model(weights), settings)
    return _train(settings, start, folders, machinery, progress=progress)


def fine_tune(
    site: str,
    weights: str | Path,
    data: Path,
    out: Path,
    *,
    machinery: Machinery,
    config: str | Path | None = None,
    cache: Path | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> TrainingRun:
    """Train weights further on the cases of one site, with the organs of that site.

    `config` replaces the short recipe; for the rest see `train_model`. Raises InputError for an unknown site.
    """
    from vmat_diffusion.diffusion.model import load_model
    from vmat_diffusion.training.settings import load_settings
    from vmat_diffusion.training.weights import tuning_settings

    folders = _Folders.of(data, out, cache)
    model = load_model(weights)
    settings = tuning_settings(model, site, load_settings(config) if config else None)
    start = _resumed(out, settings, resume=resume) or _started(model, settings)
    return _train(settings, start, folders, machinery, site=site, progress=progress)


def _started(model: DoseModel, settings: TrainingSettings) -> Checkpoint:
    """The start of a training from a model, whose record it keeps."""
    from vmat_diffusion.training.weights import start_from

    return replace(start_from(model, settings), origin=origin_of(model))


@dataclass(frozen=True)
class _Folders:
    """The folders of a training: the data set, the results, the encoded cases."""

    data: Path
    out: Path
    cache: Path

    @classmethod
    def of(cls, data: Path, out: Path, cache: Path | None) -> _Folders:
        """Without `cache` the encoded cases lie in the results. Raises InputError where one is an input."""
        require_apart(out, data)
        if cache is not None:
            require_apart(cache, data, option="--cache")
        return cls(data, out, cache or out / "encoded")


def _train(
    settings: TrainingSettings,
    start: Checkpoint,
    folders: _Folders,
    machinery: Machinery,
    *,
    site: str | None = None,
    progress: Progress,
) -> TrainingRun:
    """Encode the cases, train from `start`, put the job back into the queue or write the weights."""
    from vmat_diffusion.training.checkpoint import read_metrics
    from vmat_diffusion.training.encoded import entries_with_dose
    from vmat_diffusion.training.loop import TrainingEnd, requeue, train
    from vmat_diffusion.training.settings import settings_record

    began, out = time.monotonic(), folders.out
    out.mkdir(parents=True, exist_ok=True)
    for folder in {out, folders.cache}:
        remove_dead_parts(folder)
    parts = {split: entries_with_dose(folders.data, split, site) for split in _SPLITS}
    _require_same_cases(parts, folders)
    with written_whole(out / SETTINGS) as part:
        part.write_text(json.dumps(settings_record(settings), indent=1) + "\n", encoding="utf-8")
    was_finished = _is_end(start, settings)
    usr1 = getattr(signal, "SIGUSR1", None)
    try:
        with _raising_on(usr1):
            cases = _encode(parts, folders, settings, machinery, progress)
            _write_known(parts["train"], folders, settings)
    except _Warned:
        end = TrainingEnd(start, usr1, not _rank())
    else:
        start = replace(start, settings=settings_record(settings))  # free settings may have changed
        end = train(settings, start, cases, out, machinery, progress=progress)
    finished = _is_end(end.checkpoint, settings)
    requeued = end.first_process and end.signal is not None and end.signal == usr1 and not finished
    requeued = requeued and requeue()
    last: Mapping[str, float] = {}
    for record in read_metrics(out):
        last = record.get("validation", last)
    run = TrainingRun(
        out=out,
        stage=end.checkpoint.stage + 1,
        stages=len(settings.stages),
        samples=end.checkpoint.samples,
        of=settings.stages[end.checkpoint.stage].samples,
        signal=end.signal,
        requeued=requeued,
        first_process=end.first_process,
        validation=last,
        seconds=time.monotonic() - began,
    )
    if run.finished and run.first_process and not (was_finished and (out / WEIGHTS).exists()):
        export_checkpoint(end.checkpoint, out, out / WEIGHTS)
    return run


class _Warned(Exception):
    """The batch system announced the end of the job before the first step."""


@contextmanager
def _raising_on(number: int | None) -> Iterator[None]:
    """Raise _Warned when the signal comes; cases that are encoded by then are kept."""
    if number is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def warned(number: int, frame: FrameType | None) -> None:
        raise _Warned

    before = signal.signal(number, warned)
    try:
        yield
    finally:
        signal.signal(number, before)


def _is_end(checkpoint: Checkpoint, settings: TrainingSettings) -> bool:
    """Whether all stages are done."""
    return (checkpoint.stage + 1, checkpoint.samples) == (len(settings.stages), settings.stages[-1].samples)


def _require_same_cases(parts: Mapping[Split, tuple[Entry, ...]], folders: _Folders) -> None:
    """Raises InputError where the training was begun on other cases; else writes a hash of the cases."""
    digest, out = hashlib.sha256(), folders.out
    for split, entries in parts.items():
        for entry in entries:
            digest.update(f"{split} {entry.id} {entry.sha256}\n".encode())
    if (out / DATA).exists():
        if (out / DATA).read_text(encoding="utf-8").strip() != digest.hexdigest():
            raise InputError(
                f"{out} was begun on other training or validation cases than those of {folders.data}; go on "
                "with the same, or name another folder"
            )
    elif not _rank():
        with written_whole(out / DATA) as part:
            part.write_text(digest.hexdigest() + "\n", encoding="utf-8")


def _write_known(entries: tuple[Entry, ...], folders: _Folders, settings: TrainingSettings) -> None:
    """Write the figures of the training cases, for the check of the domain."""
    from vmat_diffusion.dataset.cases import load_case
    from vmat_diffusion.diffusion.domain import domain_figures

    if (folders.out / KNOWN).exists() or len(entries) < _FEWEST_KNOWN or _rank():
        return
    known = domain_figures((load_case(folders.data / entry.file) for entry in entries), settings.encoding)
    with written_whole(folders.out / KNOWN) as part:
        part.write_text(json.dumps(known) + "\n", encoding="utf-8")


def _rank() -> int:
    """The number of this process among those of the training."""
    return int(os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", 0)))


def _encode(
    parts: Mapping[Split, tuple[Entry, ...]],
    folders: _Folders,
    settings: TrainingSettings,
    machinery: Machinery,
    progress: Progress,
) -> TrainingData:
    """The training and validation cases as encoded files; encodes those that are not in the cache."""
    from vmat_diffusion.training.encoded import TrainingData, encode_cases, spacing_mm

    train = parts["train"]
    both = (*train, *parts["validation"])
    files = encode_cases(
        folders.data,
        both,
        settings.encoding,
        folders.cache,
        workers=max(1, machinery.workers),
        first=_rank() * len(both) // machinery.processes,
        progress=progress,
    )
    spacings = tuple(spacing_mm(folders.data / entry.file) for entry in parts["validation"])
    return TrainingData(files[: len(train)], files[len(train) :], spacings)


def _resumed(out: Path, settings: TrainingSettings, *, resume: bool) -> Checkpoint | None:
    """The checkpoint in `out` to go on from, None where there is none.

    Raises InputError where it belongs to other settings, and without `resume`.
    """
    from vmat_diffusion.training.checkpoint import CHECKPOINT, load_checkpoint
    from vmat_diffusion.training.settings import settings_record

    if not (out / CHECKPOINT).exists():
        return None
    if not resume:
        raise InputError(f"{out} holds a training already; pass --resume to go on or name another folder")
    found = load_checkpoint(out / CHECKPOINT)
    begun = found.stage + 1  # later stages may still be chosen
    for name, value in settings_record(settings).items():
        before = found.settings.get(name)
        same = before == value
        if name == "stages" and isinstance(before, list):
            same = before[: begun - 1] == value[: begun - 1] and _goes_on(found, settings)
        if name not in _FREE and not same:
            raise InputError(
                f"{out} was begun with another setting {name}; see {SETTINGS} in it and go on with "
                "the same, or name another folder"
            )
    return found


def _goes_on(found: Checkpoint, settings: TrainingSettings) -> bool:
    """Whether the stage of a checkpoint is that of the settings, so far.

    The length of a trapezoid and the begin of its fall may change while its rate is level: a training that
    had been begun so would be at the same point.
    """
    from vmat_diffusion.training.settings import Weight, settings_record, training_settings

    if found.stage >= len(settings.stages):
        return False
    before, now = training_settings(found.settings).stages[found.stage], settings.stages[found.stage]
    free = {"samples": 0, "decay_from": 0.0}
    level = all(
        s.schedule == "trapezoid"
        and found.samples <= s.decay_from * s.samples
        and not any(isinstance(w, Weight) and w.from_share for w in s.losses.values())
        for s in (before, now)
    )
    records = [settings_record(replace(settings, stages=(s,)))["stages"][0] for s in (before, now)]
    if level:
        records = [{**record, **free} for record in records]
    return records[0] == records[1]
