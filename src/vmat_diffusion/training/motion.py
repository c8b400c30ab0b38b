"""Volumes mirrored, turned about the patient's long axis and cut to a window, in the voxels they have."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from vmat_diffusion.case import Case
from vmat_diffusion.geometry import Grid, bounding_box
from vmat_diffusion.training.prepare import target_middle_mm, targets_mask

Index = tuple[int, int, int]


@dataclass(frozen=True)
class Turn:
    """Flips and rotation of one case: `[z, y, x]` of a volume and the way back from a new voxel.

    `middle` is the fixed point of the rotation in (flipped) voxels (y, x), `step_mm` the spacing of y, x.
    """

    flip_head_feet: bool
    flip_left_right: bool
    angle_deg: float
    middle: tuple[float, float]
    step_mm: tuple[float, float]
    shape: Index

    @classmethod
    def of(cls, case: Case, flip_head_feet: bool, flip_left_right: bool, angle_deg: float) -> Turn:
        """The turn about the middle of a case's targets."""
        _, y, x = case.grid.index(np.array(target_middle_mm(case))) if angle_deg % 360 else (0.0, 0.0, 0.0)
        if flip_left_right:
            x = case.grid.shape[2] - 1 - x
        step = (case.grid.spacing_mm[1], case.grid.spacing_mm[0])
        return cls(
            flip_head_feet, flip_left_right, angle_deg % 360, (float(y), float(x)), step, case.grid.shape
        )

    def flipped(self, volumes: NDArray) -> NDArray:
        """Volumes `[n, z, y, x]` mirrored; a view."""
        return volumes[:, :: -1 if self.flip_head_feet else 1, :, :: -1 if self.flip_left_right else 1]

    def turned(self, y: NDArray, x: NDArray, *, back: bool = False) -> tuple[NDArray, NDArray]:
        """Voxel indices after the rotation; `back` gives where those of the turned volume came from."""
        angle = math.radians(-self.angle_deg if back else self.angle_deg)
        (cy, cx), (sy, sx) = self.middle, self.step_mm
        dx, dy = (x - cx) * sx, (y - cy) * sy
        # Gantry angles run from anterior (-y) to the patient's left (+x), as x turns into y here.
        return (
            cy + (math.sin(angle) * dx + math.cos(angle) * dy) / sy,
            cx + (math.cos(angle) * dx - math.sin(angle) * dy) / sx,
        )


@dataclass(frozen=True)
class Window:
    """The voxels `start` to `start + shape` (z, y, x) of a volume that goes on as air."""

    start: Index
    shape: Index


def targets_box(case: Case, turn: Turn) -> tuple[slice, slice, slice]:
    """The box around all targets after flips and rotation, in voxels of the volume and beyond it."""
    targets = turn.flipped(targets_mask(case)[None])[0]
    box = bounding_box(targets)
    assert box is not None
    if not turn.angle_deg:
        return box
    y, x = np.nonzero(targets.any(axis=0))
    # An interpolated mask reaches less than a voxel beyond its voxels' centres.
    corners = [turn.turned(y + dy, x + dx) for dy in (-1, 1) for dx in (-1, 1)]
    rows, columns = (np.concatenate(v) for v in zip(*corners, strict=True))
    return (
        box[0],
        slice(math.floor(rows.min()), math.ceil(rows.max()) + 1),
        slice(math.floor(columns.min()), math.ceil(columns.max()) + 1),
    )


def cut(volumes: NDArray, window: Window, fill: float | None) -> NDArray:
    """The window of volumes `[n, z, y, x]`, filled beyond them; None repeats their border."""
    inside, around = [slice(None)], [(0, 0)]
    for start, n, size in zip(window.start, window.shape, volumes.shape[1:], strict=True):
        first, last = min(max(start, 0), size), min(max(start + n, 0), size)
        inside.append(slice(first, last))
        around.append((first - start if first > start else 0, start + n - last if start + n > last else 0))
    part = volumes[tuple(inside)]
    if not any(before or after for before, after in around):
        return part
    if fill is None:
        return np.pad(part, around, mode="edge")
    return np.pad(part, around, constant_values=np.asarray(fill, part.dtype))


def moved(
    volumes: NDArray, turn: Turn, window: Window, fill: float | None, *, cubic: bool = False
) -> NDArray:
    """Volumes `[n, z, y, x]` flipped, turned and cut; interpolated in float32 where they are turned.

    Beyond the volume is `fill`, or for None the values at its border. Linear between voxels or, if
    asked for, `cubic` (Keys, IEEE ASSP 29:1153 (1981), with -0.75), which blurs less and may overshoot.
    """
    flipped = turn.flipped(volumes)
    if not turn.angle_deg:
        return np.ascontiguousarray(cut(flipped, window, fill))
    whole = Window((window.start[0], 0, 0), (window.shape[0], *flipped.shape[2:]))
    slices = cut(flipped, whole, fill).astype(np.float32)
    ny, nx = slices.shape[2:]
    y, x = np.meshgrid(
        *(s + np.arange(n) for s, n in zip(window.start[1:], window.shape[1:], strict=True)), indexing="ij"
    )
    rows, columns = turn.turned(y, x, back=True)
    # grid_sample counts from the outer border, -1, to the other, 1, in the order x, y.
    places = np.stack([(2 * columns + 1) / nx - 1, (2 * rows + 1) / ny - 1], axis=-1).astype(np.float32)
    # All slices are turned alike, so they are channels of one picture.
    picture = torch.from_numpy(slices.reshape(1, -1, ny, nx) - np.float32(fill or 0))
    out = functional.grid_sample(
        picture,
        torch.from_numpy(places)[None],
        mode="bicubic" if cubic else "bilinear",
        padding_mode="border" if fill is None else "zeros",
        align_corners=False,
    )
    return out.numpy().reshape(len(volumes), *window.shape) + np.float32(fill or 0)


def window_grid(grid: Grid, window: Window) -> Grid:
    """The grid of a window of a volume on `grid`."""
    origin = tuple(
        o + s * first for o, s, first in zip(grid.origin_mm, grid.spacing_mm, window.start[::-1], strict=True)
    )
    return Grid(window.shape, grid.spacing_mm, origin)  # type: ignore[arg-type]
