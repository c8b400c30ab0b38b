"""De-identifying one object: what goes, what stays, what is refused."""

from __future__ import annotations

from pathlib import Path

import dicom_files as files
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian

from vmat_diffusion.dicom.attributes import open_dataset
from vmat_diffusion.dicom.confidential.deidentify import deidentify, moved_date
from vmat_diffusion.dicom.confidential.identity import Identity, Key, Patient, folded, identity_of
from vmat_diffusion.dicom.confidential.leaks import leak
from vmat_diffusion.dicom.confidential.profile import METHOD, OPTIONS, rule_for
from vmat_diffusion.dicom.names import load_table
from vmat_diffusion.errors import CaseError

KEY = Key(b"a secret of the tests")
TABLE = load_table(None)


def cleaned(dataset: Dataset, tmp_path: Path) -> Dataset:
    """A data set as it is after being written, de-identified, written and read again."""
    original = open_dataset(files.save(dataset, tmp_path / "original.dcm"), pixels=True)
    assert original is not None
    patient = Patient("case-0123abcd", 30, identity_of(original))
    deidentify(original, patient, KEY, TABLE)
    original.save_as(tmp_path / "clean.dcm", enforce_file_format=True)
    assert leak(tmp_path / "clean.dcm", patient, TABLE) is None
    return pydicom.dcmread(tmp_path / "clean.dcm")


def ct() -> Dataset:
    return files.ct_series()[0]


def rois(**names: str) -> Dataset:
    images = files.ct_series()
    contours = {name: [("CLOSED_PLANAR", files.square(0, 0, 5.0, 2.5))] for name in names.values()}
    return files.structure_set(images, contours)


def names_in(dataset: Dataset) -> list[str]:
    return [str(item.ROIName) for item in dataset.StructureSetROISequence]


@pytest.mark.filterwarnings("ignore:Invalid value for VR DA")
def test_patient_dates_and_ages(tmp_path: Path) -> None:
    image = ct()
    image.PatientBirthDate, image.PatientBirthTime, image.PatientAge = "19300101", "0815", "094Y"
    image.StudyDate, image.StudyTime, image.PatientSex, image.PatientWeight = "20240301", "101500", "F", "61"
    image.AcquisitionDateTime, image.ContentDate = "20240229101500.5+0100", "no date"
    image.EthnicGroup = "X"
    clean = cleaned(image, tmp_path)
    assert clean.PatientName == clean.PatientID == "case-0123abcd"
    assert (clean.PatientBirthDate, clean.get("PatientBirthTime"), clean.PatientAge) == ("", "", "090Y")
    assert (clean.StudyDate, clean.StudyTime, clean.ContentDate) == ("20240131", "101500", "")
    assert clean.AcquisitionDateTime == "20240130101500.5+0100"
    assert (clean.PatientSex, clean.PatientWeight) == ("F", 61)
    assert "EthnicGroup" not in clean
    assert clean.PatientIdentityRemoved == "YES"
    assert clean.LongitudinalTemporalInformationModified == "MODIFIED"
    assert clean.DeidentificationMethod == METHOD and len(METHOD) <= 64
    codes = clean.DeidentificationMethodCodeSequence
    assert [(c.CodeValue, c.CodeMeaning) for c in codes] == list(OPTIONS)


@pytest.mark.parametrize(
    ("value", "moved"),
    [
        ("20240301", "20240131"),
        ("2024.03.01", "20240131"),
        ("20240301235959.9", "20240131235959.9"),
        ("00010105", ""),
        ("202403", ""),
        ("20241350", ""),
        ("Secret", ""),
        ("", ""),
    ],
)
def test_dates_move_by_whole_days_or_go(value: str, moved: str) -> None:
    assert moved_date(value, 30) == moved


