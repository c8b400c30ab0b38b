"""Which runs are shown, what is refused, and that memory is bounded."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import dcmread
from viewed_run import arcs, made_run, noisy, shaped_case, shaped_dose, write_run

from vmat_diffusion.dicom import write_case
from vmat_diffusion.errors import CaseError, InputError, PlanError
from vmat_diffusion.web.view import runs as view_runs
from vmat_diffusion.web.view.cases import CaseStore
from vmat_diffusion.web.view.runs import Run, Runs, open_run
from vmat_diffusion.workflow.planning.run_files import CHECK_DOSE, read_check_dose


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, CaseStore]:
    root = tmp_path_factory.mktemp("runs")
    folder, case = made_run(root)
    return folder, case, CaseStore(root / "store")


def test_a_run_opens_with_both_doses_and_the_plan_that_the_gate_held_back(
    made: tuple[Path, Path, CaseStore],
) -> None:
    run = open_run(*made)
    dose = shaped_dose(shaped_case())
    np.testing.assert_allclose(run.dose.gy, dose.gy, atol=1e-5)
    check = noisy(dose)
    assert run.check is not None and run.check.std_gy is not None and check.std_gy is not None
    np.testing.assert_array_equal(run.check.gy, check.gy)
    np.testing.assert_array_equal(run.check.std_gy, check.std_gy)
    assert list(run.volumes) == ["planned", "independent", "independent_error"]
    assert run.reference_gy == 60.0
    plan = arcs()
    assert run.plan is not None and run.plan.isocenter_mm == plan.isocenter_mm
    for found, own in zip(run.plan.arcs, plan.arcs, strict=True):
        np.testing.assert_allclose(np.diff(found.gantry_deg), np.diff(own.gantry_deg), atol=1e-9)
        assert found.couch_deg == own.couch_deg
        np.testing.assert_array_equal(found.leaves_mm, own.leaves_mm)
    facts = json.loads(json.dumps(run.facts()))
    assert facts["outcome"] == "FAILED" and not facts["released"]
    assert [v["max_gy"] for v in facts["volumes"]] == pytest.approx(
        [dose.gy.max(), check.gy.max(), check.std_gy.max()], rel=1e-5
    )


def changed_dose(folder: Path, tmp_path: Path, keyword: str, value: str) -> Path:
    new = tmp_path / "changed"
    new.mkdir()
    for file in folder.iterdir():
        (new / file.name).write_bytes(file.read_bytes())
    dataset = dcmread(new / "RD.dcm")
    setattr(dataset, keyword, value)
    dataset.save_as(new / "RD.dcm")
    return new


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("FrameOfReferenceUID", "1.2.3.99", "frame of reference"),
        ("PatientID", "somebody else", "patient ID"),
    ],
)
def test_a_dose_of_another_frame_or_patient_is_refused(
    made: tuple[Path, Path, CaseStore], tmp_path: Path, keyword: str, value: str, words: str
) -> None:
    folder, case, store = made
    with pytest.raises(InputError, match=words) as refused:
        open_run(changed_dose(folder, tmp_path, keyword, value), case, store)
    assert "somebody" not in str(refused.value)


def test_a_case_that_is_not_the_planned_one_is_refused(
    made: tuple[Path, Path, CaseStore], tmp_path: Path
) -> None:
    folder, _, store = made
    write_case(tmp_path / "other", shaped_case())  # the same patient exported again: new UIDs
    with pytest.raises(CaseError, match="another series than the plan was made on"):
        open_run(folder, tmp_path / "other", store)


@pytest.mark.parametrize("name", ["run.json", "RD.dcm"])
def test_a_folder_without_its_files_is_refused_by_their_names(
    made: tuple[Path, Path, CaseStore], tmp_path: Path, name: str
) -> None:
    folder, case, store = made
    new = changed_dose(folder, tmp_path, "SeriesDescription", "x")
    (new / name).unlink()
    with pytest.raises(PlanError, match=name):
        Runs(store).open(new, case)


def test_a_damaged_independent_dose_is_refused(made: tuple[Path, Path, CaseStore], tmp_path: Path) -> None:
    file = tmp_path / CHECK_DOSE
    file.write_bytes((made[0] / CHECK_DOSE).read_bytes()[:400])
    with pytest.raises(CaseError, match=CHECK_DOSE):
        read_check_dose(file)
    assert read_check_dose(tmp_path / "none.npz") is None


def test_what_cannot_be_read_of_a_run_is_told_and_the_rest_is_shown(
    made: tuple[Path, Path, CaseStore], tmp_path: Path
) -> None:
    folder, case, store = made
    assert open_run(folder, case, store).remarks == ()
    new = changed_dose(folder, tmp_path, "SeriesDescription", "x")
    record = json.loads((new / "run.json").read_text())
    del record["goals"][0]["status"]
    (new / "run.json").write_text(json.dumps({**record, "mu": "many", "sheet": ["none"]}))
    for name in (CHECK_DOSE, "fluence.npz"):
        (new / name).write_bytes((folder / name).read_bytes()[:400])
    run = open_run(new, case, store)
    told, dose, delivery = run.remarks
    for place in ("goals 1: status", "mu", "sheet"):
        assert place in told
    assert told.startswith("run.json") and dose.startswith(CHECK_DOSE) and delivery.startswith("fluence.npz")
    assert run.check is None and run.plan is None and list(run.volumes) == ["planned"]
    assert run.record["goals"][0]["status"] == "not evaluated" and run.record["goals"][0]["missed"]


def test_a_run_without_independent_dose_shows_the_planned_one(tmp_path: Path) -> None:
    case = shaped_case()
    write_case(tmp_path / "case", case)
    folder = write_run(tmp_path / "run", tmp_path / "case", shaped_dose(case), None)
    assert list(open_run(folder, tmp_path / "case", CaseStore(tmp_path / "store")).volumes) == ["planned"]


def test_a_large_run_that_is_being_opened_holds_up_no_other(
    made: tuple[Path, Path, CaseStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, case, store = made
    large = changed_dose(folder, tmp_path, "SeriesDescription", "large")
    begun, goes_on, readings = threading.Event(), threading.Event(), []

    def slow(place: Path, *more: Any) -> Run:
        readings.append(place)
        if place == large:
            begun.set()
            assert goes_on.wait(60)
        return open_run(place, *more)

    monkeypatch.setattr(view_runs, "open_run", slow)
    runs, opened = Runs(store), []
    threads = [threading.Thread(target=lambda: opened.append(runs.open(large, case))) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        assert begun.wait(60)
        assert runs.open(folder, case).folder == folder
        assert opened == []
    finally:
        goes_on.set()
    for thread in threads:
        thread.join(60)
    assert opened[0] is opened[1] and readings == [large, folder]
    assert runs._opening == {}


def test_open_runs_keep_to_their_memory_and_are_read_once(made: tuple[Path, Path, CaseStore]) -> None:
    folder, case, store = made
    copies = []
    for k in range(4):
        copy = folder.with_name(f"copy{k}_{id(store)}")
        copy.mkdir()
        for file in folder.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        copies.append(copy)
    one = sum(v.gy.nbytes for v in open_run(folder, case, store).volumes.values())
    runs = Runs(store, most_bytes=2 * one)
    opened = [runs.open(copy, case) for copy in copies]
    assert runs.open(copies[3], case) is opened[3]
    assert runs.open(copies[2], case) is opened[2]
    assert runs.open(copies[0], case) is not opened[0], "the oldest was let go"
    assert len(runs._open) == 2
