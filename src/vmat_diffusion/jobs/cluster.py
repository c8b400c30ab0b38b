"""Where the jobs of a batch run: settings, checked, and the worker processes that they start.

One thread for each worker. On this computer they are processes that listen on loopback only; on SLURM and SGE
each one is a batch job. The only module, with `batch`, that knows `distributed` and `dask_jobqueue`, which it
imports when they are needed.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

from vmat_diffusion.errors import InputError

Kind = Literal["serial", "local", "slurm", "sge"]

_SUBMIT = {"slurm": "sbatch", "sge": "qsub"}
_EXTRAS = {"cluster": "dask_jobqueue", "dashboard": "bokeh"}  # packages of the extras in pyproject.toml
_LEAST_MEMORY_GB = 0.5  # an interpreter with the numerical libraries loaded
_LEAST_WALLTIME_S = 600
_LEAVE_EARLY_S, _LEAVE_SPREAD_S = 180, 60  # before the walltime a worker hands its job back
_RENEW_S = 30
_LOGS = "cluster_logs"

# In its environment, what says how many threads the libraries of a process use.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
_ONE_THREAD = dict.fromkeys(THREADS, "1")
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
        InputError: A setting is unknown, out of range or without effect for this kind, or needs a package
            that is not installed.
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
        if self.kind in _SUBMIT:
            _require("cluster", f"--cluster {self.kind}")
        if self.dashboard:
            _require("dashboard", "--dashboard")

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
        workers = min(self.workers or max(1, min(cores(), fitting)), jobs)
        if workers > fitting:
            raise InputError(
                f"--workers {workers} with --memory-gb {self.memory_gb:g} need "
                f"{workers * self.memory_gb:g} GB, but {there_gb:.1f} GB are there; lower one of them"
            )
        return workers


def _require(extra: str, option: str) -> None:
    if find_spec(_EXTRAS[extra]) is None:
        raise InputError(
            f"{option} needs {_EXTRAS[extra]}, which is not installed; "
            f"run pip install 'vmat-diffusion[{extra}]'"
        )


def cores() -> int:
    """Cores that this process may use, fewer where the queueing system granted fewer."""
    granted = os.environ.get("NSLOTS") or os.environ.get("SLURM_CPUS_PER_TASK") or ""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, int(granted)) if granted.isdigit() and int(granted) else there


@contextmanager
def client_of(cluster: Cluster, workers: int) -> Iterator[Any]:
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
    import dask

    dask_jobqueue = _dask_jobqueue()
    site: list[str] = dask.config.get(f"jobqueue.{cluster.kind}.job-script-prologue")
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
        "job_extra_directives": list(cluster.extra) or None,
        "job_script_prologue": [
            *site,
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


def _dask_jobqueue() -> Any:
    """The library; at its import it makes Ctrl-C end the program with no word, which is taken back."""
    before = signal.getsignal(signal.SIGINT)
    import dask_jobqueue

    signal.signal(signal.SIGINT, before)
    return dask_jobqueue


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
