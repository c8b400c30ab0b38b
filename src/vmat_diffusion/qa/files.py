"""The files of a plan: what they hold when read again, and the plan file that a passed verdict lets out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vmat_diffusion.case import Case, Dose, Prescription
from vmat_diffusion.errors import InputError, PlanError
from vmat_diffusion.geometry import signed_deg
from vmat_diffusion.machine import Machine
from vmat_diffusion.origin import (
    Comparison,
    case_origin,
    compare,
    dose_origin,
    plan_origin,
    prescription_against,
)
from vmat_diffusion.plan import Plan
from vmat_diffusion.qa.verdict import Check, Verdict, warning

_ONE_PATIENT = "one patient, one plan"
# How the step of a case begins that names a file of it without a record number.
_UNSAID = "unsaid-patient: "
# Numbers read again may differ by the rounding of DICOM's decimal strings and 32-bit doses.
_POSITION_MM, _ANGLE_DEG, _MU_SHARE, _DOSE_SHARE = 0.02, 0.001, 1e-4, 1e-4


@dataclass(frozen=True)
class PlanFiles:
    """The RTPLAN and RTDOSE that are to be handed on; `dose` is None where there is none."""

    plan: Path
    dose: Path | None = None


def write_plan(
    path: Path | str,
    plan: Plan,
    case: Case,
    machine: Machine,
    verdict: Verdict,
    *,
    prescription: Prescription | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the RT Plan of a plan that passed the gate, UNAPPROVED; there is no other way to one.

    `verdict` is what `judge` said of this very plan on this case. `prescription` is the case's own unless
    given. The case must come from DICOM, to which the plan refers. Raises PlanError without a verdict, for
    one that did not pass or that is on another plan or case, and for what the file cannot hold.
    """
    from vmat_diffusion.dicom import write_unjudged_plan

    if not isinstance(verdict, Verdict):
        raise PlanError("a plan is written with the verdict of judge(...) only; judge the plan first")
    verdict.require_passed(plan, case)
    prescription = prescription or case.prescription
    if prescription is None:
        raise PlanError("the case has no prescription to write into the plan; fit a goal sheet to it")
    return write_unjudged_plan(path, plan, case, machine, prescription=prescription, overwrite=overwrite)


def release_plan(unjudged: Path, path: Path, plan: Plan, case: Case, verdict: Verdict) -> Path:
    """Write the sealed plan that was judged as the DICOM file `path`, and remove the sealed one.

    Raises PlanError unless the verdict lets it out.
    """
    from vmat_diffusion.dicom.sealed import unseal

    verdict.require_passed(plan, case)
    return unseal(unjudged, path)


def same_patient(
    case: Case, plan: Plan, dose: Dose, prescription: Prescription | None = None
) -> Check | None:
    """Whether CT, plan and dose belong together and the plan prescribes what the sheet does.

    A contradiction fails, a silence warns; None where nothing comes from a file. `prescription` is the goal
    sheet's.
    """
    together = belonging(case, plan, dose, prescription)
    if together is None:
        return None
    if not together.contradictions and together.silences:
        return warning(_ONE_PATIENT, together.silences, "")
    faults = together.contradictions
    why = "; ".join([*faults, *together.silences]) or "CT, plan and dose belong together"
    return Check(_ONE_PATIENT, not faults, float(len(faults)), 0.0, "faults", why)


def belonging(
    case: Case, plan: Plan | None, dose: Dose | None, prescription: Prescription | None = None
) -> Comparison | None:
    """How the files of a case, a plan and a dose agree; None where neither plan nor dose is a file's."""
    of_plan = plan_origin(plan.provenance, plan.patient_position) if plan else None
    of_dose = dose_origin(dose) if dose else None
    if of_plan is None and of_dose is None:
        return None
    found = compare(case_origin(case), of_plan, of_dose)
    numbers = case.source.roi_numbers
    prescribed = prescription_against(of_plan, prescription, numbers)
    unsaid = (s.removeprefix(_UNSAID) for s in case.source.steps if s.startswith(_UNSAID))
    return Comparison(
        (*found.contradictions, *prescribed.contradictions),
        (*found.silences, *unsaid, *prescribed.silences),
    )


