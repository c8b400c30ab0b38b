"""A data set made by one job per case; an interrupted run goes on where it ended.

Each case has a small state file under `.work`, written after the case's own files: whatever has a state is
whole. A command begins a data set, runs its jobs, and writes its tables from the states.
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
from vmat_diffusion.files import is_plain_name, parse_json, read_json
from vmat_diffusion.jobs.batch import Cluster, Done, run_jobs
from vmat_diffusion.jobs.state_schema import is_begun, is_state
from vmat_diffusion.progress import Progress, silent

WORK = ".work"
_RUN = "run.json"
VolumeShape = tuple[int, int, int]
# Jobs by the id of the case: a key that changes with the source of the case, and the arguments.
Jobs = Mapping[str, tuple[str, tuple[Any, ...]]]
# Writes a picture of a case and returns its file.
Draw = Callable[[Path, TrainingCase], Path]


def begin_dataset(
    out: Path,
    record: Mapping[str, Any],
    shape: VolumeShape | None,
    *,
    resume: bool,
    admitting: Collection[str] = (),
) -> VolumeShape | None:
    """Prepare the folder of a data set; returns the shape that the data set has already, or `shape`.

    `record` holds the settings. Those in `admitting` only admit more cases and may be turned on when a data
    set is resumed: finished cases are kept, rejected ones are tried again. Raises InputError for a folder
    that is not empty without `resume`, or that was made with other settings.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder for the data set")
    begun = out / WORK / _RUN
    there = [p for p in out.glob("*") if not p.name.startswith(".")] if out.is_dir() else []
    if (there or begun.exists()) and not resume:
        raise InputError(f"{out} is not empty; pass --resume to go on with it or name another folder")
    kept = _begun(out)
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
        write_run(out, record, shape)
    return shape


def _begun(out: Path) -> dict[str, Any] | None:
    """Settings and shape of a data set that was begun; None where none was. InputError for a damaged file."""
    file = out / DATASET if (out / DATASET).is_file() else out / WORK / _RUN
    if not file.is_file():
        return None
    kept = read_dataset(out) if file.name == DATASET else read_json(file)
    if not isinstance(kept, dict) or not is_begun(kept):
        raise InputError(
            f"{file} is damaged, so the settings of the data set are not known; restore the file or make "
            "the data set anew in another folder"
        )
    return kept


def make_cases(
    function: Callable[..., TrainingCase],
    jobs: Jobs,
    out: Path,
    *,
    draw: Draw,
    cluster: Cluster,
    stage: str,
    progress: Progress = silent,
) -> int:
    """Make and write the cases that are not there yet; returns their number.

    `function(*arguments)` returns a case on its final grid, with `technique` and `patient` in its
    provenance, or raises InputError to reject the case. Jobs that failed by a defect in an earlier run are
    tried again. The state of a case keeps the seconds it took and the `figures` of its provenance, if any.
    """
    own = {name: (key, (function, draw, out, key, arguments)) for name, (key, arguments) in jobs.items()}
    wanted = {"state": "done"}
    made, _ = run_undone(_make, own, out, wanted, cluster=cluster, stage=stage, progress=progress)
    return len(made)


def run_undone(
    function: Callable[..., Any],
    jobs: Jobs,
    out: Path,
    wanted: Mapping[str, Any],
    *,
    cluster: Cluster,
    stage: str,
    progress: Progress = silent,
) -> tuple[set[str], set[str]]:
    """Run the jobs of cases whose state has not the `wanted` values and is no rejection.

    `function(*arguments)` makes a case and writes its state, or raises InputError to reject the case. Jobs
    that failed by a defect in an earlier run are tried again. Returns the ids of the cases that were made
    and of those that failed.
    """
    todo = {
        name: arguments for name, (key, arguments) in jobs.items() if not _is_done(out, name, key, wanted)
    }
    made: set[str] = set()
    failed: set[str] = set()
    if not todo:
        return made, failed
    progress(stage, 0.0, f"0 of {len(todo)}")
    with closing(run_jobs(function, todo, cluster=cluster)) as ends:
        for count, done in enumerate(ends, start=1):
            if done.reason:
                _reject(out, jobs[done.key][0], done)
            (failed if done.reason else made).add(done.key)
            progress(stage, count / len(todo), f"{count} of {len(todo)}")
    return made, failed


def write_training_case(
    training: TrainingCase, out: Path, *, draw: Draw, sdf_mm: Mapping[str, NDArray] | None = None
) -> dict[str, Any]:
    """Write a case's npz and picture; returns `files` with sizes, `record` and `statistics` as read back."""
    path = save_case(out / f"{training.case.id}.npz", training, sdf_mm=sdf_mm)
    read = load_case(path)
    picture = draw(path.with_suffix(".png"), read)
    origin = read.provenance
    return {
        "files": {p.name: p.stat().st_size for p in (path, picture)},
        "record": case_record(read, path, technique=origin["technique"], patient=origin["patient"]),
        "statistics": case_statistics(read),
    }


