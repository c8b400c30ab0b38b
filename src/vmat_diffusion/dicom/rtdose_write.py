"""A Dose to an RTDOSE file that refers to the CT and the plan it belongs to.

The file appears whole or not at all, and never replaces another unless told to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import RTDoseStorage, RTPlanStorage, RTStructureSetStorage

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dicom.attributes import open_dataset, text
from vmat_diffusion.dicom.dataset import (
    decimal,
    decimals,
    new_dataset,
    reference,
    save_whole,
    source_header,
)
from vmat_diffusion.dicom.sealed import SEALED
from vmat_diffusion.errors import CaseError, InputError, PlanError

# By bits: the largest stored dose of 32 also fits a signed integer, which some readers use.
_STORED_MAX = {32: 2**31 - 1, 16: 2**16 - 1}
_NEGATIVE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Histogram:
    """A structure's cumulative DVH: the volume in cc above each multiple of `width_gy` from 0 on."""

    roi_number: int
    width_gy: float
    volume_cc: Sequence[float]
    min_gy: float
    max_gy: float
    mean_gy: float


def write_dose(
    path: Path | str,
    dose: Dose,
    case: Case,
    *,
    plan_file: Path | str | None,
    overwrite: bool = False,
    description: str = "Dose",
    bits: Literal[16, 32] = 32,
    histograms: Sequence[Histogram] = (),
) -> Path:
    """Write an RT Dose in Gy of the whole course, referring to the plan in `plan_file`.

    With 16 `bits`, which some systems need, doses are rounded to 1/65535 of the highest.

    Without a plan the reference is left out, which the standard demands of a plan's dose: such a
    file is for viewers only. `description` is that of the series, 64 characters at most. Raises CaseError
    for a negative dose, PlanError as in `write_unjudged_plan`.
    """
    path = Path(path)
    header, remark = source_header(case)
    out = new_dataset(RTDoseStorage, "RTDOSE", header, now=datetime.now())
    if remark:
        out.ImageComments = remark
    grid, (nz, ny, nx) = dose.grid, dose.grid.shape
    stored, scaling = _stored(dose, bits)
    out.SeriesDescription = description
    out.InstanceNumber = 1
    out.ContentDate, out.ContentTime = out.InstanceCreationDate, out.InstanceCreationTime
    out.SliceThickness = decimal(grid.spacing_mm[2])
    out.ImagePositionPatient = decimals(grid.origin_mm)
    out.ImageOrientationPatient = decimals((1, 0, 0, 0, 1, 0))
    out.PixelSpacing = decimals((grid.spacing_mm[1], grid.spacing_mm[0]))
    out.SamplesPerPixel, out.PhotometricInterpretation = 1, "MONOCHROME2"
    out.Rows, out.Columns, out.NumberOfFrames = ny, nx, nz
    out.BitsAllocated, out.BitsStored, out.HighBit, out.PixelRepresentation = bits, bits, bits - 1, 0
    out.FrameIncrementPointer = 0x3004000C
    out.GridFrameOffsetVector = decimals(np.arange(nz) * grid.spacing_mm[2])
    out.DoseUnits, out.DoseType, out.DoseSummationType = "GY", "PHYSICAL", "PLAN"
    out.DoseComment = f"Dose to {dose.medium}"
    out.TissueHeterogeneityCorrection = "IMAGE"
    out.DoseGridScaling = scaling
    if plan_file is not None:
        plan_uid = _plan_uid(Path(plan_file), case)
        out.ReferencedRTPlanSequence = [reference(RTPlanStorage, plan_uid)]
    if histograms:
        out.ReferencedStructureSetSequence = [reference(RTStructureSetStorage, case.source.structure_set_uid)]
        out.DVHSequence = [_histogram(one) for one in histograms]
    out.PixelData = stored.astype(f"<u{bits // 8}").tobytes()
    if len(out.PixelData) % 2:
        out.PixelData += b"\0"
    return save_whole(path, out, overwrite=overwrite)


def _histogram(one: Histogram) -> Dataset:
    """PS3.3 C.8.8.4: pairs of a bin's width in Gy and the volume that receives at least its lower end."""
    item = Dataset()
    item.DVHType, item.DoseUnits, item.DoseType, item.DVHVolumeUnits = "CUMULATIVE", "GY", "PHYSICAL", "CM3"
    item.DVHDoseScaling = decimal(1.0)
    item.DVHNumberOfBins = len(one.volume_cc)
    item.DVHData = decimals(v for volume in one.volume_cc for v in (one.width_gy, round(volume, 6)))
    item.DVHMinimumDose, item.DVHMaximumDose = decimal(one.min_gy), decimal(one.max_gy)
    item.DVHMeanDose = decimal(one.mean_gy)
    roi = Dataset()
    roi.ReferencedROINumber, roi.DVHROIContributionType = one.roi_number, "INCLUDED"
    item.DVHReferencedROISequence = [roi]
    return item


def _stored(dose: Dose, bits: Literal[16, 32]) -> tuple[np.ndarray, object]:
    """Integers and the factor to Gy as its 16 characters in the file say it."""
    peak = float(dose.gy.max())
    if dose.gy.min() < -_NEGATIVE_TOLERANCE * max(peak, 1.0):
        raise CaseError(f"the dose falls to {dose.gy.min():.4g} Gy, below zero; compute it again")
    scaling = decimal(peak / _STORED_MAX[bits] if peak > 0 else 1.0)
    # The factor is rounded to its 16 characters first, then the dose is divided by what is left.
    stored = np.round(np.asarray(dose.gy, np.float64) / float(str(scaling)))
    return np.clip(stored, 0, 2**bits - 1).astype(np.uint32), scaling


def _plan_uid(plan_file: Path, case: Case) -> str:
    try:
        dataset = open_dataset(plan_file, is_sealed=plan_file.suffix == SEALED)
        if dataset is None or text(dataset, "SOPClassUID") != RTPlanStorage:
            raise PlanError("it is no RT Plan")
        if text(dataset, "FrameOfReferenceUID") != case.source.frame_of_reference_uid:
            raise PlanError("it is for another frame of reference")
    except InputError as fault:
        raise PlanError(f"plan file {plan_file.name}: {fault}; give the plan of this dose") from None
    return text(dataset, "SOPInstanceUID")
