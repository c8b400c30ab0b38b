"""Several plans at the same time: processes, threads, progress, Ctrl-C and failures."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vmat_diffusion.errors import GoalError, LimitError, PlanError
from vmat_diffusion.jobs import together as candidates
from vmat_diffusion.jobs.together import Job, made_together, turns_of, workers_for
from vmat_diffusion.progress import Progress

Told = list[tuple[str, float, str]]


def threads_of(number: int, report: Progress) -> tuple[int, str]:
    """What a process was given; it lives in a module that the process can import."""
    report("search", 0.5, "half")
    return number, os.environ["NUMBA_NUM_THREADS"]


def searching(folder: Path, report: Progress) -> str:
    """A search that goes on until it is interrupted, and then has a plan."""
    (folder / str(os.getpid())).touch()
    try:
        while True:
            time.sleep(0.02)
    except KeyboardInterrupt:
        return "best so far"


def preparing(folder: Path, report: Progress) -> str:
    """A search that has no plan yet when it is interrupted."""
    (folder / str(os.getpid())).touch()
    time.sleep(60)
    return "never"


def refusing(report: Progress) -> str:
    """A job that cannot be done."""
    raise GoalError("the targets are too wide")


def crashing(report: Progress) -> str:
    """A job that ends without a word to its caller."""
    raise ValueError("no such thing")


def killed(report: object) -> None:
    """As the system ends a process when the memory is used up."""
    os.kill(os.getpid(), signal.SIGKILL)


def without_memory(report: object) -> None:
    raise MemoryError


def with_a_full_disk(report: object) -> None:
    raise OSError(28, "No space left on device", "/full")


def aborted_by_a_library(report: object) -> None:
    print("terminate called after throwing an instance of 'std::bad_alloc'", file=sys.stderr, flush=True)
    os.abort()


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes find this module, and two cores."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *_paths()]))
    monkeypatch.setattr(candidates, "cores", lambda: 2)


def _paths() -> list[str]:
    return [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]


def interrupted_when(started: Callable[[], bool]) -> threading.Thread:
    """Ctrl-C for the main thread as soon as the jobs are under way."""

    def wait() -> None:
        limit = time.monotonic() + 60
        while not started() and time.monotonic() < limit:
            time.sleep(0.02)
        _thread.interrupt_main()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_plans_come_in_the_order_of_their_jobs_from_a_share_of_the_cores(two_cores: None) -> None:
    told: Told = []
    jobs = [Job(threads_of, (number,), {}) for number in range(3)]
    made = made_together(jobs, lambda *said: told.append(said))
    assert made == [(0, "1"), (1, "1"), (2, "1")]
    assert {stage for stage, _, _ in told} == {"candidates"}
    assert all(0 <= share <= 1 for _, share, _ in told)


def test_ctrl_c_takes_the_best_of_those_under_way_and_begins_no_other(
    two_cores: None, tmp_path: Path
) -> None:
    jobs = [Job(searching, (tmp_path,), {}), Job(preparing, (tmp_path,), {}), Job(searching, (tmp_path,), {})]
    interrupted_when(lambda: len(list(tmp_path.iterdir())) == 2)
    assert made_together(jobs, lambda *said: None) == ["best so far", None, None]
    for process in tmp_path.iterdir():
        assert not Path("/proc", process.name).exists()


def test_ctrl_c_before_there_is_any_plan_ends_it(two_cores: None, tmp_path: Path) -> None:
    interrupted_when(lambda: len(list(tmp_path.iterdir())) == 2)
    with pytest.raises(KeyboardInterrupt):
        made_together([Job(preparing, (tmp_path,), {})] * 2, lambda *said: None)


def test_what_a_job_refuses_is_refused_and_ends_the_others(two_cores: None, tmp_path: Path) -> None:
    with pytest.raises(GoalError, match=r"^the targets are too wide$"):
        made_together([Job(refusing, (), {}), Job(searching, (tmp_path,), {})], lambda *said: None)
    for process in tmp_path.iterdir():
        assert not Path("/proc", process.name).exists()


def test_a_job_that_crashes_is_named_with_its_last_words(two_cores: None) -> None:
    with pytest.raises(PlanError, match=r"candidate 1 failed with exit code 1: ValueError: no such thing;"):
        made_together([Job(crashing, (), {})], lambda *said: None)


def test_cores_are_shared_out_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "cores", lambda: 4)
    assert (workers_for(2), workers_for(9)) == (2, 4)
    assert (turns_of(4), turns_of(5), turns_of(9)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (killed, r"^candidate 1: its process was killed by SIGKILL, probably .*fewer --candidates"),
        (without_memory, r"^candidate 1: the memory of this computer or its limit .*was too small"),
        (with_a_full_disk, r"^candidate 1: /full: the disk is full; free some space"),
        (aborted_by_a_library, r"^candidate 1: the memory of this computer"),
    ],
)
def test_a_limit_of_the_computer_is_a_sentence_with_its_remedy(
    two_cores: None, job: Callable, words: str
) -> None:
    with pytest.raises(LimitError, match=words) as refusal:
        made_together([Job(job, (), {})], lambda *said: None)
    assert "\n" not in str(refusal.value) and "defect" not in str(refusal.value)
