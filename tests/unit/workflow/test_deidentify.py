"""De-identifying a folder: files, report, exit codes, and what is never shown."""

from __future__ import annotations

import json
import re
import sys
from datetime import date
from pathlib import Path

import dicom_files as files
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from vmat_diffusion.cli import main
from vmat_diffusion.dicom import read_case, read_plan
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.workflow.deidentify import REPORT, deidentify_folder

KEY = "correct horse battery"


@pytest.fixture
def patient(tmp_path: Path) -> Path:
    """A patient whose folder, files and attributes are called Secret Name, SECRET-4711."""
    images = ct_with_headers()
    folder = tmp_path / "Secret_Name"
    files.write_patient(
        folder, images, files.structure_set(images), files.rt_plan(), files.rt_dose(), suffix="_Secret"
    )
    (folder / "Secret.txt").write_text("Secret Name was here")
    return folder


def ct_with_headers() -> list[Dataset]:
    images = files.ct_series()
    for image in images:
        image.InstitutionName, image.OperatorsName = "Sankt Nirgendwo", "Drücker^Otto"
        image.SeriesDescription = image.StudyDescription = "scan of Secret by Otto"
        image.private_block(0x0011, "Maker", create=True).add_new(1, "LO", "Secret Name 4711")
        item = Dataset()
        item.PatientID, item.IssuerOfPatientID = "4711", "Sankt Nirgendwo"
        image.OtherPatientIDsSequence = [item]
    return images


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["vmat-diffusion", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_the_result_reads_as_the_original(patient: Path, tmp_path: Path) -> None:
    done = deidentify_folder(patient, tmp_path / "out", key=KEY)
    (name,) = done.cases
    assert done.cases[name] == {"CT": 6, "RTDOSE": 1, "RTPLAN": 1, "RTSTRUCT": 1}
    assert not done.left_out and len(done.others) == 1
    folder = tmp_path / "out" / name
    before, after = read_case(patient), read_case(folder)
    assert np.array_equal(before.hu, after.hu) and before.grid == after.grid
    assert list(before.structures) == list(after.structures)
    for mask, same in zip(before.structures.values(), after.structures.values(), strict=True):
        assert np.array_equal(mask.mask, same.mask) and mask.role == same.role
    assert before.prescription == after.prescription is not None  # the plan is still linked
    assert before.reference_dose is not None and after.reference_dose is not None
    assert np.array_equal(before.reference_dose.gy, after.reference_dose.gy)
    plans = [read_plan(f) for f in (*patient.glob("file007*"), *folder.glob("RTPLAN*"))]
    assert plans[0].total_mu == plans[1].total_mu
    assert np.array_equal(plans[0].arcs[0].leaves_mm, plans[1].arcs[0].leaves_mm)


def test_nothing_written_holds_a_word_of_the_patient(patient: Path, tmp_path: Path) -> None:
    deidentify_folder(patient, tmp_path / "out")
    written = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert len(written) == 10
    for file in written:
        content = file.read_bytes() + str(file.relative_to(tmp_path)).encode()
        content = re.sub(rb"\d{20,}", b"", content)  # a new UID may hold any four digits by chance
        for word in (b"secret", b"4711", b"nirgendwo", b"otto", "Drücker".encode(), b"Dr\xfccker"):
            assert word.lower() not in content.lower(), (file.name, word)


def test_the_same_key_gives_the_same_files_and_another_key_others(patient: Path, tmp_path: Path) -> None:
    key_file = tmp_path / "key.txt"
    key_file.write_text(f"{KEY}\n")
    outs = [tmp_path / name for name in "abcd"]
    for out, key in zip(outs, (KEY, str(key_file), None, None), strict=True):
        deidentify_folder(patient, out, key=key)
    names = [sorted(p.relative_to(out) for p in out.rglob("*.dcm")) for out in outs]
    assert names[0] == names[1]
    assert not set(names[0]) & set(names[2]) and not set(names[2]) & set(names[3])
    for name in names[0]:
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


def test_patients_are_kept_apart_and_files_without_one_go_with_their_study(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    first, second = files.ct_series(), files.ct_series(series="1.2.4")
    structures = files.structure_set(first)
    structures.PatientID = structures.PatientName = ""
    for image in second:
        image.PatientID, image.PatientName, image.StudyInstanceUID = "other 9", "Else^Someone", "1.2.5"
    files.write_patient(folder, [*first, *second], structures)
    done = deidentify_folder(folder, tmp_path / "out")
    assert sorted(map(dict, done.cases.values()), key=len) == [{"CT": 6}, {"CT": 6, "RTSTRUCT": 1}]


def test_a_structure_set_of_another_patient_is_said_to_be_torn_from_its_images(tmp_path: Path) -> None:
    images = files.ct_series()
    structures = files.structure_set(images)
    structures.PatientID = "OTHER-9"
    folder = files.write_patient(tmp_path / "in", images, structures)
    done = deidentify_folder(folder, tmp_path / "out")
    (said,) = done.remarks
    assert said.startswith("files 1 and 7 are of one study or frame of reference but bear 2 patients' IDs")
    assert "OTHER" not in (tmp_path / "out" / "deidentification.json").read_text()
    alone = deidentify_folder(files.write_patient(tmp_path / "in2"), tmp_path / "out2")
    assert alone.remarks == ()


def test_intervals_between_dates_stay(tmp_path: Path) -> None:
    images = files.ct_series()
    for k, image in enumerate(images):
        image.StudyDate, image.AcquisitionDate = "20240301", f"202403{k + 5:02d}"
    files.write_patient(tmp_path / "in", images)
    deidentify_folder(tmp_path / "in", tmp_path / "out", key=KEY)

    def day(text: str) -> date:
        return date(int(text[:4]), int(text[4:6]), int(text[6:]))

    written = [pydicom.dcmread(f) for f in (tmp_path / "out").rglob("CT*.dcm")]
    assert sorted((day(w.AcquisitionDate) - day(w.StudyDate)).days for w in written) == [4, 5, 6, 7, 8, 9]
    assert len({w.StudyDate for w in written}) == 1
    assert 1 <= (date(2024, 3, 1) - day(written[0].StudyDate)).days <= 365


def odd_folder(tmp_path: Path) -> Path:
    folder = files.write_patient(tmp_path / "in")
    files.save(files.ct_series(series="1.9")[0], folder / "Secret_a_big", ExplicitVRBigEndian)
    whole = (folder / "file006").read_bytes()
    (folder / "Secret_b_broken").write_bytes(whole[: len(whole) // 2])
    capture = files.ct_series(series="1.8")[0]
    capture.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    files.save(capture, folder / "Secret_c_capture")
    burned = files.ct_series(series="1.7")[0]
    burned.BurnedInAnnotation = "YES"
    files.save(burned, folder / "Secret_d_burned")
    twin = files.ct_series()[0]
    twin.SliceThickness = 9
    files.save(twin, folder / "Secret_e_twin")
    return folder


def test_odd_files_are_left_out_with_a_reason_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = odd_folder(tmp_path)
    assert run(monkeypatch, "deidentify", folder, tmp_path / "out") == 1
    shown = capsys.readouterr()
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    reasons = [entry["reason"] for entry in report["left_out"]]
    words = ("big-endian", "cut off", "none of CT", "burned in", "same SOP")
    assert [word for reason, word in zip(reasons, words, strict=True) if word not in reason] == [], reasons
    # Capitals sort before "file000", which has the UID of the twin that came before it.
    assert [entry["file"] for entry in report["left_out"]] == [1, 2, 3, 4, 6]
    assert report["files"] == {"written": 7, "left_out": 5, "not_dicom": 0}
    for text in (shown.out, shown.err, json.dumps(report)):
        assert "secret" not in text.lower() and "4711" not in text


def test_names_in_files_that_are_left_out_are_the_patients_too(tmp_path: Path) -> None:
    images = files.ct_series()
    for image in images:
        image.ManufacturerModelName = "Scanner of Doctor Grünwald"
    folder = files.write_patient(tmp_path / "in", images)
    report = files.ct_series(series="1.8")[0]
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    report.SpecificCharacterSet, report.ReferringPhysicianName = "ISO_IR 192", "Grünwald^Egon"
    files.save(report, folder / "report")
    done = deidentify_folder(folder, tmp_path / "out")
    assert "none of CT" in next(iter(done.left_out.values()))
    models = {pydicom.dcmread(f).ManufacturerModelName for f in (tmp_path / "out").rglob("CT*.dcm")}
    assert models == {"ANONYMIZED"}


def test_the_report_counts_and_names_no_values(patient: Path, tmp_path: Path) -> None:
    deidentify_folder(patient, tmp_path / "out", key=KEY)
    report = json.loads((tmp_path / "out" / REPORT).read_text())
    counted = {(a["keyword"], a["action"]): a["count"] for a in report["attributes"]}
    assert counted["PatientName", "replaced"] == 9
    assert counted["PrivateAttribute", "removed"] == 12
    assert counted["SeriesDescription", "removed"] == counted["OtherPatientIDsSequence", "removed"] == 6
    assert counted["SOPInstanceUID", "new UID"] == 9
    assert report["key"] == "given" and KEY not in json.dumps(report)
    assert len(report["not_dicom"]) == 1


def test_a_leak_leaves_nothing_behind_and_names_no_value(
    patient: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The rules are told that a description is technical and everything is harmless; the scan is not.
    import vmat_diffusion.dicom.confidential.deidentify as rules

    monkeypatch.setattr(rules, "rule_for", lambda tag: None)
    monkeypatch.setattr(rules._Job, "_is_harmless", lambda *_: True)
    assert run(monkeypatch, "deidentify", patient, tmp_path / "out") == 2
    sentence = capsys.readouterr().err
    assert "CT.2.25." in sentence and "(0008," in sentence
    assert "otto" not in sentence.lower() and "nirgend" not in sentence.lower()
    assert sorted(p.name for p in tmp_path.iterdir()) == [patient.name]


@pytest.mark.parametrize(
    ("key", "words"),
    [("short", "5 bytes"), ("secrets/key.txt", "none of that name"), ("key.txt", "none of that name")],
)
def test_weak_and_misspelt_keys_are_refused(patient: Path, tmp_path: Path, key: str, words: str) -> None:
    with pytest.raises(CaseError, match=words):
        deidentify_folder(patient, tmp_path / "out", key=key)


def test_folders_that_cannot_be_used_are_refused(patient: Path, tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="does not exist"):
        deidentify_folder(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="lies in a folder that the command reads"):
        deidentify_folder(patient, patient / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        deidentify_folder(patient, tmp_path / "full")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaseError, match="holds no DICOM file"):
        deidentify_folder(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_implicit_files_stay_implicit(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    images = ct_with_headers()
    for k, dataset in enumerate([*images, files.structure_set(images)]):
        files.save(dataset, folder / f"{k}", ImplicitVRLittleEndian)
    done = deidentify_folder(folder, tmp_path / "out")
    (name,) = done.cases
    assert list(read_case(tmp_path / "out" / name).structures) == list(read_case(folder).structures)
    one = pydicom.dcmread(next((tmp_path / "out").rglob("CT*.dcm")))
    assert one.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian


def test_what_cannot_be_scanned_is_not_handed_out(
    patient: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vmat_diffusion.dicom.confidential.leaks as leaks

    scan = leaks.leak

    def failing(file: Path, *rest: object) -> str | None:
        if file.name.startswith("RTDOSE"):
            raise CaseError("the file cannot be read back")
        return scan(file, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(leaks, "leak", failing)
    done = deidentify_folder(patient, tmp_path / "out")
    assert list(done.left_out.values()) == ["the file cannot be read back"]
    assert not list((tmp_path / "out").rglob("RTDOSE*"))
