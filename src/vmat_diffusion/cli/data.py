"""The commands that make data ready for others and for training."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import Field

from vmat_diffusion.cli.display import rejected_text, show, table, work_shown
from vmat_diffusion.cli.fields import ClusterOptions, DataSetOut, Facts, Linkage, Resume, Working
from vmat_diffusion.cli.options import keywords
from vmat_diffusion.errors import InputError
from vmat_diffusion.options import Option, settings
from vmat_diffusion.workflow.reading import AllowOutsideBody, MappingFile, PatientPosition
from vmat_diffusion.workflow.settings import Conditions

if TYPE_CHECKING:
    from vmat_diffusion.workflow.deidentify import DeidentifiedFolder
    from vmat_diffusion.workflow.imports import DicomImportRun
    from vmat_diffusion.workflow.preprocess import PreprocessRun

_Dicom = Annotated[
    Path,
    Field(description="Any folder of DICOM files, of any number of patients."),
    Option(positional=True, metavar="DIR"),
]


@settings
class DeidentifyOptions(Working):
    """What `deidentify` takes."""

    folder: _Dicom
    out: Annotated[
        Path,
        Field(description="Where to write: a new or empty folder."),
        Option(short=("-o",), metavar="DIR", old=("OUT",)),
    ]
    key: Annotated[
        str | None,
        Field(
            description="Secret text or a file with it: the same key gives the same UIDs; by default random."
        ),
    ] = None
    mapping: MappingFile = None


def deidentify(options: DeidentifyOptions) -> None:
    """Copy DICOM files without names, numbers, dates and private data; 1 if any had to be left out."""
    from vmat_diffusion.workflow.deidentify import deidentify_folder

    with work_shown(options) as progress:
        done = deidentify_folder(**keywords(deidentify_folder, options), progress=progress)
    if options.json:
        show(json.dumps(done.summary()))
    else:
        show(_deidentified_text(done))
    if done.left_out:
        raise typer.Exit(1)


def _deidentified_text(done: DeidentifiedFolder) -> str:
    """Files by case, what was done how often, and what was left out."""
    cases = [[name, ", ".join(f"{n} {k}" for k, n in kinds.items())] for name, kinds in done.cases.items()]
    actions: Counter[str] = Counter()
    for (_, action), count in done.done.items():
        actions[action] += count
    parts = [
        table(["case", "files"], cases, left=2),
        table(["action", "attributes"], sorted(actions.items()), left=1),
        "\n".join(f"Left out, file {n}: {reason}" for n, reason in sorted(done.left_out.items())),
        "\n".join(f"Warning: {remark}" for remark in done.remarks),
        f"{done.written} files written, {len(done.left_out)} left out, {len(done.others)} not DICOM; "
        f"the scan found nothing of the patients\n{done.report}",
    ]
    return "\n\n".join(part for part in parts if part)


@settings
class PreprocessOptions(ClusterOptions, Working):
    """What `preprocess` takes."""

    raw: Annotated[
        Path,
        Field(description="Folder with a sub-folder of DICOM files for each case."),
        Option(metavar="DIR"),
    ] = Path("data/raw")
    out: DataSetOut = Path("data/processed_npz")
    mapping: MappingFile = None
    relax_filter: Annotated[
        bool,
        Field(description="Admit cases without dose, plan or organs, and with plans that are not VMAT."),
        Option(old=("--relax_filter",)),
    ] = False
    spacing_mm: Annotated[
        tuple[float, float, float],
        Field(description="Size of voxels, mm: of the data set."),
        Option(metavar="X Y Z"),
    ] = (1.0, 1.0, 3.0)
    shape: Annotated[
        str,
        Field(description="Voxels of each case as Z,Y,X, or auto: found from all cases, then kept."),
        Option(metavar="auto|Z,Y,X"),
    ] = "auto"
    site: Annotated[
        str,
        Field(
            description="Treatment site: of all cases; by default as the site table or the structures say."
        ),
    ] = ""
    site_table: Annotated[
        Path | None,
        Field(description="CSV with case,site[,fractions]; by default RAW/sites.csv if it is there."),
        Option(metavar="FILE", old=("--sites",)),
    ] = None
    goals: Annotated[
        str,
        Field(description="Goal sheet: a shipped sheet's name or a TOML file; by default that of the site."),
        Option(metavar="SHEET"),
    ] = ""
    conditions: Conditions = ()
    require: Annotated[
        tuple[str, ...],
        Field(description="Organ without which the strict filter refuses a case."),
        Option(metavar="ORGAN"),
    ] = ()
    store_sdf: Annotated[
        bool, Field(description="Store signed distance maps; otherwise they are made on loading.")
    ] = False
    patient_position: PatientPosition = None
    allow_outside_body: AllowOutsideBody = False
    resume: Resume = False
    linkage: Linkage = None


def preprocess(options: PreprocessOptions) -> None:
    """Make training cases from clinical DICOM folders: one npz and one picture per case, and an index."""
    from vmat_diffusion.dataset.clinical_case import Preparation
    from vmat_diffusion.workflow.preprocess import preprocess as run

    asked = Preparation(
        spacing_mm=options.spacing_mm,
        relax=options.relax_filter,
        mapping=Path(options.mapping) if options.mapping else None,
        site=options.site,
        goals=options.goals,
        conditions=options.conditions,
        require=options.require,
        patient_position=options.patient_position,
        allow_outside_body=options.allow_outside_body,
        store_sdf=options.store_sdf,
    )
    with work_shown(options) as progress:
        done = run(
            options.raw,
            options.out,
            asked,
            shape=_shape(options.shape),
            sites=options.site_table,
            cluster=options.where(),
            resume=options.resume,
            key=options.linkage,
            progress=progress,
        )
    show(json.dumps(done.summary()) if options.json else _prepared_text(done))


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
    parts += [f"Warning: {remark}" for remark in done.remarks]
    return "\n\n".join(parts)


def _groups(done: PreprocessRun) -> list[list[Any]]:
    """Rows of the table: cases that share site, technique and prescription."""
    from vmat_diffusion.dataset.tables import prescription_of

    cases: Counter[tuple[str, str, str]] = Counter()
    doses: Counter[tuple[str, str, str]] = Counter()
    for record in done.records:
        group = record["site"], record["technique"], prescription_of(record)
        cases[group] += 1
        doses[group] += record["has_dose"]
    return [[*group, count, doses[group]] for group, count in sorted(cases.items())]


@settings
class ImportOpenkbpOptions(ClusterOptions, Working):
    """What `import openkbp` takes."""

    source: Annotated[
        Path,
        Field(description="Folder with pt_N folders of CSV files, or pt_N.npz files."),
        Option(positional=True, metavar="SRC"),
    ]
    out: Annotated[
        Path,
        Field(description="Where to write: the folder of the data set."),
        Option(short=("-o",), metavar="DIR", old=("OUT",)),
    ]
    split_folders: Annotated[
        bool, Field(description="Splits by the names of the patients' folders: train, valid, test.")
    ] = False
    resume: Resume = False


def import_openkbp(options: ImportOpenkbpOptions) -> None:
    """Make training cases from OpenKBP patients, on their own grid."""
    from vmat_diffusion.workflow.imports import import_openkbp as run

    where = options.where()
    with work_shown(options) as progress:
        done = run(
            options.source,
            options.out,
            split_folders=options.split_folders,
            cluster=where,
            resume=options.resume,
            progress=progress,
        )
    if options.json:
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


@settings
class ImportDicomOptions(Working):
    """What `import dicom` takes."""

    folder: _Dicom
    out: Annotated[
        Path,
        Field(description="Where to write: a folder for preprocess, such as data/raw."),
        Option(short=("-o",), metavar="DIR", old=("RAW",)),
    ]
    linkage: Linkage = None


def import_dicom(options: ImportDicomOptions) -> None:
    """Sort a tree of DICOM files, as TCIA delivers them, into a folder per case for preprocess."""
    from vmat_diffusion.workflow.imports import import_dicom as run

    with work_shown(options) as progress:
        done = run(options.folder, options.out, key=options.linkage, progress=progress)
    if options.json:
        show(json.dumps(done.summary()))
    else:
        show(_sorted_text(done))
    if not done.made and not done.there:
        raise InputError(f"{options.folder} holds no case; what was left out and why stands above")


def _sorted_text(done: DicomImportRun) -> str:
    lines = [f"{len(done.made)} cases made in {done.raw}, {len(done.there)} were there already"]
    return "\n".join([*lines, *done.left_out, *(f"Warning: {remark}" for remark in done.remarks)])


@settings
class SplitOptions(Facts):
    """What `split` takes."""

    dataset: Annotated[
        Path, Field(description="Folder of a data set."), Option(positional=True, metavar="DATASET")
    ]
    fractions: Annotated[
        tuple[float, float, float] | None,
        Field(description="Shares of the patients; by default 0.8 0.1 0.1."),
        Option(metavar="TRAIN VALIDATION TEST"),
    ] = None
    seed: Annotated[
        int | None, Field(description="Random seed: the same seed gives the same splits; by default 0.")
    ] = None


def split(options: SplitOptions) -> None:
    """Divide a data set by patients, or place the cases that came since; a split once given is kept."""
    from vmat_diffusion.dataset.index import read_index
    from vmat_diffusion.dataset.splits import SPLITS, shared_patients, split_dataset

    splits = split_dataset(options.dataset, fractions=options.fractions, seed=options.seed)
    for remark in shared_patients(read_index(options.dataset)):
        print(f"Warning: {remark}", file=sys.stderr)
    if options.json:
        show(json.dumps({name: splits.ids(name) for name in SPLITS}))
        return
    counts = Counter((member.stratum, name) for member, name in splits.placed.values())
    strata = sorted({stratum for stratum, _ in counts})
    rows = [[stratum, *(counts[stratum, name] for name in SPLITS)] for stratum in strata]
    patients = {name: len({m.patient for m, s in splits.placed.values() if s == name}) for name in SPLITS}
    show(table(["cases of", *SPLITS], rows, left=1))
    show("\npatients: " + ", ".join(f"{count} {name}" for name, count in patients.items()))
