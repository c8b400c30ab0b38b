"""Which structure set, images, plans and doses of a folder belong together: what they refer to decides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmat_diffusion.case import Dose
from vmat_diffusion.dicom.attributes import about, items, text
from vmat_diffusion.dicom.ct import series_files
from vmat_diffusion.dicom.folder import MULTI_FRAME_CT, Folder, Found
from vmat_diffusion.dicom.patient_code import patient_code
from vmat_diffusion.dicom.rtdose_read import course_dose, plan_uid
from vmat_diffusion.dicom.rtplan_read import structure_set_uid
from vmat_diffusion.errors import CaseError, InputError, UnreadableError
from vmat_diffusion.origin import Origin, compare

_OF_SET = "ReferencedStructureSetSequence"


@dataclass(frozen=True)
class _Fit:
    """A structure set and a CT series that it was drawn on, by its images or by its frame alone."""

    found: Found
    series: str
    how: str


def choose_images(folder: Folder) -> tuple[Found, tuple[Found, ...], tuple[str, ...]]:
    """The structure set, the CT files that it was drawn on, and the steps taken to tell.

    Where several fit, that of the dose's plan is taken, else that of the only plan. Raises CaseError where
    there is none, where several fit equally well, and where set and images bear different PatientIDs.
    """
    series = series_files(folder)
    if not series:
        raise CaseError(_no_series(folder))
    structure_sets = folder.of("RTSTRUCT")
    if not structure_sets:
        raise CaseError("the folder holds no RTSTRUCT; add the structure set drawn on the CT")
    fitting: list[_Fit] = []
    for candidate in structure_sets:
        with about(candidate.label):
            fitting += _fitting_series(candidate, series)
    if not fitting:
        raise CaseError(
            "no structure set refers to a CT series in the folder "
            f"({structure_sets[0].label} refers to images "
            "that are absent); add the images that it was drawn on"
        )
    best = [f for f in fitting if f.how == "images"] or fitting
    best, steps = _referred_to(folder, best)
    if (count := len({f.series for f in best})) > 1:
        raise CaseError(f"structure sets fit {count} CT series equally well; keep one series in the folder")
    if len(best) > 1:
        labels = ", ".join(sorted(f.found.label for f in best)[:4])
        raise CaseError(f"{len(best)} structure sets fit the CT ({labels}); keep the one that is meant")
    chosen = best[0]
    if chosen.how == "frame":
        steps.append("match-frame: structure set and CT share a frame of reference only")
    if len(series) > 1:
        steps.append(f"choose-series: 1 of {len(series)} CT series, the one that the structure set refers to")
    if len(structure_sets) > 1:
        steps.append(f"choose-structures: 1 of {len(structure_sets)} structure sets, {chosen.found.label}")
    return chosen.found, series[chosen.series], tuple(steps)


def _no_series(folder: Folder) -> str:
    if enhanced := folder.of(MULTI_FRAME_CT):
        return (
            f"{enhanced[0].label}: the CT is an enhanced multi-frame object, which is not read; convert it "
            "to one image for each slice (SOP class CT Image Storage)"
        )
    what = f"{len(folder.files)} other DICOM files" if folder.files else "no DICOM file"
    return f"the folder holds {what} and no CT series; add the CT images"


def _fitting_series(found: Found, series: Mapping[str, Sequence[Found]]) -> list[_Fit]:
    """CT series that a structure set was drawn on: by its images, or else by frame of reference.

    The images that the contours themselves name come before those in the header, where 4D series are all
    listed. Raises CaseError where both name series of the folder and not one is the same.
    """
    images, uids, frames = references_of(found)
    drawn = images_of_contours(found)
    by_contour = {uid for uid, files in series.items() if any(f.uid in drawn for f in files)}
    by_image = {uid for uid, files in series.items() if uid in uids or any(f.uid in images for f in files)}
    if by_contour and by_image and not by_contour & by_image:
        raise CaseError(
            f"the header names the CT series ...{min(by_image)[-12:]}, the contours name images of "
            f"...{min(by_contour)[-12:]}; export the structure set again"
        )
    if by_contour or by_image:
        return [_Fit(found, uid, "images") for uid in sorted(by_contour or by_image)]
    return [
        _Fit(found, uid, "frame")
        for uid, files in series.items()
        if text(files[0].dataset, "FrameOfReferenceUID") in frames - {""}
    ]


def references_of(found: Found) -> tuple[set[str], set[str], set[str]]:
    """Image, series and frame-of-reference UIDs that the header of a structure set names."""
    images: set[str] = set()
    uids: set[str] = set()
    frames = {text(found.dataset, "FrameOfReferenceUID")}
    for frame in items(found.dataset, "ReferencedFrameOfReferenceSequence"):
        frames.add(text(frame, "FrameOfReferenceUID"))
        for study in items(frame, "RTReferencedStudySequence"):
            for series in items(study, "RTReferencedSeriesSequence"):
                uids.add(text(series, "SeriesInstanceUID"))
                for image in items(series, "ContourImageSequence"):
                    images.add(text(image, "ReferencedSOPInstanceUID"))
    for roi in items(found.dataset, "StructureSetROISequence"):
        frames.add(text(roi, "ReferencedFrameOfReferenceUID"))
    return images, uids - {""}, frames


def images_of_contours(found: Found) -> set[str]:
    """UIDs of the images that the contours of a structure set name (ContourImageSequence, 3006,0016)."""
    return {
        text(image, "ReferencedSOPInstanceUID")
        for roi in items(found.dataset, "ROIContourSequence")
        for contour in items(roi, "ContourSequence")
        for image in items(contour, "ContourImageSequence")
    } - {""}


def _referred_to(folder: Folder, fits: list[_Fit]) -> tuple[list[_Fit], list[str]]:
    """Where several sets or series fit: those of the set that a dose's plan, or else a plan, is made on."""
    if len(fits) < 2:
        return fits, []
    sets = _sets_of_plans(folder)
    planned = {_set_of_dose(d, sets) for d in folder.of("RTDOSE")}
    for wanted, what in ((planned, "dose"), (set(sets.values()), "plan")):
        found = [f for f in fits if f.found.uid in wanted]
        if len({f.found.uid for f in found}) == 1:
            said = f"follow-references: the {what} belongs to structure set {found[0].found.label}"
            return found, [said] if len({f.found.uid for f in fits}) > 1 else []
    return fits, []


