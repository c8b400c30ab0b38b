"""The commands that plan patients for training, and train a dose model."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from pydantic import Field

from vmat_diffusion.cli.display import rejected_text, show, table, work_shown
from vmat_diffusion.cli.fields import (
    TO_FILE,
    TO_FOLDER,
    ClusterOptions,
    DataSet,
    DataSetOut,
    Facts,
    MemoryGb,
    Resume,
    Working,
)
from vmat_diffusion.cli.options import part
from vmat_diffusion.errors import InputError
from vmat_diffusion.lettering import legible
from vmat_diffusion.options import Option, settings
from vmat_diffusion.workflow.settings import Seed, Simulation, VoxelMm

if TYPE_CHECKING:
    from vmat_diffusion.progress import Progress
    from vmat_diffusion.training.loop import Machinery
    from vmat_diffusion.workflow.simulation.plans import PatientSource, SimulationRun
    from vmat_diffusion.workflow.train import TrainingRun


# Voxels (x, y, z) of synthetic patients for doses: the usual ones of the dose model.
MODEL_VOXEL_MM = (3.9, 3.9, 2.5)


@settings
class SimulateOptions(Simulation, ClusterOptions, Working):
    """What `simulate` takes."""

    out: DataSetOut
    data: Annotated[
        Path | None,
        Field(description="Folder of the cases: a data set whose cases are planned."),
        Option(metavar="DIR", old=("--cases",)),
    ] = None
    synthetic: Annotated[int | None, Field(description="Plan so many synthetic patients.")] = None
    sites: Annotated[
        tuple[str, ...], Field(description="Only cases of this treatment site."), Option(metavar="SITE")
    ] = ()
    split: Annotated[
        Literal["train", "validation", "test"] | None,
        Field(description="Split of the data set: the cases of this one alone."),
    ] = None
    plans_per_case: Annotated[int, Field(ge=1, le=99, description="Plans or doses of each patient.")] = 2
    doses: Annotated[
        bool,
        Field(
            description="Optimise the fluence of nine fields or arcs without leaves, seconds for each "
            "dose, in place of plans."
        ),
    ] = False
    maps: Annotated[
        bool,
        Field(
            description="Make fluence maps for train-generator, the first stage of planning alone, in this "
            "process, in place of plans; what is there is kept."
        ),
    ] = False
    spacing_mm: Annotated[
        tuple[VoxelMm, VoxelMm, VoxelMm] | None,
        Field(
            description="Size of voxels, mm: of synthetic patients; by default 2 2 2.5, for doses "
            "3.9 3.9 2.5."
        ),
        Option(metavar="X Y Z"),
    ] = None  # type: ignore[assignment]
    memory_gb: MemoryGb = 4.0
    resume: Resume = False


def simulate(options: SimulateOptions) -> None:
    """Plan patients under varied goals and beams, and store doses and plans as training cases."""
    asked = part(Simulation, options)
    if options.spacing_mm is None:
        asked.pop("spacing_mm")
        if options.doses:
            asked["spacing_mm"] = MODEL_VOXEL_MM
    elif options.synthetic is None:
        raise InputError("--spacing-mm is for synthetic patients; cases keep their own grid, leave it out")
    where = options.where()
    patients = _patients(options)
    if options.maps:
        _simulate_maps(options, patients, Simulation(**asked))
        return
    with work_shown(options) as progress:
        if options.doses:
            from vmat_diffusion.workflow.simulation.doses import simulate_doses

            done = simulate_doses(
                patients,
                options.out,
                Simulation(**asked),
                doses_per_case=options.plans_per_case,
                cluster=where,
                resume=options.resume,
                progress=progress,
            )
        else:
            from vmat_diffusion.workflow.simulation.plans import simulate as run

            done = run(
                patients,
                options.out,
                Simulation(**asked),
                plans_per_case=options.plans_per_case,
                cluster=where,
                resume=options.resume,
                progress=progress,
            )
    show(json.dumps(done.summary()) if options.json else _simulated_text(done, doses=options.doses))


def _simulate_maps(options: SimulateOptions, patients: tuple[PatientSource, ...], asked: Simulation) -> None:
    from vmat_diffusion.workflow.simulation.maps import simulate_maps

    if options.doses:
        raise InputError("--maps and --doses are two kinds of data; give one of them")
    with work_shown(options) as progress:
        files = simulate_maps(
            patients, options.out, asked, maps_per_case=options.plans_per_case, progress=progress
        )
    found = {"out": str(options.out), "maps": len(files)}
    show(json.dumps(found) if options.json else f"{len(files)} plans' maps in {options.out}")


def _patients(options: SimulateOptions) -> tuple[PatientSource, ...]:
    from vmat_diffusion.workflow.simulation.plans import patients_of, synthetic_patients

    if options.data is not None and options.synthetic is None:
        return patients_of(options.data, options.sites, options.split)
    if options.synthetic is not None and options.data is None:
        if options.split is not None:
            raise InputError("--split is for the cases of a data set; leave it out with --synthetic")
        return synthetic_patients(options.synthetic, seed=options.seed, sites=options.sites)
    raise InputError("simulate needs one of --data DIR and --synthetic N; give exactly one")


_PLAN_COLUMNS = (
    "site", "goals", "outcome", "arcs", "mu", "goals_met", "goals_judged", "violations", "minutes",
)  # fmt: skip
_DOSE_COLUMNS = ("site", "goals", "beams", "d2_gy", "goals_met", "goals_judged", "minutes")


def _simulated_text(done: SimulationRun, *, doses: bool) -> str:
    """The plans or doses in figures, and why the others are not there."""
    columns, what = (_DOSE_COLUMNS, "dose") if doses else (_PLAN_COLUMNS, "plan")
    rows = [[name, *(record.get(c, "") for c in columns)] for name, record in done.plans.items()]
    parts = [
        table([what, *(c.replace("_", " ") for c in columns)], rows, left=4),
        f"{len(rows)} {what}s in {done.out}, {done.made} of them made now in {done.seconds / 60:.1f} min",
    ]
    if done.rejections:
        parts.append(rejected_text(done.rejections))
    return "\n\n".join(parts)


_Recipe = Annotated[
    str,
    Field(description="Options from a TOML file: the settings of the training, or a shipped recipe's name."),
    Option(metavar="FILE"),
]
_Start = Annotated[
    str,
    Field(description="Weights of the dose model: a safetensors file or 'shipped' to begin with."),
    Option(metavar="FILE", old=("--from",)),
]


@settings
class TrainingPlace(Working):
    """Where a training reads, writes and runs."""

    data: DataSet
    out: Annotated[Path, Field(description="Where to write: the folder of the training."), TO_FOLDER]
    devices: Annotated[
        int, Field(ge=1, description="GPUs of each computer, or processes where there is none.")
    ] = 1
    nodes: Annotated[int, Field(ge=1, description="Computers.")] = 1
    loaders: Annotated[
        int,
        Field(ge=0, description="Processes that load cases, for each device."),
        Option(old=("--workers",)),
    ] = 1
    cache: Annotated[
        Path | None,
        Field(description="Folder where encoded cases are kept; by default OUT/encoded."),
        Option(metavar="DIR"),
    ] = None
    resume: Resume = False


@settings
class TrainOptions(TrainingPlace):
    """What `train` takes."""

    config: _Recipe
    weights: Annotated[
        str | None,
        Field(description="Weights of the dose model: a safetensors file to begin with; by default random."),
        Option(metavar="FILE", old=("--from",)),
    ] = None


def train(options: TrainOptions) -> None:
    """Train a dose model on a data set, from checkpoint to checkpoint."""
    machinery = _machinery(options)
    from vmat_diffusion.workflow.train import train_model

    with work_shown(options) as progress:
        done = train_model(
            options.config,
            options.data,
            options.out,
            machinery=machinery,
            weights=Path(options.weights) if options.weights else None,
            cache=options.cache,
            resume=options.resume,
            progress=_spoken(progress),
        )
    _end(done, as_json=options.json)


@settings
class FineTuneOptions(TrainingPlace):
    """What `fine-tune` takes."""

    site: Annotated[
        str, Field(description="Treatment site: head_neck, prostate or lung; only its cases are taken.")
    ]
    weights: _Start
    config: Annotated[
        str | None,
        Field(
            description="Options from a TOML file: the settings of the training; by default a short recipe."
        ),
        Option(metavar="FILE"),
    ] = None


def fine_tune(options: FineTuneOptions) -> None:
    """Go on with the weights of a dose model on the cases of one site."""
    machinery = _machinery(options)
    from vmat_diffusion.workflow.train import fine_tune as run

    with work_shown(options) as progress:
        done = run(
            options.site,
            options.weights,
            options.data,
            options.out,
            machinery=machinery,
            config=options.config,
            cache=options.cache,
            resume=options.resume,
            progress=_spoken(progress),
        )
    _end(done, as_json=options.json)


@settings
class ExportWeightsOptions(Facts):
    """What `export-weights` takes."""

    run: Annotated[
        Path,
        Field(description="Folder of a training, or a file of weights that gets --calibration."),
        Option(positional=True, metavar="TRAINING"),
    ]
    out: Annotated[
        Path | None,
        Field(description="Where to write: a safetensors file; by default weights.safetensors in it."),
        TO_FILE,
    ] = None
    calibration: Annotated[
        Path | None,
        Field(description="Spread of the samples: the JSON file of benchmark openkbp --fit-spread."),
        Option(metavar="FILE"),
    ] = None


def export_weights(options: ExportWeightsOptions) -> None:
    """Write the weights of the last checkpoint of a training, finished or not."""
    from vmat_diffusion.workflow.export import export_weights as write

    file = str(write(options.run, options.out, options.calibration))
    show(json.dumps({"file": file}) if options.json else file)


def _machinery(options: TrainingPlace) -> Machinery:
    """Where the training runs. Raises InputError without the extra `train`."""
    try:
        import lightning  # noqa: F401
        import tensorboard  # noqa: F401
    except ImportError as fault:
        raise InputError(
            f"training needs {fault.name}, which is not installed; run pip install 'vmat-diffusion[train]'"
        ) from None
    from vmat_diffusion.training.loop import Machinery

    return Machinery(options.devices, options.nodes, options.loaders)


def _spoken(bar: Progress) -> Progress:
    """The progress, and where stderr is a file each news of the training as a line."""
    if sys.stderr.isatty():
        return bar
    before = ""

    def tell(stage: str, share: float, note: str) -> None:
        nonlocal before
        bar(stage, share, note)
        news = note.partition(", ")[2]
        if stage == "train" and news not in ("", before):
            print(legible(note), file=sys.stderr, flush=True)
            before = news

    return tell


def _end(done: TrainingRun, *, as_json: bool) -> None:
    """Say where the training ended; the exit code is that of the signal that ended it, if any."""
    if done.first_process:
        show(json.dumps(done.summary()) if as_json else _trained_text(done))
    if done.signal in (signal.SIGINT, signal.SIGTERM):
        raise typer.Exit(128 + done.signal)


def _trained_text(done: TrainingRun) -> str:
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


@settings
class TrainGeneratorOptions(Working):
    """What `train-generator` takes."""

    maps: Annotated[
        Path,
        Field(description="Folder of the maps, as simulate --maps makes them."),
        Option(positional=True, metavar="MAPS"),
    ]
    out: Annotated[Path, Field(description="Where to write: the file of the weights."), TO_FILE]
    iterations: Annotated[int, Field(ge=1, le=1_000_000, description="Steps of training, one plan each.")] = (
        3000
    )
    minutes: Annotated[
        float | None,
        Field(gt=0, description="Training pauses after this time, minutes; the same command goes on."),
    ] = None
    plans: Annotated[int | None, Field(ge=2, description="Learn from so many plans at the most.")] = None
    seed: Seed = 0


def train_generator(options: TrainGeneratorOptions) -> None:
    """Train the network that draws plans on fluence maps; goes on from the checkpoint beside the weights.

    OpenKBP's validation and test patients and every tenth synthetic patient are kept out and give the error.
    """
    from vmat_diffusion.workflow.generation.train import train_generator as run

    with work_shown(options) as progress:
        card = run(
            options.maps,
            options.out,
            iterations=options.iterations,
            seed=options.seed,
            minutes=options.minutes,
            plans=options.plans,
            progress=progress,
        )
    text = f"{card['plans']} plans, kept out: {card['validation']}\n{options.out}"
    show(json.dumps(card) if options.json else text)
