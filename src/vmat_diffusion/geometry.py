"""Grids, resampling and the way from IEC 61217 machine angles to patient coordinates.

This is the only module that knows the order of axes: points are `(x, y, z)` in DICOM patient LPS
millimetres, volumes are indexed `[z, y, x]`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import BSpline, make_interp_spline

from vmat_diffusion.errors import CaseError, PlanError

_Angle = TypeVar("_Angle", float, NDArray[np.float64])
Point = tuple[float, float, float]
Volume = Float[np.ndarray, "nz ny nx"]
Mask = Bool[np.ndarray, "nz ny nx"]
Points = Float[np.ndarray, "n 3"]

# Rows: the patient's LPS axes expressed in the IEC fixed system (x to the left of an observer's
# right hand facing the gantry, y towards the gantry, z up) with the couch at 0 degrees.
_FIXED_TO_LPS = {
    "HFS": np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]], float),
    "HFP": np.array([[-1, 0, 0], [0, 0, 1], [0, 1, 0]], float),
    "FFS": np.array([[-1, 0, 0], [0, 0, -1], [0, -1, 0]], float),
    "FFP": np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], float),
}
PATIENT_POSITIONS = tuple(_FIXED_TO_LPS)


@dataclass(frozen=True)
class Grid:
    """An axis-aligned voxel grid in patient coordinates.

    `shape` is `(nz, ny, nx)`; `spacing_mm` and `origin_mm` are `(x, y, z)`, all spacings positive;
    `origin_mm` is the centre of voxel `[0, 0, 0]`.
    """

    shape: tuple[int, int, int]
    spacing_mm: Point
    origin_mm: Point

    def __post_init__(self) -> None:
        values = (*self.spacing_mm, *self.origin_mm)
        if len(self.shape) != 3 or any(int(n) < 1 for n in self.shape):
            raise CaseError(f"grid shape {self.shape} must be three positive numbers (nz, ny, nx)")
        if len(values) != 6 or not all(math.isfinite(v) for v in values):
            raise CaseError(f"grid spacing {self.spacing_mm} or origin {self.origin_mm} is not finite")
        if min(self.spacing_mm) <= 0:
            raise CaseError(f"grid spacing {self.spacing_mm} mm must be positive along x, y and z")

    @property
    def axes_mm(self) -> tuple[NDArray, NDArray, NDArray]:
        """Voxel centres along x, y and z."""
        nz, ny, nx = self.shape
        x, y, z = (
            o + s * np.arange(n)
            for o, s, n in zip(self.origin_mm, self.spacing_mm, (nx, ny, nz), strict=True)
        )
        return x, y, z

    @property
    def voxel_cc(self) -> float:
        """Volume of one voxel in cubic centimetres."""
        return float(np.prod(self.spacing_mm)) / 1000.0

    @property
    def bounds_mm(self) -> tuple[Point, Point]:
        """Outer corners of the grid: voxel borders, not centres."""
        size = self.shape[::-1]
        low = tuple(o - s / 2 for o, s in zip(self.origin_mm, self.spacing_mm, strict=True))
        high = tuple(lo + s * n for lo, s, n in zip(low, self.spacing_mm, size, strict=True))
        return low, high  # type: ignore[return-value]

    def points_mm(self, flat: NDArray) -> Points:
        """Centres `(x, y, z)` of the voxels with the given flat C-order indices."""
        iz, iy, ix = np.unravel_index(flat, self.shape)
        x, y, z = self.axes_mm
        return np.stack([x[ix], y[iy], z[iz]], axis=-1)

    def index(self, points: NDArray) -> NDArray:
        """Fractional indices `(z, y, x)` of points `(..., 3)` given as `(x, y, z)` in mm."""
        fractional = (np.asarray(points, float) - self.origin_mm) / self.spacing_mm
        return fractional[..., ::-1]

    def holds(self, points: NDArray) -> NDArray[np.bool_]:
        """Which points `(..., 3)` in mm lie in its voxels, borders included."""
        index = self.index(points)
        return np.all((index >= -0.5 - 1e-6) & (index <= np.array(self.shape) - 0.5 + 1e-6), axis=-1)

    def matches(self, other: Grid, tolerance_mm: float = 1e-3) -> bool:
        """Whether both grids have the same voxels, to within a tolerance."""
        return self.shape == other.shape and bool(
            np.allclose(self.spacing_mm, other.spacing_mm, atol=tolerance_mm / max(self.shape))
            and np.allclose(self.origin_mm, other.origin_mm, atol=tolerance_mm)
        )

    def around(self, low: Point, high: Point, spacing_mm: Point) -> Grid:
        """A grid of another spacing that covers the box from `low` to `high`, cut to this grid.

        Voxel borders coincide with this grid's outer border at the low corner plus whole voxels.
        """
        own_low, own_high = self.bounds_mm
        origin, shape = [], []
        for lo, hi, s, a, b in zip(low, high, spacing_mm, own_low, own_high, strict=True):
            first = max(math.floor((lo - a) / s), 0)
            last = min(math.ceil((hi - a) / s), math.ceil((b - a) / s - 1e-9))
            origin.append(a + (first + 0.5) * s)
            shape.append(max(last - first, 1))
        return Grid(tuple(shape[::-1]), tuple(spacing_mm), tuple(origin))  # type: ignore[arg-type]


def bounding_box(mask: Mask) -> tuple[slice, slice, slice] | None:
    """The smallest `(z, y, x)` box around the true voxels, or None where there is none."""
    planes = np.flatnonzero(np.any(mask, axis=(1, 2)))
    if planes.size == 0:
        return None
    z = slice(int(planes[0]), int(planes[-1]) + 1)
    flat = np.any(mask[z], axis=0)
    rows, columns = np.flatnonzero(np.any(flat, axis=1)), np.flatnonzero(np.any(flat, axis=0))
    return z, slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def subgrid(grid: Grid, box: tuple[slice, ...]) -> Grid:
    """The part of a grid that index slices `(z, y, x)` cut out."""
    z, y, x = box
    origin = tuple(
        o + s * part.start for o, s, part in zip(grid.origin_mm, grid.spacing_mm, (x, y, z), strict=True)
    )
    shape = tuple(part.stop - part.start for part in (z, y, x))
    return Grid(shape, grid.spacing_mm, origin)  # type: ignore[arg-type]


def mask_bounds_mm(mask: Mask, grid: Grid) -> tuple[Point, Point]:
    """Outer corners (x, y, z) in mm of the voxels of a mask. Raises CaseError for an empty one."""
    box = bounding_box(mask)
    if box is None:
        raise CaseError(
            "a structure that is needed has no voxels; contour it, or leave an empty body out so that it is "
            "made from the CT"
        )
    sides = [
        (float(axis[part.start] - step / 2), float(axis[part.stop - 1] + step / 2))
        for axis, step, part in zip(grid.axes_mm, grid.spacing_mm, box[::-1], strict=True)
    ]
    low, high = zip(*sides, strict=True)
    return low, high


def resample(values: NDArray, source: Grid, target: Grid, *, fill: float = 0.0) -> NDArray[np.float32]:
    """Trilinear interpolation of `values` on `source` at the voxel centres of `target`.

    Centres up to half a voxel outside the outermost centres of `source` take the border value;
    further out `fill` is returned.
    """
    if values.shape != source.shape:
        raise CaseError(f"array of shape {values.shape} does not fit its grid of shape {source.shape}")
    if source.matches(target):
        return np.asarray(values, np.float32)
    scale = np.array(target.spacing_mm)[::-1] / np.array(source.spacing_mm)[::-1]
    offset = source.index(np.array(target.origin_mm))
    out = ndimage.affine_transform(
        np.asarray(values, np.float32), scale, offset, target.shape, order=1, mode="nearest"
    )
    for axis in range(3):
        position = offset[axis] + scale[axis] * np.arange(target.shape[axis])
        outside = (position < -0.5 - 1e-6) | (position > source.shape[axis] - 0.5 + 1e-6)
        out[(slice(None),) * axis + (outside,)] = fill
    return out


def resample_dose(values: NDArray, source: Grid, target: Grid) -> NDArray[np.float32]:
    """Dose between the points of its grid: cubic along each axis, within the eight points around.

    The one definition of a dose between points (`docs/dvh.md`). A cubic spline goes through the values,
    which are doses at points (DICOM PS3.3 C.8.8.3), and is held between the least and the highest of the
    eight points around, so that a steep edge makes no dose that is nowhere near. Up to half a voxel
    outside the outermost points the border value is taken, further out 0.
    """
    if values.shape != source.shape:
        raise CaseError(f"array of shape {values.shape} does not fit its grid of shape {source.shape}")
    out = np.asarray(values, np.float32)
    if source.matches(target):
        return out
    low, high = out, out
    for axis in range(3):
        k, n = 2 - axis, source.shape[axis]
        position = (target.axes_mm[k] - source.origin_mm[k]) / source.spacing_mm[k]
        inside, within, below, above = _between(position, n)
        # A spline's weights fall by 3.7 for each point away; those beyond 12 points are lost in rounding.
        first, last = max(int(below.min()) - 12, 0), min(int(above.max()) + 13, n)
        weights = _spline_weights(n, within)[:, first:last]
        part = np.take(out, np.arange(first, last), axis)
        out = np.moveaxis(np.tensordot(weights, part, axes=(1, axis)), 0, axis)
        low = np.minimum(np.take(low, below, axis), np.take(low, above, axis))
        high = np.maximum(np.take(high, below, axis), np.take(high, above, axis))
        for part in (out, low, high):
            part[(slice(None),) * axis + (~inside,)] = 0.0
    return np.clip(out, low, high)


def sample_dose(values: NDArray, grid: Grid, points: NDArray) -> NDArray[np.float64]:
    """Dose at points `(n, 3)` in mm, by the definition of `resample_dose`: what a report would read there."""
    inside, within, below, above = _between(grid.index(points), np.array(grid.shape))
    corners = [values[tuple(np.where(up, above, below).T)] for up in np.ndindex(2, 2, 2)]
    coefficients, near = np.asarray(values, np.float64), []
    for axis in range(3):
        spline = _spline(np.moveaxis(coefficients, axis, 0))
        coefficients = np.moveaxis(spline.c, 0, axis)
        basis = spline.design_matrix(within[:, axis], spline.t, spline.k)
        near.append((basis.indices.reshape(-1, spline.k + 1), basis.data.reshape(-1, spline.k + 1)))
    out = np.zeros(len(points))
    for part in np.ndindex(*(where.shape[1] for where, _ in near)):
        at = tuple(where[:, k] for (where, _), k in zip(near, part, strict=True))
        weight = np.prod([share[:, k] for (_, share), k in zip(near, part, strict=True)], axis=0)
        out += weight * coefficients[at]
    held = np.clip(out, np.min(corners, axis=0), np.max(corners, axis=0))
    return np.where(inside.all(axis=-1), held, 0.0)


def _between(position: NDArray, count: int | NDArray) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Where indices lie among points 0 to `count - 1`: whether a dose is there, the place, its neighbours."""
    inside = (position >= -0.5 - 1e-6) & (position <= count - 0.5 + 1e-6)
    within = np.clip(position, 0, count - 1)
    below, above = np.floor(within + 1e-9).astype(int), np.ceil(within - 1e-9).astype(int)
    return inside, within, below, above


