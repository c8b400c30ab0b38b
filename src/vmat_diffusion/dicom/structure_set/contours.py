"""Contours to masks and masks to contours.

A pixel belongs to a structure if its centre is inside an odd number of the structure's contours in
that plane (even-odd rule) or on one of them. Holes, keyholes and several contours per slice follow
from the first half. The second matters for contours that run from pixel centre to pixel centre, as
systems write them that outline a mask by its border pixels: only so does that mask come back.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vmat_diffusion.geometry import Grid, Mask

# A centre this close to a contour lies on it, in pixels: positions are written to 0.01 mm or so.
_ON_EDGE = 0.01


def fill_even_odd(contours: Sequence[tuple[int, NDArray]], shape: tuple[int, int, int]) -> NDArray[np.bool_]:
    """Pixels `[k, j, i]` whose centres lie inside an odd number of contours of their slice, or on one.

    Each contour is `(k, vertices)` with vertices `(n, 2)` as fractional pixel indices `(i, j)`; the
    polygon is closed by its last edge and may reach beyond the image. Cost: proportional to the
    contours' length in pixels plus the area of their bounding box.
    """
    mask = np.zeros(shape, bool)
    by_slice: dict[int, list[NDArray]] = {}
    for k, vertices in contours:
        by_slice.setdefault(k, []).append(np.asarray(vertices, float))
    for k, outlines in by_slice.items():
        start = np.concatenate(outlines)
        end = np.concatenate([np.roll(outline, -1, axis=0) for outline in outlines])
        _fill_plane(start, end, mask[k])
        _mark_edges(start, end, mask[k])
    return mask


def winding(outline: NDArray, shape: tuple[int, int]) -> tuple[tuple[slice, slice], NDArray[np.intp]]:
    """How often a closed line `(n, 2)` runs round each pixel centre in its box of `[j, i]`, and that box.

    The sign is the direction.
    """
    start = np.asarray(outline, float)
    box, flips = _crossings(start, np.roll(start, -1, axis=0), shape)
    if flips is None:
        return box, np.zeros((0, 0), np.intp)
    return box, np.cumsum(flips[0] - flips[1], axis=1)[:, : box[1].stop - box[1].start]


def _fill_plane(start: NDArray, end: NDArray, out: NDArray[np.bool_]) -> None:
    """Set the pixels of `out` with an odd number of edges to their left."""
    box, flips = _crossings(start, end, out.shape)
    if flips is not None:
        # An even number of flips at one place cancels: one running XOR along the rows gives the inside.
        odd = (flips[0] + flips[1]) & 1
        out[box] = np.bitwise_xor.accumulate(odd.astype(np.uint8), axis=1)[:, : out[box].shape[1]]


def _crossings(
    start: NDArray, end: NDArray, shape: tuple[int, ...]
) -> tuple[tuple[slice, slice], NDArray[np.intp] | None]:
    """Where edges cross the rows of pixel centres, upwards and downwards `[2, rows, columns]`, in a box.

    Every crossing counts for the first pixel to its right, and so for all further ones; the last column
    stands for what lies right of the image.
    """
    nj, ni = shape
    # Rows j with min <= j < max of the edge's ends: half-open, so a shared vertex counts once.
    first = np.clip(np.ceil(np.minimum(start[:, 1], end[:, 1])), 0, nj).astype(np.intp)
    stop = np.clip(np.ceil(np.maximum(start[:, 1], end[:, 1])), 0, nj).astype(np.intp)
    edge, j = _ranges(first, stop)
    if not len(j):
        return (slice(0, 0), slice(0, 0)), None
    (x0, y0), (x1, y1) = start[edge].T, end[edge].T
    i = np.clip(np.ceil(x0 + (j - y0) * ((x1 - x0) / (y1 - y0))), 0, ni).astype(np.intp)
    j0, i0 = int(j.min()), int(i.min())
    rows, columns = int(j.max()) - j0 + 1, int(i.max()) - i0 + 1
    at = (j - j0) * columns + (i - i0)
    count = rows * columns
    both = np.bincount(at + np.where(y1 > y0, 0, count), minlength=2 * count).reshape(2, rows, columns)
    return (slice(j0, j0 + rows), slice(i0, min(i0 + columns, ni))), both


def mark_edges(outline: NDArray, out: NDArray[np.bool_]) -> None:
    """Set the pixels of `out` `[j, i]` whose centres lie on a closed line `(n, 2)`."""
    start = np.asarray(outline, float)
    _mark_edges(start, np.roll(start, -1, axis=0), out)


def _mark_edges(start: NDArray, end: NDArray, out: NDArray[np.bool_]) -> None:
    """Set the pixels of `out` whose centres lie on an edge."""
    nj, ni = out.shape
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first = np.clip(np.ceil(low - _ON_EDGE), 0, nj).astype(np.intp)
    stop = np.clip(np.floor(high + _ON_EDGE) + 1, 0, nj).astype(np.intp)
    edge, j = _ranges(first, stop)
    if not len(j):
        return
    (x0, y0), (x1, y1) = start[edge].T, end[edge].T
    # The part of the edge within the tolerance of row j, as a range of its parameter in 0..1.
    rise = y1 - y0
    flat = np.abs(rise) < 1e-9
    safe = np.where(flat, 1.0, rise)
    ends = [np.where(flat, t, np.clip((j + s - y0) / safe, 0, 1)) for t, s in ((0, -_ON_EDGE), (1, _ON_EDGE))]
    across = [x0 + t * (x1 - x0) for t in ends]
    left = np.clip(np.ceil(np.minimum(*across) - _ON_EDGE), 0, ni).astype(np.intp)
    right = np.clip(np.floor(np.maximum(*across) + _ON_EDGE) + 1, 0, ni).astype(np.intp)
    span, i = _ranges(left, right)
    out[j[span], i] = True


def _ranges(first: NDArray, stop: NDArray) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """All pairs of a row number r and a whole number in `first[r] <= value < stop[r]`."""
    count = np.maximum(stop - first, 0)
    row = np.repeat(np.arange(len(count)), count)
    return row, np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + first[row]


def fill_between(mask: NDArray[np.bool_], planes: Sequence[int], reach: int) -> tuple[NDArray[np.bool_], int]:
    """Fill slices between two contoured planes by shape interpolation; also returns how many.

    `planes` are the contoured slices; a gap of at most `reach` slices between two of them is filled
    where the two outlines overlap in the plane: only then are they surely one piece. Shape
    interpolation: linear blend of the signed distances (Raya and Udupa, IEEE TMI 9:32, 1990).
    """
    out = mask  # copied only once something is filled: a mask of a large CT costs 40 MB
    filled = 0
    ordered = sorted(planes)
    for a, b in pairwise(ordered):
        if not 1 < b - a <= reach + 1 or not np.any(mask[a] & mask[b]):
            continue
        out = mask.copy() if out is mask else out
        rows, columns = np.nonzero(mask[a] | mask[b])
        j, i = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
        lower, upper = (_signed_distance(mask[k, j, i]) for k in (a, b))
        for k in range(a + 1, b):
            share = (k - a) / (b - a)
            out[k, j, i] |= (1 - share) * lower + share * upper > 0
            filled += 1
    return out, filled


def _signed_distance(plane: NDArray[np.bool_]) -> NDArray[np.float64]:
    padded = np.pad(plane, 1)
    signed = ndimage.distance_transform_edt(padded) - ndimage.distance_transform_edt(~padded)
    return signed[1:-1, 1:-1]


def contours_from_mask(mask: Mask, grid: Grid) -> list[NDArray[np.float64]]:
    """Planar contours `(n, 3)` in mm, slice by slice, that `fill_even_odd` turns back into the mask.

    The outline runs half-way between the centres of inner and outer voxels; holes are contours of
    their own, as the even-odd rule reads them. Open ends do not occur. Ascending in z.
    """
    from contourpy import contour_generator  # slow to load, needed for writing only

    x, y, z = grid.axes_mm
    dx, dy, _ = grid.spacing_mm
    out: list[NDArray[np.float64]] = []
    for k in np.flatnonzero(mask.any(axis=(1, 2))):
        rows, columns = np.nonzero(mask[k])
        j0, i0 = rows.min(), columns.min()
        window = np.pad(mask[k, j0 : rows.max() + 1, i0 : columns.max() + 1], 1)
        for outline in contour_generator(z=window, line_type="Separate").lines(0.5):
            i, j = np.asarray(outline)[:-1].T - 1.0
            points = np.empty((len(j), 3))
            points[:, 0] = x[i0] + i * dx
            points[:, 1] = y[j0] + j * dy
            points[:, 2] = z[k]
            out.append(points)
    return out
