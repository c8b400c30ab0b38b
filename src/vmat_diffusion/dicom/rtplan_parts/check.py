"""A written RTPLAN against the plan that it should hold."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from vmat_diffusion.case import Case
from vmat_diffusion.errors import PlanError
from vmat_diffusion.plan import Plan


def check_plan(written: Dataset, *, plan: Plan, case: Case) -> None:
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
        turned = (gantry - arc.gantry_deg + 180) % 360 - 180  # computed anew, not as it was written
        checks = {
            "number of control points": len(points) == len(arc.gantry_deg) == beam.NumberOfControlPoints,
            "first weight": weights[0] == 0,
            "last weight": weights[-1] == beam.FinalCumulativeMetersetWeight == 1,
            "weights": bool(np.all(np.diff(weights) >= 0)),
            "meterset": np.allclose(np.diff(weights) * metersets[arc.number], arc.mu, rtol=0, atol=1e-6),
            "gantry angles": np.all(np.abs(turned) <= 1e-6) and 0 <= min(gantry) <= max(gantry) < 360,
            "last rotation direction": points[-1].GantryRotationDirection == "NONE",
            "leaf positions": np.allclose(np.asarray(leaves, float), arc.leaves_mm, rtol=0, atol=1e-6),
        }
        faults += [f"beam {arc.number} {name}" for name, good in checks.items() if not good]
    if faults:
        raise PlanError(
            f"the written plan differs from the plan in {', '.join(faults)}; please report this defect"
        )