def rejections_of(states: Sequence[Mapping[str, Any]]) -> list[Rejection]:
    """The rejections among the states."""
    return [rejection(s["id"], s["reason"]) for s in states if s["state"] == "rejected"]


def write_tables(
    out: Path,
    record: Mapping[str, Any],
    shape: VolumeShape | None,
    done: Sequence[Mapping[str, Any]],
    rejections: Sequence[Rejection],
) -> None:
    """`index.jsonl`, `rejected.csv` and `dataset.json` from the states of the finished cases."""
    records = [state["record"] for state in done]
    numbers = fingerprint(records, [state["statistics"] for state in done], len(rejections))
    write_index(out, records)
    write_rejected(out, rejections)
    write_dataset(out, settings=record, shape=shape, numbers=numbers)


def write_run(out: Path, record: Mapping[str, Any], shape: VolumeShape | None) -> None:
    """Keep the settings and the shape until `dataset.json` is written."""
    write_text(out / WORK / _RUN, json.dumps({"settings": record, "shape": shape}) + "\n")


def read_states(out: Path) -> list[dict[str, Any]]:
    """All states in the order of the cases' ids, those of cases without a source included."""
    found = (read_state(out, path.stem) for path in sorted((out / WORK).glob("*.state")))
    return [state for state in found if state is not None]


def read_state(out: Path, case: str) -> dict[str, Any] | None:
    """The state of a case; None where there is none or it is damaged, so that the case is made again."""
    try:
        state = parse_json((out / WORK / f"{case}.state").read_text(encoding="utf-8"), characters=1_000_000)
    except (OSError, ValueError):
        return None
    # A state under another's name would make that one's files this one's.
    if not is_state(state) or state["id"] != case or state.get("record", {"id": case})["id"] != case:
        return None
    plain = all(is_plain_name(f.removeprefix(f"{WORK}/")) for f in state.get("files", ()))
    return dict(state) if plain else None


def write_state(out: Path, case: str, key: str, **values: Any) -> None:
    """Write the state of a case; `key` changes with its source."""
    write_text(out / WORK / f"{case}.state", json.dumps({"id": case, "key": key, **values}) + "\n")


def is_made(out: Path, state: Mapping[str, Any] | None, key: str, wanted: Mapping[str, Any]) -> bool:
    """Whether a state is of the source `key`, has the `wanted` values, and its files are whole."""
    if state is None or state["key"] != key or any(state.get(name) != wanted[name] for name in wanted):
        return False
    files = state.get("files", {})
    return bool(files) and all(
        (out / f).is_file() and (out / f).stat().st_size == n for f, n in files.items()
    )


def staged_path(out: Path, case: str) -> Path:
    """The file of a case between its first and its second pass."""
    return out / WORK / f"{case}.npz"


def _admits_more(
    out: Path, before: Mapping[str, Any], now: Mapping[str, Any], admitting: Collection[str]
) -> bool:
    """Whether settings in `admitting` were turned on. Raises InputError for any other change."""
    plain = json.loads(json.dumps(now))
    # A setting that an earlier version did not have was off.
    changed = [name for name in plain if (before.get(name) or None) != (plain[name] or None)]
    for name in changed:
        if not (name in admitting and before.get(name) is False and plain[name] is True):
            raise InputError(
                f"{out} was made with {name} = {before.get(name)}, now it is {plain[name]}; resume with the "
                "same settings or name another folder"
            )
    return bool(changed)


def _admit(out: Path, record: Mapping[str, Any], shape: VolumeShape | None) -> None:
    """Remove the states of the rejected cases and take the settings of `record`."""
    for state in read_states(out):
        if state["state"] == "rejected":
            (out / WORK / f"{state['id']}.state").unlink()
    write_run(out, record, shape)
    if (kept := read_dataset(out)) is not None:  # last: a kill before it leaves all of this to be done again
        write_text(out / DATASET, json.dumps({**kept, "settings": record}, indent=1) + "\n")


def _is_done(out: Path, case: str, key: str, wanted: Mapping[str, Any]) -> bool:
    state = read_state(out, case)
    if state is not None and state["state"] == "rejected":
        return state["key"] == key and not state["defect"]
    return is_made(out, state, key, wanted)


def _make(
    function: Callable[..., TrainingCase], draw: Draw, out: Path, key: str, arguments: tuple[Any, ...]
) -> str:
    """One job: make a case, write its files and its state."""
    started = time.perf_counter()
    training = function(*arguments)
    files = write_training_case(training, out, draw=draw)
    figures, seconds = training.provenance.get("figures", {}), round(time.perf_counter() - started, 1)
    write_state(out, training.case.id, key, state="done", **files, figures=figures, seconds=seconds)
    return training.case.id


def _reject(out: Path, key: str, done: Done) -> None:
    """Write why a case is left out, and remove its files of an earlier run."""
    # The files first: after a kill the case is made again.
    for path in (out / f"{done.key}.npz", out / f"{done.key}.png", staged_path(out, done.key)):
        path.unlink(missing_ok=True)
    why = {"reason": done.reason, "defect": done.defect, "trace": done.trace}
    write_state(out, done.key, key, state="rejected", **why)
