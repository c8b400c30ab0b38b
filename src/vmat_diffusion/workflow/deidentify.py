"""A folder of patients without the persons: all files of all of them, and a report without values."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vmat_diffusion import __version__
from vmat_diffusion.errors import CaseError
from vmat_diffusion.files import write_json
from vmat_diffusion.progress import Progress
from vmat_diffusion.workflow.output import appearing_whole, require_apart

REPORT = "deidentification.json"
_KEY_BYTES_MIN = 16


@dataclass(frozen=True)
class DeidentifiedFolder:
    """What became of a folder: files by pseudonym and kind, what was done, and what was left out.

    `remarks` say where files that belong together went to several patients.
    """

    out: Path
    cases: Mapping[str, Mapping[str, int]]
    done: Mapping[tuple[str, str], int]
    left_out: Mapping[int, str]
    others: tuple[int, ...]
    key_given: bool
    method: str = field(repr=False)
    remarks: tuple[str, ...] = ()

    @property
    def written(self) -> int:
        """How many files were written."""
        return sum(n for kinds in self.cases.values() for n in kinds.values())

    @property
    def report(self) -> Path:
        """The report's file."""
        return self.out / REPORT

    def summary(self) -> dict[str, Any]:
        """For JSON: counts, attributes and reasons; no value, name or path of the originals."""
        return {
            "program": {"name": "vmat-diffusion", "version": __version__},
            "method": self.method,
            "key": "given" if self.key_given else "random, not kept",
            "files": {
                "written": self.written,
                "left_out": len(self.left_out),
                "not_dicom": len(self.others),
            },
            "cases": {name: dict(kinds) for name, kinds in self.cases.items()},
            "attributes": [
                {"keyword": keyword, "action": action, "count": count}
                for (keyword, action), count in sorted(self.done.items())
            ],
            "left_out": [{"file": n, "reason": reason} for n, reason in sorted(self.left_out.items())],
            "not_dicom": list(self.others),
            "remarks": list(self.remarks),
            "scan": "no word or number of the patients found in any file written",
        }


def deidentify_folder(
    folder: Path,
    out: Path,
    *,
    key: str | None = None,
    mapping: Path | None = None,
    progress: Progress | None = None,
) -> DeidentifiedFolder:
    """De-identify every DICOM file below `folder` into `out/case-<8 hex>/<kind>.<new UID>.dcm`.

    `key` is a secret text of 16 characters or more, or a file that holds one: the same key gives
    the same UIDs, pseudonyms and dates again. Without one a random key is used and forgotten.
    `mapping` is a structure-name table (JSON). `out` must be new or empty; it appears whole, with
    the report `deidentification.json`, or not at all.

    A file that cannot be de-identified is left out, with its number in the order of the paths and
    the reason. Raises CaseError where no file can be taken or where, after writing, something in a
    file still points to a patient. Sentences never hold an original's name.
    """
    from vmat_diffusion.dicom.confidential.deidentify import METHOD
    from vmat_diffusion.dicom.confidential.identity import Key
    from vmat_diffusion.dicom.confidential.survey import survey
    from vmat_diffusion.dicom.names import load_table

    secret = Key(secrets.token_bytes(32) if key is None else _secret(key))
    table = load_table(mapping)
    require_apart(out, folder)
    found = survey(folder, _stage(progress, "reading"))
    if not found.originals and not found.left_out:
        raise CaseError(
            f"the input folder holds no DICOM file among {len(found.others)} files; give the folder that "
            "holds the DICOM files"
        )
    patients = _patients(found.identities, secret)
    left_out = dict(found.left_out)
    written: dict[Path, str] = {}
    done: Counter[tuple[str, str]] = Counter()
    with appearing_whole(out, overwrite=False) as partial:
        report = _stage(progress, "writing")
        for k, original in enumerate(found.originals, start=1):
            try:
                file, counts = _one(original, partial, patients[original.patient], secret, table)
                written[file.relative_to(partial)] = original.kind
                done += counts
            except _FileLeftOut as fault:
                left_out[original.number] = str(fault)
            report(k / len(found.originals))
        if not written:
            why = f", the first because {next(iter(left_out.values()))}" if left_out else ""
            raise CaseError(
                f"no file could be de-identified: {len(left_out)} DICOM files left out{why}; "
                "export them again"
            )
        result = DeidentifiedFolder(
            out,
            _counted(written),
            done,
            left_out,
            found.others,
            key is not None,
            METHOD,
            tuple(map(_torn, found.torn)),
        )
        write_json(partial / REPORT, result.summary())
    return result


def _torn(numbers: tuple[int, ...]) -> str:
    named = " and ".join(str(n) for n in numbers[:3]) + (" and others" if len(numbers) > 3 else "")
    return (
        f"files {named} are of one study or frame of reference but bear {len(numbers)} patients' IDs, and "
        "became different patients; give them one PatientID (0010,0020) if they belong together"
    )


class _FileLeftOut(Exception):
    """A file that is left out, with the reason; the others go on."""


def _one(
    original: Any, partial: Path, patient: Any, key: Any, table: Any
) -> tuple[Path, Counter[tuple[str, str]]]:
    """Write one file and look at its bytes again. Raises _FileLeftOut, or CaseError for a leak."""
    from vmat_diffusion.dicom.confidential.leaks import leak
    from vmat_diffusion.dicom.confidential.survey import write_deidentified

    try:
        file, counts = write_deidentified(original, partial / patient.pseudonym, patient, key, table)
    except CaseError as fault:
        raise _FileLeftOut(str(fault)) from None
    try:
        where = leak(file, patient, table)
    except CaseError as fault:  # what cannot be scanned is not handed out
        file.unlink()
        raise _FileLeftOut(str(fault)) from None
    if where is not None:
        raise CaseError(
            f"{file.parent.name}/{file.name} still holds a word or number of the patient in {where}, so "
            "nothing was kept; remove it from the original or leave that file out, and report it as a defect"
        )
    return file, counts


def _patients(identities: Mapping[str, Any], key: Any) -> dict[str, Any]:
    from vmat_diffusion.dicom.confidential.identity import Patient

    out = {p: Patient(key.pseudonym(p), key.days(p), identity) for p, identity in identities.items()}
    if len({patient.pseudonym for patient in out.values()}) < len(out):
        raise CaseError("two patients get the same pseudonym by chance; use another key")
    return out


def _counted(written: Mapping[Path, str]) -> dict[str, dict[str, int]]:
    cases: dict[str, Counter[str]] = {}
    for file, kind in sorted(written.items()):
        cases.setdefault(file.parent.name, Counter())[kind] += 1
    return {name: dict(kinds) for name, kinds in cases.items()}


def _secret(key: str) -> bytes:
    """The key from a text or a file. Messages say how long it is, never what it is."""
    file = Path(key)
    try:
        secret = file.read_bytes().strip() if file.is_file() else None
    except OSError:
        raise CaseError("the key file cannot be read; check its permissions") from None
    if secret is None and (file.suffix or len(file.parts) > 1):
        raise CaseError("--key looks like a file and there is none of that name; give its path or a text")
    secret = key.encode() if secret is None else secret
    if len(secret) < _KEY_BYTES_MIN:
        raise CaseError(
            f"the key holds {len(secret)} bytes, at least {_KEY_BYTES_MIN} are needed, else it can be guessed"
        )
    return secret


def _stage(progress: Progress | None, name: str) -> Callable[[float], None]:
    return lambda share: None if progress is None else progress(name, share, "")
