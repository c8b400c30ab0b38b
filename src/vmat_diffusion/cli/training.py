"""The commands that train a dose model."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vmat_diffusion.cli.display import progress_bar, show, stdout_kept
from vmat_diffusion.cli.options import AsJson
from vmat_diffusion.errors import InputError

if TYPE_CHECKING:
    from vmat_diffusion.progress import Progress
    from vmat_diffusion.training.loop import Machinery
    from vmat_diffusion.workflow.train import Trained

DataFolder = Annotated[Path, typer.Option("--data", help="Data set folder with splits.json.")]
RunFolder = Annotated[Path, typer.Option("--out", help="Folder of the training.")]
CacheFolder = Annotated[
    Path | None, typer.Option("--cache", help="Where encoded cases are kept; OUT/encoded if not given.")
]
Devices = Annotated[int, typer.Option("--devices", help="GPUs of each computer, or processes without one.")]
Nodes = Annotated[int, typer.Option("--nodes", help="Computers.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the training in OUT, if there is one.")]
Loaders = Annotated[int, typer.Option("--workers", help="Processes that load cases, for each device.")]


def train(
    config: Annotated[Path, typer.Option("--config", help="A shipped recipe's name or a TOML file.")],
    data: DataFolder,
    out: RunFolder,
    weights: Annotated[
        Path | None, typer.Option("--from", help="Weights to begin with; random if not given.")
    ] = None,
    devices: Devices = 1,
    nodes: Nodes = 1,
    workers: Loaders = 1,
    cache: CacheFolder = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train a dose model on a data set, from checkpoint to checkpoint."""
    machinery = _machinery(devices, nodes, workers)
    from vmat_diffusion.workflow.train import train_model

    with stdout_kept(), progress_bar() as bar:
        done = train_model(
            config,
            data,
            out,
            machinery=machinery,
            weights=weights,
            cache=cache,
            resume=resume,
            progress=_spoken(bar),
        )
    _end(done, as_json=as_json)


def fine_tune(
    site: Annotated[str, typer.Option(help="head_neck, prostate or lung: only its cases are taken.")],
    weights: Annotated[str, typer.Option("--from", help="Weights to begin with: a file, or 'shipped'.")],
    data: DataFolder,
    out: RunFolder,
    config: Annotated[
        Path | None, typer.Option("--config", help="Settings instead of the short recipe.")
    ] = None,
    devices: Devices = 1,
    nodes: Nodes = 1,
    workers: Loaders = 1,
    cache: CacheFolder = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Go on with the weights of a dose model on the cases of one site."""
    machinery = _machinery(devices, nodes, workers)
    from vmat_diffusion.workflow.train import fine_tune as run

    with stdout_kept(), progress_bar() as bar:
        done = run(
            site,
            weights,
            data,
            out,
            machinery=machinery,
            config=config,
            cache=cache,
            resume=resume,
            progress=_spoken(bar),
        )
    _end(done, as_json=as_json)


def export_weights(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a training.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="File to write; RUN/weights.safetensors if not given.")
    ] = None,
    spread: Annotated[
        float, typer.Option(min=0.01, help="Factor on the drawn residuals, from benchmark --fit-spread.")
    ] = 1.0,
) -> None:
    """Write the weights of the last checkpoint of a training, finished or not."""
    from vmat_diffusion.workflow.train import export_weights as write

    show(str(write(run, out, spread)))


def _machinery(devices: int, nodes: int, workers: int) -> Machinery:
    """Where the training runs. Raises InputError without the extra `train` or for a wrong number."""
    for name, value, least in (("--devices", devices, 1), ("--nodes", nodes, 1), ("--workers", workers, 0)):
        if value < least:
            raise InputError(f"{name} {value} is below {least}; give at least {least}")
    try:
        import lightning  # noqa: F401
        import tensorboard  # noqa: F401
    except ImportError as fault:
        raise InputError(
            f"training needs {fault.name}, which is not installed; run pip install 'vmat-diffusion[train]'"
        ) from None
    from vmat_diffusion.training.loop import Machinery

    return Machinery(devices, nodes, workers)


def _spoken(bar: Progress) -> Progress:
    """The progress with every news of the training as a line too, where stderr is a file of a queue."""
    if sys.stderr.isatty():
        return bar
    before = ""

    def tell(stage: str, share: float, note: str) -> None:
        nonlocal before
        bar(stage, share, note)
        news = note.partition(", ")[2]
        if stage == "train" and news not in ("", before):
            print(note, file=sys.stderr, flush=True)
            before = news

    return tell


def _end(done: Trained, *, as_json: bool) -> None:
    """Say where the training ended; the exit code is that of the signal that ended it, if any."""
    if done.first_process:
        show(json.dumps(done.summary()) if as_json else _text(done))
    if done.signal in (signal.SIGINT, signal.SIGTERM):
        raise typer.Exit(128 + done.signal)


def _text(done: Trained) -> str:
    where = f"stage {done.stage} of {done.stages}, {done.samples} of {done.of} samples"
    lines = [
        f"Trained: {where}, in {done.seconds / 60:.1f} min"
        if done.finished
        else f"Stopped at {where}; the checkpoint is in {done.out}, go on with --resume"
    ]
    if done.requeued:
        lines.append("The job is in the queue again")
    if done.validation:
        lines.append(
            f"Validation: dose score {done.validation['dose_score_gy']:.3f} Gy, "
            f"DVH score {done.validation['dvh_score_gy']:.3f} Gy"
        )
    return "\n".join(lines)
