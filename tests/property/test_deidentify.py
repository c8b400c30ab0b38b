"""Whatever the text and wherever it stands, a patient's name and number do not survive."""

from __future__ import annotations

import tempfile
from datetime import date
from pathlib import Path

import dicom_files as files
import pydicom
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydicom.datadict import dictionary_VR
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from vmat_diffusion.dicom.attributes import open_dataset
from vmat_diffusion.dicom.confidential.deidentify import deidentify, moved_date
from vmat_diffusion.dicom.confidential.identity import Key, Patient, folded, identity_of
from vmat_diffusion.dicom.confidential.leaks import leak
from vmat_diffusion.dicom.confidential.profile import word_set
from vmat_diffusion.dicom.names import load_table

TABLE = load_table(None)
# Texts of every kind: in the table and not, technical, names of regions, plans and beams, codes.
KEYWORDS = sorted(
    word_set(
        """
    PatientComments OperatorsName PhysiciansOfRecord Manufacturer ManufacturerModelName SoftwareVersions
    ConvolutionKernel StationName SeriesDescription StudyDescription ProtocolName DetectorDescription
    ImageComments DerivationDescription ROIName ROIDescription RTPlanLabel RTPlanName BeamName
    BeamDescription StructureSetLabel StructureSetName DoseComment PrescriptionDescription
    TreatmentMachineName CodeMeaning CodeValue TextValue LongCodeValue URNCodeValue PersonName
    VerifyingObserverName AddressTrial ApplicatorID StrainAdditionalInformation
    WindowCenterWidthExplanation PositionReferenceIndicator RescaleType FilterType BodyPartExamined
    ScanOptions StationAETitle RetrieveURL
        """
    )
)
SEQUENCES = sorted(
    word_set(
        """
    ReferencedImageSequence SourceImageSequence BeamSequence StructureSetROISequence
    PatientOrientationCodeSequence RequestAttributesSequence OriginalAttributesSequence
        """
    )
)

letters = st.text("abcdefghijklmnopqrstuvwxyzÄÖÜéßñøşčЖ王", min_size=4, max_size=9)
digits = st.text("123456789", min_size=5, max_size=8)
places = st.lists(st.sampled_from(KEYWORDS), min_size=1, max_size=8, unique=True)
framings = st.sampled_from(["{}", "{}^x", "seen by {}", "PTV_{}", "x{}x", "({})"])


def spread(dataset: Dataset, keywords: list[str], text: str, depth: int, sequence: str) -> None:
    """Put a text into attributes of a data set and of items down to a depth, and into private ones."""
    for keyword in keywords:
        # pydicom writes addresses and codes in Latin letters only.
        latin = text.encode("latin-1", "ignore").decode("latin-1")
        setattr(dataset, keyword, latin if dictionary_VR(keyword) in ("AE", "CS", "UR") else text)
    dataset.private_block(0x0011, "Maker", create=True).add_new(1, "UT", text)
    if depth:
        item = Dataset()
        spread(item, keywords, text, depth - 1, sequence)
        setattr(dataset, sequence, [item])


@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:The value length")
@settings(max_examples=20)
@given(
    name=letters,
    number=digits,
    framing=framings,
    keywords=places,
    depth=st.integers(0, 2),
    sequence=st.sampled_from(SEQUENCES),
    implicit=st.booleans(),
)
def test_no_name_and_no_number_survives(
    name: str, number: str, framing: str, keywords: list[str], depth: int, sequence: str, implicit: bool
) -> None:
    assume(folded(name) not in folded("ORIGINAL PRIMARY AXIAL"))  # words of every image
    image = files.ct_series()[0]
    image.SpecificCharacterSet = "ISO_IR 192"
    image.PatientName, image.PatientID = f"{name}^Q", f"N{number}"
    spread(image, keywords, framing.format(name), depth, sequence)
    spread(image, ["AccessionNumber", "StudyComments"], framing.format(number), depth, sequence)
    with tempfile.TemporaryDirectory() as folder:
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset = open_dataset(files.save(image, Path(folder) / "a.dcm", syntax), pixels=True)
        assert dataset is not None
        patient = Patient("case-0123abcd", 7, identity_of(dataset))
        deidentify(dataset, patient, Key(b"0" * 16), TABLE)
        out = Path(folder) / "b.dcm"
        dataset.save_as(out, enforce_file_format=True)
        assert leak(out, patient, TABLE) is None
        # Not the scan's own judgement: every text of the file, read by pydicom and compared here.
        texts = [
            folded(str(e.value)) for e in pydicom.dcmread(out).iterall() if e.VR not in ("UI", "SQ", "OW")
        ]
    assert not [t for t in texts if folded(name) in t or number in t]


@given(days=st.integers(1, 365), a=st.dates(), b=st.dates())
def test_moved_dates_keep_their_interval(days: int, a: date, b: date) -> None:
    moved = [moved_date(d.isoformat().replace("-", ""), days) for d in (a, b)]
    if all(moved):
        first, second = (date(int(m[:4]), int(m[4:6]), int(m[6:])) for m in moved)
        assert second - first == b - a and (a - first).days == days


@given(a=st.text(max_size=64), b=st.text(max_size=64))
def test_uids_differ_where_the_originals_do(a: str, b: str) -> None:
    key = Key(b"0" * 16)
    assert (key.uid(a) == key.uid(b)) == (a == b)
    assert pydicom.uid.UID(key.uid(a)).is_valid


@pytest.mark.parametrize("station", ["StationName", "StationAETitle", "DeviceSerialNumber"])
def test_the_name_of_a_station_is_found_in_other_texts(station: str, tmp_path: Path) -> None:
    image = files.ct_series()[0]
    setattr(image, station, "NORDWAND7731")
    image.Manufacturer = "scanner Nordwand7731"
    dataset = open_dataset(files.save(image, tmp_path / "a.dcm"), pixels=True)
    assert dataset is not None
    deidentify(dataset, Patient("case-0123abcd", 7, identity_of(dataset)), Key(b"0" * 16), TABLE)
    texts = [str(e.value).lower() for e in dataset.iterall() if e.VR not in ("UI", "SQ", "OW")]
    assert not [t for t in texts if "nordwand" in t or "7731" in t]
