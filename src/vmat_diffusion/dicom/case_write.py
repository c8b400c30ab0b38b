"""A case as a CT series and a structure set, under a pseudonym and with UIDs of their own."""

from __future__ import annotations

import os
import shutil
import uuid
from datetime import datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import UID, CTImageStorage, RTStructureSetStorage

from vmat_diffusion.case import Case, Structure
from vmat_diffusion.dicom.dataset import (
    MANUFACTURER,
    decimal,
    decimals,
    new_dataset,
    new_uid,
    reference,
    save_whole,
    set_points_mm,
)
from vmat_diffusion.dicom.structure_set.contours import contours_from_mask
from vmat_diffusion.errors import CaseError, LimitError, limit_of
from vmat_diffusion.geometry import Grid

# The retired class that RTSTRUCTs name for their study, as the standard still asks for.
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"
_INTERPRETED_TYPE = {"target": "PTV", "organ": "ORGAN", "body": "EXTERNAL", "other": "CONTROL"}
_COLOURS = {"body": (120, 200, 120), "other": (200, 200, 60)}
_TARGET_COLOURS = ((220, 40, 40), (240, 120, 40), (230, 70, 170), (255, 140, 140), (180, 60, 220))
_ORGAN_COLOURS = (
    (60, 110, 230),
    (230, 140, 30),
    (160, 60, 200),
    (30, 180, 180),
    (200, 90, 150),
    (150, 110, 60),
)


def files_of_case(folder: Path, case: Case) -> list[str]:
    """Names of the files in a folder that `write_case` has written for this case, by its pseudonym."""
    names = []
    for file in (*sorted(folder.glob("CT.*.dcm")), folder / "RS.dcm"):
        try:
            dataset = dcmread(file, specific_tags=["PatientID", "Manufacturer"])
        except (OSError, InvalidDicomError):
            continue
        if dataset.get("PatientID") == case.id and dataset.get("Manufacturer") == MANUFACTURER:
            names.append(file.name)
    return names


