"""Leaf pairs closed or wide open: what a least gap of open pairs makes of deliverable trajectories.

A gap that is narrow costs MU and magnifies every error of a leaf's position. The set of trajectories without
narrow gaps is not convex, so this is no projection of every step of the search: it is applied once, at its
end, and the MU are solved anew.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def closed_or_wide(
    leaves_mm: NDArray[np.float64],
    travel_mm: NDArray[np.float64],
    *,
    closed_mm: float,
    wide_mm: float,
    low_mm: NDArray[np.float64],
    high_mm: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Leaves `[n, 2, rows]` of one arc, each pair at each control point closed or at least `wide_mm` open.

    Pairs narrower than half of `wide_mm` close to `closed_mm`, others open, where `travel_mm[n-1]` lets a
    pair do either within a segment; elsewhere neighbours do the same. The leaves must keep travel and range
    `low_mm`, `high_mm` `[n, 1]` already, and keep them; a row that could not is returned as it was. Half gap
    h and middle m move such that |dm| + |dh|, the travel of the leaf that moves further, is within the limit.
    """
    middle, half = leaves_mm.mean(axis=1), np.diff(leaves_mm, axis=1)[:, 0] / 2
    closed, wide = closed_mm / 2, wide_mm / 2
    # Control points between which a pair has no time to open or close go together, by their mean gap.
    together = np.concatenate([[0], np.cumsum(travel_mm >= wide - closed)])
    mean = np.stack([np.bincount(together, row) / np.bincount(together) for row in half.T], axis=1)[together]
    opened = mean >= wide / 2
    half = _within(np.where(opened, np.maximum(half, wide), closed), travel_mm[:, None])
    left_over = travel_mm[:, None] - np.abs(np.diff(half, axis=0))
    middle = (_within(middle, left_over) - _within(-middle, left_over)) / 2
    middle = np.clip(middle, low_mm + half, np.maximum(high_mm - half, low_mm + half))
    out = np.stack([middle - half, middle + half], axis=1)
    moved = np.abs(np.diff(out, axis=0)).max(axis=1)
    kept = (moved <= travel_mm[:, None] + 1e-9).all(axis=0)
    kept &= ((out[:, 0] >= low_mm - 1e-9) & (out[:, 1] <= high_mm + 1e-9)).all(axis=0)
    return np.where(kept[None, None, :], out, leaves_mm)


def _within(values: NDArray, step: NDArray) -> NDArray[np.float64]:
    """The greatest trajectories nowhere above `values[n, rows]` that move at most `step[n-1, rows]`."""
    out = values.astype(np.float64)
    step = np.broadcast_to(step, (len(out) - 1, out.shape[1]))
    for k in range(1, len(out)):
        np.minimum(out[k], out[k - 1] + step[k - 1], out=out[k])
    for k in range(len(out) - 2, -1, -1):
        np.minimum(out[k], out[k + 1] + step[k], out=out[k])
    return out
