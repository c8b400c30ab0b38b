"""The listener as a program, with a worker that copies a prepared run in place of planning.

`listen DATA RULES PORT RUN` listens; it starts `work RUN DATA JOB TOKEN` for each plan.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path


def listen(data: str, rules: str, port: str, run: str) -> None:
    from vmat_diffusion.network.listener import listen_for_studies
    from vmat_diffusion.network.settings import ListenSettings

    asked = ListenSettings(
        data=Path(data),
        rules=Path(rules),
        port=int(port),
        allow=("SENDER", "ORTHANC"),
        quiet_s=0.5,
        spare_gb=0.01,
    )
    listen_for_studies(asked, worker=(sys.executable, __file__, "work", run))


def work(run: str, data: str, job_id: str, token: str) -> None:
    from vmat_diffusion.files import content_hash, this_process
    from vmat_diffusion.web.queue.jobs import Claim, complete, take
    from vmat_diffusion.web.runs import RunEntry, file_hashes
    from vmat_diffusion.web.store import now, open_store

    store, claim = open_store(Path(data), make=False), Claim(job_id, token)
    job = take(store, claim, this_process())
    if job is None:
        return
    out = Path(data) / "runs" / job["run_id"]
    if not out.is_dir():
        part = out.with_name(f".{out.name}.{os.getpid()}.part")
        shutil.copytree(run, part)
        time.sleep(0.3)
        part.rename(out)
    entry = RunEntry(job["run_id"], job["case_id"], 0, job["made_by"], now(), "PASSED", file_hashes(out), {})
    complete(store, claim, entry, content_hash(Path(data) / "cases" / job["case_id"]), {})


if __name__ == "__main__":
    {"listen": listen, "work": work}[sys.argv[1]](*sys.argv[2:])
