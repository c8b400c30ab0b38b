"""A folder of DICOM files to a Case.

Everything ends in one or in a CaseError with a sentence. Whatever was repaired or converted on the
way is named in `Source.steps`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose, Prescription, Role, Source, Structure
from vmat_diffusion.dicom.attributes import about, integer, items, quiet, text
from vmat_diffusion.dicom.ct import Series, open_series, read_hu
from vmat_diffusion.dicom.folder import Folder, Found, open_folder
from vmat_diffusion.dicom.lattice import Placement, placement_of
from vmat_diffusion.dicom.matching import choose_images, own_plans, reference_dose
from vmat_diffusion.dicom.names import NameTable, load_table
from vmat_diffusion.dicom.patient_code import one_patient, patient_code, unsaid
from vmat_diffusion.dicom.rtplan_read import plan_from, prescribed_gy
from vmat_diffusion.dicom.structure_set.body import (
    BODY_THRESHOLD_HU,
    body_from_ct,
    refuse_targets_outside,
    without_holes,
)
from vmat_diffusion.dicom.structure_set.structures import name_rois, read_rois, structures_on
from vmat_diffusion.errors import CaseError, InputError, PlanError
from vmat_diffusion.geometry import PATIENT_POSITIONS
from vmat_diffusion.origin import Origin, case_origin, compare, dose_origin, plan_origin
from vmat_diffusion.plan import Plan

AIR_HU = -1000.0


@quiet()
def read_case(
    folder: str | Path,
    *,
    mapping: str | Path | Mapping[str, Any] | None = None,
    site: str = "",
    patient_position: str | None = None,
    allow_outside_body: bool = False,
) -> Case:
    """The case that lies in a folder: its CT, structure set and, where there is one, its dose.

    Files are grouped by what they say, never by their names. `mapping` is a structure-name table
    (JSON file or its content; None takes the shipped one). `patient_position` stands in where the
    CT does not state it. `allow_outside_body` lets targets reach out of the body.

    Raises CaseError, with file paths relative to the folder, for everything that is missing,
    ambiguous or damaged.
    """
    table = load_table(mapping)
    found = open_folder(folder)
    if found.refused:
        raise CaseError(found.refused[0])
    return case_from(
        found, table, site=site, patient_position=patient_position, allow_outside_body=allow_outside_body
    )


def case_from(
    folder: Folder,
    table: NameTable,
    *,
    site: str = "",
    patient_position: str | None = None,
    allow_outside_body: bool = False,
    known_only: bool = False,
) -> Case:
    """The case in a folder that has been opened; see `read_case`.

    `known_only` leaves out, with a step, regions whose names the table does not know.
    """
    structure_set, files, chosen = choose_images(folder)
    series = open_series(files)
    position = _patient_position(series, patient_position)
    placement = placement_of(series.lattice)
    whose = [("CT", f.dataset) for f in files] + [("structure set", structure_set.dataset)]
    patient = one_patient(whose)
    with about(structure_set.label):
        named, preferences = name_rois(read_rois(structure_set.dataset), table)
        if known_only and (unknown := sum(not n.known for n in named)):
            named = tuple(n for n in named if n.known)
            preferences = (
                *preferences,
                f"leave-out-unknown: {unknown} regions with names of no meaning here",
            )
        structures, numbers, notes = structures_on(named, placement, series.frame_uid)
    native, padding = read_hu(series)
    hu = placement.values(native, AIR_HU)
    del native
    steps = [*chosen, *unsaid(whose), *series.steps, *placement.steps, *padding, *preferences, *notes]
    structures, made = _with_body(structures, hu, placement)
    steps += made
    body = next(s for s in structures.values() if s.role == "body")
    if not allow_outside_body:
        targets = [s for s in structures.values() if s.role == "target"]
        refuse_targets_outside(targets, body.mask, placement.grid)
    dose, dose_steps = reference_dose(folder, Origin("CT", patient, frame=series.frame_uid), structure_set)
    canonical = {number: name for name, number in numbers.items()}
    roles = {number: structures[name].role for number, name in canonical.items()}
    prescription, prescription_steps = _prescription(
        folder, structure_set, canonical, roles, patient=patient, dose=dose
    )
    axial = placement.axes is not None and placement.axes[0] == 0
    upward = not (axial and 0 in placement.flips)
    return Case(
        id=_pseudonym(series.study_uid, series.uid, structure_set.uid),
        site=site,
        grid=placement.grid,
        hu=hu,
        structures=structures,
        prescription=prescription,
        patient_position=position,
        source=Source(
            study_uid=series.study_uid,
            frame_of_reference_uid=series.frame_uid,
            series_uid=series.uid,
            image_uids=tuple(f.uid for f in series.slices[:: 1 if upward else -1]),
            structure_set_uid=structure_set.uid,
            image_path=str(series.slices[0].path),
            roi_numbers=numbers,
            steps=tuple([*steps, *dose_steps, *prescription_steps]),
            patient=patient,
            colours={n.name: n.roi.colour for n in named if n.roi.colour and n.name in structures},
        ),
        reference_dose=dose,
    )


def _patient_position(series: Series, given: str | None) -> str:
    position = (series.patient_position or given or "").upper()
    if not position:
        raise CaseError(
            "the CT does not state PatientPosition (0018,5100); pass patient_position (--patient-position), "
            f"one of {', '.join(PATIENT_POSITIONS)}"
        )
    if position not in PATIENT_POSITIONS:
        raise CaseError(
            f"patient position {position!r} is not supported; known are {', '.join(PATIENT_POSITIONS)}; "
            "use a series in one of these"
        )
    return position


def _with_body(
    structures: Mapping[str, Structure], hu: NDArray, placement: Placement
) -> tuple[Mapping[str, Structure], tuple[str, ...]]:
    """The structures with exactly one body: without inner holes, made from the CT where none is drawn."""
    bodies = [s for s in structures.values() if s.role == "body"]
    if len(bodies) > 1:
        names = " and ".join(s.name for s in bodies)
        raise CaseError(f"structures {names} both have the role body; give one another role in the mapping")
    voxel_cc = placement.grid.voxel_cc
    if bodies:
        filled = without_holes(bodies[0].mask)
        added_cc = (filled.sum() - bodies[0].mask.sum()) * voxel_cc
        if not added_cc:
            return structures, ()
        body = replace(bodies[0], mask=filled)
        return {**structures, body.name: body}, (
            f"fill-body: {added_cc:.1f} cm3 of holes (airways, lungs) inside {body.name} count as body",
        )
    mask = body_from_ct(hu, placement.grid)
    return {**structures, "BODY": Structure("BODY", "body", mask)}, (
        f"body-from-ct: no body is contoured; largest region above {BODY_THRESHOLD_HU:g} HU, "
        f"{mask.sum() * voxel_cc / 1000:.2f} litres",
    )


def _prescription(
    folder: Folder,
    structure_set: Found,
    canonical: Mapping[int, str],
    roles: Mapping[int, Role],
    *,
    patient: str,
    dose: Dose | None,
) -> tuple[Prescription | None, tuple[str, ...]]:
    """What the RTPLAN of this structure set prescribes to its targets, as far as it says so.

    Of several plans it is that of the case's dose. `canonical` and `roles` are those of the ROI numbers.
    """
    steps: tuple[str, ...] = ()
    try:
        own, steps = own_plans(folder, structure_set.uid)
        wanted = dose.provenance["plan_uid"] if dose else ""
        plans = tuple(p for p in own if p.uid == wanted) or own
        if len(plans) > 1:
            steps = (*steps, f"leave-out-prescription: {len(plans)} plans are made on the structure set")
        if len(plans) != 1:
            return None, steps
        if patient and patient_code(plans[0].dataset) not in ("", patient):
            raise CaseError(f"{plans[0].label} bears another patient's ID than the CT; export both again")
        stated = {n: gy for n, gy in prescribed_gy(plans[0].dataset).items() if n in canonical}
        levels = {canonical[n]: gy for n, gy in stated.items() if roles[n] in ("target", "other")}
        steps += tuple(
            f"leave-out-prescription: {gy:g} Gy to {canonical[n]}, which is no target"
            for n, gy in stated.items()
            if canonical[n] not in levels
        )
        groups = items(plans[0].dataset, "FractionGroupSequence")
        if not levels or len(groups) != 1:
            return None, steps
        fractions = integer(groups[0], "NumberOfFractionsPlanned")
        prescription = Prescription(fractions, levels)
    except InputError as fault:
        return None, (*steps, f"leave-out-prescription: {fault}")
    return prescription, (*steps, f"take-prescription: from {plans[0].label}")


def plan_of(folder: Folder, case: Case) -> Plan:
    """The plan of a case in its opened folder: the one its dose belongs to, or else the only one.

    Raises PlanError where there is none, where it could be several, where it is of another patient or
    position, and for whatever a Plan cannot represent.
    """
    own, others = own_plans(folder, case.source.structure_set_uid)
    dose = case.reference_dose
    wanted = dose.provenance.get("plan_uid") if dose else ""
    plans = tuple(p for p in own if p.uid == wanted) or own
    if not plans:
        what = "only plans of other structure sets" if others else "no RTPLAN"
        raise PlanError(f"the folder holds {what}; add the plan made on this structure set")
    if len(plans) > 1:
        raise PlanError(f"{len(plans)} plans are made on the structure set; keep the one that is meant")
    with about(plans[0].label, PlanError):
        plan = plan_from(plans[0].dataset)
        of_plan = plan_origin(plan.provenance, plan.patient_position)
        compare(case_origin(case), of_plan, dose_origin(dose) if dose else None).require()
    return plan


def patient_pseudonym(folder: Folder) -> str:
    """16 hexadecimal digits that are the same for all studies of a patient and name nobody.

    A slow hash (scrypt, RFC 7914; 50 ms) of record number and date of birth, so that trying out record
    numbers takes long; for data that leave the clinic de-identify the DICOM files first. Without a
    record number it is that of the study.
    """
    first = next(iter(folder.of("CT") or folder.files), None)
    texts = [text(first.dataset, k) for k in ("PatientID", "PatientBirthDate")] if first else []
    if not any(texts[:1]):
        texts = [text(first.dataset, "StudyInstanceUID")] if first else []
    secret = "|".join(texts).encode()
    return hashlib.scrypt(secret, salt=b"vmat-diffusion patient", n=2**14, r=8, p=1, dklen=8).hex()


def _pseudonym(*uids: str) -> str:
    """A short name that is the same for the same images and tells nothing about the patient."""
    return f"case-{hashlib.sha256('|'.join(uids).encode()).hexdigest()[:8]}"
