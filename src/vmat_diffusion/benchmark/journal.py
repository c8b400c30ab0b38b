"""The results of a benchmark patient by patient, on disk as they come, so that a stopped run can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from vmat_diffusion import __version__
from vmat_diffusion.dataset.raw_cases import files_key, listing
from vmat_diffusion.errors import InputError
from vmat_diffusion.files import parse_json, written_whole
from vmat_diffusion.workflow.output import require_apart


class _OfPatient(Protocol):
    """A dataclass that names its patient."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def id(self) -> str: ...


Result = TypeVar("Result", bound=_OfPatient)
# The key of a patient without files: it changes with the version alone.
_IN_CODE = "built in code"


@dataclass(frozen=True, eq=False)
class Journal(Generic[Result]):
    """Results by patient, which are good for the same settings and the same files; without path, none."""

    path: Path | None
    _head: Mapping[str, Any]
    _results: dict[tuple[str, str], Result]

    @classmethod
    def opened(
        cls, path: Path | None, settings: Mapping[str, Any], kind: type[Result], *, overwrite: bool
    ) -> Journal[Result]:
        """The journal of a run with these settings and results of this kind, a dataclass.

        Nothing is written before the first result.

        Raises InputError for one with results of other settings, which is begun anew with `overwrite`.
        """
        head = {"version": __version__, **settings}
        if path is None or not path.is_file():
            return cls(path, head, {})
        if overwrite:
            path.unlink()
            return cls(path, head, {})
        return cls(path, head, _read(path, head, kind))

    def __len__(self) -> int:
        """How many results it held when it was opened."""
        return len(self._results)

    @property
    def results(self) -> tuple[Result, ...]:
        """The results that it held when it was opened, also of files as they were before."""
        return tuple(self._results.values())

    def kept(self, patient: Path | None, name: str = "") -> Result | None:
        """The result of a patient, if there is one of the files as they are now.

        `name` is that of one of several results of a patient; a patient without files is built in code.
        """
        return self._results.get((name or (patient.stem if patient else ""), _key(patient)))

    def keep(self, patient: Path | None, result: Result) -> Result:
        """Add a result to the file at once."""
        if self.path is not None:
            line = json.dumps({"key": _key(patient), "result": asdict(result)}) + "\n"
            if self.path.is_file():
                with self.path.open("a", encoding="utf-8") as stream:
                    stream.write(line)
            else:
                with written_whole(self.path) as part:
                    part.write_text(json.dumps(self._head) + "\n" + line, encoding="utf-8")
        return result


def _read(path: Path, head: Mapping[str, Any], kind: type[Result]) -> dict[tuple[str, str], Result]:
    """The results in a journal; a last line that was cut off by a crash is taken away."""
    try:
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
        before = dict(parse_json(first, finite=False))
        if not {"version", "weights"} <= set(before):
            raise ValueError
    except (ValueError, TypeError):
        raise InputError(f"{path} is no file of benchmark results; name another file or remove it") from None
    changed = [
        name for name in (*head, *before) if before.get(name) != json.loads(json.dumps(head)).get(name)
    ]
    if changed and "\n" not in rest:  # no whole result: nothing is lost
        path.unlink()
        return {}
    if changed:
        raise InputError(
            f"{path.name} holds results of another {changed[0]}; pass --overwrite to begin anew or name "
            "another file"
        )
    results: dict[tuple[str, str], Result] = {}
    whole = [first]
    lines = rest.splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line, finite=False)
            found = TypeAdapter(kind).validate_python(record["result"])
            results[found.id, str(record["key"])] = found
        except (ValueError, KeyError, TypeError, ValidationError):
            if number == len(lines):
                break
            raise InputError(
                f"{path.name}, line {number + 1} is damaged; remove that line, and its patient is done again"
            ) from None
        whole.append(line)
    with written_whole(path) as part:
        part.write_text("".join(line + "\n" for line in whole), encoding="utf-8")
    return results


def _key(patient: Path | None) -> str:
    if patient is None:
        return _IN_CODE
    folder, files = (patient, listing(patient)) if patient.is_dir() else (patient.parent, [patient.name])
    return files_key(folder, files)


def journal_path(out: Path | None, csv_out: Path | None) -> Path | None:
    """The file of results by patient: beside `out`, or in `csv_out`."""
    if out is not None:
        return out.with_name(f"{out.stem}.patients.jsonl")
    return csv_out / "patients.jsonl" if csv_out is not None else None


def check_places(out: Path | None, csv_out: Path | None, *inputs: Path | str | None) -> None:
    """Raises InputError where a folder stands for a file or a file for a folder, or where it is an input."""
    for place, option in ((out, "--out"), (csv_out, "--csv-out")):
        if place is not None:
            require_apart(place, *inputs, option=option)
    if out is not None and out.is_dir():
        raise InputError(f"--out {out} is a folder; name a file in it, such as {out / 'found.json'}")
    for folder in (csv_out, out.parent if out else None):
        if folder is not None and any(p.exists() and not p.is_dir() for p in (folder, *folder.parents)):
            raise InputError(f"{folder} is no folder and none can be made there; name another one")
