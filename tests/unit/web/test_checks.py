"""A check that stayed undecided goes on as the next version, once at a time, and the old one stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from web_room import SmallRoom, planned, small_room

from vmat_diffusion.web.audit import verify
from vmat_diffusion.web.queue.checks import decided_since
from vmat_diffusion.web.queue.jobs import job_rows
from vmat_diffusion.web.runs import file_hashes, run_entry, runs


@pytest.fixture
def room(tmp_path: Path) -> SmallRoom:
    return small_room(tmp_path / "room")


@pytest.fixture
def case_id(room: SmallRoom, case_folder: Path) -> str:
    return room.case(case_folder)


def test_the_check_goes_on_as_the_next_version(room: SmallRoom, case_id: str, tmp_path: Path) -> None:
    old, log = planned(room, case_id, outcome="INCONCLUSIVE", is_open=True), tmp_path / "log"
    client = room.client("planner")
    (listed,) = client.ask("GET", "/api/worklist").json()["cases"][0]["runs"]
    assert listed["open_check"] is True
    assert client.ask("GET", f"/api/reviews/{old}").json()["open_check"] is True
    obstacles = room.client("reviewer").ask("GET", f"/api/reviews/{old}/lines").json()["obstacles"]
    assert any("Check again in the worklist" in sentence for sentence in obstacles)
    asked = client.ask("POST", "/api/checks", {"run_id": old, "check_minutes": 20})
    assert asked.status_code == 200, asked.text
    again = client.ask("POST", "/api/checks", {"run_id": old})
    assert again.status_code == 409 and "goes on already" in again.json()["error"]
    (waiting,) = job_rows(room.room.store)
    assert waiting["settings"] == {"check_again": old, "check_minutes": 20.0}
    assert room.worker(room.claimed(), ROOM_TEST_LOG=str(log)).wait(60) == 0
    assert log.read_text() == f"checked {old} 20.0\n"
    new = room.run_id(asked.json()["job_id"])
    entry, before = run_entry(room.room, new), run_entry(room.room, old)
    assert (entry.version, entry.outcome, entry.slices) == (2, "PASSED", before.slices)
    assert before.outcome == "INCONCLUSIVE" and file_hashes(room.room.run_folder(old)) == before.files
    assert (room.room.run_folder(new) / "case").resolve() == room.room.case_folder("Doe^John").resolve()
    assert decided_since(room.room) == {old: new}
    assert verify(room.room.store).faults == ()


@pytest.mark.parametrize(
    ("outcome", "is_open"), [("INCONCLUSIVE", False), ("PASSED", True), ("FAILED", True)], ids=str
)
def test_only_what_is_open_goes_on(room: SmallRoom, case_id: str, outcome: str, is_open: bool) -> None:
    run = planned(room, case_id, outcome=outcome, is_open=is_open)
    answer = room.client("planner").ask("POST", "/api/checks", {"run_id": run})
    assert answer.status_code == 409 and "no check that is open" in answer.json()["error"]
    assert room.client("planner").ask("POST", "/api/checks", {"run_id": "0" * 32}).status_code == 404


def test_a_plan_that_was_changed_since_does_not_go_on(room: SmallRoom, case_id: str) -> None:
    run = planned(room, case_id, outcome="INCONCLUSIVE", is_open=True)
    job = room.client("planner").ask("POST", "/api/checks", {"run_id": run}).json()["job_id"]
    (room.room.run_folder(run) / "open_check" / "state.json").write_text("[]")
    assert room.worker(room.claimed()).wait(60) == 0
    assert room.state(job) == "failed" and "were changed" in job_rows(room.room.store)[0]["error"]
    assert [entry.id for entry in runs(room.room)] == [run]
    assert [path.name for path in (room.room.store.folder / "runs").iterdir()] == [run]
