"""Many independent jobs on this computer or on a cluster; one that fails does not stop the others.

    with closing(run_jobs(preprocess_case, jobs, cluster=Cluster(memory_gb=4.0))) as finished:
        for done in finished:
            ...

The jobs run in worker processes of one thread each, through `distributed` and, on SLURM and SGE, through
`dask_jobqueue`, one batch job per worker. A worker that dies or exceeds its memory is replaced, and what it
was doing is tried again. Resuming is the caller's: it leaves out what is done.
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vmat_diffusion.errors import InputError, LimitError, UnreadableError, is_memory, limit_of
from vmat_diffusion.jobs.cluster import Cluster, client_of
from vmat_diffusion.progress import Progress, silent

__all__ = ["Cluster", "Done", "run_jobs"]

_JOBS_AHEAD = 4  # per worker: enough that none waits for the next, few enough for 100,000 jobs in flat memory
_TELL_S = 30
_STAGE = "cases"


@dataclass(frozen=True)
class Done:
    """One finished job.

    Attributes:
        key: Of the job.
        result: What the function returned.
        reason: Why there is no result: one sentence with its remedy; empty after success.
        limit: The reason is a limit of this computer, such as a full disk, that every other job meets too.
        defect: The reason is an unexpected exception, a dead worker or a file that the disk did not give,
            not a refused input.
        memory: The reason is that the memory was too small, of which one case may need more than another: the
            job is tried again after the others, and only then is it a limit.
        trace: Where an unexpected exception arose.
    """

    key: str
    result: Any = None
    reason: str = ""
    defect: bool = False
    limit: bool = False
    memory: bool = False
    trace: str = ""


def run_jobs(
    function: Callable[..., Any],
    jobs: Mapping[str, tuple[Any, ...]],
    *,
    cluster: Cluster,
    retries: int = 1,
    progress: Progress | None = None,
) -> Generator[Done, None, None]:
    """Calls `function(*args)` for each `key: args` of `jobs`; yields every job once, in order of completion.

    An InputError other than UnreadableError is a job's answer at once. After any other exception, and after
    the death of its worker, a job is tried again `retries` times, behind the others. Time is linear in the
    number of jobs, and memory does not grow with it beyond `jobs` itself. Close the generator
    (`contextlib.closing`) to stop early: no process outlives it. Scripts need
    `if __name__ == "__main__":`, since workers import them.

    Args:
        function: Importable by the workers (module level).
        jobs: Arguments are plain data, such as paths; so are results.
        cluster: Where the jobs run.
        retries: Of a job that failed unexpectedly.
        progress: Called with the stage "cases", the fraction done, and a note.

    Raises:
        InputError: The cluster cannot be started as asked.
        LimitError: The disk is full or another limit of the computer is met; at once, but for memory: a job
            that needs too much is tried again after the others, and ends the batch then.
    """
    if not jobs:
        return
    report = progress or silent
    report(_STAGE, 0.0, f"0 of {len(jobs)}")
    run = _run_here if cluster.kind == "serial" else _run_on_workers
    too_large: list[Done] = []
    for count, done in enumerate(run(function, jobs, cluster, retries, report), 1):
        if done.limit and not done.memory:
            raise LimitError(f"{done.reason}. What is done is kept, the other cases were not tried")
        if done.limit:
            # Others may still be under way, or be done again because they shared the worker that died.
            too_large.append(done)
        else:
            report(_STAGE, count / len(jobs), f"{count} of {len(jobs)}")
            yield done
    if too_large:
        more = f"; so do {', '.join(done.key for done in too_large[1:])}" if too_large[1:] else ""
        raise LimitError(f"{too_large[0].reason}{more}. What is done is kept")


class _Waiting:
    """The jobs that wait for their turn; one that failed unexpectedly comes again, behind the others."""

    def __init__(self, keys: Iterable[str], retries: int) -> None:
        self._keys, self._failures, self._retries = deque(keys), Counter[str](), retries

    def next(self) -> str | None:
        """The job whose turn it is; None where none waits."""
        return self._keys.popleft() if self._keys else None

    def answer(self, done: Done) -> Done | None:
        """What is told of a job that ended; None where it is tried again."""
        if not done.defect or done.limit:
            return done
        self._failures[done.key] += 1
        if self._failures[done.key] <= self._retries:
            self._keys.append(done.key)
            return None
        return replace(done, limit=done.memory)


def _run_here(
    function: Callable[..., Any],
    jobs: Mapping[str, tuple[Any, ...]],
    cluster: Cluster,
    retries: int,
    report: Progress,
) -> Iterator[Done]:
    waiting = _Waiting(jobs, retries)
    while (key := waiting.next()) is not None:
        if (answer := waiting.answer(_attempt(function, key, jobs[key]))) is not None:
            yield answer


def _run_on_workers(
    function: Callable[..., Any],
    jobs: Mapping[str, tuple[Any, ...]],
    cluster: Cluster,
    retries: int,
    report: Progress,
) -> Iterator[Done]:
    workers = cluster.workers_for(len(jobs))
    attempt = partial(_attempt, function)
    # distributed keeps jobs back until a worker is free only if they come many at once; few ones are
    # therefore kept back here, so that a job that kills its worker takes no other with it.
    ahead = workers * _JOBS_AHEAD if len(jobs) > workers * _JOBS_AHEAD else workers
    with client_of(cluster, workers) as client:
        from distributed import as_completed

        _await_worker(client, lambda: report(_STAGE, 0.0, f"waiting for the first of {workers} workers"))
        waiting = _Waiting(jobs, retries)
        first = [key for _ in range(ahead) if (key := waiting.next()) is not None]
        names = {("job", number): key for number, key in enumerate(first)}
        # No future is held longer than needed: a finished job whose worker dies would be done again for it.
        finished = as_completed(
            client.map(attempt, first, [jobs[key] for key in first], key=list(names), pure=False),
            with_results=True,
            raise_errors=False,
        )
        number = ahead
        for future, outcome in finished:
            key = names.pop(future.key)
            done = outcome if future.status == "finished" else _lost(key, outcome, cluster.memory_gb)
            del future
            answer = waiting.answer(done)
            if (following := waiting.next()) is not None:
                names["job", number] = following
                finished.add(
                    client.submit(attempt, following, jobs[following], key=("job", number), pure=False)
                )
                number += 1
            if answer is not None:
                yield answer


def _attempt(function: Callable[..., Any], key: str, args: tuple[Any, ...]) -> Done:
    try:
        with redirect_stdout(sys.stderr):  # stdout is for the data of the command
            return Done(key, function(*args))
    except InputError as error:
        if isinstance(error, LimitError):
            return Done(key, reason=str(error), defect=True, limit=True)
        return Done(key, reason=str(error), defect=isinstance(error, UnreadableError))
    except Exception as error:
        if limit := limit_of(error):
            memory, trace = is_memory(limit), traceback.format_exc()
            reason = f"{key}: {limit}{', or leave the case out' if memory else ''}"
            return Done(key, reason=reason, defect=True, limit=not memory, memory=memory, trace=trace)
        disk = isinstance(error, OSError) and error.errno is not None
        reason = _unreadable(key, error) if disk else unexpected(key, error)
        return Done(key, reason=reason, defect=True, trace=traceback.format_exc())


def _unreadable(key: str, error: BaseException) -> str:
    reason = getattr(error, "strerror", None) or str(error)
    return f"{key}: a file cannot be read or written ({reason}); check the disk and its permissions"


def _lost(key: str, failure: Any, memory_gb: float) -> Done:
    """The outcome of a job that brought none back, by what `distributed` says of it."""
    from distributed import KilledWorker

    error = failure[1] if isinstance(failure, tuple) else failure
    killed = isinstance(error, KilledWorker)
    if not killed:
        return Done(key, reason=unexpected(key, error), defect=True)
    reason = (
        f"{key}: its worker died or was killed, probably because the case needs more than the limit of "
        f"{memory_gb:g} GB; run again with a higher --memory-gb, or leave the case out"
    )
    return Done(key, reason=reason, defect=True, memory=True)


def unexpected(key: str, error: BaseException) -> str:
    """What a person is told of a job that failed by a defect."""
    return (
        f"{key}: {type(error).__name__}: {error}. This is a defect of vmat-diffusion: "
        "please report it with the output of the same command after `vmat-diffusion --debug`"
    )


def _await_worker(client: Any, tell: Callable[[], None]) -> None:
    while True:
        try:
            client.wait_for_workers(1, timeout=_TELL_S)
            return
        except TimeoutError:
            tell()
