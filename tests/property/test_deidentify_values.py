"""Whatever the value representation and wherever it stands, what identifies a patient does not survive."""

from __future__ import annotations

import struct
import tempfile
from decimal import Decimal
from pathlib import Path

import dicom_files as files
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom._dicom_dict import DicomDictionary
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from raw_patients import raw_patient

from vmat_diffusion.dicom import read_case, read_dose, read_plan
from vmat_diffusion.dicom.attributes import open_dataset
from vmat_diffusion.dicom.confidential.deidentify import deidentify
from vmat_diffusion.dicom.confidential.identity import Key, Patient, identity_of
from vmat_diffusion.dicom.confidential.leaks import leak
from vmat_diffusion.dicom.names import load_table
from vmat_diffusion.errors import CaseError
from vmat_diffusion.workflow.deidentify import deidentify_folder

TABLE = load_table(None)
NAME, STATION, BIRTH, STUDY = "Zacharias", "NORDWAND", "19310203", "20230415"
TEXTS = ("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
NUMBERS = ("DS", "IS")
BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
BYTES = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")
TIMES = ("DA", "DT", "TM")
VRS = (*TEXTS, *NUMBERS, *BINARY, *BYTES, *TIMES, "AS", "AT", "UI")
# What the objects of the tests are made of is planted in tests of its own.
BUILT_OF = {e.tag for d in (files.ct_series()[0],) for e in d} | {0x00080005}
PUBLIC = {
    vr: sorted(
        tag
        for tag, (stated, *_) in DicomDictionary.items()
        if stated == vr and tag >> 16 not in (0x0000, 0x0002, 0x0004) and tag not in BUILT_OF
    )
    for vr in VRS
}


def planted(vr: str, number: str, spelling: str) -> object:
    """The value of an element that holds the patient's name, number or dates as its representation has it."""
    if vr in NUMBERS:
        whole = {
            "plain": number,
            "zeros": f"00{number}",
            "decimal": f"{number}.00",
            "exponent": f"{number}e0",
        }
        return f"{whole[spelling] if vr == 'DS' else whole['plain']}"
    if vr == "FL":
        return float(np.float32(number))
    if vr in BINARY:
        return float(number) if vr == "FD" else int(number[:4] if vr in ("US", "SS") else number)
    if vr == "AT":
        return int(number)
    if vr in BYTES:
        words = {"plain": NAME, "zeros": number, "decimal": f"{NAME} {number}", "exponent": NAME.upper()}
        return words[spelling].encode("utf-16-le" if spelling == "exponent" else "ascii") + b"  "
    if vr in TIMES:
        return {"DA": BIRTH, "DT": f"{BIRTH}120000", "TM": number}[vr]
    if vr in ("AS", "UI"):
        return {"AS": NAME[:4], "UI": f"1.2.{number}"}[vr]
    words = {"plain": NAME, "zeros": f"x{NAME}x", "decimal": number, "exponent": f"{STUDY[:4]}-04-15"}
    return words[spelling].upper() if vr in ("AE", "CS") else words[spelling]


def survives(raw: bytes, dataset: Dataset, number: str) -> list[str]:
    """Where the file still has the name, the number or a date, by its bytes and by pydicom's reading."""
    found = []
    lower = raw.lower()
    for word in (NAME, STATION, number, BIRTH, STUDY):
        for encoding in ("ascii", "utf-16-le", "utf-16-be"):
            if word.lower().encode(encoding) in lower.replace(b"2.25.", b""):
                found.append(f"{word} as {encoding}")
    for element in dataset.iterall():
        if element.VR in ("SQ", "OW", "UI"):
            continue
        values = element.value if isinstance(element.value, pydicom.multival.MultiValue) else [element.value]
        for value in values:
            if isinstance(value, int | float | Decimal) and Decimal(str(value)) == Decimal(number):
                found.append(f"{element.tag} is {value}")
            if element.VR == "FL" and struct.pack("<f", float(number)) == struct.pack("<f", value):
                found.append(f"{element.tag} is {value}")
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("vr", VRS)
@settings(max_examples=12)
@given(
    data=st.data(),
    number=st.integers(1_000_000, 99_999_999).map(str),
    spelling=st.sampled_from(["plain", "zeros", "decimal", "exponent"]),
    where=st.sampled_from(["public", "private", "item", "private item"]),
    implicit=st.booleans(),
)
def test_nothing_survives_in_any_value_representation(
    vr: str, data: st.DataObject, number: str, spelling: str, where: str, implicit: bool
) -> None:
    image = files.ct_series()[0]
    image.PatientName, image.PatientID, image.StationName = f"{NAME}^Li", f"N-{number}", STATION
    image.PatientBirthDate, image.StudyDate, image.SeriesDate = BIRTH, STUDY, STUDY
    place = image
    if "item" in where:
        place = Dataset()
        image.SourceImageSequence = [place]
    value = planted(vr, number, spelling)
    if "private" in where or not PUBLIC[vr]:
        place.private_block(0x0011, NAME, create=True).add_new(1, vr, value)
    else:
        place.add_new(data.draw(st.sampled_from(PUBLIC[vr])), vr, value)
    with tempfile.TemporaryDirectory() as folder:
        syntax = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        dataset = open_dataset(files.save(image, Path(folder) / "a.dcm", syntax), pixels=True)
        assert dataset is not None
        patient = Patient("case-0123abcd", 7, identity_of(dataset))
        out = Path(folder) / "b.dcm"
        try:
            deidentify(dataset, patient, Key(b"0" * 16), TABLE)
            dataset.save_as(out, enforce_file_format=True)
            if leak(out, patient, TABLE) is not None:
                return  # the command keeps nothing
        except CaseError as fault:
            assert NAME not in str(fault) and number not in str(fault)
            return
        clean = pydicom.dcmread(out)
        assert not survives(out.read_bytes(), clean, number)
        assert clean.PixelData == files.ct_series()[0].PixelData
        assert clean.ImagePositionPatient == image.ImagePositionPatient


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=12, deadline=None)
@given(
    data=st.data(),
    vr=st.sampled_from(VRS),
    number=st.integers(1_000_000, 99_999_999).map(str),
    spelling=st.sampled_from(["plain", "zeros", "decimal", "exponent"]),
    kind=st.sampled_from([0, -3, -2, -1]),
)
def test_the_geometry_the_dose_and_the_plan_stay_exactly(
    data: st.DataObject, vr: str, number: str, spelling: str, kind: int
) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = raw_patient(Path(place) / f"{NAME}_{number}", names={"cord": f"cord {NAME}"})
        all_files = sorted(folder.iterdir())
        for k, file in enumerate(all_files):
            dataset = pydicom.dcmread(file)
            dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = f"{NAME}^Q", number, BIRTH
            if k == kind % len(all_files):
                own = {e.tag for e in dataset}
                # Tables of compressed pixels (7FE0) beside plain ones: no reader takes such an image.
                free = [tag for tag in PUBLIC[vr] if tag not in own and tag >> 16 != 0x7FE0]
                value = planted(vr, number, spelling)
                if free:
                    dataset.add_new(data.draw(st.sampled_from(free)), vr, value)
                dataset.private_block(0x0011, NAME, create=True).add_new(1, vr, value)
            dataset.save_as(folder / f"{NAME} {k}.dcm")
            file.unlink()
        out = Path(place) / "out"
        try:
            done = deidentify_folder(folder, out, key="a key for this test alone")
        except CaseError as fault:
            assert NAME not in str(fault) and number not in str(fault)
            assert not out.exists()
            return
        written = [f for f in out.rglob("*") if f.is_file()]
        assert not [f for f in written if NAME.encode() in f.read_bytes() or number in str(f)]
        if done.left_out:
            return
        copy = out / next(iter(done.cases))
        before, after = (read_case(f, allow_outside_body=True) for f in (folder, copy))
        assert np.array_equal(before.hu, after.hu) and before.grid == after.grid
        masks = [{c.source.roi_numbers[n]: s.mask for n, s in c.structures.items()} for c in (before, after)]
        assert masks[0].keys() == masks[1].keys()
        assert all(np.array_equal(masks[0][n], masks[1][n]) for n in masks[0])
        doses = [read_dose(next(f)) for f in (folder.glob(f"{NAME} 9.dcm"), copy.glob("RTDOSE*"))]
        assert np.array_equal(doses[0].gy, doses[1].gy)
        plans = [read_plan(next(f)) for f in (folder.glob(f"{NAME} 10.dcm"), copy.glob("RTPLAN*"))]
        assert np.array_equal(plans[0].arcs[0].leaves_mm, plans[1].arcs[0].leaves_mm)
        assert np.array_equal(plans[0].arcs[0].mu, plans[1].arcs[0].mu)
