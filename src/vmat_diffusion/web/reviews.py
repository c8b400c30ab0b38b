"""A plan's review: what the reviewer has seen and answered, and the decisions that were taken.

The words are those of DICOM and IHE-RO: a plan is UNAPPROVED, APPROVED, REJECTED or SUPERSEDED. The DICOM
files themselves stay UNAPPROVED: approval for treatment belongs to the system that treats.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from vmat_diffusion.errors import InputError
from vmat_diffusion.files import content_hash
from vmat_diffusion.web.accounts import User
from vmat_diffusion.web.audit import decision_hash, record
from vmat_diffusion.web.checklist import checklist, needed
from vmat_diffusion.web.exercises.answers import require_real
from vmat_diffusion.web.room import RefusedError, Room
from vmat_diffusion.web.runs import (
    CASE_LINK,
    PLAN_FILE,
    RunEntry,
    case_folder_of,
    file_hashes,
    run_entry,
    run_folder,
    run_record,
)
from vmat_diffusion.web.store import now

Status = Literal["APPROVED", "REJECTED", "UNAPPROVED", "SUPERSEDED"]
Answer = Literal["yes", "no", "not applicable"]
# From which state a person may bring a plan to which. SUPERSEDED comes with the approval of another version.
_WAYS = {
    ("UNAPPROVED", "APPROVED"),
    ("UNAPPROVED", "REJECTED"),
    ("APPROVED", "UNAPPROVED"),
    ("REJECTED", "UNAPPROVED"),
}
REASON_LEAST, REASON_MOST = 3, 2000
# Nobody looks at more slices than this in a second, whatever the page says.
_SLICES_PER_S = 25
# The page tells of slices as soon as the scrolling rests.
_LONGEST_TOLD_S = 60


@dataclass(frozen=True)
class Decision:
    """What was decided on a plan, by whom and why, with the checklist as it was answered."""

    run_id: str
    user_id: str
    status: str
    reason: str
    at: str
    checklist: tuple[Mapping[str, Any], ...]


def decisions(room: Room, run_id: str) -> list[Decision]:
    """The decisions on a plan, the oldest first."""
    with room.store.read() as db:
        rows = db.execute("SELECT * FROM decisions WHERE run_id = ? ORDER BY id", (run_id,)).fetchall()
    return [
        Decision(
            row["run_id"],
            row["user_id"],
            row["status"],
            row["reason"],
            row["at"],
            tuple(json.loads(row["checklist"])),
        )
        for row in rows
    ]


def statuses(room: Room) -> dict[str, str]:
    """The state of each plan on which something was decided."""
    with room.store.read() as db:
        rows = db.execute(
            "SELECT run_id, status FROM decisions WHERE id IN (SELECT max(id) FROM decisions GROUP BY run_id)"
        ).fetchall()
    return {row["run_id"]: row["status"] for row in rows}


def _status(db: sqlite3.Connection, run_id: str) -> str:
    row = db.execute(
        "SELECT status FROM decisions WHERE run_id = ? ORDER BY id DESC LIMIT 1", (run_id,)
    ).fetchone()
    return row["status"] if row else "UNAPPROVED"


def status_of(room: Room, run_id: str) -> str:
    """The state of a plan."""
    with room.store.read() as db:
        return _status(db, run_id)


def _seen(db: sqlite3.Connection, run_id: str, user: User) -> set[str]:
    rows = db.execute("SELECT key FROM evidence WHERE run_id = ? AND user_id = ?", (run_id, user.id))
    return {row["key"] for row in rows}


def _answers(db: sqlite3.Connection, run_id: str, user: User) -> dict[str, sqlite3.Row]:
    rows = db.execute("SELECT * FROM ticks WHERE run_id = ? AND user_id = ?", (run_id, user.id))
    return {row["item"]: row for row in rows}


def _all_keys(run: RunEntry, plan_record: Mapping[str, Any]) -> set[str]:
    return {key for item in checklist() for key in needed(item, run, plan_record)}


def see(room: Room, run_id: str, user: User, keys: Iterable[str]) -> set[str]:
    """Note what a user has looked at; returns all that was seen. Keys that no line needs are left out.

    Slices that come faster than anybody can look are left out too: the page tells of them again.
    """
    run = run_entry(room, run_id)
    known = _all_keys(run, run_record(run_folder(room, run_id)).fields)
    with room.store.write() as db:
        before = _seen(db, run_id, user)
        (latest,) = db.execute(
            "SELECT max(seen_at) FROM evidence WHERE run_id = ? AND user_id = ? AND key LIKE 'slice:%'",
            (run_id, user.id),
        ).fetchone()
        possible = _possible_slices(latest)
        for key in sorted(known.intersection(keys) - before):
            if key.startswith("slice:"):
                if possible <= 0:
                    continue
                possible -= 1
            db.execute("INSERT INTO evidence VALUES (?, ?, ?, ?)", (run_id, user.id, key, now()))
            before.add(key)
            if not key.startswith("slice:"):  # a slice each would drown the rest of the audit
                record(db, user.id, "seen", run_id, key=key)
    return before


def _possible_slices(latest: str | None) -> int:
    """How many slices can have been looked at since the latest one that was told of."""
    if latest is None:
        return _SLICES_PER_S * _LONGEST_TOLD_S
    since = (datetime.now(timezone.utc) - datetime.fromisoformat(latest)).total_seconds()
    return int(_SLICES_PER_S * min(max(since, 2.0), _LONGEST_TOLD_S))


def answer(room: Room, run_id: str, user: User, item_id: str, *, value: Answer, note: str) -> None:
    """Answer a line of the checklist. Raises RefusedError while its evidence was not seen."""
    run = run_entry(room, run_id)
    item = next((item for item in checklist() if item.id == item_id), None)
    if item is None:
        raise InputError("there is no such line in the checklist; load the page again")
    keys = needed(item, run, run_record(run_folder(room, run_id)).fields)
    if value == "not applicable" and len(note.strip()) < REASON_LEAST:
        raise InputError("a line that does not apply needs a note that says why; write one")
    with room.store.write() as db:
        _require_open(db, run_id)
        missing = set(keys) - _seen(db, run_id, user)
        if missing and value != "no":
            raise RefusedError(
                f"{len(missing)} pieces of evidence of this line were not seen yet; look first"
            )
        db.execute(
            "INSERT INTO ticks VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (run_id, user_id, item) "
            "DO UPDATE SET answer = excluded.answer, note = excluded.note, at = excluded.at",
            (run_id, user.id, item_id, value, note, now()),
        )
        record(db, user.id, "answer", run_id, item=item_id, answer=value)


def _require_open(db: sqlite3.Connection, run_id: str) -> None:
    status = _status(db, run_id)
    if status != "UNAPPROVED":
        raise RefusedError(f"the plan is {status} and cannot be changed; make a new version or unapprove it")


def lines(room: Room, run: RunEntry, user: User) -> list[dict[str, Any]]:
    """The checklist for a user: each line with its evidence, what of it is missing, and the answer."""
    plan_record = run_record(run_folder(room, run.id)).fields
    with room.store.read() as db:
        seen, given = _seen(db, run.id, user), _answers(db, run.id, user)
    return [
        {
            "id": item.id,
            "section": item.section,
            "text": item.text,
            "source": item.source,
            "evidence": list(keys),
            "missing": [key for key in keys if key not in seen],
            "answer": given[item.id]["answer"] if item.id in given else None,
            "note": given[item.id]["note"] if item.id in given else "",
        }
        for item in checklist()
        for keys in [needed(item, run, plan_record)]
    ]


def obstacles(room: Room, run: RunEntry, user: User) -> list[str]:
    """Why a user cannot approve a plan now, a sentence each; empty where nothing stands in the way."""
    found = []
    if run.outcome != "PASSED":
        way = (
            "Check again in the worklist goes on with its check" if run.open_check else "plan the case again"
        )
        found.append(f"the gate's verdict is {run.outcome}; {way}")
    if run.made_by == user.id and not room.rules.allow_own_approval:
        found.append("you had this plan made, so another reviewer must approve it")
    if remark := run_record(run_folder(room, run.id)).remark:
        found.append(remark)  # what is not known of a plan nobody can have looked at
    every = lines(room, run, user)
    if unanswered := [line for line in every if line["answer"] is None]:
        found.append(f"{len(unanswered)} lines of the checklist are not answered")
    if refused := [line for line in every if line["answer"] == "no"]:
        found.append(f"{len(refused)} lines of the checklist are answered with no")
    if unseen := [line for line in every if line["missing"] and line["answer"] not in (None, "no")]:
        found.append(f"evidence of {len(unseen)} lines was not seen")
    return found


def changes(room: Room, run: RunEntry) -> list[str]:
    """Files of a plan that are not as the planner left them, and whether those of its case are."""
    there = file_hashes(run_folder(room, run.id))
    found = [
        f"{name} {'was changed' if name in there else 'is gone'}"
        for name, digest in run.files.items()
        if there.get(name) != digest
    ]
    found += [f"{name} was put in" for name in there.keys() - run.files.keys()]
    with room.store.read() as db:
        (case_hash,) = db.execute("SELECT case_hash FROM runs WHERE id = ?", (run.id,)).fetchone()
    if content_hash(case_folder_of(room, run.id)) != case_hash:
        found.append("the case's files were changed")
    return found


def decide(room: Room, run_id: str, user: User, status: Status, reason: str) -> None:
    """Bring a plan into a state, with the reason. The caller has asked for the password again.

    Raises RefusedError where the state cannot follow, and for an approval where something stands in the way.
    The approved version of the same case before this one is SUPERSEDED.
    """
    reason = reason.strip()
    if not REASON_LEAST <= len(reason) <= REASON_MOST:
        raise InputError(f"the reason has {len(reason)} characters; write {REASON_LEAST} to {REASON_MOST}")
    require_real(room, run_id)
    run, folder = run_entry(room, run_id), run_folder(room, run_id)
    answered = [
        {name: line[name] for name in ("id", "section", "text", "source", "answer", "note")}
        | {"evidence": len(line["evidence"]), "seen": len(line["evidence"]) - len(line["missing"])}
        for line in lines(room, run, user)
    ]
    if status == "APPROVED":
        if standing := obstacles(room, run, user):
            raise RefusedError("; ".join(standing))
        if PLAN_FILE not in run.files:
            raise RefusedError(f"the plan has no {PLAN_FILE}; plan the case again")
        if changed := changes(room, run):
            raise RefusedError(f"{'; '.join(changed)} since the plan was made; plan the case again")
    with room.store.write() as db:
        before = _status(db, run_id)
        if (before, status) not in _WAYS:
            raise RefusedError(f"the plan is {before} and cannot become {status}; load the page again")
        _enter(db, run, user, status=status, reason=reason, answered=answered)
        if status == "APPROVED":
            others = db.execute("SELECT * FROM runs WHERE case_id = ? AND id != ?", (run.case_id, run.id))
            for old in map(RunEntry.of, others.fetchall()):
                if _status(db, old.id) == "APPROVED":
                    why = f"version {run.version} of the plan was approved"
                    _enter(db, old, user, status="SUPERSEDED", reason=why, answered=())
    if status == "APPROVED":
        _make_read_only(folder)


def _enter(
    db: sqlite3.Connection,
    run: RunEntry,
    user: User,
    *,
    status: Status,
    reason: str,
    answered: Sequence[Mapping[str, Any]],
) -> None:
    """Add a decision and its entry in the audit, with the hash of the reason, which may name a patient."""
    row = {"reason": reason, "checklist": json.dumps(answered), "files": json.dumps(run.files), "at": now()}
    added = db.execute(
        "INSERT INTO decisions (run_id, user_id, status, reason, checklist, files, at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (run.id, user.id, status, *row.values()),
    )
    record(
        db, user.id, "decision", run.id, decision=added.lastrowid, status=status, sha256=decision_hash(row)
    )


def _make_read_only(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if not path.is_symlink() and path.relative_to(folder).parts[0] != CASE_LINK:
            with suppress(OSError):
                path.chmod(0o550 if path.is_dir() else 0o440)
    with suppress(OSError):
        folder.chmod(0o550)