def test_private_drawn_and_unknown_attributes_go(tmp_path: Path) -> None:
    image = ct()
    image.private_block(0x0011, "Maker", create=True).add_new(1, "LO", "anything")
    image.add_new(0x60000010, "US", 4)
    image.add_new(0x60003000, "OW", b"\1\2")
    image.add_new(0x50000010, "US", 4)
    image.add_new(0x00090001, "UN", b"x")
    image.add_new(0x00189999, "UN", b"unknown")
    image.add_new(0x00420011, "OB", b"a document")
    item = Dataset()
    item.private_block(0x0013, "Maker", create=True).add_new(1, "LO", "anything")
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = "1", "DCM", "one"
    image.PatientOrientationCodeSequence = [item]
    clean = cleaned(image, tmp_path)
    left = [e.tag for e in clean.iterall()]
    assert not [t for t in left if t.is_private or t.group in (0x5000, 0x6000) or t == 0x00189999]
    assert clean.EncapsulatedDocument == b"Anonymized"
    assert clean.PatientOrientationCodeSequence[0].CodeMeaning == "one"
    assert clean.PixelData == ct().PixelData


def test_free_texts_go_unless_technical_and_harmless(tmp_path: Path) -> None:
    image = ct()
    image.Manufacturer, image.ManufacturerModelName = "ACME", "Secretome 3"
    image.SeriesDescription, image.StudyDescription = "seen by me", "thorax"
    image.ImageComments, image.DetectorDescription = "hello", "free words"
    image.BodyPartExamined, image.ImageType = "SECRET", ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"]
    clean = cleaned(image, tmp_path)
    assert clean.Manufacturer == "ACME"
    assert clean.ManufacturerModelName == clean.BodyPartExamined == "ANONYMIZED"
    assert clean.DetectorDescription == "ANONYMIZED"
    assert not {"SeriesDescription", "StudyDescription", "ImageComments"} & set(clean.dir())
    assert list(clean.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"]


def test_codes_of_the_standard_stay_though_a_patient_is_called_so(tmp_path: Path) -> None:
    image = ct()
    image.PatientName = "Axial^Primary"
    assert list(cleaned(image, tmp_path).ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]


def test_numbers_that_are_texts_go(tmp_path: Path) -> None:
    image = ct()
    tag = pydicom.tag.Tag("KVP")
    image[tag] = pydicom.dataelem.RawDataElement(tag, "DS", 6, b"Doe 12", 0, False, True)
    assert "KVP" not in cleaned(image, tmp_path)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_numbers_dates_and_times_that_are_the_patients_go(tmp_path: Path) -> None:
    image = ct()
    image.PatientID, image.PatientBirthDate, image.AccessionNumber = "84773321", "19500102", "101500"
    image.SeriesNumber, image.AcquisitionNumber, image.KVP = "84773321", "2011950", "84773321.0"
    image.ContentTime, image.SeriesTime, image.StudyTime = "84773321", "101500", "101501.25"
    image.StudyDate, image.ContentDate = "19500201", "2024030284773321"  # the first moves to the birth date
    image.AcquisitionDateTime = "2024030184773321"
    clean = cleaned(image, tmp_path)
    assert not {"SeriesNumber", "KVP", "AcquisitionNumber"} & set(clean.dir())
    assert (clean.ContentTime, clean.SeriesTime, clean.StudyTime) == ("", "", "101501.25")
    assert (clean.StudyDate, clean.ContentDate, clean.AcquisitionDateTime) == ("", "", "")


def test_an_object_is_refused_where_a_number_that_it_needs_is_the_patients(tmp_path: Path) -> None:
    image = ct()
    image.PatientID, image.RescaleIntercept = "84773321", "84773321"
    with pytest.raises(CaseError, match=r"RescaleIntercept \(0028,1052\) holds a number of the patient's"):
        cleaned(image, tmp_path)
    plan = files.rt_plan([files.beam(1)])
    plan.PatientID, plan.BeamSequence[0].SourceAxisDistance = "84773321", "84773321"
    with pytest.raises(CaseError, match="SourceAxisDistance"):
        cleaned(plan, tmp_path)


def test_roi_names(tmp_path: Path) -> None:
    clean = cleaned(
        rois(a="cord", b="ptv secret", c="ring", d="tumour 4711", e="visit 20240301", f="Externa1"), tmp_path
    )
    assert names_in(clean) == ["SpinalCord", "ROI_2", "ring", "ROI_4", "ROI_5", "Externa1"]


@pytest.mark.parametrize(
    "text", ["x 02.01.1950", "x 01/02/1950", "xx 1950-01-02", "rec 8477-3321", "8477 33_21"]
)
def test_birth_date_and_number_are_found_whatever_separates_their_digits(text: str, tmp_path: Path) -> None:
    structures = rois(a=f"GTV {text}", b="ring 50")
    structures.PatientID, structures.PatientBirthDate = "84773321", "19500102"
    structures.ManufacturerModelName, structures.SoftwareVersions = text, "16.1.0"
    clean = cleaned(structures, tmp_path)
    assert names_in(clean) == ["ROI_1", "ring 50"]
    assert (clean.ManufacturerModelName, clean.SoftwareVersions) == ("ANONYMIZED", "16.1.0")
    identity = identity_of(structures)
    assert identity.is_in(text) and identity.is_in_code(text)
    clean.ManufacturerModelName = text
    clean.save_as(tmp_path / "put_back.dcm")
    assert leak(tmp_path / "put_back.dcm", Patient("case-0123abcd", 30, identity), TABLE) == "(0008,1090)"


def test_long_numbers_in_names_of_regions_may_have_separators(tmp_path: Path) -> None:
    assert names_in(cleaned(rois(a="GTV 02.01.50", b="Boost 50.4"), tmp_path)) == ["ROI_1", "Boost 50.4"]


def test_a_patient_called_like_an_organ_keeps_the_organ(tmp_path: Path) -> None:
    structures = rois(a="Heart", b="near heart")
    structures.PatientName = "Heart^Lung"
    assert names_in(cleaned(structures, tmp_path)) == ["Heart", "ROI_2"]


def test_two_regions_that_claim_one_name_keep_their_own(tmp_path: Path) -> None:
    structures = rois(a="cord", b="CORD", c="secret", d="Heart")
    assert names_in(cleaned(structures, tmp_path)) == ["cord", "CORD", "ROI_3", "Heart"]


def test_labels_of_plan_and_beams(tmp_path: Path) -> None:
    plan = files.rt_plan([files.beam(1), files.beam(2)])
    plan.RTPlanLabel, plan.RTPlanName = "Secret 1", "plan for Name"
    plan.BeamSequence[0].BeamName, plan.BeamSequence[1].BeamDescription = "Name arc", "text"
    clean = cleaned(plan, tmp_path)
    assert clean.RTPlanLabel == "Plan" and "RTPlanName" not in clean
    assert [b.BeamName for b in clean.BeamSequence] == ["Beam 1", "Beam 2"]
    assert "BeamDescription" not in clean.BeamSequence[1]
    for before, after in zip(plan.BeamSequence, clean.BeamSequence, strict=True):
        assert after.ControlPointSequence == before.ControlPointSequence


def test_uids_are_new_below_2_25_and_those_of_the_standard_stay(tmp_path: Path) -> None:
    clean = cleaned(files.structure_set(files.ct_series()), tmp_path)
    assert clean.SOPClassUID == files.STRUCTURES_CLASS
    assert clean.SOPInstanceUID == clean.file_meta.MediaStorageSOPInstanceUID == KEY.uid("1.2.3.4")
    frame = clean.ReferencedFrameOfReferenceSequence[0]
    assert frame.FrameOfReferenceUID == clean.FrameOfReferenceUID == KEY.uid(files.FRAME)
    assert all(len(str(e.value)) <= 64 for e in clean.iterall() if e.VR == "UI" and e.VM == 1)
    assert KEY.uid("1.2").startswith("2.25.") and KEY.uid("1.2") != Key(b"another").uid("1.2")


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("BurnedInAnnotation", "YES", "burned in"),
        ("ImageType", ["DERIVED", "SECONDARY", "SCREEN SAVE"], "screen shot"),
    ],
)
def test_images_that_may_show_a_name_are_refused(
    keyword: str, value: object, words: str, tmp_path: Path
) -> None:
    image = ct()
    setattr(image, keyword, value)
    with pytest.raises(CaseError, match=words):
        cleaned(image, tmp_path)


