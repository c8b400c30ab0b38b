"""Exercises: made by admins, answered by reviewers."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from vmat_diffusion.web.access import Admin, Reviewer, TheRoom
from vmat_diffusion.web.exercises.answers import answer_exercise, exercises, scores
from vmat_diffusion.web.exercises.making import make_exercise
from vmat_diffusion.web.runs import runs


class _NewExercise(BaseModel, extra="forbid"):
    run_id: Annotated[str, Field(max_length=64)]
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)]


class _Guess(BaseModel, extra="forbid"):
    found: Annotated[str, Field(max_length=20)]
    reason: Annotated[str, Field(max_length=500)] = ""


def all_exercises(session: Admin, room: TheRoom) -> dict[str, Any]:
    """The exercises with their answers, and the plans that one can be made from, by their codes."""
    made = exercises(room)
    fit = [run for run in runs(room) if run.outcome == "PASSED" and run.id not in made]
    return {
        "exercises": scores(room),
        "runs": [
            {"id": run.id, "case": run.case_id[:8], "version": run.version, "made_at": run.made_at}
            for run in fit
        ],
    }


def new_exercise(asked: _NewExercise, session: Admin, room: TheRoom) -> dict[str, Any]:
    """Make an exercise from a plan."""
    return {"run_id": make_exercise(room, asked.run_id, asked.seed, session.user)}


def answered_exercise(run_id: str, asked: _Guess, session: Reviewer, room: TheRoom) -> dict[str, Any]:
    """Say what is wrong with the plan of an exercise; the answer tells what was."""
    return answer_exercise(room, run_id, session.user, asked.found, asked.reason)


router = APIRouter(prefix="/api/exercises")
router.add_api_route("", all_exercises, methods=["GET"])
router.add_api_route("", new_exercise, methods=["POST"])
router.add_api_route("/{run_id}/answer", answered_exercise, methods=["POST"])
