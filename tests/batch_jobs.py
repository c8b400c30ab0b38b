"""Jobs for the tests of batches, in a module that workers can import."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from vmat_diffusion.errors import InputError
from vmat_diffusion.jobs.batch import Cluster, run_jobs


def work(kind: str, number: int, folder: Path) -> Any:
    """One job of the wanted behaviour; each call leaves a file in `folder`."""
    (folder / f"{kind}_{number}_{time.time_ns()}").touch()
    if kind == "refused":
        raise InputError(f"case {number} has no dose; export the RTDOSE as well")
    if kind == "broken":
        return 1 / 0
    if kind == "once" and len(list(folder.glob(f"once_{number}_*"))) == 1:
        raise OSError("the disk was busy")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "lost" and len(list(folder.glob(f"lost_{number}_*"))) == 1:
        os.killpg(0, signal.SIGKILL)  # its whole batch job, as when a node fails
    if kind == "memory":
        raise MemoryError("cannot allocate")
    if kind == "large":
        held = np.ones(100_000_000)  # 0.8 GB
        time.sleep(20)
        return float(held[0])
    if kind == "threads":
        import numba

        return numba.get_num_threads(), os.environ["OMP_NUM_THREADS"]
    if kind == "slow":
        time.sleep(60)
    print("chatter of a library")
    return number * number


if __name__ == "__main__":  # a run for the tests to stop, with the handler of SIGTERM that the commands have
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    jobs = {f"case_{n}": ("slow", n, Path(sys.argv[1])) for n in range(8)}
    for _ in run_jobs(work, jobs, cluster=Cluster(workers=2, memory_gb=0.8)):
        pass


def fill_the_disk(number: int, folder: Path) -> int:
    """A job of which the second one finds the disk full."""
    (folder / f"{number}").touch()
    if number == 1:
        raise OSError(28, "No space left on device", str(folder / "case.npz"))
    return number


def want_memory(number: int) -> int:
    """A job of which the first one gets no memory."""
    if not number:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")
    return number
