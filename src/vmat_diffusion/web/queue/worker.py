"""The process that makes one plan of the queue: `python -m vmat_diffusion.web.queue.worker DATA JOB TOKEN`.

It outlives the server. It says how far it is every second, and ends by itself where its job was cancelled or
is another's.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from vmat_diffusion import workflow
from vmat_diffusion.dicom.attributes import silence
from vmat_diffusion.errors import InputError, PlanError, limit_of
from vmat_diffusion.files import content_hash, this_process
from vmat_diffusion.web.queue.checks import CHECK_AGAIN, go_on
from vmat_diffusion.web.queue.jobs import (
    Claim,
    beat,
    complete,
    give_up,
    remove_leftovers,
    take,
    typical_seconds,
)
from vmat_diffusion.web.room import Room
from vmat_diffusion.web.runs import CASE_LINK, RECORD, RunEntry, file_hashes, run_entry, run_record
from vmat_diffusion.web.store import Store, now, open_store
from vmat_diffusion.workflow.output import clear_up
from vmat_diffusion.workflow.planning.open_check import Keep

if TYPE_CHECKING:
    from vmat_diffusion.case import Case

_BEAT_S = 1.0
# From this share of a part on, its own pace says more than earlier plans.
_TELLING = 0.05
# So long a plan may take to clear up after a cancellation.
_PATIENCE_S = 20.0
# The parts of a run in their order, with their usual seconds before there is any history; that of the search
# is what was asked for. All other stages, as those of the search, belong to the part that began before them.
_PARTS = {"read": 5.0, "predict": 5.0, "optimise": 300.0, "check": 90.0, "write": 2.0, "report": 5.0}


_PARTS_OF_CHECK = ("read", "check", "report")
_Made = TypeVar("_Made")


class _Cancelled(BaseException):
    """The job was cancelled, or is another's."""


class _Heart:
    """Tells the queue how far the work is, from a thread of its own."""

    def __init__(self, store: Store, claim: Claim, typical: Mapping[str, float]) -> None:
        self.store, self.claim, self.typical = store, claim, typical
        self.stage, self.share = "", 0.0
        self.part, self.began = "", time.monotonic()
        self.ended, self.stopped_at = threading.Event(), 0.0

    def progress(self, stage: str, share: float, note: str) -> None:
        """Called by the workflow."""
        if stage in self.typical and stage != self.part:
            self.part, self.began = stage, time.monotonic()
        self.stage, self.share = stage, share

    def left_s(self) -> float | None:
        """How long the rest will take; None before the first part."""
        if not self.part:
            return None
        spent = time.monotonic() - self.began
        if self.stage == self.part and self.share > _TELLING:
            left = spent * (1 - self.share) / self.share
        else:
            left = max(self.typical[self.part] - spent, 0.0)
        names = list(self.typical)
        return left + sum(self.typical[name] for name in names[names.index(self.part) + 1 :])

    def run(self) -> None:
        """Beat until the work has ended."""
        while not self.ended.wait(_BEAT_S):
            try:
                order = beat(self.store, self.claim, self.stage, self.share, self.left_s())
            except Exception:  # a database that is locked or a disk that is full may be well in a second
                continue
            if order == "lost":
                os._exit(1)
            if order == "cancel" and not self.stopped_at:
                self.stopped_at = time.monotonic()
                os.kill(os.getpid(), signal.SIGTERM)
            if self.stopped_at and time.monotonic() - self.stopped_at > _PATIENCE_S:
                with suppress(Exception):
                    give_up(self.store, self.claim, "cancelled")
                os._exit(1)


def _stop(*_: object) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Cancelled


def main(data: str, job_id: str, token: str) -> None:
    """Take the job and make its plan."""
    silence()
    signal.signal(signal.SIGTERM, _stop)
    with suppress(OSError):
        os.nice(5)  # the server must answer while a plan is made
    room = Room(open_store(Path(data), make=False))
    claim = Claim(job_id, token)
    job = take(room.store, claim, this_process())
    if job is None:
        return
    settings = json.loads(job["settings"])
    heart = _Heart(room.store, claim, _typical(room.store, settings))
    threading.Thread(target=heart.run, daemon=True).start()
    case_folder = _case_folder(room, job["case_id"])
    is_made = False
    try:
        run, case_hash, seconds = _made(room, job, settings, case_folder, heart)
        is_made = complete(room.store, claim, run, case_hash, seconds)
    except _Cancelled:
        if give_up(room.store, claim, "cancelled"):
            remove_leftovers(room)
    except BaseException as error:
        if give_up(room.store, claim, "failed", _nameless(_sentence(error), case_folder)):
            remove_leftovers(room)
    finally:
        heart.ended.set()
    if is_made:
        _make_ready(room, case_folder)


