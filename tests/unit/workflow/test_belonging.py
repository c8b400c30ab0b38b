"""Commands in which two files meet: what contradicts is refused, what is unsaid is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid
from small_case import open_arc, small_case
from typer.testing import CliRunner

from vmat_diffusion.case import Dose
from vmat_diffusion.cli import app
from vmat_diffusion.dicom import inspect, read_case, read_dose, read_plan, write_dose, write_unjudged_plan
from vmat_diffusion.errors import CaseError, InputError, PlanError
from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import Plan
from vmat_diffusion.qa.files import belonging
from vmat_diffusion.workflow import check_plan, compare_doses, compute_dose, dose_statistics, second_check
from vmat_diffusion.workflow.settings import DoseSettings

Change = Callable[[Dataset], None]


def export(folder: Path, case_folder: Path, plan: Plan | None = None) -> tuple[Path, Path]:
    """RP.dcm and RD.dcm of an open arc with 50 Gy everywhere."""
    case, machine = read_case(case_folder), load_machine("generic_6mv")
    prescription = small_case().prescription
    assert prescription is not None
    folder.mkdir(exist_ok=True)
    plan = plan or open_arc()
    rp = write_unjudged_plan(folder / "RP.dcm", plan, case, machine, prescription=prescription)
    grid = case.grid.around(*case.grid.bounds_mm, (6.0, 6.0, 6.0))
    dose = Dose(grid, np.full(grid.shape, 50.0, np.float32))
    return rp, write_dose(folder / "RD.dcm", dose, case, plan_file=rp)


def changed(file: Path, change: Change, name: str = "changed.dcm") -> Path:
    dataset = pydicom.dcmread(file)
    change(dataset)
    dataset.save_as(file.parent / name)
    return file.parent / name


def _set(keyword: str, value: object) -> Change:
    return lambda dataset: setattr(dataset, keyword, value)


def _position(dataset: Dataset) -> None:
    dataset.PatientSetupSequence[0].PatientPosition = "FFS"


def _structure_set(dataset: Dataset) -> None:
    dataset.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID = generate_uid()


PLAN_CHANGES = [
    (_set("PatientID", "OTHER-1"), "another patient ID"),
    (_set("FrameOfReferenceUID", generate_uid()), "another frame of reference"),
    (_position, r"another patient position than the CT \(FFS and HFS\)"),
    (_structure_set, "another structure set"),
]


@pytest.mark.parametrize(("change", "words"), PLAN_CHANGES)
def test_no_dose_of_a_plan_on_another_case(
    case_folder: Path, tmp_path: Path, change: Change, words: str
) -> None:
    rp = changed(export(tmp_path, case_folder)[0], change)
    with pytest.raises(CaseError, match=words) as refusal:
        compute_dose(rp, case_folder, tmp_path / "out.dcm", DoseSettings(engine="pencil-beam", grid_mm=8.0))
    assert "OTHER-1" not in str(refusal.value) and not (tmp_path / "out.dcm").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("PatientID", "OTHER-1"), "another patient ID"),
        (_set("FrameOfReferenceUID", "1.2.3"), "another frame"),
    ],
)
def test_dvh_and_gamma_refuse_the_dose_of_another_patient(
    case_folder: Path, tmp_path: Path, change: Change, words: str
) -> None:
    _, rd = export(tmp_path, case_folder)
    other = changed(rd, change)
    with pytest.raises(CaseError, match=words):
        dose_statistics(case_folder, other)
    with pytest.raises(CaseError, match=words):
        compare_doses(rd, other)
    forced = dose_statistics(case_folder, other, force=True)
    assert any("forced in spite of" in remark for remark in forced.summary()["remarks"])
    said: list[str] = []
    compare_doses(rd, other, force=True, announce=said.append)
    assert any(words in remark for remark in said)


def test_the_commands_say_what_was_forced_and_what_is_unsaid(case_folder: Path, tmp_path: Path) -> None:
    _, rd = export(tmp_path, case_folder)
    other = changed(rd, _set("FrameOfReferenceUID", "1.2.3"))
    silent = changed(rd, _set("FrameOfReferenceUID", ""), "silent.dcm")
    run = CliRunner().invoke
    assert run(app, ["dvh", str(case_folder), str(other)]).exit_code != 0
    shown = run(app, ["dvh", str(case_folder), str(other), "--force"])
    assert shown.exit_code == 0 and "Warning: forced in spite of: the dose has another frame" in shown.output
    shown = run(app, ["gamma", str(rd), str(silent), "--json"])
    assert shown.exit_code == 0
    assert json.loads(shown.stdout)["remarks"] == ["the evaluated dose does not say its frame of reference"]


def test_structure_set_and_ct_of_two_patients_make_no_case(case_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "case"
    shutil.copytree(case_folder, folder)
    for file in folder.rglob("*.dcm"):
        dataset = pydicom.dcmread(file)
        if dataset.Modality == "RTSTRUCT":
            dataset.PatientID = "TEST-2"
            dataset.save_as(file)
    with pytest.raises(CaseError, match="the structure set has another patient ID than the CT"):
        read_case(folder)
    assert any("another patient ID" in row for row in inspect(folder).refused)


@pytest.mark.parametrize(
    ("kind", "record", "words"),
    [("CT", "", "the CT does not say its patient ID"), ("RTSTRUCT", "", "the structure set does not say")],
)
def test_one_file_of_a_case_without_patient_id_is_said(
    case_folder: Path, tmp_path: Path, kind: str, record: str, words: str
) -> None:
    """One image is enough."""
    rp, rd = export(tmp_path / "plan", case_folder)
    folder = _one_changed(case_folder, tmp_path / "case", kind, record)
    together = belonging(read_case(folder), read_plan(rp), read_dose(rd))
    assert together is not None and not together.contradictions
    assert [s for s in together.silences if s.startswith(words)] == list(together.silences)


def test_images_of_two_patients_make_no_case(case_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="the CT bears the IDs of two patients"):
        read_case(_one_changed(case_folder, tmp_path / "case", "CT", "TEST-2"))


def _one_changed(case_folder: Path, folder: Path, kind: str, record: str) -> Path:
    """A copy of the case in which one file of a kind bears another record number."""
    shutil.copytree(case_folder, folder)
    for file in sorted(folder.rglob("*.dcm"))[1:]:
        dataset = pydicom.dcmread(file)
        if dataset.Modality == kind:
            dataset.PatientID = record
            dataset.save_as(file)
            return folder
    raise AssertionError(kind)


def test_check_warns_of_what_a_person_must_know(case_folder: Path, tmp_path: Path) -> None:
    def change(dataset: Dataset) -> None:
        dataset.ApprovalStatus = "REJECTED"
        dataset.BeamSequence[0].TreatmentMachineName = "LINAC_B"
        dataset.BeamSequence[0].NumberOfControlPoints = 7
        del dataset.FrameOfReferenceUID

    rp, _ = export(tmp_path, case_folder)
    assert check_plan(rp, "generic_6mv").warnings == ("PlanIntent (300A,000A) is RESEARCH",)  # as it is
    found = check_plan(changed(rp, change), "generic_6mv")
    assert not found.violations
    warned = "; ".join(found.summary()["warnings"])
    for words in (
        "REJECTED",
        "LINAC_B",
        "NumberOfControlPoints",
        "FrameOfReferenceUID (0020,0052) is missing",
    ):
        assert words in warned
    shown = CliRunner().invoke(app, ["check", str(tmp_path / "changed.dcm")])
    assert shown.exit_code == 0 and "Warning: ApprovalStatus (300E,0002) is REJECTED" in shown.output


@pytest.mark.parametrize(
    ("keyword", "value"),
    [("SourceAxisDistance", 900), ("NominalBeamEnergy", 6.4), ("NominalBeamEnergy", None)],
)
def test_another_beam_than_the_machines_is_refused(
    case_folder: Path, tmp_path: Path, keyword: str, value: float | None
) -> None:
    def change(dataset: Dataset) -> None:
        for beam in dataset.BeamSequence:
            if keyword in beam:
                setattr(beam, keyword, value)
            for point in beam.ControlPointSequence:
                if keyword in point:
                    setattr(point, keyword, value)

    rp = changed(export(tmp_path, case_folder)[0], change)
    assert any(keyword in v for v in check_plan(rp, "generic_6mv").violations)
    with pytest.raises(PlanError, match=keyword):
        second_check(rp, case_folder, tmp_path / "out")


@pytest.mark.parametrize("far_mm", [400.0, -1000.0])
def test_a_plan_that_misses_the_patient_is_refused_at_once(
    case_folder: Path, tmp_path: Path, far_mm: float
) -> None:
    rp, rd = export(tmp_path, case_folder, open_arc((far_mm, 0.0, 0.0)))
    for engine in ("pencil-beam", "monte-carlo"):
        with pytest.raises(PlanError, match="mm outside the body, the limit is 100 mm"):
            compute_dose(rp, case_folder, tmp_path / "out.dcm", DoseSettings(engine=engine))
    with pytest.raises(PlanError, match="mm outside the body"):
        second_check(rp, case_folder, tmp_path / "out", dose_file=rd)


def test_a_planned_dose_of_zeros_is_refused_at_once(case_folder: Path, tmp_path: Path) -> None:
    rp, rd = export(tmp_path, case_folder)

    def empty(dataset: Dataset) -> None:
        dataset.PixelData = bytes(len(dataset.PixelData))

    with pytest.raises(InputError, match="zero everywhere"):
        second_check(rp, case_folder, tmp_path / "out", dose_file=changed(rd, empty, "empty.dcm"))
