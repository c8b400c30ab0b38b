"""Resampling of a case to the grid of a training case, and of a dose back to the case's grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose, Structure
from vmat_diffusion.dataset.cases import TrainingCase
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import (
    Grid,
    Mask,
    Point,
    average_onto,
    bounding_box,
    mask_bounds_mm,
    resample,
    subgrid,
)
from vmat_diffusion.plan import Plan

AIR_HU = -1000
_HU_MAX = 32767  # the limit of int16; only metal on an extended scale exceeds it
# The volume must contain dose above this share of the maximum.
DOSE_SHARE = 0.1
# A voxel counts as empty or full if its filled share is within this of 0 or 1: rounding of float32.
_FILLED = 1e-4


def on_spacing(case: Case, spacing_mm: Point, plan: Plan | None = None) -> TrainingCase:
    """The whole body on a grid of `spacing_mm`; a voxel corner lies at the middle of the targets.

    HU are averaged along axes that get coarser and interpolated along those that get finer, dose is that
    at the voxel centres as in a DVH, masks keep their volume. Raises CaseError for a case without targets
    or without voxels in them.
    """
    grid = _centred_grid(case, spacing_mm)
    structures = {
        name: replace(s, mask=mask_onto(s.mask, case.grid, grid)) for name, s in case.structures.items()
    }
    body = next(s for s in structures.values() if s.role == "body")
    dose = case.reference_dose
    possible = body.mask
    if dose is not None:
        dose, possible = dose_inside(dose, grid, body.mask)
    hu = onto(case.hu, case.grid, grid, fill=AIR_HU)
    source = case.source
    if over := int(np.count_nonzero(hu > _HU_MAX)):
        source = replace(
            source, steps=(*source.steps, f"clip-hu: {over} voxels above {_HU_MAX} HU set to it")
        )
    whole = np.rint(np.clip(hu, -_HU_MAX, _HU_MAX)).astype(np.int16)
    resampled = replace(case, grid=grid, hu=whole, structures=structures, reference_dose=dose, source=source)
    return TrainingCase(resampled, possible, plan)


def _centred_grid(case: Case, spacing_mm: Point) -> Grid:
    """A grid over the body, a voxel corner of which lies at the middle of the targets' box."""
    low, high = mask_bounds_mm(case.body.mask, case.grid)
    middle = target_middle_mm(case)
    before = [
        max(int(np.ceil((m - a) / s - 1e-6)), 1) for m, a, s in zip(middle, low, spacing_mm, strict=True)
    ]
    after = [
        max(int(np.ceil((b - m) / s - 1e-6)), 1) for m, b, s in zip(middle, high, spacing_mm, strict=True)
    ]
    shape = tuple(a + b for a, b in zip(before, after, strict=True))[::-1]
    origin = tuple(m - (n - 0.5) * s for m, n, s in zip(middle, before, spacing_mm, strict=True))
    return Grid(shape, tuple(spacing_mm), origin)  # type: ignore[arg-type]


def targets_mask(case: Case) -> Mask:
    """All targets together. Raises CaseError where there is none or none has voxels."""
    union = np.zeros(case.grid.shape, bool)
    for target in case.targets:
        union |= target.mask
    if not union.any():
        raise CaseError("no target is contoured; contour one or name it in the mapping")
    return union


def target_middle_mm(case: Case) -> Point:
    """The middle (x, y, z) of the box around all targets."""
    low, high = mask_bounds_mm(targets_mask(case), case.grid)
    x, y, z = ((a + b) / 2 for a, b in zip(low, high, strict=True))
    return x, y, z


