"""What was received: files that appear whole, and a database of them, of structure sets and of answers.

An object is on the disk and in the database before its sender is told so: a listener that is killed at any
moment loses nothing that it acknowledged, and takes the rest when it is sent again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

from pydicom.filereader import _read_file_meta_info, read_preamble

from vmat_diffusion.dicom.attributes import text
from vmat_diffusion.dicom.folder import open_file
from vmat_diffusion.errors import CaseError
from vmat_diffusion.files import flush_to_disk
from vmat_diffusion.web.store import connection, new_id, reading, writing

_SCHEMA = """
CREATE TABLE IF NOT EXISTS studies (key TEXT PRIMARY KEY, latest REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS objects (
    uid TEXT PRIMARY KEY, study TEXT NOT NULL REFERENCES studies(key), kind TEXT NOT NULL,
    series TEXT NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS objects_study ON objects(study);
CREATE TABLE IF NOT EXISTS sets (
    uid TEXT PRIMARY KEY, study TEXT NOT NULL, seen REAL NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('new', 'entering', 'planning', 'answering', 'done')),
    case_id TEXT NOT NULL DEFAULT '', asked TEXT NOT NULL DEFAULT '{}', run_id TEXT NOT NULL DEFAULT '',
    sentence TEXT NOT NULL DEFAULT '') STRICT;
CREATE TABLE IF NOT EXISTS deliveries (
    set_uid TEXT NOT NULL REFERENCES sets(uid), peer TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('waiting', 'sent', 'given up')), begun REAL NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0, next_at REAL NOT NULL, sentence TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (set_uid, peer)) STRICT;