def test_an_overlay_in_the_pixels_is_refused(tmp_path: Path) -> None:
    image = ct()
    image.add_new(0x60000102, "US", 12)
    with pytest.raises(CaseError, match="spare bits"):
        cleaned(image, tmp_path)


def test_other_character_sets_are_read_and_become_utf_8(tmp_path: Path) -> None:
    structures = rois(a="Blase Größe", b="beim Müller")
    structures.SpecificCharacterSet, structures.PatientName = "ISO_IR 100", "Müller^Änne"
    clean = cleaned(structures, tmp_path)
    assert clean.SpecificCharacterSet == "ISO_IR 192"
    assert names_in(clean) == ["Blase Größe", "ROI_2"]


def test_identity_folds_case_accents_and_umlauts() -> None:
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.PatientID = "Müller^Ann-Kathrin=王^小東", "AB-0012345/7"
    dataset.PatientBirthDate = "19540312"
    item = Dataset()
    item.PersonName = "Deep^Inside"
    dataset.AdmittingDiagnosesCodeSequence = [item]
    identity = identity_of(dataset)
    for text in ["MULLER", "mueller", "x_Müllér_y", "kathrin", "小東", "id 12345", "0012345", "AB00123457"]:
        assert identity.is_in(text), text
    assert identity.is_in("born 19540312") and identity.is_in("inside")
    assert not identity.is_in("PTV 70") and not identity.is_in("ab 12")
    assert identity.is_in_code("ANN") and not identity.is_in_code("PLANNED")
    assert folded("STRAßE") == "strasse"


