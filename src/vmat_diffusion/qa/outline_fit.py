"""Where the outline of the body lies against the surface of the patient in the CT: shift and scale, by a fit.

Couch, mask and cushion move the surface in some directions only. A CT whose position or pixel spacing is
wrong, and structures of another scan, move all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vmat_diffusion.case import Case
from vmat_diffusion.geometry import Grid, Mask, Point

# Half way from air to soft tissue.
_SURFACE_HU = -500.0
# How far from the outline the surface is looked for.
_REACH_MM = 25.0
# Slices that take part; more do not change the fit.
_MOST_SLICES = 48
_FEWEST_POINTS = 400
# Normals of the outline are those of a body smoothed by this.
_SMOOTHING_MM = 4.0
# Residuals below this are no reason to distrust a point: rows of voxels, and the width of the edge in the CT.
_LEAST_SPREAD_MM, _REWEIGHTINGS = 0.3, 20
# A point agrees with the fit within this.
_AGREES_MM = 1.5


@dataclass(frozen=True)
class Displacement:
    """How the surface in the CT lies against the outline of the body.

    `shift_mm` is along x, y and z; `growth_mm` along x and y is how far the surface lies outside the outline
    in the mean, besides that shift, and `scale_percent` the same as a change of size. `explained` is the
    share of the points of the outline whose displacement the fit explains within 1.5 mm.
    """

    shift_mm: Point
    growth_mm: tuple[float, float]
    scale_percent: tuple[float, float]
    explained: float
    points: int

    @property
    def common_mm(self) -> float:
        """Length of the shift in the slices that both sides show: a mask or a couch moves one side alone.

        What lies outside the outline on one side only shifts and grows the surface by the same amount.
        """
        x, y = (
            max(abs(shift) - max(growth, 0.0), 0.0)
            for shift, growth in zip(self.shift_mm[:2], self.growth_mm, strict=True)
        )
        return float(np.hypot(x, y))

    @property
    def furthest_mm(self) -> float:
        """How far the side that lies furthest off is from its outline: left, right, front or back."""
        sides = (abs(s) + abs(g) for s, g in zip(self.shift_mm[:2], self.growth_mm, strict=True))
        return float(max(sides))


def fitted_displacement(case: Case) -> Displacement | None:
    """The shift, and the scale along x and y, that explain where the CT's surface lies; robust least squares.

    None where too little of the outline has a surface near it, as in a CT that ends at the body.
    """
    used = np.flatnonzero(case.body.mask.any(axis=(1, 2)))[1:-1]
    if not used.size:
        return None
    index, along_x, away = _surface(case, used)
    normals = _normals(case.body.mask[used[0] : used[-1] + 1], case.grid, index - [0, 0, used[0]])
    faced = np.where(along_x, normals[:, 0], normals[:, 1])
    other = np.where(along_x, normals[:, 1], normals[:, 0])
    # Each point is seen along the axis that it faces more; the ends of the body are seen along none.
    seen = (np.abs(faced) >= np.abs(other)) & (np.abs(normals[:, 2]) < 0.8) & (np.abs(faced) > 0.3)
    kept = seen & np.isfinite(away)
    if kept.sum() < max(_FEWEST_POINTS, 0.5 * seen.sum()):
        return None
    normals, wanted = normals[kept], (away * faced)[kept]
    place = index[kept] * np.array(case.grid.spacing_mm)
    arms = (place - (place.min(axis=0) + place.max(axis=0)) / 2)[:, :2]
    columns = np.concatenate([normals, arms * normals[:, :2]], axis=1)
    found, explained = _robust(columns, wanted)
    weight = np.abs(normals[:, :2])
    half = (weight * np.abs(arms)).sum(axis=0) / weight.sum(axis=0)
    shift, growth, scale = found[:3], found[3:] * half, 100.0 * found[3:]
    return Displacement(
        (float(shift[0]), float(shift[1]), float(shift[2])),
        (float(growth[0]), float(growth[1])),
        (float(scale[0]), float(scale[1])),
        explained,
        int(kept.sum()),
    )


def _surface(case: Case, used: NDArray) -> tuple[NDArray[np.float64], Mask, NDArray[np.float64]]:
    """The outline's points along rows and columns, and how far from each the CT's surface lies.

    Returns the points as voxel indices x, y, z `(n, 3)`, whether each lies on a row (along x), and the
    distance to the nearest step from tissue to air along +x or +y in mm; NaN where none is near.
    """
    points, rows, away = [], [], []
    for k in used[:: int(np.ceil(used.size / _MOST_SLICES))]:
        for along_x, spacing in ((True, case.grid.spacing_mm[0]), (False, case.grid.spacing_mm[1])):
            body, hu = case.body.mask[k], case.hu[k]
            for line, edge, distance in _edges(*((body, hu) if along_x else (body.T, hu.T)), spacing):
                x, y = (edge, line) if along_x else (line, edge)
                points.append(np.stack([x, y, np.full(x.size, float(k))], axis=1))
                rows.append(np.full(x.size, along_x))
                away.append(distance)
    return np.concatenate(points), np.concatenate(rows), np.concatenate(away)


def _edges(body: Mask, hu: NDArray, spacing_mm: float) -> Iterator[tuple[NDArray, NDArray, NDArray]]:
    """Row, place in the row and distance to the surface of each end of the body, one side after the other."""
    last, reach = body.shape[1] - 1, int(np.ceil(_REACH_MM / spacing_mm))
    for sign in (1, -1):
        inside, numbers = body[:, ::sign], hu[:, ::sign]
        line, edge = np.nonzero(inside[:, :-1] & ~inside[:, 1:])
        steps = np.arange(-reach, reach + 2)
        at = edge[:, None] + steps
        dense = numbers[line[:, None], np.clip(at, 0, last)].astype(np.float64)
        low, high = dense[:, 1:], dense[:, :-1]
        leaves = (high >= _SURFACE_HU) & (low < _SURFACE_HU) & (at[:, :-1] >= 0) & (at[:, 1:] <= last)
        part = np.divide(high - _SURFACE_HU, high - low, out=np.zeros_like(high), where=leaves)
        # The end of the body lies half a voxel beyond its last voxel.
        far = np.where(leaves, (steps[:-1] + part - 0.5) * spacing_mm, np.inf)
        nearest = far[np.arange(line.size), np.argmin(np.abs(far), axis=1)]
        nearest[np.isinf(nearest)] = np.nan
        place = edge + 0.5
        yield line.astype(float), place if sign == 1 else last - place, sign * nearest


def _normals(body: Mask, grid: Grid, index: NDArray) -> NDArray[np.float64]:
    """Outward normals x, y, z of the body at voxel indices x, y, z, as of a body that goes on at its ends."""
    # Normals of a smooth body need no fine voxels.
    coarser = [max(1, round(_SMOOTHING_MM / 2 / s)) for s in grid.spacing_mm[:2]]
    spacing = (grid.spacing_mm[2], coarser[1] * grid.spacing_mm[1], coarser[0] * grid.spacing_mm[0])
    body = body[:, :: coarser[1], :: coarser[0]]
    widths = [max(1.0, _SMOOTHING_MM / s) for s in spacing]
    smooth = ndimage.gaussian_filter(body.astype(np.float32), widths, mode="nearest", truncate=3.0)
    at = (index / [coarser[0], coarser[1], 1])[:, ::-1].T
    slopes = [
        ndimage.map_coordinates(_slope(smooth, axis, spacing[axis]), at, order=1, mode="nearest")
        for axis in (2, 1, 0)
    ]
    outward = -np.stack(slopes, axis=1).astype(np.float64)
    return np.asarray(outward / np.maximum(np.linalg.norm(outward, axis=1), 1e-9)[:, None])


def _slope(values: NDArray, axis: int, spacing_mm: float) -> NDArray:
    if values.shape[axis] < 2:
        return np.zeros_like(values)
    return np.asarray(np.gradient(values, spacing_mm, axis=axis))


def _robust(columns: NDArray, wanted: NDArray) -> tuple[NDArray[np.float64], float]:
    """The share of each column in what is wanted, by reweighted least squares, and the share it explains."""
    weights = np.ones(wanted.size)
    for _ in range(_REWEIGHTINGS):
        root = np.sqrt(weights)
        # What the outline does not show, such as a shift of a cylinder along itself, stays at zero.
        found = np.linalg.lstsq(columns * root[:, None], wanted * root, rcond=1e-6)[0]
        left = np.abs(wanted - columns @ found)
        spread = max(1.4826 * float(np.median(left)), _LEAST_SPREAD_MM)
        weights = (1.0 + (left / (2.0 * spread)) ** 2) ** -2
    return found, float(np.mean(left <= _AGREES_MM))
