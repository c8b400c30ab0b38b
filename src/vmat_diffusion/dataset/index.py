"""The index of a data set: one line of JSON for each case."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmat_diffusion.errors import CaseError
from vmat_diffusion.files import is_plain_name

INDEX = "index.jsonl"
_KEYS = ("id", "site", "file", "sha256", "shape", "targets", "organs", "has_dose", "patient")


def read_index(folder: Path) -> list[dict[str, Any]]:
    """The lines of `index.jsonl`, by id. Raises CaseError where there is none or a line is no case."""
    path = folder / INDEX
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise CaseError(
            f"{folder} holds no readable {INDEX}; make the data set with preprocess or import"
        ) from None
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = dict(json.loads(line))
            if missing := [key for key in _KEYS if key not in record]:
                raise KeyError(missing[0])
            if not is_plain_name(record["file"]) or not is_plain_name(str(record["id"])):
                raise CaseError(
                    f"{INDEX}, line {number} names a file outside the folder of the data set; make it again"
                )
            records.append({**record, "id": str(record["id"])})
        except CaseError:
            raise
        except (ValueError, TypeError, KeyError):
            raise CaseError(f"{INDEX}, line {number} is no case; make the data set again") from None
    return sorted(records, key=lambda record: str(record["id"]))


@dataclass(frozen=True)
class Entry:
    """A case in the index of its data set; `file` is a name in the folder of the data set."""

    id: str
    site: str
    file: str
    sha256: str
    has_dose: bool


def entries_of(folder: Path) -> tuple[Entry, ...]:
    """The cases of a data set folder, by id. Raises CaseError where the index is absent, damaged or empty."""
    entries = tuple(
        Entry(row["id"], row["site"], row["file"], row["sha256"], row["has_dose"])
        for row in read_index(folder)
    )
    if not entries:
        raise CaseError(f"the index of {folder} names no case; see rejected.csv")
    return entries
