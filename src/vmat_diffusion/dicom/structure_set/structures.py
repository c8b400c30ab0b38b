"""A structure set as masks on the grid of the case, and the body from the CT where none is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from vmat_diffusion.case import DENSITY_OVERRIDE, Role, Structure
from vmat_diffusion.dicom.attributes import about, integer, items, numbers, points_mm, text
from vmat_diffusion.dicom.lattice import Placement
from vmat_diffusion.dicom.names import NameTable, cleaned
from vmat_diffusion.dicom.structure_set.overrides import overrides_of
from vmat_diffusion.dicom.structure_set.rasterize import Contour, native_mask
from vmat_diffusion.errors import CaseError

# Types that enclose an area. OsiriX calls the outlines it puts between drawn ones INTERPOLATED_PLANAR.
_AREAS = ("CLOSED_PLANAR", "INTERPOLATED_PLANAR", "CLOSED_PLANAR_INTERPOLATED")
_EXCLUSIVE = ("CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
_ORDER = ("declared", "name", "alias", "expression", "evaluation")


@dataclass(frozen=True, eq=False)
class Roi:
    """One region of a structure set as stored.

    `fault` says what is wrong with a contour of it, `lines` how many contours of lines enclose no area.
    `empty` means that nothing at all is drawn; such a region claims no name. `colour` is `#rrggbb`, "" where
    the file states none.
    """

    number: int
    alias: str
    declared: str
    frame_uid: str
    contours: tuple[Contour, ...]
    remarks: tuple[str, ...]
    fault: str = ""
    lines: int = 0
    empty: bool = False
    overrides: tuple[str, ...] = ()
    colour: str = ""


@dataclass(frozen=True)
class Named:
    """What a region is called in the case."""

    roi: Roi
    name: str
    role: Role
    known: bool


def read_rois(dataset: Dataset) -> tuple[Roi, ...]:
    """The regions of a structure set. A contour that is no list of points is the `fault` of its region."""
    contours: dict[int, list[Dataset]] = {}
    for item in items(dataset, "ROIContourSequence"):
        contours.setdefault(integer(item, "ReferencedROINumber"), []).append(item)
    observed = {
        integer(item, "ReferencedROINumber"): item for item in items(dataset, "RTROIObservationsSequence")
    }
    out: dict[int, Roi] = {}
    for item in items(dataset, "StructureSetROISequence"):
        number = integer(item, "ROINumber")
        if number in out:
            raise CaseError(f"ROI number {number} occurs twice; export the structure set again")
        alias = text(item, "ROIName") or f"ROI {number}"
        areas: list[Contour] = []
        others: dict[str, int] = {}
        lines, fault = 0, ""
        with about(f"structure {alias}"):
            drawn = [c for part in contours.get(number, ()) for c in items(part, "ContourSequence")]
            seen = observed.get(number)
            declared = text(seen, "RTROIInterpretedType") if seen is not None else ""
            overrides = overrides_of(seen) if seen is not None else ()
        for contour in drawn:
            try:
                kind, area, points = _area(contour)
            except CaseError as damage:
                fault = fault or str(damage)
                continue
            if area is not None:
                areas.append(area)
            if kind:
                others[kind] = others.get(kind, 0) + 1
                lines += area is None and kind.startswith("OPEN") and points > 2
        frame = text(item, "ReferencedFrameOfReferenceUID")
        out[number] = Roi(
            number,
            alias,
            declared,
            frame,
            tuple(areas),
            _remarks(others),
            fault,
            lines,
            not drawn,
            overrides,
            _colour(contours.get(number, ())),
        )
    return tuple(out.values())


def _colour(parts: Sequence[Dataset]) -> str:
    """ROIDisplayColor (3006,002A) as `#rrggbb`; "" where it is absent or no colour, which harms nobody."""
    for part in parts:
        try:
            levels = [round(level) for level in numbers(part, "ROIDisplayColor")]
        except CaseError:
            continue
        if len(levels) == 3 and all(0 <= level <= 255 for level in levels):
            return "#" + "".join(f"{level:02x}" for level in levels)
    return ""


def _area(contour: Dataset) -> tuple[str, Contour | None, int]:
    """A contour if it is closed, its type where that needs a remark, and its number of points."""
    kind = text(contour, "ContourGeometricType")
    if kind in _AREAS or kind in _EXCLUSIVE:
        points = points_mm(contour)
        said = kind if kind in _AREAS[1:] else ""
        return said, Contour(points, kind in _EXCLUSIVE), len(points)
    if kind == "POINT":
        return kind, None, 0
    if not kind.startswith("OPEN"):
        raise CaseError(
            f"ContourGeometricType (3006,0042) of a contour is {kind or 'missing'}; "
            "export it as CLOSED_PLANAR"
        )
    points = points_mm(contour)
    if len(points) > 3 and np.abs(points[0] - points[-1]).max() < 0.01:
        return f"{kind} that end where they start", Contour(points), len(points)
    return kind, None, len(points)


def _remarks(others: Mapping[str, int]) -> tuple[str, ...]:
    closed = (*_AREAS, *(f"{kind} that end where they start" for kind in ("OPEN_PLANAR", "OPEN_NONPLANAR")))
    return tuple(
        f"close-contours: {n} contours {kind} taken as closed"
        if kind in closed
        else f"ignore-contours: {n} contours {kind} ignored"
        for kind, n in others.items()
    )


def region_names(dataset: Dataset) -> Iterator[tuple[int, str]]:
    """Number and name of each region, without the contours: what is wrong may be in those.

    A region whose number cannot be read is given its place in the sequence.
    """
    try:
        regions = items(dataset, "StructureSetROISequence")
    except CaseError:
        return
    for place, region in enumerate(regions, start=1):
        try:
            number = integer(region, "ROINumber")
        except CaseError:
            number = place
        try:
            if alias := text(region, "ROIName"):
                yield number, alias
        except CaseError:
            continue


def name_rois(rois: Sequence[Roi], table: NameTable) -> tuple[tuple[Named, ...], tuple[str, ...]]:
    """Canonical names and roles, and the steps taken where two regions claim one name.

    A region declared EXTERNAL is the body whatever its name. Raises CaseError where two regions
    have an equally good claim: only the user can say which is meant.
    """
    claims: dict[str, list[tuple[int, Roi, Role]]] = {}
    unknown: list[Roi] = []
    named: list[Named] = []
    for roi in rois:
        match = table.match(roi.alias)
        if roi.empty:
            named.append(Named(roi, cleaned(roi.alias), match.role if match else "other", match is not None))
        elif roi.declared == "EXTERNAL" and (match is None or match.role == "body"):
            # Couches and masks are declared so too: of several, the one that is named as a body.
            claims.setdefault("BODY", []).append((-1 if match else 0, roi, "body"))
        elif match is None:
            unknown.append(roi)
        else:
            claims.setdefault(match.name, []).append((_ORDER.index(match.how), roi, match.role))
    steps: list[str] = []
    for name, claimants in claims.items():
        best = min(rank for rank, _, _ in claimants)
        first = [(roi, role) for rank, roi, role in claimants if rank == best]
        if len(first) > 1:
            both = " and ".join(f"{roi.alias!r} (ROI {roi.number})" for roi, _ in first[:2])
            raise CaseError(
                f"structures {both} both mean {name}; rename one, or give "
                "the mapping an entry for one of them"
            )
        named.append(Named(first[0][0], name, first[0][1], True))
        for rank, roi, _ in claimants:
            if rank > best:
                steps.append(
                    f"prefer-name: {first[0][0].alias!r} is {name}, {roi.alias!r} keeps its own name"
                )
                unknown.append(roi)
    taken = {n.name.casefold() for n in named if not n.roi.empty}
    for roi in unknown:
        name = cleaned(roi.alias)
        if not name or name.casefold() in taken:
            name = f"{name}_ROI{roi.number}".lstrip("_")
        taken.add(name.casefold())
        named.append(Named(roi, name, "other", False))
    order = {roi.number: k for k, roi in enumerate(rois)}
    return tuple(sorted(named, key=lambda n: order[n.roi.number])), tuple(steps)


def structures_on(
    named: Sequence[Named], placement: Placement, frame_uid: str
) -> tuple[Mapping[str, Structure], Mapping[str, int], tuple[str, ...]]:
    """Masks on the grid by canonical name, their ROI numbers, and the steps taken.

    Raises CaseError where a target, the body or an organ cannot be read as drawn, and where a target reaches
    beyond the images; any other region is left out with a step then, unless no region is left.
    """
    structures: dict[str, Structure] = {}
    numbers: dict[str, int] = {}
    steps: list[str] = []
    faults: list[CaseError] = []
    for entry in named:
        roi = entry.roi
        steps += [f"{DENSITY_OVERRIDE}ROI {roi.number} ({entry.role}): {told}" for told in roi.overrides]
        steps += [_with_name(remark, entry.name) for remark in roi.remarks]
        try:
            mask, notes = _mask_of(entry, placement, frame_uid)
        except CaseError as fault:
            if entry.role != "other":
                raise
            steps.append(f"leave-out: {roi.alias!r}: {fault}")
            faults.append(fault)
            continue
        steps += [_with_name(note, entry.name) for note in notes]
        if mask is not None:
            structures[entry.name] = Structure(entry.name, entry.role, mask, roi.alias)
            numbers[entry.name] = roi.number
    if faults and not structures:
        raise faults[0]
    return structures, numbers, tuple(steps)


def _with_name(step: str, name: str) -> str:
    key, _, rest = step.partition(":")
    return step if key == "leave-out" else f"{key}: {name}:{rest}"


def _mask_of(
    entry: Named, placement: Placement, frame_uid: str
) -> tuple[NDArray[np.bool_] | None, tuple[str, ...]]:
    """The mask of one region on the grid, or None, and the steps taken; CaseError where it is not planar."""
    roi, strict = entry.roi, entry.role in ("target", "body")
    with about(f"structure {entry.name}"):
        if roi.fault:
            raise CaseError(roi.fault)
        if strict and roi.lines:
            raise CaseError(
                f"{roi.lines} contours are open lines, which enclose no area; close them and export again"
            )
    if not roi.contours:
        return None, (f"leave-out: {roi.alias!r} has no closed contour",)
    if roi.frame_uid and frame_uid and roi.frame_uid != frame_uid:
        raise CaseError(
            f"structure {roi.alias} is drawn in another frame of reference than the CT; register and "
            "export it on this CT"
        )
    with about(f"structure {entry.name}"):
        native, notes = native_mask(
            roi.contours, placement.lattice, strict=strict, within=entry.role == "target"
        )
    mask = placement.mask(native)
    if mask.any():
        return mask, notes
    if strict:
        raise CaseError(f"structure {entry.name} encloses no voxel centre of the CT; contour it on this CT")
    return None, (*notes, f"leave-out: {roi.alias!r} encloses no voxel centre of the CT")
