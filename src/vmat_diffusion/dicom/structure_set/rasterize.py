"""Planar contours to a mask on the slices of a series; nothing drawn is lost without a word."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.dicom.lattice import Lattice
from vmat_diffusion.dicom.structure_set.contours import fill_between
from vmat_diffusion.dicom.structure_set.outlines import Filled, fill_outlines
from vmat_diffusion.errors import CaseError

# Between contours further apart than this the outline is not known well enough to be filled in.
_FILL_MM = 10.0
# Vertices this far out of their plane mean that the contour is not planar in this series.
_PLANAR_MM = 1.0
# A contour this close to half way between two slices belongs to the lower one, as a share of their distance:
# else those of one structure that lies half way throughout would be scattered by the rounding of files. Ours.
_HALF_WAY = 0.1
# Contours on one slice whose heights differ by less than this share of the slice spacing, but at least by
# 0.15 mm, are of one plane: turned or rounded files have 0.03 to 0.13 mm. Ours.
_ONE_PLANE = 0.15


@dataclass(frozen=True, eq=False)
class Contour:
    """One closed contour: vertices `(n, 3)` in mm; `exclusive` is CLOSEDPLANAR_XOR."""

    points: NDArray[np.float64]
    exclusive: bool = False


@dataclass(frozen=True, eq=False)
class _Placed:
    level: float
    pixels: NDArray[np.float64]
    exclusive: bool


@dataclass
class _Counts:
    """What happened while the slices were filled."""

    crowded: int = 0
    copies: int = 0
    laps: int = 0
    joined: int = 0
    lost: dict[float, int] = field(default_factory=dict)
    between: int = 0
    off_mm: float = 0.0
    gaps: list[tuple[float, float]] = field(default_factory=list)


def native_mask(
    contours: Sequence[Contour], lattice: Lattice, *, strict: bool, within: bool = False
) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
    """The mask `[k, j, i]` of contours on the lattice of the images, and the steps taken.

    Each contour belongs to the nearest slice. Contours beyond the images are dropped with a step; `within`
    refuses them. `strict` refuses a slice on which something drawn is lost, and slices drawn one by one with
    wide gaps between, whose outline nobody knows.
    """
    slices, beyond = _placed(contours, lattice)
    heights = lattice.heights_mm
    steps: list[str] = []
    if beyond:
        where = f"{len(beyond)} of {len(contours)} contours, the first at {beyond[0]:.1f} mm,"
        if within or not slices:
            raise CaseError(
                f"{where} lie on no image of the series, which runs from {heights[0]:.1f} to "
                f"{heights[-1]:.1f} mm; add the missing images or cut the structure"
            )
        steps.append(f"drop-contours: {where} lie on no image")
    spacing = float(np.median(np.diff(heights)))
    mask = np.zeros(lattice.shape, bool)
    counts = _Counts()
    for k, drawn in slices.items():
        _fill_slice(drawn, float(heights[k]), spacing, mask[k], counts)
    if strict and counts.lost:
        z, pixels = next(iter(counts.lost.items()))
        raise CaseError(
            f"{pixels} pixels inside its contours at {z:.1f} mm cancel out; contour the slice anew "
            "without outlines that repeat or cross each other"
        )
    mask, filled = fill_between(mask, sorted(slices), int(_FILL_MM / spacing + 1e-3) - 1)
    _note_gaps(mask, sorted(slices), heights, counts, strict=strict)
    if filled:
        steps.append(f"fill-slices: {filled} slices between contours filled by shape interpolation")
    return mask, (*steps, *_steps(counts))


def drawn_on_slices(
    contours: Sequence[Contour], lattice: Lattice
) -> dict[int, tuple[NDArray[np.float64], ...]]:
    """The contours that `native_mask` fills each slice from, as fractional pixel indices `(n, 2)`.

    Of several drawn planes at one slice it is the nearest, with the contours of others that lie beside it.
    Raises CaseError for a contour that is not planar in this series.
    """
    slices, _ = _placed(contours, lattice)
    heights = lattice.heights_mm
    spacing = float(np.median(np.diff(heights)))
    out = {}
    for k, drawn in slices.items():
        plane = _nearest_plane(drawn, float(heights[k]), spacing)
        boxes = [(c.pixels.min(axis=0), c.pixels.max(axis=0)) for c in plane]
        beside = [
            c
            for c in drawn
            if c not in plane
            and not any(
                np.all(c.pixels.min(axis=0) <= b) and np.all(c.pixels.max(axis=0) >= a) for a, b in boxes
            )
        ]
        out[k] = tuple(c.pixels for c in (*plane, *beside))
    return out


def _nearest_plane(drawn: Sequence[_Placed], height: float, spacing: float) -> list[_Placed]:
    """The contours of the drawn plane that is nearest to a slice."""
    nearest = min(drawn, key=lambda c: abs(c.level - height)).level
    reach = max(_ONE_PLANE * spacing, 0.15)
    return [c for c in drawn if abs(c.level - nearest) <= reach]


def _placed(contours: Sequence[Contour], lattice: Lattice) -> tuple[dict[int, list[_Placed]], list[float]]:
    """The contours by slice, and the heights of those beyond the first and last slice."""
    heights = lattice.heights_mm
    gaps = np.diff(heights)
    low, high = heights[0] - gaps[0] / 2 - 0.01, heights[-1] + gaps[-1] / 2 + 0.01
    slices: dict[int, list[_Placed]] = {}
    beyond: list[float] = []
    for contour in contours:
        height, pixels = lattice.planar(contour.points)
        if np.ptp(height) > _PLANAR_MM:
            raise CaseError(
                f"a contour spans {np.ptp(height):.1f} mm across the slices; "
                "contours must lie in the image planes"
            )
        level = float(np.median(height))
        if not low <= level <= high:
            beyond.append(level)
            continue
        slices.setdefault(_slice_of(level, heights), []).append(_Placed(level, pixels, contour.exclusive))
    return slices, beyond


def _slice_of(level: float, heights: NDArray) -> int:
    """The nearest slice; the lower one of two about half way between them."""
    k = int(np.argmin(np.abs(heights - level)))
    if k and level < heights[k]:
        gap = heights[k] - heights[k - 1]
        k -= bool(level - heights[k - 1] <= (0.5 + _HALF_WAY) * gap)
    return k


def _note_gaps(
    mask: NDArray[np.bool_], planes: Sequence[int], heights: NDArray, counts: _Counts, *, strict: bool
) -> None:
    """Keep the gaps between contoured slices that overlap in the plane and yet are too wide to be filled.

    Raises CaseError, where `strict`, if a slice beside such a gap stands alone: several lesions of one
    structure span several slices each.
    """
    for a, b in pairwise(planes):
        if b - a == 1 or not np.any(mask[a] & mask[b]) or mask[a + 1].any():
            continue
        low, high = float(heights[a]), float(heights[b])
        counts.gaps.append((low, high))
        alone = [k for k in (a, b) if not mask[max(k - 1, 0) : k].any() and not mask[k + 1 : k + 2].any()]
        if strict and alone:
            raise CaseError(
                f"the {b - a - 1} slices between its contours at {low:.1f} and {high:.1f} mm hold none; only "
                f"gaps of up to {_FILL_MM:g} mm are filled; contour every slice"
            )


def _fill_slice(
    drawn: Sequence[_Placed], height: float, spacing: float, out: NDArray[np.bool_], counts: _Counts
) -> None:
    """Fill one slice from the nearest drawn plane; pieces of other planes count where nothing else lies."""
    plane = _nearest_plane(drawn, height, spacing)
    filled = _filled(plane, out.shape)
    out |= filled.plane
    counts.off_mm = max(counts.off_mm, min(abs(c.level - height) for c in plane))
    counts.copies += filled.copies
    counts.laps += filled.laps
    counts.joined += filled.joined
    if filled.lost:
        counts.lost[height] = filled.lost
    for contour in drawn:
        if contour in plane:
            continue
        piece = _filled([contour], out.shape)
        if piece.plane.any() and not (piece.plane & filled.drawn).any():
            out |= piece.plane
        else:
            counts.crowded += 1
    counts.between += not out.any()


def _filled(plane: Sequence[_Placed], shape: tuple[int, ...]) -> Filled:
    exclusive = any(c.exclusive for c in plane)
    return fill_outlines([c.pixels for c in plane], (shape[0], shape[1]), exclusive=exclusive)


def _steps(counts: _Counts) -> list[str]:
    steps: list[str] = []
    if counts.off_mm > 0.1:
        steps.append(f"snap-contours: contours moved by up to {counts.off_mm:.2f} mm to the nearest slice")
    if counts.crowded:
        steps.append(
            f"thin-contours: {counts.crowded} contours left out, another plane is nearer to their slice"
        )
    if counts.copies:
        steps.append(f"drop-copies: {counts.copies} contours stored twice count once")
    if counts.laps:
        steps.append(
            f"unwind-contours: {counts.laps} contours that run round twice or cross themselves count once"
        )
    if counts.joined:
        steps.append(f"join-contours: {counts.joined} pairs of contours overlap in part and are joined")
    if counts.lost:
        pixels = sum(counts.lost.values())
        steps.append(f"lost-area: {pixels} pixels in contours of {len(counts.lost)} slices cancel out")
    if counts.gaps:
        (low, high), more = counts.gaps[0], len(counts.gaps) - 1
        also = f" and {more} more" if more else ""
        steps.append(f"open-gap: no contour between {low:.1f} and {high:.1f} mm{also}, left empty")
    if counts.between:
        steps.append(f"empty-slices: the contours of {counts.between} slices enclose no voxel centre")
    return steps
