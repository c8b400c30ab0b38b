"""What an RTPLAN says beside the motion of its beams: doses, fractions, tolerances, dose rate.

Source: DICOM PS3.3 C.8.8.10 (prescription), C.8.8.11 (tolerance tables), C.8.8.13 (fractions), C.8.8.14
(beams). Which of the optional ones are written follows what five planning systems write, `docs/rtplan.md`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from vmat_diffusion.case import Case, Prescription
from vmat_diffusion.dicom.dataset import decimal, decimals, new_uid
from vmat_diffusion.geometry import Point
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan, timing

TOLERANCE_TABLE = 1
# The dose reference that beams and control points refer to: the target of the highest prescription.
_PRIMARY = 1
_RATE_TOLERANCE_MU_MIN = 1e-6


@dataclass(frozen=True)
class BeamDoses:
    """The dose of each beam, by its number, in Gy per fraction at one point of the patient."""

    point_mm: Point
    gy: Mapping[int, float]


def dose_references(case: Case, prescription: Prescription) -> list[Dataset]:
    """The prescribed targets, the highest dose first."""
    items = []
    by_dose = sorted(prescription.target_gy.items(), key=lambda pair: -pair[1])
    for number, (name, gy) in enumerate(by_dose, start=_PRIMARY):
        item = Dataset()
        item.DoseReferenceNumber, item.DoseReferenceUID = number, new_uid()
        roi = case.source.roi_numbers.get(name)
        item.DoseReferenceStructureType = "SITE" if roi is None else "VOLUME"
        if roi is not None:
            item.ReferencedROINumber = roi
        item.DoseReferenceDescription = name
        item.DoseReferenceType = "TARGET"
        item.TargetPrescriptionDose = decimal(gy)
        items.append(item)
    return items


def fraction_group(plan: Plan, metersets_mu: Sequence[float], dose_reference_uid: str) -> Dataset:
    """The fractions and the monitor units of each beam, in the order of the arcs.

    `dose_reference_uid` is that of the primary dose reference.
    """
    group = Dataset()
    group.FractionGroupNumber = 1
    group.NumberOfFractionsPlanned = plan.fractions
    group.NumberOfBeams = len(plan.arcs)
    group.NumberOfBrachyApplicationSetups = 0
    group.ReferencedBeamSequence = []
    for arc, meterset in zip(plan.arcs, metersets_mu, strict=True):
        beam = Dataset()
        beam.BeamMeterset = decimal(meterset)
        beam.ReferencedBeamNumber = arc.number
        beam.ReferencedDoseReferenceUID = dose_reference_uid
        group.ReferencedBeamSequence.append(beam)
    return group


def set_beam_doses(group: Dataset, doses: BeamDoses) -> None:
    """Put the doses of the beams and their point into a fraction group."""
    for beam in group.ReferencedBeamSequence:
        beam.BeamDose = decimal(doses.gy[int(beam.ReferencedBeamNumber)])
        beam.BeamDoseSpecificationPoint = decimals(doses.point_mm)


def dose_reference_share(weight: float) -> Dataset:
    """How much of its beam's dose the primary dose reference has at a control point: the meterset's share."""
    item = Dataset()
    item.CumulativeDoseReferenceCoefficient = decimal(weight)
    item.ReferencedDoseReferenceNumber = _PRIMARY
    return item


def tolerance_table(label: str) -> Dataset:
    """A table by its label alone: its numbers are those of the treatment machine."""
    item = Dataset()
    item.ToleranceTableNumber, item.ToleranceTableLabel = TOLERANCE_TABLE, label
    return item


def dose_rate_set_mu_min(plan: Plan, machine: Machine) -> float:
    """The dose rate for the first control point of each beam: the plan's cap or the machine's highest.

    On a machine that has certain rates only, the least of them that is as high as the plan ever needs.
    """
    cap = plan.dose_rate_mu_min or machine.limits.dose_rate_mu_min
    levels = machine.limits.dose_rate_levels_mu_min
    if levels is None:
        return cap
    used = max(
        float(timing(arc, machine.limits, plan.dose_rate_mu_min).dose_rate_mu_min.max()) for arc in plan.arcs
    )
    return min(rate for rate in levels if rate >= used - _RATE_TOLERANCE_MU_MIN)
