"""A structure set as masks on the grid of the case, and the body from the CT where none is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from scipy import ndimage

from vmat_diffusion.case import Role, Structure
from vmat_diffusion.dicom.attributes import about, integer, items, points_mm, text
from vmat_diffusion.dicom.contours import fill_between, fill_even_odd
from vmat_diffusion.dicom.lattice import Lattice, Placement
from vmat_diffusion.dicom.names import NameTable, cleaned
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid

_AREAS = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR", "CLOSED_PLANAR_XOR")
_ORDER = ("declared", "name", "alias", "expression")
# Between contours further apart than this the outline is not known well enough to be filled in.
_FILL_MM = 10.0
# Vertices this far out of their plane mean that the contour is not planar in this series.
_PLANAR_MM = 1.0
# Between air and fat (-100 HU); lungs are filled in as holes.
BODY_THRESHOLD_HU = -400.0
# Couch tops and mask frames are sheets thinner than this; opening by it cuts them off the patient.
_SHEET_MM = 8.0
# How far a target may reach outside the body, where a voxel is not larger. Ours.
_OUTSIDE_MM = 3.0


@dataclass(frozen=True, eq=False)
class Roi:
    """One region of a structure set as stored; `contours` holds `(n, 3)` vertices in mm."""

    number: int
    alias: str
    declared: str
    frame_uid: str
    contours: tuple[NDArray[np.float64], ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Named:
    """What a region is called in the case. `suggestions` are the nearest names of an unknown one."""

    roi: Roi
    name: str
    role: Role
    known: bool
    suggestions: tuple[str, ...] = ()


def read_rois(dataset: Dataset) -> tuple[Roi, ...]:
    """The regions of a structure set. Raises CaseError for a contour that is no list of points."""
    contours = {integer(item, "ReferencedROINumber"): item for item in items(dataset, "ROIContourSequence")}
    declared = {
        integer(item, "ReferencedROINumber"): text(item, "RTROIInterpretedType")
        for item in items(dataset, "RTROIObservationsSequence")
    }
    out: dict[int, Roi] = {}
    for item in items(dataset, "StructureSetROISequence"):
        number = integer(item, "ROINumber")
        if number in out:
            raise CaseError(f"ROI number {number} occurs twice; export the structure set again")
        alias = text(item, "ROIName") or f"ROI {number}"
        with about(f"structure {alias}"):
            areas, remarks = _areas(contours[number]) if number in contours else ((), ())
        frame = text(item, "ReferencedFrameOfReferenceUID")
        out[number] = Roi(number, alias, declared.get(number, ""), frame, areas, remarks)
    return tuple(out.values())


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


def _areas(item: Dataset) -> tuple[tuple[NDArray, ...], tuple[str, ...]]:
    """The closed contours of one region, and remarks on what else it holds."""
    areas: list[NDArray] = []
    others: dict[str, int] = {}
    for contour in items(item, "ContourSequence"):
        kind = text(contour, "ContourGeometricType")
        if kind not in _AREAS:
            others[kind or "untyped"] = others.get(kind or "untyped", 0) + 1
            continue
        areas.append(points_mm(contour))
    return tuple(areas), tuple(f"{n} contours {kind} ignored" for kind, n in others.items())


def name_rois(rois: Sequence[Roi], table: NameTable) -> tuple[tuple[Named, ...], tuple[str, ...]]:
    """Canonical names and roles, and the steps taken where two regions claim one name.

    A region declared EXTERNAL is the body whatever its name. Raises CaseError where two regions
    have an equally good claim: only the user can say which is meant.
    """
    claims: dict[str, list[tuple[int, Roi, Role]]] = {}
    unknown: list[Roi] = []
    for roi in rois:
        match = table.match(roi.alias)
        if roi.declared == "EXTERNAL" and (match is None or match.role == "body"):
            claims.setdefault("BODY", []).append((0, roi, "body"))
        elif match is None:
            unknown.append(roi)
        else:
            claims.setdefault(match.name, []).append((_ORDER.index(match.how), roi, match.role))
    named: list[Named] = []
    steps: list[str] = []
    for name, claimants in claims.items():
        best = min(rank for rank, _, _ in claimants)
        first = [(roi, role) for rank, roi, role in claimants if rank == best]
        if len(first) > 1:
            both = " and ".join(repr(roi.alias) for roi, _ in first[:2])
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
    taken = {n.name.casefold() for n in named}
    for roi in unknown:
        name = cleaned(roi.alias)
        if not name or name.casefold() in taken:
            name = f"{name}_ROI{roi.number}".lstrip("_")
        taken.add(name.casefold())
        named.append(Named(roi, name, "other", False, table.nearest(roi.alias)))
    order = {roi.number: k for k, roi in enumerate(rois)}
    return tuple(sorted(named, key=lambda n: order[n.roi.number])), tuple(steps)


def structures_on(
    named: Sequence[Named], placement: Placement, frame_uid: str
) -> tuple[Mapping[str, Structure], Mapping[str, int], tuple[str, ...]]:
    """Masks on the grid by canonical name, their ROI numbers, and the steps taken.

    Raises CaseError where a target or the body reaches beyond the images or holds no voxel.
    """
    structures: dict[str, Structure] = {}
    numbers: dict[str, int] = {}
    steps: list[str] = []
    for entry in named:
        roi = entry.roi
        steps += [f"ignore-contours: {entry.name}: {remark}" for remark in roi.remarks]
        if not roi.contours:
            steps.append(f"leave-out: {roi.alias!r} has no closed contour")
            continue
        if roi.frame_uid and frame_uid and roi.frame_uid != frame_uid:
            raise CaseError(
                f"structure {roi.alias} is drawn in another frame of reference than the CT; register and "
                "export it on this CT"
            )
        with about(f"structure {entry.name}"):
            strict = entry.role in ("target", "body")
            native, notes = native_mask(roi.contours, placement.lattice, strict=strict)
        steps += [f"{note.split(':', 1)[0]}: {entry.name}:{note.split(':', 1)[1]}" for note in notes]
        mask = placement.mask(native)
        if not mask.any():
            if entry.role in ("target", "body"):
                raise CaseError(
                    f"structure {entry.name} encloses no voxel centre of the CT; contour it on this CT"
                )
            steps.append(f"leave-out: {roi.alias!r} encloses no voxel centre of the CT")
            continue
        structures[entry.name] = Structure(entry.name, entry.role, mask, roi.alias)
        numbers[entry.name] = roi.number
    return structures, numbers, tuple(steps)


def native_mask(
    contours: Sequence[NDArray], lattice: Lattice, *, strict: bool
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """The mask `[k, j, i]` of contours on the lattice of the images, and the steps taken.

    Each contour belongs to the nearest slice, at most half a slice spacing away. `strict` refuses
    contours beyond the images, which are dropped with a step otherwise.
    """
    heights = lattice.heights_mm
    half = float(np.median(np.diff(heights))) / 2
    placed: list[tuple[int, float, NDArray]] = []
    beyond: list[float] = []
    for vertices in contours:
        height, pixels = lattice.planar(vertices)
        if np.ptp(height) > _PLANAR_MM:
            raise CaseError(
                f"a contour spans {np.ptp(height):.1f} mm across the slices; "
                "contours must lie in the image planes"
            )
        level = float(np.median(height))
        k = int(np.argmin(np.abs(heights - level)))
        if abs(heights[k] - level) > half + 0.01:
            beyond.append(level)
        else:
            placed.append((k, level, pixels))
    steps: list[str] = []
    if beyond:
        where = f"{len(beyond)} of {len(contours)} contours, the first at {beyond[0]:.1f} mm,"
        if strict or not placed:
            raise CaseError(
                f"{where} lie on no image of the series, which runs from {heights[0]:.1f} to "
                f"{heights[-1]:.1f} mm; add the missing images or cut the structure"
            )
        steps.append(f"drop-contours: {where} lie on no image")
    kept, notes = _one_plane_per_slice(placed, heights)
    mask = fill_even_odd(kept, lattice.shape)
    reach = int(_FILL_MM / (2 * half)) - 1
    mask, filled = fill_between(mask, sorted({k for k, _ in kept}), reach)
    if filled:
        steps.append(f"fill-slices: {filled} slices between contours filled by shape interpolation")
    return mask, (*steps, *notes)


def _one_plane_per_slice(
    placed: Sequence[tuple[int, float, NDArray]], heights: NDArray
) -> tuple[list[tuple[int, NDArray]], tuple[str, ...]]:
    """Per slice the contours of the nearest drawn plane, without exact copies, and the steps taken.

    Two planes in one slice or one contour stored twice would cancel out under the even-odd rule.
    """
    nearest: dict[int, float] = {}
    for k, level, _ in placed:
        if k not in nearest or abs(level - heights[k]) < abs(nearest[k] - heights[k]):
            nearest[k] = level
    kept: list[tuple[int, NDArray]] = []
    seen: set[tuple[int, bytes]] = set()
    crowded = copies = 0
    for k, level, pixels in placed:
        if abs(level - nearest[k]) > 0.01:
            crowded += 1
        elif (key := (k, np.round(pixels, 3).tobytes())) in seen:
            copies += 1
        else:
            seen.add(key)
            kept.append((k, pixels))
    steps: list[str] = []
    if (off := max((abs(nearest[k] - heights[k]) for k in nearest), default=0.0)) > 0.1:
        steps.append(f"snap-contours: contours moved by up to {off:.2f} mm to the nearest slice")
    if crowded:
        steps.append(f"thin-contours: {crowded} contours left out, another plane is nearer to their slice")
    if copies:
        steps.append(f"drop-copies: {copies} contours stored twice")
    return kept, tuple(steps)


def body_from_ct(hu: NDArray, grid: Grid) -> NDArray[np.bool_]:
    """The largest connected region above -400 HU, cut free of thin sheets, filled slice by slice.

    Raises CaseError where nothing of at least 10 cm3 is found.
    """
    dense = hu > BODY_THRESHOLD_HU
    radius = [max(1, round(_SHEET_MM / 2 / s)) for s in grid.spacing_mm[:2]]
    disk = _ellipse(radius[1], radius[0])
    core = np.stack([ndimage.binary_opening(plane, disk) for plane in dense])
    labels, count = ndimage.label(core)
    if count:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        core = labels == int(np.argmax(sizes))
    if np.count_nonzero(core) * grid.voxel_cc < 10:
        raise CaseError(
            f"no body is contoured and the CT holds nothing of 10 cm3 above {BODY_THRESHOLD_HU:g} HU; "
            "contour the body"
        )
    # Opening rounds off ears and nose: take back what is dense and within its radius.
    regrown = [ndimage.binary_dilation(inner, disk) & plane for inner, plane in zip(core, dense, strict=True)]
    return without_holes(np.stack(regrown))


def without_holes(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with the holes of each axial slice filled."""
    out = mask.copy()
    for k in np.flatnonzero(mask.any(axis=(1, 2))):
        rows, columns = (np.flatnonzero(mask[k].any(axis=a)) for a in (1, 0))
        # What reaches the border of the mask's box is outside it: no hole is cut.
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        out[k][box] = ndimage.binary_fill_holes(mask[k][box])
    return out


