"""What several outlines on one slice mean together.

A hole lies wholly inside another outline; outlines that overlap in part are joined. An outline that is
stored again (from another start, with a vertex less, in the other direction) or that runs round twice
counts once. The even-odd rule alone would cut all of these out. CLOSEDPLANAR_XOR means what its name says:
there, overlaps are cut out (PS3.3 C.8.8.6.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.dicom.structure_set.contours import fill_even_odd, mark_edges, winding

# In pixels. Two outlines that run this close to each other all along are one: no pixel fits between them.
_SAME = 0.25
# A vertex this close to an outline lies on it; positions are written to 0.01 mm or so.
_ON = 0.05
# Outlines of less than this share of the other's area are no copies of it.
_SAME_AREA = 0.5


@dataclass(frozen=True, eq=False)
class Filled:
    """The pixels of one slice, and how often outlines had to be counted once, or were joined.

    `lost` counts the pixels inside an outline that are in the result neither nor in a hole.
    """

    plane: NDArray[np.bool_]
    drawn: NDArray[np.bool_]
    copies: int = 0
    laps: int = 0
    joined: int = 0
    lost: int = 0


def fill_outlines(outlines: Sequence[NDArray], shape: tuple[int, int], *, exclusive: bool = False) -> Filled:
    """The pixels `[j, i]` of one slice inside outlines `(n, 2)` of fractional pixel indices `(i, j)`.

    Without repeated, overlapping or crossing outlines this is `fill_even_odd`. `exclusive` keeps the
    even-odd rule for overlaps. Cost: as `fill_even_odd`, and for each pair of outlines whose boxes meet the
    product of their numbers of vertices.
    """
    parts = [part for outline in outlines for part in _loops(outline)]
    loops = [_Loop.of(part, shape) for part in parts]
    laps = sum(loop.laps for loop in loops)
    kept, copies = _without_copies(loops)
    nested, overlaps = _relations(kept)
    joined = [] if exclusive else [pair for pair in overlaps if kept[pair[0]].shares(kept[pair[1]])]
    drawn = np.zeros(shape, bool)
    for loop in kept:
        drawn[loop.box] |= loop.mask
    holes = np.zeros(shape, bool)
    if copies or laps or joined:
        plane = _exclusive(kept, shape) if exclusive else _by_depth(kept, nested, joined, shape)
        for loop in kept:
            mark_edges(loop.vertices, plane)
    else:
        plane = fill_even_odd([(0, np.asarray(o, float)) for o in outlines], (1, *shape))[0]
    for inner, _ in nested if not exclusive else [*nested, *overlaps]:
        holes[kept[inner].box] |= kept[inner].mask
    lost = int(np.count_nonzero(drawn & ~plane & ~holes))
    return Filled(plane, drawn | plane, copies, laps, len(joined), lost)


@dataclass(frozen=True, eq=False)
class _Loop:
    """A closed line that comes back to no vertex; `mask` is what it runs round, however often, in `box`."""

    vertices: NDArray[np.float64]
    box: tuple[slice, slice]
    mask: NDArray[np.bool_]
    laps: bool
    area: float

    @classmethod
    def of(cls, vertices: NDArray, shape: tuple[int, int]) -> _Loop:
        box, turns = winding(vertices, shape)
        x, y = (vertices - vertices[0]).T
        area = abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
        # A line that runs round one point twice crosses itself: each place inside counts once.
        laps = bool(np.any(np.abs(turns) > 1))
        area = float(np.count_nonzero(turns)) if laps else area
        return cls(vertices, box, turns != 0, laps, area)

    def shares(self, other: _Loop) -> bool:
        """Whether both run round one pixel."""
        pairs = list(zip(self.box, other.box, strict=True))
        low, high = [max(a.start, b.start) for a, b in pairs], [min(a.stop, b.stop) for a, b in pairs]
        if not (high[0] > low[0] and high[1] > low[1]):
            return False
        one, two = (
            loop.mask[
                tuple(
                    slice(lo - at.start, hi - at.start)
                    for lo, hi, at in zip(low, high, loop.box, strict=True)
                )
            ]
            for loop in (self, other)
        )
        return bool(np.any(one & two))


def _meeting(loops: Sequence[_Loop]) -> list[tuple[int, int]]:
    """Pairs (larger, smaller) of loops with an area whose boxes meet, in the order of the smaller one.

    The loops come in the order of falling area.
    """
    closed = [n for n, loop in enumerate(loops) if loop.area > 0]
    if len(closed) < 2:
        return []
    low = np.array([loops[n].vertices.min(axis=0) for n in closed]) - _SAME
    high = np.array([loops[n].vertices.max(axis=0) for n in closed])
    meet = np.all((low[:, None] <= high) & (low <= high[:, None]), axis=2)
    small, large = np.nonzero(np.tril(meet, -1))
    return [(closed[a], closed[b]) for a, b in zip(large, small, strict=True)]


def _loops(outline: NDArray) -> list[NDArray[np.float64]]:
    """The outline cut where it comes back to a vertex: the even-odd rule sees no difference.

    A keyhole becomes its outer and inner outline and the channel, a second lap an outline of its own.
    """
    points = np.asarray(outline, float)
    keys = np.round(points, 3) + 0.0
    new = np.any(keys != np.roll(keys, -1, axis=0), axis=1)
    points, keys = (points[new], keys[new]) if new.any() else (points[:1], keys[:1])
    place = keys[:, 0] + 1j * keys[:, 1]
    if len(np.unique(place)) == len(place):
        return [points]
    loops: list[NDArray] = []
    stack: list[int] = []
    where: dict[complex, int] = {}
    for n, key in enumerate(place.tolist()):
        if (back := where.get(key)) is not None:
            loops.append(points[stack[back:]])
            for gone in stack[back + 1 :]:
                where.pop(complex(place[gone]), None)
            del stack[back + 1 :]
        else:
            where[key] = len(stack)
            stack.append(n)
    return [*loops, points[stack]]


def _without_copies(loops: Sequence[_Loop]) -> tuple[list[_Loop], int]:
    """The loops in the order of falling area, without those that repeat a larger one.

    Copies count as larger ones as well: what repeats a part of a rounded copy repeats its original.
    """
    ordered = sorted(loops, key=lambda one: -one.area)
    copies: set[int] = set()
    for larger, n in _meeting(ordered):
        if n not in copies and _repeats(ordered[n], ordered[larger]):
            copies.add(n)
    return [loop for n, loop in enumerate(ordered) if n not in copies], len(copies)


def _repeats(loop: _Loop, larger: _Loop) -> bool:
    # All vertices on the larger outline: a copy with fewer vertices, or part of a second lap. The vertices
    # of a hole lie inside.
    alike = loop.area >= _SAME_AREA * larger.area
    if (alike or len(loop.vertices) > 4) and _lies_on(loop.vertices, larger.vertices):
        return True
    if not alike:
        return False
    if _lies_on(larger.vertices, loop.vertices):
        return True
    there = distances(_dense(loop.vertices), larger.vertices).mean()
    return bool(there <= _SAME and distances(_dense(larger.vertices), loop.vertices).mean() <= _SAME)


def _lies_on(vertices: NDArray, outline: NDArray) -> bool:
    """Whether all vertices lie on an outline; a few are looked at first, which is mostly enough."""
    few = vertices[:: len(vertices) // 8 + 1]
    return bool(distances(few, outline).max() <= _ON and distances(vertices, outline).max() <= _ON)


def _relations(kept: Sequence[_Loop]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Pairs (inner, outer) of loops that lie wholly inside another, and pairs that overlap in part."""
    nested: list[tuple[int, int]] = []
    overlaps: list[tuple[int, int]] = []
    for outer, inner in _meeting(kept):
        large, small = kept[outer], kept[inner]
        points = _dense(small.vertices)
        away = distances(points, large.vertices) > _SAME
        inside = _contains(large.vertices, points[away] if away.any() else points.mean(axis=0, keepdims=True))
        if inside.all():
            nested.append((inner, outer))
        elif inside.any() or small.shares(large):
            overlaps.append((inner, outer))
    return nested, overlaps


