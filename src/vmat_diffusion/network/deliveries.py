"""Answers on their way: the results of a plan, or why there is none, to each peer that the rule names.

An answer that is sent again after a crash holds the same objects, with the same UIDs.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import tempfile
import time
from pathlib import Path

from vmat_diffusion.errors import InputError, PlanError, kind_and_place
from vmat_diffusion.network.address import peer_of
from vmat_diffusion.network.inbox import Inbox
from vmat_diffusion.network.results import parcels_of_run, refusal
from vmat_diffusion.network.retries import may_pass
from vmat_diffusion.network.sending import send_parcels
from vmat_diffusion.network.settings import ListenSettings, SendSettings
from vmat_diffusion.network.storing import Parcel
from vmat_diffusion.network.studies import LISTENER
from vmat_diffusion.web.audit import record
from vmat_diffusion.web.reviews import changes, status_of
from vmat_diffusion.web.room import Room
from vmat_diffusion.web.runs import run_entry

_LOG = logging.getLogger("vmat_diffusion.network")
_FIRST_S, _LONGEST_S = 15.0, 1800.0


def deliver(inbox: Inbox, room: Room, asked: ListenSettings) -> None:
    """Send each answer that is due, once; a structure set whose answers are all sent or given up is done."""
    for row in inbox.sets("answering"):
        try:
            _deliver_one(inbox, room, row, asked)
        except Exception as error:  # one structure set does not hold up the others
            _LOG.error("study %s: %s", row["study"][:8], kind_and_place(error))


def _deliver_one(inbox: Inbox, room: Room, row: sqlite3.Row, asked: ListenSettings) -> None:
    # A set that failed before a rule was chosen has nobody to answer.
    peers = json.loads(row["asked"]).get("send", [])
    with inbox.write() as db:
        for peer in peers:
            db.execute(
                "INSERT INTO deliveries (set_uid, peer, state, begun, next_at) "
                "VALUES (?, ?, 'waiting', ?, 0) ON CONFLICT DO NOTHING",
                (row["uid"], peer, time.time()),
            )
    with inbox.read() as db:
        due = db.execute(
            "SELECT * FROM deliveries WHERE set_uid = ? AND state = 'waiting' AND next_at <= ?",
            (row["uid"], time.time()),
        ).fetchall()
    for delivery in due:
        _try(inbox, room, row, delivery, asked)
    with inbox.read() as db:
        waiting = db.execute(
            "SELECT 1 FROM deliveries WHERE set_uid = ? AND state = 'waiting'", (row["uid"],)
        ).fetchone()
    if not waiting:
        inbox.move(row["uid"], "done")


def _try(inbox: Inbox, room: Room, row: sqlite3.Row, delivery: sqlite3.Row, asked: ListenSettings) -> None:
    name, peer, tries = row["study"][:8], delivery["peer"], delivery["tries"] + 1
    state, sentence = "sent", ""
    try:
        with tempfile.TemporaryDirectory(prefix="vmat_") as scratch:
            receipt = send_parcels(
                peer_of(peer), _parcels(inbox, room, row, Path(scratch)), _send_settings(asked)
            )
        _audit(room, row, "results sent", peer, objects=list(receipt.objects))
        _LOG.info(
            "study %s: %s sent to %s, commitment: %s",
            name,
            ", ".join(receipt.objects),
            peer,
            receipt.commitment,
        )
    except Exception as fault:
        late = time.time() - delivery["begun"] > 3600 * asked.delivery_hours
        lasting = isinstance(fault, InputError) and not may_pass(fault)
        state, sentence = "given up" if late or lasting else "waiting", kind_and_place(fault)
    if sentence:
        _LOG.warning(
            "study %s: answer %s: %s", name, "given up" if state == "given up" else "waits", sentence
        )
    if state == "given up":
        _audit(room, row, "results given up", peer)
    with inbox.write() as db:
        db.execute(
            "UPDATE deliveries SET state = ?, tries = ?, next_at = ?, sentence = ? "
            "WHERE set_uid = ? AND peer = ?",
            (state, tries, time.time() + _wait_s(tries), sentence, row["uid"], peer),
        )


def _audit(room: Room, row: sqlite3.Row, action: str, peer: str, **detail: list[str]) -> None:
    with room.store.write() as db:
        record(db, LISTENER.id, action, row["run_id"] or row["case_id"], peer=peer, **detail)


def _wait_s(tries: int) -> float:
    return min(_FIRST_S * 2.0 ** min(tries - 1, 30), _LONGEST_S)


def _parcels(inbox: Inbox, room: Room, row: sqlite3.Row, scratch: Path) -> list[Parcel]:
    if row["run_id"]:
        _require_sendable(room, row["run_id"])
        return parcels_of_run(room.run_folder(row["run_id"]), scratch)
    return [refusal(row["sentence"], beside=inbox.file(row["study"], row["uid"]), scratch=scratch)]


def _require_sendable(room: Room, run_id: str) -> None:
    """Raise PlanError for a run that is not as the planner left it, or that was put aside in the room."""
    if changed := changes(room, run_entry(room, run_id)):
        raise PlanError(
            f"{'; '.join(changed)} since the plan was made, so it is not sent; plan the case again"
        )
    if (status := status_of(room, run_id)) in ("REJECTED", "SUPERSEDED"):
        raise PlanError(f"the plan is {status} in the review room and is not sent; plan the case again")


def _send_settings(asked: ListenSettings) -> SendSettings:
    return SendSettings(
        tls=asked.tls,
        tls_ca=asked.tls_ca,
        tls_certificate=asked.tls_certificate,
        tls_key=asked.tls_key,
        aet=asked.aet,
        tries=1,
        authorization=asked.authorization,
    )
