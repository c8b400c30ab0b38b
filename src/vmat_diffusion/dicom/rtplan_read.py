"""RTPLAN to a Plan: its beams with MU, what it was made for, and what a person must know of the file.

Whatever was left out on the way is named in `provenance["steps"]`; `provenance["remarks"]` says what the file
does not say or says in an unusual way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from vmat_diffusion.dicom.attributes import about, has, integer, items, name_of, number, quiet, text
from vmat_diffusion.dicom.delivery_attributes import refuse_moving_table, refuse_unrepresented_around
from vmat_diffusion.dicom.folder import open_one
from vmat_diffusion.dicom.patient_code import patient_code
from vmat_diffusion.dicom.rtplan_beam import PlannedBeam, read_beam
from vmat_diffusion.errors import InputError, PlanError
from vmat_diffusion.geometry import PATIENT_POSITIONS
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan

# Plans with these words were not made to treat, or were judged unfit (PS3.3, C.8.8.9 and C.8.8.16).
_UNUSUAL = {
    "PlanIntent": ("VERIFICATION", "MACHINE_QA", "RESEARCH", "SERVICE"),
    "ApprovalStatus": ("REJECTED",),
    "RTPlanGeometry": ("TREATMENT_DEVICE",),
}
# What another plan that this one refers to (PS3.3, C.8.8.9) means for the dose.
_RELATIONS = {
    "VERIFIED_PLAN": "this plan verifies that one and was not made to treat",
    "CONCURRENT": "that plan is delivered in the same course, and its dose is not in this one's",
}
# Shares by which doses per MU of one plan differ by the rounding of the file, and otherwise. Ours.
_SAME_SPREAD, _OWN_SPREAD = 0.001, 0.01
# Beams that are there to take pictures.
_IMAGING = ("SETUP", "OPEN_PORTFILM", "TRMT_PORTFILM")


@quiet()
def read_plan(file: str | Path, machine: Machine | None = None) -> Plan:
    """The plan in an RTPLAN file.

    With `machine` the plan takes its name, and the leaf boundaries must be the machine's. Raises
    PlanError for what is no RTPLAN and for whatever a Plan cannot represent, by name.
    """
    path = Path(file)
    with about(path.name, PlanError):
        found = open_one(path, "RTPLAN")
        return plan_from(found.dataset, machine)


def plan_from(dataset: Dataset, machine: Machine | None = None) -> Plan:
    """The plan that an RTPLAN data set describes.

    With `machine`, its leaf boundaries must be those of the plan where the number of pairs is the
    same, and the plan takes its name; a different number of pairs is left to `violations`.
    Raises PlanError, naming the beam, for whatever a Plan cannot represent.
    """
    if has(dataset, "ApplicationSetupSequence") or has(dataset, "IonBeamSequence"):
        raise PlanError("the plan is not one of external photon beams; choose a photon plan")
    group = _fraction_group(dataset)
    fractions = integer(group, "NumberOfFractionsPlanned")
    if fractions < 1:
        raise PlanError(f"NumberOfFractionsPlanned (300A,0078) is {fractions}; at least 1 is needed")
    refuse_unrepresented_around(dataset)
    meterset = _meterset(group)
    chosen, steps, remarks = _treating(dataset, meterset)
    beams: list[PlannedBeam] = []
    for item in chosen:
        number_ = integer(item, "BeamNumber")
        with about(f"beam {number_}", PlanError):
            beams.append(read_beam(item, meterset[number_] or 0.0))
        remarks += [f"beam {number_}: {remark}" for remark in beams[-1].remarks]
    refuse_moving_table(chosen)
    _must_agree(beams, machine)
    remarks += _state(dataset, group) + _exchanged_mu(group)
    rates = [b.rate_mu_min for b in beams if b.rate_mu_min]
    setups = {integer(s, "PatientSetupNumber"): s for s in items(dataset, "PatientSetupSequence")}
    if setups and (lost := sorted({b.setup for b in beams} - set(setups) - {-1})):
        remarks.append(f"the beams refer to patient setup {lost[0]}, which is not in the plan")
    provenance = {
        "source": "RTPLAN",
        "sop_instance_uid": text(dataset, "SOPInstanceUID"),
        "study_uid": text(dataset, "StudyInstanceUID"),
        "frame_of_reference_uid": text(dataset, "FrameOfReferenceUID"),
        "structure_set_uid": structure_set_uid(dataset),
        "patient_code": patient_code(dataset),
        "dose_uids": tuple(
            text(item, "ReferencedSOPInstanceUID") for item in items(dataset, "ReferencedDoseSequence")
        ),
        "prescribed_gy": dict(_prescriptions(dataset)),
        "software": f"{text(dataset, 'Manufacturer')} {text(dataset, 'ManufacturerModelName')}".strip(),
        "machine_in_plan": beams[0].machine,
        "energy_mv": beams[0].energy_mv,
        "sad_mm": beams[0].sad_mm,
        "fluence_mode": beams[0].fluence_mode,
        "leaf_boundaries_mm": dict(beams[0].boundaries_mm),
        "jaws": beams[0].jaws,
        "steps": tuple(steps),
        "remarks": tuple(remarks),
    }
    return Plan(
        arcs=tuple(b.arc for b in beams),
        isocenter_mm=beams[0].isocenter_mm,
        fractions=fractions,
        machine=machine.name if machine else beams[0].machine,
        label=text(dataset, "RTPlanLabel", "RTPLAN"),
        patient_position=_patient_position(beams, setups),
        dose_rate_mu_min=max(rates) if rates else None,
        provenance=provenance,
    )


def structure_set_uid(dataset: Dataset) -> str:
    """SOP instance UID of the structure set that a plan refers to; "" where it refers to none."""
    references = items(dataset, "ReferencedStructureSetSequence")
    return text(references[0], "ReferencedSOPInstanceUID") if references else ""


def prescribed_gy(dataset: Dataset) -> Mapping[int, float]:
    """Prescribed dose of the course by ROI number, as far as the plan names volumes.

    Raises PlanError for two prescriptions of one region.
    """
    found: dict[int, float] = {}
    for item in items(dataset, "DoseReferenceSequence"):
        if text(item, "DoseReferenceType") != "TARGET" or not has(item, "ReferencedROINumber"):
            continue
        if (gy := number(item, "TargetPrescriptionDose", 0.0)) > 0:
            roi = integer(item, "ReferencedROINumber")
            if abs(found.setdefault(roi, gy) - gy) > 0.005:
                raise PlanError(
                    f"the plan prescribes {found[roi]:g} Gy and {gy:g} Gy to ROI {roi}; keep one of them"
                )
    return found


def _prescriptions(dataset: Dataset) -> Mapping[int, float]:
    """Prescribed dose of the course by ROI number; volumes without a ROI get negative numbers."""
    found = dict(prescribed_gy(dataset))
    for k, item in enumerate(items(dataset, "DoseReferenceSequence"), start=1):
        if text(item, "DoseReferenceType") != "TARGET" or has(item, "ReferencedROINumber"):
            continue
        if (gy := number(item, "TargetPrescriptionDose", 0.0)) > 0:
            found[-k] = gy
    return found


def _state(dataset: Dataset, group: Dataset) -> list[str]:
    """What a person must know of the plan as a whole: its intent, its approval, wrong counts."""
    out = [
        f"{name_of(keyword)} is {word}"
        for keyword, unusual in _UNUSUAL.items()
        if (word := text(dataset, keyword)) in unusual
    ]
    stated, listed = integer(group, "NumberOfBeams", -1), len(items(group, "ReferencedBeamSequence"))
    if stated != listed:
        said = "missing" if stated < 0 else f"{stated}"
        out.append(f"{name_of('NumberOfBeams')} is {said}, {listed} beams are referred to")
    if (sets := len(items(dataset, "ReferencedStructureSetSequence"))) > 1:
        out.append(f"the plan refers to {sets} structure sets, the first is taken")
    for other in items(dataset, "ReferencedRTPlanSequence"):
        if meaning := _RELATIONS.get(relation := text(other, "RTPlanRelationship")):
            out.append(f"{name_of('RTPlanRelationship')} is {relation}: {meaning}")
    return out


def _meterset(group: Dataset) -> dict[int, float | None]:
    """MU of each beam by number as the fraction group states it; None where it does not."""
    out: dict[int, float | None] = {}
    for item in items(group, "ReferencedBeamSequence"):
        beam = integer(item, "ReferencedBeamNumber")
        if beam in out:
            raise PlanError(f"beam {beam} is referred to twice in the fraction group; export the plan again")
        mu = number(item, "BeamMeterset") if has(item, "BeamMeterset") else None
        if mu is not None and mu < 0:
            raise PlanError(
                f"beam {beam}: BeamMeterset (300A,0086) is {mu:g}, it cannot be negative; export it again"
            )
        out[beam] = mu
    return out


def _exchanged_mu(group: Dataset) -> list[str]:
    """A remark where the beams' doses are in the ratios of their MU, but in another order.

    Many planning systems state BeamDose (300A,0084) in proportion to the MU: of the plans of five systems at
    hand, those of three. MU that were exchanged afterwards hardly change the dose of two like arcs.
    """
    try:
        found = {
            integer(item, "ReferencedBeamNumber"): (number(item, "BeamDose"), number(item, "BeamMeterset"))
            for item in items(group, "ReferencedBeamSequence")
            if has(item, "BeamDose") and has(item, "BeamMeterset")
        }
    except InputError:  # a BeamDose that is no number takes nothing from the plan
        return []
    stated = {beam: (gy, mu) for beam, (gy, mu) in found.items() if gy > 0 and mu > 0}
    if len(stated) < 2:
        return []
    doses, metersets = zip(*stated.values(), strict=True)
    if _spread(doses, metersets) < _OWN_SPREAD or _spread(sorted(doses), sorted(metersets)) > _SAME_SPREAD:
        return []
    listed = ", ".join(f"beam {beam} {gy:.4g} Gy with {mu:.1f} MU" for beam, (gy, mu) in stated.items())
    return [f"the MU fit the BeamDose (300A,0084) of other beams, as if they were exchanged: {listed}"]


def _spread(doses: Sequence[float], metersets: Sequence[float]) -> float:
    """How far the doses per MU lie apart, as a share."""
    ratios = [gy / mu for gy, mu in zip(doses, metersets, strict=True)]
    return max(ratios) / min(ratios) - 1.0


def _treating(
    dataset: Dataset, meterset: Mapping[int, float | None]
) -> tuple[list[Dataset], list[str], list[str]]:
    """The beams that deliver MU, a step for each one left out, and remarks on beams lost on the way.

    Raises PlanError for a reference to a beam that does not exist, and where no beam has MU.
    """
    chosen: list[Dataset] = []
    steps: list[str] = []
    remarks: list[str] = []
    kinds = {}
    for item in items(dataset, "BeamSequence"):
        if (beam := integer(item, "BeamNumber")) in kinds:
            raise PlanError(f"two beams have the number {beam}; export the plan again")
        kinds[beam] = delivery = text(item, "TreatmentDeliveryType", "TREATMENT")
        mu = meterset.get(beam)
        if mu:
            chosen.append(item)
            continue
        why = "no MU" if mu is None else "0 MU"
        reason = f"has {why}" if beam in meterset else "is in no fraction group"
        steps.append(f"leave-out-beam: beam {beam} ({delivery}) {reason}")
        if delivery not in _IMAGING:
            remarks.append(f"beam {beam} ({delivery}) {reason} and delivers nothing")
    if lost := [beam for beam in meterset if beam not in kinds]:
        raise PlanError(
            f"the fraction group refers to beam {lost[0]}, which is not in the plan; export the plan again"
        )
    if not chosen:
        unsaid = [b for b, mu in meterset.items() if mu is None and kinds[b] not in _IMAGING]
        if unsaid:
            raise PlanError(
                f"beam {unsaid[0]}: BeamMeterset (300A,0086) is missing, as it is in every beam; export a "
                "calculated plan"
            )
        raise PlanError("the plan has no treatment beam with monitor units; export a calculated plan")
    return chosen, steps, remarks


def _fraction_group(dataset: Dataset) -> Dataset:
    groups = items(dataset, "FractionGroupSequence")
    if len(groups) != 1:
        raise PlanError(
            f"the plan has {len(groups)} fraction groups, exactly one "
            "can be read; export each group as a plan"
        )
    return groups[0]


def _must_agree(beams: Sequence[PlannedBeam], machine: Machine | None) -> None:
    """Refuse plans whose beams differ in what a Plan holds once."""
    first = beams[0]
    for beam in beams[1:]:
        for what, same in (
            ("isocentre", np.allclose(beam.isocenter_mm, first.isocenter_mm, atol=0.01)),
            ("energy", beam.energy_mv == first.energy_mv),
            ("SourceAxisDistance (300A,00B4)", beam.sad_mm == first.sad_mm),
            ("fluence mode", beam.fluence_mode == first.fluence_mode),
            ("machine", beam.machine == first.machine),
            ("multileaf collimator", beam.boundaries_mm == first.boundaries_mm),
        ):
            if not same:
                raise PlanError(
                    f"beams {first.arc.number} and {beam.arc.number} differ in "
                    f"their {what}; export them as two plans"
                )
    if machine is None or machine.mlc.pairs != first.arc.leaves_mm.shape[2]:
        return
    own = [la.boundaries_mm for la in sorted(machine.mlc.layers, key=lambda la: la.device)]
    theirs = [edges for _, edges in first.boundaries_mm]
    if [len(e) for e in own] != [len(e) for e in theirs] or not all(
        np.allclose(a, b, atol=0.1) for a, b in zip(own, theirs, strict=True)
    ):
        raise PlanError(
            "the leaf boundaries of the plan are not those of machine "
            f"{machine.name}; choose the machine that the "
            "plan was made for"
        )


def _patient_position(beams: Sequence[PlannedBeam], setups: Mapping[int, Dataset]) -> str:
    found = {text(setups[b.setup], "PatientPosition") for b in beams if b.setup in setups}
    if not found:
        found = {text(s, "PatientPosition") for s in setups.values()}
    found -= {""}
    if len(found) != 1:
        raise PlanError(
            f"the beams have {len(found)} patient positions "
            f"({', '.join(sorted(found))}), exactly one is needed"
        )
    position = found.pop()
    if position not in PATIENT_POSITIONS:
        raise PlanError(f"patient position {position!r} is not one of {', '.join(PATIENT_POSITIONS)}")
    return position
