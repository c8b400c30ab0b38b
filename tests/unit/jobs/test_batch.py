"""Batches: every job answers once, whatever happens to it, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import batch_jobs
import dask
import psutil
import pytest
from batch_jobs import work

from vmat_diffusion.cli.fields import ClusterOptions
from vmat_diffusion.errors import InputError, LimitError
from vmat_diffusion.jobs.batch import Cluster, Done, run_jobs
from vmat_diffusion.jobs.cluster import _queued

LOCAL = Cluster(workers=2, memory_gb=0.8)
KINDS = ("fine", "refused", "broken", "once")


def jobs_of(folder: Path, *more: str) -> dict[str, tuple[str, int, Path]]:
    kinds = [*KINDS * 5, *more]
    return {f"{kind}_{n}": (kind, n, folder) for n, kind in enumerate(kinds)}


def finished(folder: Path, cluster: Cluster, *more: str) -> dict[str, Done]:
    jobs = jobs_of(folder, *more)
    with closing(run_jobs(work, jobs, cluster=cluster)) as results:
        every = list(results)
    assert len(every) == len(jobs)
    return {done.key: done for done in every}


def calls(folder: Path, key: str) -> int:
    return len(list(folder.glob(f"{key}_*")))


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Done]]:
    """One local cluster with everything that can happen to a job, but for too little memory."""
    folder = tmp_path_factory.mktemp("calls")
    before = dict(os.environ)
    results = finished(folder, LOCAL, "threads")
    assert dict(os.environ) == before
    return folder, results


def test_serial_and_local_answer_alike(local: tuple[Path, dict[str, Done]], tmp_path: Path) -> None:
    here = finished(tmp_path, Cluster(kind="serial"))
    for key, done in here.items():
        there = local[1][key]
        assert (there.result, there.reason, there.defect) == (done.result, done.reason, done.defect)
    assert here["fine_16"] == Done("fine_16", 256)


def test_refused_input_is_answered_at_once(local: tuple[Path, dict[str, Done]], tmp_path: Path) -> None:
    refused = Done("refused_1", reason="case 1 has no dose; export the RTDOSE as well")
    assert local[1]["refused_1"] == refused
    assert finished(tmp_path, Cluster(kind="serial"))["refused_1"] == refused
    assert calls(tmp_path, "refused_1") == 1


def test_failure_is_tried_again_and_then_a_defect(
    local: tuple[Path, dict[str, Done]], tmp_path: Path
) -> None:
    for results in (local[1], finished(tmp_path, Cluster(kind="serial"))):
        broken = results["broken_2"]
        assert broken.defect
        assert broken.result is None
        assert broken.reason.startswith("broken_2: ZeroDivisionError: division by zero.")
        assert "return 1 / 0" in broken.trace
        assert results["once_3"] == Done("once_3", 9)
    assert calls(tmp_path, "broken_2") == calls(tmp_path, "once_3") == 2


def stopped(folder: Path, cluster: Cluster, kind: str) -> tuple[dict[str, Done], str]:
    """The answers before a job of that kind, which comes first, stops the batch, and the sentence."""
    jobs = {f"{kind}_9": (kind, 9, folder), **{f"fine_{n}": ("fine", n, folder) for n in range(3)}}
    done: dict[str, Done] = {}
    results = run_jobs(work, jobs, cluster=cluster)
    with pytest.raises(LimitError) as stop, closing(results):
        for one in results:
            done[one.key] = one
    return done, str(stop.value)


@pytest.mark.parametrize(
    ("kind", "cluster", "words"),
    [
        ("killed", LOCAL, ("worker", "0.8 GB", "higher --memory-gb, or leave the case out")),
        ("large", LOCAL, ("worker", "0.8 GB", "higher --memory-gb, or leave the case out")),
        ("memory", Cluster(kind="serial"), ("memory", "ulimit -v", "or leave the case out")),
    ],
)
def test_too_little_memory_for_a_case_stops_the_batch_after_the_others(
    tmp_path: Path, kind: str, cluster: Cluster, words: tuple[str, ...]
) -> None:
    done, sentence = stopped(tmp_path, cluster, kind)
    assert {key: one.result for key, one in done.items()} == {"fine_0": 0, "fine_1": 1, "fine_2": 4}
    assert sentence.startswith(f"{kind}_9: ") and "What is done is kept" in sentence
    for word in words:
        assert word in sentence
    assert "defect" not in sentence
    assert calls(tmp_path, f"{kind}_9") == 2


def test_every_case_that_is_too_large_is_named(tmp_path: Path) -> None:
    jobs = {
        "memory_9": ("memory", 9, tmp_path),
        "fine_0": ("fine", 0, tmp_path),
        "memory_8": ("memory", 8, tmp_path),
    }
    done = []
    results = run_jobs(work, jobs, cluster=Cluster(kind="serial"))
    with (
        pytest.raises(LimitError, match=r"^memory_9: .*; so do memory_8\. What is done is kept"),
        closing(results),
    ):
        for one in results:
            done.append(one.key)
    assert done == ["fine_0"]


def test_workers_use_one_thread(local: tuple[Path, dict[str, Done]]) -> None:
    assert local[1]["threads_20"].result == (1, "1")


def test_chatter_of_jobs_stays_off_stdout(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path, Cluster(kind="serial"))
    written = capfd.readouterr()
    assert written.out == ""
    assert "chatter of a library" in written.err


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    told: list[tuple[str, float, str]] = []
    jobs = {f"case_{n}": ("fine", n, tmp_path) for n in range(4)}
    for _ in run_jobs(work, jobs, cluster=Cluster(kind="serial"), progress=lambda *now: told.append(now)):
        pass
    assert told == [("cases", n / 4, f"{n} of 4") for n in range(5)]


def test_no_jobs_start_no_cluster() -> None:
    assert list(run_jobs(work, {}, cluster=Cluster(kind="sge", workers=4))) == []


def children(of: int) -> list[psutil.Process]:
    """Processes below `of`, but for multiprocessing's own helper, which ends with the interpreter."""
    every = psutil.Process(of).children(recursive=True)
    return [p for p in every if "resource_tracker" not in " ".join(p.cmdline())]


