"""The database of the review room: one SQLite file in WAL mode, brought up to date by numbered steps.

Decisions and the audit can be added to and nothing else: triggers refuse to change or delete their rows.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from vmat_diffusion.errors import InputError

DATABASE = "room.sqlite"
# How long a writer waits for another one, s; transactions here take milliseconds.
_PATIENCE_S = 20.0


def _append_only(table: str) -> str:
    return "".join(
        f"CREATE TRIGGER {table}_{verb} BEFORE {verb} ON {table} BEGIN "
        f"SELECT RAISE(ABORT, '{table} can only be added to'); END;"
        for verb in ("UPDATE", "DELETE")
    )


# Step k brings a database of version k to version k + 1. A step that was released is never edited.
_STEPS = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE users (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE COLLATE NOCASE, roles TEXT NOT NULL,
        password TEXT NOT NULL, disabled INTEGER NOT NULL DEFAULT 0, made_at TEXT NOT NULL) STRICT;
    CREATE TABLE sessions (
        token_sha256 TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES users(id), csrf TEXT NOT NULL,
        begun REAL NOT NULL, used REAL NOT NULL) STRICT;
    CREATE TABLE failures (key TEXT PRIMARY KEY, count INTEGER NOT NULL, latest REAL NOT NULL) STRICT;
    CREATE TABLE cases (
        id TEXT PRIMARY KEY, folder TEXT NOT NULL UNIQUE, label TEXT NOT NULL, made_by TEXT NOT NULL,
        made_at TEXT NOT NULL) STRICT;
    CREATE TABLE uploads (
        id TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES users(id), label TEXT NOT NULL,
        files INTEGER NOT NULL DEFAULT 0, bytes INTEGER NOT NULL DEFAULT 0, begun REAL NOT NULL) STRICT;
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY, case_id TEXT NOT NULL REFERENCES cases(id), run_id TEXT NOT NULL UNIQUE,
        made_by TEXT NOT NULL REFERENCES users(id), made_at TEXT NOT NULL, settings TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
        cancel INTEGER NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0, token TEXT, lease REAL,
        worker TEXT,
        stage TEXT NOT NULL DEFAULT '', share REAL NOT NULL DEFAULT 0, left_s REAL,
        ended_at TEXT, error TEXT NOT NULL DEFAULT '', seconds TEXT NOT NULL DEFAULT '{}') STRICT;
    CREATE INDEX jobs_state ON jobs(state);
    CREATE TABLE runs (
        id TEXT PRIMARY KEY, case_id TEXT NOT NULL REFERENCES cases(id), version INTEGER NOT NULL,
        made_by TEXT NOT NULL REFERENCES users(id), made_at TEXT NOT NULL, outcome TEXT NOT NULL,
        files TEXT NOT NULL, case_hash TEXT NOT NULL,
        slices TEXT NOT NULL, UNIQUE (case_id, version)) STRICT;
    CREATE TABLE evidence (
        run_id TEXT NOT NULL REFERENCES runs(id), user_id TEXT NOT NULL REFERENCES users(id),
        key TEXT NOT NULL, seen_at TEXT NOT NULL, PRIMARY KEY (run_id, user_id, key)) STRICT;
    CREATE TABLE ticks (
        run_id TEXT NOT NULL REFERENCES runs(id), user_id TEXT NOT NULL REFERENCES users(id),
        item TEXT NOT NULL, answer TEXT NOT NULL CHECK (answer IN ('yes', 'no', 'not applicable')),
        note TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY (run_id, user_id, item)) STRICT;
    CREATE TABLE decisions (
        id INTEGER PRIMARY KEY AUTOINCREMENT, run_id TEXT NOT NULL REFERENCES runs(id),
        user_id TEXT NOT NULL REFERENCES users(id), status TEXT NOT NULL CHECK
        (status IN ('APPROVED', 'REJECTED', 'UNAPPROVED', 'SUPERSEDED')), reason TEXT NOT NULL,
        checklist TEXT NOT NULL, files TEXT NOT NULL, at TEXT NOT NULL) STRICT;
    CREATE TABLE audit (
        seq INTEGER PRIMARY KEY, at TEXT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
        subject TEXT NOT NULL, detail TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL) STRICT;
    """
    + _append_only("decisions")
    + _append_only("audit"),
    """
    CREATE TABLE exercises (
        run_id TEXT PRIMARY KEY REFERENCES runs(id), source TEXT NOT NULL REFERENCES runs(id),
        fault TEXT NOT NULL, seed INTEGER NOT NULL, made_by TEXT NOT NULL REFERENCES users(id),
        made_at TEXT NOT NULL) STRICT;
    CREATE TABLE guesses (
        run_id TEXT NOT NULL REFERENCES exercises(run_id), user_id TEXT NOT NULL REFERENCES users(id),
        found TEXT NOT NULL, reason TEXT NOT NULL, at TEXT NOT NULL,
        PRIMARY KEY (run_id, user_id)) STRICT;
    """,
)


def now() -> str:
    """This moment in UTC to the millisecond, as the database holds times."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def new_id() -> str:
    """A random name for a case, run, job or user: it says nothing about a patient and cannot be guessed."""
    return secrets.token_hex(16)


@contextmanager
def reading(database: Path) -> Iterator[sqlite3.Connection]:
    """A connection to an SQLite file for questions alone."""
    with closing(connection(database)) as db:
        db.execute("PRAGMA query_only = ON")
        yield db


@contextmanager
def writing(database: Path) -> Iterator[sqlite3.Connection]:
    """A transaction on an SQLite file that happens whole or not at all, one writer at a time."""
    with closing(connection(database)) as db:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")


def connection(database: Path) -> sqlite3.Connection:
    """A connection to an SQLite file, which is made where there is none."""
    db = sqlite3.connect(database, timeout=_PATIENCE_S, isolation_level=None)
    db.row_factory = sqlite3.Row
    # FULL: what was answered for is on the disk even if the power fails.
    db.executescript("PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL; PRAGMA trusted_schema = OFF;")
    return db


@dataclass(frozen=True)
class Store:
    """The folder of the review room, and its database."""

    folder: Path

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.folder / DATABASE

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection for questions; each sees the state after some whole transaction."""
        with reading(self.database) as db:
            yield db

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction that happens whole or not at all, one writer at a time."""
        with writing(self.database) as db:
            yield db


def open_store(folder: Path, *, make: bool = True) -> Store:
    """The store in a folder, made where there is none, its database brought to the newest version.

    Raises InputError for a folder without a database (unless it is to be made) and one of a newer program.
    """
    store = Store(folder.absolute())
    if not make and not store.database.is_file():
        raise InputError(f"--data {folder} holds no {DATABASE}; name the folder of a review room")
    for part in (folder, folder / "cases", folder / "runs", folder / "incoming"):
        part.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not store.database.exists():
        os.close(os.open(store.database, os.O_CREAT | os.O_RDWR, 0o600))
    with closing(connection(store.database)) as db:
        db.execute("PRAGMA journal_mode = WAL")
    with store.write() as db:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > len(_STEPS):
            raise InputError(
                f"{DATABASE} is of version {version}, this program knows {len(_STEPS)}; install the newer one"
            )
        for step in _STEPS[version:]:
            for statement in _statements(step):
                db.execute(statement)
        db.execute(f"PRAGMA user_version = {len(_STEPS)}")
    return store


def _statements(step: str) -> Iterator[str]:
    """The statements of a step one by one: `executescript` would end the transaction."""
    text = ""
    for piece in step.split(";"):
        text += piece + ";"
        if sqlite3.complete_statement(text):
            if text.strip(" \n;"):
                yield text
            text = ""
