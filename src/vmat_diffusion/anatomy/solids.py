"""Shapes of which patients are built: level functions in mm that are cut, joined, grown and roughened.

A solid's level is negative inside and roughly the distance in mm to its surface. Coordinates are those
of an undeformed patient, `(x, y, z)` in DICOM LPS; a `Space` bends them for one patient, so that organs
deform together and keep their neighbours.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import PchipInterpolator

from vmat_diffusion.geometry import Grid, Mask, Point

Level = Callable[[NDArray, NDArray, NDArray], NDArray]
EVERYWHERE: Point = (1e4, 1e4, 1e4)


@dataclass(frozen=True)
class Solid:
    """A level function with a box `low` to `high` (x, y, z in mm) outside which it is positive."""

    level: Level
    low: Point
    high: Point

    def __or__(self, other: Solid) -> Solid:
        return Solid(
            lambda x, y, z: np.minimum(self.level(x, y, z), other.level(x, y, z)),
            _each(min, self.low, other.low),
            _each(max, self.high, other.high),
        )

    def __and__(self, other: Solid) -> Solid:
        return Solid(
            lambda x, y, z: np.maximum(self.level(x, y, z), other.level(x, y, z)),
            _each(max, self.low, other.low),
            _each(min, self.high, other.high),
        )

    def __sub__(self, other: Solid) -> Solid:
        return Solid(
            lambda x, y, z: np.maximum(self.level(x, y, z), -other.level(x, y, z)), self.low, self.high
        )

    def grown(self, margin_mm: float) -> Solid:
        """The solid with its surface moved outwards, or inwards for a negative margin."""
        low = tuple(a - max(margin_mm, 0.0) for a in self.low)
        high = tuple(a + max(margin_mm, 0.0) for a in self.high)
        return Solid(lambda x, y, z: self.level(x, y, z) - margin_mm, low, high)  # type: ignore[arg-type]

    def shell(self, inner_mm: float, outer_mm: float) -> Solid:
        """What lies between two margins of the surface."""
        outer, middle, half = self.grown(outer_mm), (inner_mm + outer_mm) / 2, (outer_mm - inner_mm) / 2
        return Solid(lambda x, y, z: np.abs(self.level(x, y, z) - middle) - half, outer.low, outer.high)

    def blended(self, other: Solid, width_mm: float) -> Solid:
        """The union with the crease between both filled over about `width_mm`."""

        def level(x: NDArray, y: NDArray, z: NDArray) -> NDArray:
            a, b = self.level(x, y, z), other.level(x, y, z)
            h = np.maximum(width_mm - np.abs(a - b), 0.0) / width_mm
            return np.minimum(a, b) - h * h * (width_mm / 4)

        both = self | other
        return Solid(level, both.low, both.high)

    def rough(self, waves: Waves, amplitude_mm: float) -> Solid:
        """The solid with its surface moved by at most `amplitude_mm` to either side, smoothly."""
        grown = self.grown(amplitude_mm)
        return Solid(
            lambda x, y, z: self.level(x, y, z) - amplitude_mm * waves(x, y, z), grown.low, grown.high
        )


def _each(pick: Callable[[float, float], float], a: Point, b: Point) -> Point:
    return tuple(pick(p, q) for p, q in zip(a, b, strict=True))  # type: ignore[return-value]


def union(*solids: Solid) -> Solid:
    """All solids together."""
    return reduce(lambda a, b: a | b, solids)


@dataclass(frozen=True, eq=False)
class Waves:
    """A smooth random function of space, within -1 to 1: a sum of plane waves."""

    per_mm: NDArray
    phase: NDArray

    def __call__(self, x: NDArray, y: NDArray, z: NDArray) -> NDArray:
        """The function's value at points."""
        total = 0.0
        for k, phase in zip(self.per_mm, self.phase, strict=True):
            total = total + np.cos(k[0] * x + k[1] * y + (k[2] * z + phase))
        return np.asarray(total) / len(self.phase)


