"""From a received study to a plan in the review room's queue, and from the plan to its answer.

Each structure set goes through its states once, by its SOP instance UID: new, entering (it has a case's id),
planning (it has a job), answering (results go out), done. Each step can be taken again after a crash without
being taken twice.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from vmat_diffusion.dicom.folder import Found, open_one
from vmat_diffusion.dicom.matching import images_of_contours, references_of
from vmat_diffusion.errors import CaseError, InputError, UnreadableError, kind_and_place
from vmat_diffusion.files import flush_to_disk
from vmat_diffusion.network.inbox import Inbox, key_of
from vmat_diffusion.network.retries import may_pass
from vmat_diffusion.network.rules import Rule, rule_for
from vmat_diffusion.network.settings import ListenSettings
from vmat_diffusion.web.accounts import User
from vmat_diffusion.web.audit import record
from vmat_diffusion.web.queue.checks import decided_since
from vmat_diffusion.web.queue.jobs import submit
from vmat_diffusion.web.room import RefusedError, Room
from vmat_diffusion.web.store import new_id, now

_LOG = logging.getLogger("vmat_diffusion.network")
# Who the review room says asked for the plans: a user without password or roles, who cannot log in.
LISTENER = User("listener", "DICOM listener", frozenset(), disabled=True)


def enter_listener(room: Room) -> None:
    """Make the listener's user where there is none."""
    with room.store.write() as db:
        db.execute(
            "INSERT INTO users (id, name, roles, password, disabled, made_at) VALUES (?, ?, '', '', 1, ?) "
            "ON CONFLICT DO NOTHING",
            (LISTENER.id, LISTENER.name, now()),
        )


def look(inbox: Inbox, room: Room, rules: Sequence[Rule], asked: ListenSettings) -> None:
    """Take each structure set as far as it can go now; one that fails does not hold up the others."""
    for row in inbox.sets("new"):
        if time.time() - row["latest"] >= asked.quiet_s:
            with _alone(inbox, row):
                _decide(inbox, row, rules, asked)
    for row in inbox.sets("entering"):
        with _alone(inbox, row):
            try:
                _enter(inbox, room, row)
            except RefusedError:  # the queue is full: again at the next look
                break
            inbox.move(row["uid"], "planning")
            _LOG.info("study %s: plan queued", row["study"][:8])
    for row in inbox.sets("planning"):
        with _alone(inbox, row):
            _ask(inbox, room, row)
    inbox.answer_again(decided_since(room))


@contextmanager
def _alone(inbox: Inbox, row: sqlite3.Row) -> Iterator[None]:
    """Keep a fault to one structure set: it is tried again if the fault may pass, else answered."""
    try:
        yield
    except Exception as error:  # whatever an object holds, the others go on
        said = kind_and_place(error)
        _LOG.error("study %s: %s", row["study"][:8], said)
        if not may_pass(error):
            sentence = said if isinstance(error, InputError) else f"the study could not be planned ({said})"
            inbox.move(row["uid"], "answering", sentence=sentence)


def _decide(inbox: Inbox, row: sqlite3.Row, rules: Sequence[Rule], asked: ListenSettings) -> None:
    """Choose the rule of a study that is complete; refuse one that stays incomplete."""
    name, uid = row["study"][:8], row["uid"]
    try:
        structures = open_one(inbox.file(row["study"], uid), "RTSTRUCT")
        images = _images(inbox, row["study"], structures)
        missing = len(_named(structures) - {image["uid"] for image in images})
        waited_s = time.time() - row["seen"]
        if (missing or not images) and waited_s < 60 * asked.patience_minutes:
            return
        sample = open_one(inbox.file(row["study"], images[0]["uid"]), "CT") if images else structures
        rule = rule_for(rules, structures.dataset, sample.dataset)
    except UnreadableError:  # the disk, not the object: again at the next look
        raise
    except CaseError as fault:
        _LOG.warning("study %s: its structure set cannot be read (%s)", name, fault)
        inbox.move(uid, "done", sentence=str(fault))
        return
    if rule is None:
        _LOG.info("study %s: no rule fits", name)
        inbox.move(uid, "done", sentence="no rule fits")
        return
    _LOG.info("study %s: rule %s", name, rule.name)
    kept = json.dumps({"rule": rule.name, "plan": dict(rule.plan), "send": list(rule.send)})
    if missing or not images:
        sentence = (
            f"{missing or 'the'} images that the structure set refers to did not come within "
            f"{asked.patience_minutes:g} minutes; send the study again"
        )
        inbox.move(uid, "answering", asked=kept, sentence=sentence)
    else:
        inbox.move(uid, "entering", asked=kept, case_id=new_id())


