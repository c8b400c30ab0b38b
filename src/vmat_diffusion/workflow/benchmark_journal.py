"""The results of a benchmark patient by patient, on disk as they come, so that a stopped run can go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from vmat_diffusion import __version__
from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.calibration import Spread
from vmat_diffusion.evaluate.openkbp_tables import PatientScores
from vmat_diffusion.evaluate.steering import Steered
from vmat_diffusion.files import written_whole
from vmat_diffusion.workflow.raw_cases import files_key, listing


class _OfPatient(Protocol):
    """A dataclass that names its patient."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def id(self) -> str: ...


Result = TypeVar("Result", bound=_OfPatient)


@dataclass(frozen=True)
class PatientResult:
    """What was found of one patient, and how many seconds it took to read, predict and score.

    `spread` is there for at least two samples and a reference dose, `steered` for the patients in whom
    something was asked for, `csv_sha256` where the dose was written.
    """

    scores: PatientScores
    seconds: Mapping[str, float]
    spread: Spread | None = None
    steered: tuple[Steered, ...] = ()
    csv_sha256: str | None = None

    @property
    def id(self) -> str:
        """The patient."""
        return self.scores.id


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

    def kept(self, patient: Path) -> Result | None:
        """The result of a patient, if there is one of the files as they are now."""
        return self._results.get((patient.stem, _key(patient)))

    def keep(self, patient: Path, result: Result) -> Result:
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
    """The results in a journal; a line that was cut off by a crash ends them and is taken away."""
    try:
        first, _, rest = path.read_text(encoding="utf-8").partition("\n")
        before = dict(json.loads(first))
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
    for line in rest.splitlines():
        try:
            record = json.loads(line)
            found = TypeAdapter(kind).validate_python(record["result"])
            results[found.id, record["key"]] = found
        except (ValueError, KeyError, TypeError, ValidationError):
            break
        whole.append(line)
    with written_whole(path) as part:
        part.write_text("".join(line + "\n" for line in whole), encoding="utf-8")
    return results


def _key(patient: Path) -> str:
    folder, files = (patient, listing(patient)) if patient.is_dir() else (patient.parent, [patient.name])
    return files_key(folder, files)
