"""Known faults put into copies of a plan's files, for reviewers to find. Nothing of it is for treatment.

Sizes are those of errors that a plan review is to find: 10 mm for the isocentre and for a structure set of
another day, 5 % of MU, one bank of leaves in place of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from vmat_diffusion.errors import PlanError
from vmat_diffusion.files import written_whole

FAULTS = {
    "none": "nothing was changed",
    "isocentre": "the isocentre was moved by 10 mm",
    "MU": "the MU of every arc were multiplied by 1.05",
    "bank": "the leaves of one arc were mirrored",
    "structures": "the contours are those of another structure set, 10 mm away",
}
LABEL = "TRAINING"
_SHIFT_MM, _MU_FACTOR = 10.0, 1.05


@dataclass(frozen=True)
class SeededFault:
    """A fault as it was drawn: its kind, along which axis and to which side it moves, and in which arc."""

    kind: str
    axis: int
    side: int
    arc: int


def draw_fault(seed: int) -> SeededFault:
    """The fault of a seed; one of five seeds has none."""
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(list(FAULTS)))
    # A move along x or y leaves contours on their slices.
    return SeededFault(kind, int(rng.integers(2)), int(rng.choice([-1, 1])), int(rng.integers(1000)))


def seed_fault(fault: SeededFault, plan_file: Path, dose_file: Path, case_files: Sequence[Path]) -> None:
    """Put a fault into copies of a plan, its dose and its case's structure sets, which all say TRAINING.

    Plan and dose get new UIDs. The structure set keeps its own, to which they refer: no copy may leave the
    review room. Raises PlanError for a plan without beams.
    """
    plan, dose = dcmread(plan_file), dcmread(dose_file)
    beams = list(plan.get("BeamSequence") or ())
    if not beams:
        raise PlanError("the plan has no beams to put a fault into; choose another run")
    if fault.kind == "isocentre":
        for point in (p for beam in beams for p in beam.ControlPointSequence if "IsocenterPosition" in p):
            place = [float(v) for v in point.IsocenterPosition]
            place[fault.axis] += fault.side * _SHIFT_MM
            point.IsocenterPosition = [f"{v:.6g}" for v in place]
    elif fault.kind == "MU":
        for group in plan.FractionGroupSequence:
            for beam in group.ReferencedBeamSequence:
                beam.BeamMeterset = f"{float(beam.BeamMeterset) * _MU_FACTOR:.6f}"
    elif fault.kind == "bank":
        _mirror(beams[fault.arc % len(beams)])
    plan.RTPlanLabel = LABEL
    for dataset in (plan, dose):
        new = generate_uid(entropy_srcs=[dataset.SOPInstanceUID, str(fault)])
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = new
    for reference in dose.get("ReferencedRTPlanSequence") or ():
        reference.ReferencedSOPInstanceUID = plan.SOPInstanceUID
    _save(plan, plan_file)
    _save(dose, dose_file)
    for file in case_files:
        structures = dcmread(file, stop_before_pixels=True, force=True)
        if structures.get("Modality") == "RTSTRUCT":
            structures.StructureSetLabel = LABEL
            if fault.kind == "structures":
                _move_contours(structures, fault)
            _save(structures, file)


def _mirror(beam: Dataset) -> None:
    for point in beam.ControlPointSequence:
        for device in point.get("BeamLimitingDevicePositionSequence") or ():
            if str(device.RTBeamLimitingDeviceType).startswith("MLC"):
                values = [float(v) for v in device.LeafJawPositions]
                half = len(values) // 2
                device.LeafJawPositions = [f"{-v:.6g}" for v in (*values[half:], *values[:half])]


def _move_contours(structures: Dataset, fault: SeededFault) -> None:
    """Move what is drawn; the outline of the body stays, which would give it away."""
    observed = structures.get("RTROIObservationsSequence") or ()
    body = {o.ReferencedROINumber for o in observed if o.get("RTROIInterpretedType") == "EXTERNAL"}
    for region in structures.get("ROIContourSequence") or ():
        if region.ReferencedROINumber in body:
            continue
        for contour in region.get("ContourSequence") or ():
            points = np.array(contour.ContourData, np.float64).reshape(-1, 3)
            points[:, fault.axis] += fault.side * _SHIFT_MM
            contour.ContourData = [f"{v:.6g}" for v in points.ravel()]


def _save(dataset: Dataset, file: Path) -> None:
    with written_whole(file) as part:
        dataset.save_as(part)
