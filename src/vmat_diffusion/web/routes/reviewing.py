"""A plan's checklist, what was seen of the plan, and the decision."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, Field

from vmat_diffusion.web.access import Clinical, Reviewer, TheRoom
from vmat_diffusion.web.accounts import users
from vmat_diffusion.web.audit import record
from vmat_diffusion.web.cases import case_entry
from vmat_diffusion.web.checklist import arcs, key_of
from vmat_diffusion.web.exercises.answers import require_real, training_of
from vmat_diffusion.web.reviews import (
    REASON_MOST,
    Answer,
    Status,
    answer,
    changes,
    decide,
    decisions,
    lines,
    obstacles,
    see,
    status_of,
)
from vmat_diffusion.web.room import AbsentError, RefusedError
from vmat_diffusion.web.routes.sessions import Password, confirmed
from vmat_diffusion.web.runs import run_entry, run_folder, run_record, runs

_REPORT = "report.html"
# The report is a document of its own with its styles inside; nothing in it may run or load.
_REPORT_CSP = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:; "
    "frame-ancestors 'self'"
)
# What leaves the room: the plan, its dose, and what a measurement needs.
_EXPORTS = {
    "RP.dcm": "application/dicom",
    "RD.dcm": "application/dicom",
    "control_points.csv": "text/csv; charset=utf-8",
}


class _Seen(BaseModel, extra="forbid"):
    kind: Annotated[str, Field(max_length=20)]
    detail: dict[str, Any] = Field(default_factory=dict, max_length=5)


class _Answer(BaseModel, extra="forbid"):
    item: Annotated[str, Field(max_length=40)]
    answer: Answer
    note: Annotated[str, Field(max_length=500)] = ""


class _Decision(BaseModel, extra="forbid"):
    status: Status
    reason: Annotated[str, Field(max_length=REASON_MOST)]
    password: Password


def review(run_id: str, session: Clinical, room: TheRoom) -> dict[str, Any]:
    """All that the review page shows beside the pictures."""
    run = run_entry(room, run_id)
    plan = run_record(run_folder(room, run_id)).fields
    names = {user.id: user.name for user in users(room.store)}
    others = [
        {"id": other.id, "version": other.version}
        for other in runs(room)
        if other.case_id == run.case_id and other.id != run.id
    ]
    return {
        "id": run.id,
        "case": case_entry(room, run.case_id).label,
        "version": run.version,
        "versions": others,
        "made_by": names.get(run.made_by, ""),
        "made_at": run.made_at,
        "outcome": run.outcome,
        "open_check": run.open_check,
        "status": status_of(room, run_id),
        "slices": run.slices,
        "arcs": arcs(plan),
        "checks": plan["verdict"]["checks"],
        "goals": plan["goals"],
        "remarks": plan["remarks"],
        "mu": plan["mu"],
        "delivery_s": plan["delivery_s"],
        "fractions": plan["fractions"],
        "prescription_gy": plan["prescription_gy"],
        "lines": lines(room, run, session.user),
        "obstacles": obstacles(room, run, session.user),
        "decisions": [
            {"by": names.get(d.user_id, ""), "status": d.status, "reason": d.reason, "at": d.at}
            for d in decisions(room, run_id)
        ],
        "training": training_of(room, run_id, session.user),
        "may_decide": "reviewer" in session.user.roles,
        "exports": [name for name in _EXPORTS if name in run.files],
    }


def seen(run_id: str, asked: _Seen, session: Clinical, room: TheRoom) -> dict[str, Any]:
    """Note what a reviewer has looked at; of others nothing is noted."""
    run_entry(room, run_id)
    if "reviewer" in session.user.roles:
        see(room, run_id, session.user, key_of(asked.kind, asked.detail))
    return {}


def open_lines(run_id: str, session: Reviewer, room: TheRoom) -> dict[str, Any]:
    """The checklist as it stands."""
    run = run_entry(room, run_id)
    every = lines(room, run, session.user)
    return {"lines": every, "obstacles": obstacles(room, run, session.user)}


def answered(run_id: str, asked: _Answer, session: Reviewer, room: TheRoom) -> dict[str, Any]:
    """Answer a line of the checklist."""
    answer(room, run_id, session.user, asked.item, value=asked.answer, note=asked.note)
    return open_lines(run_id, session, room)


def decided(
    run_id: str, asked: _Decision, session: Reviewer, request: Request, room: TheRoom
) -> dict[str, Any]:
    """Approve, reject or unapprove, with the password as the signature."""
    run_entry(room, run_id)
    if confirmed(room, request, session.user.name, asked.password) is None:
        raise HTTPException(403, "the password is wrong; nothing was decided")
    decide(room, run_id, session.user, asked.status, asked.reason)
    return {"status": status_of(room, run_id)}


def report(run_id: str, session: Clinical, room: TheRoom) -> Response:
    """The report that the planner wrote."""
    file = run_folder(room, run_id) / _REPORT
    if not file.is_file():
        raise AbsentError("the plan has no report; plan the case again")
    return FileResponse(file, media_type="text/html", headers={"Content-Security-Policy": _REPORT_CSP})


def export(run_id: str, name: str, session: Clinical, room: TheRoom) -> Response:
    """A file of an approved plan that is as it was when it was approved."""
    run, folder = run_entry(room, run_id), run_folder(room, run_id)
    if name not in _EXPORTS or name not in run.files:
        raise AbsentError("the plan has no such file; choose one of the list")
    require_real(room, run_id)
    if (status := status_of(room, run_id)) != "APPROVED":
        raise RefusedError(f"the plan is {status}, and files of approved plans alone leave the room")
    if changed := changes(room, run):
        raise RefusedError(f"{'; '.join(changed)} since the plan was approved; make a new version")
    with room.store.write() as db:
        record(db, session.user.id, "export", run_id, file=name)
    return FileResponse(folder / name, media_type=_EXPORTS[name], filename=name)


router = APIRouter(prefix="/api")
router.add_api_route("/reviews/{run_id}", review, methods=["GET"])
router.add_api_route("/reviews/{run_id}/lines", open_lines, methods=["GET"])
router.add_api_route("/reviews/{run_id}/answers", answered, methods=["POST"])
router.add_api_route("/reviews/{run_id}/decision", decided, methods=["POST"])
router.add_api_route("/reviews/{run_id}/report", report, methods=["GET"])
router.add_api_route("/reviews/{run_id}/files/{name}", export, methods=["GET"])
router.add_api_route("/runs/{run_id}/seen", seen, methods=["POST"])
