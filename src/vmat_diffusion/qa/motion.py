"""The rigid motion that explains the difference of two doses best: a shift, and a turn about the isocentre.

A displaced isocentre, a gantry offset or a turned couch move the dose as a whole. Gamma forgives motions
below its distance criterion; this fit does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vmat_diffusion.geometry import Grid, Mask, Point

# Noise is smoothed away, of both doses alike, so that neither edge is wider than the other.
_SMOOTHING_MM = 3.0
# Build-up and the outermost voxels of the body say more about the engines than about the place of the dose.
_SKIN_MM = 8.0
# Fits to the doses moved by the fit before; the third changes nothing that counts.
_ROUNDS, _REWEIGHTINGS = 3, 6
_FEWEST_VOXELS = 100
# A unit of change that moves doses by less than this share of the reference dose cannot be seen.
_LEAST_CHANGE = 5e-4


@dataclass(frozen=True)
class Motion:
    """How the planned dose must be moved to lie on the independent one.

    `shift_mm` is along x, y and z at the isocentre, `turn_deg` about the axes x, y and z through it;
    `shift_sigma_mm` and `turn_sigma_deg` are the standard errors of the least certain axis. `voxels` took
    part. `changes` are the shares of changes beside a motion, each with its standard error by the replicates
    or the residuals, whichever is more, and by the residuals alone.
    """

    shift_mm: Point
    turn_deg: Point
    shift_sigma_mm: float
    turn_sigma_deg: float
    voxels: int
    changes: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    length_error_mm: float | None = None
    angle_error_deg: float | None = None

    @property
    def length_mm(self) -> float:
        """Length of the shift."""
        return float(np.linalg.norm(self.shift_mm))

    @property
    def angle_deg(self) -> float:
        """Angle of the turn."""
        return float(np.linalg.norm(self.turn_deg))


def fitted_motion(
    grid: Grid,
    planned_gy: NDArray,
    check_gy: NDArray,
    tissue: Mask,
    isocenter_mm: Point,
    *,
    reference_gy: float,
    least_percent: float = 30.0,
    changes: Mapping[str, NDArray] | None = None,
    replicates_gy: NDArray | None = None,
) -> Motion | None:
    """The motion that carries `planned_gy` onto `check_gy`, both `[z, y, x]` on `grid`, by least squares.

    To first order a dose that is moved by s and turned by w differs by -grad(D) . (s + w x r); a common
    factor is fitted beside them. Voxels of tissue count below the skin where either dose has at least
    `least_percent` of `reference_gy`. `changes` are further changes of the dose by name, in Gy per unit of
    something, that are fitted with it; those too small to matter are left out. None where too few voxels are
    left, or the dose does not vary. `replicates_gy` are independent doses whose mean is `check_gy`: standard
    errors then hold what noise has in common between voxels; those of `changes` are never below what the
    residuals of the fit make of them.
    """
    widths = _SMOOTHING_MM / np.array(grid.spacing_mm)[::-1]
    padded = np.pad(tissue, 1)
    depth = ndimage.distance_transform_edt(padded, sampling=grid.spacing_mm[::-1])[1:-1, 1:-1, 1:-1]
    planned, check = (
        ndimage.gaussian_filter(np.asarray(d, np.float64), widths) for d in (planned_gy, check_gy)
    )
    inside = (depth > _SKIN_MM) & (np.maximum(planned, check) >= least_percent / 100 * reference_gy)
    if np.count_nonzero(inside) < _FEWEST_VOXELS:
        return None
    arms = _arms_mm(grid, inside, isocenter_mm)
    further = {
        n: ndimage.gaussian_filter(np.asarray(d, np.float64), widths)[inside]
        for n, d in (changes or {}).items()
    }
    least_gy = _LEAST_CHANGE * reference_gy
    further = {n: d for n, d in further.items() if float(np.sqrt(np.mean(d**2))) > least_gy}
    beside = np.stack(list(further.values()), axis=1) if further else np.zeros((int(inside.sum()), 0))
    whole = np.zeros(6)
    for _ in range(_ROUNDS):
        moved = planned if not whole.any() else _moved(planned, grid, whole, isocenter_mm)
        step = _step(_columns(grid, moved, inside, arms, beside), (check - moved)[inside])
        if step is None:
            return None
        whole, last = whole + step.found[:6], step
        # A fit that runs away has nothing to hold on to; it is a large motion all the same.
        if np.abs(whole[:3]).max() > 30.0:
            break
    sigma = last.sigma
    lengths: tuple[float | None, float | None] = (None, None)
    if replicates_gy is not None:
        noise = _noise(replicates_gy, check_gy, last.estimator, inside, widths)
        errors = noise.std(axis=0, ddof=1) / np.sqrt(len(noise))
        sigma = np.concatenate([errors[:6], np.maximum(errors, sigma)[6:]])
        turned = float(np.degrees(_error_along(noise[:, 3:6], whole[3:])))
        lengths = _error_along(noise[:, :3], whole[:3]), turned
    shift, turn = whole[:3], np.degrees(whole[3:])
    return Motion(
        (float(shift[0]), float(shift[1]), float(shift[2])),
        (float(turn[0]), float(turn[1]), float(turn[2])),
        float(sigma[:3].max()),
        float(np.degrees(sigma[3:6]).max()),
        int(np.count_nonzero(inside)),
        {
            name: (float(last.found[7 + k]), float(sigma[7 + k]), float(last.sigma[7 + k]))
            for k, name in enumerate(further)
        },
        *lengths,
    )


def _noise(
    replicates_gy: NDArray, check_gy: NDArray, estimator: NDArray, inside: Mask, widths: NDArray
) -> NDArray[np.float64]:
    """What a fit finds in the noise of each of the doses whose mean is `check_gy`, `(doses, columns)`."""
    # Only the box of the voxels that take part, and what the smoothing reaches.
    reach = np.ceil(4.0 * widths).astype(int)
    where = [np.flatnonzero(inside.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = tuple(slice(max(w[0] - r, 0), w[-1] + r + 1) for w, r in zip(where, reach, strict=True))
    part, usual = inside[box], check_gy[box].astype(np.float32)
    return np.array(
        [estimator @ ndimage.gaussian_filter(gy[box] - usual, widths)[part] for gy in replicates_gy]
    )


def _error_along(noise: NDArray, vector: NDArray) -> float:
    """The standard error of a vector's length, from its parts in several doses."""
    length = float(np.linalg.norm(vector))
    # A vector that is all noise has no direction; its least certain axis stands for it.
    along = noise @ (vector / length) if length > 0 else noise[:, np.argmax(noise.std(axis=0))]
    return float(along.std(ddof=1) / np.sqrt(len(noise)))


