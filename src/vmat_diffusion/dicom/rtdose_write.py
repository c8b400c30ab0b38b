"""A Dose to an RTDOSE file that refers to the CT and the plan it belongs to.

The file appears whole or not at all, and never replaces another unless told to.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
from pydicom.uid import RTDoseStorage, RTPlanStorage

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

# The largest stored dose also fits a signed 32-bit integer, which some readers use.
_STORED_MAX = 2**31 - 1
_NEGATIVE_TOLERANCE = 1e-6


def write_dose(
    path: Path | str,
    dose: Dose,
    case: Case,
    *,
    plan_file: Path | str | None,
    overwrite: bool = False,
    description: str = "Dose",
) -> Path:
    """Write an RT Dose in Gy of the whole course, 32 bit, referring to the plan in `plan_file`.

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
    stored, scaling = _stored(dose)
    out.SeriesDescription = description
    out.InstanceNumber = 1
    out.ContentDate, out.ContentTime = out.InstanceCreationDate, out.InstanceCreationTime
    out.SliceThickness = decimal(grid.spacing_mm[2])
    out.ImagePositionPatient = decimals(grid.origin_mm)
    out.ImageOrientationPatient = decimals((1, 0, 0, 0, 1, 0))
    out.PixelSpacing = decimals((grid.spacing_mm[1], grid.spacing_mm[0]))
    out.SamplesPerPixel, out.PhotometricInterpretation = 1, "MONOCHROME2"
    out.Rows, out.Columns, out.NumberOfFrames = ny, nx, nz
    out.BitsAllocated, out.BitsStored, out.HighBit, out.PixelRepresentation = 32, 32, 31, 0
    out.FrameIncrementPointer = 0x3004000C
    out.GridFrameOffsetVector = decimals(np.arange(nz) * grid.spacing_mm[2])
    out.DoseUnits, out.DoseType, out.DoseSummationType = "GY", "PHYSICAL", "PLAN"
    out.DoseComment = f"Dose to {dose.medium}"
    out.TissueHeterogeneityCorrection = "IMAGE"
    out.DoseGridScaling = scaling
    if plan_file is not None:
        plan_uid = _plan_uid(Path(plan_file), case)
        out.ReferencedRTPlanSequence = [reference(RTPlanStorage, plan_uid)]
    out.PixelData = stored.astype("<u4").tobytes()
    return save_whole(path, out, overwrite=overwrite)


def _stored(dose: Dose) -> tuple[np.ndarray, object]:
    """Integers and the factor to Gy as its 16 characters in the file say it."""
    peak = float(dose.gy.max())
    if dose.gy.min() < -_NEGATIVE_TOLERANCE * max(peak, 1.0):
        raise CaseError(f"the dose falls to {dose.gy.min():.4g} Gy, below zero; compute it again")
    scaling = decimal(peak / _STORED_MAX if peak > 0 else 1.0)
    # The factor is rounded to its 16 characters first, then the dose is divided by what is left.
    stored = np.round(np.asarray(dose.gy, np.float64) / float(str(scaling)))
    return np.clip(stored, 0, 2**32 - 1).astype(np.uint32), scaling


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
