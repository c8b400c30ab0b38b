"""Known faults put into copies of a plan's files, for reviewers to find. Nothing of it is for treatment.

Sizes are those of errors that a plan review is to find: 10 mm for the isocentre and for a structure set of
another day, 5 % of MU, one bank of leaves in place of the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
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


def seed_fault(
    fault: SeededFault, plan_file: Path, dose_file: Path, case_files: Sequence[Path]
) -> dict[str, str]:
    """Put a fault into copies of a plan, its dose and its case's structure sets, which all say TRAINING.

    Whatever is not as it was gets a new SOP instance UID, also what refers to such an object; references in
    all of them follow. Images stay as they are. Returns the new UIDs by the old ones. Raises PlanError for a
    plan without beams.
    """
    plan, dose = dcmread(plan_file), dcmread(dose_file)
    _change_plan(plan, fault)
    changed = {plan_file: plan, dose_file: dose}
    others = {}
    for file in case_files:
        found = dcmread(file, stop_before_pixels=True, force=True)
        if "SOPInstanceUID" not in found:
            continue  # a directory of a CD, or no object at all
        if found.get("Modality") == "RTSTRUCT":
            found.StructureSetLabel = LABEL
            if fault.kind == "structures":
                _move_contours(found, fault)
            changed[file] = found
        else:
            others[file] = found
    uids = {str(d.SOPInstanceUID): _new_uid(d, fault) for d in changed.values()}
    while referring := [file for file, found in others.items() if not uids.keys().isdisjoint(_uids(found))]:
        for file in referring:
            del others[file]
            changed[file] = dcmread(file, force=True)
            uids[str(changed[file].SOPInstanceUID)] = _new_uid(changed[file], fault)
    for file, dataset in changed.items():
        _rename(dataset, uids)
        if "MediaStorageSOPInstanceUID" in dataset.file_meta:
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        _save(dataset, file)
    return uids


def _change_plan(plan: Dataset, fault: SeededFault) -> None:
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


def _new_uid(dataset: Dataset, fault: SeededFault) -> str:
    return str(generate_uid(entropy_srcs=[str(dataset.SOPInstanceUID), str(fault)]))


def _uid_elements(dataset: Dataset) -> Iterator[DataElement]:
    """All elements at any depth that hold UIDs."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value or ():
                yield from _uid_elements(item)
        elif element.VR == "UI":
            yield element


def _uids(dataset: Dataset) -> Iterator[str]:
    for element in _uid_elements(dataset):
        yield from element.value if isinstance(element.value, MultiValue) else [str(element.value)]


def _rename(dataset: Dataset, uids: Mapping[str, str]) -> None:
    for element in _uid_elements(dataset):
        if isinstance(element.value, MultiValue):
            element.value = [uids.get(uid, uid) for uid in element.value]
        else:
            element.value = uids.get(str(element.value), element.value)


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
