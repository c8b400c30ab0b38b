"""What has become of each case of a data set that is being made, so that a killed run can go on.

Each case has a small file under `.work`, written after the case's own files: whatever is recorded is whole.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vmat_diffusion.dataset.cases import TrainingCase, load_case, save_case
from vmat_diffusion.dataset.tables import (
    DATASET,
    Rejection,
    case_record,
    case_statistics,
    fingerprint,
    read_dataset,
    rejection,
    write_dataset,
    write_index,
    write_rejected,
    write_text,
)
from vmat_diffusion.errors import InputError
from vmat_diffusion.jobs.batch import Cluster, Done, run_jobs
from vmat_diffusion.progress import Progress

WORK = ".work"
_RUN = "run.json"
Shape = tuple[int, int, int]


def opened(
    out: Path,
    record: Mapping[str, Any],
    shape: Shape | None,
    *,
    resume: bool,
    admitting: Collection[str] = (),
) -> Shape | None:
    """Make the folder of a data set ready and return the shape that holds there already, if any.

    `record` holds the settings. Those in `admitting` only admit more cases and may be turned on for a data
    set made without them: finished cases are kept, rejected ones are forgotten and so tried again.
    Raises InputError for a folder that is not empty and not to be resumed, or of other settings.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder for the data set")
    begun = out / WORK / _RUN
    there = [p for p in out.glob("*") if not p.name.startswith(".")] if out.is_dir() else []
    if (there or begun.exists()) and not resume:
        raise InputError(f"{out} is not empty; pass --resume to go on with it or name another folder")
    kept = read_dataset(out)
    if kept is None and begun.is_file():
        kept = json.loads(begun.read_text(encoding="utf-8"))
    if kept is None and there:
        raise InputError(f"{out} holds other files and no data set; name another folder")
    more = False
    if kept is not None:
        more = _admits_more(out, kept["settings"], record, admitting)
        shape = tuple(kept["shape"]) if kept["shape"] else shape
    (out / WORK).mkdir(parents=True, exist_ok=True)
    for folder in (out, out / WORK):
        for part in folder.glob(".*.part"):  # of a run that was killed
            part.unlink(missing_ok=True)
    if more:
        _admit(out, record, shape)
    elif not begun.is_file():
        note_run(out, record, shape)
    return shape


def note_run(out: Path, record: Mapping[str, Any], shape: Shape | None) -> None:
    """Keep the settings and the shape for a run that goes on before `dataset.json` is written."""
    write_text(out / WORK / _RUN, json.dumps({"settings": record, "shape": shape}) + "\n")


def _admits_more(
    out: Path, before: Mapping[str, Any], now: Mapping[str, Any], admitting: Collection[str]
) -> bool:
    """Whether settings in `admitting` were turned on. Raises InputError for any other change."""
    plain = json.loads(json.dumps(now))
    changed = [name for name in plain if before.get(name) != plain[name]]
    for name in changed:
        if not (name in admitting and before.get(name) is False and plain[name] is True):
            raise InputError(
                f"{out} was made with {name} = {before.get(name)}, now it is {plain[name]}; resume with the "
                "same settings or name another folder"
            )
    return bool(changed)


def _admit(out: Path, record: Mapping[str, Any], shape: Shape | None) -> None:
    """Forget the rejected cases and go on with the settings of `record`."""
    for state in read_states(out):
        if state["state"] == "rejected":
            (out / WORK / f"{state['id']}.state").unlink()
    note_run(out, record, shape)
    if (kept := read_dataset(out)) is not None:  # last: a kill before it leaves all of this to be done again
        write_text(out / DATASET, json.dumps({**kept, "settings": record}, indent=1) + "\n")


def read_state(out: Path, case: str) -> dict[str, Any] | None:
    """What became of a case; None where it is not known."""
    try:
        state: dict[str, Any] = json.loads((out / WORK / f"{case}.state").read_text(encoding="utf-8"))
        return state
    except (OSError, ValueError):
        return None


def read_states(out: Path) -> list[dict[str, Any]]:
    """What is recorded, in the order of the cases' ids; cases whose source is gone included."""
    found = (read_state(out, path.stem) for path in sorted((out / WORK).glob("*.state")))
    return [state for state in found if state is not None]


def write_state(out: Path, case: str, key: str, **values: Any) -> None:
    """Record what became of a case; `key` changes with its source."""
    write_text(out / WORK / f"{case}.state", json.dumps({"id": case, "key": key, **values}) + "\n")


def is_made(out: Path, state: Mapping[str, Any] | None, key: str, wanted: Mapping[str, Any]) -> bool:
    """Whether a case is recorded as made from `key`, with the `wanted` values, and its files are there."""
    if state is None or state["key"] != key or any(state.get(name) != wanted[name] for name in wanted):
        return False
    files = state.get("files", {})
    return bool(files) and all(
        (out / f).is_file() and (out / f).stat().st_size == n for f, n in files.items()
    )


