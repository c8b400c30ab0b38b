"""A data set's folder that a run can go on with: settings that hold, and what became of each case.

What happened to each case is a small file under `.work`, written after the case's own files, so that
whatever is recorded is whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmat_diffusion.errors import InputError
from vmat_diffusion.workflow.dataset import read_dataset, write_text

WORK, RUN = ".work", "run.json"
Shape = tuple[int, int, int]


def open_dataset(out: Path, record: Mapping[str, Any], shape: Shape | None, *, resume: bool) -> Shape | None:
    """Make `out` ready and return the shape that holds there already, if any.

    Raises InputError for a folder that is not empty and not to be resumed, or of other settings.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder for the data set")
    begun = out / WORK / RUN
    there = [p for p in out.glob("*") if not p.name.startswith(".")] if out.is_dir() else []
    if (there or begun.exists()) and not resume:
        raise InputError(f"{out} is not empty; pass --resume to go on with it or name another folder")
    kept = read_dataset(out)
    if kept is None and begun.is_file():
        kept = json.loads(begun.read_text(encoding="utf-8"))
    if kept is None and there:
        raise InputError(f"{out} holds other files and no data set; name another folder")
    if kept is not None:
        _same_settings(out, kept["settings"], record)
        shape = tuple(kept["shape"]) if kept["shape"] else shape
    (out / WORK).mkdir(parents=True, exist_ok=True)
    for folder in (out, out / WORK):
        for part in folder.glob(".*.part"):  # of a run that was killed
            part.unlink(missing_ok=True)
    if not begun.is_file():
        write_text(begun, json.dumps({"settings": record, "shape": shape}) + "\n")
    return shape


def _same_settings(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    plain = json.loads(json.dumps(now))
    changed = [name for name in plain if before.get(name) != plain[name]]
    if changed:
        name = changed[0]
        raise InputError(
            f"{out} was made with {name} = {before.get(name)}, now it is {plain[name]}; resume with the same "
            "settings or name another folder"
        )


def read_state(out: Path, case: str) -> dict[str, Any] | None:
    """What became of a case; None where it is not known."""
    try:
        state: dict[str, Any] = json.loads((out / WORK / f"{case}.state").read_text(encoding="utf-8"))
        return state
    except (OSError, ValueError):
        return None


def all_states(out: Path) -> list[dict[str, Any]]:
    """What became of all cases, in the order of their ids."""
    found = (read_state(out, path.stem) for path in sorted((out / WORK).glob("*.state")))
    return [state for state in found if state is not None]


def write_state(out: Path, case: str, **values: Any) -> None:
    """Record what became of a case, after its files."""
    write_text(out / WORK / f"{case}.state", json.dumps({"id": case, **values}) + "\n")


def files_whole(out: Path, state: Mapping[str, Any]) -> bool:
    """Whether the files that a state lists are there in their full length."""
    return all(
        (out / name).is_file() and (out / name).stat().st_size == n for name, n in state["files"].items()
    )
