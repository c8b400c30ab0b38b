"""New DICOM data sets: numbers that fit their field, the header of the source, files that are whole."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import datetime
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import config
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import Tag
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DSfloat, validate_value

from vmat_diffusion import __version__
from vmat_diffusion.case import Case
from vmat_diffusion.dicom.attributes import open_dataset, quiet, text
from vmat_diffusion.dicom.sealed import SEALED, sealed
from vmat_diffusion.errors import CaseError, LimitError, PlanError, limit_of
from vmat_diffusion.files import written_whole

MANUFACTURER = "VMAT Diffusion"
MODEL = "vmat-diffusion"
_DS_LENGTH_MAX = 16

# Patient and General Study: what must be the same in every object of a study, and what type 2
# requires to be present even where it is empty.
_COPIED_REQUIRED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
)
_COPIED_OPTIONAL = (
    "IssuerOfPatientID",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
    "StudyDescription",
)


def decimal(value: float) -> DSfloat:
    """A number for a DS attribute: at most 16 characters, without a negative zero."""
    # auto_format can round 9.999999999999998 up to one character too many; fewer digits first.
    return DSfloat(float(f"{float(value) + 0.0:.14g}"), auto_format=True)


def decimals(values: Iterable[float]) -> list[DSfloat]:
    """Several numbers for one DS attribute."""
    return [decimal(v) for v in values]


def set_points_mm(item: Dataset, points: NDArray[np.float64], digits: int = 3) -> None:
    """Put points `(n, 3)` in mm into ContourData, as text: one object per number is far slower."""
    value = "\\".join(f"{v:.{digits}f}" for v in (np.asarray(points) + 0.0).ravel()).encode("ascii")
    value += b" " * (len(value) % 2)
    tag = Tag("ContourData")
    item[tag] = RawDataElement(tag, "DS", len(value), value, 0, False, True)


def new_uid() -> UID:
    """A UID below 2.25, which needs no registered root."""
    return generate_uid(prefix=None)


def new_dataset(sop_class: UID, modality: str, header: Dataset, *, now: datetime) -> Dataset:
    """A data set with SOP Common, Series and Equipment filled in, and `header` as patient and study."""
    out = Dataset()
    out.update(header)
    out.SOPClassUID, out.SOPInstanceUID = sop_class, new_uid()
    out.InstanceCreationDate, out.InstanceCreationTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    out.Modality = modality
    out.SeriesInstanceUID = new_uid()
    out.SeriesNumber = 1
    out.SeriesDate, out.SeriesTime = out.InstanceCreationDate, out.InstanceCreationTime
    out.OperatorsName = ""
    out.Manufacturer, out.ManufacturerModelName, out.SoftwareVersions = MANUFACTURER, MODEL, __version__
    out.PositionReferenceIndicator = ""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, out.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out.file_meta = meta
    return out


def reference(sop_class: UID | str, instance: UID | str) -> Dataset:
    """The item of a sequence that refers to another object."""
    out = Dataset()
    out.ReferencedSOPClassUID, out.ReferencedSOPInstanceUID = sop_class, instance
    return out


def source_header(case: Case) -> tuple[Dataset, str]:
    """Patient, study and frame of reference of the CT that the case was read from, and a remark.

    The remark names the attributes that the CT holds with values that are no valid DICOM (clumsy
    anonymisers write them) and that are left empty for that reason; "" where there are none. Raises
    PlanError where the case was never DICOM, lacks a structure set, or its CT is gone. The values
    go into files only, never into messages.
    """
    source = case.source
    if not (source.image_path and source.study_uid and source.frame_of_reference_uid):
        raise PlanError(
            f"case {case.id} does not come from DICOM, so a plan or dose has no CT to refer to; "
            "write it with write_case and read that folder"
        )
    if not source.structure_set_uid:
        raise PlanError(
            f"case {case.id} has no structure set to refer to, which a plan with patient geometry needs; "
            "read a folder that holds an RTSTRUCT"
        )
    try:
        original = open_dataset(Path(source.image_path))
        if original is None or text(original, "SOPClassUID") != CTImageStorage:
            raise CaseError("it is no CT image")
        if text(original, "StudyInstanceUID") != source.study_uid:
            raise CaseError("it is of another study")
    except CaseError as fault:
        raise PlanError(
            f"case {case.id}: the CT file that it was read from has changed ({fault}); read the case again"
        ) from None
    out, remark = patient_and_study(original, f"case {case.id}")
    out.StudyInstanceUID = source.study_uid
    out.FrameOfReferenceUID = source.frame_of_reference_uid
    return out, remark


def patient_and_study(original: Dataset, label: str) -> tuple[Dataset, str]:
    """The patient and study of an object, and a remark as in `source_header`.

    Raises PlanError, which begins with `label`, for what cannot be read.
    """
    out, emptied = Dataset(), []
    out.SpecificCharacterSet = original.get("SpecificCharacterSet") or "ISO_IR 100"
    with quiet():
        for keyword in (*_COPIED_REQUIRED, *_COPIED_OPTIONAL):
            try:
                if keyword in original and _is_valid(original[keyword]):
                    out[keyword] = original[keyword]
                elif keyword in original:
                    emptied.append(keyword)
                if keyword not in out and keyword in _COPIED_REQUIRED:
                    setattr(out, keyword, "")
            except Exception:  # pydicom raises every kind of exception for a value it cannot decode
                raise PlanError(
                    f"{label}: {keyword} of its CT cannot be read; correct the CT and read it again"
                ) from None
    out.StudyInstanceUID = text(original, "StudyInstanceUID")
    return out, f"Left empty, invalid in the CT: {', '.join(emptied)}" if emptied else ""


def _is_valid(element: DataElement) -> bool:
    """Whether a date, time or code can be written; names and numbers identify and are kept as they are."""
    if element.is_empty or element.VR not in ("DA", "TM", "CS"):
        return True
    if element.keyword == "PatientSex" and element.value not in ("M", "F", "O"):
        return False
    try:
        validate_value(element.VR, str(element.value), config.RAISE)
    except ValueError:
        return False
    return True


def save_whole(
    path: Path, dataset: Dataset, *, overwrite: bool = False, check: Callable[[Dataset], None] | None = None
) -> Path:
    """Write a data set so that the whole file appears under `path` or nothing does.

    The file is written under a temporary name beside `path`, read again, checked by `check` and
    for over-long decimal strings, and renamed. Raises PlanError where `path` exists (unless
    `overwrite`), its folder does not, or a check fails. A name that ends in `SEALED` gets a sealed file.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise PlanError(f"the folder of {path.name} does not exist; create it first")
    if path.exists() and not overwrite:
        raise PlanError(f"{path.name} exists already; choose another name or allow overwriting")
    try:
        with written_whole(path, overwrite=overwrite) as part:
            with part.open("xb") as file, quiet():
                if path.suffix == SEALED:
                    memory = BytesIO()
                    dataset.save_as(memory, enforce_file_format=True)
                    file.write(sealed(memory.getvalue()))
                else:
                    dataset.save_as(file, enforce_file_format=True)
                file.flush()
                os.fsync(file.fileno())
            written = open_dataset(part, pixels=True, is_sealed=path.suffix == SEALED)
            if written is None:
                raise PlanError(f"{path.name} cannot be read back after writing; check the disk")
            check_decimal_lengths(written)
            if check is not None:
                check(written)
    except FileExistsError:
        raise PlanError(f"{path.name} exists already; choose another name or allow overwriting") from None
    except OSError as fault:
        if limit := limit_of(fault):
            raise LimitError(limit) from None
        raise PlanError(
            f"{path.name} cannot be written ({fault.strerror}); check the disk and the folder's permissions"
        ) from None
    return path