def _by_depth(
    kept: Sequence[_Loop],
    nested: list[tuple[int, int]],
    joined: list[tuple[int, int]],
    shape: tuple[int, int],
) -> NDArray[np.bool_]:
    """Joined loops are one region; a region inside an odd number of others is a hole."""
    region = list(range(len(kept)))
    for a, b in joined:
        one, other = region[a], region[b]
        region = [one if r == other else r for r in region]
    around = [{region[outer] for inner, outer in nested if inner == n} for n in range(len(kept))]
    members: dict[int, list[int]] = {}
    for n, name in enumerate(region):
        members.setdefault(name, []).append(n)
    # A region is inside another one only if all of its loops are.
    depth = {
        name: len(set.intersection(*(around[n] for n in loops)) - {name}) for name, loops in members.items()
    }
    plane = np.zeros(shape, bool)
    for name in sorted(members, key=lambda m: depth[m]):
        for n in members[name]:
            if depth[name] % 2:
                plane[kept[n].box] &= ~kept[n].mask
            else:
                plane[kept[n].box] |= kept[n].mask
    return plane


def _exclusive(kept: Sequence[_Loop], shape: tuple[int, int]) -> NDArray[np.bool_]:
    plane = np.zeros(shape, bool)
    for loop in kept:
        plane[loop.box] ^= loop.mask
    return plane


