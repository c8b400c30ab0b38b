"""Making an exercise: a finished run is copied with its case, and one fault is put into the copy.

The copy is a case and a run of its own. It is never decided on, exported, sent or planned on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vmat_diffusion.dicom.attributes import looks_like_dicom
from vmat_diffusion.dicom.rtplan_parts.seeded_faults import draw_fault, seed_fault
from vmat_diffusion.files import (
    content_hash,
    flush_to_disk,
    is_dead,
    read_json,
    this_process,
    write_json,
)
from vmat_diffusion.origin import uid_code
from vmat_diffusion.web.accounts import User
from vmat_diffusion.web.audit import record
from vmat_diffusion.web.room import RefusedError, Room
from vmat_diffusion.web.runs import (
    CASE_LINK,
    PLAN_FILE,
    RECORD,
    RunEntry,
    case_folder_of,
    file_hashes,
    run_entry,
    run_folder,
)
from vmat_diffusion.web.store import new_id, now

_DOSE_FILE, _REPORT = "RD.dcm", "report.html"
# What the review shows of a run; a PDF or trajectories would go without the word TRAINING.
_COPIED = (PLAN_FILE, _DOSE_FILE, "check_dose.npz", "fluence.npz", _REPORT, RECORD)
_BANNER = (
    '<p style="position:fixed;top:0;left:0;right:0;z-index:99;margin:0;padding:4px;text-align:center;'
    'background:#7a4d00;color:#fff;font-weight:700">TRAINING: a copy, not for treatment</p>'
)
_MOST = 50
# Begins the key of a note in the table meta, before the id of the run; and how long the making may take.
_NOTE, _LONGEST_S = "exercise in the making ", 3600.0


def make_exercise(room: Room, run_id: str, seed: int, user: User) -> str:
    """Make an exercise from a run that passed the gate; returns the id of its run.

    Raises AbsentError, RefusedError for a run that cannot be copied, PlanError for a plan without beams.
    """
    run, source = run_entry(room, run_id), run_folder(room, run_id)
    with room.store.read() as db:
        if db.execute("SELECT 1 FROM exercises WHERE run_id = ?", (run_id,)).fetchone():
            raise RefusedError("the plan is one of an exercise itself; choose a real one")
        (count,) = db.execute("SELECT count(*) FROM exercises").fetchone()
    if run.outcome != "PASSED" or PLAN_FILE not in run.files:
        raise RefusedError(f"the gate's verdict is {run.outcome}; choose a plan that passed")
    if count >= _MOST:
        raise RefusedError(f"there are {count} exercises, at most {_MOST} can be")
    fault, draft = draw_fault(seed), _Draft(room, new_id(), new_id())
    draft.begin()
    try:
        _copy_case(case_folder_of(room, run_id), draft.case_part)
        _copy_run(source, draft)
        case_files = sorted(draft.case_part.iterdir())
        part = draft.run_part
        uids = seed_fault(fault, part / PLAN_FILE, part / _DOSE_FILE, case_files)
        code = content_hash(draft.case_part)
        _renew_texts(part, uids, code)
        for folder in (part, draft.case_part):
            for file in folder.iterdir():
                flush_to_disk(file)
            flush_to_disk(folder)
        draft.enter(run, fault.kind, seed, user=user, code=code)
    except BaseException:
        draft.undo()
        raise
    if not draft.finish():
        draft.undo()
        raise RefusedError("the copy could not be put into its place; look at the disk and try again")
    return draft.run_id


@dataclass(frozen=True)
class _Draft:
    """An exercise on its way. Its folders have hidden names until its rows are there.

    A note in the database says who makes it, so that `settle_exercises` can tell what a killed server left.
    """

    room: Room
    run_id: str
    case_id: str

    @property
    def run_part(self) -> Path:
        """The folder of the run until it is whole."""
        return self.room.run_folder(f".{self.run_id}.part")

    @property
    def case_part(self) -> Path:
        """The folder of the case until it is whole."""
        return self.room.case_folder(f".{self.case_id}.part")

    @property
    def places(self) -> tuple[tuple[Path, Path], ...]:
        """Each folder under its hidden name and in its place."""
        return (
            (self.run_part, self.room.run_folder(self.run_id)),
            (self.case_part, self.room.case_folder(self.case_id)),
        )

    def begin(self) -> None:
        """Note who makes it."""
        note = {"case_id": self.case_id, "at": time.time(), **this_process()}
        with self.room.store.write() as db:
            db.execute("INSERT INTO meta VALUES (?, ?)", (_NOTE + self.run_id, json.dumps(note)))

    def enter(self, run: RunEntry, kind: str, seed: int, *, user: User, code: str) -> None:
        """The rows of case, run and exercise: before the folders, since the room enters those it finds."""
        files, label = json.dumps(file_hashes(self.run_part)), f"TRAINING {self.case_id[:8]}"
        row = (self.run_id, self.case_id, 1)
        with self.room.store.write() as db:
            db.execute(
                "INSERT INTO cases VALUES (?, ?, ?, ?, ?)",
                (self.case_id, self.case_id, label, user.id, now()),
            )
            db.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, user.id, now(), run.outcome, files, code, json.dumps(run.slices)),
            )
            db.execute(
                "INSERT INTO exercises VALUES (?, ?, ?, ?, ?, ?)",
                (self.run_id, run.id, kind, seed, user.id, now()),
            )
            record(db, user.id, "exercise made", self.run_id, source=run.id)

    def finish(self) -> bool:
        """Bring the folders to their places; whether both are there then."""
        for part, place in self.places:
            with suppress(OSError):  # another server may have done it
                part.rename(place)
        whole = all(place.is_dir() for _, place in self.places)
        if whole:
            self._forget()
        return whole

    def undo(self) -> None:
        """Remove all of it."""
        for folder in (folder for pair in self.places for folder in pair):
            shutil.rmtree(folder, ignore_errors=True)
        with self.room.store.write() as db:
            tables = ("guesses", "evidence", "ticks", "exercises")
            if db.execute("SELECT 1 FROM exercises WHERE run_id = ?", (self.run_id,)).fetchone():
                for table in tables:
                    db.execute(f"DELETE FROM {table} WHERE run_id = ?", (self.run_id,))
                db.execute("DELETE FROM runs WHERE id = ?", (self.run_id,))
                db.execute("DELETE FROM cases WHERE id = ?", (self.case_id,))
                record(db, "server", "exercise removed", self.run_id)
        self._forget()

    def _forget(self) -> None:
        with self.room.store.write() as db:
            db.execute("DELETE FROM meta WHERE key = ?", (_NOTE + self.run_id,))


def settle_exercises(room: Room) -> None:
    """Finish the exercises that killed servers had whole, and remove what they had not."""
    with room.store.read() as db:
        # In this order: whose note is gone after its rows were there is in its place.
        entered = {row["run_id"]: row for row in db.execute(_ENTERED)}
        found = db.execute("SELECT key, value FROM meta WHERE key LIKE ?", (f"{_NOTE}%",)).fetchall()
    notes = {row["key"].removeprefix(_NOTE): json.loads(row["value"]) for row in found}
    for run_id, note in notes.items():
        draft = _Draft(room, run_id, note["case_id"])
        # That of another computer, which shared the folder, cannot be asked whether it lives.
        if not is_dead(note) and time.time() - note["at"] < _LONGEST_S:
            continue
        if run_id not in entered or not draft.finish():
            draft.undo()
    # Of versions that made no notes.
    for run_id in entered.keys() - notes.keys():
        if not room.run_folder(run_id).is_dir() and not entered[run_id]["answered"]:
            _Draft(room, run_id, entered[run_id]["case_id"]).undo()
    noted = notes.keys() | {note["case_id"] for note in notes.values()}
    for folder in (room.store.folder / "runs", room.store.folder / "cases"):
        for part in folder.glob(".*.part"):
            if part.name[1:-5] not in noted and time.time() - part.stat().st_mtime > _LONGEST_S:
                shutil.rmtree(part, ignore_errors=True)


_ENTERED = (
    "SELECT e.run_id, r.case_id, e.run_id IN (SELECT run_id FROM guesses) AS answered "
    "FROM exercises e JOIN runs r ON r.id = e.run_id"
)


def _copy_case(source: Path, target: Path) -> None:
    """The DICOM files, numbered: the names of the originals may be a patient's."""
    target.mkdir(mode=0o700)
    for number, file in enumerate(sorted(p for p in source.rglob("*") if p.is_file()), start=1):
        with file.open("rb") as stream:
            is_dicom = looks_like_dicom(stream.read(132))
        if is_dicom:
            shutil.copyfile(file, target / f"{number:06d}.dcm")