def test_the_table_is_the_librarys() -> None:
    rules = {keyword: rule_for(pydicom.tag.Tag(keyword)) for keyword in ("PatientID", "RTPlanName", "Rows")}
    assert {k: r and r[1] for k, r in rules.items()} == {
        "PatientID": "replaced",
        "RTPlanName": "removed",
        "Rows": None,
    }


# --- the second look ---------------------------------------------------------------------------

WORDS = Identity(frozenset({"zacharias", "doe", "471100"}), frozenset({"Zacharias", "Doe"}))
SOMEBODY = Patient("case-0123abcd", 30, WORDS)


def spoilt(tmp_path: Path, implicit: bool = False, **values: object) -> Path:
    """A clean CT slice into which something has been put afterwards."""
    clean = cleaned(ct(), tmp_path)
    for keyword, value in values.items():
        setattr(clean, keyword, value)
    if implicit:
        return files.save(clean, tmp_path / "spoilt.dcm", ImplicitVRLittleEndian)
    clean.save_as(tmp_path / "spoilt.dcm", enforce_file_format=True)
    return tmp_path / "spoilt.dcm"


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("SeriesNumber", "471100"),
        ("SliceLocation", "-471100.00"),
        ("SliceLocation", "4.71100e5"),
        ("SliceLocation", "1.5\\471100"),
        ("ContentTime", "471100"),
        ("ContentTime", "47:11:00"),
        ("ContentDate", "4711.00"),
        ("AcquisitionDateTime", "20240301471100"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")
def test_the_scan_compares_numbers_dates_and_times(keyword: str, value: str, tmp_path: Path) -> None:
    tag = pydicom.tag.Tag(keyword)
    file = spoilt(tmp_path, **{keyword: value.split("\\")})
    assert leak(file, SOMEBODY, TABLE) == f"({tag.group:04X},{tag.element:04X})"


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"SeriesDescription": "for DOE"}, "(0008,103E)"),
        ({"ImageComments": "471100"}, "(0020,4000)"),
        ({"BodyPartExamined": "DOE"}, "(0018,0015)"),
        ({"FrameOfReferenceUID": "1.2.3.1"}, "(0020,0052)"),
        ({"EncapsulatedDocument": "xx Doe xx".encode("utf-16-le")}, "(0042,0011)"),
        ({"PixelData": bytes(100) + b"zachARIAS" + bytes(403)}, "its bytes"),
        ({"SimpleFrameList": np.frombuffer(b"xxZACHARIAS ", "<u4").tolist()}, "its bytes"),
    ],
)
def test_the_scan_finds_what_is_left(
    values: dict[str, object], where: str, implicit: bool, tmp_path: Path
) -> None:
    assert leak(spoilt(tmp_path, implicit, **values), SOMEBODY, TABLE) == where


