"""Gamma index between two dose distributions, volumes or planes. See `docs/gamma.md`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vmat_diffusion.case import Dose
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.geometry import Grid, Mask, sample

# Spheres, and points on them, per distance criterion.
_STEPS = 10
# The lines that end in a voxel are searched too where the dose changes between positions by more than
# the width of the passing band, 2 criteria; from 1.5 % of the maximum upwards in the same voxels for all
# criteria, so that a wider one never fails more.
_BAND = 0.015
# And at voxels that stand out on both sides by more than 30 % of the maximum: neither the noise of a usable
# dose nor the edge of a beam or of the body does.
_SPIKE = 0.3
# Positions of one plane are written with a rounding of 0.1 mm or so; a film's mounting is known to 1 mm.
_PLANES_APART_MM = 1.0
# A point beyond the outermost voxel centres by less than this share of a voxel counts as on them.
_EDGE = 1e-6
# Parts of the work: so many that no thread is idle at the end.
_PARTS = 512


@dataclass(frozen=True, eq=False)
class GammaResult:
    """Gamma at the voxels of the reference dose, and how it was computed.

    `map[z, y, x]` on `grid` is NaN where nothing was compared; values at `max_gamma` mean "at least".
    `points` voxels were compared; `outside` voxels have no evaluated dose within reach and are in no figure.
    `maximum_gy` is the dose to which `threshold_percent` and, for a global gamma, `dose_percent` refer.
    """

    grid: Grid
    map: NDArray[np.float32]
    points: int
    outside: int
    pass_percent: float
    mean: float
    dose_percent: float
    distance_mm: float
    local: bool
    threshold_percent: float
    max_gamma: float
    maximum_gy: float
    sigmas: float

    @property
    def criteria(self) -> str:
        """Such as `3 %/3 mm global, 10 % threshold`."""
        kind = "local" if self.local else "global"
        return (
            f"{self.dose_percent:g} %/{self.distance_mm:g} mm {kind}, {self.threshold_percent:g} % threshold"
        )

    def summary(self) -> dict[str, Any]:
        """Plain data: everything but the map."""
        return {
            "pass_percent": round(self.pass_percent, 4),
            "points": self.points,
            "outside": self.outside,
            "mean_gamma": round(self.mean, 5),
            "dose_percent": self.dose_percent,
            "distance_mm": self.distance_mm,
            "local": self.local,
            "threshold_percent": self.threshold_percent,
            "max_gamma": self.max_gamma,
            "maximum_gy": round(self.maximum_gy, 5),
            "sigmas": self.sigmas,
            "interpolation_points_per_distance": _STEPS,
        }


def gamma(
    reference: Dose,
    evaluated: Dose,
    *,
    dose_percent: float = 3.0,
    distance_mm: float = 3.0,
    local: bool = False,
    threshold_percent: float = 10.0,
    max_gamma: float = 2.0,
    mask: Mask | None = None,
    maximum_gy: float | None = None,
    sigmas: float = 0.0,
) -> GammaResult:
    """Gamma after Low et al., Med Phys 25:656 (1998), of `evaluated` at the voxels of `reference`.

    Voxels with at least `threshold_percent` of `maximum_gy` (the reference's maximum by default)
    and, where given, inside `mask` on the reference grid are compared. The evaluated dose is
    interpolated trilinearly at points a tenth of `distance_mm` apart, out to `max_gamma` times the
    distance, and never beyond its outermost voxel centres; a voxel with no such point is `outside`.
    With `sigmas` the dose criterion c of each point becomes `sqrt(c^2 + (sigmas sigma)^2)`, sigma^2
    being the sum of both doses' variances there. Two planes (one voxel along the same axis) are compared in
    two dimensions. Needs no more memory than a few copies of the doses.
    Raises InputError for settings out of range, CaseError where no point is to be compared and for planes
    that are not the same.
    """
    _check(dose_percent, distance_mm, threshold_percent, max_gamma, sigmas)
    top = float(reference.gy.max()) if maximum_gy is None else float(maximum_gy)
    if not top > 0:
        raise CaseError(f"gamma: the dose that counts as 100 % is {top:g} Gy; a positive dose is needed")
    compared = reference.gy >= threshold_percent / 100 * top
    if local:
        compared &= reference.gy > 0
    if mask is not None:
        if mask.shape != reference.grid.shape:
            raise CaseError(f"gamma: mask of shape {mask.shape} does not fit the grid {reference.grid.shape}")
        compared &= mask
    flat = np.flatnonzero(compared)
    if flat.size == 0:
        raise CaseError(
            f"gamma: no voxel of the reference reaches {threshold_percent:g} % of {top:g} Gy; "
            "lower the threshold or compare the right doses"
        )
    points = reference.grid.points_mm(flat)
    dose = reference.gy.ravel()[flat].astype(np.float64)
    criterion = dose_percent / 100 * (dose if local else np.full_like(dose, top))
    if sigmas > 0:
        criterion = np.sqrt(criterion**2 + sigmas**2 * _variance(reference, evaluated, flat, points))
    index = evaluated.grid.index(points)
    if (across := _common_plane(reference.grid, evaluated.grid)) is not None:
        index[:, across] = 0.0
    values = _search_all(
        evaluated, index, dose, criterion, distance_mm=distance_mm, max_gamma=max_gamma, top_gy=top
    )
    whole = np.full(reference.grid.shape, np.nan, np.float32)
    whole.ravel()[flat] = values
    found = np.isfinite(values)
    values = values[found]
    if values.size == 0:
        raise CaseError(
            "gamma: the evaluated dose lies nowhere near the reference; compare doses of one patient"
        )
    return GammaResult(
        grid=reference.grid,
        map=whole,
        points=int(values.size),
        outside=int(found.size - values.size),
        pass_percent=100.0 * float(np.count_nonzero(values <= 1.0)) / values.size,
        mean=float(values.mean(dtype=np.float64)),
        dose_percent=dose_percent,
        distance_mm=distance_mm,
        local=local,
        threshold_percent=threshold_percent,
        max_gamma=max_gamma,
        maximum_gy=top,
        sigmas=sigmas,
    )


def _common_plane(reference: Grid, evaluated: Grid) -> int | None:
    """The array axis across which two doses of one plane lie; None where the evaluated dose is a volume.

    Raises CaseError for planes that lie otherwise or apart, and for a volume against a plane.
    """
    ours, theirs = ([axis for axis, n in enumerate(grid.shape) if n == 1] for grid in (reference, evaluated))
    if len(theirs) != 1 or len(ours) > 1:
        return None
    if not ours:
        raise CaseError(
            "gamma: the reference is a volume, the evaluated dose one plane; give the plane as the reference"
        )
    if ours != theirs:
        named = (("axial", "coronal", "sagittal")[axes[0]] for axes in (ours, theirs))
        raise CaseError(
            "gamma: the reference plane is {}, the evaluated one {}; compare like with like".format(*named)
        )
    k = 2 - ours[0]
    apart = abs(reference.origin_mm[k] - evaluated.origin_mm[k])
    if apart > _PLANES_APART_MM:
        raise CaseError(
            f"gamma: the planes lie {apart:.2f} mm apart along {'xyz'[k]} ({reference.origin_mm[k]:g} and "
            f"{evaluated.origin_mm[k]:g} mm), more than {_PLANES_APART_MM:g} mm; export the same plane"
        )
    return ours[0]


def _check(dose_percent: float, distance_mm: float, threshold: float, most: float, sigmas: float) -> None:
    for name, value, low, high in (
        ("dose criterion in percent", dose_percent, 0.01, 100.0),
        ("distance criterion in mm", distance_mm, 0.01, 100.0),
        ("threshold in percent", threshold, 0.0, 100.0),
        ("largest gamma", most, 1.1, 10.0),
        ("number of sigmas", sigmas, 0.0, 5.0),
    ):
        if not low <= value <= high:
            raise InputError(f"gamma: {name} {value:g} is outside {low:g} to {high:g}; 3 %/3 mm is usual")


def _variance(reference: Dose, evaluated: Dose, flat: NDArray, points: NDArray) -> NDArray[np.float64]:
    """Sum of both doses' variances in Gy^2 at the compared voxels; a dose without sigma adds nothing."""
    out = np.zeros(len(flat))
    if reference.std_gy is not None:
        out += reference.std_gy.ravel()[flat].astype(np.float64) ** 2
    if evaluated.std_gy is not None:
        out += sample(evaluated.std_gy, evaluated.grid, points) ** 2
    return out


def _search_all(
    evaluated: Dose,
    index: NDArray[np.float64],
    dose: NDArray[np.float64],
    criterion: NDArray[np.float64],
    *,
    distance_mm: float,
    max_gamma: float,
    top_gy: float,
) -> NDArray[np.float32]:
    """Gamma at fractional indices `(z, y, x)` of the evaluated grid."""
    spacing = np.array(evaluated.grid.spacing_mm)[::-1]
    gy = np.ascontiguousarray(evaluated.gy, np.float32)
    offset_mm, square = _positions(gy.shape, distance_mm, max_gamma)
    reach = np.ceil(max_gamma * distance_mm / spacing + 0.5).astype(int)
    size = tuple(2 * np.minimum(reach, np.array(gy.shape)) + 1)
    nearest = tuple(np.clip(np.rint(index), 0, np.array(gy.shape) - 1).astype(np.intp).T)
    # No dose within reach comes nearer to the reference than this: a bound for the early exit.
    short = dose - ndimage.maximum_filter(gy, size, mode="nearest")[nearest]
    over = ndimage.minimum_filter(gy, size, mode="nearest")[nearest] - dose
    least = (np.maximum(np.maximum(short, over), 0.0) / criterion) ** 2
    limit = 2 * np.minimum(criterion, _BAND * top_gy)
    jump = _spikes(gy, spacing, distance_mm / _STEPS, top_gy)
    steep = np.zeros(len(dose), bool)
    if jump.max() > limit.min():
        steep = ndimage.maximum_filter(jump, size, mode="nearest")[nearest] > limit
    out = np.empty(len(dose), np.float32)
    _search(
        gy, index, dose, 1.0 / criterion, least, steep, jump, limit, offset_mm / spacing, square,
        spacing / distance_mm, max_gamma**2, out,
    )  # fmt: skip
    return out


def _spikes(gy: NDArray[np.float32], spacing: NDArray, step_mm: float, top_gy: float) -> NDArray[np.float32]:
    """The most that the dose changes along an axis over one step of the search, at spikes; elsewhere 0.

    A spike differs from both its neighbours along an axis, in one sense, by over `_SPIKE` of the maximum.
    """
    change, height = np.zeros_like(gy), np.zeros_like(gy)
    for axis, mm in enumerate(spacing):
        if gy.shape[axis] > 1:
            around = np.pad(gy, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
            step = np.diff(around, axis=axis)
            before, after = (np.take(step, np.arange(n, n + gy.shape[axis]), axis) for n in (0, 1))
            share = np.float32(min(step_mm / mm, 1.0))
            change = np.maximum(change, share * np.maximum(np.abs(before), np.abs(after)))
            same = np.minimum(np.abs(before), np.abs(after)) * (before * after < 0)
            height = np.maximum(height, same)
    return np.where(height > _SPIKE * top_gy, change, np.float32(0))


def _positions(
    shape: tuple[int, ...], distance_mm: float, max_gamma: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Offsets `(n, 3)` in mm as (z, y, x): spheres, or circles in the plane of a dose of one plane."""
    flat = [axis for axis, n in enumerate(shape) if n == 1]
    if len(flat) != 1:
        return _shells(distance_mm, max_gamma)
    rows, lengths = [np.zeros((1, 2))], [0]
    for k in range(1, math.ceil(max_gamma * _STEPS - 1e-9)):
        count = math.ceil(2 * math.pi * k) + 1
        angle = 2 * math.pi * np.arange(count) / count
        rows.append(k * np.stack([np.cos(angle), np.sin(angle)], axis=1))
        lengths += [k] * count
    circles = np.insert(np.concatenate(rows), flat[0], 0.0, axis=1)
    return circles * (distance_mm / _STEPS), (np.array(lengths) / _STEPS) ** 2


def _shells(distance_mm: float, max_gamma: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Offsets `(n, 3)` in mm within reach, nearest first, and their squared length over the criterion's.

    Spheres a tenth of the criterion apart, in rows of points no farther apart than that: the positions
    of pymedphys, so that both find the same gamma. Those at `max_gamma` itself could not lower it.
    """
    shells, lengths = [np.zeros((1, 3))], [0]
    for k in range(1, math.ceil(max_gamma * _STEPS - 1e-9)):
        for elevation in np.linspace(0.0, math.pi, math.ceil(math.pi * k) + 1):
            count = math.ceil(2 * math.pi * k * math.sin(elevation)) + 1
            azimuth = 2 * math.pi * np.arange(count) / count
            row = np.empty((count, 3))
            row[:, 0] = k * math.sin(elevation) * np.cos(azimuth)
            row[:, 1] = k * math.sin(elevation) * np.sin(azimuth)
            row[:, 2] = k * math.cos(elevation)
            shells.append(row)
            lengths += [k] * count
    return np.concatenate(shells) * (distance_mm / _STEPS), (np.array(lengths) / _STEPS) ** 2


@numba.njit(parallel=True, cache=True, error_model="numpy")
def _search(  # type: ignore[no-untyped-def]
    gy, index, dose, per_criterion, least, steep, jump, limit, offsets, square, unit, most, out
):
    """Walks outwards from each point until no farther dose could give a smaller gamma: exact."""
    nz, ny, nx = gy.shape
    flat = gy.ravel()
    reach_z, reach_y, reach_x = offsets[:, 0].max(), offsets[:, 1].max(), offsets[:, 2].max()
    for part in numba.prange(_PARTS):
        for p in range(part, len(dose), _PARTS):
            z0, y0, x0 = index[p, 0], index[p, 1], index[p, 2]
            wanted, scale, bound = dose[p], per_criterion[p], least[p]
            inner = z0 >= reach_z and y0 >= reach_y and x0 >= reach_x
            inner = inner and z0 + reach_z < nz - 1 and y0 + reach_y < ny - 1 and x0 + reach_x < nx - 1
            best = most
            known = False
            if steep[p]:
                best = _at_spikes(gy, jump, limit[p], index[p], wanted, scale, unit, most)
                known = best < most
            for k in range(len(square)):
                if known and square[k] + bound >= best:
                    break
                z, y, x = z0 + offsets[k, 0], y0 + offsets[k, 1], x0 + offsets[k, 2]
                if not inner:
                    if z < -_EDGE or y < -_EDGE or x < -_EDGE:
                        continue
                    if z > nz - 1 + _EDGE or y > ny - 1 + _EDGE or x > nx - 1 + _EDGE:
                        continue
                known = True
                i, j, m = int(z), int(y), int(x)
                at = (i * ny + j) * nx + m
                # Beyond the last voxel centre there is no voxel; its weight is 0 up to rounding.
                dz = ny * nx if i + 1 < nz else 0
                dy = nx if j + 1 < ny else 0
                dx = 1 if m + 1 < nx else 0
                a, b, c = z - i, y - j, x - m
                near = flat[at] + c * (flat[at + dx] - flat[at])
                side = flat[at + dy] + c * (flat[at + dy + dx] - flat[at + dy])
                low = near + b * (side - near)
                at += dz
                near = flat[at] + c * (flat[at + dx] - flat[at])
                side = flat[at + dy] + c * (flat[at + dy + dx] - flat[at + dy])
                high = near + b * (side - near)
                difference = (low + a * (high - low) - wanted) * scale
                found = square[k] + difference * difference
                if found < best:
                    best = found
            out[p] = math.sqrt(best) if known else math.nan


@numba.njit(cache=True, error_model="numpy")
def _at_spikes(gy, jump, limit, at, wanted, scale, unit, most):  # type: ignore[no-untyped-def]
    """The least squared gamma over spikes within reach and the lines to their neighbours, or `most`.

    Along such a line the interpolated dose is linear, so the minimum is exact. `unit` is the spacing over the
    distance criterion. This finds what lies between the searched positions: a single hot voxel, a thin sheet.
    """
    best = most
    reach = math.sqrt(most)
    first, last = np.empty(3, np.int64), np.empty(3, np.int64)
    for a in range(3):
        first[a] = max(math.floor(at[a] - reach / unit[a]), 0)
        last[a] = min(math.ceil(at[a] + reach / unit[a]), gy.shape[a] - 1)
    for i in range(first[0], last[0] + 1):
        for j in range(first[1], last[1] + 1):
            for k in range(first[2], last[2] + 1):
                if jump[i, j, k] <= limit:
                    continue
                away = ((i - at[0]) * unit[0], (j - at[1]) * unit[1], (k - at[2]) * unit[2])
                square = away[0] ** 2 + away[1] ** 2 + away[2] ** 2
                here = (gy[i, j, k] - wanted) * scale
                best = min(best, square + here * here)
                for a in range(3):
                    for side in (-1, 1):
                        to = (i + side * (a == 0), j + side * (a == 1), k + side * (a == 2))
                        if to[a] < 0 or to[a] >= gy.shape[a]:
                            continue
                        step = side * unit[a]
                        rise = (gy[to] - gy[i, j, k]) * scale
                        share = -(away[a] * step + here * rise) / (step * step + rise * rise)
                        if 0.0 < share < 1.0:
                            found = square + share * step * (2 * away[a] + share * step)
                            best = min(best, found + (here + share * rise) ** 2)
    return max(best, 0.0)
