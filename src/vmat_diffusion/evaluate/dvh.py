"""Dose-volume histograms of structures.

Dose is interpolated at the voxels of the structure on the grid of its mask: the result depends on the CT
and the contours, not on the dose grid. See `docs/dvh.md`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike, NDArray

from vmat_diffusion.case import Dose, Structure
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid, bounding_box, resample_dose, subgrid

VoxelDoses = Float[np.ndarray, " n"]

# Voxels interpolated at a time: 4 MB of float32, so that a body on a 512 x 512 CT costs no more memory.
_SLAB_VOXELS = 1_000_000


@dataclass(frozen=True, eq=False)
class Dvh:
    """The cumulative dose-volume histogram of one structure, exact to the voxel.

    `gy[n]` holds the dose of every voxel in Gy, descending; all voxels have the volume `voxel_cc`.
    Build one with `structure_dvh` or `Dvh.of`.
    """

    gy: VoxelDoses
    voxel_cc: float

    def __post_init__(self) -> None:
        if self.gy.ndim != 1 or self.gy.size == 0:
            raise CaseError("a DVH needs the dose of at least one voxel; the structure is empty on this grid")
        if not self.voxel_cc > 0:
            raise CaseError(f"voxel volume {self.voxel_cc} cc must be positive")

    @classmethod
    def of(cls, gy: ArrayLike, voxel_cc: float) -> Dvh:
        """A DVH from voxel doses in Gy in any order."""
        values = np.ravel(gy)
        if not np.issubdtype(values.dtype, np.floating):
            values = values.astype(np.float64)
        return cls(np.sort(values)[::-1], voxel_cc)

    @property
    def volume_cc(self) -> float:
        """Volume of the structure: its voxels times their volume."""
        return self.gy.size * self.voxel_cc

    @property
    def mean_gy(self) -> float:
        """Mean dose."""
        return float(self.gy.mean(dtype=np.float64))

    def geud_gy(self, exponent: float) -> float:
        """Generalised equivalent uniform dose, the power mean: 1 is the mean, large ones near the maximum.

        Negative exponents, for targets, near the minimum; 0 where a voxel has none. Niemierko, Med Phys
        26:1100 (1999).
        """
        top = self.max_gy if exponent > 0 else self.min_gy
        if not top > 0:
            return 0.0
        return top * float(((self.gy.astype(np.float64) / top) ** exponent).mean() ** (1.0 / exponent))

    @property
    def std_gy(self) -> float:
        """Standard deviation of the dose over the structure."""
        return float(self.gy.std(dtype=np.float64))

    @property
    def max_gy(self) -> float:
        """Dose of the hottest voxel."""
        return float(self.gy[0])

    @property
    def min_gy(self) -> float:
        """Dose of the coldest voxel."""
        return float(self.gy[-1])

    def dose_at_cc_gy(self, volume_cc: float) -> float:
        """The least dose within the hottest `volume_cc`, as in D0.03cc.

        Voxel k (from 1, hottest first) stands at the middle of its volume, k - 1/2 voxels, and doses
        between are interpolated linearly. Volumes up to one voxel give the hottest voxel, volumes
        beyond the structure its coldest.
        """
        voxels = volume_cc / self.voxel_cc
        if not voxels >= 0:
            raise CaseError(f"D{volume_cc:g}cc: the volume must not be negative")
        if voxels <= 1.0 + 1e-9:
            return self.max_gy
        # The hottest voxel's knot is moved from 1/2 to 1, which keeps the curve continuous there.
        above = min(math.floor(voxels + 0.5), self.gy.size)
        if above >= self.gy.size:
            return self.min_gy
        knot = 1.0 if above == 1 else above - 0.5
        share = (voxels - knot) / (above + 0.5 - knot)
        return float((1 - share) * float(self.gy[above - 1]) + share * float(self.gy[above]))

    def dose_at_percent_gy(self, volume_percent: float) -> float:
        """The least dose within the hottest `volume_percent` of the structure, as in D95%."""
        if not 0 <= volume_percent <= 100:
            raise CaseError(f"D{volume_percent:g}%: the volume must lie between 0 and 100 %")
        return self.dose_at_cc_gy(volume_percent / 100 * self.volume_cc)

    def mean_of_hottest_gy(self, volume_cc: float) -> float:
        """The mean dose of the hottest `volume_cc`, the last voxel by the share of it that belongs to it.

        At least the hottest voxel; the mean of all for volumes beyond the structure.
        """
        return _mean_of_first(self.gy, volume_cc / self.voxel_cc)

    def mean_of_coldest_gy(self, volume_cc: float) -> float:
        """The mean dose of the coldest `volume_cc`, as `mean_of_hottest_gy`."""
        return _mean_of_first(self.gy[::-1], volume_cc / self.voxel_cc)

    def volume_at_dose_cc(self, dose_gy: ArrayLike) -> NDArray[np.float64]:
        """Volume in cc that receives at least `dose_gy`; any shape in, the same shape out."""
        return self._voxels_at(dose_gy) * self.voxel_cc

    def volume_at_dose_percent(self, dose_gy: ArrayLike) -> NDArray[np.float64]:
        """Share of the structure in percent that receives at least `dose_gy`."""
        return self._voxels_at(dose_gy) * (100.0 / self.gy.size)

    def curve(self, points: int = 400, max_gy: float | None = None) -> tuple[NDArray, NDArray]:
        """Dose in Gy, ascending from 0, and the percent of the volume that receives at least it."""
        top = max_gy if max_gy is not None else max(self.max_gy, 1e-6) * 1.02
        dose = np.linspace(0.0, top, points)
        return dose, self.volume_at_dose_percent(dose)

    def _voxels_at(self, dose_gy: ArrayLike) -> NDArray[np.float64]:
        # In the precision of the doses, so that a voxel at the level itself counts.
        dose = np.asarray(dose_gy, self.gy.dtype)
        return (self.gy.size - np.searchsorted(self.gy[::-1], dose, side="left")).astype(np.float64)


def _mean_of_first(gy: VoxelDoses, voxels: float) -> float:
    """The mean of so many doses from the first on; of a fraction of a voxel, that voxel."""
    voxels = min(max(voxels, 1.0), float(gy.size))
    whole = int(voxels + 1e-9)
    total = float(gy[:whole].sum(dtype=np.float64))
    rest = max(voxels - whole, 0.0)
    if rest > 0 and whole < gy.size:
        total += rest * float(gy[whole])
    return total / voxels


def structure_dvh(dose: Dose, structure: Structure, grid: Grid) -> Dvh:
    """The DVH of a structure whose mask lives on `grid`. Raises CaseError where it is empty."""
    if not structure.mask.any():
        raise CaseError(f"structure {structure.name} has no voxel on this grid; contour it or leave it out")
    return Dvh.of(structure_dose_gy(dose, structure, grid), grid.voxel_cc)


def structure_dose_gy(dose: Dose, structure: Structure, grid: Grid) -> NDArray[np.float32]:
    """Dose in Gy at each voxel of the structure, in C order of its mask on `grid`.

    Interpolated by `resample_dose`, in the bounding box of the mask only, slab by slab. Voxels outside
    the dose grid get 0 Gy: ask `outside_percent` how many there are.
    """
    if structure.mask.shape != grid.shape:
        raise CaseError(
            f"structure {structure.name}: mask of shape {structure.mask.shape} does not fit the grid "
            f"{grid.shape}"
        )
    box = bounding_box(structure.mask)
    if box is None:
        return np.zeros(0, np.float32)
    z, y, x = box
    rows = (y.stop - y.start) * (x.stop - x.start)
    step = max(1, _SLAB_VOXELS // rows)
    gy = np.asarray(dose.gy, np.float32)
    parts = []
    for first in range(z.start, z.stop, step):
        slab = (slice(first, min(first + step, z.stop)), y, x)
        parts.append(resample_dose(gy, dose.grid, subgrid(grid, slab))[structure.mask[slab]])
    return np.concatenate(parts)


def outside_percent(dose: Dose, structure: Structure, grid: Grid) -> float:
    """Percent of the structure's voxels whose centres lie outside the dose grid."""
    inside = [
        (axis >= low - 1e-6) & (axis <= high + 1e-6)
        for axis, low, high in zip(grid.axes_mm, *dose.grid.bounds_mm, strict=True)
    ]
    total = structure.voxels
    if total == 0 or all(axis.all() for axis in inside):
        return 0.0
    covered = structure.mask[np.ix_(inside[2], inside[1], inside[0])]
    return 100.0 * (1.0 - np.count_nonzero(covered) / total)


def isodose_volume_cc(dose: Dose, level_gy: float, body: Structure, grid: Grid) -> float:
    """Volume of the body, in cc on `grid`, that receives at least `level_gy`."""
    hot = bounding_box(dose.gy >= level_gy)
    if hot is None:
        return 0.0
    reach = []  # the grid's voxels within one dose voxel of the hot region
    for axis in range(3):
        k = 2 - axis
        step, origin = dose.grid.spacing_mm[k], dose.grid.origin_mm[k]
        centres = grid.axes_mm[k]
        low, high = origin + (hot[axis].start - 1) * step, origin + hot[axis].stop * step
        first, last = np.searchsorted(centres, (low, high + 1e-6))
        if first >= last:
            return 0.0
        reach.append(slice(int(first), int(last)))
    box = tuple(reach)
    part = Structure(body.name, "body", body.mask[box])
    return (
        float(np.count_nonzero(structure_dose_gy(dose, part, subgrid(grid, box)) >= level_gy)) * grid.voxel_cc
    )
