"""Cases in a tree of DICOM files: told apart by UIDs, whatever paths and names are."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from dicom_files import ct_series, rt_dose, rt_plan, save, structure_set
from pydicom.dataset import Dataset

from vmat_diffusion.dataset.dicom_tree import TreeCase, cases_in_tree
from vmat_diffusion.errors import CaseError


def _patient(number: int, *, plans: int = 1, doses: bool = True, study: int = 0) -> list[Dataset]:
    """CT, structure set, plans and their doses, with UIDs and an ID of their own."""
    own = f"1.2.3.{number}.{study}"
    images = ct_series(series=f"{own}.3")
    sets = structure_set(images, uid=f"{own}.4")
    out = [*images, sets]
    for k in range(plans):
        plan = rt_plan()
        plan.SOPInstanceUID = f"{own}.5.{k}"
        plan.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID = sets.SOPInstanceUID
        out.append(plan)
        if doses:
            dose = rt_dose(uid=f"{own}.6.{k}")
            dose.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID = plan.SOPInstanceUID
            out.append(dose)
    for dataset in out:
        dataset.PatientID, dataset.StudyInstanceUID = f"SECRET-{number}", f"{own}.2"
        dataset.FrameOfReferenceUID = f"{own}.1"
    sets.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = f"{own}.1"
    for roi in sets.StructureSetROISequence:
        roi.ReferencedFrameOfReferenceUID = f"{own}.1"
    return out


def _tree(root: Path, *groups: list[Dataset], seed: int = 0) -> Path:
    """All files of all groups in folders and under names that say nothing, in random order."""
    files = [dataset for group in groups for dataset in group]
    random.Random(seed).shuffle(files)
    for k, dataset in enumerate(files):
        folder = root / f"Doe^John_{k % 3}" / f"{k % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        save(dataset, folder / f"{k}.ima")
    return root


def _kinds(case: TreeCase) -> tuple[int, bool, int]:
    return len(case.images), case.plan is not None, len(case.doses)


def test_patients_and_studies_are_told_apart(tmp_path: Path) -> None:
    groups = [_patient(1), _patient(2), _patient(1, study=1)]
    cases, left_out = cases_in_tree(_tree(tmp_path / "a", *groups))
    assert [_kinds(case) for case in cases] == [(6, True, 1)] * 3
    assert sorted(case.patient_id for case in cases) == ["SECRET-1", "SECRET-1", "SECRET-2"]
    assert left_out == ()
    for case in cases:
        uid = case.structure_set.uid.rpartition(".")[0]
        assert all(f.uid.startswith(uid) for f in (*case.images, case.plan, *case.doses))
    again, _ = cases_in_tree(_tree(tmp_path / "b", *groups, seed=1))
    assert [case.id for case in again] == [case.id for case in cases]


def test_each_plan_with_a_dose_makes_a_case_and_one_without_is_said(tmp_path: Path) -> None:
    files = _patient(1, plans=3)
    without = [f for f in files if f.SOPInstanceUID != "1.2.3.1.0.6.2"]
    cases, left_out = cases_in_tree(_tree(tmp_path, without))
    assert [_kinds(case) for case in cases] == [(6, True, 1)] * 2
    assert len({case.id for case in cases}) == 2
    (why,) = left_out
    assert why.startswith("RTPLAN") and "it has no dose while another plan" in why


def test_a_dose_whose_plan_is_absent_belongs_to_the_only_structure_set(tmp_path: Path) -> None:
    files = [f for f in _patient(1) if f.Modality != "RTPLAN"]
    (case,), left_out = cases_in_tree(_tree(tmp_path / "one", files))
    assert _kinds(case) == (6, False, 1) and left_out == ()
    images = [f for f in files if f.Modality == "CT"]
    other = structure_set(images, uid="1.2.3.1.0.9")
    other.PatientID, other.StudyInstanceUID = "SECRET-1", "1.2.3.1.0.2"
    cases, left_out = cases_in_tree(_tree(tmp_path / "two", files, [other]))
    assert [_kinds(case) for case in cases] == [(6, False, 0)] * 2
    assert any(why.startswith("RTDOSE") and "no single structure set" in why for why in left_out)


def test_series_is_the_one_that_the_structure_set_names(tmp_path: Path) -> None:
    files = _patient(1)
    other = ct_series(series="1.2.3.1.0.8")
    for image in other:
        image.PatientID, image.StudyInstanceUID = "SECRET-1", "1.2.3.1.0.2"
        image.FrameOfReferenceUID = "1.2.3.1.0.1"
    (case,), left_out = cases_in_tree(_tree(tmp_path, files, other))
    assert {image.series_uid for image in case.images} == {"1.2.3.1.0.3"}
    assert left_out == ("CT series ...1.2.3.1.0.8 (6 images) left out: no structure set is drawn on it",)


def test_what_is_left_out_is_said_without_names(tmp_path: Path) -> None:
    lonely = [f for f in _patient(3) if f.Modality != "CT"]
    swapped = _patient(4)
    swapped[6].PatientID = "SECRET-9"
    picture = ct_series(series="1.2.3.7")[:1]
    picture[0].SOPClassUID, picture[0].Modality = "1.2.840.10008.5.1.4.1.1.4", "MR"
    root = _tree(tmp_path, _patient(1), lonely, swapped, picture)
    (root / "notes.txt").write_text("no DICOM")
    copy = next(p for p in root.rglob("*.ima"))
    (root / "copy.ima").write_bytes(copy.read_bytes())
    (root / "damaged.ima").write_bytes(copy.read_bytes()[:200])
    cases, left_out = cases_in_tree(root)
    assert len(cases) == 1
    said = "\n".join(left_out)
    for part in (
        "RTSTRUCT ...1.2.3.3.0.4 left out: the images that it was drawn on are absent",
        "RTSTRUCT ...1.2.3.4.0.4 left out: its images bear another patient's ID",
        "CT series ...1.2.3.4.0.3 (6 images) left out",
        "2.3.3.0.6.0 left out: its plan makes no case",
        "1 file left out: a copy of another file",
        "1 file left out: MR image or object, which no case needs",
        "2 files left out: not DICOM",
    ):
        assert part in said
    assert "SECRET" not in said and "Secret" not in said and "SECRET" not in repr(cases)


def test_files_of_one_uid_and_different_content_are_left_out(tmp_path: Path) -> None:
    files = _patient(1, plans=2)
    other = rt_plan()
    other.SOPInstanceUID, other.PatientID, other.RTPlanLabel = "1.2.3.1.0.5.1", "SECRET-1", "newer"
    root = _tree(tmp_path, files, [other])
    cases, left_out = cases_in_tree(root)
    # Nobody knows on which of the two the other dose was computed, so it stands without a plan.
    assert sorted(case.plan.uid if case.plan else "" for case in cases) == ["", "1.2.3.1.0.5.0"]
    assert (
        "2 files left out: another file with other content has the same SOP instance UID; remove one of them"
        in left_out
    )


def test_damaged_files_are_named_by_number(tmp_path: Path) -> None:
    root = _tree(tmp_path, _patient(1))
    whole = next(root.rglob("*.ima")).read_bytes()
    (root / "A^SECRET.ima").write_bytes(whole[: len(whole) // 2])
    (root / "a.SECRET.ima").write_bytes(b"")
    dataset = _patient(2)[6]
    del dataset.SOPInstanceUID
    save(dataset, root / "B^SECRET.ima")
    _, left_out = cases_in_tree(root)
    said = "\n".join(left_out)
    assert "damaged: file 2: " in said and "SECRET" not in said


def test_a_plan_on_an_absent_structure_set_is_no_plan(tmp_path: Path) -> None:
    files = _patient(1, doses=False)
    files[-1].ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID = "1.2.9.9"
    (case,), (why,) = cases_in_tree(_tree(tmp_path, files))
    assert _kinds(case) == (6, False, 0)
    assert "the structure set that it was made on is absent" in why


def test_folders_without_dicom_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="holds no DICOM file"):
        cases_in_tree(tmp_path)
    with pytest.raises(CaseError, match="does not exist"):
        cases_in_tree(tmp_path / "none")