def _copy_run(source: Path, draft: _Draft) -> None:
    target = draft.run_part
    target.mkdir(mode=0o700)
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    told = read_json(source / RECORD)
    if not isinstance(told, dict):
        raise RefusedError(f"{RECORD} of the plan cannot be read; choose another one")
    write_json(target / RECORD, {**told, "training": True, "files": list(_COPIED)})
    report = target / _REPORT
    if report.is_file():
        text = report.read_text(encoding="utf-8", errors="replace")
        marked, found = re.subn(r"<body[^>]*>", lambda body: body[0] + _BANNER, text, count=1)
        report.write_text(marked if found else _BANNER + text, encoding="utf-8")
    home, case = (place for _, place in draft.places)
    (target / CASE_LINK).symlink_to(os.path.relpath(case, home), target_is_directory=True)


def _renew_texts(folder: Path, uids: Mapping[str, str], code: str) -> None:
    """The new UIDs, and their codes, in report and record, and the code of the case's files there."""
    renewed = {**uids, **{uid_code(old): uid_code(new) for old, new in uids.items()}}
    pattern = re.compile("|".join(rf"(?<![\w.]){re.escape(old)}(?![\w.])" for old in renewed))
    for name in (RECORD, _REPORT):
        file = folder / name
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            file.write_text(pattern.sub(lambda found: renewed[found[0]], text), encoding="utf-8")
    told = read_json(folder / RECORD)
    if isinstance(told, dict) and isinstance(told.get("inputs"), dict):
        write_json(folder / RECORD, {**told, "inputs": {**told["inputs"], "sha256": code}})