def onto(values: NDArray, source: Grid, target: Grid, *, fill: float = 0.0) -> NDArray[np.float32]:
    """Values on another grid: means over the voxels along axes that get coarser, else interpolated."""
    coarser = [t > s for s, t in zip(source.spacing_mm, target.spacing_mm, strict=True)]
    between = Grid(
        tuple(  # type: ignore[arg-type]
            t if c else s for s, t, c in zip(source.shape, target.shape, coarser[::-1], strict=True)
        ),
        tuple(t if c else s for s, t, c in zip(source.spacing_mm, target.spacing_mm, coarser, strict=True)),  # type: ignore[arg-type]
        tuple(t if c else s for s, t, c in zip(source.origin_mm, target.origin_mm, coarser, strict=True)),  # type: ignore[arg-type]
    )
    if any(coarser):
        values = average_onto(values, source, between, fill=fill)
    return resample(values, between, target, fill=fill)


def dose_inside(dose: Dose, grid: Grid, body: Mask) -> tuple[Dose, Mask]:
    """A dose on the grid of a training case, 0 outside the body, and the mask of possible dose."""
    possible = body & _covered(dose.grid, grid)
    gy = np.where(possible, np.maximum(dose.on(grid), 0), np.float32(0))
    return replace(dose, grid=grid, gy=gy, std_gy=None), possible


def mask_onto(mask: Mask, source: Grid, target: Grid) -> Mask:
    """A structure on another grid with the same volume, to within half a voxel, in every part along z.

    The number of voxels in each slice is the structure's volume in it over the voxel volume; the fraction
    is carried to the next slice. So the ends of a structure, where slices are filled in part, keep their
    share of the volume, and the structure its mean dose. Within a slice the voxels with the largest filled
    share come first, then those nearest to the inside, then those nearest to the middle.
    """
    out = np.zeros(target.shape, bool)
    box = bounding_box(mask)
    if box is None:
        return out
    grown = tuple(
        slice(max(b.start - 1, 0), min(b.stop + 1, n)) for b, n in zip(box, mask.shape, strict=True)
    )
    part, own = mask[grown], subgrid(source, grown)
    first, last = (target.index(np.array(corner)) for corner in own.bounds_mm)
    inner = tuple(
        slice(max(int(np.floor(a)) - 1, 0), min(int(np.ceil(b)) + 2, n))
        for a, b, n in zip(first, last, target.shape, strict=True)
    )
    if any(s.start >= s.stop for s in inner):
        return out
    small = subgrid(target, inner)
    filled = average_onto(part, own, small)
    inside = onto(part, own, small)
    carry = 0.0
    for k, shares in enumerate(filled):
        taken = shares > 1 - _FILLED
        y, x = np.nonzero((shares > _FILLED) & ~taken)
        carry += float(shares.sum(dtype=np.float64)) - np.count_nonzero(taken)
        count = min(max(round(carry), 0), len(y))
        carry -= count
        if count:
            away = (y - y.mean()) ** 2 + (x - x.mean()) ** 2
            rank = shares[y, x] + 0.01 * inside[k, y, x] - 1e-6 * away / (1 + away.max())
            best = np.argsort(-rank, kind="stable")[:count]
            taken[y[best], x[best]] = True
        out[inner[0].start + k, inner[1], inner[2]] = taken
    return out


def _covered(inner: Grid, grid: Grid) -> Mask:
    """Voxels of `grid` whose centres lie inside the outer border of `inner`."""
    low, high = inner.bounds_mm
    x, y, z = ((a > lo) & (a < hi) for a, lo, hi in zip(grid.axes_mm, low, high, strict=True))
    return z[:, None, None] & y[None, :, None] & x[None, None, :]


@dataclass(frozen=True)
class Extent:
    """The extent of a case from the middle of its targets, in mm as (x, y, z), the larger side each.

    `targets_mm` contains the targets, which must not be cut; `wanted_mm` also the organs and the dose.
    """

    targets_mm: Point
    wanted_mm: Point


def extent_of(training: TrainingCase) -> Extent:
    """The extent of a case from the middle of its targets; the body itself does not count."""
    case = training.case
    targets = targets_mask(case)
    wanted = targets.copy()
    for structure in case.structures.values():
        if structure.role == "organ":
            wanted |= structure.mask
    if (dose := case.reference_dose) is not None:
        wanted |= dose.gy > DOSE_SHARE * dose.gy.max()
    middle = target_middle_mm(case)

    def reach(mask: Mask) -> Point:
        low, high = mask_bounds_mm(mask, case.grid)
        x, y, z = (max(m - a, b - m) for m, a, b in zip(middle, low, high, strict=True))
        return x, y, z

    return Extent(reach(targets), reach(wanted))


