"""The queue: no job is lost or made twice, whatever is killed and whenever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from web_room import WORKER, SmallRoom, small_room

from vmat_diffusion.errors import PlanError
from vmat_diffusion.files import this_process
from vmat_diffusion.web.audit import verify
from vmat_diffusion.web.queue import jobs, worker
from vmat_diffusion.web.queue.jobs import Claim, beat, claim, give_up, job_rows, recover, take
from vmat_diffusion.web.queue.supervisor import Supervisor
from vmat_diffusion.web.room import RefusedError
from vmat_diffusion.web.runs import runs


@pytest.fixture
def room(tmp_path: Path) -> SmallRoom:
    return small_room(tmp_path / "room")


@pytest.fixture
def case_id(room: SmallRoom, case_folder: Path) -> str:
    return room.case(case_folder)


def _until(happens: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, f"{what} does not happen"
        time.sleep(0.05)


def test_a_job_becomes_the_next_version_of_its_case(room: SmallRoom, case_id: str) -> None:
    for version in (1, 2):
        job = room.job(case_id)
        assert room.worker(room.claimed()).wait(60) == 0
        assert room.state(job) == "done"
        (newest, *_) = runs(room.room)
        assert (newest.id, newest.version, newest.outcome) == (room.run_id(job), version, "PASSED")
        assert newest.slices == {"PTV": [8, 9, 10, 11, 12]}
        assert set(newest.files) == {"RP.dcm", "RD.dcm", "report.html", "run.json"}
    assert job_rows(room.room.store) == []


def test_a_case_is_ready_to_look_at_when_its_plan_is_made(room: SmallRoom, case_id: str) -> None:
    from vmat_diffusion.web.view import cases

    folder = room.room.case_folder("Doe^John")
    worker._make_ready(room.room, folder)
    store = cases.view_store(room.room.store.folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "read_scan", None)  # nothing is read any more
        assert store.images(folder).hu.shape and store.structures(folder)


def test_one_plan_at_a_time_in_the_order_of_the_queue(room: SmallRoom, case_id: str) -> None:
    first, second = room.job(case_id), room.job(case_id)
    assert [job["place"] for job in reversed(job_rows(room.room.store))] == [1, 2]
    assert room.claimed().job_id == first
    assert claim(room.room) is None
    assert room.state(second) == "queued"


def test_a_claim_is_taken_once(room: SmallRoom, case_id: str) -> None:
    room.job(case_id)
    given = room.claimed()
    assert take(room.room.store, given, this_process()) is not None
    assert take(room.room.store, given, this_process()) is None
    assert take(room.room.store, Claim(given.job_id, "another"), this_process()) is None


def test_a_worker_that_lost_its_job_can_write_nothing(room: SmallRoom, case_id: str) -> None:
    job = room.job(case_id)
    old = room.claimed()
    take(room.room.store, old, {"pid": _dead_pid(), "host": this_process()["host"], "started": "long ago"})
    recover(room.room)
    assert room.state(job) == "queued"
    new = room.claimed()
    assert beat(room.room.store, old, "optimise", 0.5, 1.0) == "lost"
    assert not give_up(room.room.store, old, "failed", "late")
    assert beat(room.room.store, new, "optimise", 0.5, 1.0) == "go on"
    assert room.state(job) == "running"


def _dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_a_worker_that_never_came_gives_its_job_back(
    room: SmallRoom, case_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = room.job(case_id)
    given = room.claimed()
    recover(room.room)
    assert room.state(job) == "running"
    later = jobs.time.time() + jobs.LEASE_S + 1
    monkeypatch.setattr(jobs.time, "time", lambda: later)
    recover(room.room)
    assert room.state(job) == "queued"
    assert take(room.room.store, given, this_process()) is None


def test_a_worker_of_another_computer_is_left_alone_and_its_job_goes_on(
    room: SmallRoom, case_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = room.job(case_id)
    bystander = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True
    )
    take(room.room.store, room.claimed(), {**this_process(), "pid": bystander.pid, "host": "another"})
    recover(room.room)
    assert room.state(job) == "running"
    later = jobs.time.time() + jobs.LEASE_S + 1
    monkeypatch.setattr(jobs.time, "time", lambda: later)
    recover(room.room)
    assert room.state(job) == "queued"
    assert bystander.poll() is None, "the number of the process is another's by now"
    os.killpg(bystander.pid, signal.SIGKILL)
    bystander.wait()


def test_a_worker_that_stands_still_is_ended_before_its_job_goes_on(
    room: SmallRoom, case_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = room.job(case_id)
    worker = room.worker(room.claimed(), ROOM_TEST_SECONDS="600")
    _until(lambda: job_rows(room.room.store)[0]["stage"] == "optimise", "the search")
    os.killpg(worker.pid, signal.SIGSTOP)
    later = jobs.time.time() + jobs.LEASE_S + 5
    monkeypatch.setattr(jobs.time, "time", lambda: later)
    recover(room.room)
    assert worker.wait(10) == -signal.SIGKILL
    recover(room.room)
    assert room.state(job) == "queued"


def test_a_job_whose_workers_all_end_is_given_up(room: SmallRoom, case_id: str) -> None:
    job = room.job(case_id)
    for attempt in range(jobs.ATTEMPTS_MOST):
        assert room.state(job) == "queued", attempt
        worker = room.worker(room.claimed(), ROOM_TEST_SECONDS="600")
        _until(lambda: job_rows(room.room.store)[0]["stage"] == "optimise", "the search")
        os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()
        recover(room.room)
    assert room.state(job) == "failed"
    assert "memory" in job_rows(room.room.store)[0]["error"]


def test_a_plan_that_was_whole_before_the_kill_is_not_made_again(
    room: SmallRoom, case_id: str, tmp_path: Path
) -> None:
    job, log = room.job(case_id), tmp_path / "log"
    room.claimed()
    script = Path(WORKER[1])
    code = (
        f"import sys; sys.path.insert(0, {str(script.parent)!r})\n"
        "from stand_in_worker import plan_case\nfrom pathlib import Path\n"
        f"plan_case(Path('x'), Path({str(room.room.run_folder(room.run_id(job)))!r}), None, progress=None)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"ROOM_TEST_LOG": str(log)})
    with room.room.store.write() as db:
        db.execute("UPDATE jobs SET lease = 0")
    recover(room.room)
    assert room.worker(room.claimed(), ROOM_TEST_LOG=str(log)).wait(60) == 0
    assert room.state(job) == "done"
    assert Counter(line.split()[0] for line in log.read_text().splitlines()) == {"begun": 1, "made": 1}


@pytest.mark.parametrize("attempts", [1, jobs.ATTEMPTS_MOST])
def test_a_plan_whose_process_was_killed_before_it_was_in_its_place_is_taken(
    room: SmallRoom, case_id: str, tmp_path: Path, attempts: int
) -> None:
    job, log = room.job(case_id), tmp_path / "log"
    given = room.claimed()
    code = (
        f"import os, sys; sys.path.insert(0, {str(Path(WORKER[1]).parent)!r})\n"
        "from vmat_diffusion.workflow import output\n"
        "output._publish = lambda *_: os.kill(os.getpid(), 9)\n"
        "from stand_in_worker import plan_case\nfrom pathlib import Path\n"
        f"plan_case(Path('x'), Path({str(room.room.run_folder(room.run_id(job)))!r}), None, progress=None)"
    )
    killed = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"ROOM_TEST_LOG": str(log)})
    take(room.room.store, given, {**this_process(), "pid": killed.pid, "started": "then"})
    with room.room.store.write() as db:
        db.execute("UPDATE jobs SET attempts = ?", (attempts,))
    assert os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT) is not None  # it stays a zombie
    recover(room.room)
    assert room.state(job) == "queued"
    assert room.worker(room.claimed(), ROOM_TEST_LOG=str(log)).wait(60) == 0
    killed.wait()
    assert room.state(job) == "done"
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["begun"]


def test_a_plan_that_came_into_its_place_meanwhile_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def filled(_: Path, out: Path, *__: object, **___: object) -> None:
        out.mkdir()
        (out / "run.json").write_text("{}")
        raise PlanError("output folder is not empty")

    monkeypatch.setattr(worker.workflow, "plan_case", filled)
    monkeypatch.setattr(worker, "_read", lambda *_: "the case")
    heart = SimpleNamespace(progress=None)
    assert worker._planned(tmp_path, tmp_path / "out", None, heart) == ("the case", {})  # type: ignore[comparison-overlap, arg-type]


def test_a_waiting_job_is_cancelled_at_once_and_a_running_one_leaves_nothing(
    room: SmallRoom, case_id: str
) -> None:
    running, waiting = room.job(case_id), room.job(case_id)
    worker = room.worker(room.claimed(), ROOM_TEST_SECONDS="600")
    _until(lambda: job_rows(room.room.store)[1]["stage"] == "optimise", "the search")
    client = room.client("planner")
    assert client.ask("POST", f"/api/jobs/{waiting}/cancel").status_code == 200
    assert room.state(waiting) == "cancelled"
    assert client.ask("POST", f"/api/jobs/{running}/cancel").status_code == 200
    assert worker.wait(30) == 0
    assert room.state(running) == "cancelled"
    assert list((room.room.store.folder / "runs").iterdir()) == []
    assert client.ask("POST", f"/api/jobs/{running}/cancel").status_code == 409


def test_others_cannot_cancel(room: SmallRoom, case_id: str) -> None:
    job = room.job(case_id)
    assert room.client("both").ask("POST", f"/api/jobs/{job}/cancel").status_code == 409
    assert room.state(job) == "queued"


def test_a_failure_is_told_without_the_name_of_the_case(room: SmallRoom, case_id: str) -> None:
    job = room.job(case_id)
    assert room.worker(room.claimed(), ROOM_TEST_FAILS="1").wait(60) == 0
    assert room.state(job) == "failed"
    error = job_rows(room.room.store)[0]["error"]
    assert error.endswith("of no use; give another one") and "Doe" not in error


def test_the_rest_of_the_time_is_told(room: SmallRoom, case_id: str) -> None:
    room.job(case_id)
    worker = room.worker(room.claimed(), ROOM_TEST_SECONDS="4")
    _until(lambda: job_rows(room.room.store)[0]["share"] > 0.2, "progress")
    found = job_rows(room.room.store)[0]
    # Some of 4 s of the search are left, and 97 s for what follows where no plan was made before.
    assert found["stage"] == "optimise" and 97 < found["left_s"] < 150
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()


def test_stages_of_the_search_belong_to_it(room: SmallRoom, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = {"read": 5.0, "optimise": 300.0, "check": 90.0, "write": 2.0, "report": 5.0}
    moment = 100.0
    monkeypatch.setattr(worker.time, "monotonic", lambda: moment)
    heart = worker._Heart(room.room.store, Claim("", ""), usual)
    found = []
    for seconds, stage, share in (
        (0, "read", 0.0),
        (5, "optimise", 0.0),
        (30, "fluence maps", 0.5),
        (100, "dose", 0.5),
        (200, "check", 0.0),
        (45, "check", 0.5),
        (60, "write", 0.0),
    ):
        moment += seconds
        heart.progress(stage, share, "")
        found.append(heart.left_s())
    assert found == [402, 397, 367, 267, 97, 52, 7]


def test_too_many_jobs_are_refused(room: SmallRoom, case_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "WAITING_MOST", 2)
    room.job(case_id)
    room.job(case_id)
    with pytest.raises(RefusedError, match="2 plans wait"):
        room.job(case_id)


def test_plans_are_asked_for_by_name(room: SmallRoom, case_id: str, tmp_path: Path) -> None:
    client = room.client("planner")
    room.sheet()
    names = [sheet["name"] for sheet in client.ask("GET", "/api/choices").json()["goals"]]
    assert names[0] == "small" and "prostate_60_20" in names
    body = {"case_id": case_id, "goals": "small"}
    for wrong in (
        {"goals": str(tmp_path / "room" / "goals" / "small.toml")},
        {"goals": "../goals/small"},
        {"machine": "/etc/passwd"},
        {"case_id": "../../etc"},
        {"improve": "/etc/passwd"},
        {"search_minutes": -1},
    ):
        assert client.ask("POST", "/api/jobs", body | wrong).status_code in (400, 404, 422), wrong
    assert client.ask("POST", "/api/jobs", body).status_code == 200


def _kill_at_random(room: SmallRoom, moments: list[float], log: Path, count: int) -> None:
    """Servers and workers are killed after each of the moments, until all jobs are done."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from vmat_diffusion.web.queue.supervisor import Supervisor\n"
        "from vmat_diffusion.web.room import Room, Rules\nfrom vmat_diffusion.web.store import open_store\n"
        "s = Supervisor(Room(open_store(Path(sys.argv[1])), Rules(workers=2)), sys.argv[2:])\n"
        "s.start()\ntime.sleep(600)\n"
    )
    environment = os.environ | {"ROOM_TEST_LOG": str(log), "ROOM_TEST_SECONDS": "0.5"}

    def started() -> subprocess.Popen[bytes]:
        words = [sys.executable, "-c", code, str(room.room.store.folder), *WORKER]
        return subprocess.Popen(words, env=environment, start_new_session=True)

    def done() -> bool:
        return len(runs(room.room)) == count

    server = started()
    for k, moment in enumerate(moments):
        time.sleep(moment)
        with room.room.store.read() as db:
            found = db.execute("SELECT worker FROM jobs WHERE worker IS NOT NULL AND state = 'running'")
            workers = [jobs.json.loads(row["worker"])["pid"] for row in found]
        if k % 2 and workers:
            jobs.end_group(workers[0])
        else:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            server = started()
        with room.room.store.write() as db:  # that many kills are no lack of memory
            db.execute("UPDATE jobs SET attempts = 0")
    _until(done, "the last plan", 120)
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _require_each_once(room: SmallRoom, log: Path, asked: list[str]) -> None:
    assert [room.state(job) for job in asked] == ["done"] * len(asked)
    made = Counter(line for line in log.read_text().splitlines() if line.startswith("made"))
    assert max(made.values()) == 1, "a plan was made twice"
    folders = {path.name for path in (room.room.store.folder / "runs").iterdir() if path.name[0] != "."}
    assert folders == {room.run_id(job) for job in asked}
    assert sorted(run.version for run in runs(room.room)) == list(range(1, len(asked) + 1))
    assert verify(room.room.store).faults == ()


@pytest.mark.parametrize(
    ("kills", "count"), [(4, 2), pytest.param(50, 12, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_kills_lose_no_job_and_make_none_twice(
    room: SmallRoom, case_id: str, tmp_path: Path, kills: int, count: int
) -> None:
    import random

    draw = random.Random(kills)
    asked = [room.job(case_id) for _ in range(count)]
    _kill_at_random(room, [draw.uniform(0.2, 3.0) for _ in range(kills)], tmp_path / "log", count)
    _require_each_once(room, tmp_path / "log", asked)


def test_the_server_starts_waiting_jobs(room: SmallRoom, case_id: str) -> None:
    job = room.job(case_id)
    supervisor = Supervisor(room.room, WORKER)
    supervisor.start()
    try:
        _until(lambda: room.state(job) == "done", "the plan")
    finally:
        supervisor.stop()
