"""Making an exercise: a finished run is copied with its case, and one fault is put into the copy.

The copy is a case and a run of its own. It is never decided on, exported, sent or planned on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

from vmat_diffusion.dicom.attributes import looks_like_dicom
from vmat_diffusion.dicom.rtplan_parts.seeded_faults import draw_fault, seed_fault
from vmat_diffusion.files import content_hash, write_json
from vmat_diffusion.web.accounts import User
from vmat_diffusion.web.audit import record
from vmat_diffusion.web.room import RefusedError, Room
from vmat_diffusion.web.runs import (
    CASE_LINK,
    PLAN_FILE,
    RECORD,
    case_folder_of,
    file_hashes,
    run_entry,
    run_folder,
    run_record,
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
    fault, made, case_id = draw_fault(seed), new_id(), new_id()
    folder, case = room.run_folder(f".{made}.part"), room.case_folder(f".{case_id}.part")
    try:
        _copy_case(case_folder_of(room, run_id), case)
        _copy_run(source, folder, room.case_folder(case_id))
        seed_fault(fault, folder / PLAN_FILE, folder / _DOSE_FILE, sorted(case.iterdir()))
        values = (made, case_id, 1, user.id, now(), run.outcome, json.dumps(file_hashes(folder)))
        code = content_hash(case)
        with room.store.write() as db:  # the rows first: the room enters case folders that it does not know
            label = f"TRAINING {case_id[:8]}"
            db.execute("INSERT INTO cases VALUES (?, ?, ?, ?, ?)", (case_id, case_id, label, user.id, now()))
            db.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*values, code, json.dumps(run.slices)),
            )
            db.execute(
                "INSERT INTO exercises VALUES (?, ?, ?, ?, ?, ?)",
                (made, run_id, fault.kind, seed, user.id, now()),
            )
            record(db, user.id, "exercise made", made, source=run_id)
        folder.rename(room.run_folder(made))
        case.rename(room.case_folder(case_id))
    finally:
        for left in (folder, case):
            shutil.rmtree(left, ignore_errors=True)
    return made


def _copy_case(source: Path, target: Path) -> None:
    """The DICOM files, numbered: the names of the originals may be a patient's."""
    target.mkdir(mode=0o700)
    for number, file in enumerate(sorted(p for p in source.rglob("*") if p.is_file()), start=1):
        with file.open("rb") as stream:
            is_dicom = looks_like_dicom(stream.read(132))
        if is_dicom:
            shutil.copyfile(file, target / f"{number:06d}.dcm")


def _copy_run(source: Path, target: Path, case: Path) -> None:
    target.mkdir(mode=0o700)
    for name in _COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    write_json(target / RECORD, {**run_record(source), "training": True, "files": list(_COPIED)})
    report = target / _REPORT
    if report.is_file():
        text = report.read_text(encoding="utf-8")
        marked, found = re.subn(r"<body[^>]*>", lambda body: body[0] + _BANNER, text, count=1)
        report.write_text(marked if found else _BANNER + text, encoding="utf-8")
    home = case.parents[1] / "runs" / "x"
    (target / CASE_LINK).symlink_to(os.path.relpath(case, home), target_is_directory=True)
