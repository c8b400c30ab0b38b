"""RTDOSE to a Dose of the whole course."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from vmat_diffusion.case import Dose
from vmat_diffusion.dicom.attributes import (
    about,
    has,
    integer,
    items,
    name_of,
    number,
    numbers,
    open_dataset,
    quiet,
    stored_values,
    text,
    without_spare_bits,
)
from vmat_diffusion.dicom.folder import Found, open_one
from vmat_diffusion.dicom.lattice import lattice_of, placement_of
from vmat_diffusion.dicom.patient_code import one_patient
from vmat_diffusion.dicom.sealed import SEALED
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.geometry import Grid

_GY_MAX = 1000.0
# A dose of signed numbers may fall below zero by interpolation: up to this share of its maximum. Ours.
_NEGATIVE = 0.005
# No course of external beams reaches this dose in earnest. Ours.
_HOT_GY = 150.0
# A first frame offset this close to 0 means relative offsets; files round to 0.01 mm or so.
_FIRST_OFFSET_MM = 0.01
# Beam doses may differ from the dose of their plan by this share of its maximum: grids and rounding. Ours.
_BEAMS_AGREE = 0.02
# A dose of one plane is read as two equal frames this far apart, of which one is kept.
_PLANE_MM = 1.0


@quiet()
def read_dose(file: str | Path | Sequence[str | Path], *, plan: str | Path | None = None) -> Dose:
    """The dose of the whole course from an RTDOSE file, or from the files of all beams of a plan.

    `plan` is the RTPLAN file, needed where the dose is that of fractions or of single beams. Raises
    CaseError for relative, effective or incomplete doses.
    """
    paths = [Path(file)] if isinstance(file, str | Path) else [Path(f) for f in file]
    if not paths:
        raise CaseError("no dose file is given; name at least one")
    with about(paths[0].name):
        doses = [open_one(p, "RTDOSE") for p in paths]
        return course_dose(doses, open_one(Path(plan), "RTPLAN") if plan else None)


@quiet()
def read_plane_or_volume(file: str | Path) -> Dose:
    """A dose of one plane (film, portal image, per-field check) as it is written, or a volume.

    A single frame becomes a grid of one voxel across its plane, which is axial, coronal or sagittal, and is
    taken as it is, whatever it is summed over. A volume is read as by `read_dose`. Raises CaseError for a
    plane that is turned against the patient's axes, and for what is no physical dose in Gy.
    """
    path = Path(file)
    with about(path.name):
        found = open_one(path, "RTDOSE")
        if integer(found.dataset, "NumberOfFrames", 1) != 1:
            return course_dose([found])
        grid, gy, _, turned = _one(found, _doubled(found))
        orientation = numbers(found.dataset, "ImageOrientationPatient", 6)
        if turned:
            raise CaseError(
                f"the plane (ImageOrientationPatient (0020,0037) {orientation}) is neither axial, coronal "
                "nor sagittal; export it along the patient's axes"
            )
        normal = np.cross(orientation[:3], orientation[3:])
        k = int(np.argmax(np.abs(normal)))
        keep = (slice(None),) * (2 - k) + (slice(0, 1) if normal[k] > 0 else slice(1, 2),)
        gy = gy[keep]
        origin = list(grid.origin_mm)
        origin[k] += 0.0 if normal[k] > 0 else grid.spacing_mm[k]
        flat = Grid(gy.shape, grid.spacing_mm, (origin[0], origin[1], origin[2]))
        facts = {"source": "RTDOSE", "summation": summation(found), **_origin([found]), "steps": ()}
        return Dose(flat, gy, provenance=facts)


def _doubled(found: Found) -> Dataset:
    """The content of a file of one frame with the frame twice, `_PLANE_MM` apart."""
    dataset = open_dataset(found.path, pixels=True)
    if dataset is None:
        raise CaseError("the file changed while it was read; start again")
    stored = stored_values(dataset, 1)
    dataset.PixelData = np.concatenate([stored, stored]).astype(stored.dtype.newbyteorder("<")).tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.NumberOfFrames, dataset.GridFrameOffsetVector = 2, [0.0, _PLANE_MM]
    return dataset


def plan_uid(found: Found) -> str:
    """SOP instance UID of the plan that a dose belongs to; "" where the file does not say."""
    plans = items(found.dataset, "ReferencedRTPlanSequence")
    return text(plans[0], "ReferencedSOPInstanceUID") if plans else ""


def summation(found: Found) -> str:
    """DoseSummationType, such as PLAN or BEAM."""
    return text(found.dataset, "DoseSummationType")


def course_dose(files: Sequence[Found], plan: Found | None = None) -> Dose:
    """The dose of the whole course from the RTDOSE files of one plan.

    PLAN is taken as it is, before BEAM doses beside it. BEAM doses are added up. FRACTION (all
    fractions of one fraction group) needs the plan, which must have one group; *_SESSION (one fraction)
    is multiplied by the plan's number of fractions. Other summations, doses that are no absolute physical
    dose, negative doses and incomplete sets of beams raise CaseError. Every conversion is named in
    `provenance["steps"]`.
    """
    files, steps = _preferred(files)
    kind = summation(files[0])
    if kind not in ("PLAN", "BEAM", "FRACTION", "BEAM_SESSION", "FRACTION_SESSION"):
        raise CaseError(
            f"DoseSummationType (3004,000A) is {kind or 'missing'}; export "
            "the dose of the plan (PLAN) or of its beams"
        )
    if kind not in ("BEAM", "BEAM_SESSION") and len(files) != 1:
        raise CaseError(f"{len(files)} doses of kind {kind}; give the one that is meant")
    if kind.startswith("BEAM"):
        _complete_beams(files, plan)
        steps.append(f"sum-beams: {len(files)} beam doses added")
    factor = 1.0
    if kind == "FRACTION" or kind.endswith("_SESSION"):
        groups = items(plan.dataset, "FractionGroupSequence") if plan else ()
        if len(groups) != 1:
            raise CaseError(
                f"the dose is of kind {kind} and needs its plan with exactly one fraction group, found "
                f"{len(groups)}; add the RTPLAN or export the dose of the plan"
            )
        if kind.endswith("_SESSION"):
            factor = float(integer(groups[0], "NumberOfFractionsPlanned"))
            steps.append(f"scale-fractions: dose of one fraction multiplied by {factor:g}")
        else:
            steps.append(
                "take-fraction-group: the plan has one fraction group, its dose is that of the course"
            )
    grid, gy, heterogeneity, turned = _summed(files)
    gy = gy * np.float32(factor)
    if float(gy.max()) > _GY_MAX:
        raise CaseError(
            f"the dose reaches {gy.max():.4g} Gy, more than {_GY_MAX:g} Gy; DoseGridScaling must be wrong"
        )
    first = files[0].dataset
    provenance = {
        "source": "RTDOSE",
        "summation": kind,
        **_origin(files),
        "software": " ".join(filter(None, (text(first, "Manufacturer"), text(first, "SoftwareVersions")))),
        "heterogeneity": heterogeneity,
        "steps": (*turned, *steps),
        "remarks": (*_remarks(files, kind), *turned),
    }
    return Dose(grid, gy, provenance=provenance)


def _origin(files: Sequence[Found]) -> dict[str, object]:
    """Whose the files are and what they refer to, as `vmat_diffusion.origin` compares it."""
    first = files[0].dataset
    named = (text(s, "ReferencedSOPInstanceUID") for s in items(first, "ReferencedStructureSetSequence"))
    return {
        "sop_instance_uids": tuple(f.uid for f in files),
        "plan_uid": plan_uid(files[0]),
        "study_uid": text(first, "StudyInstanceUID"),
        "frame_of_reference_uid": text(first, "FrameOfReferenceUID"),
        "structure_set_uid": next(named, ""),
        "patient_code": one_patient((f"dose {f.label}", f.dataset) for f in files),
    }


def _remarks(files: Sequence[Found], kind: str) -> tuple[str, ...]:
    """What a person must know of a dose that is read as that of one plan on its CT."""
    out = []
    for found in files:
        item = found.dataset
        tissue = text(item, "TissueHeterogeneityCorrection").upper().replace("\\", " ").split()
        if tissue and tissue != ["IMAGE"]:
            name = name_of("TissueHeterogeneityCorrection")
            out.append(f"{name} is {' and '.join(tissue)}: not the CT alone says what the patient is made of")
        if (moved := text(item, "SpatialTransformOfDose", "NONE")) != "NONE":
            out.append(
                f"{name_of('SpatialTransformOfDose')} is {moved}: the dose was moved after it was computed"
            )
        if not has(item, "DoseType"):
            out.append(f"{name_of('DoseType')} is missing, PHYSICAL is assumed")
        plans = items(item, "ReferencedRTPlanSequence")
        if len(plans) > 1:
            out.append(f"the dose refers to {len(plans)} plans, the first is taken")
        parts = any(
            items(group, "ReferencedBeamSequence")
            for plan in plans
            for group in items(plan, "ReferencedFractionGroupSequence")
        )
        if kind == "PLAN" and parts:
            out.append(f"{name_of('DoseSummationType')} is PLAN, but the dose refers to single beams")
    return tuple(dict.fromkeys(out))


def _preferred(files: Sequence[Found]) -> tuple[Sequence[Found], list[str]]:
    """The files to take: of different summations PLAN; and the step that says so.

    Where complete beam doses lie beside it, the step says how far their sum is from the dose of the plan.
    """
    kinds = {summation(f) for f in files}
    if len(kinds) == 1:
        return files, []
    of_plan = [f for f in files if summation(f) == "PLAN"]
    if not of_plan:
        raise CaseError(
            f"doses of different summation ({', '.join(sorted(kinds))}) do not add up; give one kind"
        )
    said = f"choose-dose: the dose of the plan (PLAN), not {len(files) - len(of_plan)} others beside it"
    beams = [f for f in files if summation(f) == "BEAM"]
    try:
        grid, whole, _, _ = _summed(of_plan[:1])
        other, total, _, _ = _summed(beams) if beams else (None, None, "", ())
    except InputError:
        return of_plan, [said]
    if other is None or total is None or not grid.matches(other):
        return of_plan, [said]
    apart = float(np.abs(total - whole).max())
    agree = "agrees with it" if apart <= _BEAMS_AGREE * float(whole.max()) else "DIFFERS from it"
    return of_plan, [f"{said}; the sum of {len(beams)} beam doses {agree} (at most {apart:.2f} Gy)"]


def _summed(files: Sequence[Found]) -> tuple[Grid, NDArray[np.float32], str, tuple[str, ...]]:
    grid, gy, heterogeneity, steps = _one(files[0])
    for found in files[1:]:
        other, more, _, told = _one(found)
        if not grid.matches(other):
            raise CaseError(
                f"{found.label}: the beam dose lies on another grid than the first; export them alike"
            )
        gy = gy + more
        steps = (*steps, *(step for step in told if step not in steps))
    return grid, gy, heterogeneity, steps


def _complete_beams(files: Sequence[Found], plan: Found | None) -> None:
    """Refuse beam doses that are counted twice or, where the plan is at hand, that lack a beam."""
    beams: list[int] = []
    for found in files:
        for reference in items(found.dataset, "ReferencedRTPlanSequence"):
            for group in items(reference, "ReferencedFractionGroupSequence"):
                beams += [integer(b, "ReferencedBeamNumber") for b in items(group, "ReferencedBeamSequence")]
    if len(set(beams)) != len(beams):
        raise CaseError("a beam's dose is there twice; remove one of the files")
    if plan is None:
        if len(files) == 1:
            raise CaseError(
                "the dose is that of a single beam (BEAM); give the dose of the whole plan (PLAN)"
            )
        return
    needed = {
        integer(b, "ReferencedBeamNumber")
        for group in items(plan.dataset, "FractionGroupSequence")
        for b in items(group, "ReferencedBeamSequence")
        if number(b, "BeamMeterset", 0.0) > 0
    }
    if missing := needed - set(beams):
        raise CaseError(
            f"the dose of beam {min(missing)} is missing; export the doses of all {len(needed)} beams"
        )


def _one(
    found: Found, dataset: Dataset | None = None
) -> tuple[Grid, NDArray[np.float32], str, tuple[str, ...]]:
    """Grid and values in Gy of one file, as they are meant (no factor for fractions).

    `dataset` is its content with the pixels where that is at hand.
    """
    with about(found.label):
        if dataset is None:
            dataset = open_dataset(found.path, pixels=True, is_sealed=found.path.suffix == SEALED)
        if dataset is None:
            raise CaseError("the file changed while it was read; start again")
        if (units := text(dataset, "DoseUnits")) != "GY":
            raise CaseError(
                f"DoseUnits (3004,0002) is {units or 'missing'}, GY is needed; export absolute dose"
            )
        if (kind := text(dataset, "DoseType", "PHYSICAL")) != "PHYSICAL":
            raise CaseError(f"DoseType (3004,0004) is {kind}, PHYSICAL is needed; export physical dose")
        scaling = number(dataset, "DoseGridScaling")
        if not 0 < scaling < 1e3:
            raise CaseError(f"DoseGridScaling (3004,000E) is {scaling:g}; a positive factor is needed")
        offsets = np.array(numbers(dataset, "GridFrameOffsetVector"))
        frames = integer(dataset, "NumberOfFrames", max(len(offsets), 1))
        if len(offsets) != frames or frames < 2:
            raise CaseError(
                f"GridFrameOffsetVector (3004,000C) holds {len(offsets)} "
                f"positions for {frames} frames; at least 2, "
                "one for each frame, are needed"
            )
        orientation = numbers(dataset, "ImageOrientationPatient", 6)
        normal = np.cross(orientation[:3], orientation[3:])
        origin = np.array(numbers(dataset, "ImagePositionPatient", 3))
        # Relative offsets start at 0; otherwise they are absolute z positions (PS3.3, C.8.8.3.2).
        if abs(offsets[0]) > _FIRST_OFFSET_MM:
            if abs(abs(normal[2]) - 1) > 1e-3:
                raise CaseError("GridFrameOffsetVector (3004,000C) is absolute in a dose that is not axial")
            if abs(offsets[0] - origin[2]) > 0.1:
                raise CaseError(
                    f"GridFrameOffsetVector (3004,000C) starts at {offsets[0]:g} mm, ImagePositionPatient at "
                    f"{origin[2]:g} mm; they must agree"
                )
            offsets = (offsets - offsets[0]) * np.sign(normal[2])
        order = np.argsort(offsets)
        rows_mm, columns_mm = numbers(dataset, "PixelSpacing", 2)
        size = integer(dataset, "Rows"), integer(dataset, "Columns")
        positions = origin + np.outer(offsets[order], normal)
        lattice = lattice_of(positions, orientation, (columns_mm, rows_mm), size)
        placement = placement_of(lattice)
        stored = without_spare_bits(dataset, stored_values(dataset, frames))
        _refuse_hidden_sign(dataset, stored, scaling)
        values, floored = _not_negative(stored[order].astype(np.float32) * np.float32(scaling))
        gy = placement.values(values, 0.0)
        heterogeneity = text(dataset, "TissueHeterogeneityCorrection")
    return placement.grid, gy, heterogeneity, (*placement.steps, *floored)


def _refuse_hidden_sign(dataset: Dataset, stored: NDArray, scaling: float) -> None:
    """Refuse unsigned values of which the highest are slightly negative ones: they would be the hot spots.

    They are at the very top of the range, with nothing between them and its lower half, and far above what
    an external beam gives.
    """
    if not np.issubdtype(stored.dtype, np.unsignedinteger) or float(stored.max()) * scaling < _HOT_GY:
        return
    half = 2 ** (integer(dataset, "BitsStored", 8 * stored.dtype.itemsize) - 1)
    upper = stored >= half
    if not upper.any() or upper.all():
        return
    lowest, highest = int(stored[upper].min()) - 2 * half, int(stored[~upper].max())
    if -lowest <= _NEGATIVE * highest:
        raise CaseError(
            f"{np.count_nonzero(upper)} voxels hold negative numbers, down to {lowest} times the scaling, "
            "that PixelRepresentation (0028,0103) calls unsigned; export the dose again"
        )


def _not_negative(gy: NDArray[np.float32]) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """The dose without its slightly negative voxels, and a step; CaseError where more than that is negative.

    A physical dose is stored in unsigned numbers (PixelRepresentation 0, PS3.3 C.8.8.3); large negative
    values are large unsigned ones that were labelled as signed, or a difference of doses.
    """
    if (lowest := float(gy.min())) >= 0:
        return gy, ()
    count = int(np.count_nonzero(gy < 0))
    if -lowest > _NEGATIVE * float(gy.max()):
        raise CaseError(
            f"{count} voxels have a negative dose, down to {lowest:.4g} Gy; PixelRepresentation (0028,0103) "
            "is wrong or the dose is a difference; export the dose of the plan"
        )
    return np.maximum(gy, 0), (
        f"floor-dose: {count} voxels with a negative dose, down to {lowest:.4g} Gy, set to 0",
    )
