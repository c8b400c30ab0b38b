"""`import openkbp` and `import dicom`: public data as a data set, or as raw folders for `preprocess`."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vmat_diffusion import __version__
from vmat_diffusion.dataset.cases import SCHEMA
from vmat_diffusion.dataset.dicom_tree import TreeCase, cases_in_tree
from vmat_diffusion.dataset.openkbp import SHAPE, SOURCE, patient_paths, read_openkbp, split_of_folder
from vmat_diffusion.dataset.raw_cases import files_key, listing
from vmat_diffusion.dataset.splits import SPLITS, Split, split_dataset
from vmat_diffusion.dataset.tables import REJECTED, Rejection, write_rejected, write_table
from vmat_diffusion.errors import InputError
from vmat_diffusion.jobs.batch import Cluster
from vmat_diffusion.jobs.case_states import (
    begin_dataset,
    make_cases,
    read_states,
    rejections_of,
    write_tables,
)
from vmat_diffusion.progress import Progress, silent
from vmat_diffusion.workflow.output import appearing_whole, require_apart

# A patient with more planning studies than this is rare; an ID that stands for many patients is not.
_STUDIES_OF_A_PATIENT = 3


@dataclass(frozen=True)
class ImportRun:
    """The result of `import openkbp`: cases of the data set, those made by this run, and rejections."""

    out: Path
    cases: int
    without_ct: int
    made: int
    rejections: tuple[Rejection, ...]
    splits: Mapping[str, int]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The object that `import openkbp --json` prints."""
        return {
            **asdict(self),
            "out": str(self.out),
            "rejections": [asdict(r) for r in self.rejections],
            "seconds": round(self.seconds, 1),
        }


def import_openkbp(
    source: Path,
    out: Path,
    *,
    split_folders: bool = False,
    cluster: Cluster | None = None,
    resume: bool = False,
    progress: Progress = silent,
) -> ImportRun:
    """Make or go on with the data set `out` from the OpenKBP patients below `source`.

    `split_folders` takes the splits from the names of the patients' folders (train..., valid...,
    test...). Raises InputError where the folders cannot be used; a patient that cannot be used is rejected.
    """
    from vmat_diffusion.report.case_picture import case_picture

    started = time.perf_counter()
    source, out = source.absolute(), out.absolute()
    require_apart(out, source)
    paths, again = _once_each(patient_paths(source))
    given = {name: _split_of(path, source) for name, path in paths.items()} if split_folders else {}
    record = {"source": SOURCE, "schema": SCHEMA, "version": __version__}
    begin_dataset(out, record, SHAPE, resume=resume)
    jobs = {name: (_key(path), (path,)) for name, path in paths.items()}
    pool = cluster or Cluster()
    made = make_cases(
        read_openkbp, jobs, out, draw=case_picture, cluster=pool, stage="import", progress=progress
    )
    states = read_states(out)
    done = [state for state in states if state["state"] == "done"]
    rejections = (*again, *rejections_of([s for s in states if s["id"] in paths]))
    if not done:
        write_rejected(out, rejections)
        raise InputError(
            f"none of {len(rejections)} patients could be imported; act on {out / REJECTED} and run "
            "again with --resume"
        )
    write_tables(out, record, SHAPE, done, rejections)
    splits = split_dataset(out, given=given) if split_folders else None
    return ImportRun(
        out=out,
        cases=len(done),
        without_ct=sum(not state["record"]["has_ct"] for state in done),
        made=made,
        rejections=tuple(sorted(rejections, key=lambda r: (r.case, r.reason))),
        splits={name: len(splits.ids(name)) for name in SPLITS} if splits else {},
        seconds=time.perf_counter() - started,
    )


def _once_each(paths: Sequence[Path]) -> tuple[dict[str, Path], list[Rejection]]:
    """The patients by id, and a rejection for each that is there a second time."""
    found: dict[str, Path] = {}
    again = []
    for path in paths:
        if found.setdefault(path.stem, path) is not path:
            again.append(Rejection(f"{path.stem} again", "the patient is there twice", "remove one of them"))
    return found, again


def _key(path: Path) -> str:
    folder, files = (path, listing(path)) if path.is_dir() else (path.parent, [path.name])
    return files_key(folder, files)


def _split_of(path: Path, source: Path) -> Split:
    split = split_of_folder(path, source)
    if split is not None:
        return split
    raise InputError(
        f"{path.stem} lies in no folder whose name starts with train, valid or test; leave out "
        "--split-folders and use vmat-diffusion split"
    )


@dataclass(frozen=True)
class DicomImportRun:
    """The result of `import dicom`: ids of folders made now, of those there already, and files left out.

    `remarks` says where one patient ID covers many studies.
    """

    raw: Path
    made: tuple[str, ...]
    there: tuple[str, ...]
    left_out: tuple[str, ...]
    remarks: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """The object that `import dicom --json` prints."""
        return {**asdict(self), "raw": str(self.raw)}


def import_dicom(
    source: Path, raw: Path, *, key: Path | None = None, progress: Progress = silent
) -> DicomImportRun:
    """Sort a tree of DICOM files into a folder per case below `raw`, for `preprocess`.

    Files are hard links where the file system allows it, else copies. The names of files and folders do not
    identify the patient; the content of the files stays. A folder that exists is kept. `key` is a CSV of
    case, patient ID and structure set to write. Raises InputError where the folders cannot be used.
    """
    source, raw = source.absolute(), raw.absolute()
    require_apart(raw, source)
    if key is not None and raw in key.absolute().parents:
        raise InputError(f"{key} would tell the patients' IDs beside the cases; name a file elsewhere")
    progress("look", 0.0, "")
    cases, left_out = cases_in_tree(source)
    progress("look", 1.0, f"{len(cases)} cases")
    raw.mkdir(parents=True, exist_ok=True)
    made = []
    for count, case in enumerate(cases, start=1):
        if not (raw / case.id).exists():
            _lay_out(case, raw / case.id)
            made.append(case.id)
        progress("sort", count / len(cases), f"{count} of {len(cases)}")
    if key is not None:
        rows = ((case.id, case.patient_id, case.structure_set.uid) for case in cases)
        write_table(key, ("case", "patient_id", "structure_set_uid"), rows)
    there = tuple(case.id for case in cases if case.id not in set(made))
    return DicomImportRun(raw, tuple(made), there, left_out, shared_ids(cases))


def shared_ids(cases: Sequence[TreeCase]) -> tuple[str, ...]:
    """A sentence for each patient ID that covers more studies and frames of reference than one course has."""
    by_patient: dict[str, list[TreeCase]] = {}
    for case in cases:
        by_patient.setdefault(case.patient_id, []).append(case)
    out = []
    for members in by_patient.values():
        studies = {case.structure_set.study_uid for case in members}
        frames = {frame for case in members for image in case.images for frame in image.frames}
        if min(len(studies), len(frames)) > _STUDIES_OF_A_PATIENT:
            out.append(
                f"one patient ID covers {len(members)} cases of {len(studies)} studies and "
                f"{len(frames)} frames of reference, such as {members[0].id} and {members[1].id}; if these "
                "are several patients, give each an ID of its own, or split keeps them together"
            )
    return tuple(out)


def _lay_out(case: TreeCase, folder: Path) -> None:
    with appearing_whole(folder, overwrite=False) as partial:
        for name, path in case.named_files.items():
            try:
                os.link(path.resolve(), partial / name)
            except OSError:  # another file system, or one without hard links
                shutil.copyfile(path, partial / name)
