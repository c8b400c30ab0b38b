"""Looking before ticking, ticking before approving, and what an approval holds."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from web_room import PASSWORD, Client, SmallRoom, planned, small_room

from vmat_diffusion.web import reviews
from vmat_diffusion.web.audit import verify
from vmat_diffusion.web.checklist import checklist, needed
from vmat_diffusion.web.reviews import decisions
from vmat_diffusion.web.runs import run_entry

# What the viewer tells of the stand-in's plan, in its own words.
SEEN = (
    ("slices", {"structure": "PTV", "plane": "axial", "slices": [8, 9, 10]}),
    ("slices", {"structure": "CTV", "plane": "axial", "slices": [9]}),
    *((kind, {}) for kind in ("dvh", "goals", "difference", "complexity", "report")),
    ("arc", {"arc": 1}),
    ("arc", {"arc": 2}),
    *(("check", {"key": key}) for key in ("files agree", "gamma 3 %/3 mm", "complexity", "deliverable")),
)


@pytest.fixture
def room(tmp_path: Path) -> SmallRoom:
    return small_room(tmp_path / "room")


@pytest.fixture
def case_id(room: SmallRoom, case_folder: Path) -> str:
    return room.case(case_folder)


def _tell(client: Client, run: str, kind: str, detail: dict[str, Any]) -> None:
    answer = client.ask("POST", f"/api/runs/{run}/seen", {"kind": kind, "detail": detail})
    assert answer.status_code == 200


def _look(client: Client, run: str) -> None:
    for kind, detail in SEEN:
        _tell(client, run, kind, detail)


def _tick(client: Client, run: str, item: str, answer: str = "yes", note: str = "") -> Any:
    return client.ask("POST", f"/api/reviews/{run}/answers", {"item": item, "answer": answer, "note": note})


def _tick_all(client: Client, run: str) -> None:
    for item in checklist():
        assert _tick(client, run, item.id).status_code == 200, item.id


def _decide(client: Client, run: str, status: str = "APPROVED", **change: Any) -> Any:
    body = {"status": status, "reason": "looked at it", "password": PASSWORD}
    return client.ask("POST", f"/api/reviews/{run}/decision", body | change)


def _approved(room: SmallRoom, run: str, by: str = "reviewer") -> Client:
    client = room.client(by)
    _look(client, run)
    _tick_all(client, run)
    answer = _decide(client, run)
    assert answer.json() == {"status": "APPROVED"}
    return client


def _missing(client: Client, run: str) -> dict[str, list[str]]:
    lines = client.ask("GET", f"/api/reviews/{run}/lines").json()["lines"]
    return {line["id"]: line["missing"] for line in lines}


def test_a_line_opens_when_its_evidence_was_seen(room: SmallRoom, case_id: str) -> None:
    run, client = planned(room, case_id), room.client("reviewer")
    assert _missing(client, run)["coverage"] == [
        "slice:PTV:8",
        "slice:PTV:9",
        "slice:PTV:10",
        "slice:CTV:9",
        "dvh",
    ]
    _tell(client, run, "slices", {"structure": "PTV", "plane": "axial", "slices": [8, 9, 10]})
    _tell(client, run, "dvh", {})
    answer = _tick(client, run, "coverage")
    assert answer.status_code == 409 and "1 pieces of evidence" in answer.json()["error"]
    _tell(client, run, "slices", {"structure": "CTV", "plane": "axial", "slices": [9]})
    assert _tick(client, run, "coverage").status_code == 200
    assert _tick(client, run, "concerns").status_code == 409
    _tell(client, run, "check", {"key": "complexity"})
    assert _tick(client, run, "concerns").status_code == 200
    assert _tick(client, run, "clearance", "no").status_code == 200, "a no needs no evidence"


def test_what_others_saw_counts_for_them(room: SmallRoom, case_id: str) -> None:
    run = planned(room, case_id)
    _look(room.client("both"), run)
    _look(room.client("planner"), run)
    assert _tick(room.client("reviewer"), run, "coverage").status_code == 409
    with room.room.store.read() as db:
        assert {row["user_id"] for row in db.execute("SELECT user_id FROM evidence")} == {room.ids["both"]}


@pytest.mark.parametrize(
    ("kind", "detail"),
    [
        ("slices", {"structure": "PTV", "plane": "coronal", "slices": [8]}),
        ("slices", {"structure": "PTV", "plane": "axial", "slices": "8"}),
        ("slices", {"structure": "OTHER", "plane": "axial", "slices": [8]}),
        ("slices", {"structure": "PTV", "plane": "axial", "slices": [7, -8, 1e9, None, [8]]}),
        ("check", {"key": ["complexity"]}),
        ("arc", {"arc": 3}),
        ("all", {}),
        ("", {"key": "x" * 1000}),
    ],
)
def test_what_no_line_asks_for_is_not_noted(
    room: SmallRoom, case_id: str, kind: str, detail: dict[str, Any]
) -> None:
    run, client = planned(room, case_id), room.client("reviewer")
    before = _missing(client, run)
    _tell(client, run, kind, detail)
    assert _missing(client, run) == before


def test_slices_cannot_pass_faster_than_one_can_look(
    room: SmallRoom, case_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, client = planned(room, case_id), room.client("reviewer")
    monkeypatch.setattr(reviews, "_SLICES_PER_S", 1)
    monkeypatch.setattr(reviews, "_LONGEST_TOLD_S", 2)
    _tell(client, run, "slices", {"structure": "PTV", "plane": "axial", "slices": [8, 9, 10]})
    assert len([key for key in _missing(client, run)["coverage"] if "PTV" in key]) == 1


def test_every_line_has_a_source_and_known_evidence(room: SmallRoom, case_id: str) -> None:
    run = run_entry(room.room, planned(room, case_id))
    record = json.loads((room.room.run_folder(run.id) / "run.json").read_text())
    assert len({item.id for item in checklist()}) == len(checklist()) >= 15
    for item in checklist():
        assert item.source and item.text
        needed(item, run, record)
    assert needed(next(i for i in checklist() if i.id == "concerns"), run, record) == ("check:complexity",)


def test_approval_needs_all_lines_and_the_password(room: SmallRoom, case_id: str) -> None:
    run, client = planned(room, case_id), room.client("reviewer")
    answer = _decide(client, run)
    assert answer.status_code == 409 and f"{len(checklist())} lines" in answer.json()["error"]
    _look(client, run)
    _tick_all(client, run)
    assert _decide(client, run, password="wrong password").status_code == 403
    assert _decide(client, run, reason="  ").status_code == 400
    assert client.ask("GET", f"/api/reviews/{run}").json()["status"] == "UNAPPROVED"
    assert _decide(client, run).json() == {"status": "APPROVED"}
    (made,) = decisions(room.room, run)
    assert (made.user_id, made.status, made.reason) == (room.ids["reviewer"], "APPROVED", "looked at it")
    assert [line["answer"] for line in made.checklist] == ["yes"] * len(checklist())
    assert verify(room.room.store).faults == ()


def test_a_no_stands_in_the_way_and_not_applicable_needs_a_note(room: SmallRoom, case_id: str) -> None:
    run, client = planned(room, case_id), room.client("reviewer")
    _look(client, run)
    _tick_all(client, run)
    assert _tick(client, run, "previous", "not applicable").status_code == 400
    assert _tick(client, run, "previous", "not applicable", "first course").status_code == 200
    _tick(client, run, "clearance", "no")
    answer = _decide(client, run)
    assert answer.status_code == 409 and "answered with no" in answer.json()["error"]
    assert _decide(client, run, "REJECTED").json() == {"status": "REJECTED"}


@pytest.mark.parametrize("outcome", ["FAILED", "INCONCLUSIVE"])
def test_what_did_not_pass_the_gate_cannot_be_approved(room: SmallRoom, case_id: str, outcome: str) -> None:
    run, client = planned(room, case_id, outcome=outcome), room.client("reviewer")
    _look(client, run)
    for item in checklist():
        _tick(client, run, item.id)
    answer = _decide(client, run)
    assert answer.status_code == 409 and outcome in answer.json()["error"]
    assert decisions(room.room, run) == []
    assert _decide(client, run, "REJECTED").status_code == 200


@pytest.mark.parametrize("allowed", [False, True])
def test_own_plans_are_approved_only_where_the_room_allows_it(
    tmp_path: Path, case_folder: Path, allowed: bool
) -> None:
    room = small_room(tmp_path / "room", allow_own_approval=allowed)
    run, client = planned(room, room.case(case_folder), by="both"), room.client("both")
    _look(client, run)
    _tick_all(client, run)
    answer = _decide(client, run)
    assert answer.status_code == (200 if allowed else 409)
    assert allowed or "another reviewer" in answer.json()["error"]


def test_planners_and_admins_cannot_decide(room: SmallRoom, case_id: str) -> None:
    run = planned(room, case_id)
    for name in ("planner", "admin"):
        assert _decide(room.client(name), run, "REJECTED").status_code == 403
        assert _tick(room.client(name), run, "clearance", "no").status_code == 403


@pytest.mark.parametrize("file", ["RP.dcm", "RD.dcm", "run.json"])
def test_files_that_changed_cannot_be_approved(room: SmallRoom, case_id: str, file: str) -> None:
    run, client = planned(room, case_id), room.client("reviewer")
    _look(client, run)
    _tick_all(client, run)
    path = room.room.run_folder(run) / file
    path.write_bytes(path.read_bytes() + b" ")
    answer = _decide(client, run)
    assert answer.status_code == 409 and f"{file} was changed" in answer.json()["error"]


def test_a_case_that_changed_cannot_be_approved(room: SmallRoom, case_id: str) -> None:
    run, client = planned(room, case_id), room.client("reviewer")
    _look(client, run)
    _tick_all(client, run)
    (room.room.case_folder("Doe^John") / "another.dcm").write_bytes(b"x")
    assert "the case's files were changed" in _decide(client, run).json()["error"]


def test_an_approved_plan_is_fixed(room: SmallRoom, case_id: str) -> None:
    run = planned(room, case_id)
    client = _approved(room, run)
    assert _tick(client, run, "clearance", "no").status_code == 409
    assert _decide(client, run).status_code == 409
    assert _decide(client, run, "REJECTED").status_code == 409
    folder = room.room.run_folder(run)
    assert all(not path.stat().st_mode & 0o222 for path in [folder, folder / "RP.dcm"])


def test_files_leave_the_room_only_as_they_were_approved(room: SmallRoom, case_id: str) -> None:
    run = planned(room, case_id)
    client = room.client("planner")
    assert client.ask("GET", f"/api/reviews/{run}/files/RP.dcm").status_code == 409
    _approved(room, run)
    answer = client.ask("GET", f"/api/reviews/{run}/files/RP.dcm")
    assert answer.content == b"<p>RP.dcm</p>" and "attachment" in answer.headers["content-disposition"]
    for name in ("run.json", "..%2F..%2Froom.sqlite", "case"):
        assert client.ask("GET", f"/api/reviews/{run}/files/{name}").status_code == 404
    file = room.room.run_folder(run) / "RP.dcm"
    file.chmod(0o600)
    file.write_bytes(b"changed")
    answer = client.ask("GET", f"/api/reviews/{run}/files/RP.dcm")
    assert answer.status_code == 409 and "RP.dcm was changed" in answer.json()["error"]


def test_a_newer_approval_supersedes_and_an_approval_can_be_taken_back(room: SmallRoom, case_id: str) -> None:
    first, second = planned(room, case_id), planned(room, case_id)
    _approved(room, first)
    client = _approved(room, second)
    assert [d.status for d in decisions(room.room, first)] == ["APPROVED", "SUPERSEDED"]
    assert decisions(room.room, first)[1].reason == "version 2 of the plan was approved"
    assert _decide(client, first, "UNAPPROVED").status_code == 409
    assert _decide(client, second, "UNAPPROVED").json() == {"status": "UNAPPROVED"}
    assert client.ask("GET", f"/api/reviews/{second}/files/RP.dcm").status_code == 409
    assert _decide(client, second, "SUPERSEDED").status_code == 409
    listed = client.ask("GET", "/api/worklist").json()["cases"][0]["runs"]
    assert {run["version"]: run["status"] for run in listed} == {1: "SUPERSEDED", 2: "UNAPPROVED"}
    assert verify(room.room.store).faults == ()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE decisions SET status = 'REJECTED'",
        "UPDATE decisions SET reason = 'another'",
        "DELETE FROM decisions",
    ],
)
def test_a_decision_cannot_be_changed_unnoticed(room: SmallRoom, case_id: str, statement: str) -> None:
    _approved(room, planned(room, case_id))
    with pytest.raises(sqlite3.IntegrityError, match="can only be added to"), room.room.store.write() as db:
        db.execute(statement)
    with room.room.store.write() as db:
        db.execute("DROP TRIGGER decisions_UPDATE")
        db.execute("DROP TRIGGER decisions_DELETE")
        db.execute(statement)
    (fault,) = verify(room.room.store).faults
    assert "decision 1" in fault


def test_wrong_signatures_are_slowed_down_too(room: SmallRoom, case_id: str) -> None:
    run, client = planned(room, case_id), room.client("reviewer")
    found = [_decide(client, run, "REJECTED", password="wrong").status_code for _ in range(7)]
    assert found == [403] * 5 + [429] * 2


def test_the_report_may_run_and_load_nothing(room: SmallRoom, case_id: str) -> None:
    run = planned(room, case_id)
    answer = room.client("planner").ask("GET", f"/api/reviews/{run}/report")
    policy = answer.headers["content-security-policy"]
    assert answer.text == "<p>report.html</p>"
    assert policy.startswith("sandbox; default-src 'none'") and "script" not in policy


def test_reasons_and_names_stay_out_of_the_audit(room: SmallRoom, case_id: str) -> None:
    run, client = planned(room, case_id), room.client("reviewer")
    assert _decide(client, run, "REJECTED", reason="John Doe moved").status_code == 200
    with room.room.store.read() as db:
        text = str([tuple(row) for row in db.execute("SELECT * FROM audit")])
    assert "REJECTED" in text and "Doe" not in text
