"""Where a command writes: a folder that appears whole, beside its input, and what happens if it cannot.

Results are written into a hidden folder on the file system of the output. A record in it says which process
writes it and how far it is: folders of processes that died are removed by the next run, and results that were
complete are moved to their place first.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vmat_diffusion.errors import InputError, LimitError, PlanError, limit_of
from vmat_diffusion.files import (
    flush_to_disk,
    is_dead,
    is_plain_name,
    read_json,
    system_errors_name,
    this_process,
    written_whole,
)

# Records of our commands, which list the files beside them under "files".
RECORDS = ("run.json", "prediction.json", "qa.json")
_WRITER, _FILES = "writer.json", "files"
_INSIDE = ".inside.partial"  # ends the name of a hidden folder that lies in the output folder
_PARTIAL = re.compile(r"\.(.+)\.([0-9a-f]{8})(?:\.inside)?\.partial")
_CANDIDATES_MAX = 100
# How far a hidden folder is: being written, whole, and whole with the old files already gone.
_WRITING, _WHOLE, _MOVING = "writing", "whole", "moving"


def require_apart(out: Path, *inputs: Path | str | None, option: str = "--out") -> None:
    """Raise InputError where `out` is an input, lies in one, or one lies in it.

    Of an input that is a file, only that file counts, and any folder above it as `out`. Links and mounts
    that lead to the same folder count as the same.
    """
    for given in inputs:
        if given is None:
            continue
        source = Path(given)
        if not source.exists():
            continue
        if _same(out, source):
            relation = "is an input of the same command"
        elif source.is_dir() and any(_same(parent, source) for parent in _parents(out)):
            relation = "lies in a folder that the command reads"
        elif any(_same(out, parent) for parent in _parents(source)) and (source.is_dir() or out.is_dir()):
            relation = "holds an input of the same command"
        else:
            continue
        raise InputError(
            # Without names: a clinic's folders are often called after their patients.
            f"{option} {relation}, which would be changed or read again; name a folder beside the input"
        )


def _parents(path: Path) -> Iterable[Path]:
    return path.resolve().parents


def _same(first: Path, second: Path) -> bool:
    if first.resolve() == second.resolve():
        return True
    try:
        return first.samefile(second)
    except OSError:
        return False


@contextmanager
def appearing_whole(
    out: Path, *, overwrite: bool, names: Sequence[str] = (), listed: Sequence[str] = ()
) -> Iterator[Path]:
    """A hidden folder beside or in `out` to write into; its files and folders move to `out` at the end.

    Of the files that `out` has already, those that are written anew are replaced and those that match one of
    `names` and are not are deleted, so that no file of an earlier run is taken for this one's; but only those
    that a record of an earlier run lists (`RECORDS`), or `listed`.
    On a failure before the end the hidden folder is removed again, with the parents that were made for it.
    What is complete and cannot be moved stays in a folder that the sentence names. Raises PlanError where
    `out` is a file, not empty and not to be overwritten, or holds files that no earlier run lists.
    """
    out = out.absolute()
    _refuse_file(out)
    clear_up(out)
    if out.is_dir() and not overwrite and _visible(out):
        raise PlanError(f"output folder {out} is not empty; name another one or pass --overwrite")
    known = frozenset(listed) | _listed(out)
    _refuse_foreign(out, [path for name in names for path in out.glob(name)], known)
    made = [p for p in out.parents if not p.exists()]
    partial = out.parent / f".{out.name}.{uuid.uuid4().hex[:8]}.partial"
    if out.is_dir():  # which may be another disk's
        partial = out / partial.name.replace(".partial", _INSIDE)
    try:
        with system_errors_name(out):
            partial.mkdir(parents=True)
            _state(partial, _WRITING)
            (partial / _FILES).mkdir()
            yield partial / _FILES
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with suppress(OSError):
                parent.rmdir()  # only while it is empty
        if isinstance(error, Exception) and (limit := limit_of(error)):
            # The hidden folder is gone: the file is named where the user would look for it.
            sentence = limit.replace(str(partial / _FILES), str(out))
            raise LimitError(sentence if str(out) in sentence else f"{out}: {sentence}") from error
        raise
    try:
        if out.is_dir():
            if not overwrite and _visible(out):
                raise PlanError(f"output folder {out} was filled by something else meanwhile")
            _refuse_foreign(out, _differing(partial / _FILES, out), known)
        _state(partial, _WHOLE, [n for n in names if "/" not in n], sorted(known))
        _publish(partial, out)
    except (OSError, InputError) as error:
        raise _kept(partial, out, error) from error


def _refuse_file(out: Path) -> None:
    for place in (out, *out.parents):
        if place.exists() and not place.is_dir():
            what = "output folder" if place == out else "the parent"
            raise PlanError(f"{what} {place} is a file; name a folder")


def _visible(out: Path) -> bool:
    """Whether a folder holds anything but our hidden folders and what a new disk holds."""
    return any(not _PARTIAL.fullmatch(p.name) and p.name != "lost+found" for p in out.iterdir())


def _listed(out: Path) -> frozenset[str]:
    """The names of files and candidates' folders that records of earlier runs in `out` list."""
    names: set[str] = set()
    for record in RECORDS:
        content = read_json(out / record) if (out / record).is_file() else None
        files = content.get("files") if isinstance(content, dict) else None
        if isinstance(content, dict) and isinstance(files, list):
            names |= {record, *(f for f in files if is_plain_name(f))}
            candidates = content.get("candidates")
            if isinstance(candidates, list):
                names |= {f"candidate_{k}" for k in range(min(len(candidates), _CANDIDATES_MAX))}
    return frozenset(names)


