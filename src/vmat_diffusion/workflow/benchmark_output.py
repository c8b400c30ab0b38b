"""Where a benchmark writes, and that nothing there is taken for its own or lost without asking."""

from __future__ import annotations

import re
from pathlib import Path

from vmat_diffusion.errors import InputError
from vmat_diffusion.files import sha256_of
from vmat_diffusion.workflow.benchmark_journal import Journal, PatientResult

_DOSE = re.compile(r"pt_\d{1,6}\.csv")


def journal_path(out: Path | None, csv_out: Path | None) -> Path | None:
    """The file of results by patient: beside `out`, or in `csv_out`."""
    if out is not None:
        return out.with_name(f"{out.stem}.patients.jsonl")
    return csv_out / "patients.jsonl" if csv_out is not None else None


def check_places(out: Path | None, csv_out: Path | None) -> None:
    """Raises InputError where a folder stands for a file or a file for a folder."""
    if out is not None and out.is_dir():
        raise InputError(f"--out {out} is a folder; name a file in it, such as {out / 'found.json'}")
    for folder in (csv_out, out.parent if out else None):
        if folder is not None and any(p.exists() and not p.is_dir() for p in (folder, *folder.parents)):
            raise InputError(f"{folder} is no folder and none can be made there; name another one")


def claim_places(
    out: Path | None, csv_out: Path | None, journal: Journal[PatientResult], *, overwrite: bool
) -> None:
    """Make the folders, which hold no results but those of the journal.

    Raises InputError for a file that is not of this run; with `overwrite` doses are removed, so that
    none is taken for this run's.
    """
    if out is not None and out.exists() and not len(journal) and not overwrite:
        raise InputError(
            f"--out {out.name} is there, but no results by patient are beside it; name another file or pass "
            "--overwrite"
        )
    doses = [p for p in csv_out.iterdir() if _DOSE.fullmatch(p.name)] if csv_out and csv_out.is_dir() else []
    written = {r.id for r in journal.results if r.csv_sha256 is not None}
    foreign = sorted(p for p in doses if p.stem not in written)
    if foreign and not overwrite:
        raise InputError(
            f"--csv-out {csv_out} holds {len(foreign)} doses that are not of this run, such as "
            f"{foreign[0].name}; name another folder or pass --overwrite"
        )
    for path in foreign:
        path.unlink()
    for folder in (csv_out, out.parent if out else None):
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)


def unpublished(csv_out: Path, patient: str) -> Path:
    """The name of a dose whose result is not kept yet."""
    return csv_out / f".{patient}.csv.new"


def publish(csv_out: Path, result: PatientResult) -> None:
    """Give a dose its name, now that its result is kept: under its name is never a dose that is not."""
    unpublished(csv_out, result.scores.id).replace(csv_out / f"{result.scores.id}.csv")


def is_published(csv_out: Path, result: PatientResult) -> bool:
    """Whether the dose of a kept result is there as it was written."""
    file = csv_out / f"{result.scores.id}.csv"
    return file.is_file() and sha256_of(file) == result.csv_sha256
