"""Many independent jobs on this computer or on a cluster; one that fails never stops the others.

    with closing(run_jobs(preprocess_case, jobs, cluster=Cluster(memory_gb=4.0))) as finished:
        for done in finished:
            ...

The jobs run in worker processes of one thread each, through `distributed` and, on SLURM and SGE, through
`dask_jobqueue`, one batch job per worker. A worker that dies or exceeds its memory is replaced, and what it
was doing is tried again. Resuming is the caller's: it leaves out what is done.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from vmat_diffusion.errors import InputError
from vmat_diffusion.workflow.run import Progress

Kind = Literal["serial", "local", "slurm", "sge"]

_SUBMIT = {"slurm": "sbatch", "sge": "qsub"}
_JOBS_AHEAD = 4  # per worker: enough that none waits for the next, few enough for 100,000 jobs in flat memory
_LEAST_MEMORY_GB = 0.5  # an interpreter with the numerical libraries loaded
_LEAST_WALLTIME_S = 600
_LEAVE_EARLY_S, _LEAVE_SPREAD_S = 180, 60  # before the walltime a worker hands its job back
_RENEW_S = 30
_LOGS = "cluster_logs"
_STAGE = "cases"

_ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
}
# Jobs hold their memory themselves: there is nothing to spill, and a paused worker would never wake.
_WORKER_MEMORY = {
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
}
_SETTINGS = {
    **_WORKER_MEMORY,
    "distributed.worker.profile.enabled": False,
    "distributed.scheduler.allowed-failures": 0,  # attempts are counted here
    "distributed.scheduler.worker-saturation": 1.0,  # no job waits behind another that may kill its worker
    "distributed.scheduler.work-stealing": False,
    "distributed.scheduler.worker-ttl": "1 hour",  # compiled code may keep a worker silent for minutes
}


@dataclass(frozen=True)
class Cluster:
    """Where jobs run, checked.

    Attributes:
        kind: "serial" runs in this process, "local" on the cores of this computer, the others on a cluster.
        workers: Processes, on a cluster batch jobs; None is one for each core whose memory is there.
        memory_gb: Limit of each worker (10^9 bytes); one that exceeds it is replaced. "serial" has
            no limit.
        queue: SLURM partition or SGE queue; None is the site's default.
        project: Account (SLURM) or project (SGE) to be charged.
        walltime: Of each worker, H:MM:SS; workers are replaced when it is over.
        extra: Further directives of the batch jobs, such as "-pe smp 2".
        dashboard: Serve distributed's status page at 127.0.0.1; its address goes to stderr.

    Raises:
        InputError: A setting is unknown, out of range or without effect for this kind.
    """

    kind: Kind = "local"
    workers: int | None = None
    memory_gb: float = 3.0
    queue: str | None = None
    project: str | None = None
    walltime: str = "04:00:00"
    extra: tuple[str, ...] = ()
    dashboard: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"--cluster {self.kind} is unknown; choose one of {', '.join(get_args(Kind))}")
        if self.workers is not None and self.workers < 1:
            raise InputError(f"--workers {self.workers} does no work; give 1 or more")
        if not self.memory_gb >= _LEAST_MEMORY_GB:
            raise InputError(
                f"--memory-gb {self.memory_gb:g} is less than a worker needs to start; "
                f"give {_LEAST_MEMORY_GB:g} or more"
            )
        if self.kind == "serial" and self.workers not in (None, 1):
            raise InputError(f"--cluster serial has one worker, not {self.workers}; use --cluster local")
        if self.kind in _SUBMIT:
            if self.workers is None:
                raise InputError(f"--cluster {self.kind} takes any number of workers; say --workers N")
            if self.walltime_s < _LEAST_WALLTIME_S:
                raise InputError(
                    f"--walltime {self.walltime} is too short for a worker; give at least 0:10:00, as H:MM:SS"
                )
        elif self.queue or self.project or self.extra:
            given = self.queue or self.project or self.extra[0]
            raise InputError(
                f"{given}: only a queueing system takes this; add --cluster slurm or --cluster sge"
            )

    @property
    def walltime_s(self) -> int:
        """The walltime in seconds, 0 where it is not written as H:MM:SS."""
        parts = re.fullmatch(r"(\d{1,4}):([0-5]\d):([0-5]\d)", self.walltime)
        return sum(int(p) * s for p, s in zip(parts.groups(), (3600, 60, 1), strict=True)) if parts else 0

    def workers_for(self, jobs: int) -> int:
        """Workers to start for so many jobs.

        Raises:
            InputError: Their memory is more than this computer has.
        """
        if self.kind in _SUBMIT:
            return min(self.workers or 1, jobs)
        from distributed.system import MEMORY_LIMIT  # regards the limits of a container or batch job

        there_gb = MEMORY_LIMIT / 1e9
        fitting = int(there_gb // self.memory_gb)
        workers = min(self.workers or max(1, min(_cores(), fitting)), jobs)
        if workers > fitting:
            raise InputError(
                f"--workers {workers} with --memory-gb {self.memory_gb:g} need "
                f"{workers * self.memory_gb:g} GB, but {there_gb:.1f} GB are there; lower one of them"
            )
        return workers


@dataclass(frozen=True)
class Done:
    """One finished job.

    Attributes:
        key: Of the job.
        result: What the function returned.
        reason: Why there is no result: one sentence with its remedy; empty after success.
        defect: The reason is an unexpected exception or a dead worker, not a refused input.
        trace: Where an unexpected exception arose.
    """

    key: str
    result: Any = None
    reason: str = ""
    defect: bool = False
    trace: str = ""


def run_jobs(
    function: Callable[..., Any],
    jobs: Mapping[str, tuple[Any, ...]],
    *,
    cluster: Cluster,
    retries: int = 1,
    progress: Progress | None = None,
) -> Iterator[Done]:
    """Calls `function(*args)` for each `key: args` of `jobs`; yields every job once, in order of completion.

    An InputError is a job's answer at once. After any other exception, and after the death of its worker, a
    job is tried again `retries` times, behind the others. Time is linear in the number of jobs, and memory
    does not grow with it beyond `jobs` itself. Close the generator (`contextlib.closing`) to stop early: no
    process outlives it. Scripts need `if __name__ == "__main__":`, since workers import them.

    Args:
        function: Importable by the workers (module level).
        jobs: Arguments are plain data, such as paths; so are results.
        cluster: Where the jobs run.
        retries: Of a job that failed unexpectedly.
        progress: Called with the stage "cases", the fraction done, and a note.

    Raises:
        InputError: The cluster cannot be started as asked.
    """
    if not jobs:
        return
    report: Progress = progress or (lambda stage, fraction, note: None)
    report(_STAGE, 0.0, f"0 of {len(jobs)}")
    run = _run_here if cluster.kind == "serial" else _run_on_workers
    for count, done in enumerate(run(function, jobs, cluster, retries, report), 1):
        report(_STAGE, count / len(jobs), f"{count} of {len(jobs)}")
        yield done


def _run_here(
    function: Callable[..., Any],
    jobs: Mapping[str, tuple[Any, ...]],
    cluster: Cluster,
    retries: int,
    report: Progress,
) -> Iterator[Done]:
    waiting, failures = deque(jobs), Counter[str]()
    while waiting:
        key = waiting.popleft()
        done = _attempt(function, cluster.memory_gb, key, jobs[key])
        failures[key] += done.defect
        if done.defect and failures[key] <= retries:
            waiting.append(key)
        else:
            yield done


def _run_on_workers(
    function: Callable[..., Any],
    jobs: Mapping[str, tuple[Any, ...]],
    cluster: Cluster,
    retries: int,
    report: Progress,
) -> Iterator[Done]:
    workers = cluster.workers_for(len(jobs))
    attempt = partial(_attempt, function, cluster.memory_gb)
    # distributed keeps jobs back until a worker is free only if they come many at once; few ones are
    # therefore kept back here, so that a job that kills its worker takes no other with it.
    ahead = workers * _JOBS_AHEAD if len(jobs) > workers * _JOBS_AHEAD else workers
    with _client_of(cluster, workers) as client:
        from distributed import as_completed

        _await_worker(client, lambda: report(_STAGE, 0.0, f"waiting for the first of {workers} workers"))
        waiting, failures = deque(jobs), Counter[str]()
        first = [waiting.popleft() for _ in range(ahead)]
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
            failures[key] += done.defect
            final = not done.defect or failures[key] > retries
            if not final:
                waiting.append(key)
            if waiting:
                following = names["job", number] = waiting.popleft()
                finished.add(
                    client.submit(attempt, following, jobs[following], key=("job", number), pure=False)
                )
                number += 1
            if final:
                yield done


def _attempt(function: Callable[..., Any], memory_gb: float, key: str, args: tuple[Any, ...]) -> Done:
    try:
        with redirect_stdout(sys.stderr):  # stdout is for the data of the command
            return Done(key, function(*args))
    except InputError as error:
        return Done(key, reason=str(error))
    except MemoryError:
        return Done(key, reason=_too_large(key, memory_gb), defect=True, trace=traceback.format_exc())
    except Exception as error:
        return Done(key, reason=_unexpected(key, error), defect=True, trace=traceback.format_exc())


def _lost(key: str, failure: Any, memory_gb: float) -> Done:
    """The outcome of a job that brought none back, by what `distributed` says of it."""
    from distributed import KilledWorker

    error = failure[1] if isinstance(failure, tuple) else failure
    killed = isinstance(error, KilledWorker)
    return Done(key, reason=_too_large(key, memory_gb) if killed else _unexpected(key, error), defect=True)


def _too_large(key: str, memory_gb: float) -> str:
    return (
        f"{key}: its worker died or was killed, probably because the case needs more than the limit of "
        f"{memory_gb:g} GB; run it again with a higher --memory-gb"
    )


def _unexpected(key: str, error: BaseException) -> str:
    return (
        f"{key}: {type(error).__name__}: {error}. This is a defect of vmat-diffusion: "
        "please report it with the output of the same command after `vmat-diffusion --debug`"
    )


def _cores() -> int:
    """Cores that this process may use, fewer where the queueing system granted fewer."""
    granted = os.environ.get("NSLOTS") or os.environ.get("SLURM_CPUS_PER_TASK") or ""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, int(granted)) if granted.isdigit() and int(granted) else there


@contextmanager
def _client_of(cluster: Cluster, workers: int) -> Iterator[Any]:
    """A client of freshly started workers, which end with it."""
    import dask
    from distributed import Client

    environment = dict(os.environ)
    with (
        TemporaryDirectory(prefix="vmat-diffusion-") as folder,
        dask.config.set(_SETTINGS | {"temporary-directory": folder}),
    ):
        started = _local(cluster, workers, folder) if cluster.kind == "local" else _queued(cluster)
        try:
            if cluster.kind in _SUBMIT:
                _submit(started, cluster, workers)
            if cluster.dashboard:
                print(f"Dashboard: {started.dashboard_link}", file=sys.stderr, flush=True)
            with Client(started) as client:
                yield client
        finally:
            started.close()
            for name in os.environ.keys() - environment.keys():  # distributed sets some and leaves them
                del os.environ[name]
            os.environ.update(environment)


def _scheduler_options(cluster: Cluster) -> dict[str, Any]:
    # Without a dashboard the scheduler still opens a port for its own figures: on loopback as well.
    return {
        "dashboard": cluster.dashboard,
        "dashboard_address": "127.0.0.1:8787" if cluster.dashboard else "127.0.0.1:0",
    }


def _local(cluster: Cluster, workers: int, folder: str) -> Any:
    from distributed import LocalCluster

    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        memory_limit=int(cluster.memory_gb * 1e9),
        host="127.0.0.1",
        scheduler_kwargs=_scheduler_options(cluster),
        local_directory=folder,
        env=_ONE_THREAD,
        silence_logs=logging.CRITICAL,
    )


def _queued(cluster: Cluster) -> Any:
    """A cluster object that submits workers, none of them submitted yet."""
    import dask_jobqueue

    variables = _ONE_THREAD | {
        f"DASK_{name.upper().replace('.', '__')}": str(value) for name, value in _WORKER_MEMORY.items()
    }
    lifetime_s = cluster.walltime_s - _LEAVE_EARLY_S
    options: dict[str, Any] = {
        "cores": 1,
        "processes": 1,
        "memory": f"{cluster.memory_gb:g}GB",
        "queue": cluster.queue,
        "walltime": cluster.walltime,
        "job_name": "vmat-diffusion",
        "job_extra_directives": list(cluster.extra),
        "job_script_prologue": [
            *(f"export {name}={value}" for name, value in variables.items()),
            "VMAT_FOLDER=$(mktemp -d)",
            "trap 'rm -rf \"$VMAT_FOLDER\"' EXIT",
        ],
        "local_directory": '"$VMAT_FOLDER"',
        "worker_extra_args": ["--lifetime", f"{lifetime_s}s", "--lifetime-stagger", f"{_LEAVE_SPREAD_S}s"],
        "log_directory": _LOGS,
        "scheduler_options": _scheduler_options(cluster),
        "silence_logs": "critical",
    }
    if cluster.kind == "slurm":
        return dask_jobqueue.SLURMCluster(
            account=cluster.project, job_cls=_refusable(dask_jobqueue.slurm.SLURMJob), **options
        )
    return dask_jobqueue.SGECluster(
        project=cluster.project,
        resource_spec=f"mem_free={cluster.memory_gb:g}G",
        job_cls=_refusable(dask_jobqueue.sge.SGEJob),
        **options,
    )


def _refusable(job: Any) -> Any:
    """The class of batch jobs with one difference: a refused submission does not hinder the closing."""
    from distributed.core import Status

    class Refusable(job):  # type: ignore[misc]
        async def start(self) -> None:
            try:
                await super().start()
            except BaseException:
                self.status = Status.failed
                raise

    return Refusable


def _submit(started: Any, cluster: Cluster, workers: int) -> None:
    """Submits the workers, and from then on again those whose walltime is over."""
    from tornado.ioloop import PeriodicCallback

    command = _SUBMIT[cluster.kind]
    if shutil.which(command) is None:
        raise InputError(
            f"--cluster {cluster.kind}: there is no {command} on this computer; run this where batch jobs "
            "can be submitted, or use --cluster local"
        )
    for _ in range(workers):
        started.worker_spec.update(started.new_worker_spec())
    try:
        started.__enter__()
    except RuntimeError as error:
        said = str(error).partition("stderr:")[2].strip() or str(error)
        raise InputError(
            f"{command} refused the workers: {' '.join(said.split())}; mend --queue, --project or --walltime"
        ) from error
    renewal = PeriodicCallback(lambda: started.scale(workers), _RENEW_S * 1000)
    started.loop.add_callback(renewal.start)


def _await_worker(client: Any, tell: Callable[[], None]) -> None:
    while True:
        try:
            client.wait_for_workers(1, timeout=_RENEW_S)
            return
        except TimeoutError:
            tell()