def write_case(folder: Path | str, case: Case) -> list[Path]:
    """Write a case as one CT file per slice (`CT.001.dcm` ...) and `RS.dcm`; returns their paths.

    Patient name and number are the case's pseudonym; all UIDs are new, so the result is a study of
    its own even where the case came from DICOM. The folder appears whole: it must not exist yet or
    be empty. HU are rounded to whole numbers. Raises CaseError.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CaseError(f"folder {folder.name} is not empty; give a new or an empty one")
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    try:
        part.mkdir(parents=True)
        names = _write_all(part, case)
        if folder.exists():
            folder.rmdir()
        os.rename(part, folder)
    except OSError as fault:
        if limit := limit_of(fault):
            raise LimitError(limit) from None
        raise CaseError(
            f"folder {folder.name} cannot be written ({fault.strerror}); check the disk and its permissions"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return [folder / name for name in names]


def _write_all(folder: Path, case: Case) -> list[str]:
    now = datetime.now()
    header = _pseudonymous_header(case, now)
    series, hu = new_uid(), _whole_hu(case)
    slices = [
        _ct_slice(case, k, hu[k], header=header, series=series, now=now) for k in range(case.grid.shape[0])
    ]
    digits = max(3, len(str(len(slices))))
    names = [f"CT.{k:0{digits}d}.dcm" for k in range(1, len(slices) + 1)]
    for name, dataset in zip(names, slices, strict=True):
        save_whole(folder / name, dataset)
    images = [UID(dataset.SOPInstanceUID) for dataset in slices]
    save_whole(folder / "RS.dcm", _structure_set(case, header, series, images, now))
    return [*names, "RS.dcm"]


def _pseudonymous_header(case: Case, now: datetime) -> Dataset:
    out = Dataset()
    out.SpecificCharacterSet = "ISO_IR 100"
    out.PatientName, out.PatientID = f"{case.id}^Pseudonym", case.id
    out.PatientBirthDate = out.PatientSex = ""
    out.StudyInstanceUID, out.FrameOfReferenceUID = new_uid(), new_uid()
    out.StudyDate, out.StudyTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    out.ReferringPhysicianName = out.AccessionNumber = ""
    out.StudyID = "1"
    return out


def _whole_hu(case: Case) -> NDArray[np.int16]:
    rounded = np.round(case.hu)
    low, high = float(rounded.min()), float(rounded.max())
    if low < -32768 or high > 32767:
        raise CaseError(f"HU from {low:g} to {high:g} do not fit 16 bits; correct the CT")
    return rounded.astype("<i2")


def _ct_slice(
    case: Case, k: int, hu: NDArray[np.int16], *, header: Dataset, series: UID, now: datetime
) -> Dataset:
    grid = case.grid
    x, y, z = grid.origin_mm
    out = new_dataset(CTImageStorage, "CT", header, now=now)
    out.SeriesInstanceUID, out.SeriesNumber, out.SeriesDescription = series, 1, "CT"
    out.InstanceNumber, out.AcquisitionNumber, out.KVP = k + 1, 1, None
    out.ImageType = ["DERIVED", "SECONDARY", "AXIAL"]
    out.ContentDate, out.ContentTime = out.InstanceCreationDate, out.InstanceCreationTime
    out.PatientPosition, out.Laterality = case.patient_position, ""
    out.ImagePositionPatient = decimals((x, y, z + k * grid.spacing_mm[2]))
    out.ImageOrientationPatient = decimals((1, 0, 0, 0, 1, 0))
    out.PixelSpacing = decimals((grid.spacing_mm[1], grid.spacing_mm[0]))
    out.SliceThickness = decimal(grid.spacing_mm[2])
    out.SamplesPerPixel, out.PhotometricInterpretation = 1, "MONOCHROME2"
    out.Rows, out.Columns = hu.shape
    out.BitsAllocated, out.BitsStored, out.HighBit, out.PixelRepresentation = 16, 16, 15, 1
    out.RescaleIntercept, out.RescaleSlope, out.RescaleType = decimal(0), decimal(1), "HU"
    out.WindowCenter, out.WindowWidth = decimal(40), decimal(400)
    out.PixelData = hu.tobytes()
    return out


def _structure_set(case: Case, header: Dataset, series: UID, images: list[UID], now: datetime) -> Dataset:
    out = new_dataset(RTStructureSetStorage, "RTSTRUCT", header, now=now)
    out.SeriesNumber, out.SeriesDescription, out.InstanceNumber = 2, "Structures", 1
    out.StructureSetLabel = "Structures"
    out.StructureSetDate, out.StructureSetTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    out.ApprovalStatus = "UNAPPROVED"
    out.ReferencedFrameOfReferenceSequence = [_image_reference(header, series, images)]
    out.StructureSetROISequence = []
    out.ROIContourSequence = []
    out.RTROIObservationsSequence = []
    for number, structure in enumerate(case.structures.values(), start=1):
        roi = Dataset()
        roi.ROINumber, roi.ROIName = number, structure.name
        roi.ReferencedFrameOfReferenceUID = header.FrameOfReferenceUID
        roi.ROIGenerationAlgorithm = "AUTOMATIC"
        out.StructureSetROISequence.append(roi)
        out.ROIContourSequence.append(_roi_contour(number, structure, case.grid, images))
        observation = Dataset()
        observation.ObservationNumber = observation.ReferencedROINumber = number
        observation.RTROIInterpretedType = _INTERPRETED_TYPE[structure.role]
        observation.ROIInterpreter = ""
        out.RTROIObservationsSequence.append(observation)
    return out


def _image_reference(header: Dataset, series: UID, images: list[UID]) -> Dataset:
    of_series = Dataset()
    of_series.SeriesInstanceUID = series
    of_series.ContourImageSequence = [reference(CTImageStorage, uid) for uid in images]
    of_study = reference(_STUDY_CLASS, header.StudyInstanceUID)
    of_study.RTReferencedSeriesSequence = [of_series]
    of_frame = Dataset()
    of_frame.FrameOfReferenceUID = header.FrameOfReferenceUID
    of_frame.RTReferencedStudySequence = [of_study]
    return of_frame


def _roi_contour(number: int, structure: Structure, grid: Grid, images: list[UID]) -> Dataset:
    out = Dataset()
    palette = _TARGET_COLOURS if structure.role == "target" else _ORGAN_COLOURS
    colour = _COLOURS.get(structure.role, palette[(number - 1) % len(palette)])
    out.ROIDisplayColor = list(colour)
    out.ReferencedROINumber = number
    out.ContourSequence = []
    for points in contours_from_mask(structure.mask, grid):
        k = round(float(grid.index(points[0])[0]))
        contour = Dataset()
        contour.ContourImageSequence = [reference(CTImageStorage, images[k])]
        contour.ContourGeometricType = "CLOSED_PLANAR"
        contour.NumberOfContourPoints = len(points)
        set_points_mm(contour, points)
        out.ContourSequence.append(contour)
    return out
