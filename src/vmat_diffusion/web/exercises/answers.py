"""What reviewers say of exercises, and the score: who found the fault."""

from __future__ import annotations

import sqlite3
from typing import Any

from vmat_diffusion.dicom.rtplan_parts.seeded_faults import FAULTS
from vmat_diffusion.errors import InputError
from vmat_diffusion.web.accounts import User
from vmat_diffusion.web.audit import record
from vmat_diffusion.web.room import AbsentError, RefusedError, Room
from vmat_diffusion.web.store import now


def exercises(room: Room) -> dict[str, sqlite3.Row]:
    """All exercises by the ids of their runs."""
    with room.store.read() as db:
        return {row["run_id"]: row for row in db.execute("SELECT * FROM exercises ORDER BY made_at DESC")}


def require_real(room: Room, run_id: str) -> None:
    """Raise RefusedError for the run of an exercise, which is never decided on and never leaves the room."""
    if run_id in exercises(room):
        raise RefusedError("the plan is one of a training exercise: it is never approved and never leaves it")


def require_real_case(room: Room, case_id: str) -> None:
    """Raise RefusedError for the case of an exercise."""
    with room.store.read() as db:
        found = db.execute(
            "SELECT 1 FROM exercises e JOIN runs r ON r.id = e.run_id WHERE r.case_id = ?", (case_id,)
        ).fetchone()
    if found:
        raise RefusedError("the case is one of a training exercise, and its contours may be wrong on purpose")


def answer_exercise(room: Room, run_id: str, user: User, found: str, reason: str) -> dict[str, Any]:
    """Keep what a reviewer found, once, and tell what the fault is. Raises AbsentError, RefusedError."""
    if found not in FAULTS:
        raise InputError("there is no such fault; choose one of the list")
    with room.store.write() as db:
        if not db.execute("SELECT 1 FROM exercises WHERE run_id = ?", (run_id,)).fetchone():
            raise AbsentError("there is no such exercise; load the worklist again")
        added = db.execute(
            "INSERT INTO guesses VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (run_id, user.id, found, reason, now()),
        )
        if not added.rowcount:
            raise RefusedError("you have answered this exercise already, and know its fault")
        record(db, user.id, "exercise answered", run_id, found=found)
    told = training_of(room, run_id, user)
    assert told is not None
    return told


def training_of(room: Room, run_id: str, user: User) -> dict[str, Any] | None:
    """What the review page says of an exercise: the fault only to who has answered. None for a real plan."""
    exercise = exercises(room).get(run_id)
    if exercise is None:
        return None
    with room.store.read() as db:
        guess = db.execute(
            "SELECT * FROM guesses WHERE run_id = ? AND user_id = ?", (run_id, user.id)
        ).fetchone()
    told: dict[str, Any] = {"faults": FAULTS, "answer": None}
    if guess is not None:
        fault = exercise["fault"]
        right = guess["found"] == fault
        told["answer"] = {"found": guess["found"], "fault": fault, "right": right, "what": FAULTS[fault]}
    return told


def scores(room: Room) -> list[dict[str, Any]]:
    """All exercises with their answers, the newest first."""
    with room.store.read() as db:
        rows = db.execute(
            "SELECT g.run_id, g.found, g.at, u.name FROM guesses g "
            "JOIN users u ON u.id = g.user_id ORDER BY g.at"
        ).fetchall()
    return [
        {
            "run_id": run_id,
            "fault": row["fault"],
            "seed": row["seed"],
            "made_at": row["made_at"],
            "answers": [
                {"by": g["name"], "found": g["found"], "right": g["found"] == row["fault"], "at": g["at"]}
                for g in rows
                if g["run_id"] == run_id
            ],
        }
        for run_id, row in exercises(room).items()
    ]