def _named(structures: Found) -> set[str]:
    """The images that a structure set refers to."""
    images, _, _ = references_of(structures)
    return images | images_of_contours(structures)


def _images(inbox: Inbox, study: str, structures: Found) -> list[sqlite3.Row]:
    """The CT images of the series that a structure set refers to, of all series if it names no image."""
    every = [row for row in inbox.objects(study) if row["kind"] == "CT"]
    named = _named(structures)
    series = {row["series"] for row in every if row["uid"] in named}
    return [row for row in every if row["series"] in series or not named]


def _enter(inbox: Inbox, room: Room, row: sqlite3.Row) -> None:
    """Make the study a case of the room and queue its plan; what is there already stays as it is."""
    case_id, asked = row["case_id"], json.loads(row["asked"])
    with room.store.read() as db:
        known = db.execute("SELECT 1 FROM cases WHERE id = ?", (case_id,)).fetchone()
    if not known:
        label = _label(inbox, row, asked["rule"])
        # The row before the folder: the room enters folders that it finds and does not know.
        with room.store.write() as db:
            db.execute(
                "INSERT INTO cases VALUES (?, ?, ?, ?, ?)", (case_id, case_id, label, LISTENER.id, now())
            )
            record(db, LISTENER.id, "case received", case_id)
    if not room.case_folder(case_id).is_dir():
        _gather(inbox, row, room.case_folder(case_id))
    with room.store.read() as db:
        queued = db.execute("SELECT 1 FROM jobs WHERE case_id = ?", (case_id,)).fetchone()
    if not queued:
        submit(room, case_id, asked["plan"], LISTENER)


def _label(inbox: Inbox, row: sqlite3.Row, rule: str) -> str:
    """What tells a received study from others of its minute, without a word of the patient."""
    structures = open_one(inbox.file(row["study"], row["uid"]), "RTSTRUCT")
    slices = len(_images(inbox, row["study"], structures))
    kinds = Counter(found["kind"] for found in inbox.objects(row["study"]))
    held = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    moment = datetime.fromtimestamp(row["seen"], timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    return (
        f"received {moment}, {slices} slices, structure set {key_of(row['uid'])[:8]} "
        f"of study {row['study'][:8]} ({held}), rule {rule}"
    )


def _gather(inbox: Inbox, row: sqlite3.Row, folder: Path) -> None:
    """The structure set and its images in a folder that appears whole."""
    structures = open_one(inbox.file(row["study"], row["uid"]), "RTSTRUCT")
    uids = [row["uid"], *(image["uid"] for image in _images(inbox, row["study"], structures))]
    building = inbox.folder / "building" / folder.name
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(mode=0o700)
    for number, uid in enumerate(uids, start=1):
        source, target = inbox.file(row["study"], uid), building / f"{number:06d}.dcm"
        try:
            os.link(source, target)
        except OSError:  # a file system without hard links
            shutil.copyfile(source, target)
            flush_to_disk(target)
    flush_to_disk(building)
    building.rename(folder)


def _ask(inbox: Inbox, room: Room, row: sqlite3.Row) -> None:
    """Look what became of a plan; one that ended is to be answered."""
    with room.store.read() as db:
        job = db.execute(
            "SELECT state, error, run_id FROM jobs WHERE case_id = ? AND made_by = ? ORDER BY rowid LIMIT 1",
            (row["case_id"], LISTENER.id),
        ).fetchone()
    if job is None or job["state"] == "cancelled":
        inbox.move(row["uid"], "done", sentence="cancelled")
    elif job["state"] == "done":
        inbox.move(row["uid"], "answering", run_id=job["run_id"])
    elif job["state"] == "failed":
        inbox.move(row["uid"], "answering", sentence=job["error"])
    else:
        return
    _LOG.info("study %s: plan %s", row["study"][:8], job["state"] if job else "cancelled")
