"""Where the pixels of a series lie, and the way from there to an axis-aligned grid.

A `Lattice` is the series as stored: slices, rows and columns along any direction. Contours are
drawn in its planes, so masks are made on it first; `Placement` then carries values and masks to the
`Grid` of the case, exactly where only axes are swapped or turned round, else by interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid

# Direction cosines are written with 6 decimals or so; 5e-4 is 0.2 mm over a 400 mm field of view.
_ALIGNED = 5e-4
_VOXELS_MAX = 2**28


@dataclass(frozen=True, eq=False)
class Lattice:
    """Pixel centres of a series: slice k, row j, column i lies at `origins + j*dj*column + i*di*row`.

    `origins_mm` is `(slices, 3)`, ascending along `normal`; `row` and `column` are the unit vectors
    of ImageOrientationPatient; `spacing_mm` is `(di, dj)`.
    """

    origins_mm: NDArray[np.float64]
    row: NDArray[np.float64]
    column: NDArray[np.float64]
    spacing_mm: tuple[float, float]
    shape: tuple[int, int, int]

    @property
    def normal(self) -> NDArray[np.float64]:
        """Unit vector across the slices."""
        return np.cross(self.row, self.column)

    @property
    def heights_mm(self) -> NDArray[np.float64]:
        """Position of each slice along the normal, ascending."""
        return self.origins_mm @ self.normal

    def planar(self, points: NDArray) -> tuple[NDArray, NDArray]:
        """Heights `(n,)` and fractional pixel indices `(n, 2)` as `(i, j)` of points `(n, 3)`."""
        relative = points - self.origins_mm[0]
        i = relative @ self.row / self.spacing_mm[0]
        j = relative @ self.column / self.spacing_mm[1]
        return points @ self.normal, np.stack([i, j], axis=-1)


def lattice_of(
    positions: NDArray, orientation: Sequence[float], spacing: tuple[float, float], size: tuple[int, int]
) -> Lattice:
    """The lattice of slices at `positions (n, 3)`, already ascending; refuses what is no stack.

    `spacing` is `(di, dj)` in mm and `size` is `(rows, columns)`.
    """
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    if abs(np.linalg.norm(row) - 1) > 1e-2 or abs(np.linalg.norm(column) - 1) > 1e-2:
        raise CaseError(
            "ImageOrientationPatient (0020,0037) does not hold unit vectors; export the series again"
        )
    row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
    if abs(row @ column) > 1e-2:
        raise CaseError("rows and columns of the images are not at right angles; resample the series first")
    if min(spacing) < 0.01 or max(spacing) > 100:
        raise CaseError(
            f"PixelSpacing (0028,0030) {spacing} mm is outside 0.01 to 100 mm; export the series again"
        )
    if np.max(np.abs(positions)) > 1e5:
        raise CaseError(
            "ImagePositionPatient (0020,0032) is more than 100 m from the origin; export it again"
        )
    lattice = Lattice(np.asarray(positions, float), row, column, spacing, (len(positions), *size))
    shift = positions - positions[0]
    sideways = shift - np.outer(shift @ lattice.normal, lattice.normal)
    if (off := float(np.max(np.linalg.norm(sideways, axis=1)))) > max(1.0, 0.5 * min(spacing)):
        raise CaseError(
            f"slices are shifted against each other by up to {off:.1f} mm within their plane (gantry "
            "tilt); resample the series to an untilted one first"
        )
    return lattice


@dataclass(frozen=True, eq=False)
class Placement:
    """The grid of the case and how lattice values get there; `steps` names what had to be done."""

    lattice: Lattice
    grid: Grid
    heights_mm: NDArray[np.float64]
    axes: tuple[int, int, int] | None
    flips: tuple[int, ...]
    steps: tuple[str, ...]

    @property
    def exact(self) -> bool:
        """Whether each voxel of the grid is one pixel of the series."""
        return self.axes is not None and len(self.heights_mm) == self.lattice.shape[0] and not self.steps

    def values(self, native: NDArray, fill: float) -> NDArray:
        """Lattice values `[k, j, i]` on the grid `[z, y, x]`; `fill` beyond the series."""
        even = self._evened(native)
        if self.axes is None:
            return _turned(even, self.lattice, self.heights_mm, self.grid, fill)
        return np.ascontiguousarray(np.flip(even.transpose(self.axes), self.flips))

    def mask(self, native: NDArray) -> NDArray[np.bool_]:
        """A lattice mask on the grid; where the series is turned, a voxel is inside from one half upwards.

        Where slices are uneven each stands for what is nearer to it than to its neighbours; what is half
        way between two belongs to the lower one, so that a structure grows at neither of its ends.
        """
        if self.axes is None:
            return self.values(native.astype(np.float32), 0.0) >= 0.5
        if not self.exact:
            stored = self.lattice.heights_mm
            half_way = (stored[1:] + stored[:-1]) / 2
            native = native[np.searchsorted(half_way, self.heights_mm - 1e-6)]
        return np.ascontiguousarray(np.flip(native.transpose(self.axes), self.flips))

    def _evened(self, native: NDArray) -> NDArray:
        """Linear interpolation between slices where their spacing is not uniform."""
        stored = self.lattice.heights_mm
        if len(stored) == len(self.heights_mm) and not any(s.startswith("even-slices") for s in self.steps):
            return native
        upper = np.clip(np.searchsorted(stored, self.heights_mm), 1, len(stored) - 1)
        share = np.clip((self.heights_mm - stored[upper - 1]) / (stored[upper] - stored[upper - 1]), 0, 1)
        out = np.empty((len(upper), *native.shape[1:]), np.float32)
        for k, (u, w) in enumerate(zip(upper, share, strict=True)):
            out[k] = (1 - w) * native[u - 1] + w * native[u]
        return out


def placement_of(lattice: Lattice) -> Placement:
    """The grid for a lattice. Raises CaseError where slices are missing or the grid gets too large."""
    heights, steps = _even_heights(lattice.heights_mm)
    frame = np.stack([lattice.normal, lattice.column, lattice.row])
    nearest = np.argmax(np.abs(frame), axis=1)
    spacing = np.array([heights[1] - heights[0], lattice.spacing_mm[1], lattice.spacing_mm[0]])
    shape = np.array([len(heights), *lattice.shape[1:]])
    tilt = np.abs(np.abs(frame[np.arange(3), nearest]) - 1)
    residue = np.abs(frame - np.sign(frame) * (np.arange(3) == nearest[:, None]))
    if sorted(nearest) == [0, 1, 2] and np.max(tilt) < _ALIGNED and np.max(residue) < _ALIGNED:
        # axes[a] is the lattice axis (k, j, i) that runs along grid axis a (z, y, x).
        z, y, x = (int(np.flatnonzero(nearest == 2 - a)[0]) for a in range(3))
        axes = (z, y, x)
        sign = np.array([np.sign(frame[axes[a], 2 - a]) for a in range(3)])
        size, step = shape[list(axes)], spacing[list(axes)]
        first = lattice.origins_mm[0] + (heights[0] - lattice.heights_mm[0]) * lattice.normal
        low = first[::-1] - np.where(sign < 0, (size - 1) * step, 0.0)
        grid = _grid(size, step[::-1], low[::-1])
        return Placement(lattice, grid, heights, axes, tuple(np.flatnonzero(sign < 0)), steps)
    grid = _box(lattice, heights, spacing, shape, nearest)
    degrees = np.degrees(np.arccos(np.clip(np.max(np.abs(frame), axis=1).min(), 0, 1)))
    turned = f"turn-oblique: series turned by {degrees:.1f} degrees onto patient axes (linear)"
    return Placement(lattice, grid, heights, None, (), (*steps, turned))


def _grid(size: NDArray, spacing_mm: NDArray, origin_mm: NDArray) -> Grid:
    if np.prod(size.astype(float)) > _VOXELS_MAX:
        raise CaseError(f"the image grid {tuple(map(int, size))} has more than {_VOXELS_MAX} voxels; crop it")
    shape = tuple(int(n) for n in size)
    return Grid(shape, tuple(map(float, spacing_mm)), tuple(map(float, origin_mm)))  # type: ignore[arg-type]


def _even_heights(stored: NDArray) -> tuple[NDArray, tuple[str, ...]]:
    """Uniform slice positions, and the step taken where the stored ones are not uniform."""
    if len(stored) < 2:
        raise CaseError("the series has 1 slice, a volume needs at least 2; add the other images of the scan")
    gaps = np.diff(stored)
    uniform = np.linspace(stored[0], stored[-1], len(stored))
    step = float(uniform[1] - uniform[0])
    # Positions are often rounded to 0.1 mm; 2 % of the spacing is the usual import tolerance.
    if np.max(np.abs(stored - uniform)) <= max(0.1, 0.02 * step) and np.min(gaps) > 0.5 * step:
        return uniform, ()
    finest = float(gaps.min())
    for k in np.flatnonzero(gaps > 1.5 * np.median(gaps)):
        beside = gaps[max(k - 1, 0) : k + 2]
        if np.sum(beside > 0.9 * gaps[k]) < 2:
            raise CaseError(
                f"a slice is missing between {stored[k]:.1f} and {stored[k + 1]:.1f} mm: the gap is "
                f"{gaps[k]:.2f} mm, the slice spacing {np.median(gaps):.2f} mm; export the whole series"
            )
    count = int(np.floor((stored[-1] - stored[0]) / max(finest, 1e-3) + 1e-3)) + 1
    if finest < 0.05 or count > 20 * len(stored):
        raise CaseError(
            f"slice spacings from {finest:.3f} to {gaps.max():.2f} mm are too uneven; resample first"
        )
    even = stored[0] + finest * np.arange(count)
    return even, (
        f"even-slices: slice spacings of {finest:.2f} to {gaps.max():.2f} mm interpolated to {finest:.2f} mm",
    )


def _box(lattice: Lattice, heights: NDArray, spacing: NDArray, shape: NDArray, nearest: NDArray) -> Grid:
    """The smallest patient-axis grid around a turned lattice, at the spacing of the closest axes."""
    frame = np.stack([lattice.normal, lattice.column, lattice.row])
    reach = frame * ((shape - 1) * spacing)[:, None]
    corners = (
        lattice.origins_mm[0]
        + np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)], float) @ reach
    )
    low, high = corners.min(axis=0), corners.max(axis=0)
    step = np.full(3, float(spacing.min()))
    for axis in range(3):
        if np.any(nearest == axis):
            step[axis] = spacing[nearest == axis].min()
    size = np.floor((high - low) / step + 1e-6).astype(int) + 1
    return _grid(size[::-1], step, low)


def _turned(values: NDArray, lattice: Lattice, heights: NDArray, grid: Grid, fill: float) -> NDArray:
    """Linear interpolation on the grid; a pixel reaches half its size around its centre, `fill` beyond."""
    stored = np.asarray(values, np.float32)
    spacing = np.array([heights[1] - heights[0], lattice.spacing_mm[1], lattice.spacing_mm[0]])
    per_mm = np.stack([lattice.normal, lattice.column, lattice.row]) / spacing[:, None]
    x, y, z = (axis - first for axis, first in zip(grid.axes_mm, lattice.origins_mm[0], strict=True))
    in_plane = per_mm[:, 0, None, None] * x + per_mm[:, 1, None, None] * y[:, None]
    last = np.array(stored.shape)[:, None, None] - 1
    out = np.empty(grid.shape, np.float32)
    for plane, height in zip(out, z, strict=True):  # one by one: the indices of all would fill the memory
        index = in_plane + (per_mm[:, 2] * height)[:, None, None]
        covered = np.all((index >= -0.5) & (index <= last + 0.5), axis=0)
        ndimage.map_coordinates(stored, np.clip(index, 0, last), plane, order=1)
        plane[~covered] = fill
    return out
