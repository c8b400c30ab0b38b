"""Cases, uploads, jobs and the list of plans."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from vmat_diffusion.web.access import Clinical, TheRoom
from vmat_diffusion.web.accounts import users
from vmat_diffusion.web.cases import cases
from vmat_diffusion.web.runs import runs


def whole_list(session: Clinical, room: TheRoom) -> dict[str, Any]:
    """All cases with their plans."""
    names = {user.id: user.name for user in users(room.store)}
    made: dict[str, list[dict[str, Any]]] = {}
    for run in runs(room):
        made.setdefault(run.case_id, []).append(
            {
                "id": run.id,
                "version": run.version,
                "made_by": names.get(run.made_by, ""),
                "made_at": run.made_at,
                "outcome": run.outcome,
            }
        )
    return {
        "cases": [
            {"id": case.id, "label": case.label, "made_at": case.made_at, "runs": made.get(case.id, [])}
            for case in cases(room)
        ]
    }


router = APIRouter(prefix="/api")
router.add_api_route("/worklist", whole_list, methods=["GET"])
