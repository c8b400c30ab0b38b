"""A Plan to an RTPLAN file: DICOM's control points with cumulative meterset weights.

Source: DICOM PS3.3 C.8.8.9 to C.8.8.16. Cumulative weights exist only here and in the reader. Plans
are written UNAPPROVED: approval belongs to a person in a planning system. Its parts that stand
alone are in `rtplan_parts`.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import RTPlanStorage, RTStructureSetStorage

from vmat_diffusion.case import Case, Prescription
from vmat_diffusion.dicom.dataset import (
    decimal,
    decimals,
    new_dataset,
    reference,
    save_whole,
    source_header,
)
from vmat_diffusion.dicom.rtplan_parts.check import check_plan
from vmat_diffusion.dicom.rtplan_parts.fields import (
    TOLERANCE_TABLE,
    BeamDoses,
    dose_rate_set_mu_min,
    dose_reference_share,
    dose_references,
    fraction_group,
    set_beam_doses,
    tolerance_table,
)
from vmat_diffusion.errors import PlanError
from vmat_diffusion.geometry import distance_to_mask_mm, source_position_mm
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Arc, Plan, violations

_POSITION_DIGITS = 2
_ANGLE_DIGITS = 4
_METERSET_DIGITS = 6
_WEIGHT_DIGITS = 10
# Above these lengths Eclipse and ARIA cut or refuse; DICOM itself allows 16 and 64.
_LABEL_LENGTH_MAX = 13
_BEAM_NAME_LENGTH_MAX = 16
_MACHINE_NAME_LENGTH_MAX = 16


def write_unjudged_plan(
    path: Path | str,
    plan: Plan,
    case: Case,
    machine: Machine,
    *,
    prescription: Prescription,
    beam_doses: BeamDoses | None = None,
    overwrite: bool = False,
) -> Path:
    """Write an RT Plan of the numbers in `as_written(plan)`, with new UIDs, UNAPPROVED.

    For the gate, which reads the file again and judges it; whoever hands a plan on calls `qa.write_plan`,
    which asks for a passed verdict.

    It refers to the CT study, frame of reference and structure set of `case.source`; the patient
    module is copied from the original CT, except dates and codes that are no valid DICOM: those are
    left empty and named in RTPlanDescription. The file is read back and compared with the plan before
    it gets its name. `beam_doses` are those of each beam at a point.
    Raises PlanError for a plan that the machine cannot deliver, a case that does
    not come from DICOM, an existing file, or anything that DICOM or planning systems cannot hold.
    """
    path, plan = Path(path), as_written(plan)
    found = violations(plan, machine)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise PlanError(f"the plan is not written because it cannot be delivered{more}: {found[0]}")
    header, remark = source_header(case)
    dataset = _plan_dataset(plan, case, machine, prescription, header=header)
    if beam_doses is not None:
        set_beam_doses(dataset.FractionGroupSequence[0], beam_doses)
    dataset.RTPlanDescription = ". ".join(filter(None, (dataset.RTPlanDescription, remark)))
    return save_whole(path, dataset, overwrite=overwrite, check=partial(check_plan, plan=plan, case=case))


def as_written(plan: Plan) -> Plan:
    """The plan with the numbers that a file holds; compute the final dose on this one.

    Leaves go to 0.01 mm away from each other, so that no gap shrinks; jaws and isocentre to the
    nearest 0.01 mm, angles to 0.0001 degrees, MU to 1e-6 per beam and weights to 1e-10. Applying it
    twice changes nothing.
    """
    x, y, z = (round(float(v), _POSITION_DIGITS) for v in plan.isocenter_mm)
    return replace(
        plan,
        arcs=tuple(_arc_as_written(arc) for arc in plan.arcs),
        isocenter_mm=(x, y, z),
        dose_rate_mu_min=None if plan.dose_rate_mu_min is None else round(float(plan.dose_rate_mu_min), 3),
    )


def _arc_as_written(arc: Arc) -> Arc:
    scale = 10.0**_POSITION_DIGITS
    # The 1e-4 keeps a position that is already on the raster where it is.
    x1 = np.floor(arc.leaves_mm[:, 0] * scale + 1e-4)
    x2 = np.ceil(arc.leaves_mm[:, 1] * scale - 1e-4)
    weights, meterset = _cumulative(arc)
    return replace(
        arc,
        gantry_deg=np.round(arc.gantry_deg, _ANGLE_DIGITS),
        collimator_deg=round(float(arc.collimator_deg), _ANGLE_DIGITS),
        couch_deg=round(float(arc.couch_deg), _ANGLE_DIGITS),
        leaves_mm=np.round(np.stack([x1, x2], axis=1) / scale, _POSITION_DIGITS),
        jaws_mm=np.round(arc.jaws_mm, _POSITION_DIGITS),
        mu=np.diff(weights) * meterset,
    )


def _cumulative(arc: Arc) -> tuple[NDArray[np.float64], float]:
    """Cumulative meterset weights from exactly 0 to exactly 1, and the beam's meterset in MU."""
    total = arc.total_mu
    if not total > 0:
        raise PlanError(f"beam {arc.number}: {total:g} MU; delete the beam or give it monitor units")
    weights = np.round(np.concatenate([[0.0], np.cumsum(arc.mu)]) / total, _WEIGHT_DIGITS)
    weights[-1] = 1.0
    return weights, round(total, _METERSET_DIGITS)