def draw_waves(rng: np.random.Generator, wavelength_mm: float, count: int = 5) -> Waves:
    """Waves of random direction, with wavelengths of 0.75 to 1.5 times `wavelength_mm`."""
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    size = 2 * np.pi / (wavelength_mm * rng.uniform(0.75, 1.5, (count, 1)))
    return Waves((direction * size).astype(np.float32), rng.uniform(0, 2 * np.pi, count).astype(np.float32))


def generator(seed: int, name: str) -> np.random.Generator:
    """Random numbers of one part of one patient: independent of which other parts are built."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def ellipsoid(center: Point, semi: Point, *, toward: Point = (0.0, 0.0, 1.0), power: float = 2.0) -> Solid:
    """An ellipsoid of three semi-axes; the third points along `toward`, the first stays near x.

    A `power` above 2 makes it boxier.
    """
    third = np.array(toward) / np.linalg.norm(toward)
    first = np.array([1.0, 0.0, 0.0]) - third[0] * third
    first /= np.linalg.norm(first)
    axes = np.stack([first, np.cross(third, first), third]).astype(np.float32)
    reach = np.sqrt((axes.T**2) @ np.square(semi)) if power == 2 else np.abs(axes.T) @ np.array(semi)

    def level(x: NDArray, y: NDArray, z: NDArray) -> NDArray:
        dx, dy, dz = x - center[0], y - center[1], z - center[2]
        total = 0.0
        for axis, s in zip(axes, semi, strict=True):
            along = (axis[0] * dx + axis[1] * dy + axis[2] * dz) / s
            total = total + (along * along if power == 2 else np.abs(along) ** power)
        q = np.maximum(np.asarray(total), 1e-6) ** (1 / power)
        # Along the ray from the centre the surface is at 1/q of the way.
        return np.sqrt(dx * dx + dy * dy + dz * dz + 1e-3) * (1 - 1 / q)

    low = tuple(c - r for c, r in zip(center, reach, strict=True))
    high = tuple(c + r for c, r in zip(center, reach, strict=True))
    return Solid(level, low, high)  # type: ignore[arg-type]


def rod(points: Sequence[Point], radius: float, *, stretch: Point = (1.0, 1.0, 1.0)) -> Solid:
    """A rod with round ends along a polyline, of elliptic section: `radius * stretch` along x, y, z."""
    corners = np.array(points, np.float32)
    scale = np.array(stretch, np.float32)

    def level(x: NDArray, y: NDArray, z: NDArray) -> NDArray:
        nearest: NDArray = np.asarray(np.inf)
        x, y, z = x / scale[0], y / scale[1], z / scale[2]
        for a, b in zip(corners[:-1] / scale, corners[1:] / scale, strict=True):
            along = b - a
            t = ((x - a[0]) * along[0] + (y - a[1]) * along[1] + (z - a[2]) * along[2]) / (along @ along)
            t = np.clip(t, 0, 1)
            d2 = (x - a[0] - t * along[0]) ** 2 + (y - a[1] - t * along[1]) ** 2
            nearest = np.minimum(nearest, d2 + (z - a[2] - t * along[2]) ** 2)
        return np.sqrt(nearest) - radius

    reach = radius * scale
    low, high = corners.min(axis=0) - reach, corners.max(axis=0) + reach
    return Solid(level, tuple(low), tuple(high))


def tube(
    stations: Sequence[tuple[float, float, float, float, float]], *, power: float = 2.0, ends: bool = True
) -> Solid:
    """A column along z with a changing superelliptic section; smooth between its stations.

    Stations are `(z, x, y, half width, half depth)`, ascending in z. Without `ends` the first and last
    section go on for ever.
    """
    table = np.array(stations, float)
    z_mm = table[:, 0]
    fine = np.linspace(z_mm[0], z_mm[-1], 2048)
    smooth = PchipInterpolator(z_mm, table[:, 1:], axis=0)(fine).astype(np.float32)
    per_mm = 2047 / float(fine[-1] - fine[0])

    def level(x: NDArray, y: NDArray, z: NDArray) -> NDArray:
        nearest = np.clip((z - fine[0].item()) * per_mm + 0.5, 0, 2047).astype(np.int32)
        section = smooth.take(nearest, axis=0)
        dx, dy = x - section[..., 0], y - section[..., 1]
        u, v = np.abs(dx) / section[..., 2], np.abs(dy) / section[..., 3]
        q = np.maximum(u * u + v * v if power == 2 else u**power + v**power, 1e-6) ** (1 / power)
        side = np.sqrt(dx * dx + dy * dy + 1e-3) * (1 - 1 / q)
        return np.maximum(side, np.maximum(z_mm[0].item() - z, z - z_mm[-1].item())) if ends else side

    low = (*(table[:, 1:3] - table[:, 3:5]).min(axis=0), z_mm[0] if ends else -EVERYWHERE[2])
    high = (*(table[:, 1:3] + table[:, 3:5]).max(axis=0), z_mm[-1] if ends else EVERYWHERE[2])
    return Solid(level, low, high)


def half_space(normal: Point, at: Point) -> Solid:
    """Everything on the side of the point `at` away from `normal`, which need not have length 1."""
    n = (np.array(normal) / np.linalg.norm(normal)).astype(np.float32)

    def level(x: NDArray, y: NDArray, z: NDArray) -> NDArray:
        return n[0] * (x - at[0]) + n[1] * (y - at[1]) + n[2] * (z - at[2])

    return Solid(level, (-EVERYWHERE[0],) * 3, EVERYWHERE)


def below(z_mm: float) -> Solid:
    """Everything towards the feet of a height."""
    return half_space((0, 0, 1), (0, 0, z_mm))


def above(z_mm: float) -> Solid:
    """Everything towards the head of a height."""
    return half_space((0, 0, -1), (0, 0, z_mm))


@dataclass(frozen=True)
class Frame:
    """Places lengths of an average body in one of another size.

    `scale` is its size against the average across and front to back, `height_scale` along z.
    """

    scale: float
    height_scale: float

    def at(self, x: float, y: float, z: float) -> Point:
        """A point of the average body in this one."""
        return x * self.scale, y * self.scale, z * self.height_scale

    def points(self, *points: Point) -> list[Point]:
        """Several points."""
        return [self.at(*p) for p in points]

    def tube(self, *rows: Sequence[float], power: float = 2.0) -> Solid:
        """A column along z through the stations `(z, x, y, half width, half depth)`."""
        k = self.scale
        return tube(
            [(z * self.height_scale, x * k, y * k, a * k, b * k) for z, x, y, a, b in rows], power=power
        )

    def ellipsoid(self, center: Point, semi: Point, *, power: float = 2.0) -> Solid:
        """An ellipsoid along the axes."""
        return ellipsoid(self.at(*center), self.at(*semi), power=power)

    def half_space(self, normal: Point, at: Point) -> Solid:
        """What lies against `normal` from a point."""
        return half_space(normal, self.at(*at))


def ball_radius_mm(volume_cc: float) -> float:
    """The radius of a ball of a volume."""
    return (volume_cc * 1000 * 3 / (4 * math.pi)) ** (1 / 3)


@dataclass(frozen=True, eq=False)
class Space:
    """A grid with the undeformed coordinates of its voxels for one patient.

    `xyz` are float32 arrays `[z, y, x]`; no voxel is displaced by more than `reach_mm`.
    """

    grid: Grid
    xyz: tuple[NDArray, NDArray, NDArray]
    reach_mm: float

    def box(self, low: Point, high: Point) -> tuple[slice, slice, slice]:
        """Indices `[z, y, x]` of all voxels that may lie in a box of the undeformed patient."""
        slices = []
        for axis, lo, hi in zip(self.grid.axes_mm, low, high, strict=True):
            first, last = np.searchsorted(axis, [lo - self.reach_mm, hi + self.reach_mm])
            slices.append(slice(int(first), int(last)))
        return slices[2], slices[1], slices[0]

    def masks(self, solid: Solid, *margins_mm: float) -> tuple[Mask, ...]:
        """Voxels within a solid grown by each of the margins; its level is evaluated once."""
        grown = solid.grown(max(margins_mm))
        box = self.box(grown.low, grown.high)
        level = solid.level(*(a[box] for a in self.xyz))
        out = tuple(np.zeros(self.grid.shape, np.bool_) for _ in margins_mm)
        for mask, margin in zip(out, margins_mm, strict=True):
            mask[box] = level <= margin
        return out

    def mask(self, *solids: Solid) -> Mask:
        """Voxels whose centre is in any of the solids."""
        out = np.zeros(self.grid.shape, np.bool_)
        for solid in solids:
            box = self.box(solid.low, solid.high)
            if out[box].size:
                out[box] |= solid.level(*(a[box] for a in self.xyz)) <= 0
        return out

    def grown(self, mask: Mask, margin_mm: float) -> Mask:
        """The mask with a margin all around, right to about a third of a voxel."""
        if not mask.any():
            return mask.copy()
        steps = np.array(self.grid.spacing_mm)[::-1]
        pad = np.ceil(margin_mm / steps).astype(int) + 1
        box = tuple(
            slice(max(s.start - p, 0), s.stop + p)
            for s, p in zip(ndimage.find_objects(mask.astype(np.uint8))[0], pad, strict=True)
        )
        distance = ndimage.distance_transform_edt(~mask[box], sampling=steps)
        out = mask.copy()
        # The surface lies beyond the nearest centre, on average of random balls by a quarter of a voxel.
        out[box] |= distance - steps.mean() / 4 <= margin_mm
        return out

    def depth_mm(self, mask: Mask) -> NDArray[np.float32]:
        """Distance in mm of the voxels of a mask to its surface; 0 outside."""
        steps = self.grid.spacing_mm[::-1]
        depth = np.zeros(self.grid.shape, np.float32)
        found = ndimage.find_objects(mask.astype(np.uint8))
        if found:
            inner = ndimage.distance_transform_edt(np.pad(mask[found[0]], 1), sampling=steps)
            depth[found[0]] = np.maximum(inner[1:-1, 1:-1, 1:-1] - np.mean(steps) / 2, 0.1) * mask[found[0]]
        return depth


def bent_space(
    low: Point, high: Point, spacing_mm: Point, seed: int, *, bend_mm: float, turn_deg: Point
) -> Space:
    """A space from corner to corner whose patient is turned about (0, 0, 0) and bent smoothly.

    `turn_deg` are small angles about x, y and z; displacements by bending stay within `bend_mm`, with
    wavelengths well above the size of an organ.
    """
    counts = [int(np.ceil((b - a) / s)) for a, b, s in zip(low, high, spacing_mm, strict=True)]
    origin = tuple(
        (a + b) / 2 - (n - 1) / 2 * s for a, b, n, s in zip(low, high, counts, spacing_mm, strict=True)
    )
    grid = Grid(tuple(counts[::-1]), spacing_mm, origin)  # type: ignore[arg-type]
    x, y, z = (a.astype(np.float32) for a in grid.axes_mm)
    x, y, z = x[None, None, :], y[None, :, None], z[:, None, None]
    pitch, roll, yaw = (np.float32(np.deg2rad(a)) for a in turn_deg)
    turned = (x + yaw * y - roll * z, y - yaw * x + pitch * z, z + roll * x - pitch * y)
    rng = generator(seed, "bend")
    bent = []
    for coordinate in turned:
        moved = np.zeros(grid.shape, np.float32)
        for _ in range(3):
            # Products of waves along single axes: cheap on a grid.
            factors = [
                np.cos(a * np.float32(2 * np.pi / rng.uniform(160, 400)) + np.float32(rng.uniform(0, 6.283)))
                for a in (x, y, z)
            ]
            moved += factors[0] * factors[1] * factors[2]
        bent.append(coordinate + moved * np.float32(bend_mm / 3))
    size = max(abs(v) for v in (*low, *high))
    turn_reach = float(np.deg2rad(sum(abs(a) for a in turn_deg))) * size
    return Space(grid, tuple(bent), bend_mm + turn_reach)  # type: ignore[arg-type]
