"""The queue of plans to be made: which is next, who makes it, how far it is, and what of lost workers.

A job is claimed with a token and a lease. Its worker renews the lease, and whatever it writes names the
token: a worker that lost its job can write nothing more. A job whose worker is over is queued again; the
worker that then takes it finds the finished folder if there is one, and makes the plan only if there is none.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import sqlite3
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from vmat_diffusion.files import is_dead, this_process
from vmat_diffusion.web.accounts import User
from vmat_diffusion.web.audit import record
from vmat_diffusion.web.room import AbsentError, RefusedError, Room
from vmat_diffusion.web.runs import RECORD, RunEntry
from vmat_diffusion.web.store import Store, new_id, now
from vmat_diffusion.workflow.output import clear_up

# A worker renews its lease every second or two; a computer that swaps may stop it for much longer.
LEASE_S = 60.0
# A worker that ends this often, as without enough memory, would end so again.
ATTEMPTS_MOST = 3
# More would fill the disk before anybody looks at them.
WAITING_MOST = 100
_HISTORY = 20


@dataclass(frozen=True)
class Claim:
    """A job that was given to a worker."""

    job_id: str
    token: str


def submit(room: Room, case_id: str, settings: Mapping[str, Any], user: User) -> str:
    """Queue a plan; returns the job's id. Raises RefusedError where too many wait."""
    job_id = new_id()
    with room.store.write() as db:
        (waiting,) = db.execute("SELECT count(*) FROM jobs WHERE state = 'queued'").fetchone()
        if waiting >= WAITING_MOST:
            raise RefusedError(f"{waiting} plans wait already, at most {WAITING_MOST} can; cancel some")
        db.execute(
            "INSERT INTO jobs (id, case_id, run_id, made_by, made_at, settings, state) "
            "VALUES (?, ?, ?, ?, ?, ?, 'queued')",
            (job_id, case_id, new_id(), user.id, now(), json.dumps(dict(settings))),
        )
        named = {name: Path(str(settings[name])).stem for name in ("goals", "machine") if name in settings}
        record(db, user.id, "plan asked for", job_id, case=case_id, **(dict(settings) | named))
    return job_id


def claim(room: Room) -> Claim | None:
    """The job that has waited longest, unless as many run as may."""
    token = secrets.token_hex(16)
    with room.store.write() as db:
        (running,) = db.execute("SELECT count(*) FROM jobs WHERE state = 'running'").fetchone()
        row = db.execute(
            "SELECT id FROM jobs WHERE state = 'queued' ORDER BY made_at, rowid LIMIT 1"
        ).fetchone()
        if row is None or running >= room.rules.workers:
            return None
        db.execute(
            "UPDATE jobs SET state = 'running', token = ?, lease = ?, worker = NULL, stage = '', share = 0, "
            "left_s = NULL, attempts = attempts + 1 WHERE id = ?",
            (token, time.time() + LEASE_S, row["id"]),
        )
    return Claim(row["id"], token)


def take(store: Store, claim: Claim, worker: Mapping[str, Any]) -> sqlite3.Row | None:
    """What a worker, which says who it is, is to do; None where the job is another's by now."""
    with store.write() as db:
        changed = db.execute(
            "UPDATE jobs SET worker = ?, lease = ? WHERE id = ? AND token = ? AND worker IS NULL",
            (json.dumps(dict(worker)), time.time() + LEASE_S, claim.job_id, claim.token),
        )
        if not changed.rowcount:
            return None
        row: sqlite3.Row = db.execute("SELECT * FROM jobs WHERE id = ?", (claim.job_id,)).fetchone()
    return row


def beat(
    store: Store, claim: Claim, stage: str, share: float, left_s: float | None
) -> Literal["go on", "cancel", "lost"]:
    """Renew the lease and say how far the work is; what the worker is to do then."""
    with store.write() as db:
        changed = db.execute(
            "UPDATE jobs SET lease = ?, stage = ?, share = ?, left_s = ? WHERE id = ? AND token = ?",
            (time.time() + LEASE_S, stage, share, left_s, claim.job_id, claim.token),
        )
        if not changed.rowcount:
            return "lost"
        (cancel,) = db.execute("SELECT cancel FROM jobs WHERE id = ?", (claim.job_id,)).fetchone()
    return "cancel" if cancel else "go on"


def complete(store: Store, claim: Claim, run: RunEntry, case_hash: str, seconds: Mapping[str, float]) -> bool:
    """Enter a plan as the next version of its case; False where the job is another's by now."""
    with store.write() as db:
        if not _end(db, claim, "done", seconds=json.dumps(dict(seconds))):
            return False
        (newest,) = db.execute("SELECT max(version) FROM runs WHERE case_id = ?", (run.case_id,)).fetchone()
        db.execute(
            "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                run.id,
                run.case_id,
                (newest or 0) + 1,
                run.made_by,
                run.made_at,
                run.outcome,
                json.dumps(run.files),
                case_hash,
                json.dumps(run.slices),
            ),
        )
        record(
            db,
            "worker",
            "plan made",
            run.id,
            job=claim.job_id,
            outcome=run.outcome,
            version=(newest or 0) + 1,
        )
    return True


def give_up(store: Store, claim: Claim, state: Literal["failed", "cancelled"], error: str = "") -> bool:
    """End a job without a plan; False where it is another's by now."""
    with store.write() as db:
        ended = _end(db, claim, state, error=error)
        if ended:
            record(db, "worker", f"plan {state}", claim.job_id)
    return ended