def _plan_dataset(
    plan: Plan, case: Case, machine: Machine, prescription: Prescription, *, header: Dataset
) -> Dataset:
    """The RT Plan object of a plan that is already `as_written`. Raises PlanError for what cannot be."""
    _refuse(plan, case, machine, prescription)
    now = datetime.now()
    out = new_dataset(RTPlanStorage, "RTPLAN", header, now=now)
    out.SeriesDescription = plan.label
    out.RTPlanLabel = out.RTPlanName = plan.label
    out.RTPlanDescription = "For research; not for clinical use"
    out.RTPlanDate, out.RTPlanTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    out.PlanIntent = "RESEARCH"
    out.RTPlanGeometry = "PATIENT"
    out.ReferencedStructureSetSequence = [reference(RTStructureSetStorage, case.source.structure_set_uid)]
    out.DoseReferenceSequence = dose_references(case, prescription)
    primary = out.DoseReferenceSequence[0].DoseReferenceUID
    metersets_mu = [_cumulative(arc)[1] for arc in plan.arcs]
    out.FractionGroupSequence = [fraction_group(plan, metersets_mu, primary)]
    if machine.tolerance_table:
        out.ToleranceTableSequence = [tolerance_table(machine.tolerance_table)]
    out.PatientSetupSequence = [_patient_setup(case)]
    out.BeamSequence = [_beam(arc, plan, case, machine) for arc in plan.arcs]
    out.ApprovalStatus = "UNAPPROVED"
    return out


def _refuse(plan: Plan, case: Case, machine: Machine, prescription: Prescription) -> None:
    """Raise PlanError for a plan that its own file would not represent."""
    if plan.machine != machine.name:
        raise PlanError(
            f"the plan was made for machine {plan.machine}, not for {machine.name}; "
            "give the machine it was made for"
        )
    if len(machine.name) > _MACHINE_NAME_LENGTH_MAX:
        raise PlanError(
            f"machine name {machine.name} has {len(machine.name)} characters, DICOM allows "
            f"{_MACHINE_NAME_LENGTH_MAX}; use the name that the planning system knows"
        )
    if not 0 < len(plan.label) <= _LABEL_LENGTH_MAX or "\\" in plan.label:
        raise PlanError(
            f"plan label {plan.label!r} has {len(plan.label)} characters, planning systems take 1 to "
            f"{_LABEL_LENGTH_MAX} without a backslash; choose another"
        )
    if plan.fractions != prescription.fractions:
        raise PlanError(
            f"the plan has {plan.fractions} fractions, the prescription {prescription.fractions}; "
            "make them agree"
        )
    if not prescription.target_gy:
        raise PlanError("the prescription names no target, so the beams' doses refer to none; give one")
    if plan.patient_position != case.patient_position:
        raise PlanError(
            f"the plan is for patient position {plan.patient_position}, the CT is {case.patient_position}; "
            "plan on this CT"
        )
    numbers = [arc.number for arc in plan.arcs]
    if len(set(numbers)) != len(numbers) or min(numbers, default=0) < 1:
        raise PlanError(f"beam numbers {numbers} must be positive and all different; renumber the beams")
    for arc in plan.arcs:
        _refuse_arc(arc)


