"""Training a dose model on a data set folder, and going on with it."""

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

from vmat_diffusion import __version__
from vmat_diffusion.errors import InputError
from vmat_diffusion.files import written_whole
from vmat_diffusion.progress import Progress
from vmat_diffusion.workflow.provenance import git_revision

if TYPE_CHECKING:
    from vmat_diffusion.dataset.index import Entry
    from vmat_diffusion.dataset.splits import Split
    from vmat_diffusion.training.callback import TrainingData
    from vmat_diffusion.training.checkpoint import Checkpoint
    from vmat_diffusion.training.loop import Machinery
    from vmat_diffusion.training.settings import TrainingSettings

SETTINGS, WEIGHTS, KNOWN = "settings.json", "weights.safetensors", "known.json"
# A hash of the cases that a training was begun on.
DATA = "cases.sha256"
_SPLITS: tuple[Split, ...] = ("train", "validation")
# With fewer cases no range says anything.
_FEWEST_KNOWN = 2
# What may differ from the settings that a training was begun with: it changes no weight.
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
class Trained:
    """Where a training ended: samples of the last stage, the signal if there was one, the last scores."""

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
        """Plain data."""
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
    progress: Progress | None = None,
) -> Trained:
    """Train by the settings of `config` on the data set folder `data`, with everything in `out`.

    `config` is a shipped recipe's name or a TOML file, `weights` a file of weights to begin with (None:
    random). `resume` goes on with what is in `out`, if there is anything, to the same curve. `cache` keeps
    the encoded cases (None: `out/encoded`). Raises InputError where `out` holds another training.
    """
    from vmat_diffusion.diffusion.model import load_model
    from vmat_diffusion.training.settings import load_settings
    from vmat_diffusion.training.weights import fresh, start_from

    settings = load_settings(config)
    start = _found(out, settings, resume=resume)
    if start is None:
        start = fresh(settings) if weights is None else start_from(load_model(weights), settings)
    return _trained(settings, start, data, out, machinery, cache, progress)


