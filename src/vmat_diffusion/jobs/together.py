"""Several plans of one case made at the same time, each by a process of its own on a share of the cores.

A process is started anew and not forked, as the compiled loops' threads do not survive a fork. It reads
its job from a file, tells its progress in lines on its standard output, and leaves its plan in a file.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import IO, TYPE_CHECKING, Any

from vmat_diffusion.errors import InputError, LimitError, PlanError, limit_of
from vmat_diffusion.files import written_whole
from vmat_diffusion.jobs.cluster import THREADS, cores
from vmat_diffusion.progress import Progress

if TYPE_CHECKING:
    from vmat_diffusion.optimize import Optimized

_TELL_S, _LOOK_S = 0.3, 0.1
# Exit codes of a process: interrupted before there was a plan; ended by a limit, with a sentence on stderr.
_NOTHING_YET, _LIMIT = 130, 75


@dataclass(frozen=True)
class Job:
    """A function that a new process can import, with its arguments; after these it takes a Progress."""

    function: Callable[..., Optimized]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


def workers_for(jobs: int) -> int:
    """How many of so many jobs run at a time: one for each core, as a search on one core never waits."""
    return max(min(jobs, cores()), 1)


def turns_of(jobs: int) -> int:
    """How many times the cores are shared out anew until all of so many jobs are done."""
    return math.ceil(jobs / workers_for(jobs))


def made_together(jobs: Sequence[Job], report: Progress) -> list[Optimized | None]:
    """The plans of all jobs, in their order; None for one that Ctrl-C ended before it had a plan.

    After Ctrl-C those under way end with the best plan that they have, and no further one is begun. Raises
    KeyboardInterrupt if no job has a plan then, InputError as a job does, LimitError where the computer's
    memory or disk ended one, PlanError if one fails otherwise.
    """
    workers = workers_for(len(jobs))
    threads = max(cores() // workers, 1)
    with tempfile.TemporaryDirectory(prefix="vmat-candidates-") as name, _processes() as running:
        waiting = [_Process(k, job, Path(name), threads) for k, job in enumerate(jobs)]
        done: dict[int, Optimized | None] = {}
        interrupted = False
        while waiting or running:
            try:
                while waiting and len(running) < workers and not interrupted:
                    # In the list first: what an interrupt meets half started is ended with the others.
                    running.append(waiting.pop(0))
                    running[-1].start()
                time.sleep(_LOOK_S)
                _tell(report, running, len(done), len(jobs))
            except KeyboardInterrupt:
                interrupted = True
                for process in running:
                    process.interrupt()
            if interrupted:
                done |= {process.number: None for process in waiting}
                waiting.clear()
            for process in [p for p in running if p.ended]:
                running.remove(process)
                done[process.number] = process.result(interrupted=interrupted)
    if all(made is None for made in done.values()):
        raise KeyboardInterrupt
    return [done[k] for k in range(len(jobs))]


def _tell(report: Progress, running: Sequence[_Process], done: int, count: int) -> None:
    shares = [process.share for process in running]
    notes = ", ".join(f"{process.number + 1}: {process.note}" for process in running if process.note)
    report("candidates", (done + sum(shares)) / count, f"{done} of {count} planned; {notes}".rstrip("; "))


@contextmanager
def _processes() -> Iterator[list[_Process]]:
    """The list of processes under way; whatever happens, none outlives it."""
    running: list[_Process] = []
    try:
        yield running
    finally:
        for process in running:
            process.kill()


class _Process:
    """One job in a process of its own."""

    def __init__(self, number: int, job: Job, folder: Path, threads: int) -> None:
        self.number, self.note, self.share = number, "", 0.0
        self._threads = threads
        self._job, self._result = folder / f"{number}.job", folder / f"{number}.plan"
        self._job.write_bytes(pickle.dumps(job))
        self._complaint = folder / f"{number}.txt"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Begin, in a session of its own: Ctrl-C of a terminal reaches it through `interrupt` alone."""
        with self._complaint.open("w") as complaint:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import main; main()", self._job, self._result],
                env={**os.environ, **dict.fromkeys(THREADS, str(self._threads))},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=complaint,
                text=True,
                start_new_session=True,
            )
        Thread(target=self._listen, args=(self._process.stdout,), daemon=True).start()

    def _listen(self, lines: IO[str]) -> None:
        for line in lines:
            self.share, self.note = json.loads(line)

    @property
    def ended(self) -> bool:
        """Whether nothing runs: the process is over, or an interrupt came before it began."""
        return self._process is None or self._process.poll() is not None

    def interrupt(self) -> None:
        """Ask for the best plan so far."""
        if self._process is not None and not self.ended:
            self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def result(self, *, interrupted: bool) -> Optimized | None:
        """The plan; None for one that was interrupted before there was any."""
        if self._result.exists():
            made = pickle.loads(self._result.read_bytes())
            if isinstance(made, InputError):
                raise made
            return made
        if interrupted:
            return None
        lines = self._complaint.read_text(errors="replace").strip().splitlines()
        assert self._process is not None
        code, who = self._process.returncode, f"candidate {self.number + 1}"
        if code == _LIMIT and lines:
            raise LimitError(f"{who}: {lines[-1]}")
        if limit := limit_of(RuntimeError("\n".join(lines))):  # a library's last words
            raise LimitError(f"{who}: {limit}")
        if code < 0:
            raise LimitError(
                f"{who}: its process was killed by {_signal(-code)}, probably because the memory was too "
                "small for so many at a time; ask for fewer --candidates or a coarser --grid-mm, end other "
                "programs, or take a computer with more memory"
            )
        raise PlanError(
            f"{who} failed with exit code {code}: "
            f"{lines[-1] if lines else 'it gave no reason'}; plan one candidate to see more"
        )


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def main() -> None:
    """What a process does: the job of the file named first, its result into the second.

    A limit of the computer is said in one sentence on stderr, any other fault with its traceback.
    """
    try:
        _make()
    except Exception as error:
        if not (limit := limit_of(error)):
            raise
        print(limit, file=sys.stderr)
        sys.exit(_LIMIT)


def _make() -> None:
    job = pickle.loads(Path(sys.argv[1]).read_bytes())
    last, parent = [0.0], os.getppid()

    def report(stage: str, share: float, note: str) -> None:
        if os.getppid() != parent:  # it was killed, so that nobody waits for this plan
            os._exit(1)
        if time.monotonic() - last[0] > _TELL_S:
            last[0] = time.monotonic()
            print(json.dumps([share, f"{stage} {100 * share:.0f} %"]), flush=True)

    try:
        made = job.function(*job.arguments, report, **job.keywords)
    except KeyboardInterrupt:
        sys.exit(_NOTHING_YET)
    except InputError as error:
        made = type(error)(str(error))
    with written_whole(Path(sys.argv[2])) as part:
        part.write_bytes(pickle.dumps(made))
