"""`preprocess`: clinical folders become a data set of training cases, one job per case.

The first pass resamples every case and keeps it under `.work`; it is needed only to find the common shape.
The second pass cuts the cases to the shape and writes them. A case is in the data set or in the list of
rejections; an interrupted run goes on (`jobs.case_states`).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from vmat_diffusion import __version__
from vmat_diffusion.dataset.cases import SCHEMA, TrainingCase, load_case, save_case
from vmat_diffusion.dataset.clinical_case import Preparation, clinical_case
from vmat_diffusion.dataset.prepare import Extent, common_shape, cut_to
from vmat_diffusion.dataset.raw_cases import RawCase, scan
from vmat_diffusion.dataset.splits import shared_patients
from vmat_diffusion.dataset.tables import REJECTED, Rejection, write_rejected, write_table
from vmat_diffusion.dicom.names import load_table
from vmat_diffusion.distance import signed_distance_mm
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.evaluate.goals import (
    goal_sheet_names,
    load_goals,
    require_known_conditions,
    with_conditions,
)
from vmat_diffusion.geometry import Point
from vmat_diffusion.jobs.batch import Cluster
from vmat_diffusion.jobs.case_states import (
    WORK,
    VolumeShape,
    begin_dataset,
    is_made,
    read_state,
    read_states,
    rejections_of,
    run_undone,
    staged_path,
    write_run,
    write_state,
    write_tables,
    write_training_case,
)
from vmat_diffusion.progress import Progress, silent
from vmat_diffusion.workflow.output import require_apart

# Settings that only admit more cases: they do not change a case that is finished.
_ADMITTING = ("relax", "allow_outside_body")
_STAGED = {"state": "staged"}


@dataclass(frozen=True)
class PreprocessRun:
    """The result of `preprocess`: cases and rejections, voxels that were cut off, and the time.

    `without_raw` are cases of an earlier run whose id no raw folder has any more: the folder is gone, or its
    files have changed and so its id. `remarks` name patients that may be several people.
    """

    out: Path
    shape: VolumeShape
    records: tuple[Mapping[str, Any], ...]
    rejections: tuple[Rejection, ...]
    cut_percent: Mapping[str, Mapping[str, float]]
    without_raw: tuple[str, ...]
    made: int
    seconds: float
    remarks: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """The object that `preprocess --json` prints."""
        return {
            "out": str(self.out),
            "shape": list(self.shape),
            "cases": len(self.records),
            "made": self.made,
            "rejected": [asdict(r) for r in self.rejections],
            "cut_percent": {case: dict(lost) for case, lost in self.cut_percent.items()},
            "without_raw": list(self.without_raw),
            "remarks": list(self.remarks),
            "seconds": round(self.seconds, 1),
            "cases_per_minute": round(60 * self.made / self.seconds, 2) if self.made else 0.0,
        }


def preprocess(
    raw: Path,
    out: Path,
    settings: Preparation,
    *,
    shape: VolumeShape | None = None,
    sites: Path | None = None,
    cluster: Cluster | None = None,
    resume: bool = False,
    key: Path | None = None,
    progress: Progress = silent,
) -> PreprocessRun:
    """Make or go on with the data set `out` from the case folders below `raw`.

    `shape` is (z, y, x); None finds the common shape of all cases, which stays when cases are added.
    `resume` makes the cases that are missing or whose files changed; with it `relax` and
    `allow_outside_body` may be turned on, and then rejected cases are tried again. `key` is a CSV of ids and
    folders to write. Raises InputError where the folders or settings cannot be used, or no case is left.
    """
    started = time.perf_counter()
    if key is not None and out.resolve() in key.resolve().parents:
        raise InputError(f"{key} would tell the patients' folders within the data set; name a file elsewhere")
    raw, out = raw.absolute(), out.absolute()  # workers of a cluster may start elsewhere
    require_apart(out, raw)
    cases, no_case = scan(raw, sites)
    record = preparation_record(settings, shape)
    shape = begin_dataset(out, record, shape, resume=resume, admitting=_ADMITTING)
    if key is not None:
        write_table(key, ("case", "folder"), ((case.id, case.folder.name) for case in cases))
    pool = cluster or Cluster()
    work = _Work(out, settings, {case.id: case for case in cases}, pool, progress=progress)
    if shape is None:
        work.run("resample", None)
        shape = _common(work, settings.spacing_mm, no_case)
        write_run(out, record, shape)
    work.run("write", shape)
    done = work.finished(shape)
    rejections = (*no_case, *work.rejections())
    write_tables(out, record, shape, list(done.values()), rejections)
    return PreprocessRun(
        out=out,
        shape=shape,
        records=tuple(state["record"] for state in done.values()),
        rejections=tuple(sorted(rejections, key=lambda r: (r.case, r.reason))),
        cut_percent={name: state["cut_percent"] for name, state in done.items() if state.get("cut_percent")},
        without_raw=tuple(name for name in done if name not in work.cases),
        made=work.made,
        seconds=time.perf_counter() - started,
        remarks=shared_patients([state["record"] for state in done.values()]),
    )


def preparation_record(settings: Preparation, shape: VolumeShape | None) -> dict[str, Any]:
    """The settings as `dataset.json` keeps them: files by their contents' hash, no paths.

    Raises InputError for a mapping or goal sheet that cannot be read, and for a condition that no sheet
    knows: else every case would say so.
    """
    load_table(settings.mapping)
    if settings.goals:
        with_conditions(load_goals(settings.goals), settings.conditions)
    elif settings.conditions:
        require_known_conditions(settings.conditions, map(load_goals, goal_sheet_names()))
    own = settings.goals.endswith(".toml")
    return {
        **asdict(settings),
        "conditions": list(settings.conditions),
        "mapping": _text_hash(settings.mapping, "vmat_diffusion.dicom", "oar_mapping.json"),
        "goals": f"file {_text_hash(Path(settings.goals))}" if own else settings.goals,
        "spacing_mm": list(settings.spacing_mm),
        "require": list(settings.require),
        "shape": list(shape) if shape else "auto",
        "schema": SCHEMA,
        "version": __version__,
    }


def _text_hash(path: Path | None, package: str = "", name: str = "") -> str:
    try:
        data = path.read_bytes() if path else (resources.files(package) / name).read_bytes()
    except OSError:
        raise InputError(f"{path} cannot be opened; check its permissions") from None
    return hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest()[:16]


def _common(work: _Work, spacing_mm: Point, no_case: Sequence[Rejection]) -> VolumeShape:
    """The shape for all cases of the first pass. Raises CaseError, after `rejected.csv`, for none."""
    extents = [Extent(*map(_point, state["extent"])) for state in work.states() if state["state"] == "staged"]
    if not extents:
        rejections = work.rejections()
        write_rejected(work.out, [*no_case, *rejections])
        raise CaseError(
            f"none of {len(rejections)} cases could be prepared; act on {work.out / REJECTED} and run again "
            "with --resume, or into another folder where a remedy changes other settings than --relax-filter "
            "and --allow-outside-body"
        )
    return common_shape(extents, spacing_mm)


def _point(values: Sequence[float]) -> Point:
    x, y, z = (float(v) for v in values)
    return x, y, z


class _Work:
    """The cases of one data set and their states, kept in `.work`."""

    def __init__(
        self,
        out: Path,
        settings: Preparation,
        cases: Mapping[str, RawCase],
        cluster: Cluster,
        *,
        progress: Progress,
    ) -> None:
        self.out, self.settings, self.cases = out, settings, cases
        self.cluster, self.progress = cluster, progress
        self.made = 0
        self.failed: set[str] = set()

    def states(self) -> list[dict[str, Any]]:
        """All states in the order of the cases' ids, those of cases without a raw folder included."""
        return read_states(self.out)

    def run(self, stage: str, shape: VolumeShape | None) -> None:
        """Run the jobs that are not done: the first pass where `shape` is None, else the second."""
        jobs = {
            name: (_key(case), (case, self.settings, self.out, shape))
            for name, case in self.cases.items()
            if name not in self.failed
        }
        wanted = _STAGED if shape is None else {"state": "done", "shape": list(shape)}
        made, failed = run_undone(
            prepare, jobs, self.out, wanted, cluster=self.cluster, stage=stage, progress=self.progress
        )
        self.failed |= failed
        if shape is not None:
            self.made += len(made)

    def finished(self, shape: VolumeShape) -> dict[str, dict[str, Any]]:
        """The states of all cases in the data set, by id."""
        return {s["id"]: s for s in self.states() if s["state"] == "done" and s.get("shape") == list(shape)}

    def rejections(self) -> list[Rejection]:
        """The rejected cases, without those whose raw folder is gone."""
        return rejections_of([s for s in self.states() if s["id"] in self.cases])