def _end(db: sqlite3.Connection, claim: Claim, state: str, *, error: str = "", seconds: str = "{}") -> bool:
    changed = db.execute(
        "UPDATE jobs SET state = ?, error = ?, seconds = ?, ended_at = ?, token = NULL, lease = NULL, "
        "left_s = NULL WHERE id = ? AND token = ?",
        (state, error[:1000], seconds, now(), claim.job_id, claim.token),
    )
    return bool(changed.rowcount)


def cancel(room: Room, job_id: str, user: User) -> None:
    """End a job that waits; tell the worker of one that runs. Raises AbsentError, RefusedError."""
    with room.store.write() as db:
        row = db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise AbsentError("there is no such job; load the worklist again")
        if row["made_by"] != user.id and "admin" not in user.roles:
            raise RefusedError("the plan was asked for by another user, who may cancel it; ask that person")
        if row["state"] == "queued":
            db.execute("UPDATE jobs SET state = 'cancelled', ended_at = ? WHERE id = ?", (now(), job_id))
        elif row["state"] == "running":
            db.execute("UPDATE jobs SET cancel = 1 WHERE id = ?", (job_id,))
        else:
            raise RefusedError(f"the job is {row['state']} already; load the worklist again")
        record(db, user.id, "cancel asked for", job_id)


def recover(room: Room) -> None:
    """Queue the jobs again whose workers are over, end those that were to be cancelled or failed too often.

    A worker whose lease has run out although it lives is ended first, so that no job is in two hands.
    """
    with room.store.read() as db:
        rows = db.execute("SELECT * FROM jobs WHERE state = 'running'").fetchall()
    for row in rows:
        worker = json.loads(row["worker"]) if row["worker"] else None
        expired = row["lease"] < time.time()
        if worker is not None and is_ours(worker) and not is_dead(worker):
            if expired:
                end_group(worker["pid"])
            continue
        if expired or (worker is not None and is_ours(worker)):
            _requeue(room, row)


def _requeue(room: Room, row: sqlite3.Row) -> None:
    out = room.run_folder(row["run_id"])
    clear_up(out)
    # A plan that is whole only waits to be entered, which takes little memory.
    tries = 2 * ATTEMPTS_MOST if (out / RECORD).is_file() else ATTEMPTS_MOST
    with room.store.write() as db:
        if row["cancel"]:
            state, error = "cancelled", ""
        elif row["attempts"] >= tries:
            state = "failed"
            error = (
                f"the process that made the plan was ended {row['attempts']} times, as it is where memory is "
                "short; look at the computer's memory and ask for the plan again"
            )
        else:
            state, error = "queued", ""
        changed = db.execute(
            "UPDATE jobs SET state = ?, error = ?, token = NULL, lease = NULL, worker = NULL, left_s = NULL, "
            "ended_at = ? WHERE id = ? AND token IS ? AND state = 'running'",
            (state, error, None if state == "queued" else now(), row["id"], row["token"]),
        )
        if changed.rowcount:
            record(db, "server", "worker lost", row["id"], then=state)


def remove_leftovers(room: Room) -> None:
    """Remove the folders of jobs that ended without a plan, as one that was cancelled in its last moment."""
    with room.store.read() as db:
        rows = db.execute("SELECT run_id FROM jobs WHERE state IN ('failed', 'cancelled')").fetchall()
    for row in rows:
        if (folder := room.run_folder(row["run_id"])).is_dir():
            shutil.rmtree(folder, ignore_errors=True)


def end_group(pid: int) -> None:
    """End a worker and the processes that it started; it leads a group of its own."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def is_ours(worker: Mapping[str, Any]) -> bool:
    """Whether it can be told what became of a worker: of this computer, with the time of its start.

    What cannot be told counts as over when its lease has run out: the number of its process may be another's.
    """
    return bool(worker.get("started")) and worker.get("host") == this_process()["host"]


def typical_seconds(store: Store) -> dict[str, float]:
    """The usual time of each stage: the median over the newest plans."""
    with store.read() as db:
        rows = db.execute(
            "SELECT seconds FROM jobs WHERE state = 'done' ORDER BY ended_at DESC LIMIT ?", (_HISTORY,)
        ).fetchall()
    found: dict[str, list[float]] = {}
    for row in rows:
        for stage, seconds in json.loads(row["seconds"]).items():
            found.setdefault(stage, []).append(float(seconds))
    return {stage: median(values) for stage, values in found.items()}


def job_rows(store: Store) -> list[dict[str, Any]]:
    """All jobs but those that are done, the newest first; those that wait with their place in the queue."""
    with store.read() as db:
        rows = db.execute(
            "SELECT * FROM jobs WHERE state != 'done' ORDER BY made_at DESC, rowid DESC LIMIT 200"
        ).fetchall()
    queue = [row["id"] for row in reversed(rows) if row["state"] == "queued"]
    return [
        {
            "id": row["id"],
            "case_id": row["case_id"],
            "made_by": row["made_by"],
            "made_at": row["made_at"],
            "settings": json.loads(row["settings"]),
            "state": "cancelling" if row["cancel"] and row["state"] == "running" else row["state"],
            "place": queue.index(row["id"]) + 1 if row["state"] == "queued" else None,
            "stage": row["stage"],
            "share": row["share"],
            "left_s": row["left_s"],
            "attempts": row["attempts"],
            "error": row["error"],
        }
        for row in rows
    ]