def _make_ready(room: Room, case_folder: Path) -> None:
    """Put the case into the store of what is looked at, so that nobody waits for it to be read."""
    with suppress(Exception):  # it is read when somebody looks
        from vmat_diffusion.web.view.cases import view_store

        store = view_store(room.store.folder)
        store.images(case_folder)
        store.structures(case_folder)


def _typical(store: Store, settings: dict[str, Any]) -> dict[str, float]:
    """The usual seconds of each part of a plan with these settings; a search ends at its limit."""
    known = _PARTS | typical_seconds(store)
    if CHECK_AGAIN in settings:
        return {name: known[name] for name in _PARTS_OF_CHECK}
    with suppress(InputError):  # which the making of the plan will tell
        limit_s = 60.0 * workflow.plan_settings(**settings).search_minutes
        known["optimise"] = min(known["optimise"], limit_s) if typical_seconds(store) else limit_s
    return {name: known[name] for name in _PARTS if name != "predict" or settings.get("prior") == "diffusion"}


def _nameless(sentence: str, case_folder: Path) -> str:
    """A sentence without the name of a case's folder, which may be a patient's."""
    for text in (str(case_folder), case_folder.name):
        sentence = sentence.replace(text, "of the case")
    return sentence


def _case_folder(room: Room, case_id: str) -> Path:
    with room.store.read() as db:
        row = db.execute("SELECT folder FROM cases WHERE id = ?", (case_id,)).fetchone()
    return room.case_folder(row["folder"])


def _made(
    room: Room, job: Any, settings: dict[str, Any], case_folder: Path, heart: _Heart
) -> tuple[RunEntry, str, dict[str, float]]:
    """The plan's entry. A folder that an earlier worker finished is taken as it is."""
    out = room.run_folder(job["run_id"])
    case_hash = content_hash(case_folder)
    if CHECK_AGAIN in settings:
        slices = run_entry(room, settings[CHECK_AGAIN]).slices
        seconds = _once(out, lambda: go_on(room, settings, case_folder, out, heart.progress)) or {}
    else:
        case, seconds = _planned(case_folder, out, workflow.plan_settings(**settings), heart)
        slices = _target_slices(case)
    link = out / CASE_LINK
    if not link.is_symlink():
        link.symlink_to(os.path.relpath(case_folder, out), target_is_directory=True)
    outcome = run_record(out).fields["verdict"]["outcome"]
    if outcome is None:
        raise PlanError(f"{RECORD} of the plan says no verdict; plan the case again")
    entry = RunEntry(
        job["run_id"], job["case_id"], 0, job["made_by"], now(), outcome, file_hashes(out), slices
    )
    return entry, case_hash, seconds


def _planned(case_folder: Path, out: Path, asked: Any, heart: _Heart) -> tuple[Case, dict[str, float]]:
    """The case of a plan, which is made unless there is one, and the seconds of its parts."""
    made = _once(
        out,
        lambda: workflow.plan_case(case_folder, out, asked, keep=Keep.CHECK, progress=heart.progress),
    )
    if made is None:
        return _read(case_folder, asked), {}
    return made.task.case, dict(made.seconds)


def _once(out: Path, make: Callable[[], _Made]) -> _Made | None:
    """What `make` returns that fills the folder of a run; None where the folder is there already."""
    clear_up(out)  # what an earlier worker had whole and not yet in its place is moved there
    if not (out / RECORD).is_file():
        try:
            return make()
        except PlanError:  # another worker's plan may have come into its place since
            if not (out / RECORD).is_file():
                raise
    return None


def _read(folder: Path, asked: Any) -> Case:
    from vmat_diffusion.workflow.reading import read_with_goals

    case, _ = read_with_goals(folder, asked.goals, asked, asked.conditions)
    return case


def _target_slices(case: Case) -> dict[str, list[int]]:
    """For each target the indices of the slices that hold it."""
    return {
        target.name: [k for k in range(case.grid.shape[0]) if target.mask[k].any()] for target in case.targets
    }


def _sentence(error: BaseException) -> str:
    """What a user is told; of a defect where it is, and not its message, which may hold a name."""
    if isinstance(error, InputError):
        return str(error)
    if limit := limit_of(error):
        return limit
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__} at {places}: this is a defect of the program, please report it"


def run() -> None:
    """Be that process; threads that still compute for a cancelled plan end with it."""
    main(*sys.argv[1:])
    os._exit(0)


if __name__ == "__main__":
    run()