def _refuse_arc(arc: Arc) -> None:
    if len(arc.name) > _BEAM_NAME_LENGTH_MAX or "\\" in arc.name:
        raise PlanError(
            f"beam {arc.number}: its name has {len(arc.name)} characters, planning systems take "
            f"{_BEAM_NAME_LENGTH_MAX} without a backslash; choose a shorter one"
        )
    step = np.abs(np.diff(arc.gantry_deg)).max()
    if step >= 360:
        raise PlanError(
            f"beam {arc.number}: the gantry turns {step:g} degrees between two control points, less than 360 "
            "can be written; add control points"
        )
    for end, angle in (("starts", arc.gantry_deg[0]), ("stops", arc.gantry_deg[-1])):
        if arc.rotates and abs(angle % 360 - 180) < 0.05:
            raise PlanError(
                f"beam {arc.number} {end} at gantry {angle % 360:g}, which may be either side of the "
                "gantry's stop; use 181 or 179"
            )


def _patient_setup(case: Case) -> Dataset:
    setup = Dataset()
    setup.PatientSetupNumber = 1
    setup.PatientPosition = case.patient_position
    setup.SetupTechnique = "ISOCENTRIC"
    return setup


def _beam(arc: Arc, plan: Plan, case: Case, machine: Machine) -> Dataset:
    moves = arc.rotates or np.ptp(arc.leaves_mm, axis=0).any() or np.ptp(arc.jaws_mm, axis=0).any()
    weights, _ = _cumulative(arc)
    beam = Dataset()
    beam.BeamNumber = arc.number
    beam.BeamName = arc.name or f"Arc {arc.number}"
    beam.BeamType = "DYNAMIC" if moves else "STATIC"
    beam.RadiationType = "PHOTON"
    beam.TreatmentDeliveryType = "TREATMENT"
    beam.TreatmentMachineName = machine.name
    if machine.manufacturer:
        beam.Manufacturer = machine.manufacturer
    if machine.tolerance_table:
        beam.ReferencedToleranceTableNumber = TOLERANCE_TABLE
    beam.PrimaryDosimeterUnit = "MU"
    beam.SourceAxisDistance = decimal(machine.sad_mm)
    beam.PrimaryFluenceModeSequence = [_fluence_mode(machine)]
    beam.BeamLimitingDeviceSequence = _devices(machine)
    beam.NumberOfWedges = beam.NumberOfCompensators = beam.NumberOfBoli = beam.NumberOfBlocks = 0
    beam.FinalCumulativeMetersetWeight = decimal(1.0)
    beam.NumberOfControlPoints = len(arc.gantry_deg)
    beam.ReferencedPatientSetupNumber = 1
    ssd_mm = _source_to_surface_mm(plan, arc, case, machine.sad_mm)
    beam.ControlPointSequence = [
        _control_point(k, arc, weights[k], ssd_mm[k], plan=plan, machine=machine)
        for k in range(len(arc.gantry_deg))
    ]
    return beam


def _fluence_mode(machine: Machine) -> Dataset:
    mode = machine.require_beam().fluence_mode.upper()
    item = Dataset()
    item.FluenceMode = "STANDARD" if mode == "STANDARD" else "NON_STANDARD"
    if mode != "STANDARD":
        item.FluenceModeID = "FFF" if mode == "NON_STANDARD" else mode
    return item


def _devices(machine: Machine) -> list[Dataset]:
    """The jaws that the machine has, then its MLC layers."""
    items = []
    for kind in machine.jaws:
        item = Dataset()
        item.RTBeamLimitingDeviceType, item.NumberOfLeafJawPairs = kind, 1
        items.append(item)
    for layer in machine.mlc.layers:
        item = Dataset()
        item.RTBeamLimitingDeviceType, item.NumberOfLeafJawPairs = layer.device, layer.pairs
        item.SourceToBeamLimitingDeviceDistance = decimal(machine.mlc.source_distance_mm)
        item.LeafPositionBoundaries = decimals(layer.boundaries_mm)
        items.append(item)
    return items