def staged(out: Path, case: str) -> Path:
    """The file in which a case waits for its second pass."""
    return out / WORK / f"{case}.npz"


def _reject(out: Path, key: str, done: Done) -> None:
    """Record why a case is left out, and take away what an earlier run made of it."""
    # The files first: a kill leaves a case to be made.
    for path in (out / f"{done.key}.npz", out / f"{done.key}.png", staged(out, done.key)):
        path.unlink(missing_ok=True)
    why = {"reason": done.reason, "defect": done.defect, "trace": done.trace}
    write_state(out, done.key, key, state="rejected", **why)


def rejections_of(states: Sequence[Mapping[str, Any]]) -> list[Rejection]:
    """Why the cases that are not in the data set are not."""
    return [rejection(s["id"], s["reason"]) for s in states if s["state"] == "rejected"]


def write_tables(
    out: Path,
    record: Mapping[str, Any],
    shape: Shape | None,
    done: Sequence[Mapping[str, Any]],
    rejections: Sequence[Rejection],
) -> None:
    """`index.jsonl`, `rejected.csv` and `dataset.json` from the states of the finished cases."""
    records = [state["record"] for state in done]
    numbers = fingerprint(records, [state["statistics"] for state in done], len(rejections))
    write_index(out, records)
    write_rejected(out, rejections)
    write_dataset(out, settings=record, shape=shape, numbers=numbers)


def run_undone(
    function: Callable[..., Any],
    jobs: Mapping[str, tuple[str, tuple[Any, ...]]],
    out: Path,
    wanted: Mapping[str, Any],
    *,
    cluster: Cluster,
    stage: str,
    progress: Progress | None = None,
) -> tuple[set[str], set[str]]:
    """Do those of `jobs`, `id: (key, arguments)`, whose case is neither as `wanted` yet nor rejected.

    `function(*arguments)` makes a case and records it with `write_state`, or raises InputError for one that
    is to be left out, which is recorded here. Defects of an earlier run are tried again. Returns the ids of
    the cases that were made and of those that failed.
    """
    todo = {
        name: arguments for name, (key, arguments) in jobs.items() if not _is_done(out, name, key, wanted)
    }
    made: set[str] = set()
    failed: set[str] = set()
    if not todo:
        return made, failed
    report = progress or (lambda stage, fraction, note: None)
    report(stage, 0.0, f"0 of {len(todo)}")
    with closing(run_jobs(function, todo, cluster=cluster)) as ends:
        for count, done in enumerate(ends, start=1):
            if done.reason:
                _reject(out, jobs[done.key][0], done)
            (failed if done.reason else made).add(done.key)
            report(stage, count / len(todo), f"{count} of {len(todo)}")
    return made, failed


def _is_done(out: Path, case: str, key: str, wanted: Mapping[str, Any]) -> bool:
    state = read_state(out, case)
    if state is not None and state["state"] == "rejected":
        return state["key"] == key and not state["defect"]
    return is_made(out, state, key, wanted)


def make_cases(
    function: Callable[..., TrainingCase],
    jobs: Mapping[str, tuple[str, tuple[Any, ...]]],
    out: Path,
    *,
    cluster: Cluster,
    stage: str,
    progress: Progress | None = None,
) -> int:
    """Make what is not there yet of the cases in `jobs`, `id: (key, arguments)`; returns how many were made.

    `function(*arguments)` returns a case on its final grid, with `technique` and `patient` in its
    provenance, or raises InputError for one that is to be left out. Defects of an earlier run are tried
    again. The state of a case keeps the seconds it took and the `figures` of its provenance, if any.
    """
    own = {name: (key, (function, out, name, key, arguments)) for name, (key, arguments) in jobs.items()}
    wanted = {"state": "done"}
    made, _ = run_undone(_make, own, out, wanted, cluster=cluster, stage=stage, progress=progress)
    return len(made)


def _make(
    function: Callable[..., TrainingCase], out: Path, name: str, key: str, arguments: tuple[Any, ...]
) -> str:
    """One job: make a case, write its files and record them."""
    started = time.perf_counter()
    training = function(*arguments)
    made = finished(training, out)
    figures, seconds = training.provenance.get("figures", {}), round(time.perf_counter() - started, 1)
    write_state(out, name, key, state="done", **made, figures=figures, seconds=seconds)
    return name


def finished(
    training: TrainingCase, out: Path, *, sdf_mm: Mapping[str, NDArray] | None = None
) -> dict[str, Any]:
    """Write a case's files and describe them as read back: `files` with sizes, `record`, `statistics`."""
    from vmat_diffusion.report.case_picture import case_picture

    path = save_case(out / f"{training.case.id}.npz", training, sdf_mm=sdf_mm)
    read = load_case(path)
    picture = case_picture(path.with_suffix(".png"), read)
    origin = read.provenance
    return {
        "files": {p.name: p.stat().st_size for p in (path, picture)},
        "record": case_record(read, path, technique=origin["technique"], patient=origin["patient"]),
        "statistics": case_statistics(read),
    }
