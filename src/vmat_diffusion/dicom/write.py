"""Plans, doses and cases to DICOM files that refer to the CT and structures they were made from.

A file appears whole or not at all, and never replaces another unless told to. Everything written is
UNAPPROVED: approval belongs to a person in a planning system.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import RTDoseStorage, RTPlanStorage

from vmat_diffusion.case import Case, Dose, Prescription
from vmat_diffusion.dicom.attributes import open_dataset, text
from vmat_diffusion.dicom.case_write import write_case
from vmat_diffusion.dicom.dataset import (
    decimal,
    decimals,
    new_dataset,
    reference,
    save_whole,
    source_header,
)
from vmat_diffusion.dicom.rtplan_write import angle_as_written, as_written, plan_dataset
from vmat_diffusion.errors import CaseError, InputError, PlanError
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan, violations

__all__ = ["as_written", "write_case", "write_dose", "write_unjudged_plan"]

# The largest stored dose also fits a signed 32-bit integer, which some readers use.
_STORED_MAX = 2**31 - 1
_NEGATIVE_TOLERANCE = 1e-6


def write_unjudged_plan(
    path: Path | str,
    plan: Plan,
    case: Case,
    machine: Machine,
    *,
    prescription: Prescription,
    overwrite: bool = False,
) -> Path:
    """Write an RT Plan of the numbers in `as_written(plan)`, with new UIDs, UNAPPROVED.

    For the gate, which reads the file again and judges it; whoever hands a plan on calls `qa.write_plan`,
    which asks for a passed verdict.

    It refers to the CT study, frame of reference and structure set of `case.source`; the patient
    module is copied from the original CT, except dates and codes that are no valid DICOM: those are
    left empty and named in RTPlanDescription. The file is read back and compared with the plan before
    it gets its name. Raises PlanError for a plan that the machine cannot deliver, a case that does
    not come from DICOM, an existing file, or anything that DICOM or planning systems cannot hold.
    """
    path, plan = Path(path), as_written(plan)
    found = violations(plan, machine)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise PlanError(f"the plan is not written because it cannot be delivered{more}: {found[0]}")
    header, remark = source_header(case)
    dataset = plan_dataset(plan, case, machine, prescription, header, datetime.now())
    dataset.RTPlanDescription = ". ".join(filter(None, (dataset.RTPlanDescription, remark)))
    return save_whole(path, dataset, overwrite=overwrite, check=partial(_check_plan, plan=plan, case=case))


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
        dataset = open_dataset(plan_file)
        if dataset is None or text(dataset, "SOPClassUID") != RTPlanStorage:
            raise PlanError("it is no RT Plan")
        if text(dataset, "FrameOfReferenceUID") != case.source.frame_of_reference_uid:
            raise PlanError("it is for another frame of reference")
    except InputError as fault:
        raise PlanError(f"plan file {plan_file.name}: {fault}; give the plan of this dose") from None
    return text(dataset, "SOPInstanceUID")


def _check_plan(written: Dataset, *, plan: Plan, case: Case) -> None:
    """Compare a written RT Plan, number by number, with the plan. Raises PlanError for a defect."""
    faults = []
    if written.StudyInstanceUID != case.source.study_uid:
        faults.append("StudyInstanceUID")
    if written.FrameOfReferenceUID != case.source.frame_of_reference_uid:
        faults.append("FrameOfReferenceUID")
    if written.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID != case.source.structure_set_uid:
        faults.append("ReferencedStructureSetSequence")
    if written.SOPInstanceUID != written.file_meta.MediaStorageSOPInstanceUID:
        faults.append("SOPInstanceUID")
    group = written.FractionGroupSequence[0]
    metersets = {int(b.ReferencedBeamNumber): float(b.BeamMeterset) for b in group.ReferencedBeamSequence}
    if group.NumberOfFractionsPlanned != plan.fractions or len(metersets) != len(plan.arcs):
        faults.append("FractionGroupSequence")
    for beam, arc in zip(written.BeamSequence, plan.arcs, strict=True):
        points = beam.ControlPointSequence
        weights = np.array([float(p.CumulativeMetersetWeight) for p in points])
        gantry = np.array([float(p.GantryAngle) for p in points])
        devices = [p.BeamLimitingDevicePositionSequence for p in points]
        mlc = [[d for d in ds if "MLC" in d.RTBeamLimitingDeviceType] for ds in devices]
        leaves = [np.concatenate([np.reshape(d.LeafJawPositions, (2, -1)) for d in ds], axis=1) for ds in mlc]
        expected = [angle_as_written(g) for g in arc.gantry_deg]
        checks = {
            "number of control points": len(points) == len(arc.gantry_deg) == beam.NumberOfControlPoints,
            "first weight": weights[0] == 0,
            "last weight": weights[-1] == beam.FinalCumulativeMetersetWeight == 1,
            "weights": bool(np.all(np.diff(weights) >= 0)),
            "meterset": np.allclose(np.diff(weights) * metersets[arc.number], arc.mu, rtol=0, atol=1e-6),
            "gantry angles": np.array_equal(gantry, expected) and max(gantry) < 360,
            "last rotation direction": points[-1].GantryRotationDirection == "NONE",
            "leaf positions": np.allclose(np.asarray(leaves, float), arc.leaves_mm, rtol=0, atol=1e-6),
        }
        faults += [f"beam {arc.number} {name}" for name, good in checks.items() if not good]
    if faults:
        raise PlanError(
            f"the written plan differs from the plan in {', '.join(faults)}; please report this defect"
        )
