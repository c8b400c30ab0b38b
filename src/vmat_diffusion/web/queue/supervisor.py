"""What keeps the queue moving: a thread of the server that starts a process for each plan."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from vmat_diffusion.web.exercises.making import settle_exercises
from vmat_diffusion.web.queue.jobs import claim, recover, remove_leftovers
from vmat_diffusion.web.room import Room
from vmat_diffusion.web.uploads import remove_abandoned

_LOG = logging.getLogger("vmat_diffusion.web")
_TICK_S, _CLEAR_S = 0.5, 3600.0
WORKER = (sys.executable, "-m", "vmat_diffusion.web.queue.worker")


class Supervisor:
    """Starts `command DATA JOB TOKEN` for each job that may run, and gives lost jobs back to the queue.

    Several servers of one room do no harm: jobs are claimed in the database. Workers go on when it ends.
    """

    def __init__(self, room: Room, command: Sequence[str] = WORKER) -> None:
        self.room, self.command = room, tuple(command)
        self._stop = threading.Event()
        self._children: list[subprocess.Popen[bytes]] = []
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def start(self) -> None:
        """Begin to look after the queue."""
        self._thread.start()

    def stop(self) -> None:
        """Start nothing more."""
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        cleared: float | None = None
        while not self._stop.is_set():
            try:
                if cleared is None or time.monotonic() - cleared > _CLEAR_S:
                    first, cleared = cleared is None, time.monotonic()
                    if first:
                        remove_leftovers(self.room)
                    settle_exercises(self.room)
                    remove_abandoned(self.room)
            except Exception as error:  # what is left may stay, the queue goes on
                _LOG.error("%s in clearing up", type(error).__name__)
            try:
                self.tick()
            except Exception as error:  # a locked database or a full disk must not end the queue for good
                _LOG.error("%s in the queue", type(error).__name__)
            self._stop.wait(_TICK_S)

    def tick(self) -> None:
        """Look once."""
        self._children = [child for child in self._children if child.poll() is None]
        recover(self.room)
        while (given := claim(self.room)) is not None:
            self._children.append(
                subprocess.Popen(
                    [*self.command, str(self.room.store.folder), given.job_id, given.token],
                    stdin=subprocess.DEVNULL,
                    # What libraries print may hold names; what a user must know is in the job.
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            )
