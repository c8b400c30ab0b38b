"""The audit: who did what and when, in a chain of hashes that shows every later change.

Each entry's hash is the SHA-256 of the hash before it and of the entry as canonical JSON (keys sorted, no
blanks, ASCII). Entries name users, cases, runs and jobs by their random ids and hold nothing of a patient.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vmat_diffusion.web.store import Store, now

# What stands before the first entry.
_BEGINNING = "0" * 64
_HEAD = "audit_head"
_FIELDS = ("seq", "at", "actor", "action", "subject", "detail")


def _hash(previous: str, entry: Mapping[str, Any]) -> str:
    text = json.dumps(dict(entry), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(f"{previous}{text}".encode("ascii")).hexdigest()


def record(db: sqlite3.Connection, actor: str, action: str, subject: str = "", **detail: Any) -> str:
    """Add an entry within the transaction of the action itself; returns its hash.

    `actor` is a user's id, or what acts by itself: `terminal`, `server`, `worker`.
    """
    row = db.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
    previous = row["hash"] if row else _BEGINNING
    entry = {
        "seq": row["seq"] + 1 if row else 1,
        "at": now(),
        "actor": actor,
        "action": action,
        "subject": subject,
        "detail": json.dumps(detail, sort_keys=True, ensure_ascii=True),
    }
    digest = _hash(previous, entry)
    db.execute(
        "INSERT INTO audit (seq, at, actor, action, subject, detail, previous, hash) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (*(entry[name] for name in _FIELDS), previous, digest),
    )
    head = f"{entry['seq']} {digest}"
    db.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = ?", (_HEAD, head, head)
    )
    return digest


@dataclass(frozen=True)
class AuditCheck:
    """What `verify` found: the number of entries, the last hash, and what is wrong, a sentence each."""

    entries: int
    head: str
    faults: tuple[str, ...]


def verify(store: Store, *, holds: str = "") -> AuditCheck:
    """Check the whole chain, and that each decision has its entry.

    A chain cannot show that its newest entries were cut off by somebody who can write the database: `holds`
    is a hash noted down earlier, which must be in it.
    """
    faults: list[str] = []
    previous, count, hashes = _BEGINNING, 0, set()
    with store.read() as db:
        db.execute("BEGIN")
        for row in db.execute("SELECT * FROM audit ORDER BY seq"):
            count += 1
            if row["seq"] != count:
                faults.append(f"entry {count} is missing: the next one is {row['seq']}")
                count = row["seq"]
            if row["previous"] != previous:
                faults.append(f"entry {row['seq']} does not follow the entry before it")
            if _hash(row["previous"], {name: row[name] for name in _FIELDS}) != row["hash"]:
                faults.append(f"entry {row['seq']} was changed")
            previous = row["hash"]
            hashes.add(previous)
        head = db.execute("SELECT value FROM meta WHERE key = ?", (_HEAD,)).fetchone()
        if (head["value"] if head else None) != (f"{count} {previous}" if count else None):
            faults.append("the newest entries were removed, or an entry was added by another program")
        if holds and holds not in hashes:
            faults.append(f"no entry has the hash {holds[:64]}: entries were removed or made anew")
        faults += _decision_faults(db)
    return AuditCheck(count, previous, tuple(faults))


def _decision_faults(db: sqlite3.Connection) -> list[str]:
    """Decisions that differ from what the audit says of them."""
    entered: dict[int, Any] = {}
    for row in db.execute("SELECT subject, actor, detail FROM audit WHERE action = 'decision'"):
        detail = json.loads(row["detail"])
        entered[detail["decision"]] = (row["subject"], row["actor"], detail["status"], detail["sha256"])
    faults = []
    for row in db.execute("SELECT * FROM decisions"):
        found = (row["run_id"], row["user_id"], row["status"], decision_hash(row))
        if entered.pop(row["id"], None) != found:
            faults.append(f"decision {row['id']} is not the one that the audit records")
    return faults + [f"decision {number} is in the audit and gone from its table" for number in entered]


def decision_hash(row: Mapping[str, Any] | sqlite3.Row) -> str:
    """SHA-256 of what a decision holds beyond its status: reason, checklist and hashes of the files."""
    text = json.dumps([row[name] for name in ("reason", "checklist", "files", "at")], ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