def test_closed_early_leaves_no_process(tmp_path: Path) -> None:
    jobs = {"fine": ("fine", 0, tmp_path), **{f"case_{n}": ("slow", n, tmp_path) for n in range(20)}}
    with closing(run_jobs(work, jobs, cluster=LOCAL)) as results:
        assert next(results).result == 0
        assert len(children(os.getpid())) == 2
        ports = psutil.Process().net_connections("tcp")
        assert {c.laddr.ip for c in ports if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}
    assert not children(os.getpid())


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_stopped_run_leaves_no_process(tmp_path: Path, name: str) -> None:
    calls_folder, temporary = tmp_path / "calls", tmp_path / "temporary"
    calls_folder.mkdir()
    temporary.mkdir()
    package = Path(__file__).parents[3] / "src"
    run = subprocess.Popen(
        [sys.executable, batch_jobs.__file__, str(calls_folder)],
        env=os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(package)},
        start_new_session=True,
        stderr=subprocess.DEVNULL,
    )
    while len(list(calls_folder.iterdir())) < 2 and run.poll() is None:
        time.sleep(0.1)
    below = children(run.pid)
    os.killpg(run.pid, signal.SIGINT) if name == "SIGINT" else run.send_signal(getattr(signal, name))
    run.wait(30)
    assert len(below) == 2
    assert not psutil.wait_procs(below, timeout=30)[1]
    if name != "SIGKILL":
        assert not list(temporary.iterdir())


QUEUED = {"workers": 3, "memory_gb": 3.0, "queue": "UI", "project": "ROB", "walltime": "12:30:00"}


def script_of(monkeypatch: pytest.MonkeyPatch, folder: Path, cluster: Cluster) -> list[str]:
    monkeypatch.chdir(folder)
    with closing(_queued(cluster)) as made:
        return made.job_script().splitlines()


