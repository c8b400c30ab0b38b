"""From received objects to a job of the review room and to its answer, without a network in between."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path

import pytest
from network_peers import Peer, dicom_peer, planning_run
from pydicom import dcmread

from vmat_diffusion.errors import CaseError
from vmat_diffusion.files import content_hash
from vmat_diffusion.network import deliveries, studies
from vmat_diffusion.network.deliveries import deliver
from vmat_diffusion.network.inbox import Inbox, open_inbox
from vmat_diffusion.network.rules import Rule
from vmat_diffusion.network.settings import ListenSettings
from vmat_diffusion.network.studies import LISTENER, enter_listener, look
from vmat_diffusion.web.cases import cases
from vmat_diffusion.web.queue.checks import submit_check
from vmat_diffusion.web.queue.jobs import claim, complete, give_up, take
from vmat_diffusion.web.room import Room
from vmat_diffusion.web.runs import RunEntry, file_hashes
from vmat_diffusion.web.store import now, open_store

PLAN = {"goals": "bone_8_1", "search_minutes": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planning_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def inbox(tmp_path: Path) -> Inbox:
    return open_inbox(tmp_path / "room" / "network")


@pytest.fixture
def room(tmp_path: Path) -> Room:
    made = Room(open_store(tmp_path / "room"))
    enter_listener(made)
    return made


def asked(tmp_path: Path, **settings: object) -> ListenSettings:
    given = {"rules": tmp_path / "r", "allow": ("A",), "quiet_s": 0.001, "data": tmp_path / "room"}
    return ListenSettings(**{**given, **settings})


def rules(*send: str) -> list[Rule]:
    return [Rule("all", PLAN, send=send)]


def files_of_case(run: Path) -> list[Path]:
    return sorted((run.parent / "case").rglob("*.dcm"))


def received(inbox: Inbox, files: list[Path]) -> str:
    study = ""
    for file in files:
        study = inbox.take(file.read_bytes(), str(dcmread(file, stop_before_pixels=True).SOPInstanceUID))
    time.sleep(0.01)
    return study


def jobs(room: Room) -> list[dict[str, object]]:
    with room.store.read() as db:
        return [dict(row) for row in db.execute("SELECT * FROM jobs")]


def finish(room: Room, run: Path, error: str = "", outcome: str = "PASSED") -> None:
    """Do what a worker does."""
    given = claim(room)
    assert given is not None
    job = take(room.store, given, {"pid": 1})
    assert job is not None
    if error:
        assert give_up(room.store, given, "failed", error)
        return
    folder = room.run_folder(job["run_id"])
    shutil.copytree(run, folder)
    if outcome == "INCONCLUSIVE":
        (folder / "open_check").mkdir()
        (folder / "open_check" / "state.json").write_text("{}")
    files = file_hashes(folder)
    entry = RunEntry(job["run_id"], job["case_id"], 0, job["made_by"], now(), outcome, files, {})
    assert complete(room.store, given, entry, content_hash(room.case_folder(job["case_id"])), {})


def test_a_whole_study_becomes_one_job_with_the_rules_settings(
    inbox: Inbox, room: Room, run: Path, tmp_path: Path
) -> None:
    received(inbox, files_of_case(run))
    for _ in range(3):
        look(inbox, room, rules(), asked(tmp_path))
    (job,) = jobs(room)
    assert job["settings"] == '{"goals": "bone_8_1", "search_minutes": 3}'
    assert job["made_by"] == LISTENER.id
    folder = room.case_folder(str(job["case_id"]))
    assert sorted(f.read_bytes() for f in folder.iterdir()) == sorted(
        f.read_bytes() for f in files_of_case(run)
    )


def test_studies_of_one_minute_are_told_apart_without_the_patient(
    inbox: Inbox, room: Room, run: Path, tmp_path: Path
) -> None:
    study = received(inbox, files_of_case(run))
    (structures,) = [f for f in files_of_case(run) if dcmread(f).Modality == "RTSTRUCT"]
    second = dcmread(structures)
    second.SOPInstanceUID = second.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    second.save_as(tmp_path / "second.dcm")
    look(inbox, room, rules(), asked(tmp_path))
    received(inbox, [tmp_path / "second.dcm"])
    look(inbox, room, rules(), asked(tmp_path))
    one, two = sorted(case.label for case in cases(room))
    slices = len(files_of_case(run)) - 1
    for label in (one, two):
        assert re.match(r"received \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC, ", label)
        assert f"{slices} slices, " in label and f"of study {study[:8]} (" in label and "rule all" in label
        for word in (str(second.PatientName), str(second.PatientID), str(second.StudyInstanceUID)):
            assert word not in label
    assert one.partition("structure set")[2] != two.partition("structure set")[2]
    assert {f"{slices} CT, {n} RTSTRUCT" in label for label in (one, two) for n in (1, 2)} == {True, False}


def test_a_study_that_is_sent_again_is_not_planned_again(
    inbox: Inbox, room: Room, run: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        received(inbox, files_of_case(run))
        look(inbox, room, rules(), asked(tmp_path))
    assert len(jobs(room)) == 1
    finish(room, run)
    look(inbox, room, rules(), asked(tmp_path))
    deliver(inbox, room, asked(tmp_path))
    received(inbox, files_of_case(run))
    look(inbox, room, rules(), asked(tmp_path))
    assert len(jobs(room)) == 1


def test_another_structure_set_of_the_study_is_another_plan(
    inbox: Inbox, room: Room, run: Path, tmp_path: Path
) -> None:
    received(inbox, files_of_case(run))
    look(inbox, room, rules(), asked(tmp_path))
    (structures,) = [f for f in files_of_case(run) if dcmread(f).Modality == "RTSTRUCT"]
    second = dcmread(structures)
    second.SOPInstanceUID = second.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    second.save_as(tmp_path / "second.dcm")
    received(inbox, [tmp_path / "second.dcm"])
    look(inbox, room, rules(), asked(tmp_path))
    assert len(jobs(room)) == 2
    for job in jobs(room):
        kinds = [dcmread(f).Modality for f in room.case_folder(str(job["case_id"])).iterdir()]
        assert kinds.count("RTSTRUCT") == 1
        assert len(kinds) == len(files_of_case(run))


def test_a_study_waits_for_quiet_and_for_its_images(
    inbox: Inbox, room: Room, run: Path, tmp_path: Path
) -> None:
    *most, last = sorted(files_of_case(run), key=lambda f: dcmread(f).Modality != "RTSTRUCT")
    received(inbox, most)
    look(inbox, room, rules(), asked(tmp_path))
    assert jobs(room) == []
    received(inbox, [last])
    look(inbox, room, rules(), asked(tmp_path, quiet_s=60.0))
    assert jobs(room) == []
    look(inbox, room, rules(), asked(tmp_path))
    assert len(jobs(room)) == 1


def test_images_that_never_come_are_answered_with_a_pdf_and_may_be_sent_again(
    inbox: Inbox, room: Room, run: Path, tmp_path: Path
) -> None:
    *most, last = sorted(files_of_case(run), key=lambda f: dcmread(f).Modality != "RTSTRUCT")
    received(inbox, most)
    with dicom_peer(Peer()) as peer:
        to = rules(f"PEER@127.0.0.1:{peer.port}")
        look(inbox, room, to, asked(tmp_path, patience_minutes=1e-5))
        deliver(inbox, room, asked(tmp_path))
        (document,) = peer.got
        assert b"1 images that the structure set refers to did not come" in document.EncapsulatedDocument
        received(inbox, [*most, last])
        look(inbox, room, to, asked(tmp_path))
    assert len(jobs(room)) == 1


def test_results_go_to_each_peer_once(inbox: Inbox, room: Room, run: Path, tmp_path: Path) -> None:
    received(inbox, files_of_case(run))
    with dicom_peer(Peer(), commitment=False) as first, dicom_peer(Peer(), commitment=False) as second:
        look(inbox, room, rules(*(f"PEER@127.0.0.1:{p.port}" for p in (first, second))), asked(tmp_path))
        finish(room, run)
        for _ in range(3):
            look(inbox, room, rules(), asked(tmp_path))
            deliver(inbox, room, asked(tmp_path))
    assert first.kinds() == second.kinds() == ["DOC", "RTDOSE", "RTPLAN"]
    with room.store.read() as db:
        sent = db.execute("SELECT subject FROM audit WHERE action = 'results sent'").fetchall()
    assert [entry["subject"] for entry in sent] == [jobs(room)[0]["run_id"]] * 2
    assert [row["state"] for row in inbox.sets("done")] == ["done"]


def test_a_check_that_went_on_in_the_room_is_answered_again(
    inbox: Inbox, room: Room, run: Path, tmp_path: Path
) -> None:
    undecided = planning_run(tmp_path / "undecided" / "run", "INCONCLUSIVE")
    received(inbox, files_of_case(run))
    with dicom_peer(Peer(), commitment=False) as peer:
        look(inbox, room, rules(f"PEER@127.0.0.1:{peer.port}"), asked(tmp_path))
        finish(room, undecided, outcome="INCONCLUSIVE")
        for _ in range(2):
            look(inbox, room, rules(), asked(tmp_path))
            deliver(inbox, room, asked(tmp_path))
        assert peer.kinds() == ["DOC", "RTDOSE"]
        first = str(jobs(room)[0]["run_id"])
        submit_check(room, first, None, LISTENER)
        for _ in range(2):  # nothing before the check has ended
            look(inbox, room, rules(), asked(tmp_path))
            deliver(inbox, room, asked(tmp_path))
        assert peer.kinds() == ["DOC", "RTDOSE"]
        finish(room, run)
        for _ in range(3):
            look(inbox, room, rules(), asked(tmp_path))
            deliver(inbox, room, asked(tmp_path))
    assert peer.kinds() == ["DOC", "DOC", "RTDOSE", "RTDOSE", "RTPLAN"]
    assert [row["run_id"] for row in inbox.sets("done")] == [str(jobs(room)[1]["run_id"])]


@pytest.mark.parametrize("status", ["", "REJECTED", "SUPERSEDED"])
def test_a_plan_that_was_changed_or_put_aside_is_not_sent(
    inbox: Inbox, room: Room, run: Path, tmp_path: Path, status: str
) -> None:
    received(inbox, files_of_case(run))
    with dicom_peer(Peer(), commitment=False) as peer:
        look(inbox, room, rules(f"PEER@127.0.0.1:{peer.port}"), asked(tmp_path))
        finish(room, run)
        run_id = str(jobs(room)[0]["run_id"])
        if status:
            with room.store.write() as db:
                db.execute(
                    "INSERT INTO decisions (run_id, user_id, status, reason, checklist, files, at) "
                    "VALUES (?, ?, ?, 'why', '[]', '{}', ?)",
                    (run_id, LISTENER.id, status, now()),
                )
        else:
            plan = room.run_folder(run_id) / "RP.dcm"
            plan.write_bytes(plan.read_bytes() + b"\0\0")
        look(inbox, room, rules(), asked(tmp_path))
        deliver(inbox, room, asked(tmp_path))
        assert peer.got == []
    with inbox.read() as db:
        (delivery,) = db.execute("SELECT * FROM deliveries").fetchall()
    assert delivery["state"] == "given up"
    assert (status or "RP.dcm was changed") in delivery["sentence"]


def test_a_peer_that_is_away_gets_its_results_later(
    inbox: Inbox, room: Room, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received(inbox, files_of_case(run))
    with dicom_peer(Peer()) as there:
        pass
    look(inbox, room, rules(f"PEER@127.0.0.1:{there.port}"), asked(tmp_path))
    finish(room, run)
    look(inbox, room, rules(), asked(tmp_path))
    deliver(inbox, room, asked(tmp_path))
    with dicom_peer(Peer(port=there.port), commitment=False) as back:
        deliver(inbox, room, asked(tmp_path))
        assert back.got == []  # not before the wait is over
        later = time.time() + 16.0
        monkeypatch.setattr(time, "time", lambda: later)
        deliver(inbox, room, asked(tmp_path))
    assert back.kinds() == ["DOC", "RTDOSE", "RTPLAN"]


def test_a_peer_that_stays_away_is_given_up(
    inbox: Inbox, room: Room, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received(inbox, files_of_case(run))
    with dicom_peer(Peer()) as gone:
        pass
    look(inbox, room, rules(f"PEER@127.0.0.1:{gone.port}"), asked(tmp_path))
    finish(room, run, "PTV reaches outside BODY; fix the contour")
    look(inbox, room, rules(), asked(tmp_path))
    deliver(inbox, room, asked(tmp_path))
    assert inbox.sets("answering")
    later = time.time() + 25 * 3600
    monkeypatch.setattr(time, "time", lambda: later)
    deliver(inbox, room, asked(tmp_path))
    assert inbox.sets("done")
    with room.store.read() as db:
        assert db.execute("SELECT 1 FROM audit WHERE action = 'results given up'").fetchone()


def test_a_plan_that_was_refused_comes_back_as_its_sentence(
    inbox: Inbox, room: Room, run: Path, tmp_path: Path
) -> None:
    received(inbox, files_of_case(run))
    with dicom_peer(Peer(), commitment=False) as peer:
        look(inbox, room, rules(f"PEER@127.0.0.1:{peer.port}"), asked(tmp_path))
        finish(room, run, "PTV reaches outside BODY; fix the contour")
        look(inbox, room, rules(), asked(tmp_path))
        deliver(inbox, room, asked(tmp_path))
    (document,) = peer.got
    assert document.Modality == "DOC"
    assert b"PTV reaches outside BODY; fix the contour" in document.EncapsulatedDocument


@pytest.mark.parametrize(("step", "state"), [("_decide", "new"), ("_enter", "entering")])
@pytest.mark.parametrize(("error", "stays"), [(KeyError("Doe^Jane"), False), (OSError(5, "x"), True)])
def test_one_bad_study_does_not_hold_up_the_others(
    inbox: Inbox,
    room: Room,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    state: str,
    error: Exception,
    stays: bool,
) -> None:
    received(inbox, files_of_case(run))
    (structures,) = [f for f in files_of_case(run) if dcmread(f).Modality == "RTSTRUCT"]
    second = dcmread(structures)
    second.SOPInstanceUID = second.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    second.save_as(tmp_path / "second.dcm")
    received(inbox, [tmp_path / "second.dcm"])
    bad = inbox.sets("new")[0]["uid"]
    real = getattr(studies, step)

    def fails(*given: object) -> None:
        if any(getattr(each, "keys", None) and each["uid"] == bad for each in given):
            raise error
        real(*given)

    monkeypatch.setattr(studies, step, fails)
    look(inbox, room, rules(), asked(tmp_path))
    assert len(jobs(room)) == 1
    (row,) = inbox.sets(state if stays else "answering")
    assert row["uid"] == bad and "Doe" not in row["sentence"]
    deliver(inbox, room, asked(tmp_path))
    assert len(inbox.sets("done")) == (0 if stays else 1)


def test_a_delivery_that_fails_in_an_unknown_way_waits(
    inbox: Inbox, room: Room, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise KeyError("Doe^Jane")

    received(inbox, files_of_case(run))
    look(inbox, room, rules("PEER@127.0.0.1:9"), asked(tmp_path))
    finish(room, run)
    look(inbox, room, rules(), asked(tmp_path))
    monkeypatch.setattr(deliveries, "send_parcels", fails)
    deliver(inbox, room, asked(tmp_path))
    with inbox.read() as db:
        (delivery,) = db.execute("SELECT * FROM deliveries").fetchall()
    assert delivery["state"] == "waiting" and delivery["next_at"] > time.time()
    assert delivery["sentence"].startswith("KeyError at ") and "Doe" not in delivery["sentence"]


def test_what_no_rule_fits_is_left_alone(inbox: Inbox, room: Room, run: Path, tmp_path: Path) -> None:
    received(inbox, files_of_case(run))
    look(inbox, room, [Rule("none", PLAN, structures=("Liver",))], asked(tmp_path))
    assert jobs(room) == []
    assert [row["sentence"] for row in inbox.sets("done")] == ["no rule fits"]


def test_old_objects_go_when_nothing_waits_for_them(
    inbox: Inbox, room: Room, run: Path, tmp_path: Path
) -> None:
    study = received(inbox, files_of_case(run))
    look(inbox, room, rules(), asked(tmp_path))
    assert inbox.remove_old(time.time() + 1) == 0
    finish(room, run)
    look(inbox, room, rules(), asked(tmp_path))
    deliver(inbox, room, asked(tmp_path))
    assert inbox.remove_old(time.time() - 60) == 0
    assert inbox.remove_old(time.time() + 1) == 1
    assert not (inbox.folder / "studies" / study).exists()
    (job,) = jobs(room)
    assert len(list(room.case_folder(str(job["case_id"])).iterdir())) == len(files_of_case(run))
    received(inbox, files_of_case(run))
    look(inbox, room, rules(), asked(tmp_path))
    assert len(jobs(room)) == 1


def test_objects_that_come_while_old_ones_are_removed_stay(
    inbox: Inbox, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [file for file in files_of_case(run) if dcmread(file).Modality == "CT"]
    study = received(inbox, files)
    with inbox.write() as db:
        db.execute("UPDATE studies SET latest = 0")
    remove = Inbox._remove

    def later(self: Inbox, key: str, before: float) -> bool:
        received(self, files[:1])
        return remove(self, key, before)

    monkeypatch.setattr(Inbox, "_remove", later)
    assert inbox.remove_old(time.time() - 60) == 0
    assert len(list((inbox.folder / "studies" / study).iterdir())) == len(files) == len(inbox.objects(study))


def test_an_object_that_is_sent_again_after_it_was_removed_is_kept(inbox: Inbox, run: Path) -> None:
    file = files_of_case(run)[0]
    study = received(inbox, [file])
    shutil.rmtree(inbox.folder / "studies" / study)
    received(inbox, [file])
    (kept,) = (inbox.folder / "studies" / study).iterdir()
    assert kept.read_bytes() == file.read_bytes()


def test_other_data_with_the_uid_of_a_kept_object_are_refused(
    inbox: Inbox, run: Path, tmp_path: Path
) -> None:
    file = files_of_case(run)[0]
    received(inbox, [file, file])
    other = dcmread(file)
    other.StudyDescription = "another"
    other.save_as(tmp_path / "other.dcm")
    with pytest.raises(CaseError, match="another SOP instance"):
        received(inbox, [tmp_path / "other.dcm"])
    (kept,) = (inbox.folder / "studies").rglob("*.dcm")
    assert kept.read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "no SOP class"),
        (b"\0" * 128 + b"DICM" + b"\xff" * 300, "no SOP class"),
        (b"\0" * 128 + b"DICM", "."),
        (None, "another SOP instance UID"),
    ],
)
def test_what_is_no_object_is_refused_and_leaves_nothing(
    inbox: Inbox, run: Path, content: bytes | None, sentence: str
) -> None:
    content = files_of_case(run)[0].read_bytes() if content is None else content
    with pytest.raises(CaseError, match=sentence):
        inbox.take(content, "1.2.3")
    assert list(inbox.parts.iterdir()) == []
    assert list((inbox.folder / "studies").iterdir()) == []
