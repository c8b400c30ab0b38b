"""The cases below a raw folder: ids that name no patient, and keys that change with the files."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vmat_diffusion.dataset.tables import Rejection
from vmat_diffusion.errors import InputError
from vmat_diffusion.files import why_no_file

SITES_FILE = "sites.csv"
# The name of a folder becomes the case's id only if it is plainly an id: one of these words and a number, or
# a name of this project. Any other word before a number may be a patient's name (`Smith_482913`).
_ID_WORDS = "case|patient|pat|pt|id|p|hn|head_neck|lung|prostate|pros|brain|breast|gyn|pelvis|phantom|plan"
_PLAIN_ID = re.compile(
    rf"(?i:{_ID_WORDS})[_-]?[0-9]{{1,6}}|case_[0-9a-f]{{12}}|case-[0-9a-f]{{8}}"
    r"|tg119_(cshape|multitarget|prostate|headneck)|water_cylinder"
)


@dataclass(frozen=True)
class RawCase:
    """A folder of DICOM files. `key` changes with the names, sizes or times of its files.

    `site` and `fractions` are the user's statements, "" and None without one.
    """

    id: str
    folder: Path = field(repr=False)  # logs of workers show arguments
    key: str
    site: str = ""
    fractions: int | None = None


def scan(raw: Path, sites: Path | None = None) -> tuple[tuple[RawCase, ...], tuple[Rejection, ...]]:
    """The cases below `raw`, ordered by id, and rejections.

    Rejected are repeated or empty folders, loose files, and lines of `sites` without a folder. Each
    sub-folder is a case; a raw folder of DICOM files without sub-folders is one case. `sites` is a CSV with
    the columns case (name of the folder), site and, optionally, fractions; None takes `sites.csv` in `raw`
    if it exists. Raises InputError for a missing or empty raw folder or a damaged CSV.
    """
    if raw.is_file():
        raise InputError(f"{raw} is a file; give the folder that holds the case folders")
    if not raw.is_dir():
        raise InputError(f"raw folder {raw} does not exist; put each case's DICOM files in a folder below it")
    folders = [p for p in sorted(raw.iterdir()) if p.is_dir() and not p.name.startswith(".")]
    loose = sum(p.is_file() and _is_dicom(p) for p in raw.iterdir())
    no_case = []
    if not folders and loose:
        folders = [raw]
    elif loose:
        no_case.append(
            Rejection(
                "loose files",
                f"{loose} DICOM files lie beside the case folders",
                "put each into its case's folder or remove it",
            )
        )
    if not folders:
        raise InputError(f"{raw} holds no case; put each case's DICOM files in a folder of its own below it")
    lines = _read_sites(sites or raw / SITES_FILE, must_exist=sites is not None)
    cases: dict[str, RawCase] = {}
    names = {_name(folder, raw) for folder in folders}
    empty = 0
    for folder in folders:
        files = listing(folder)
        name = _name(folder, raw)
        plain = _PLAIN_ID.fullmatch(name)
        if not files and not plain:
            empty += 1
            continue
        case = name if plain else f"case_{_digest(folder, files)}"
        if case in cases and _whole(cases[case].folder) != (whole := _whole(folder)):
            case = f"case_{whole}"
        if case in cases:
            no_case.append(
                Rejection(
                    f"{case} again", "a folder holds the very files of another one", "remove one of them"
                )
            )
            continue
        line = lines.get(name, _SiteLine())
        cases[case] = RawCase(case, folder, files_key(folder, files), line.site, line.fractions)
    if empty:
        no_case.append(
            Rejection("empty folders", f"{empty} folders hold no file", "fill them or remove them")
        )
    no_case += _lines_without_folder(lines, names)
    return tuple(cases[name] for name in sorted(cases)), tuple(no_case)


def _name(folder: Path, raw: Path) -> str:
    return folder.resolve().name if folder == raw else folder.name


def _lines_without_folder(lines: Mapping[str, _SiteLine], names: set[str]) -> list[Rejection]:
    numbers = [str(line.number) for name, line in lines.items() if name not in names]
    if not numbers:
        return []
    reason = f"line {', '.join(numbers)}: there is no folder of that name"
    return [Rejection(SITES_FILE, reason, "write the folder's name in the column case")]


def listing(folder: Path) -> list[str]:
    """All files below a folder relative to it, in the order in which they are read."""
    found = sorted(Path(base) / name for base, _, names in os.walk(folder) for name in names)
    return [path.relative_to(folder).as_posix() for path in found]


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return False


def files_key(folder: Path, files: Iterable[str]) -> str:
    """A hash of names, sizes and times of all files; reading the files would take too long."""
    seen = hashlib.sha256()
    for name in files:
        try:
            stat = (folder / name).stat()
            seen.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode(errors="surrogateescape"))
        except OSError:
            seen.update(f"{name}\0gone\0".encode(errors="surrogateescape"))
    return seen.hexdigest()


def _digest(folder: Path, files: list[str], *, whole: bool = False) -> str:
    """12 digits from the first and last file and all sizes, or from all files.

    The place of the folder does not matter, nor its name: a hash of a patient's name could be guessed.
    """
    seen = hashlib.sha256()
    for k, name in enumerate(files):
        try:
            read = whole or k in (0, len(files) - 1)
            seen.update((folder / name).read_bytes() if read else b"")
            seen.update(f"{(folder / name).stat().st_size}\0".encode())
        except OSError:  # a broken link or no permission: reading the case reports it
            seen.update(b"unreadable\0")
    return seen.hexdigest()[:12]


def _whole(folder: Path) -> str:
    return _digest(folder, listing(folder), whole=True)


@dataclass(frozen=True)
class _SiteLine:
    """A line of the CSV: the user's statements on a case."""

    site: str = ""
    fractions: int | None = None
    number: int = 0


def _read_sites(path: Path, *, must_exist: bool) -> Mapping[str, _SiteLine]:
    if not path.is_file():
        if must_exist:
            raise InputError(f"{path} {why_no_file(path)}; give a CSV with the columns case,site")
        return {}
    lines: dict[str, _SiteLine] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            table = csv.DictReader(stream)
            if not {"case", "site"} <= set(table.fieldnames or ()):
                raise InputError(f"{path.name} lacks the columns case,site in its first line; add them")
            for row in table:
                fractions = (row.get("fractions") or "").strip()
                if fractions and not (fractions.isdecimal() and int(fractions)):
                    raise InputError(f"{path.name}, line {table.line_num}: fractions must be a whole number")
                site = re.sub(r"\W+", "_", (row["site"] or "").strip().lower())
                case = (row["case"] or "").strip()
                lines[case] = _SiteLine(site, int(fractions) if fractions else None, table.line_num)
    except (UnicodeDecodeError, csv.Error) as fault:
        raise InputError(f"{path.name} is not a CSV in UTF-8 ({fault}); save it as such") from None
    return lines