"""

# A study that nothing came for since a time and that nothing waits for.
_OLD = (
    "latest < ? AND NOT EXISTS (SELECT 1 FROM sets WHERE sets.study = studies.key AND sets.state != 'done')"
)
State = Literal["entering", "planning", "answering", "done"]


@dataclass(frozen=True)
class Inbox:
    """The folder of the listener within the data folder, and its database."""

    folder: Path

    @property
    def parts(self) -> Path:
        """Files that are not whole yet."""
        return self.folder / "parts"

    def file(self, study: str, uid: str) -> Path:
        """Where an object lies. Names that come from outside are no names on the disk."""
        return self.folder / "studies" / study / f"{key_of(uid)}.dcm"

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / "network.sqlite"

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection for questions."""
        with reading(self.database) as db:
            yield db

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that happens whole or not at all, one writer at a time."""
        with writing(self.database) as db:
            yield db

    def take(self, content: bytes, uid: str) -> str:
        """Keep one object, the bytes of a DICOM file; returns the key of its study.

        An object that is there already stays as it is. Raises CaseError for what is no valid object, has
        another SOP instance UID than the sender says, or the UID of one that is kept with other data.
        """
        part = self.parts / f"{new_id()}.part"
        try:
            part.write_bytes(content)
            found = open_file(part, "the object")
            study_uid = text(found.dataset, "StudyInstanceUID") if found else ""
            if found is None or not study_uid or not found.uid:
                raise CaseError("the object has no SOP class, SOP instance or study; export it again")
            if found.uid != uid:
                raise CaseError(
                    "the object has another SOP instance UID than its sender says; export it again"
                )
            study, series = key_of(study_uid), text(found.dataset, "SeriesInstanceUID")
            flush_to_disk(part)
            # File and rows in one transaction: `remove_old` may not take the folder between the two.
            with self.write() as db:
                self._keep(db, part, uid, study)
                _enter(db, uid, study, kind=found.kind, series=series)
        finally:
            part.unlink(missing_ok=True)
        return study

    def _keep(self, db: sqlite3.Connection, part: Path, uid: str, study: str) -> None:
        """Bring a file to its place, or hold it against the one of the same UID that is there."""
        file = self.file(study, uid)
        known = db.execute("SELECT 1 FROM objects WHERE uid = ?", (uid,)).fetchone()
        if known and file.is_file():
            if _data_of(file) != _data_of(part):
                raise CaseError(
                    "the object has the UID of another SOP instance that is kept, and other data; "
                    "give it a new UID"
                )
            return
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.replace(file)
        _flush_folder(file.parent)

    def sets(self, state: str) -> list[sqlite3.Row]:
        """The structure sets in a state, with the time of the newest object of their study."""
        with self.read() as db:
            return db.execute(
                "SELECT sets.*, studies.latest FROM sets LEFT JOIN studies ON studies.key = sets.study "
                "WHERE state = ? ORDER BY seen",
                (state,),
            ).fetchall()

    def objects(self, study: str) -> list[sqlite3.Row]:
        """The objects of a study."""
        with self.read() as db:
            return db.execute("SELECT * FROM objects WHERE study = ? ORDER BY uid", (study,)).fetchall()

    def move(self, uid: str, state: State, **values: str) -> None:
        """Bring a structure set into a state, with further values of its row."""
        names = "".join(f", {name} = ?" for name in values)
        with self.write() as db:
            db.execute(f"UPDATE sets SET state = ?{names} WHERE uid = ?", (state, *values.values(), uid))

    def answer_again(self, newer: Mapping[str, str]) -> None:
        """Have structure sets answered whose plan has a newer run (by the id of the one that was answered).

        So it is where a check went on that was undecided.
        """
        if not newer:
            return
        with self.read() as db:
            rows = db.execute("SELECT uid, run_id FROM sets WHERE state = 'done' AND run_id != ''").fetchall()
        for row in (row for row in rows if row["run_id"] in newer):
            with self.write() as db:
                db.execute("DELETE FROM deliveries WHERE set_uid = ?", (row["uid"],))
                db.execute(
                    "UPDATE sets SET state = 'answering', run_id = ? WHERE uid = ? AND run_id = ?",
                    (newer[row["run_id"]], row["uid"], row["run_id"]),
                )

    def remove_old(self, before: float) -> int:
        """Remove the objects of studies that nothing came for since a time and that nothing waits for."""
        with self.read() as db:
            rows = db.execute(f"SELECT key FROM studies WHERE {_OLD}", (before,)).fetchall()
        return sum(self._remove(row["key"], before) for row in rows)

    def _remove(self, study: str, before: float) -> bool:
        """Remove the objects of a study if it is old still: more of it may have come meanwhile."""
        gone = self.parts / f"{study}.{new_id()}"
        with self.write() as db:
            if not db.execute(f"SELECT 1 FROM studies WHERE key = ? AND {_OLD}", (study, before)).fetchone():
                return False
            db.execute("DELETE FROM objects WHERE study = ?", (study,))
            db.execute("DELETE FROM studies WHERE key = ?", (study,))
            with suppress(FileNotFoundError):
                (self.folder / "studies" / study).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        return True


def open_inbox(folder: Path) -> Inbox:
    """The inbox in a folder, made where there is none; what a killed listener left half written goes."""
    inbox = Inbox(folder)
    for part in (folder, inbox.parts, folder / "studies", folder / "building"):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
    for left in inbox.parts.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    with closing(connection(inbox.database)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(_SCHEMA)
    return inbox


def _enter(db: sqlite3.Connection, uid: str, study: str, *, kind: str, series: str) -> None:
    """The rows of an object, and of its study that something came for now."""
    db.execute(
        "INSERT INTO studies VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET latest = excluded.latest",
        (study, time.time()),
    )
    db.execute(
        "INSERT INTO objects VALUES (?, ?, ?, ?) ON CONFLICT (uid) DO NOTHING", (uid, study, kind, series)
    )
    if kind == "RTSTRUCT":
        _enter_set(db, uid, study)


def _enter_set(db: sqlite3.Connection, uid: str, study: str) -> None:
    """A new structure set, or one sent again that never got as far as a plan: it gets another try."""
    again = db.execute("SELECT 1 FROM sets WHERE uid = ? AND state = 'done' AND case_id = ''", (uid,))
    if again.fetchone():
        db.execute("DELETE FROM deliveries WHERE set_uid = ?", (uid,))
        db.execute("DELETE FROM sets WHERE uid = ?", (uid,))
    db.execute(
        "INSERT INTO sets (uid, study, seen, state) VALUES (?, ?, ?, 'new') ON CONFLICT (uid) DO NOTHING",
        (uid, study, time.time()),
    )


def _data_of(file: Path) -> bytes:
    """What a file holds behind its meta group, which names the sender's software and the way it was sent."""
    content = file.read_bytes()
    try:
        stream = BytesIO(content)
        read_preamble(stream, force=True)
        _read_file_meta_info(stream)
    except Exception:  # an object that was read already; else all of it counts
        return content
    return content[stream.tell() :]


def key_of(uid: str) -> str:
    """A name for a UID that says nothing and fits every disk."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems flush no folders
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