def _refuse_foreign(out: Path, files: Iterable[Path], known: frozenset[str]) -> None:
    foreign = sorted(file.name for file in files if file.name not in known)
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise PlanError(
            f"output folder {out} holds {foreign[0]}{more}, which no earlier run of ours lists; "
            "move it away or name another folder"
        )


def _differing(files: Path, out: Path) -> list[Path]:
    """What `out` has already under a name that was written anew, with another content."""
    there = [out / file.name for file in files.iterdir()]
    return [
        old
        for old in there
        if os.path.lexists(old) and not (old.is_file() and filecmp.cmp(old, files / old.name, shallow=False))
    ]


def _state(partial: Path, phase: str, names: Sequence[str] = (), known: Sequence[str] = ()) -> None:
    """Write who writes a hidden folder and how far it is; `names` and `known` are needed from whole on."""
    record = {**this_process(), "phase": phase, "names": list(names), "known": list(known)}
    with written_whole(partial / _WRITER) as part:
        part.write_text(json.dumps(record), encoding="utf-8")


def _publish(partial: Path, out: Path) -> None:
    """Move what is whole to its place; may be called again after it was broken off anywhere."""
    record, files = read_json(partial / _WRITER), partial / _FILES
    assert isinstance(record, dict)
    if not out.is_dir():
        try:
            files.rename(out)
        except OSError:
            out.mkdir(parents=True, exist_ok=True)
    if files.is_dir() and record["phase"] == _WHOLE:
        # First the old files go, so that old and new never stand side by side.
        known = set(record["known"])
        gone = {path for name in record["names"] for path in out.glob(name) if path.name in known}
        # Records last: a plan file never stands there without the record of its verdict.
        for old in sorted(gone, key=lambda path: (path.name in RECORDS, path.name)):
            _remove(old)
        _state(partial, _MOVING)
    written = list(files.iterdir()) if files.is_dir() else []
    for file in sorted(written, key=lambda f: (f.name in RECORDS, f.name)):
        _moved(file, out / file.name)
    shutil.rmtree(partial, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _moved(file: Path, goal: Path) -> None:
    """Rename, or where that cannot be, as between file systems: copy, wait for the disk, rename there."""
    if goal.is_dir() and not goal.is_symlink():
        shutil.rmtree(goal)
    try:
        file.replace(goal)
        return
    except OSError:
        pass
    beside = goal.with_name(f".{goal.name}.{uuid.uuid4().hex}.part")
    try:
        if file.is_dir():
            shutil.copytree(file, beside)
        else:
            shutil.copyfile(file, beside)
            flush_to_disk(beside)
        beside.replace(goal)
    except BaseException:
        _remove(beside)
        raise
    _remove(file)


def _kept(partial: Path, out: Path, error: Exception) -> InputError:
    """The sentence for results that are complete and could not be moved, after they got a name to see."""
    name = _PARTIAL.fullmatch(partial.name)
    assert name is not None
    place = partial.parent / f"{out.name}.unmoved-{name[2]}"
    try:
        (partial / _FILES).rename(place)
        shutil.rmtree(partial)
    except OSError:
        if not place.exists():
            place = partial / _FILES
        with suppress(OSError):
            (partial / _WRITER).unlink()  # else the next run would take it for a dead one's
    why = limit_of(error) or (error.strerror if isinstance(error, OSError) else None) or str(error)
    kind = LimitError if limit_of(error) else PlanError
    return kind(
        f"{why}; the results are complete; what could not be moved to {out} stays in {place}: "
        "move it there or to a folder of your choice"
    )


def clear_up(out: Path) -> None:
    """Remove what dead processes left beside and in `out`, and finish what they had whole."""
    for parent in {out.parent, out}:
        try:
            found = [p for p in parent.iterdir() if _PARTIAL.fullmatch(p.name) and p.is_dir()]
        except OSError:
            continue
        for partial in found:
            _clear_up_one(partial)


def _clear_up_one(partial: Path) -> None:
    record = read_json(partial / _WRITER)
    if not isinstance(record, dict) or not is_dead(record):
        return
    name = _PARTIAL.fullmatch(partial.name)
    assert name is not None
    out = partial.parent if partial.name.endswith(_INSIDE) else partial.parent / name[1]
    with suppress(OSError, InputError, KeyError, TypeError):
        if record.get("phase") == _WRITING:
            shutil.rmtree(partial)
        elif record.get("phase") in (_WHOLE, _MOVING) and all(map(is_plain_name, record["known"])):
            _publish(partial, out)


@contextmanager
def kept_or_temporary(out: Path | None) -> Iterator[Path]:
    """The folder of a benchmark's runs: `out`, which is made, or without one a folder for this time only.

    Raises InputError where a file is in the place of a folder.
    """
    if out is None:
        with tempfile.TemporaryDirectory(prefix="vmat_") as folder:
            yield Path(folder)
        return
    if any(p.exists() and not p.is_dir() for p in (out, *out.parents)):
        raise InputError(f"--out {out} is no folder and none can be made there; name another one")
    out.mkdir(parents=True, exist_ok=True)
    yield out