def test_slurm_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = script_of(monkeypatch, tmp_path, Cluster(kind="slurm", extra=("--qos=low",), **QUEUED))
    for line in ("-p UI", "-A ROB", "--mem=3G", "-t 12:30:00", "--cpus-per-task=1", "--qos=low"):
        assert f"#SBATCH {line}" in script


def test_sge_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = script_of(monkeypatch, tmp_path, Cluster(kind="sge", extra=("-pe smp 2",), **QUEUED))
    for line in ("-q UI", "-P ROB", "-l mem_free=3G", "-l h_rt=12:30:00", "-pe smp 2"):
        assert f"#$ {line}" in script


@pytest.mark.parametrize("kind", ["slurm", "sge"])
def test_worker_of_a_queue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    script = script_of(monkeypatch, tmp_path, Cluster(kind=kind, **QUEUED))
    for line in ("NUMBA_NUM_THREADS=1", "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE=False"):
        assert f"export {line}" in script
    command = script[-1]
    assert "--nthreads 1 --memory-limit 2.79GiB" in command  # 3e9 bytes
    assert (
        f"--lifetime {12 * 3600 + 30 * 60 - 180}s" in command
    )  # hands its job back before the queue kills it
    assert '--local-directory "$VMAT_FOLDER"' in command


def test_settings_of_the_site_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site = {"jobqueue.sge.job-script-prologue": ["module load python"], "jobqueue.sge.interface": "lo"}
    with dask.config.set(site):
        script = script_of(monkeypatch, tmp_path, Cluster(kind="sge", workers=2))
    assert "module load python" in script
    assert "--interface lo" in script[-1]


def fake_queue(folder: Path, monkeypatch: pytest.MonkeyPatch, submit: str) -> None:
    """Commands of SLURM on PATH, of which `submit` is sbatch."""
    for name, text in {"sbatch": submit, "scancel": 'kill -- -"$1"'}.items():
        command = folder / name
        command.write_text(f"#!/bin/bash\n{text}\n")
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.chdir(folder)