def check_decimal_lengths(dataset: Dataset) -> None:
    """Raise PlanError for a decimal string above 16 characters in a data set just read from a file."""
    for tag in list(dataset.keys()):
        element = dataset.get_item(tag)
        if isinstance(element, RawDataElement) and element.VR == "DS":
            # The text of the file as it is: converting every number would take a hundred times longer.
            longest = max((element.value or b"").split(b"\\"), key=len)
            if len(longest.strip(b" \0")) > _DS_LENGTH_MAX:
                raise PlanError(
                    f"{keyword_for_tag(tag)}: {longest.decode('ascii', 'replace')!r} is above the "
                    f"{_DS_LENGTH_MAX} characters that DICOM allows; please report this defect"
                )
        elif element is not None and element.VR == "SQ":
            for item in dataset[tag].value:
                check_decimal_lengths(item)


def instance_uid(file: Path) -> str:
    """SOP instance UID of a DICOM file; "" where there is no such file or it says none."""
    if not file.is_file():
        return ""
    dataset = open_dataset(file)
    return text(dataset, "SOPInstanceUID") if dataset is not None else ""


def patient_named(image: Path | str) -> tuple[tuple[str, str], ...]:
    """Name, ID and birth date of the patient as an image of the case states them, each with its label.

    For the reader of a report who asked for them, and for nothing else.
    """
    dataset = open_dataset(Path(image)) if image else None
    if dataset is None:
        return ()
    keywords = {"Patient": "PatientName", "Patient ID": "PatientID", "Birth date": "PatientBirthDate"}
    return tuple((label, text(dataset, keyword) or "not stated") for label, keyword in keywords.items())