def _control_point(
    k: int, arc: Arc, weight: float, ssd_mm: float, *, plan: Plan, machine: Machine
) -> Dataset:
    point = Dataset()
    point.ControlPointIndex = k
    if k == 0:
        point.NominalBeamEnergy = decimal(_nominal_energy_mv(machine))
        point.DoseRateSet = decimal(dose_rate_set_mu_min(plan, machine))
    point.BeamLimitingDevicePositionSequence = _positions(arc.leaves_mm[k], arc.jaws_mm[k], machine)
    point.GantryAngle = decimal(_angle_as_written(arc.gantry_deg[k]))
    point.GantryRotationDirection = _direction(arc.gantry_deg, k)
    if k == 0:
        point.BeamLimitingDeviceAngle = decimal(_angle_as_written(arc.collimator_deg))
        point.BeamLimitingDeviceRotationDirection = "NONE"
        point.PatientSupportAngle = decimal(_angle_as_written(arc.couch_deg))
        point.PatientSupportRotationDirection = "NONE"
        point.TableTopEccentricAngle = decimal(0)
        point.TableTopEccentricRotationDirection = "NONE"
        point.TableTopPitchAngle = point.TableTopRollAngle = 0.0
        point.TableTopPitchRotationDirection = point.TableTopRollRotationDirection = "NONE"
        # Where the couch stands is decided at set-up; type 2C allows it to be unknown.
        point.TableTopVerticalPosition = None
        point.TableTopLongitudinalPosition = None
        point.TableTopLateralPosition = None
        point.IsocenterPosition = decimals(plan.isocenter_mm)
    if np.isfinite(ssd_mm):
        point.SourceToSurfaceDistance = decimal(ssd_mm)
    point.CumulativeMetersetWeight = decimal(weight)
    point.ReferencedDoseReferenceSequence = [dose_reference_share(weight)]
    return point


def _positions(leaves_mm: NDArray, jaws_mm: NDArray, machine: Machine) -> list[Dataset]:
    """Positions of every device: a bank's X1 (or Y1) values in boundary order, then all X2 (Y2)."""
    items = []
    for kind in machine.jaws:
        item = Dataset()
        item.RTBeamLimitingDeviceType = kind
        item.LeafJawPositions = decimals(jaws_mm[:2] if kind.endswith("X") else jaws_mm[2:])
        items.append(item)
    first = 0
    for layer in machine.mlc.layers:
        item = Dataset()
        item.RTBeamLimitingDeviceType = layer.device
        item.LeafJawPositions = decimals(leaves_mm[:, first : first + layer.pairs].ravel())
        items.append(item)
        first += layer.pairs
    return items


def _direction(gantry_deg: NDArray, k: int) -> str:
    """Rotation of the segment that follows a control point; none follows the last."""
    step = gantry_deg[k + 1] - gantry_deg[k] if k + 1 < len(gantry_deg) else 0.0
    return "CW" if step > 0 else "CC" if step < 0 else "NONE"


def _angle_as_written(degrees: float) -> float:
    """An angle in [0, 360) with the digits of the file."""
    return round(round(float(degrees), _ANGLE_DIGITS) % 360.0, _ANGLE_DIGITS) % 360.0


def _nominal_energy_mv(machine: Machine) -> float:
    """The number in the beam model's energy, such as 6 in `6 MV`."""
    energy = machine.require_beam().energy
    found = re.search(r"\d+(\.\d+)?", energy)
    if found is None:
        raise PlanError(f"machine {machine.name}: energy {energy!r} holds no number of MV; correct its file")
    return float(found.group())


def _source_to_surface_mm(plan: Plan, arc: Arc, case: Case, sad_mm: float) -> NDArray[np.float64]:
    """Distance from the source to the body along the axis at each control point; NaN where it misses."""
    source = np.array(
        [
            source_position_mm(g, plan.isocenter_mm, sad_mm, arc.couch_deg, plan.patient_position)
            for g in arc.gantry_deg
        ]
    )
    ahead = (np.asarray(plan.isocenter_mm) - source) / sad_mm
    return distance_to_mask_mm(case.body.mask, case.grid, source, ahead, reach_mm=sad_mm)