def common_shape(
    extents: Sequence[Extent],
    spacing_mm: Point,
    *,
    percentile: float = 95.0,
    multiple: tuple[int, int, int] = (8, 16, 16),
) -> tuple[int, int, int]:
    """The shape (z, y, x) that holds the wanted extent of `percentile` of the cases, and all targets.

    Rounded up to a `multiple` of voxels, which networks that halve the grid need.
    """
    if not extents:
        raise CaseError("no case is left to find a common shape for; see rejected.csv")
    shape = []
    for axis, step in enumerate(spacing_mm):
        wanted = np.percentile([e.wanted_mm[axis] for e in extents], percentile, method="higher")
        half = max(float(wanted), max(e.targets_mm[axis] for e in extents))
        shape.append(2 * int(np.ceil(half / step - 1e-6)))
    z, y, x = (int(np.ceil(n / m)) * m for n, m in zip(shape[::-1], multiple, strict=True))
    return z, y, x


def cut_to(training: TrainingCase, shape: tuple[int, int, int]) -> tuple[TrainingCase, Mapping[str, float]]:
    """The case cut or padded to `shape` around the middle of its targets, and the losses of structures.

    The second value is the percentage of voxels that each structure but the body lost, if any. Raises
    CaseError if a target would be cut.
    """
    case, grid = training.case, training.case.grid
    middle = grid.index(np.array(target_middle_mm(case)))
    start = [round(float(m) + 0.5 - n / 2) for m, n in zip(middle, shape, strict=True)]
    old, new, padding = [], [], []
    for first, n, have in zip(start, shape, grid.shape, strict=True):
        low, high = max(first, 0), min(first + n, have)
        old.append(slice(low, high))
        new.append(slice(low - first, high - first))
        padding.append((low - first, first + n - high))
    inside, place = tuple(old), tuple(new)

    def cut(values: NDArray, fill: float = 0) -> NDArray:
        out = np.full(shape, fill, values.dtype)
        out[place] = values[inside]
        return out

    origin = tuple(
        o + s * first for o, s, first in zip(grid.origin_mm, grid.spacing_mm, start[::-1], strict=True)
    )
    smaller = Grid(shape, grid.spacing_mm, origin)  # type: ignore[arg-type]
    structures = {n: Structure(n, s.role, cut(s.mask), s.alias) for n, s in case.structures.items()}
    lost = {
        name: 100.0 * (1 - structures[name].voxels / s.voxels)
        for name, s in case.structures.items()
        if s.role != "body" and structures[name].voxels < s.voxels
    }
    for target in case.targets:
        if target.name in lost:
            raise CaseError(
                f"{target.name} would lose {lost[target.name]:.3g} % of its voxels in a volume of shape "
                f"{shape}; give a larger --shape"
            )
    dose = case.reference_dose
    if dose is not None:
        dose = replace(dose, grid=smaller, gy=cut(dose.gy))
    # A structure without voxels is absent: far away for a network, not empty.
    structures = {n: s for n, s in structures.items() if s.role == "body" or s.voxels}
    done = replace(case, grid=smaller, hu=cut(case.hu, AIR_HU), structures=structures, reference_dose=dose)
    return (
        replace(
            training,
            case=done,
            possible_dose=cut(training.possible_dose),
            padding=tuple((int(a), int(b)) for a, b in padding),  # type: ignore[arg-type]
        ),
        lost,
    )


def restore_dose(dose: Dose, grid: Grid) -> Dose:
    """A dose on the grid of a training case, on the grid of its source; 0 where the case was cut."""
    if dose.grid.matches(grid):
        return dose
    return replace(dose, grid=grid, gy=dose.on(grid), std_gy=None)
