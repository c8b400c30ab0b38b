"""What lies along each ray of a beam: targets, organs and tissue, projected into the beam's-eye view.

A network that predicts fluence then needs to learn no geometry: every leaf row and column of every direction
already knows how much target its ray crosses, how deep, and which organs lie before and behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numba
import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, density_g_cm3
from vmat_diffusion.compiled import watching
from vmat_diffusion.dose.tissue import electron_density
from vmat_diffusion.evaluate.goals import Goal, GoalSheet
from vmat_diffusion.geometry import BeamAxes, Grid, Point

# Distance of the samples along a ray.
_STEP_MM = 2.0
# Attenuation of 6 MV primary dose per mm of water beyond the build-up, rounded: a weight, not a dose.
ATTENUATION_PER_MM = 0.005
# Weight of an organ's goal by its priority, and the least of an organ that a goal names.
_BY_PRIORITY, _LEAST_NEED = (1.0, 0.7, 0.4), 0.05
# Steps of a stored byte: levels and needs in hundredths, density in hundredths of water.
_BYTE = 100.0

# What each ray has, in this order. Lengths in units of 100 mm of geometric path.
RAY_FEATURES = (
    "top_level",  # length in targets of the highest level
    "lower_levels",  # length in targets of lower levels
    "mean_level",  # mean level of the targets that the ray meets
    "entry_depth",  # water-equivalent depth of the first target, 100 mm
    "middle_depth",  # water-equivalent depth of the middle of the targets, 100 mm
    "serial_before",  # length in organs with goals on their maximum, weighted, before the first target
    "serial_between",  # between targets and beside them in depth
    "serial_behind",  # behind the last target
    "parallel_before",  # the same for organs with goals on means and volumes
    "parallel_between",
    "parallel_behind",
    "overlap",  # length in organs that lie in targets, weighted
    "total_depth",  # water-equivalent length of the whole ray, 300 mm
)


@dataclass(frozen=True, eq=False)
class Volumes:
    """What rays pass, on the grid of a case: `packed[z, y, x, 4]`.

    Level of the target in the voxel, need of serial and of parallel organs, electron density; the first three
    in hundredths, density in hundredths of water's, up to 2.55.
    """

    grid: Grid
    packed: NDArray[np.uint8]


def organ_needs(sheet: GoalSheet, reference_gy: float) -> dict[str, tuple[float, float]]:
    """How much each organ of a sheet is to be spared, 0 to 1: by goals on its maximum, and by all others.

    A goal weighs by its priority and by how far its limit lies below the highest prescription.
    """
    needs: dict[str, tuple[float, float]] = {}
    for goal in sheet.in_gy().goals:
        if goal.comparator != "<=" or goal.structure in sheet.prescription.target_gy:
            continue
        low = max(1 - _level_gy(goal) / reference_gy, _LEAST_NEED) * _BY_PRIORITY[goal.priority - 1]
        serial, parallel = needs.get(goal.structure, (0.0, 0.0))
        if goal.metric.is_near_maximum:
            serial = max(serial, low)
        else:
            parallel = max(parallel, low)
        needs[goal.structure] = serial, parallel
    return needs


def _level_gy(goal: Goal) -> float:
    """The dose that a goal speaks of: its limit, or the level at which it bounds a volume."""
    level = goal.metric.level_gy(None) if goal.metric.kind in ("V", "CV") else None
    return float(goal.limit if level is None else level)


def volumes_of(case: Case, levels: Mapping[str, float], needs: Mapping[str, tuple[float, float]]) -> Volumes:
    """What rays of a case pass; `levels` by target, relative to the highest; `needs` by organ."""
    packed = np.zeros((*case.grid.shape, 4), np.uint8)
    for name, level in levels.items():
        mask = case.structures[name].mask
        packed[mask, 0] = np.maximum(packed[mask, 0], _byte(level))
    for name, pair in needs.items():
        if name in case.structures:
            mask = case.structures[name].mask
            for channel, need in enumerate(pair, 1):
                packed[mask, channel] = np.maximum(packed[mask, channel], _byte(need))
    density = electron_density(density_g_cm3(case.hu, case.ct_table) * case.body.mask)
    packed[..., 3] = np.clip(np.rint(density * _BYTE), 0, 255)
    return Volumes(case.grid, packed)


def _byte(value: float) -> np.uint8:
    return np.uint8(np.clip(round(value * _BYTE), 0, 255))


def project_rays(
    volumes: Volumes,
    axes: BeamAxes,
    isocenter_mm: Point,
    *,
    sad_mm: float,
    row_mm: NDArray,
    column_mm: NDArray,
) -> NDArray[np.float32]:
    """`RAY_FEATURES` of the rays of one direction, `[features, rows, columns]`.

    `row_mm` and `column_mm` are the rays' positions at the isocentre plane, across the leaves and along them.
    Nearest voxels every 2 mm: a length is within a voxel and a step of the exact one.
    """
    out = np.zeros((len(RAY_FEATURES), len(row_mm), len(column_mm)), np.float32)
    low, high = (np.asarray(bound) - np.asarray(isocenter_mm) for bound in volumes.grid.bounds_mm)
    corners = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, -1).T
    height = corners @ axes.to_source
    _project(
        volumes.packed,
        np.asarray(volumes.grid.origin_mm) - np.asarray(isocenter_mm),
        1.0 / np.asarray(volumes.grid.spacing_mm),
        np.stack([axes.x, axes.y, axes.to_source]),
        (float(min(height.max(), sad_mm - 1.0)), float(height.min())),
        (sad_mm, _STEP_MM, ATTENUATION_PER_MM),
        np.asarray(row_mm, float),
        np.asarray(column_mm, float),
        out,
    )
    return out


@numba.njit(cache=True, fastmath=True)
def _project(packed, origin, inverse, axes, span, numbers, rows, columns, out):  # type: ignore[no-untyped-def]
    """Two passes along each ray: where the targets lie, then what lies before, between and behind."""
    nz, ny, nx, _ = packed.shape
    sad, step, fall = numbers
    top, bottom = span
    count = int(np.ceil((top - bottom) / step)) + 1
    seen = np.zeros((count, 4), np.float64)
    for r in range(len(rows)):
        for c in range(len(columns)):
            u, v = columns[c], rows[r]
            length = step * np.sqrt(1.0 + (u * u + v * v) / (sad * sad)) / 100.0
            first, last, levels, within = -1, -1, 0.0, 0
            depth, entry, middle = 0.0, 0.0, 0.0
            for k in range(count):
                w = top - k * step
                scale = (sad - w) / sad
                x = (u * axes[0, 0] + v * axes[1, 0]) * scale + w * axes[2, 0]
                y = (u * axes[0, 1] + v * axes[1, 1]) * scale + w * axes[2, 1]
                z = (u * axes[0, 2] + v * axes[1, 2]) * scale + w * axes[2, 2]
                ix = int(np.floor((x - origin[0]) * inverse[0] + 0.5))
                iy = int(np.floor((y - origin[1]) * inverse[1] + 0.5))
                iz = int(np.floor((z - origin[2]) * inverse[2] + 0.5))
                seen[k] = 0.0
                if ix < 0 or iy < 0 or iz < 0 or ix >= nx or iy >= ny or iz >= nz:
                    continue
                for channel in range(4):
                    seen[k, channel] = packed[iz, iy, ix, channel] / 100.0
                depth += seen[k, 3] * length
                if seen[k, 0] > 0:
                    if first < 0:
                        first, entry = k, depth
                    last = k
                    within += 1
                    levels += seen[k, 0]
                    middle += depth
            if within:
                out[2, r, c], out[3, r, c], out[4, r, c] = levels / within, entry, middle / within
            out[12, r, c] = depth / 3.0
            reference = out[4, r, c] if within else depth / 2.0
            depth = 0.0
            for k in range(count):
                depth += seen[k, 3] * length
                level, serial, parallel = seen[k, 0], seen[k, 1], seen[k, 2]
                if level == 0 and serial == 0 and parallel == 0:
                    continue
                if level > 0:
                    out[0 if level > 0.995 else 1, r, c] += length
                    out[11, r, c] += max(serial, parallel) * length
                    continue
                weight = np.exp(-100.0 * fall * (depth - reference)) * length
                place = 1
                if first < 0 or k < first:
                    place = 0
                elif k > last:
                    place = 2
                out[5 + place, r, c] += serial * weight
                out[8 + place, r, c] += parallel * weight


watching(_project, Path(__file__).parents[2])
