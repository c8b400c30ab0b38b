"""A tiny patient as DICOM data sets, made with pydicom alone: a water cylinder, a target, a plan, a dose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"
STRUCTURES_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"
DOSE_CLASS = "1.2.840.10008.5.1.4.1.1.481.2"
PLAN_CLASS = "1.2.840.10008.5.1.4.1.1.481.5"
FRAME, STUDY, SERIES, PLAN_UID = "1.2.3.1", "1.2.3.2", "1.2.3.3", "1.2.3.9"
AXIAL = (1, 0, 0, 0, 1, 0)


def header(sop_class: str, modality: str, uid: str) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = sop_class, uid, modality
    dataset.PatientName, dataset.PatientID = "Secret^Name", "SECRET-4711"
    dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = STUDY, FRAME
    return dataset


def save(dataset: Dataset, path: Path, syntax: UID = ExplicitVRLittleEndian) -> Path:
    """Write a data set in one of the uncompressed transfer syntaxes."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", CT_CLASS)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2")
    dataset.save_as(
        path,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return path


def cylinder_hu(slices: int, size: int) -> NDArray[np.int16]:
    """Water in air, `[slices, size, size]`, of a diameter of three quarters of the field of view."""
    j, i = np.mgrid[:size, :size] - (size - 1) / 2
    return np.broadcast_to(np.where(np.hypot(i, j) < 0.38 * size, 0, -1000), (slices, size, size)).astype(
        np.int16
    )


def ct_series(
    hu: NDArray[np.int16] | None = None,
    *,
    spacing_mm: tuple[float, float] = (3.0, 3.0),
    origins_mm: Sequence[Sequence[float]] | None = None,
    orientation: Sequence[float] = AXIAL,
    position: str = "HFS",
    series: str = SERIES,
) -> list[Dataset]:
    """CT slices, 16 bit signed, rescale 1 and -1000; `spacing_mm` is (between rows, between columns)."""
    hu = cylinder_hu(6, 16) if hu is None else hu
    origins_mm = origins_mm or [(-22.5, -22.5, 2.5 * k) for k in range(len(hu))]
    out = []
    for k, (image, origin) in enumerate(zip(hu, origins_mm, strict=True)):
        dataset = header(CT_CLASS, "CT", f"{series}.{k + 1}")
        dataset.SeriesInstanceUID, dataset.ImageType = series, ["ORIGINAL", "PRIMARY", "AXIAL"]
        dataset.PatientPosition = position
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = list(origin), list(orientation)
        dataset.PixelSpacing, dataset.SliceThickness = list(spacing_mm), 2.5
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1000
        set_pixels(dataset, image.astype(np.int32) + 1000, np.dtype("<i2"))
        out.append(dataset)
    return out


def set_pixels(dataset: Dataset, stored: NDArray, kind: np.dtype) -> None:
    """Put whole numbers into a data set; a `kind` that starts with > is for big-endian files."""
    stored = stored if stored.ndim == 3 else stored[None]
    dataset.Rows, dataset.Columns = stored.shape[1:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * kind.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(kind.kind == "i")
    dataset.PixelData = stored.astype(kind).tobytes()
    dataset["PixelData"].VR = "OW"


def square(x: float, y: float, half: float, z: float) -> list[float]:
    """Contour data of a square around (x, y)."""
    corners = [(-half, -half), (half, -half), (half, half), (-half, half)]
    return [round(float(v), 4) for dx, dy in corners for v in (x + dx, y + dy, z)]


Contours = Sequence[tuple[str, Sequence[float]]]


def structure_set(
    images: Sequence[Dataset],
    rois: Mapping[str, Contours] | None = None,
    *,
    declared: Mapping[str, str] | None = None,
    uid: str = "1.2.3.4",
) -> Dataset:
    """A structure set on the images; `rois` maps names to (geometric type, contour data)."""
    if rois is None:
        heights = [float(image.ImagePositionPatient[2]) for image in images]
        rois = {
            "External": [("CLOSED_PLANAR", square(0, 0, 15.3, z)) for z in heights],
            "PTV70": [("CLOSED_PLANAR", square(0, 0, 5.2, z)) for z in heights[1:-1]],
            "cord": [("CLOSED_PLANAR", square(0, 9, 3.1, z)) for z in heights],
        }
    dataset = header(STRUCTURES_CLASS, "RTSTRUCT", uid)
    dataset.SeriesInstanceUID, dataset.StructureSetLabel = "1.2.3.5", "set"
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = images[0].SeriesInstanceUID
    series.ContourImageSequence = [_reference(i.SOPClassUID, i.SOPInstanceUID) for i in images]
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = FRAME, [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    dataset.RTROIObservationsSequence = []
    for number, (name, contours) in enumerate(rois.items(), 1):
        roi, drawn, seen = Dataset(), Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, FRAME
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        seen.ObservationNumber = seen.ReferencedROINumber = number
        seen.RTROIInterpretedType = (declared or {}).get(name, "")
        for kind, data in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(data) // 3
            contour.ContourData = list(data)
            drawn.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
        dataset.RTROIObservationsSequence.append(seen)
    return dataset


def _reference(sop_class: str, uid: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
    return item


def rt_dose(
    gy: NDArray[np.float64] | None = None,
    *,
    kind: np.dtype | None = None,
    summation: str = "PLAN",
    offsets_mm: Sequence[float] | None = None,
    origin_mm: Sequence[float] = (-20.0, -20.0, 1.0),
    orientation: Sequence[float] = AXIAL,
    beams: Sequence[int] = (),
    uid: str = "1.2.3.6",
) -> Dataset:
    """A dose on a grid of 4 x 5 mm pixels (columns x rows), frames 3 mm apart unless told."""
    gy = np.linspace(0, 70, 4 * 6 * 7).reshape(4, 6, 7) if gy is None else gy
    kind = kind or np.dtype("<u4")
    dataset = header(DOSE_CLASS, "RTDOSE", uid)
    dataset.DoseUnits, dataset.DoseType, dataset.DoseSummationType = "GY", "PHYSICAL", summation
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = list(origin_mm), list(orientation)
    dataset.PixelSpacing, dataset.NumberOfFrames = [5.0, 4.0], len(gy)
    dataset.GridFrameOffsetVector = list(offsets_mm or [3.0 * k for k in range(len(gy))])
    scaling = float(f"{gy.max() / (2 ** (8 * kind.itemsize) - 2):.10g}")
    dataset.DoseGridScaling = scaling
    set_pixels(dataset, np.round(gy / scaling), kind)
    plan = _reference(PLAN_CLASS, PLAN_UID)
    if beams:
        group = Dataset()
        group.ReferencedFractionGroupNumber, group.ReferencedBeamSequence = 1, []
        for number in beams:
            item = Dataset()
            item.ReferencedBeamNumber = number
            group.ReferencedBeamSequence.append(item)
        plan.ReferencedFractionGroupSequence = [group]
    dataset.ReferencedRTPlanSequence = [plan]
    return dataset


def beam(
    number: int = 1,
    gantry_deg: Sequence[float] = (180, 240, 300, 0, 60, 120, 179),
    direction: str = "CW",
    pairs: int = 4,
    final: float = 1.0,
) -> Dataset:
    """A dynamic beam with ASYMX, ASYMY and MLCX, one control point per angle, equal weights."""
    out = Dataset()
    out.BeamNumber, out.BeamName, out.BeamType = number, f"arc {number}", "DYNAMIC"
    out.RadiationType, out.TreatmentDeliveryType, out.TreatmentMachineName = "PHOTON", "TREATMENT", "linac"
    out.PrimaryDosimeterUnit, out.ReferencedPatientSetupNumber = "MU", 1
    out.NumberOfWedges = out.NumberOfCompensators = out.NumberOfBoli = out.NumberOfBlocks = 0
    out.FinalCumulativeMetersetWeight, out.NumberOfControlPoints = final, len(gantry_deg)
    out.BeamLimitingDeviceSequence = []
    for name, count in (("ASYMX", 1), ("ASYMY", 1), ("MLCX", pairs)):
        device = Dataset()
        device.RTBeamLimitingDeviceType, device.NumberOfLeafJawPairs = name, count
        if count > 1:
            device.LeafPositionBoundaries = [10.0 * (k - pairs / 2) for k in range(pairs + 1)]
        out.BeamLimitingDeviceSequence.append(device)
    out.ControlPointSequence = []
    last = len(gantry_deg) - 1
    for k, angle in enumerate(gantry_deg):
        point = Dataset()
        point.ControlPointIndex, point.GantryAngle = k, angle
        point.GantryRotationDirection = "NONE" if k == last else direction
        point.CumulativeMetersetWeight = final * k / last
        positions = [("MLCX", [-5.0 - k] * pairs + [6.0 + k] * pairs)]
        if k == 0:
            point.NominalBeamEnergy, point.DoseRateSet = 6, 600
            point.BeamLimitingDeviceAngle, point.PatientSupportAngle = 15, 0
            point.IsocenterPosition = [0, 0, 6.25]
            positions = [("ASYMX", [-20.0, 30.0]), ("ASYMY", [-15.0, 25.0]), *positions]
        point.BeamLimitingDevicePositionSequence = []
        for name, values in positions:
            device = Dataset()
            device.RTBeamLimitingDeviceType, device.LeafJawPositions = name, values
            point.BeamLimitingDevicePositionSequence.append(device)
        out.ControlPointSequence.append(point)
    return out


def rt_plan(beams: Sequence[Dataset] | None = None, mu: Mapping[int, float | None] | None = None) -> Dataset:
    """A plan of 30 fractions with 60 Gy to ROI 2 (the target of `structure_set`)."""
    beams = [beam()] if beams is None else beams
    mu = {int(b.BeamNumber): 300.0 for b in beams} if mu is None else mu
    dataset = header(PLAN_CLASS, "RTPLAN", PLAN_UID)
    dataset.RTPlanLabel, dataset.RTPlanGeometry = "plan", "PATIENT"
    dataset.ReferencedStructureSetSequence = [_reference(STRUCTURES_CLASS, "1.2.3.4")]
    dose, group, setup = Dataset(), Dataset(), Dataset()
    dose.DoseReferenceNumber, dose.DoseReferenceStructureType, dose.DoseReferenceType = 1, "VOLUME", "TARGET"
    dose.ReferencedROINumber, dose.TargetPrescriptionDose = 2, 60
    dataset.DoseReferenceSequence = [dose]
    group.FractionGroupNumber, group.NumberOfFractionsPlanned = 1, 30
    group.NumberOfBeams, group.NumberOfBrachyApplicationSetups = len(beams), 0
    group.ReferencedBeamSequence = []
    for number, value in mu.items():
        item = Dataset()
        item.ReferencedBeamNumber = number
        if value is not None:
            item.BeamMeterset = value
        group.ReferencedBeamSequence.append(item)
    dataset.FractionGroupSequence, dataset.BeamSequence = [group], list(beams)
    setup.PatientSetupNumber, setup.PatientPosition = 1, "HFS"
    dataset.PatientSetupSequence = [setup]
    return dataset


def write_patient(
    folder: Path, images: Sequence[Dataset] | None = None, *others: Dataset, suffix: str = ""
) -> Path:
    """Write the images and the other objects (the usual structure set where none is given)."""
    folder.mkdir(parents=True, exist_ok=True)
    images = ct_series() if images is None else images
    for k, dataset in enumerate([*images, *(others or (structure_set(images),))]):
        save(dataset, folder / f"file{k:03d}{suffix}")
    return folder
