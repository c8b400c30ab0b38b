"""The index of a data set: one line of JSON for each case."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from vmat_diffusion.errors import CaseError
from vmat_diffusion.files import is_plain_name, parse_json

INDEX = "index.jsonl"
_LINE_CHARACTERS = 1_000_000
_Text = Annotated[str, Field(strict=True, min_length=1, max_length=200)]


@dataclass(frozen=True)
class CaseLine:
    """What a line must hold; it may hold more."""

    id: _Text
    site: _Text
    # A plain name: a file is never looked for outside the folder of its data set.
    file: Annotated[str, Field(strict=True, pattern=r"^[^/\\:\x00-\x1f.][^/\\:\x00-\x1f]{0,199}$")]
    sha256: Annotated[str, Field(strict=True, pattern=r"^[0-9a-f]{64}$")]
    shape: Annotated[
        list[Annotated[int, Field(strict=True, ge=1, le=10_000)]], Field(min_length=3, max_length=3)
    ]
    targets: list[_Text]
    organs: list[_Text]
    has_dose: Annotated[bool, Field(strict=True)]
    patient: Annotated[str, Field(strict=True, max_length=200)]
    prescription_gy: dict[_Text, Annotated[float, Field(gt=0, le=200)]] | None = None


_LINE = TypeAdapter(CaseLine)


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
            record = dict(parse_json(line, characters=_LINE_CHARACTERS))
            if not all(is_plain_name(str(record.get(key))) for key in ("file", "id")):
                raise CaseError(
                    f"{INDEX}, line {number} names a file outside the folder of the data set; make it again"
                )
            _LINE.validate_python(record)
            records.append(record)
        except CaseError:
            raise
        except ValidationError as fault:
            first = fault.errors()[0]
            where = ".".join(str(p)[:40] for p in first["loc"])
            raise CaseError(
                f"{INDEX}, line {number} is no case ({where}: {first['msg']}); make the data set again"
            ) from None
        except (ValueError, TypeError):
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
