"""Whose file it is and what it refers to: whether CT, structure set, plan and dose belong together.

Wherever two files meet, `compare` of their origins decides. It knows UIDs and the code of a patient, never a
name or a record number.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations

from vmat_diffusion.case import Case, Dose, Prescription
from vmat_diffusion.errors import CaseError

# A plan's prescription is the sheet's within this: sheets and systems round to 0.1 Gy and to percents.
_SAME_DOSE_SHARE = 0.005


@dataclass(frozen=True)
class Origin:
    """What a file says about whose it is and what it was made on; "" where it is silent.

    `patient` is a code made from the record number. `uid` is the file's own, `structure_set` and `plan` are
    what it refers to. `doses` are a dose's own UIDs, or those of the doses that a plan refers to.
    """

    what: str
    patient: str = ""
    study: str = ""
    frame: str = ""
    position: str = ""
    uid: str = ""
    structure_set: str = ""
    plan: str = ""
    doses: tuple[str, ...] = ()
    prescribed_gy: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """What contradicts, and what cannot be told or is unusual, a sentence each."""

    contradictions: tuple[str, ...] = ()
    silences: tuple[str, ...] = ()

    def require(self, *, force: bool | None = None) -> tuple[str, ...]:
        """The sentences to show. Raises CaseError for a contradiction unless `force` lets it be.

        With None there is no such option.
        """
        if self.contradictions and not force:
            remedy = "" if force is None else ", or pass --force"
            raise CaseError(
                f"the files do not belong together: {'; '.join(self.contradictions)}; give the files of one "
                f"patient and one plan{remedy}"
            )
        forced = tuple(f"forced in spite of: {sentence}" for sentence in self.contradictions)
        return (*forced, *self.silences)


# A UID within a text: a root of the standard's or one under 2.25, which holds a single long number.
_UID = re.compile(r"(?<!\d)(?<!\d\.)(?:2\.25\.\d{5,}|[0-2](?:\.(?:0|[1-9]\d*)){3,})(?!\.?\d)")


def uid_code(uid: object) -> str:
    """16 hexadecimal digits that stand for a UID in records and reports; "" for none."""
    return hashlib.sha256(str(uid).encode()).hexdigest()[:16] if uid else ""


def without_uids(text: str) -> str:
    """A text with the code of each UID in its place."""
    return _UID.sub(lambda found: uid_code(found[0]), text)


# What the readers of files, and nothing else, put into the provenance of plans and doses.
_KEYS = ("patient_code", "study_uid", "frame_of_reference_uid")


def case_origin(case: Case) -> Origin:
    """That of CT and structure set."""
    source = case.source
    return Origin(
        "CT",
        patient=source.patient,
        study=source.study_uid,
        frame=source.frame_of_reference_uid,
        position=case.patient_position,
        structure_set=source.structure_set_uid,
    )


def dose_origin(dose: Dose, what: str = "dose") -> Origin | None:
    """That of a dose file; None for a dose that comes from no file."""
    facts = dose.provenance
    if not any(key in facts for key in (*_KEYS, "plan_uid")):
        return None
    structure_set, plan = (str(facts.get(key, "")) for key in ("structure_set_uid", "plan_uid"))
    own = _uids(facts, "sop_instance_uids")
    return replace(_shared(what, facts), structure_set=structure_set, plan=plan, doses=own)


def plan_origin(facts: Mapping[str, object], position: str, what: str = "plan") -> Origin | None:
    """That of a plan file by the provenance of the plan; None for a plan that comes from no file."""
    if not any(key in facts for key in (*_KEYS, "sop_instance_uid", "structure_set_uid")):
        return None
    prescribed = facts.get("prescribed_gy")
    return replace(
        _shared(what, facts),
        position=position,
        uid=str(facts.get("sop_instance_uid", "")),
        structure_set=str(facts.get("structure_set_uid", "")),
        doses=_uids(facts, "dose_uids"),
        prescribed_gy=prescribed if isinstance(prescribed, Mapping) else {},
    )


def _uids(facts: Mapping[str, object], key: str) -> tuple[str, ...]:
    found = facts.get(key)
    return tuple(str(uid) for uid in found if uid) if isinstance(found, tuple) else ()


def _shared(what: str, facts: Mapping[str, object]) -> Origin:
    patient, study, frame = (str(facts.get(key, "")) for key in _KEYS)
    return Origin(what, patient=patient, study=study, frame=frame)


def compare(*origins: Origin | None) -> Comparison:
    """Whether files belong together; what comes from no file (None) is not asked.

    Patient, frame of reference, patient position, structure set and plan must not contradict. Studies may
    differ, since planning systems start a new one; that is said like a silence.
    """
    found = [origin for origin in origins if origin is not None]
    contradictions: list[str] = []
    silences: list[str] = []
    for a, b in combinations(found, 2):
        for what, value in _COMPARED:
            one, other = value(a), value(b)
            if not one or not other:
                if (one or other) and what != "patient position":
                    silent = b if one else a
                    silences.append(f"the {silent.what} does not say its {what}")
            elif one != other:
                shown = f" ({other} and {one})" if what == "patient position" else ""
                contradictions.append(f"the {b.what} has another {what} than the {a.what}{shown}")
        if a.study and b.study and a.study != b.study:
            silences.append(f"the {b.what} is of another study than the {a.what}")
        contradictions += _links(a, b)
        silences += _unlinked(a, b)
    return Comparison(tuple(dict.fromkeys(contradictions)), tuple(dict.fromkeys(silences)))


_COMPARED: tuple[tuple[str, Callable[[Origin], str]], ...] = (
    ("patient ID", lambda origin: origin.patient),
    ("frame of reference", lambda origin: origin.frame),
    ("patient position", lambda origin: origin.position),
)


def _links(a: Origin, b: Origin) -> list[str]:
    """References that lead elsewhere: of a plan to a structure set, of a dose to a plan."""
    out = []
    if a.structure_set and b.structure_set and a.structure_set != b.structure_set:
        owner = "case" if a.what == "CT" else a.what
        out.append(f"the {b.what} refers to another structure set than the {owner}'s")
    for one, other in ((a, b), (b, a)):
        if one.plan and other.uid and one.plan != other.uid:
            out.append(f"the {one.what} belongs to another plan")
    return out


def _unlinked(a: Origin, b: Origin) -> list[str]:
    out = []
    for one, other in ((a, b), (b, a)):
        if one.what == "plan" and other.what == "CT" and other.structure_set and not one.structure_set:
            out.append("the plan refers to no structure set")
        if other.uid and one.what.endswith("dose") and not one.plan:
            out.append(f"the {one.what} refers to no plan")
        if one.what == "plan" and one.doses and other.doses and not set(one.doses) & set(other.doses):
            out.append(f"the plan refers to other doses than this {other.what}")
    return out


def prescription_against(
    plan: Origin | None, prescription: Prescription | None, roi_numbers: Mapping[str, int]
) -> Comparison:
    """Whether a plan prescribes what the goal sheet does, target by target by the numbers of their ROIs.

    A plan that names no ROI is compared in its doses: the sheet's highest must be one of them.
    """
    if plan is None or prescription is None or not prescription.target_gy:
        return Comparison()
    if not plan.prescribed_gy:
        return Comparison(silences=("the plan states no prescribed dose",))
    wanted = {roi_numbers[n]: (n, gy) for n, gy in prescription.target_gy.items() if n in roi_numbers}
    both = [number for number in wanted if number in plan.prescribed_gy]
    out, unmatched = [], _unmatched(plan.prescribed_gy, wanted, roi_numbers)
    for number in both:
        name, gy = wanted[number]
        stated = plan.prescribed_gy[number]
        if abs(stated - gy) > _SAME_DOSE_SHARE * gy:
            out.append(f"the plan prescribes {stated:g} Gy to {name}, the goal sheet {gy:g} Gy")
    if not both:
        highest = max(prescription.target_gy.values())
        stated_gy = sorted(set(plan.prescribed_gy.values()))
        if all(abs(gy - highest) > _SAME_DOSE_SHARE * highest for gy in stated_gy):
            listed = " and ".join(f"{gy:g}" for gy in stated_gy)
            out.append(f"the plan prescribes {listed} Gy, the goal sheet {highest:g} Gy")
    return Comparison(tuple(out), tuple(unmatched))


def _unmatched(
    stated: Mapping[int, float], wanted: Mapping[int, tuple[str, float]], roi_numbers: Mapping[str, int]
) -> list[str]:
    """Prescriptions to a region that the plan alone, or the sheet alone, prescribes a dose to."""
    names = {number: name for name, number in roi_numbers.items()}
    out = []
    for number, gy in stated.items():
        if number > 0 and number not in wanted:
            whom = names.get(number, f"ROI {number}, which the structure set does not hold")
            out.append(f"the plan prescribes {gy:g} Gy to {whom}, the goal sheet nothing")
    if any(number > 0 for number in stated):
        for number, (name, gy) in wanted.items():
            if number not in stated:
                out.append(f"the plan prescribes nothing to {name}, the goal sheet {gy:g} Gy")
    return out