def _sets_of_plans(folder: Folder) -> dict[str, str]:
    """Structure set UID by plan UID, as far as the plans can be read."""
    out: dict[str, str] = {}
    for plan in folder.of("RTPLAN"):
        try:
            out[plan.uid] = structure_set_uid(plan.dataset)
        except CaseError:
            continue
    return out


def _set_of_dose(dose: Found, sets: Mapping[str, str]) -> str:
    """The structure set that a dose names itself, else that of its plan; "" where neither says."""
    try:
        named = [text(s, "ReferencedSOPInstanceUID") for s in items(dose.dataset, _OF_SET)]
        return next(iter(named), "") or sets.get(plan_uid(dose), "")
    except CaseError:
        return ""


def own_plans(folder: Folder, structure_set: str) -> tuple[tuple[Found, ...], tuple[str, ...]]:
    """The RTPLANs that refer to a structure set by its UID or to none, and a step for each other one."""
    own: list[Found] = []
    steps: list[str] = []
    for plan in folder.of("RTPLAN"):
        with about(plan.label):
            uid = structure_set_uid(plan.dataset)
        if uid in ("", structure_set):
            own.append(plan)
        else:
            steps.append(f"leave-out-plan: {plan.label} refers to another structure set, ...{uid[-12:]}")
    return tuple(own), tuple(steps)


def reference_dose(folder: Folder, ct: Origin, structure_set: Found) -> tuple[Dose | None, tuple[str, ...]]:
    """The dose of the case, or None, and the steps taken; one says why for each dose that is not the case's.

    `ct` is the origin of the case's images. A dose is the case's by their frame of reference. One that
    states no frame is followed to its plan and from there to the structure set.
    """
    steps: list[str] = []
    groups: dict[str, list[Found]] = {}
    sets = _sets_of_plans(folder)
    for found in folder.of("RTDOSE"):
        try:
            uid = plan_uid(found)
            why = _why_no_dose(found, _set_of_dose(found, sets), ct, structure_set, folder)
        except InputError as fault:
            why = f": {fault}"
        if why:
            steps.append(f"leave-out-dose: {found.label}{why}")
            continue
        if not text(found.dataset, "FrameOfReferenceUID") and ct.frame:
            steps.append(
                f"follow-references: {found.label} states no frame of reference; its plan is made on the "
                "structure set of the CT"
            )
        groups.setdefault(uid, []).append(found)
    own = {uid for uid in groups if uid and sets.get(uid) == structure_set.uid}
    if len(groups) > 1 and len(own) == 1:
        steps.append(f"choose-dose: of {len(groups)} plans' doses that of the plan on the structure set")
        groups = {uid: groups[uid] for uid in own}
    if len(groups) > 1:
        return None, (*steps, f"leave-out-dose: doses of {len(groups)} plans are there; keep one plan's")
    if not groups:
        return None, tuple(steps)
    uid, files = next(iter(groups.items()))
    plans = [p for p in folder.of("RTPLAN") if uid and p.uid == uid]
    try:
        dose = course_dose(files, plans[0] if plans else None)
    except UnreadableError:
        raise
    except InputError as fault:
        return None, (*steps, f"leave-out-dose: {fault}")
    if not float(dose.gy.max()) > 0:
        return None, (
            *steps,
            "leave-out-dose: the dose is zero everywhere; export the dose of the calculated plan",
        )
    told = dose.provenance["steps"]
    return dose, (*steps, *(told if isinstance(told, tuple) else ()))


def _why_no_dose(dose: Found, its_set: str, ct: Origin, structure_set: Found, folder: Folder) -> str:
    """Why a dose is not that of the case, to follow its name; "" where it is.

    `its_set` is the structure set that it names, or its plan's.
    """
    frame = text(dose.dataset, "FrameOfReferenceUID")
    found = compare(ct, Origin("dose", patient_code(dose.dataset), frame=frame))
    if found.contradictions:
        return f": {'; '.join(found.contradictions)}; export the dose on this CT"
    # A plan on a structure set that is absent says nothing about this one: the frame decides.
    others = {f.uid for f in folder.of("RTSTRUCT")} - {structure_set.uid}
    if its_set in others:
        return " belongs to another structure set of the folder"
    if frame != ct.frame and its_set != structure_set.uid:
        silent = "is of a CT that states" if frame else "states"
        return f" {silent} no frame of reference, and no plan links it to this structure set; add its plan"
    return ""
