"""Cases, uploads, jobs and the list of plans."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from vmat_diffusion.errors import InputError
from vmat_diffusion.web import uploads
from vmat_diffusion.web.access import Clinical, Planner, TheRoom, Watching
from vmat_diffusion.web.accounts import users
from vmat_diffusion.web.cases import case_entry, cases
from vmat_diffusion.web.exercises.answers import exercises, require_real_case
from vmat_diffusion.web.queue import jobs
from vmat_diffusion.web.queue.checks import submit_check
from vmat_diffusion.web.reviews import statuses
from vmat_diffusion.web.runs import runs
from vmat_diffusion.web.site_files import machines, sheets
from vmat_diffusion.workflow import plan_settings


class _NewUpload(BaseModel, extra="forbid"):
    label: Annotated[str, Field(min_length=1, max_length=200)]


class _NewJob(BaseModel, extra="forbid"):
    """Goal sheet and machine by their names in the list of choices."""

    case_id: Annotated[str, Field(max_length=64)]
    goals: Annotated[str, Field(max_length=64)]
    machine: Annotated[str, Field(max_length=64)] = "generic_6mv"
    prior: Literal["goals", "diffusion"] = "goals"
    search_minutes: Annotated[float, Field(gt=0, le=600)] | None = None
    check_minutes: Annotated[float, Field(gt=0, le=600)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0


class _NewCheck(BaseModel, extra="forbid"):
    run_id: Annotated[str, Field(max_length=64)]
    check_minutes: Annotated[float, Field(gt=0, le=600)] | None = None


def whole_list(session: Watching, room: TheRoom) -> dict[str, Any]:
    """All cases with their plans, and the jobs that wait, run or failed."""
    names = {user.id: user.name for user in users(room.store)}
    states, training = statuses(room), exercises(room)
    made: dict[str, list[dict[str, Any]]] = {}
    for run in runs(room):
        facts = {
            "id": run.id,
            "version": run.version,
            "made_by": names.get(run.made_by, ""),
            "made_at": run.made_at,
            "outcome": run.outcome,
            "status": states.get(run.id, "UNAPPROVED"),
            "training": run.id in training,
            "open_check": run.open_check,
        }
        made.setdefault(run.case_id, []).append(facts)
    asked: dict[str, list[dict[str, Any]]] = {}
    for job in jobs.job_rows(room.store):
        mine = job["made_by"] == session.user.id
        asked.setdefault(job["case_id"], []).append(
            {**job, "made_by": names.get(job["made_by"], ""), "mine": mine}
        )
    return {
        "cases": [
            {
                "id": case.id,
                "label": case.label,
                "made_at": case.made_at,
                "runs": made.get(case.id, []),
                "jobs": asked.get(case.id, []),
            }
            for case in cases(room)
        ]
    }


def choices(session: Clinical, room: TheRoom) -> dict[str, Any]:
    """The goal sheets and machines that a plan can be asked for with."""
    return {
        "goals": [{"name": one.name, "title": one.title, "site": one.site} for one in sheets(room)],
        "machines": list(machines(room)),
    }


def begin_upload(asked: _NewUpload, session: Planner, room: TheRoom) -> dict[str, Any]:
    """Begin an upload."""
    return {"id": uploads.begin(room, asked.label, session.user)}


async def upload_file(upload_id: str, session: Planner, request: Request, room: TheRoom) -> dict[str, int]:
    """One file or zip of an upload, as the body of the request."""
    return await uploads.add_file(room, upload_id, session.user, request.stream())


async def finish_upload(upload_id: str, session: Planner, room: TheRoom) -> dict[str, Any]:
    """Make what was uploaded a case."""
    return {"case_id": await run_in_threadpool(uploads.finish, room, upload_id, session.user)}


def end_upload(upload_id: str, session: Planner, room: TheRoom) -> dict[str, Any]:
    """Throw an upload away."""
    uploads.abandon(room, upload_id, session.user)
    return {}


def new_job(asked: _NewJob, session: Planner, room: TheRoom) -> dict[str, Any]:
    """Have a case planned."""
    case = case_entry(room, asked.case_id)
    require_real_case(room, case.id)
    goals = {sheet.name: sheet.where for sheet in reversed(sheets(room))}
    known = machines(room)
    if asked.goals not in goals:
        raise InputError("there is no such goal sheet; choose one of the list")
    if asked.machine not in known:
        raise InputError("there is no such machine; choose one of the list")
    settings = asked.model_dump(exclude={"case_id"}, exclude_none=True)
    settings |= {"goals": goals[asked.goals], "machine": known[asked.machine]}
    plan_settings(**settings)  # raises InputError for what contradicts itself
    return {"job_id": jobs.submit(room, case.id, settings, session.user)}


def go_on_checking(asked: _NewCheck, session: Planner, room: TheRoom) -> dict[str, Any]:
    """Have the check of a plan go on that stayed undecided."""
    return {"job_id": submit_check(room, asked.run_id, asked.check_minutes, session.user)}


def cancel_job(job_id: str, session: Planner, room: TheRoom) -> dict[str, Any]:
    """Cancel a plan that waits or is being made."""
    jobs.cancel(room, job_id, session.user)
    return {}


router = APIRouter(prefix="/api")
router.add_api_route("/worklist", whole_list, methods=["GET"])
router.add_api_route("/choices", choices, methods=["GET"])
router.add_api_route("/uploads", begin_upload, methods=["POST"])
router.add_api_route("/uploads/{upload_id}/files", upload_file, methods=["PUT"])
router.add_api_route("/uploads/{upload_id}/case", finish_upload, methods=["POST"])
router.add_api_route("/uploads/{upload_id}", end_upload, methods=["DELETE"])
router.add_api_route("/jobs", new_job, methods=["POST"])
router.add_api_route("/checks", go_on_checking, methods=["POST"])
router.add_api_route("/jobs/{job_id}/cancel", cancel_job, methods=["POST"])
