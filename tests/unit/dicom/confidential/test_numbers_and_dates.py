"""Numbers as text and binary, dates, stations and short names of a patient."""

from __future__ import annotations

import struct
from decimal import Decimal
from pathlib import Path

import dicom_files as files
import pydicom
import pytest
from pydicom.dataset import Dataset

from vmat_diffusion.dicom.attributes import open_dataset
from vmat_diffusion.dicom.confidential.deidentify import deidentify
from vmat_diffusion.dicom.confidential.identity import Identity, Key, Patient, are_numbers, identity_of
from vmat_diffusion.dicom.confidential.leaks import leak
from vmat_diffusion.dicom.names import load_table
from vmat_diffusion.errors import CaseError

TABLE = load_table(None)
SOMEBODY = Identity(frozenset({"471100", "1234.56", "007", "20230415", "4711"}))


def cleaned(dataset: Dataset, tmp_path: Path) -> Dataset:
    original = open_dataset(files.save(dataset, tmp_path / "original.dcm"), pixels=True)
    assert original is not None
    patient = Patient("case-0123abcd", 30, identity_of(original))
    deidentify(original, patient, Key(b"a secret of the tests"), TABLE)
    original.save_as(tmp_path / "clean.dcm", enforce_file_format=True)
    assert leak(tmp_path / "clean.dcm", patient, TABLE) is None
    return pydicom.dcmread(tmp_path / "clean.dcm")


def test_short_numbers_and_fractions_do_not_count() -> None:
    assert SOMEBODY.numbers == {Decimal(471100), Decimal("1234.56"), Decimal(20230415)}


@pytest.mark.parametrize(
    "text", ["471100", "-471100", "+0471100", "471100.00", "4711e2", "4.711E+5 ", "1\\2\\471100", "1234.560"]
)
def test_numbers_are_compared_not_their_spellings(text: str) -> None:
    assert are_numbers(text.encode()) and SOMEBODY.is_number_among(text.encode())


@pytest.mark.parametrize("text", ["471.100", "47110", "4711001", "1.5", "", "\\", "1234.5", "4711"])
def test_other_numbers_are_not_the_patients(text: str) -> None:
    assert are_numbers(text.encode()) and not SOMEBODY.is_number_among(text.encode())


@pytest.mark.parametrize("text", ["12-5", "1.2.3", "1 2", "0x10", "NaN", "1_000", "e5", "1e", "--1", "12 kg"])
def test_what_its_representation_does_not_promise_is_no_number(text: str) -> None:
    assert not are_numbers(text.encode())


def test_a_long_value_is_read_in_no_time() -> None:
    assert not are_numbers(b"1" * 1_000_000 + b"x")
    assert not are_numbers(b" " * 1_000_000 + b"x")


@pytest.mark.parametrize(
    ("vr", "stored"),
    [
        ("UL", struct.pack("<II", 1, 471100)),
        ("SL", struct.pack("<i", -471100)),
        ("UV", struct.pack("<Q", 471100)),
        ("SV", struct.pack("<q", 471100)),
        ("FD", struct.pack("<d", 1234.56)),
        ("FL", struct.pack("<f", 1234.56)),
        ("AT", struct.pack("<HH", 471100 >> 16, 471100 & 0xFFFF)),
        ("UL", struct.pack("<I", 20230415)),
    ],
)
def test_binary_numbers_are_compared(vr: str, stored: bytes) -> None:
    assert SOMEBODY.is_binary_among(stored, vr)
    assert not SOMEBODY.is_binary_among(bytes(len(stored)), vr)
    assert not Identity().is_binary_among(stored, vr)


def test_a_choice_of_representations_means_each_of_them() -> None:
    identity = Identity(frozenset({"65000", "31000"}))
    assert identity.is_binary_among(struct.pack("<H", 65000), "US or SS")
    assert identity.is_binary_among(struct.pack("<h", -31000), "US or SS")