def _spline(values: NDArray) -> BSpline:
    """The cubic spline through values at 0, 1, 2 ... along the first axis; of a lower degree through few."""
    return make_interp_spline(np.arange(len(values)), values, k=min(3, len(values) - 1))


def _spline_weights(count: int, position: NDArray) -> NDArray[np.float32]:
    """Weights `[position, point]` of the cubic spline through `count` points at 0, 1, 2 ..."""
    if count == 1:
        return np.ones((len(position), 1), np.float32)
    return _spline(np.eye(count))(position).astype(np.float32)  # type: ignore[no-any-return]


def average_onto(values: NDArray, source: Grid, target: Grid, *, fill: float = 0.0) -> NDArray[np.float32]:
    """Volume-weighted mean of `values` over each voxel of `target`; `fill` counts outside `source`.

    Conserves the integral; the right way from a fine CT to a coarser dose grid.
    """
    out = np.asarray(values)
    if fill:
        out = out - np.float32(fill)
    for axis in range(3):
        out = _banded(_overlap(source, target, axis), out, axis)
    return out + np.float32(fill) if fill else out


def _banded(weights: NDArray[np.float32], values: NDArray, axis: int) -> NDArray[np.float32]:
    """Product along an axis with a matrix `[target, source]` whose rows each hold a few neighbours."""
    rows = np.arange(len(weights))
    first = np.argmax(weights > 0, axis=1)
    shape = [-1 if a == axis else 1 for a in range(3)]
    out: NDArray[np.float32] | None = None
    for k in range(max(int(np.count_nonzero(weights, axis=1).max()), 1)):
        at = np.minimum(first + k, weights.shape[1] - 1)
        share = np.where(first + k < weights.shape[1], weights[rows, at], 0).astype(np.float32)
        part = np.multiply(np.take(values, at, axis), share.reshape(shape), dtype=np.float32)
        out = part if out is None else np.add(out, part, out=out)
    assert out is not None
    return out