def fine_tune(
    site: str,
    weights: str | Path,
    data: Path,
    out: Path,
    *,
    machinery: Machinery,
    config: Path | None = None,
    cache: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> Trained:
    """Go on with weights on the cases of one site, as `train_model` does.

    Encoded are the organs of the site; `config` replaces the short recipe. Raises InputError for an unknown
    site.
    """
    from vmat_diffusion.diffusion.model import load_model
    from vmat_diffusion.training.settings import load_settings
    from vmat_diffusion.training.weights import start_from, tuning_settings

    model = load_model(weights)
    settings = tuning_settings(model, site, load_settings(config) if config else None)
    start = _found(out, settings, resume=resume) or start_from(model, settings)
    return _trained(settings, start, data, out, machinery, cache, progress, site)


def export_weights(run: Path, file: Path | None = None, spread: float = 1.0) -> Path:
    """Write the weights of a training as its last checkpoint has them; `file` None: into its folder.

    `spread` multiplies the residuals that will be drawn; `benchmark openkbp --fit-spread` finds it.
    """
    from vmat_diffusion.training.checkpoint import CHECKPOINT, load_checkpoint

    return _export(load_checkpoint(run / CHECKPOINT), run, file or run / WEIGHTS, spread)


def _export(checkpoint: Checkpoint, run: Path, file: Path, spread: float = 1.0) -> Path:
    from vmat_diffusion.diffusion.model import save_model
    from vmat_diffusion.training.checkpoint import read_metrics
    from vmat_diffusion.training.weights import model_of

    card = {
        "name": run.absolute().name,
        "program": {"version": __version__, "git": git_revision()},
        "stage": checkpoint.stage + 1,
        "samples": checkpoint.samples,
        "validation": [record for record in read_metrics(run) if "validation" in record][-1:],
        "settings": checkpoint.settings,
    }
    model = model_of(checkpoint, card)
    known = json.loads((run / KNOWN).read_text(encoding="utf-8")) if (run / KNOWN).exists() else {}
    return save_model(
        file, replace(model, description=replace(model.description, known=known, spread=spread))
    )


def _trained(
    settings: TrainingSettings,
    start: Checkpoint,
    data: Path,
    out: Path,
    machinery: Machinery,
    cache: Path | None,
    progress: Progress | None,
    site: str | None = None,
) -> Trained:
    from vmat_diffusion.training.checkpoint import read_metrics
    from vmat_diffusion.training.encoded import entries_with_dose
    from vmat_diffusion.training.loop import Ended, requeue, train
    from vmat_diffusion.training.settings import plain

    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    parts = {split: entries_with_dose(data, split, site) for split in _SPLITS}
    _same_data(parts, data, out)
    with written_whole(out / SETTINGS) as part:
        part.write_text(json.dumps(plain(settings), indent=1) + "\n", encoding="utf-8")
    tell = progress or (lambda stage, share, note: None)
    was_finished = _is_end(start, settings)
    usr1 = getattr(signal, "SIGUSR1", None)
    try:
        with _ended_by(usr1):
            cases = _encoded(parts, data, settings, cache or out / "encoded", machinery, tell)
            _keep_known(parts["train"], data, settings, out)
    except _Warned:
        ended = Ended(start, usr1, not _rank())
    else:
        start = replace(start, settings=plain(settings))  # what is free to change may have changed
        ended = train(settings, start, cases, out, machinery, lambda share, note: tell("train", share, note))
    requeued = (
        ended.first_process
        and ended.signal is not None
        and ended.signal == usr1
        and not _is_end(ended.checkpoint, settings)
        and requeue()
    )
    last: Mapping[str, float] = {}
    for record in read_metrics(out):
        last = record.get("validation", last)
    done = Trained(
        out=out,
        stage=ended.checkpoint.stage + 1,
        stages=len(settings.stages),
        samples=ended.checkpoint.samples,
        of=settings.stages[ended.checkpoint.stage].samples,
        signal=ended.signal,
        requeued=requeued,
        first_process=ended.first_process,
        validation=last,
        seconds=time.monotonic() - began,
    )
    if done.finished and done.first_process and not (was_finished and (out / WEIGHTS).exists()):
        _export(ended.checkpoint, out, out / WEIGHTS)
    return done


class _Warned(Exception):
    """A batch system gave notice before the first step."""


@contextmanager
def _ended_by(number: int | None) -> Iterator[None]:
    """Raise _Warned when the signal comes; what is encoded by then is kept."""
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
    """Whether no sample is left."""
    return (checkpoint.stage + 1, checkpoint.samples) == (len(settings.stages), settings.stages[-1].samples)


def _same_data(parts: Mapping[Split, tuple[Entry, ...]], data: Path, out: Path) -> None:
    """Raises InputError where a training was begun on other cases; keeps which they are otherwise."""
    digest = hashlib.sha256()
    for split, entries in parts.items():
        for entry in entries:
            digest.update(f"{split} {entry.id} {entry.sha256}\n".encode())
    if (out / DATA).exists():
        if (out / DATA).read_text(encoding="utf-8").strip() != digest.hexdigest():
            raise InputError(
                f"{out} was begun on other training or validation cases than those of {data}; go on with "
                "the same, or name another folder"
            )
    elif not _rank():
        with written_whole(out / DATA) as part:
            part.write_text(digest.hexdigest() + "\n", encoding="utf-8")


def _keep_known(entries: tuple[Entry, ...], data: Path, settings: TrainingSettings, out: Path) -> None:
    """Keep the figures of the training cases, by which a case that is unusual for the model is known."""
    from vmat_diffusion.dataset.cases import load_case
    from vmat_diffusion.diffusion.domain import known_of

    if (out / KNOWN).exists() or len(entries) < _FEWEST_KNOWN or _rank():
        return
    known = known_of((load_case(data / entry.file) for entry in entries), settings.encoding)
    with written_whole(out / KNOWN) as part:
        part.write_text(json.dumps(known) + "\n", encoding="utf-8")


def _rank() -> int:
    """Which of the processes of a training this is."""
    return int(os.environ.get("SLURM_PROCID", os.environ.get("LOCAL_RANK", 0)))


def _encoded(
    parts: Mapping[Split, tuple[Entry, ...]],
    data: Path,
    settings: TrainingSettings,
    cache: Path,
    machinery: Machinery,
    progress: Progress,
) -> TrainingData:
    """The training and validation cases of a data set folder, encoded now where they are not yet."""
    from vmat_diffusion.training.callback import TrainingData
    from vmat_diffusion.training.encoded import encode_cases, spacing_mm

    train = parts["train"]
    both = (*train, *parts["validation"])
    files = encode_cases(
        data,
        both,
        settings.encoding,
        cache,
        workers=max(1, machinery.workers),
        first=_rank() * len(both) // machinery.processes,
        progress=lambda done, of: progress("encode", done / of, f"{done} of {of} cases"),
    )
    spacings = tuple(spacing_mm(data / entry.file) for entry in parts["validation"])
    return TrainingData(files[: len(train)], files[len(train) :], spacings)


def _found(out: Path, settings: TrainingSettings, *, resume: bool) -> Checkpoint | None:
    """The checkpoint of a folder, if there is one and it belongs to these settings."""
    from vmat_diffusion.training.checkpoint import CHECKPOINT, load_checkpoint
    from vmat_diffusion.training.settings import plain

    if not (out / CHECKPOINT).exists():
        return None
    if not resume:
        raise InputError(f"{out} holds a training already; pass --resume to go on or name another folder")
    found = load_checkpoint(out / CHECKPOINT)
    begun = found.stage + 1  # later stages may still be chosen
    for name, value in plain(settings).items():
        before = found.settings[name]
        same = before[:begun] == value[:begun] if name == "stages" else before == value
        if name not in _FREE and not same:
            raise InputError(
                f"{out} was begun with another setting {name}; see {SETTINGS} in it and go on with "
                "the same, or name another folder"
            )
    return found