def plan_remarks(plan: Plan, machine: Machine) -> list[str]:
    """What a person must know of a plan file: its state, what it leaves unsaid, another machine's name."""
    said = plan.provenance.get("remarks")
    out = [str(remark) for remark in said] if isinstance(said, tuple) else []
    out += _absent_jaws(plan, machine)
    name = plan.provenance.get("machine_in_plan")
    base = machine.name.partition(" behind ")[0]
    if isinstance(name, str) and name != base:
        out.append(f"the plan is for machine {name}, it is judged as machine {machine.name}")
    return out


def _absent_jaws(plan: Plan, machine: Machine) -> list[str]:
    """Axes on which the machine has jaws and the plan file lists none, so that the field is open there."""
    listed = plan.provenance.get("jaws")
    if not isinstance(listed, tuple):
        return []
    axes = [axis for axis in "XY" if any(jaw.endswith(axis) for jaw in machine.jaws)]
    lost = [axis for axis in axes if not any(str(jaw).endswith(axis) for jaw in listed)]
    return [f"the plan lists no jaws along {axis}, machine {machine.name} has them" for axis in lost]


def dose_remarks(dose: Dose) -> list[str]:
    """What a person must know of a dose file: another medium, a moved dose, what was repaired on reading."""
    said = dose.provenance.get("remarks")
    return [str(remark) for remark in said] if isinstance(said, tuple) else []


def round_trip(files: PlanFiles, case: Case, plan: Plan, machine: Machine, dose: Dose) -> Check:
    """The files read again hold this plan and this dose, and belong together."""
    from vmat_diffusion.dicom import read_dose, read_plan

    faults: list[str] = []
    try:
        back = read_plan(files.plan, machine)
        faults += plan_differences(plan, back)
        if files.dose is not None:
            again = read_dose(files.dose)
            faults += _dose_differences(dose, again)
            together = same_patient(case, back, again)
            if together is not None and not together.passed:
                faults.append(together.why)
    except InputError as error:
        faults.append(str(error))
    why = "; ".join(faults) or "the files read again hold this plan and this dose"
    return Check("files agree", not faults, float(len(faults)), 0.0, "faults", why)


def plan_differences(plan: Plan, other: Plan) -> list[str]:
    """Differences of two plans beyond the rounding of a file, a sentence each; [] where there are none."""
    if len(plan.arcs) != len(other.arcs):
        return [f"{len(other.arcs)} beams in the file, {len(plan.arcs)} in the plan"]
    out = []
    if plan.fractions != other.fractions:
        out.append(f"{other.fractions} fractions in the file, {plan.fractions} in the plan")
    if not np.allclose(plan.isocenter_mm, other.isocenter_mm, rtol=0, atol=_POSITION_MM):
        out.append("the isocentre differs")
    for a, b in zip(plan.arcs, other.arcs, strict=True):
        if a.leaves_mm.shape != b.leaves_mm.shape:
            out.append(f"beam {a.number}: numbers of control points or leaves differ")
            continue
        angles = [
            (a.gantry_deg, b.gantry_deg),
            (a.collimator_deg, b.collimator_deg),
            (a.couch_deg, b.couch_deg),
        ]
        turned = [np.abs(signed_deg(np.asarray(x) - np.asarray(y))).max() for x, y in angles]
        for name, same in (
            ("leaf positions", np.allclose(a.leaves_mm, b.leaves_mm, rtol=0, atol=_POSITION_MM)),
            ("jaw positions", np.allclose(a.jaws_mm, b.jaws_mm, rtol=0, atol=_POSITION_MM)),
            ("MU", np.allclose(a.mu, b.mu, rtol=_MU_SHARE, atol=_MU_SHARE)),
            ("angles", max(turned) <= _ANGLE_DEG),
            (
                "direction of rotation",
                np.allclose(np.diff(a.gantry_deg), np.diff(b.gantry_deg), atol=_ANGLE_DEG),
            ),
        ):
            if not same:
                out.append(f"beam {a.number}: the {name} differ")
    return out


def _dose_differences(dose: Dose, other: Dose) -> list[str]:
    if not dose.grid.matches(other.grid, tolerance_mm=_POSITION_MM):
        return ["the dose in the file lies on another grid"]
    most = float(np.abs(dose.gy - other.gy).max())
    return [f"the doses differ by {most:.3g} Gy"] if most > _DOSE_SHARE * float(dose.gy.max()) else []
