"""The most dose that each voxel may receive: a margin above the level in targets, less with distance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vmat_diffusion.case import Case
from vmat_diffusion.evaluate.goals import GoalSheet
from vmat_diffusion.evaluate.metrics import Metric
from vmat_diffusion.evaluate.spillage import rtog_limit
from vmat_diffusion.geometry import Grid, average_onto

# What a target may get at its border, relative to its own level; less where another target's level is
# higher, as the dose falls from that one anyway.
BORDER, _LOWER_BORDER = 1.03, 1.02
# A stereotactic target may be this hot unless its sheet says how hot: the prescription at 80 % of the
# maximum. Its dose falls further and begins to fall nearer than that of other targets.
_STEREOTACTIC_HOT, _STEREOTACTIC_FAR, _STEREOTACTIC_GRACE_MM = 1.25, 0.2, 1.0
# Up to this share of the volume a D goal of a stereotactic target says how hot it may be.
_HOT_PERCENT = 5.0


@dataclass(frozen=True, eq=False)
class CeilingMap:
    """On the dose grid: the most that each voxel may receive, relative, and its distance to any target.

    Outside the body the distance is infinite.
    """

    grid: Grid
    dose: NDArray[np.float32]
    distance_mm: NDArray[np.float32]


@dataclass(frozen=True)
class Falloff:
    """Relative to a target's level: `hot` inside, then falling to `far` as exp(-(r - grace) / length)."""

    length_mm: float = 18.0
    far: float = 0.30
    grace_mm: float = 2.0
    hot: float = BORDER


def falloff_of(target: str, sheet: GoalSheet, case: Case) -> Falloff:
    """How dose may fall off from a target: the usual way, or as the protocols of stereotactic plans ask.

    There the half-prescription isodose lies where the sheet's goal on R50% puts it, or without one the
    RTOG's table for the target's volume, both volumes taken as spheres. The target may be as hot as the
    strictest goal on its hot spot (max, Dcc, D5% and hotter) says.
    """
    if not sheet.stereotactic:
        return Falloff()
    cc = case.structures[target].voxels * case.grid.voxel_cc
    goals = [g for g in sheet.in_gy().goals if g.structure == target and g.comparator == "<="]
    r50 = min(
        (g.limit for g in goals if str(g.metric) == "R50%" and not math.isnan(g.limit)),
        default=rtog_limit("R50%", cc).limit,
    )
    half_mm = 10.0 * (3.0 * cc / (4.0 * math.pi)) ** (1 / 3) * (r50 ** (1 / 3) - 1.0)
    far = _STEREOTACTIC_FAR
    length = (half_mm - _STEREOTACTIC_GRACE_MM) / math.log((BORDER - far) / (0.5 - far))
    level = sheet.prescription.target_gy[target]
    upper = [g.limit / level for g in goals if _limits_hot_spot(g.metric)]
    return Falloff(max(length, 1.0), far, _STEREOTACTIC_GRACE_MM, min(upper, default=_STEREOTACTIC_HOT))


def _limits_hot_spot(metric: Metric) -> bool:
    share = metric.value or 0.0
    return metric.kind in ("max", "Dcc") or (metric.kind == "D%" and share <= _HOT_PERCENT)


def ceiling_of(
    case: Case, targets: Mapping[str, float], falloffs: Mapping[str, Falloff], grid: Grid
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """On the dose grid: the relative dose that each voxel may receive, and the distance to any target.

    The ceiling falls from each target's level with distance; the highest counts. Outside the body the
    distance is infinite.
    """
    ceiling = np.full(grid.shape, 0.0, np.float32)
    nearest = np.full(grid.shape, np.inf, np.float32)
    spacing = grid.spacing_mm[::-1]
    top = max(targets.values())
    for name, level in targets.items():
        share = average_onto(case.structures[name].mask, case.grid, grid)
        # A target smaller than a dose voxel still has its place.
        inside = share > min(0.5, 0.5 * float(share.max()))
        away = ndimage.distance_transform_edt(~inside, sampling=spacing).astype(np.float32)
        falloff = falloffs[name]
        fall = np.exp(-np.maximum(away - falloff.grace_mm, 0) / falloff.length_mm)
        far = falloff.far * level
        border = level * (BORDER if level == top else _LOWER_BORDER)
        ceiling = np.maximum(ceiling, far + (border - far) * fall)
        nearest = np.minimum(nearest, away)
    body = average_onto(case.body.mask, case.grid, grid) > 0.5
    nearest[~body] = np.inf
    return ceiling, nearest