def _arms_mm(grid: Grid, inside: Mask, isocenter_mm: Point) -> NDArray[np.float64]:
    """From the isocentre to the voxels `inside`, `(n, 3)` as x, y, z."""
    return grid.points_mm(np.flatnonzero(inside)) - np.asarray(isocenter_mm)


def _columns(
    grid: Grid, planned: NDArray, inside: Mask, arms: NDArray, beside: NDArray
) -> NDArray[np.float64]:
    """What a shift in mm, a turn in radians, a factor, and the changes `beside` do to each voxel."""
    x, y, z = grid.spacing_mm
    slopes = np.stack([g[inside] for g in np.gradient(planned, z, y, x)[::-1]], axis=1)
    # grad . (w x r) = w . (r x grad)
    return np.concatenate([-slopes, -np.cross(arms, slopes), planned[inside][:, None], beside], axis=1)


@dataclass(frozen=True, eq=False)
class _Fit:
    """What a fit finds, its standard errors by its residuals, and `estimator @ wanted`, which finds it."""

    found: NDArray[np.float64]
    sigma: NDArray[np.float64]
    estimator: NDArray[np.float64]


def _step(columns: NDArray, wanted: NDArray) -> _Fit | None:
    """The share of each column in what is wanted, by reweighted least squares."""
    scale = np.linalg.norm(columns, axis=0)
    if not (scale > 0).all():
        return None
    columns = columns / scale
    weights = np.ones(len(wanted))
    for _ in range(_REWEIGHTINGS):
        weighted = (columns * weights[:, None]).T
        # What the dose does not show, such as a turn of a sphere, stays at zero.
        inverse = np.linalg.pinv(weighted @ columns, rcond=1e-5, hermitian=True)
        found = inverse @ (weighted @ wanted)
        left = wanted - columns @ found
        spread = max(1.4826 * float(np.median(np.abs(left))), 1e-9)
        weights = 1.0 / (1.0 + (left / (2.0 * spread)) ** 2)
    sigma = np.sqrt(np.maximum(np.diag(inverse), 0.0)) * spread
    return _Fit(found / scale, sigma / scale, inverse @ weighted / scale[:, None])


def _moved(gy: NDArray, grid: Grid, motion: NDArray, isocenter_mm: Point) -> NDArray[np.float64]:
    """The dose after the motion: each voxel takes the value of the place that moves onto it."""
    turned = _rotation(-motion[3:])
    points = grid.points_mm(np.arange(gy.size)) - np.asarray(isocenter_mm) - motion[:3]
    index = grid.index(points @ turned.T + np.asarray(isocenter_mm))
    out = ndimage.map_coordinates(gy, index.T, order=1, mode="nearest")
    return np.asarray(out, np.float64).reshape(gy.shape)


def _rotation(turn: NDArray) -> NDArray[np.float64]:
    """The matrix of a turn about an axis by the length of `turn`, radians."""
    x, y, z = turn
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    angle = float(np.linalg.norm(turn))
    if angle < 1e-12:
        return np.eye(3)
    k = cross / angle
    return np.asarray(np.eye(3) + np.sin(angle) * k + (1.0 - np.cos(angle)) * (k @ k))