def _key(case: RawCase) -> str:
    """A key that changes with the files, and with the user's statements on the case."""
    return f"{case.key} {case.site} {case.fractions}"


def prepare(case: RawCase, settings: Preparation, out: Path, shape: VolumeShape | None) -> str:
    """One job: resample a case and keep it for later or, with a shape, finish it. Returns its id.

    Raises InputError to reject the case.
    """
    key, kept = _key(case), staged_path(out, case.id)
    waiting = is_made(out, read_state(out, case.id), key, _STAGED)
    training = load_case(kept) if waiting else clinical_case(case, settings)
    origin = training.provenance
    if shape is None:
        save_case(kept, training)
        extent = [origin["targets_extent_mm"], origin["extent_mm"]]
        files = {f"{WORK}/{kept.name}": kept.stat().st_size}
        write_state(out, case.id, key, **_STAGED, files=files, extent=extent)
    else:
        made = _finish(training, settings, out, shape)
        write_state(out, case.id, key, state="done", shape=list(shape), **made)
        kept.unlink(missing_ok=True)
    return case.id


def _finish(training: TrainingCase, settings: Preparation, out: Path, shape: VolumeShape) -> dict[str, Any]:
    """Cut a case to the shape, write its files and describe them as read back."""
    from vmat_diffusion.report.case_picture import case_picture

    cut, lost = cut_to(training, shape)
    percent = {name: round(share, 3) for name, share in lost.items()}
    cut = replace(cut, provenance={**cut.provenance, "cut_percent": percent})
    sdf = None
    if settings.store_sdf:
        spacing = cut.case.grid.spacing_mm
        sdf = {name: signed_distance_mm(s.mask, spacing) for name, s in cut.case.structures.items()}
    made = write_training_case(cut, out, draw=case_picture, sdf_mm=sdf)
    origin = cut.provenance
    statistics = made["statistics"]
    for key in ("extent_mm", "targets_extent_mm"):
        statistics[key] = origin[key]
    statistics["source_spacing_mm"] = origin["source_grid"]["spacing_mm"]
    return {**made, "cut_percent": percent}
