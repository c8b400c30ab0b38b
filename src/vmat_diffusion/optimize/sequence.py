"""From the ideal fluence of a sector to leaves that sweep over it while the gantry turns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sweep(
    fluence: NDArray,
    column_edges_mm: NDArray,
    times: NDArray,
    *,
    rightward: bool,
    travel_mm: float,
    mu_most: float,
    fill: float = 0.7,
) -> tuple[NDArray, float]:
    """Sliding-window trajectories of one sector.

    `fluence[strips, columns]` in MU; `times` in [0, 1] at which positions are wanted; `travel_mm`
    what a leaf can travel during the sector; `mu_most` what the linac can give meanwhile. Returns
    positions `(times, 2, strips)` and the MU that the sector needs. Rows whose modulation costs more
    than `mu_most` are smoothed until they fit, NaN stands for rows that stay closed. Where a row is too wide to be crossed in `fill` of the time its pace is raised
    beyond the leaf's; the caller's projection onto the speed limit then shortens the sweep.
    Source: Svensson, Kallman, Brahme, Phys Med Biol 39:37 (1994); Spirou and Chui, Med Phys 21:1031 (1994).
    """
    f = fluence if rightward else fluence[:, ::-1]
    edges = column_edges_mm if rightward else -column_edges_mm[::-1]
    width = np.diff(edges)
    lit = f > 0.02 * max(f.max(), 1e-12)
    crossing = np.minimum((lit * width).sum(axis=1) / travel_mm, fill)
    f = np.stack([_affordable(row, mu_most * (1 - c)) for row, c in zip(f * lit, crossing, strict=True)])
    mu = float(max((_rise(f) / (1 - crossing)).max(), 1e-6))
    out = np.zeros((len(times), 2, len(f)))
    for r, row in enumerate(f):
        if not lit[r].any():
            out[:, :, r] = np.nan
            continue
        out[:, :, r] = _row(row / mu, edges, times, crossing[r])
    if not rightward:
        out = -out[:, ::-1]
    return out, mu


def _rise(rows: NDArray) -> NDArray:
    """Sum of the increases along the last axis: the MU that a sliding window needs for a row."""
    return np.clip(np.diff(rows, axis=-1, prepend=0.0), 0, None).sum(axis=-1)


def _affordable(row: NDArray, most: float) -> NDArray:
    """The row smoothed within its own support, integral kept, until its rise is at most `most`."""
    support = row > 0
    for _ in range(40):
        if _rise(row) <= most:
            return row
        total = row.sum()
        padded = np.concatenate([row[:1], row, row[-1:]])
        row = np.where(support, (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4, 0.0)
        row = row * (total / max(row.sum(), 1e-12))
    return row * min(1.0, most / max(_rise(row), 1e-12))


def _row(dwell: NDArray, edges: NDArray, times: NDArray, crossing: float) -> NDArray:
    """Leading and trailing edge of one row at the given times; dwell is in units of the sector's time.

    The opening's leading edge passes column borders at `lead`, its trailing edge at `trail`, and
    `trail - lead` inside a column is the column's dwell. Returns (times, 2): left, right.
    """
    used = np.flatnonzero(dwell > 0)
    first, last = used[0], used[-1] + 1
    d, x = dwell[first:last], edges[first : last + 1]
    pace = crossing / (x[-1] - x[0])
    step = np.diff(np.concatenate([[0.0], d]))
    lead = np.zeros(len(x))
    trail = np.zeros(len(x))
    time_lead, time_trail = 0.0, 0.0
    knots_lead, knots_trail, position = [], [], []
    for j in range(len(d)):
        time_lead += max(-step[j], 0.0)
        time_trail += max(step[j], 0.0)
        knots_lead += [time_lead, time_lead + pace * (x[j + 1] - x[j])]
        knots_trail += [time_trail, time_trail + pace * (x[j + 1] - x[j])]
        position += [x[j], x[j + 1]]
        time_lead, time_trail = knots_lead[-1], knots_trail[-1]
    lead, trail, position = np.array(knots_lead), np.array(knots_trail), np.array(position)
    shift = (1.0 - trail[-1]) / 2
    right = np.interp(times, lead + shift, position)
    left = np.interp(times, trail + shift, position)
    return np.stack([np.minimum(left, right), right], axis=1)


def lipschitz(positions: NDArray, reach_mm: NDArray) -> NDArray[np.float64]:
    """Nearest-in-maximum trajectories that move at most `reach_mm[k]` between control points k and k+1.

    `positions[n, ...]`; the mean of the greatest such function below and the least above, which
    leaves trajectories that already keep the limit untouched and never moves one by more than half
    of its worst excess.
    """
    shape = (-1,) + (1,) * (positions.ndim - 1)
    step = np.asarray(reach_mm).reshape(shape)
    upper, lower = positions.astype(np.float64).copy(), positions.astype(np.float64).copy()
    for k in range(1, len(positions)):
        np.minimum(upper[k], upper[k - 1] + step[k - 1], out=upper[k])
        np.maximum(lower[k], lower[k - 1] - step[k - 1], out=lower[k])
    for k in range(len(positions) - 2, -1, -1):
        np.minimum(upper[k], upper[k + 1] + step[k], out=upper[k])
        np.maximum(lower[k], lower[k + 1] - step[k], out=lower[k])
    return (upper + lower) / 2


def deliverable(leaves_mm: NDArray, reach_mm: NDArray, gap_mm: float, low_mm: float, high_mm: float) -> NDArray:
    """Leaves `(n, 2, rows)` moved onto the limits of travel, gap and range; all hold exactly.

    The minimum of two trajectories within the travel limit keeps it, so opening a pair that is too
    narrow, by half on either side, keeps it too.
    """
    smooth = np.clip(lipschitz(leaves_mm, reach_mm), low_mm, high_mm)
    left, right = smooth[:, 0], smooth[:, 1]
    middle = np.clip((left + right) / 2, low_mm + gap_mm / 2, high_mm - gap_mm / 2)
    return np.stack([np.minimum(left, middle - gap_mm / 2), np.maximum(right, middle + gap_mm / 2)], axis=1)


def fill_unused(positions: NDArray, gap_mm: float) -> NDArray:
    """Rows that a sector never opens wait closed where they were last, or will be next, open."""
    out = positions.copy()
    n, _, rows = out.shape
    for r in range(rows):
        known = ~np.isnan(out[:, 0, r])
        if not known.any():
            out[:, 0, r], out[:, 1, r] = -gap_mm / 2, gap_mm / 2
            continue
        if known.all():
            continue
        index = np.arange(n)
        middle = np.interp(index[~known], index[known], out[known, :, r].mean(axis=1))
        out[~known, 0, r], out[~known, 1, r] = middle - gap_mm / 2, middle + gap_mm / 2
    return out