RUNS = 'cp "$1" job.sh; setsid bash job.sh >job.log 2>&1 & echo "Submitted batch job $!"'


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A SLURM that starts every batch job at once on this computer."""
    fake_queue(tmp_path, monkeypatch, RUNS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in sys.path if p))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


@pytest.mark.skipif(sys.platform == "win32", reason="a queueing system of shell scripts")
def test_jobs_run_through_a_queue(queue: None, tmp_path: Path) -> None:
    cluster = Cluster(kind="slurm", workers=1, memory_gb=0.8)
    done, sentence = stopped(tmp_path, cluster, "killed")
    assert [done[f"fine_{n}"].result for n in range(3)] == [0, 1, 4]
    assert sentence.startswith("killed_9: ") and "--memory-gb" in sentence


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a queueing system of shell scripts")
def test_lost_node_is_replaced(queue: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vmat_diffusion.jobs.cluster._RENEW_S", 1)
    jobs = {f"case_{n}": (kind, n, tmp_path) for n, kind in enumerate(["fine", "lost", "fine"])}
    results = list(run_jobs(work, jobs, cluster=Cluster(kind="slurm", workers=1, memory_gb=0.8)))
    assert {done.key: done.result for done in results} == {"case_0": 0, "case_1": 1, "case_2": 4}


@pytest.mark.skipif(sys.platform == "win32", reason="a queueing system of shell scripts")
def test_refusal_of_the_queue_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_queue(tmp_path, monkeypatch, "echo 'sbatch: error: invalid partition specified: UI' >&2; exit 1")
    with pytest.raises(InputError, match=r"sbatch refused.*invalid partition specified: UI.*--queue"):
        list(run_jobs(work, jobs_of(tmp_path), cluster=Cluster(kind="slurm", workers=2, queue="UI")))


def test_absent_queueing_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"sge.*qsub.*--cluster local"):
        list(run_jobs(work, jobs_of(tmp_path), cluster=Cluster(kind="sge", workers=2)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "pbs"}, "--cluster pbs.*serial, local, slurm, sge"),
        ({"workers": 0}, "--workers 0.*1 or more"),
        ({"workers": -2}, "--workers -2.*1 or more"),
        ({"memory_gb": 0.1}, "--memory-gb 0.1.*0.5"),
        ({"memory_gb": float("nan")}, "--memory-gb nan.*0.5"),
        ({"kind": "serial", "workers": 4}, "serial.*--cluster local"),
        ({"kind": "slurm"}, "slurm.*--workers"),
        ({"kind": "slurm", "workers": 2, "walltime": "4h"}, "--walltime 4h.*H:MM:SS"),
        ({"kind": "slurm", "workers": 2, "walltime": "0:05:00"}, "--walltime 0:05:00.*0:10:00"),
        ({"queue": "UI"}, "UI.*--cluster slurm"),
        ({"extra": ("-pe smp 2",)}, "-pe smp 2.*--cluster slurm"),
    ],
)
def test_settings_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Cluster(**settings)  # type: ignore[arg-type]


def test_workers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="--workers 2 with --memory-gb 5000 need 10000 GB"):
        Cluster(workers=2, memory_gb=5000).workers_for(10)
    with pytest.raises(InputError, match="--workers 1 with --memory-gb 5000"):
        Cluster(memory_gb=5000).workers_for(10)


def test_workers_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= Cluster(memory_gb=0.5).workers_for(1000) <= (os.cpu_count() or 1)
    assert Cluster(workers=2, memory_gb=0.5).workers_for(1) == 1
    monkeypatch.setenv("NSLOTS", "1")
    assert Cluster(memory_gb=0.5).workers_for(1000) == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"kind": "slurm", "workers": 2},
            r"--cluster slurm needs dask_jobqueue.*'vmat-diffusion\[cluster\]'",
        ),
        ({"dashboard": True}, r"--dashboard needs bokeh.*pip install 'vmat-diffusion\[dashboard\]'"),
    ],
)
def test_what_needs_an_extra_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, settings: dict, sentence: str
) -> None:
    Cluster(**settings)
    monkeypatch.setattr("vmat_diffusion.jobs.cluster.find_spec", lambda name: None)
    Cluster()
    with pytest.raises(InputError, match=sentence):
        Cluster(**settings)


def test_options_become_a_cluster() -> None:
    asked = ClusterOptions(
        cluster="sge",
        workers=8,
        memory_gb=4.0,
        queue="UI",
        project="ROB",
        walltime="12:00:00",
        batch_option=("-pe smp 2",),
        dashboard=True,
    )
    assert asked.where() == Cluster("sge", 8, 4.0, "UI", "ROB", "12:00:00", ("-pe smp 2",), True)
    assert ClusterOptions().where() == Cluster()
    with pytest.raises(InputError, match="--cluster moon"):
        ClusterOptions(cluster="moon")


@pytest.mark.parametrize("cluster", [Cluster(kind="serial"), Cluster(workers=1, memory_gb=0.8)])
def test_a_full_disk_ends_the_batch_with_a_sentence(tmp_path: Path, cluster: Cluster) -> None:
    jobs = {f"{n}": (n, tmp_path) for n in range(9)}
    done = []
    results = run_jobs(batch_jobs.fill_the_disk, jobs, cluster=cluster)
    with (
        pytest.raises(LimitError, match=r"1: .*case\.npz: the disk is full; free some space"),
        closing(results),
    ):
        for one in results:
            done.append(one.key)
    # Of two jobs that end together, the answer of the later one may arrive first.
    assert "8" not in done and (tmp_path / "0").exists()
    assert not (tmp_path / "8").exists()


def test_what_libraries_say_of_memory_is_understood(tmp_path: Path) -> None:
    jobs = {"large": (0,), "small": (1,)}
    results = run_jobs(batch_jobs.want_memory, jobs, cluster=Cluster(kind="serial"))
    assert next(results).result == 1
    with pytest.raises(LimitError, match=r"^large: .*memory.*What is done is kept$"):
        next(results)
