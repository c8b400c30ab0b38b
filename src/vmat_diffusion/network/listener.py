"""The listener: receives, queues plans, sends answers, until its process is ended."""

from __future__ import annotations

import fcntl
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vmat_diffusion.dicom.attributes import silence
from vmat_diffusion.errors import InputError, kind_and_place
from vmat_diffusion.network.address import is_this_computer
from vmat_diffusion.network.deliveries import deliver
from vmat_diffusion.network.inbox import Inbox, open_inbox
from vmat_diffusion.network.receiver import Receiver
from vmat_diffusion.network.rules import Rule, read_rules
from vmat_diffusion.network.settings import ListenSettings
from vmat_diffusion.network.studies import enter_listener, look
from vmat_diffusion.web.queue.supervisor import WORKER, Supervisor
from vmat_diffusion.web.room import Room, Rules
from vmat_diffusion.web.store import open_store

_LOG = logging.getLogger("vmat_diffusion.network")
_TICK_S, _CLEAR_S = 1.0, 3600.0
FOLDER = "network"


def listen_for_studies(asked: ListenSettings, *, worker: Sequence[str] = WORKER) -> None:
    """Listen until the process is ended. Raises InputError where it cannot begin.

    `worker` is the command that makes a plan, as in `Supervisor`.
    """
    silence()
    _refuse_open(asked)
    rules = read_rules(asked.rules)
    room = Room(open_store(asked.data), Rules(workers=asked.plans_at_a_time))
    with _alone(asked.data / FOLDER):
        inbox = open_inbox(room.store.folder / FOLDER)
        enter_listener(room)
        receiver = Receiver(inbox, asked)
        _log_to_terminal()
        supervisor = Supervisor(room, worker)
        threading.Thread(target=receiver.serve, name="receiver", daemon=True).start()
        supervisor.start()
        _LOG.info("%s listens on %s port %d, %d rules", asked.aet, asked.host, asked.port, len(rules))
        try:
            _work(inbox, room, rules, asked)
        finally:
            receiver.stop()
            supervisor.stop()


def _work(inbox: Inbox, room: Room, rules: Sequence[Rule], asked: ListenSettings) -> None:
    cleared = 0.0

    def clear() -> None:
        nonlocal cleared
        if time.time() - cleared > _CLEAR_S:
            cleared = time.time()
            inbox.remove_old(cleared - 86400 * asked.keep_days)

    steps = (lambda: look(inbox, room, rules, asked), lambda: deliver(inbox, room, asked), clear)
    while True:
        for step in steps:
            try:
                step()
            except Exception as error:  # a locked database or a full disk must not end the listener for good
                _LOG.error("%s in the listener's work", kind_and_place(error))
        time.sleep(_TICK_S)


def _refuse_open(asked: ListenSettings) -> None:
    if not (is_this_computer(asked.host.strip("[]")) or asked.tls or asked.without_tls):
        raise InputError(
            f"--host {asked.host} is reached by other computers, and patients' data would cross the network "
            "in the open; give --tls with a certificate, or --without-tls where the network is closed"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process however it ends."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError("another listener uses this --data; end it or name another folder") from None
        yield


def _log_to_terminal() -> None:
    """Our own lines go to stderr; those of libraries, which may hold names, nowhere."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
