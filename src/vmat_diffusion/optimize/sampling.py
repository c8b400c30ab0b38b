"""The points at which the search computes dose: voxels that represent structures and normal tissue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case
from vmat_diffusion.evaluate.goals import Goal, GoalSheet
from vmat_diffusion.geometry import Grid, sample

# Cubic millimetres per point and most points, by what the structure is for. A search that sees every
# other voxel of a small target fits those alone: D99 of the others was 2 % lower.
_TARGET_SAMPLING = (10.0, 7000)
_TAIL_SAMPLING = (8.0, 4000)
_MEAN_SAMPLING = (30.0, 1500)
# Most points of normal tissue up to each distance from the targets: dose gradients are steepest near them.
_TISSUE_POINTS = ((15.0, 4500), (50.0, 4000), (np.inf, 2500))
# So that percentiles of a small structure mean something.
_LEAST_POINTS = 60


@dataclass(frozen=True, eq=False)
class Region:
    """Sampled points of one structure or a part of it: index range, which lie in a target, volume."""

    name: str
    points: slice
    in_target: NDArray[np.bool_]
    volume_cc: float


@dataclass(frozen=True, eq=False)
class CeilingMap:
    """On the dose grid: the most that each voxel may receive, relative, and its distance to any target."""

    grid: Grid
    dose: NDArray[np.float32]
    distance_mm: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Samples:
    """All points `points_mm[n, 3]`: of structures, of the hottest part of some, and of normal tissue."""

    points_mm: NDArray[np.float64]
    regions: dict[str, Region]
    hottest: Mapping[str, Region]
    tissue: slice

    def region_of(self, goal: Goal) -> Region:
        """The points on which a goal is judged."""
        whole = self.regions[goal.structure]
        return self.hottest.get(goal.structure, whole) if goal.metric.is_near_maximum else whole


def draw_samples(
    case: Case, sheet: GoalSheet, targets: tuple[str, ...], ceiling: CeilingMap, rng: np.random.Generator
) -> Samples:
    """Points in `targets`, in every structure with a goal, and in normal tissue."""
    union = case.union(targets)
    # A mean needs few samples; the tail of a histogram lives in few voxels and needs most of them.
    tails = {g.structure for g in sheet.goals if g.metric.kind != "mean"}
    names = dict.fromkeys([*targets, *(g.structure for g in sheet.goals if g.structure in case.structures)])
    points: list[NDArray[np.float64]] = []

    def region(name: str, flat: NDArray[np.intp], voxels: int) -> Region:
        begin = sum(map(len, points))
        points.append(case.grid.points_mm(flat))
        inside = union.ravel()[flat] if name not in targets else np.zeros(len(flat), bool)
        return Region(name, slice(begin, begin + len(flat)), inside, voxels * case.grid.voxel_cc)

    regions, hottest = {}, {}
    for name in names:
        structure = case.structures[name]
        if structure.role == "body" or structure.voxels == 0:
            continue
        rule = _TARGET_SAMPLING if name in targets else _TAIL_SAMPLING if name in tails else _MEAN_SAMPLING
        flat = np.flatnonzero(structure.mask)
        regions[name] = region(name, _thinned(flat, case.grid, *rule, rng), len(flat))
        if name not in targets and any(g.metric.is_near_maximum for g in sheet.goals if g.structure == name):
            hot = _hottest(flat, case.grid, ceiling)
            if len(hot) < len(flat):
                hottest[name] = region(name, _thinned(hot, case.grid, *_TAIL_SAMPLING, rng), len(hot))
    begin = sum(map(len, points))
    points.append(_tissue(ceiling, rng))
    return Samples(np.concatenate(points), regions, hottest, slice(begin, begin + len(points[-1])))


def _thinned(
    flat: NDArray[np.intp], grid: Grid, mm3: float, most: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Evenly spread voxels of a structure, one per `mm3` but at most `most`, as flat indices.

    A systematic sample in raster order with a random start: every slice and row gets its share, so
    that percentiles of the sample follow those of all voxels far closer than a random draw's.
    """
    count = int(min(most, max(_LEAST_POINTS, len(flat) * grid.voxel_cc * 1000 / mm3)))
    if count >= len(flat):
        return flat
    return flat[((np.arange(count) + rng.uniform()) * (len(flat) / count)).astype(int)]


def _hottest(flat: NDArray[np.intp], grid: Grid, ceiling: CeilingMap) -> NDArray[np.intp]:
    """The voxels of a structure that may be hottest, as many as can be sampled without gaps.

    A maximum is in one voxel: where a structure is too large for the number of points, those far from the
    targets are left out rather than every other one.
    """
    mm3, most = _TAIL_SAMPLING
    count = int(most * mm3 / (grid.voxel_cc * 1000)) if grid.voxel_cc * 1000 < mm3 else most
    if count >= len(flat):
        return flat
    allowed = sample(ceiling.dose, ceiling.grid, grid.points_mm(flat))
    return np.sort(flat[np.argpartition(-allowed, count)[:count]])


def _tissue(ceiling: CeilingMap, rng: np.random.Generator) -> NDArray[np.float64]:
    """Points in normal tissue, denser near the targets."""
    flat, low, chosen = ceiling.distance_mm.ravel(), 0.0, []
    for high, most in _TISSUE_POINTS:
        shell = np.flatnonzero((flat > low) & (flat <= high) & np.isfinite(flat))
        chosen.append(shell if len(shell) <= most else rng.choice(shell, most, replace=False))
        low = high
    return ceiling.grid.points_mm(np.sort(np.concatenate(chosen)))
