"""The commands that make data ready for others and for training."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmat_diffusion.cli.display import progress_bar, rejected_text, show, stdout_kept, table
from vmat_diffusion.cli.options import (
    AllowOutsideBody,
    AsJson,
    BatchOptions,
    ClusterKind,
    Dashboard,
    MappingFile,
    MemoryGb,
    PatientPosition,
    Project,
    Queue,
    Resume,
    Walltime,
    Workers,
    chosen_cluster,
)
from vmat_diffusion.errors import InputError

if TYPE_CHECKING:
    from vmat_diffusion.workflow.deidentify import Deidentified
    from vmat_diffusion.workflow.preprocess import PreprocessRun


def deidentify(
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Folder of DICOM files, any number of patients.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="New or empty folder.")],
    key: Annotated[
        str | None,
        typer.Option(help="Secret text or file: the same key, the same UIDs again. Random if not given."),
    ] = None,
    mapping: MappingFile = None,
    as_json: AsJson = False,
) -> None:
    """Copy DICOM files without names, numbers, dates and private data; 1 if any had to be left out."""
    from vmat_diffusion.workflow.deidentify import deidentify_folder

    with stdout_kept(), progress_bar() as progress:
        done = deidentify_folder(source, out, key=key, mapping=mapping, progress=progress)
    if as_json:
        show(json.dumps(done.summary()))
    else:
        show(_text(done))
    if done.left_out:
        raise typer.Exit(1)


def _text(done: Deidentified) -> str:
    """Files by case, what was done how often, and what was left out."""
    cases = [[name, ", ".join(f"{n} {k}" for k, n in kinds.items())] for name, kinds in done.cases.items()]
    actions: Counter[str] = Counter()
    for (_, action), count in done.done.items():
        actions[action] += count
    parts = [
        table(["case", "files"], cases, left=2),
        table(["action", "attributes"], sorted(actions.items()), left=1),
        "\n".join(f"Left out, file {n}: {reason}" for n, reason in sorted(done.left_out.items())),
        f"{done.written} files written, {len(done.left_out)} left out, {len(done.others)} not DICOM; "
        f"the scan found nothing of the patients\n{done.report}",
    ]
    return "\n\n".join(part for part in parts if part)


def preprocess(
    raw: Annotated[
        Path, typer.Option("--raw", help="Folder with a sub-folder of DICOM files per case.")
    ] = Path("data/raw"),
    out: Annotated[Path, typer.Option("--out", help="Folder of the data set.")] = Path("data/processed_npz"),
    mapping: MappingFile = None,
    relax_filter: Annotated[
        bool,
        typer.Option(
            "--relax-filter",
            "--relax_filter",
            help="Admit cases without dose, without plan, with plans that are not VMAT, without organs.",
        ),
    ] = False,
    spacing_mm: Annotated[
        tuple[float, float, float], typer.Option(metavar="X Y Z", help="Voxels of the data set, mm.")
    ] = (1.0, 1.0, 3.0),
    shape: Annotated[
        str, typer.Option(help="Voxels as Z,Y,X, or auto: found from all cases, then kept.")
    ] = "auto",
    site: Annotated[str, typer.Option(help="Of all cases; else sites.csv, else by their structures.")] = "",
    sites: Annotated[
        Path | None, typer.Option(help="CSV with case,site[,fractions]; RAW/sites.csv if it is there.")
    ] = None,
    goals: Annotated[str, typer.Option(help="Goal sheet of all cases; else that of the site.")] = "",
    require: Annotated[
        list[str] | None,
        typer.Option(help="Organ without which the strict filter refuses a case; repeat it."),
    ] = None,
    store_sdf: Annotated[
        bool, typer.Option("--store-sdf", help="Store signed distance maps, else made on loading.")
    ] = False,
    patient_position: PatientPosition = None,
    allow_outside_body: AllowOutsideBody = False,
    cluster: ClusterKind = "local",
    workers: Workers = None,
    memory_gb: MemoryGb = 3.0,
    queue: Queue = None,
    project: Project = None,
    walltime: Walltime = "04:00:00",
    batch_option: BatchOptions = None,
    dashboard: Dashboard = False,
    resume: Resume = False,
    key: Annotated[Path | None, typer.Option(help="Write which case is which folder to this CSV.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make training cases from clinical DICOM folders: one npz and one picture per case, and an index."""
    from vmat_diffusion.dataset.clinical_case import Preparation
    from vmat_diffusion.workflow.preprocess import preprocess as run

    settings = Preparation(
        spacing_mm=spacing_mm,
        relax=relax_filter,
        mapping=mapping,
        site=site,
        goals=goals,
        require=tuple(require or ()),
        patient_position=patient_position,
        allow_outside_body=allow_outside_body,
        store_sdf=store_sdf,
    )
    where = chosen_cluster(
        cluster, workers, memory_gb, queue, project, walltime, batch_option, dashboard=dashboard
    )
    with stdout_kept(), progress_bar() as progress:
        done = run(
            raw,
            out,
            settings,
            shape=_shape(shape),
            sites=sites,
            cluster=where,
            resume=resume,
            key=key,
            progress=progress,
        )
    show(json.dumps(done.summary()) if as_json else _prepared_text(done))


def _shape(text: str) -> tuple[int, int, int] | None:
    """Z,Y,X as numbers; None for auto."""
    if text == "auto":
        return None
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(p.strip().isdigit() and 8 <= int(p) <= 2048 for p in parts):
        raise InputError(f"--shape {text} is neither auto nor three numbers from 8 to 2048; write 96,224,224")
    z, y, x = (int(p) for p in parts)
    return z, y, x


def _prepared_text(done: PreprocessRun) -> str:
    """The data set by site, what lost voxels, and why the others are not in it."""
    z, y, x = done.shape
    pace = f", {60 * done.made / done.seconds:.1f} cases/min" if done.made else ""
    parts = [
        f"{len(done.records)} cases of {x} x {y} x {z} voxels in {done.out}, {done.made} of them made now in "
        f"{done.seconds:.0f} s{pace}"
    ]
    if done.records:
        parts.append(table(["site", "technique", "prescription", "cases", "dose"], _groups(done), left=3))
    for case, lost in done.cut_percent.items():
        cut = ", ".join(f"{name} {percent:.3g} %" for name, percent in lost.items())
        parts.append(f"{case} loses voxels outside the volume: {cut}")
    if done.without_raw:
        parts.append(
            "Kept from an earlier run, though no raw folder has the id any more: "
            f"{', '.join(done.without_raw)}. "
            "If their files changed, they may be here twice; make the data set anew in another folder"
        )
    if done.rejections:
        parts.append(rejected_text(done.rejections))
    return "\n\n".join(parts)


def _groups(done: PreprocessRun) -> list[list[Any]]:
    """Rows of the table: cases that share site, technique and prescription."""
    cases: Counter[tuple[str, str, str]] = Counter()
    doses: Counter[tuple[str, str, str]] = Counter()
    for record in done.records:
        levels = "/".join(f"{gy:g}" for gy in sorted(set(record["prescription_gy"].values()), reverse=True))
        prescription = f"{levels} Gy in {record['fractions']}" if levels else "none"
        group = record["site"], record["technique"], prescription
        cases[group] += 1
        doses[group] += record["has_dose"]
    return [[*group, count, doses[group]] for group, count in sorted(cases.items())]