def _dense(vertices: NDArray) -> NDArray[np.float64]:
    """Points along a closed line, at most one pixel apart but no more than 256 or so."""
    step = np.roll(vertices, -1, axis=0) - vertices
    length = np.hypot(*step.T)
    apart = max(1.0, float(length.sum()) / 256)
    count = np.maximum(np.ceil(length / apart).astype(int), 1)
    edge = np.repeat(np.arange(len(vertices)), count)
    share = (np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)) / count[edge]
    return vertices[edge] + share[:, None] * step[edge]


def distances(points: NDArray, outline: NDArray) -> NDArray[np.float64]:
    """Distance `(n,)` of points `(n, 2)` from a closed line `(m, 2)`."""
    step = np.roll(outline, -1, axis=0) - outline
    square = np.maximum(np.sum(step**2, axis=1), 1e-30)
    out = np.empty(len(points))
    rows = max(1, 500_000 // len(outline))
    for n in range(0, len(points), rows):
        x = points[n : n + rows, None, 0] - outline[:, 0]
        y = points[n : n + rows, None, 1] - outline[:, 1]
        share = np.clip((x * step[:, 0] + y * step[:, 1]) / square, 0, 1)
        out[n : n + rows] = np.hypot(x - share * step[:, 0], y - share * step[:, 1]).min(axis=1)
    return out


def _contains(outline: NDArray, points: NDArray) -> NDArray[np.bool_]:
    """Whether the line runs round each point at least once."""
    (x0, y0), (x1, y1) = outline.T, np.roll(outline, -1, axis=0).T
    out = np.empty(len(points), bool)
    rise = np.where(y1 == y0, 1.0, y1 - y0)
    rows = max(1, 500_000 // len(outline))
    for n in range(0, len(points), rows):
        x, y = points[n : n + rows, 0, None], points[n : n + rows, 1, None]
        up, down = (y0 <= y) & (y1 > y), (y1 <= y) & (y0 > y)
        left = x0 + (y - y0) * ((x1 - x0) / rise) <= x
        out[n : n + rows] = ((up & left).sum(axis=1) - (down & left).sum(axis=1)) != 0
    return out
