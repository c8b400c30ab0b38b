"""The points at which the search computes dose: voxels that represent structures and normal tissue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vmat_diffusion.case import Case, Structure
from vmat_diffusion.distance import signed_distance_mm
from vmat_diffusion.evaluate.goals import Goal, GoalSheet
from vmat_diffusion.geometry import Grid, Mask, average_onto, sample
from vmat_diffusion.optimize.falloff import CeilingMap

# Cubic millimetres per point and most points, by what the structure is for. A search that sees every
# other voxel of a small target fits those alone: D99 of the others was 2 % lower.
_TARGET_SAMPLING = (10.0, 7000)
_TAIL_SAMPLING = (8.0, 4000)
_MEAN_SAMPLING = (30.0, 1500)
# Most points of normal tissue up to each distance from the targets: dose gradients are steepest near them.
_TISSUE_POINTS = ((15.0, 4500), (50.0, 4000), (np.inf, 2500))
# So that percentiles of a small structure mean something.
_LEAST_POINTS = 60
# Beyond a distance from a target dose is smooth, and highest in the first millimetres.
_BEYOND_SAMPLING, _BEYOND_MM = (20.0, 4000), 12.0
# Most nodes of the dose grid around a target or in the body. Around a target they reach until they hold this
# many times the volume that a goal allows the isodose; normal tissue has its own points beyond.
_MOST_NODES, _ALLOWED_VOLUMES = 6000, 2.0
# So that the whole body on a fine CT costs no more than 100 MB at once.
_VOXELS_AT_A_TIME = 2_000_000
# Up to this allowed volume a V goal is one on the hottest spot: "none above 50 Gy".
_NEAR_MAXIMUM_CC = 0.2


def is_near_maximum(goal: Goal) -> bool:
    """Whether a goal concerns the hottest spot of its structure: max, D0.03cc, D2cm, V50Gy <= 0 cc."""
    metric = goal.metric
    if metric.is_near_maximum or metric.kind == "Dcm":
        return True
    if metric.kind != "V" or goal.comparator != "<=" or goal.variation:
        return False
    return goal.limit <= (_NEAR_MAXIMUM_CC if metric.result_unit == "cc" else 0.0)


@dataclass(frozen=True, eq=False)
class Region:
    """Sampled points of one structure or a part of it: index range, which lie in a target, volume."""

    name: str
    points: slice
    in_target: NDArray[np.bool_]
    volume_cc: float


@dataclass(frozen=True, eq=False)
class Samples:
    """All points `points_mm[n, 3]`: of structures, of the hottest part of some, and of normal tissue.

    `outside` are the points of each goal, by its words, that is judged in the body and not in a structure
    that is sampled: R50%, D2cm, and any goal on the body itself.
    """

    points_mm: NDArray[np.float64]
    regions: dict[str, Region]
    hottest: Mapping[str, Region]
    tissue: slice
    outside: Mapping[str, Region]

    def region_of(self, goal: Goal) -> Region | None:
        """The points on which a goal is judged; None where its structure is not sampled."""
        around = self.outside.get(str(goal))
        if around is not None or goal.metric.kind in ("R", "Dcm"):
            return around
        whole = self.regions.get(goal.structure)
        return self.hottest.get(goal.structure, whole) if whole and is_near_maximum(goal) else whole


def draw_samples(
    case: Case,
    sheet: GoalSheet,
    targets: tuple[str, ...],
    ceiling: CeilingMap,
    rng: np.random.Generator,
    *,
    share: float = 1.0,
) -> Samples:
    """Points in `targets`, in every structure with a goal, and in normal tissue.

    `share` multiplies the most points of large structures and of tissue; small ones keep all of theirs.
    """
    union = case.union(targets)
    # A mean needs few samples; the tail of a histogram lives in few voxels and needs most of them.
    tails = {g.structure for g in sheet.goals if g.metric.kind != "mean"}
    names = dict.fromkeys([*targets, *(g.structure for g in sheet.goals if g.structure in case.structures)])
    points: list[NDArray[np.float64]] = []

    def region_at(name: str, points_mm: NDArray, inside: NDArray[np.bool_], volume_cc: float) -> Region:
        begin = sum(map(len, points))
        points.append(points_mm)
        return Region(name, slice(begin, begin + len(points_mm)), inside, volume_cc)

    def region(name: str, flat: NDArray[np.intp], voxels: int) -> Region:
        inside = union.ravel()[flat] if name not in targets else np.zeros(len(flat), bool)
        return region_at(name, case.grid.points_mm(flat), inside, voxels * case.grid.voxel_cc)

    regions, hottest = {}, {}
    for name in names:
        structure = case.structures[name]
        if structure.role == "body" or structure.voxels == 0:
            continue
        rule = _TARGET_SAMPLING if name in targets else _TAIL_SAMPLING if name in tails else _MEAN_SAMPLING
        flat = np.flatnonzero(structure.mask)
        regions[name] = region(name, _thinned(flat, case.grid, *_at_most(rule, share), rng), len(flat))
        if name not in targets and any(is_near_maximum(g) for g in sheet.goals if g.structure == name):
            tail = _at_most(_TAIL_SAMPLING, share)
            hot = _hottest(flat, case.grid, ceiling, *tail)
            if len(hot) < len(flat):
                hottest[name] = region(name, _thinned(hot, case.grid, *tail, rng), len(hot))
    begin = sum(map(len, points))
    points.append(_tissue(ceiling, share, rng))
    tissue = slice(begin, begin + len(points[-1]))
    outside = {}
    for goal in sheet.goals:
        places = _outside(goal, case, union, ceiling, rng, share=share)
        if places is not None and len(places[0]):
            outside[str(goal)] = region_at(f"body for {goal.structure}", *places)
    return Samples(np.concatenate(points), regions, hottest, tissue, outside)


_Places = tuple[NDArray[np.float64], NDArray[np.bool_], float]


def _outside(
    goal: Goal, case: Case, targets: Mask, ceiling: CeilingMap, rng: np.random.Generator, *, share: float
) -> _Places | None:
    """The points, which lie in a target, and the volume of a goal that is judged in the body.

    None for a goal on a structure of its own.
    """
    structure = case.structures.get(goal.structure)
    if structure is None or structure.voxels == 0:
        return None
    if goal.metric.kind == "Dcm":
        flat = _beyond(case, structure, 10.0 * (goal.metric.value or 0.0))
        rule = _at_most(_BEYOND_SAMPLING, share)
        hot = _hottest(flat, case.grid, ceiling, *rule)
        chosen = _thinned(hot, case.grid, *rule, rng)
        return case.grid.points_mm(chosen), targets.ravel()[chosen], len(hot) * case.grid.voxel_cc
    if goal.metric.kind != "R" and structure.role != "body":
        return None
    nodes, most = np.flatnonzero(np.isfinite(ceiling.distance_mm)), int(_MOST_NODES * share)
    if goal.metric.kind == "R":
        allowed_cc = max(goal.limit, goal.variation or 0.0) * structure.voxels * case.grid.voxel_cc
        nodes = _nearest(nodes, structure, case, ceiling, _ALLOWED_VOLUMES * allowed_cc)
    elif is_near_maximum(goal) and len(nodes) > most:
        nodes = np.sort(nodes[np.argpartition(-ceiling.dose.ravel()[nodes], most)[:most]])
    chosen = _spread(nodes, most, rng)
    inside = average_onto(targets, case.grid, ceiling.grid).ravel()[chosen] > 0.5
    return ceiling.grid.points_mm(chosen), inside, len(nodes) * ceiling.grid.voxel_cc


def _at_most(rule: tuple[float, int], share: float) -> tuple[float, int]:
    """Cubic millimetres per point, and a share of the most points."""
    mm3, most = rule
    return mm3, int(most * share)


def _beyond(case: Case, target: Structure, distance_mm: float) -> NDArray[np.intp]:
    """The body's voxels a little further than a distance from a target's surface."""
    most = distance_mm + _BEYOND_MM
    away = signed_distance_mm(target.mask, case.grid.spacing_mm, limit_mm=most + 1.0)
    return np.flatnonzero(case.body.mask & (away > distance_mm) & (away <= most))


def _nearest(
    nodes: NDArray[np.intp], target: Structure, case: Case, ceiling: CeilingMap, volume_cc: float
) -> NDArray[np.intp]:
    """The nodes of the dose grid that are nearest to a target, as many as have a volume."""
    grid = ceiling.grid
    share = average_onto(target.mask, case.grid, grid)
    inside = share > min(0.5, 0.5 * float(share.max()))
    away = ndimage.distance_transform_edt(~inside, sampling=grid.spacing_mm[::-1]).ravel()[nodes]
    count = int(np.ceil(volume_cc / grid.voxel_cc))
    return nodes if count >= len(nodes) else np.sort(nodes[np.argpartition(away, count)[:count]])


def _thinned(
    flat: NDArray[np.intp], grid: Grid, mm3: float, most: int, rng: np.random.Generator
) -> NDArray[np.intp]:
    """Evenly spread voxels of a structure, one per `mm3` but at most `most`, as flat indices.

    A systematic sample in raster order with a random start: every slice and row gets its share, so
    that percentiles of the sample follow those of all voxels far closer than a random draw's.
    """
    return _spread(flat, int(min(most, max(_LEAST_POINTS, len(flat) * grid.voxel_cc * 1000 / mm3))), rng)


def _spread(flat: NDArray[np.intp], count: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """So many of the voxels in even steps from a random start; all where there are no more."""
    if count >= len(flat):
        return flat
    return flat[((np.arange(count) + rng.uniform()) * (len(flat) / count)).astype(int)]


def _hottest(
    flat: NDArray[np.intp], grid: Grid, ceiling: CeilingMap, mm3: float, most: int
) -> NDArray[np.intp]:
    """The voxels of a structure that may be hottest, as many as can be sampled without gaps.

    A maximum is in one voxel: where a structure is too large for the number of points, those far from the
    targets are left out rather than every other one.
    """
    count = int(most * mm3 / (grid.voxel_cc * 1000)) if grid.voxel_cc * 1000 < mm3 else most
    if count >= len(flat):
        return flat
    parts = np.array_split(flat, max(len(flat) // _VOXELS_AT_A_TIME, 1))
    allowed = np.concatenate([sample(ceiling.dose, ceiling.grid, grid.points_mm(part)) for part in parts])
    return np.sort(flat[np.argpartition(-allowed, count)[:count]])


def _tissue(ceiling: CeilingMap, share: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Points in normal tissue, denser near the targets."""
    flat, low, chosen = ceiling.distance_mm.ravel(), 0.0, []
    for high, of_all in _TISSUE_POINTS:
        most = int(of_all * share)
        shell = np.flatnonzero((flat > low) & (flat <= high) & np.isfinite(flat))
        chosen.append(shell if len(shell) <= most else rng.choice(shell, most, replace=False))
        low = high
    return ceiling.grid.points_mm(np.sort(np.concatenate(chosen)))