def _overlap(source: Grid, target: Grid, axis: int) -> NDArray[np.float32]:
    """Share of each target voxel that each source voxel fills, along one array axis."""
    k = 2 - axis
    edges = []
    for grid in (source, target):
        low, step, n = grid.bounds_mm[0][k], grid.spacing_mm[k], grid.shape[axis]
        edges.append(low + step * np.arange(n + 1))
    s, t = edges
    low = np.maximum(t[:-1, None], s[None, :-1])
    high = np.minimum(t[1:, None], s[None, 1:])
    return (np.clip(high - low, 0, None) / (t[1:] - t[:-1])[:, None]).astype(np.float32)


def sample(values: NDArray, grid: Grid, points: NDArray, *, fill: float = 0.0) -> NDArray[np.float64]:
    """Trilinear interpolation of `values[z, y, x]` at points `(n, 3)` in mm.

    The border value reaches half a voxel beyond the outermost centres, as in `resample`.
    """
    index, inside = grid.index(points), grid.holds(points)
    out = ndimage.map_coordinates(np.asarray(values, np.float64), index.T, order=1, mode="nearest")
    return np.where(inside, out, fill)


@dataclass(frozen=True)
class BeamAxes:
    """Unit vectors of one beam in patient LPS.

    `x` and `y` are the IEC beam-limiting-device axes (leaves of bank X1/X2 travel along `x`, leaf
    index ascends along `y`); `to_source` points from the isocentre to the focal spot.
    """

    x: NDArray
    y: NDArray
    to_source: NDArray


