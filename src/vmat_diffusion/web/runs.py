"""The planning runs of a room: each is one version of a case's plan, in a folder that `plan` wrote."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from vmat_diffusion.errors import PlanError
from vmat_diffusion.files import sha256_of
from vmat_diffusion.web.room import AbsentError, Room
from vmat_diffusion.workflow.planning.open_check import CHECK_FOLDER
from vmat_diffusion.workflow.planning.stored_record import StoredRecord, read_record

# The record of a run, and the plan file that only a passed verdict lets into its folder.
RECORD, PLAN_FILE = "run.json", "RP.dcm"
# In a run's folder, the link to the folder of the case's DICOM files.
CASE_LINK = "case"


@dataclass(frozen=True)
class RunEntry:
    """A version of a case's plan.

    `outcome` is that of the gate: PASSED, FAILED or INCONCLUSIVE. `files` are the SHA-256 of its files by
    name, as the planner left them. `slices` are for each target the indices of the
    CT's slices that hold it.
    """

    id: str
    case_id: str
    version: int
    made_by: str
    made_at: str
    outcome: str
    files: dict[str, str]
    slices: dict[str, list[int]]

    @property
    def open_check(self) -> bool:
        """Whether its check stayed undecided and can go on."""
        return self.outcome == "INCONCLUSIVE" and any(
            name.startswith(f"{CHECK_FOLDER}/") for name in self.files
        )

    @classmethod
    def of(cls, row: sqlite3.Row) -> RunEntry:
        """The entry in a row of the table."""
        return cls(
            row["id"],
            row["case_id"],
            row["version"],
            row["made_by"],
            row["made_at"],
            row["outcome"],
            json.loads(row["files"]),
            json.loads(row["slices"]),
        )


def runs(room: Room) -> list[RunEntry]:
    """All runs, the newest first."""
    with room.store.read() as db:
        return [RunEntry.of(row) for row in db.execute("SELECT * FROM runs ORDER BY made_at DESC, id")]


def run_entry(room: Room, run_id: str) -> RunEntry:
    """One run. Raises AbsentError where there is none."""
    with room.store.read() as db:
        row = db.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
    if row is None:
        raise AbsentError("there is no such plan; load the worklist again")
    return RunEntry.of(row)


def run_folder(room: Room, run_id: str) -> Path:
    """The folder of a run that is done. Raises AbsentError for an id that is no run's."""
    return room.run_folder(run_entry(room, run_id).id)


def case_folder_of(room: Room, run_id: str) -> Path:
    """The folder of the DICOM files that a run was planned on."""
    with room.store.read() as db:
        row = db.execute(
            "SELECT c.folder FROM runs r JOIN cases c ON c.id = r.case_id WHERE r.id = ?", (run_id,)
        ).fetchone()
    if row is None:
        raise AbsentError("there is no such plan; load the worklist again")
    return room.case_folder(row["folder"])


def run_record(folder: Path) -> StoredRecord:
    """What `run.json` of a run holds, as far as it is known. Raises AbsentError where it is unreadable."""
    try:
        return read_record(folder)
    except PlanError as fault:
        raise AbsentError(str(fault)) from None


def file_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a run, by its path in the folder; not of the case, to which a link leads."""
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).parts[0] != CASE_LINK
    }
