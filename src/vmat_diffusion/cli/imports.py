"""The commands that bring public data in and divide a data set for training."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from vmat_diffusion.cli.display import progress_bar, rejected_text, show, stdout_kept, table
from vmat_diffusion.cli.options import (
    AsJson,
    BatchOptions,
    ClusterKind,
    Dashboard,
    MemoryGb,
    Project,
    Queue,
    Resume,
    Walltime,
    Workers,
    chosen_cluster,
)


def import_openkbp(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Folder with pt_N folders of CSV files, or pt_N.npz files.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder of the data set.")],
    split_folders: Annotated[
        bool,
        typer.Option("--split-folders", help="Splits by the names of the folders: train, valid, test."),
    ] = False,
    cluster: ClusterKind = "local",
    workers: Workers = None,
    memory_gb: MemoryGb = 3.0,
    queue: Queue = None,
    project: Project = None,
    walltime: Walltime = "04:00:00",
    batch_option: BatchOptions = None,
    dashboard: Dashboard = False,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Make training cases from OpenKBP patients, on their own grid."""
    from vmat_diffusion.workflow.imports import import_openkbp as run

    where = chosen_cluster(
        cluster, workers, memory_gb, queue, project, walltime, batch_option, dashboard=dashboard
    )
    with stdout_kept(), progress_bar() as progress:
        done = run(source, out, split_folders=split_folders, cluster=where, resume=resume, progress=progress)
    if as_json:
        show(json.dumps(done.summary()))
        return
    parts = [
        f"{done.cases} cases in {done.out}, {done.without_ct} of them without CT; {done.made} made now in "
        f"{done.seconds:.0f} s"
    ]
    if done.splits:
        parts.append(", ".join(f"{name} {count}" for name, count in done.splits.items()))
    if done.rejections:
        parts.append(rejected_text(done.rejections))
    show("\n\n".join(parts))


def import_dicom(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Any tree of DICOM files.")],
    raw: Annotated[Path, typer.Argument(metavar="RAW", help="Folder for preprocess, such as data/raw.")],
    key: Annotated[
        Path | None, typer.Option(help="Write which case is which patient ID to this CSV.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Sort a tree of DICOM files, as TCIA delivers them, into a folder per case for preprocess."""
    from vmat_diffusion.workflow.imports import import_dicom as run

    with stdout_kept(), progress_bar() as progress:
        done = run(source, raw, key=key, progress=progress)
    if as_json:
        show(json.dumps(done.summary()))
        return
    lines = [f"{len(done.made)} cases made in {done.raw}, {len(done.there)} were there already"]
    show("\n".join([*lines, *done.left_out]))


def split(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Folder of a data set.")],
    fractions: Annotated[
        tuple[float, float, float] | None,
        typer.Option(metavar="TRAIN VALIDATION TEST", help="Shares of the patients; 0.8 0.1 0.1."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same splits; 0.")] = None,
    as_json: AsJson = False,
) -> None:
    """Divide a data set by patients, or place the cases that came since; a split once given is kept."""
    from vmat_diffusion.dataset.splits import SPLITS, split_dataset

    splits = split_dataset(dataset, fractions=fractions, seed=seed)
    if as_json:
        show(json.dumps({name: splits.ids(name) for name in SPLITS}))
        return
    counts = Counter((member.stratum, name) for member, name in splits.placed.values())
    strata = sorted({stratum for stratum, _ in counts})
    rows = [[stratum, *(counts[stratum, name] for name in SPLITS)] for stratum in strata]
    patients = {name: len({m.patient for m, s in splits.placed.values() if s == name}) for name in SPLITS}
    show(table(["cases of", *SPLITS], rows, left=1))
    show("\npatients: " + ", ".join(f"{count} {name}" for name, count in patients.items()))