def test_the_scan_looks_into_items_and_private_attributes(tmp_path: Path) -> None:
    item = Dataset()
    item.CodeMeaning = "by doe"
    assert leak(spoilt(tmp_path, PatientOrientationCodeSequence=[item]), SOMEBODY, TABLE) == "(0008,0104)"
    clean = cleaned(ct(), tmp_path)
    clean.private_block(0x0011, "Maker", create=True).add_new(1, "OB", b"..Doe.")
    clean.save_as(tmp_path / "private.dcm", enforce_file_format=True)
    assert leak(tmp_path / "private.dcm", SOMEBODY, TABLE) == "(0011,1001)"


@pytest.mark.parametrize("vr", ["US", "OW"])
def test_the_scan_looks_into_tables_for_long_words_alone(vr: str, tmp_path: Path) -> None:
    for content, where in ((b"..ZACHARIAS.", "its bytes"), (b"....doe.....", None)):
        clean = cleaned(ct(), tmp_path)
        clean.add_new(0x00283006, vr, content if vr == "OW" else np.frombuffer(content, "<u2").tolist())
        clean.save_as(tmp_path / "table.dcm", enforce_file_format=True)
        assert leak(tmp_path / "table.dcm", SOMEBODY, TABLE) == where


def test_the_scan_looks_into_the_preamble(tmp_path: Path) -> None:
    raw = spoilt(tmp_path).read_bytes()
    (tmp_path / "p.dcm").write_bytes(b"Doe" + raw[3:])
    assert leak(tmp_path / "p.dcm", SOMEBODY, TABLE) == "its preamble"


def test_latin_letters_are_no_surname_of_one_sign(tmp_path: Path) -> None:
    image = ct()
    image.SpecificCharacterSet, image.PatientName = "ISO_IR 192", "Yang^Li=杨^丽"
    image.Manufacturer = "hgLightSpeed VCT"  # "gh" and "hg" are U+6768, read as UTF-16
    assert cleaned(image, tmp_path).Manufacturer == "hgLightSpeed VCT"
    surname = Patient("case-0123abcd", 30, Identity(frozenset({"杨"}), frozenset({"杨"})))
    for spelling in ("杨".encode(), "x杨".encode("utf-16-le")):
        file = spoilt(tmp_path, EncapsulatedDocument=spelling)
        assert leak(file, surname, TABLE) == "(0042,0011)"


def test_the_scan_takes_no_number_or_pixel_for_a_record_number(tmp_path: Path) -> None:
    pixels = np.frombuffer(b"doe " * 128, "u1").tobytes()
    coordinates = ["471.100", "-47.1100", "-4711.00"]
    file = spoilt(tmp_path, ImagePositionPatient=coordinates, PixelData=pixels, ContentTime="101500.471100")
    assert leak(file, SOMEBODY, TABLE) is None
    with pytest.raises(CaseError, match="cannot be read back"):
        file.write_bytes(file.read_bytes()[:-3])
        leak(file, SOMEBODY, TABLE)
