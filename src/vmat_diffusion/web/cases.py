"""The cases of a room: folders of DICOM files below `cases/`, each with a random id.

A folder that somebody put there becomes a case when the worklist is asked for. Its name may be a patient's:
it is shown to those who are logged in and stands in no URL, log or audit.
"""

from __future__ import annotations

from dataclasses import dataclass

from vmat_diffusion.files import is_plain_name
from vmat_diffusion.web.audit import record
from vmat_diffusion.web.room import AbsentError, Room
from vmat_diffusion.web.store import new_id, now

_FOUND = "data folder"


@dataclass(frozen=True)
class CaseEntry:
    """A case of the worklist; `folder` is its name below `cases/`."""

    id: str
    folder: str
    label: str
    made_at: str


def cases(room: Room) -> list[CaseEntry]:
    """All cases whose folder is there, the newest first."""
    there = {
        path.name
        for path in (room.store.folder / "cases").iterdir()
        if path.is_dir() and not path.name.startswith(".") and is_plain_name(path.name)
    }
    with room.store.read() as db:
        rows = db.execute("SELECT * FROM cases ORDER BY made_at DESC, id").fetchall()
    if new := there - {row["folder"] for row in rows}:
        _enter(room, sorted(new))
        return cases(room)
    return [
        CaseEntry(row["id"], row["folder"], row["label"], row["made_at"])
        for row in rows
        if row["folder"] in there
    ]


def _enter(room: Room, folders: list[str]) -> None:
    with room.store.write() as db:
        for folder in folders:
            made = new_id()
            added = db.execute(
                "INSERT INTO cases VALUES (?, ?, ?, ?, ?) ON CONFLICT (folder) DO NOTHING",
                (made, folder, folder, _FOUND, now()),
            )
            if added.rowcount:
                record(db, "server", "case found", made)


def case_entry(room: Room, case_id: str) -> CaseEntry:
    """One case. Raises AbsentError where there is none, or its folder is gone."""
    with room.store.read() as db:
        row = db.execute("SELECT * FROM cases WHERE id = ?", (case_id,)).fetchone()
    if row is None or not room.case_folder(row["folder"]).is_dir():
        raise AbsentError("there is no such case; load the worklist again")
    return CaseEntry(row["id"], row["folder"], row["label"], row["made_at"])
