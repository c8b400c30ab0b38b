"""Training: what is seeded is there and nothing else, who finds it is told, and no copy is ever real."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from network_peers import planning_run
from pydicom import dcmread
from pydicom.dataset import Dataset
from web_room import PASSWORD, SmallRoom, small_room

from vmat_diffusion.dicom import read_case, read_plan
from vmat_diffusion.dicom.rtplan_parts.seeded_faults import FAULTS, draw_fault
from vmat_diffusion.errors import PlanError
from vmat_diffusion.files import content_hash, this_process
from vmat_diffusion.network.results import parcels_of_run
from vmat_diffusion.origin import uid_code
from vmat_diffusion.web.audit import verify
from vmat_diffusion.web.cases import cases
from vmat_diffusion.web.exercises import making
from vmat_diffusion.web.exercises.making import settle_exercises
from vmat_diffusion.web.queue.jobs import complete
from vmat_diffusion.web.runs import RunEntry, case_folder_of, file_hashes, run_entry
from vmat_diffusion.web.store import now

SEEDS = {draw_fault(seed).kind: seed for seed in range(60)}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = planning_run(tmp_path_factory.mktemp("made") / "run")
    (folder / "report.html").write_text(
        "<!doctype html><html><body class='x'><p>Plan report</p></body></html>"
    )
    plan = dcmread(folder / "RP.dcm")  # whose openings are symmetric: mirrored they would be the same
    for point in (p for beam in plan.BeamSequence for p in beam.ControlPointSequence):
        for device in point.get("BeamLimitingDevicePositionSequence") or ():
            if device.RTBeamLimitingDeviceType == "MLCX":
                device.LeafJawPositions = [v + 3.0 for v in device.LeafJawPositions]
    plan.save_as(folder / "RP.dcm")
    return folder


@pytest.fixture
def room(tmp_path: Path) -> SmallRoom:
    return small_room(tmp_path / "room")


def _entered(room: SmallRoom, made: Path, outcome: str = "PASSED", report: str = "") -> str:
    """The id of a real plan whose files are those of a planning run."""
    case_id = room.case(made.parent / "case")
    job = room.job(case_id)
    given, run_id = room.claimed(), room.run_id(job)
    folder = shutil.copytree(made, room.room.run_folder(run_id))
    if report:
        (folder / "report.html").write_text(report)
    entry = RunEntry(
        run_id, case_id, 0, room.ids["planner"], now(), outcome, file_hashes(folder), {"PTV": [8, 9]}
    )
    assert complete(room.room.store, given, entry, content_hash(room.room.case_folder("Doe^John")), {})
    return run_id


def _exercise(room: SmallRoom, run_id: str, kind: str) -> str:
    answer = room.client("admin").ask("POST", "/api/exercises", {"run_id": run_id, "seed": SEEDS[kind]})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["run_id"])


def _plan(room: SmallRoom, run_id: str) -> Any:
    return read_plan(room.room.run_folder(run_id) / "RP.dcm")


def _ptv_mm(room: SmallRoom, run_id: str) -> Any:
    case = read_case(case_folder_of(room.room, run_id))
    mask = case.structures["PTV"].mask
    return case.grid.points_mm(np.flatnonzero(mask)).mean(axis=0)


@pytest.mark.parametrize("kind", FAULTS)
def test_the_copy_has_its_fault_and_no_other(room: SmallRoom, made: Path, kind: str) -> None:
    real = _entered(room, made)
    before = {path: path.read_bytes() for path in room.room.store.folder.rglob("*.dcm")}
    copy = _exercise(room, real, kind)
    assert all(path.read_bytes() == content for path, content in before.items()), "the real plan stays"
    old, new = _plan(room, real), _plan(room, copy)
    shift = np.subtract(new.isocenter_mm, old.isocenter_mm)
    assert np.abs(shift).max() == pytest.approx(10.0 if kind == "isocentre" else 0.0, abs=1e-6)
    ratio = sum(arc.mu.sum() for arc in new.arcs) / sum(arc.mu.sum() for arc in old.arcs)
    assert ratio == pytest.approx(1.05 if kind == "MU" else 1.0, rel=1e-5)
    mirrored = [
        np.allclose(n.leaves_mm, -o.leaves_mm[:, ::-1]) for n, o in zip(new.arcs, old.arcs, strict=True)
    ]
    same = [np.allclose(n.leaves_mm, o.leaves_mm) for n, o in zip(new.arcs, old.arcs, strict=True)]
    assert all(same) is (kind != "bank") and (kind != "bank" or any(mirrored))
    moved = np.linalg.norm(_ptv_mm(room, copy) - _ptv_mm(room, real))
    assert moved == pytest.approx(10.0 if kind == "structures" else 0.0, abs=0.6)
    plan = dcmread(room.room.run_folder(copy) / "RP.dcm")
    dose = dcmread(room.room.run_folder(copy) / "RD.dcm")
    assert (plan.RTPlanLabel, plan.ApprovalStatus) == ("TRAINING", "UNAPPROVED")
    assert dose.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID == plan.SOPInstanceUID
    assert plan.SOPInstanceUID != dcmread(room.room.run_folder(real) / "RP.dcm").SOPInstanceUID
    assert (room.room.run_folder(copy) / "case").resolve() == case_folder_of(room.room, copy).resolve()
    assert verify(room.room.store).faults == ()


def _objects(*folders: Path) -> dict[str, Any]:
    files = [file for folder in folders for file in folder.rglob("*.dcm")]
    return {str(dataset.SOPInstanceUID): dataset for dataset in map(dcmread, files)}


@pytest.mark.parametrize("kind", ["none", "structures"])
def test_no_two_contents_share_a_uid_and_references_are_whole(
    room: SmallRoom, made: Path, kind: str, tmp_path: Path
) -> None:
    case_id = room.case(made.parent / "case")
    folder = room.room.case_folder("Doe^John")
    structures = next(d for d in _objects(folder).values() if d.Modality == "RTSTRUCT")
    clinic = dcmread(made / "RD.dcm")  # a dose of the clinic's that names the structure set
    clinic.SOPInstanceUID = clinic.file_meta.MediaStorageSOPInstanceUID = "1.2.3.77"
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = (
        structures.SOPClassUID,
        structures.SOPInstanceUID,
    )
    clinic.ReferencedStructureSetSequence = [reference]
    clinic.save_as(folder / "clinic.dcm")
    text = f"{structures.SOPInstanceUID} {uid_code(structures.SOPInstanceUID)}"
    real = _entered(room, made, report=f"<body>{text}</body>")
    assert run_entry(room.room, real).case_id == case_id
    copy = _exercise(room, real, kind)
    here = (room.room.run_folder(copy), case_folder_of(room.room, copy))
    old, new = _objects(made, folder), _objects(*here)
    for uid in old.keys() & new.keys():
        assert new[uid] == old[uid], f"{uid} is another {new[uid].Modality} in the copy"
    assert {d.Modality for uid, d in new.items() if uid not in old} == {"RTPLAN", "RTDOSE", "RTSTRUCT"}
    (set_uid,) = (uid for uid, d in new.items() if d.Modality == "RTSTRUCT")
    plan = dcmread(here[0] / "RP.dcm")
    assert plan.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID == set_uid
    (named,) = (d for d in new.values() if d.Modality == "RTDOSE" and "ReferencedStructureSetSequence" in d)
    assert named.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID == set_uid
    assert named.file_meta.MediaStorageSOPInstanceUID == named.SOPInstanceUID != "1.2.3.77"
    report = (here[0] / "report.html").read_text()
    assert f"{set_uid} {uid_code(set_uid)}" in report and structures.SOPInstanceUID not in report
    assert room.client("reviewer").ask("GET", f"/api/runs/{copy}/view").status_code == 200


@pytest.mark.parametrize("after", ["begun", "copied", "entered", "half moved"])
def test_what_a_killed_server_left_of_an_exercise_is_finished_or_removed(
    room: SmallRoom, made: Path, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    real = _entered(room, made)
    killed = subprocess.Popen(["true"])
    killed.wait()

    class Killed(BaseException):
        pass

    def ends(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(making, "this_process", lambda: {**this_process(), "pid": killed.pid})
        patch.setattr(making._Draft, "undo", lambda self: None)  # a kill leaves no time for it
        if after == "begun":
            patch.setattr(making, "_copy_run", ends)
        elif after == "copied":
            patch.setattr(making._Draft, "enter", ends)
        else:
            patch.setattr(making._Draft, "finish", ends)
        with pytest.raises(Killed):
            making.make_exercise(room.room, real, SEEDS["MU"], room.user("admin"))
    left = _hidden(room)
    assert left
    if after == "half moved":
        (run_part,) = (path for path in left if path.parent.name == "runs")
        run_part.rename(run_part.with_name(run_part.name[1:-5]))
    settle_exercises(room.room)
    assert _hidden(room) == []
    listed = room.client("admin").ask("GET", "/api/exercises").json()["exercises"]
    assert len(listed) == (after in ("entered", "half moved"))
    for exercise in listed:
        assert room.client("reviewer").ask("GET", f"/api/runs/{exercise['run_id']}/view").status_code == 200
    with room.room.store.read() as db:
        assert not db.execute("SELECT 1 FROM meta WHERE key LIKE 'exercise%'").fetchall()
    assert len(list((room.room.store.folder / "runs").iterdir())) == 1 + len(listed)
    assert verify(room.room.store).faults == ()


def test_rows_whose_folders_are_gone_are_removed_and_the_living_are_left(
    room: SmallRoom, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = _entered(room, made)
    with monkeypatch.context() as patch:
        patch.setattr(making._Draft, "finish", lambda self: True)
        copy = making.make_exercise(room.room, real, SEEDS["MU"], room.user("admin"))
    settle_exercises(room.room)
    assert _hidden(room), "its maker lives"
    for path in _hidden(room):
        shutil.rmtree(path)
    later = time.time() + making._LONGEST_S + 1
    monkeypatch.setattr(making.time, "time", lambda: later)
    settle_exercises(room.room)
    assert room.client("admin").ask("GET", "/api/exercises").json()["exercises"] == []
    assert room.client("reviewer").ask("GET", f"/api/reviews/{copy}").status_code == 404
    assert verify(room.room.store).faults == ()


def test_what_versions_without_notes_left_is_removed_too(room: SmallRoom, made: Path) -> None:
    real = _entered(room, made)
    dead, answered = (_exercise(room, real, kind) for kind in ("MU", "bank"))
    room.client("reviewer").ask("POST", f"/api/exercises/{answered}/answer", {"found": "none"})
    for run_id in (dead, answered):
        shutil.rmtree(room.room.run_folder(run_id))
    old = room.room.case_folder(".0123.part")
    old.mkdir()
    os.utime(old, (0, 0))
    young = room.room.case_folder(".4567.part")
    young.mkdir()
    settle_exercises(room.room)
    assert _hidden(room) == [young]
    listed = room.client("admin").ask("GET", "/api/exercises").json()["exercises"]
    assert [one["run_id"] for one in listed] == [answered], "who found what is kept"


def _hidden(room: SmallRoom) -> list[Path]:
    folder = room.room.store.folder
    return [path for part in ("runs", "cases") for path in (folder / part).iterdir() if path.name[0] == "."]


def test_one_seed_gives_one_fault() -> None:
    assert set(SEEDS) == set(FAULTS)
    assert all(draw_fault(seed) == draw_fault(seed) for seed in range(20))


def test_who_answers_is_told_and_scored_once(room: SmallRoom, made: Path) -> None:
    copy = _exercise(room, _entered(room, made), "MU")
    first, second, admin = room.client("reviewer"), room.client("both"), room.client("admin")
    shown = first.ask("GET", f"/api/reviews/{copy}")
    assert shown.json()["training"]["answer"] is None and "1.05" not in str(
        shown.json()["training"]["answer"]
    )
    answer = first.ask("POST", f"/api/exercises/{copy}/answer", {"found": "MU", "reason": "315 for 300"})
    assert answer.json()["answer"] == {
        "found": "MU",
        "fault": "MU",
        "right": True,
        "what": "the MU of every arc were multiplied by 1.05",
    }
    assert second.ask("GET", f"/api/reviews/{copy}").json()["training"]["answer"] is None
    again = first.ask("POST", f"/api/exercises/{copy}/answer", {"found": "none"})
    assert again.status_code == 409
    told = second.ask("POST", f"/api/exercises/{copy}/answer", {"found": "none"}).json()["answer"]
    assert (told["right"], told["fault"]) == (False, "MU")
    assert second.ask("POST", f"/api/exercises/{copy}/answer", {"found": "x"}).status_code == 400
    (kept,) = admin.ask("GET", "/api/exercises").json()["exercises"]
    assert [(a["by"], a["right"]) for a in kept["answers"]] == [("reviewer", True), ("both", False)]
    with room.room.store.read() as db:
        entries = str([tuple(row) for row in db.execute("SELECT * FROM audit WHERE action LIKE 'exercise%'")])
    assert "exercise made" in entries and "Doe" not in entries


def test_a_copy_is_never_real(room: SmallRoom, made: Path, tmp_path: Path) -> None:
    real = _entered(room, made)
    copy = _exercise(room, real, "bank")
    client = room.client("both")
    for status in ("APPROVED", "REJECTED"):
        body = {"status": status, "reason": "looked at it", "password": PASSWORD}
        answer = client.ask("POST", f"/api/reviews/{copy}/decision", body)
        assert answer.status_code == 409 and "training" in answer.json()["error"]
    assert client.ask("GET", f"/api/reviews/{copy}/files/RP.dcm").status_code == 409
    asked = {"case_id": run_entry(room.room, copy).case_id, "goals": "small"}
    answer = client.ask("POST", "/api/jobs", asked)
    assert answer.status_code == 409 and "wrong on purpose" in answer.json()["error"]
    with pytest.raises(PlanError, match="training exercise"):
        parcels_of_run(room.room.run_folder(copy), tmp_path)
    assert parcels_of_run(room.room.run_folder(real), tmp_path)
    refused = room.client("admin").ask("POST", "/api/exercises", {"run_id": copy, "seed": 1})
    assert refused.status_code == 409


def test_every_page_of_it_says_training(room: SmallRoom, made: Path) -> None:
    copy = _exercise(room, _entered(room, made), "none")
    client = room.client("reviewer")
    assert "TRAINING" in client.ask("GET", f"/api/reviews/{copy}/report").text
    assert client.ask("GET", f"/api/reviews/{copy}").json()["case"].startswith("TRAINING")
    listed = {
        run["id"]: run for case in client.ask("GET", "/api/worklist").json()["cases"] for run in case["runs"]
    }
    assert [listed[key]["training"] for key in listed] in ([True, False], [False, True])
    assert listed[copy]["training"]
    assert client.ask("GET", f"/api/runs/{copy}/view").json()["training"] is True
    assert sorted(case.label for case in cases(room.room))[0] == "Doe^John"


def test_only_what_passed_becomes_an_exercise(room: SmallRoom, made: Path) -> None:
    real = _entered(room, made, "FAILED")
    answer = room.client("admin").ask("POST", "/api/exercises", {"run_id": real, "seed": 1})
    assert answer.status_code == 409 and "FAILED" in answer.json()["error"]
    assert json.dumps(room.client("admin").ask("GET", "/api/exercises").json()["runs"]) == "[]"
