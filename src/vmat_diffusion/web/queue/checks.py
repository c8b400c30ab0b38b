"""Going on with a check that stayed undecided: a job that makes the next version of the plan.

The version whose check was undecided stays as it was left; the next one has its plan, and the verdict of the
check that went on. What a check needs for that lies in the folder of its run (`check-again`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmat_diffusion.errors import PlanError
from vmat_diffusion.progress import Progress
from vmat_diffusion.web.accounts import User
from vmat_diffusion.web.exercises.answers import require_real
from vmat_diffusion.web.queue.jobs import submit
from vmat_diffusion.web.room import RefusedError, Room
from vmat_diffusion.web.runs import file_hashes, run_entry, run_folder

# Among the settings of a job: the id of the run whose check goes on.
CHECK_AGAIN = "check_again"


def submit_check(room: Room, run_id: str, minutes: float | None, user: User) -> str:
    """Queue the check of a run to go on, for at most so many minutes; returns the job's id.

    Raises AbsentError, RefusedError where nothing is open or it goes on already.
    """
    require_real(room, run_id)
    run = run_entry(room, run_id)
    if not run.open_check:
        raise RefusedError(
            f"the plan holds no check that is open (gate {run.outcome}); plan the case again instead"
        )
    with room.store.read() as db:
        going = db.execute(
            f"SELECT 1 FROM jobs WHERE state IN ('queued', 'running') AND {_SOURCE} = ?", (run_id,)
        ).fetchone()
    if going:
        raise RefusedError("the check of this plan goes on already; wait for it or cancel it")
    settings = {CHECK_AGAIN: run_id} | ({"check_minutes": minutes} if minutes else {})
    return submit(room, run.case_id, settings, user)


_SOURCE = f"json_extract(settings, '$.{CHECK_AGAIN}')"


def decided_since(room: Room) -> dict[str, str]:
    """The runs whose checks went on, by their ids, each with the newest run that came of it."""
    with room.store.read() as db:
        rows = db.execute(
            f"SELECT {_SOURCE} AS source, run_id FROM jobs WHERE state = 'done' AND source IS NOT NULL "
            "ORDER BY rowid"
        ).fetchall()
    return {row["source"]: row["run_id"] for row in rows}


def go_on(
    room: Room, settings: Mapping[str, Any], case_folder: Path, out: Path, progress: Progress
) -> dict[str, float]:
    """Go on with the check of a job into the folder `out`; returns the seconds of the parts.

    Raises PlanError where the files of the run are not as they were left, and as `check_again`.
    """
    from vmat_diffusion.workflow.planning import check_again

    source = run_entry(room, settings[CHECK_AGAIN])
    folder = run_folder(room, source.id)
    if file_hashes(folder) != source.files:
        raise PlanError("files of the plan were changed since it was made; plan the case again")
    made = check_again.check_again(
        folder,
        out=out,
        case_folder=case_folder,
        check_minutes=settings.get("check_minutes"),
        progress=progress,
    )
    return dict(made.seconds)