def test_a_number_in_a_binary_attribute_goes_or_the_object_is_refused(tmp_path: Path) -> None:
    image = files.ct_series()[0]
    image.PatientID = "N-54321987"
    image.ReferencePixelX0, image.SimpleFrameList = 54321987, [1, 54321987]
    clean = cleaned(image, tmp_path)
    assert not {"ReferencePixelX0", "SimpleFrameList"} & set(clean.dir())
    image.PatientID, image.PixelPaddingValue = "N-31000", -31000
    with pytest.raises(CaseError, match="PixelPaddingValue"):
        cleaned(image, tmp_path)


@pytest.mark.filterwarnings("ignore:Invalid value for VR AS")
def test_an_age_that_is_none_is_emptied(tmp_path: Path) -> None:
    image = files.ct_series()[0]
    image.PatientAge = "old"
    item = Dataset()
    item.PatientAge = "Meie"
    image.SourceImageSequence = [item]
    clean = cleaned(image, tmp_path)
    assert clean.PatientAge == "" and clean.SourceImageSequence[0].PatientAge == ""


@pytest.mark.parametrize("text", ["V2 15.04.2023", "2023-04-15", "04/15/2023", "built 20230415"])
def test_dates_of_studies_are_found_in_texts(text: str, tmp_path: Path) -> None:
    image = files.ct_series()[0]
    image.SeriesDate, image.SoftwareVersions = "20230415", text
    clean = cleaned(image, tmp_path)
    assert clean.SoftwareVersions == "ANONYMIZED" and clean.SeriesDate == "20230316"


def test_a_date_that_moves_to_another_date_of_the_patient_stays(tmp_path: Path) -> None:
    image = files.ct_series()[0]
    image.StudyDate, image.SeriesDate = "20230415", "20230515"  # 30 days
    clean = cleaned(image, tmp_path)
    assert (clean.StudyDate, clean.SeriesDate) == ("20230316", "20230415")


def test_a_name_of_two_letters_counts_as_a_word(tmp_path: Path) -> None:
    images = files.ct_series()
    contours = [("CLOSED_PLANAR", files.square(0, 0, 5.0, 2.5))]
    structures = files.structure_set(images, {name: contours for name in ("ring Li", "limbs", "CTV hu")})
    structures.PatientName = "Hu^Li"
    clean = cleaned(structures, tmp_path)
    assert [r.ROIName for r in clean.StructureSetROISequence] == ["ROI_1", "limbs", "ROI_3"]
    image = images[0]
    image.PatientName, image.RescaleType = "Hu^Li", "HU"
    assert cleaned(image, tmp_path).RescaleType == "HU"


@pytest.mark.parametrize("keyword", ["TreatmentMachineName", "StationName", "DeviceSerialNumber"])
def test_the_name_of_a_machine_is_found_in_other_texts(keyword: str, tmp_path: Path) -> None:
    image = files.ct_series()[0]
    setattr(image, keyword, "WESTHALLE9")
    image.Manufacturer = "linac Westhalle"
    assert cleaned(image, tmp_path).Manufacturer == "ANONYMIZED"


def test_bytes_after_the_last_pixel_go(tmp_path: Path) -> None:
    image = files.ct_series()[0]
    pixels = image.PixelData
    image.PixelData = pixels + b"Doe 1"
    assert cleaned(image, tmp_path).PixelData == pixels


@pytest.mark.parametrize("text", [b"..84773321..", "84773321".encode("utf-16-le")])
def test_a_record_number_in_the_pixels_is_found(text: bytes, tmp_path: Path) -> None:
    image = files.ct_series()[0]
    image.PatientID = "84773321"
    image.PixelData = text + image.PixelData[len(text) :]
    original = open_dataset(files.save(image, tmp_path / "a.dcm"), pixels=True)
    assert original is not None
    patient = Patient("case-0123abcd", 30, identity_of(original))
    deidentify(original, patient, Key(b"a secret of the tests"), TABLE)
    original.save_as(tmp_path / "b.dcm", enforce_file_format=True)
    assert leak(tmp_path / "b.dcm", patient, TABLE) == "its bytes"