def signed_deg(angle_deg: _Angle) -> _Angle:
    """The same direction from -180 up to, but not including, 180 degrees."""
    return (angle_deg + 180.0) % 360.0 - 180.0


def beam_axes(
    gantry_deg: float,
    collimator_deg: float = 0.0,
    couch_deg: float = 0.0,
    patient_position: str = "HFS",
) -> BeamAxes:
    """IEC 61217 beam-limiting-device axes in patient coordinates.

    Gantry 0 has the source above the patient's front (HFS), gantry 90 on the patient's left.
    Collimator angles turn the device counter-clockwise as seen from the source; couch angles turn
    the patient counter-clockwise as seen from above. Source: IEC 61217:2011, clauses 4 and 5.
    """
    if patient_position not in _FIXED_TO_LPS:
        raise PlanError(
            f"patient position {patient_position!r} is not supported; known are "
            f"{', '.join(PATIENT_POSITIONS)}; re-export the series in one of these"
        )
    g, b, s = (math.radians(a) for a in (gantry_deg, collimator_deg, couch_deg))
    xg = np.array([math.cos(g), 0.0, -math.sin(g)])
    yg = np.array([0.0, 1.0, 0.0])
    zg = np.array([math.sin(g), 0.0, math.cos(g)])
    xb = math.cos(b) * xg + math.sin(b) * yg
    yb = -math.sin(b) * xg + math.cos(b) * yg
    couch = np.array([[math.cos(s), math.sin(s), 0], [-math.sin(s), math.cos(s), 0], [0, 0, 1]])
    to_lps = _FIXED_TO_LPS[patient_position] @ couch
    return BeamAxes(to_lps @ xb, to_lps @ yb, to_lps @ zg)


def source_position_mm(
    gantry_deg: float,
    isocenter_mm: Point,
    sad_mm: float,
    couch_deg: float = 0.0,
    patient_position: str = "HFS",
) -> Point:
    """Focal spot in patient coordinates.

    IEC 61217, head-first supine: gantry 0 is anterior (0, -sad, 0) from the isocentre; gantry 90 is
    the patient's left (+sad, 0, 0).
    """
    axes = beam_axes(gantry_deg, 0.0, couch_deg, patient_position)
    x, y, z = np.asarray(isocenter_mm) + sad_mm * axes.to_source
    return float(x), float(y), float(z)


def project(points: NDArray, axes: BeamAxes, isocenter_mm: Point, sad_mm: float) -> NDArray:
    """Perspective projection of points `(n, 3)` onto the isocentre plane.

    Returns `(n, 3)`: `u`, `v` in mm along the device's x and y at the isocentre plane, and the
    distance in mm from the source along the beam axis.
    """
    relative = np.asarray(points, float) - np.asarray(isocenter_mm)
    distance = sad_mm - relative @ axes.to_source
    scale = sad_mm / distance
    return np.stack([relative @ axes.x * scale, relative @ axes.y * scale, distance], axis=-1)


def distance_to_mask_mm(
    mask: Mask, grid: Grid, start: NDArray, ahead: NDArray, *, reach_mm: float, step_mm: float = 0.5
) -> NDArray[np.float64]:
    """Distance at which rays enter a mask, to `step_mm`; NaN where they do not within `reach_mm`.

    `start` is `(n, 3)` in mm, `ahead` are unit vectors `(n, 3)`.
    """
    distance = np.arange(0.0, reach_mm, step_mm)
    # Not `sample`: it would turn the whole mask into 64-bit numbers first.
    index = np.moveaxis(grid.index(start[:, None] + distance[:, None] * ahead[:, None]), -1, 0)
    inside = ndimage.map_coordinates(mask, index, np.float32, order=1, mode="constant") >= 0.5
    return np.where(inside.any(axis=1), distance[np.argmax(inside, axis=1)], np.nan)