def _ellipse(rows: int, columns: int) -> NDArray[np.bool_]:
    j, i = np.mgrid[-rows : rows + 1, -columns : columns + 1]
    return (j / rows) ** 2 + (i / columns) ** 2 <= 1.0


def refuse_targets_outside(targets: Iterable[Structure], body: NDArray[np.bool_], grid: Grid) -> None:
    """Raise CaseError for a target that reaches more than 3 mm, or one voxel, outside the body."""
    limit = max(_OUTSIDE_MM, *grid.spacing_mm)
    for target in targets:
        outside = target.mask & ~body
        if not outside.any():
            continue
        spread = [np.flatnonzero(outside.any(axis=tuple(b for b in range(3) if b != a))) for a in range(3)]
        margin = [int(np.ceil(5 * limit / s)) for s in grid.spacing_mm[::-1]]
        box = tuple(
            slice(max(int(s[0]) - m, 0), int(s[-1]) + m + 1) for s, m in zip(spread, margin, strict=True)
        )
        if body[box].any():
            away = ndimage.distance_transform_edt(~body[box], sampling=grid.spacing_mm[::-1])
        else:
            away = np.full(body[box].shape, 5 * limit)
        away = np.where(outside[box], away, 0.0)
        at = np.unravel_index(int(np.argmax(away)), away.shape)
        if away[at] > limit + 1e-6:
            z = grid.axes_mm[2][box[0].start + at[0]]
            raise CaseError(
                f"{target.name} reaches {away[at]:.0f} mm outside BODY at z = {z:.1f} mm; fix the contour or "
                "pass --allow-outside-body"
            )
