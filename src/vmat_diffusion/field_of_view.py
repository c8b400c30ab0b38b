"""Where the CT ends although the body goes on, and from which gantry angles a beam would pass that.

What the CT does not hold is air to every dose calculation: a beam through it is calculated too strong behind.
Angles are IEC 61217, in degrees.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case
from vmat_diffusion.geometry import Point, source_position_mm

# Between air and fat (-100 HU).
_TISSUE_ABOVE_HU = -400.0
# A body drawn to this distance from where the CT ends is cut if all between is tissue. Ours.
_DRAWN_SHORT_MM = 5.0
_STEP_MM = 1.0
# The outermost voxels are left out: part of them lies beyond the scanner's field of view.
_RIM_VOXELS = 1.0
# Slices looked at for the scanner's circle, and the most voxels of air within that may have the value of the
# corners: some scanners cut noise off at it. Ours.
_SLICES, _PADDED_SHARE = 20, 0.5
# Rays from so many points of the targets, every so many degrees of gantry. Ours.
_POINTS, _ANGLE_DEG = 400, 2.0
# Angles from which more than this share of the rays passes the cut are to be avoided, and this much to either
# side: fields are wider than targets, and patients lie askew. Ours.
SMALL_SHARE, _ROOM_DEG = 0.02, 4.0
# Scatter from further off than this adds less than 1 % to the dose of a 6 MV beam. Ours.
_ENOUGH_BEYOND_MM = 20.0


@dataclass(frozen=True)
class Sector:
    """Gantry angles, clockwise from the first to the last.

    `share` is the largest share of the rays that pass what the CT does not hold, `distance_mm` how far from
    the isocentre the CT ends there, the least of all angles.
    """

    first_deg: float
    last_deg: float
    share: float
    distance_mm: float

    def __str__(self) -> str:
        where = f"gantry {self.first_deg:g}"
        return where if self.first_deg == self.last_deg else f"{where} to {self.last_deg:g}"


@dataclass(frozen=True, eq=False)
class FieldOfView:
    """What of a case the CT holds: its grid, and in the plane of slices the scanner's circle, if one shows.

    `radius_mm` is None where the CT holds something in the corners of its slices.
    """

    case: Case
    radius_mm: float | None

    @classmethod
    def of(cls, case: Case) -> FieldOfView:
        """The field of view of a case.

        A scanner's circle shows in square slices as one and the same value in all corners, which the air
        within does not have: that is noisy.
        """
        x, y, _ = case.grid.axes_mm
        low, high = case.grid.bounds_mm
        sides = high[0] - low[0], high[1] - low[1]
        if abs(sides[0] - sides[1]) > max(case.grid.spacing_mm[:2]):
            return cls(case, None)
        radius, voxel = min(sides) / 2, max(case.grid.spacing_mm[:2])
        away = np.hypot(x[None, :] - (low[0] + high[0]) / 2, y[:, None] - (low[1] + high[1]) / 2)
        hu = np.asarray(case.hu[:: max(case.grid.shape[0] // _SLICES, 1)])
        corners = hu[:, away > radius + 0.75 * voxel]  # wholly outside the circle
        if not corners.size or np.ptp(corners) > 0:
            return cls(case, None)
        rim = hu[:, (away < radius - 1.5 * voxel) & (away > radius - 5 * voxel)]
        air = rim[rim < _TISSUE_ABOVE_HU]
        padded = bool(air.size) and float(np.mean(air == corners.flat[0])) > _PADDED_SHARE
        return cls(case, None if padded else float(radius))

    def exit_mm(self, start: NDArray, ahead: NDArray) -> NDArray[np.float64]:
        """How far rays `(n, 3)` along unit vectors `ahead` go until the CT ends; negative from outside it."""
        low, high = (np.array(corner) for corner in self.case.grid.bounds_mm)
        with np.errstate(divide="ignore", invalid="ignore"):
            to_end = np.where(ahead > 0, (high - start) / ahead, (low - start) / ahead)
        out = np.where(np.abs(ahead) < 1e-12, np.inf, to_end).min(axis=1)
        if self.radius_mm is not None:
            relative = start[:, :2] - (low + high)[:2] / 2
            a = (ahead[:, :2] ** 2).sum(axis=1)
            b = (relative * ahead[:, :2]).sum(axis=1)
            c = (relative**2).sum(axis=1) - self.radius_mm**2
            root = np.sqrt(np.maximum(b**2 - a * c, 0.0))
            with np.errstate(divide="ignore", invalid="ignore"):
                round_mm = np.where(a < 1e-12, np.inf, (root - b) / a)
            out = np.where(c > 0, -1.0, np.minimum(out, round_mm))
        inside = np.all((start > low) & (start < high), axis=1)
        return np.where(inside, out, -1.0)

    def passes_cut(self, start: NDArray, ahead: NDArray) -> NDArray[np.bool_]:
        """Which rays `(n, 3)` leave the CT where the body goes on: in tissue of the body up to the end.

        A body may be drawn a few millimetres short of the end if all between is tissue.
        """
        grid = self.case.grid
        rim = _RIM_VOXELS * max(grid.spacing_mm)
        ends = self.exit_mm(start, ahead)
        cut = np.zeros(len(start), bool)
        tissue = np.ones(len(start), bool)
        short = max(_DRAWN_SHORT_MM, 2 * max(grid.spacing_mm[:2]))
        for back in np.arange(rim, rim + short, _STEP_MM):
            index = np.rint(grid.index(start + (ends - back)[:, None] * ahead)).astype(int)
            inside = (ends > back) & np.all((index >= 0) & (index < grid.shape), axis=1)
            z, y, x = np.where(inside[:, None], index, 0).T
            tissue &= inside & (np.asarray(self.case.hu[z, y, x]) > _TISSUE_ABOVE_HU)
            cut |= tissue & self.case.body.mask[z, y, x]
        return cut


def cut_sectors(
    case: Case,
    targets: Sequence[str],
    isocenter_mm: Point,
    sad_mm: float,
    couches_deg: Iterable[float] = (0.0,),
) -> tuple[Sector, ...]:
    """Gantry angles from which rays to the targets pass what the CT does not hold.

    At any of the couch angles. Empty where the CT holds all of the body that beams to the targets pass.
    """
    view = FieldOfView.of(case)
    points = _thinned(case, targets)
    if not len(points):
        return ()
    angles = np.arange(0.0, 360.0, _ANGLE_DEG)
    shares, ends = np.zeros(len(angles)), np.full(len(angles), np.inf)
    middle = np.array([isocenter_mm])
    for couch in dict.fromkeys(couches_deg):
        for k, gantry in enumerate(angles):
            source = np.array(source_position_mm(gantry, isocenter_mm, sad_mm, couch, case.patient_position))
            shares[k] = max(shares[k], view.passes_cut(points, _towards(source, points)).mean())
            ends[k] = min(ends[k], float(view.exit_mm(middle, _towards(source, middle))[0]))
    return sectors_of(angles, shares, ends, room_deg=_ROOM_DEG)


def sectors_of(
    angles: NDArray, shares: NDArray, ends_mm: NDArray, *, room_deg: float = 0.0
) -> tuple[Sector, ...]:
    """The sectors of evenly spaced angles around the circle whose share is not small, in ascending order.

    `ends_mm` are the distances of where the CT ends; `room_deg` is added at both ends of a sector.
    """
    marked = shares > SMALL_SHARE
    step = 360.0 / len(angles)
    wide = int(np.ceil(room_deg / step - 1e-9))
    grown = np.any([np.roll(marked, k) for k in range(-wide, wide + 1)], axis=0)
    if grown.all():
        return (Sector(0.0, 360.0, float(shares.max()), float(ends_mm[marked].min())),)
    found = []
    for first in np.flatnonzero(grown & ~np.roll(grown, 1)):
        count = int(np.argmin(np.roll(grown, -int(first))))
        index = (first + np.arange(count)) % len(angles)
        seen = index[marked[index]]
        found.append(
            Sector(
                float(angles[index[0]]),
                float(angles[index[-1]]),
                float(shares[seen].max()),
                float(ends_mm[seen].min()),
            )
        )
    return tuple(found)


def near_ends(case: Case, targets: Iterable[str]) -> tuple[tuple[str, str, float], ...]:
    """Targets less than 20 mm from the last slice at an end of the CT that cuts the body there.

    For each its name, the end ("upper" towards the patient's head, or "lower") and the distance in mm from
    the target to where the CT ends.
    """
    found = []
    low, high = case.grid.bounds_mm[0][2], case.grid.bounds_mm[1][2]
    half = case.grid.spacing_mm[2] / 2
    for name in targets:
        mask = case.structures[name].mask
        slices = np.flatnonzero(mask.any(axis=(1, 2)))
        if not slices.size:
            continue
        z = case.grid.axes_mm[2][slices[[0, -1]]]
        for end, away, last in (("lower", z[0] - half - low, 0), ("upper", high - z[1] - half, -1)):
            if away < _ENOUGH_BEYOND_MM and case.body.mask[last].any():
                found.append((name, end, max(float(away), 0.0)))
    return tuple(found)


def _thinned(case: Case, targets: Sequence[str]) -> NDArray[np.float64]:
    """Evenly many voxel centres of the targets and the outermost along each axis."""
    points = case.grid.points_mm(np.flatnonzero(case.union(targets)))
    if not len(points):
        return points
    ends = np.concatenate([points.argmin(axis=0), points.argmax(axis=0)])
    return np.concatenate([points[:: max(len(points) // _POINTS, 1)], points[ends]])


def _towards(source: NDArray, points: NDArray) -> NDArray[np.float64]:
    """Unit vectors from points to the source."""
    way = source - points
    return way / np.linalg.norm(way, axis=1, keepdims=True)  # type: ignore[no-any-return]
