"""Sliding windows: leaves that sweep over the ideal fluence of a sector while the gantry turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.machine import Limits

# The largest share of a sector's time in which leaves only cross the field.
LARGEST_CROSSING = 0.7


@dataclass(frozen=True)
class Sector:
    """A stretch of an arc that one fluence map stands for: its first and last control point."""

    arc: int
    first: int
    last: int


def sweep_arc(
    gantry_deg: NDArray,
    sectors: Sequence[Sector],
    fluence: NDArray,
    column_edges_mm: NDArray,
    limits: Limits,
    *,
    mu_cap_per_deg: float,
    travel_mm_per_deg: float,
    rightward: bool,
) -> tuple[NDArray, NDArray]:
    """Leaves `(control points, 2, leaf rows)` and MU per segment of one arc: sweeps that alternate.

    `fluence[sectors, leaf rows, columns]` in MU. The leaves may still break the travel limit.
    """
    leaves = np.full((len(gantry_deg), 2, fluence.shape[1]), np.nan)
    rotation = np.abs(np.diff(gantry_deg))
    mu = np.zeros(len(rotation))
    for number, (sector, sector_fluence) in enumerate(zip(sectors, fluence, strict=True)):
        segments = slice(sector.first, sector.last)
        positions, sector_mu = sweep(
            sector_fluence,
            column_edges_mm,
            np.linspace(0, 1, sector.last - sector.first + 1),
            rightward=(number % 2 == 0) is rightward,
            travel_mm=travel_mm_per_deg * rotation[segments].sum(),
            mu_most=mu_cap_per_deg * rotation[segments].sum(),
        )
        known = ~np.isnan(positions)
        leaves[sector.first : sector.last + 1][known] = positions[known]
        mu[segments] = sector_mu * rotation[segments] / rotation[segments].sum()
    return fill_unused(leaves, limits.leaf_gap_mm), np.minimum(mu, mu_cap_per_deg * rotation)


def sweep(
    fluence: NDArray,
    column_edges_mm: NDArray,
    times: NDArray,
    *,
    rightward: bool,
    travel_mm: float,
    mu_most: float,
    fill: float = LARGEST_CROSSING,
) -> tuple[NDArray, float]:
    """Sliding-window trajectories of one sector.

    `fluence[leaf rows, columns]` in MU; `times` in [0, 1] at which positions are wanted; `travel_mm`
    what a leaf can travel during the sector; `mu_most` what the linac can give meanwhile. Returns
    positions `(times, 2, leaf rows)` and the MU that the sector needs. Rows whose modulation costs more
    than `mu_most` are smoothed until they fit; NaN stands for rows that stay closed. A row too wide
    to be crossed in `fill` of the time is crossed faster than the leaf can: the caller's projection
    onto the speed limit then shortens the sweep.
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
        row = row * (total / max(float(row.sum()), 1e-12))
    return row * min(1.0, most / max(float(_rise(row)), 1e-12))


def _row(dwell: NDArray, edges: NDArray, times: NDArray, crossing: float) -> NDArray:
    """Trailing (left) and leading (right) edge of one row at the given times, shape (times, 2).

    `dwell` is in units of the sector's time: how long each column is to lie between the two edges.
    """
    used = np.flatnonzero(dwell > 0)
    first, last = used[0], used[-1] + 1
    borders = np.stack([edges[first:last], edges[first + 1 : last + 1]], axis=1)
    pace = crossing / (borders[-1, 1] - borders[0, 0])
    step = np.diff(dwell[first:last], prepend=0.0)
    # The leading edge waits before a column of less dwell, the trailing edge before one of more.
    crossed = pace * (borders - borders[0, 0])
    lead = (np.cumsum(np.maximum(-step, 0))[:, None] + crossed).ravel()
    trail = (np.cumsum(np.maximum(step, 0))[:, None] + crossed).ravel()
    shift = (1.0 - trail[-1]) / 2
    right = np.interp(times, lead + shift, borders.ravel())
    left = np.interp(times, trail + shift, borders.ravel())
    return np.stack([np.minimum(left, right), right], axis=1)


def lipschitz(positions: NDArray, travel_mm: NDArray) -> NDArray[np.float64]:
    """Nearest-in-maximum trajectories that move at most `travel_mm[k]` between control points k and k+1.

    `positions[n, ...]`; the mean of the greatest such function below and the least above, which
    leaves trajectories that already keep the limit untouched and never moves one by more than half
    of its worst excess.
    """
    return (lower_envelope(positions, travel_mm) + upper_envelope(positions, travel_mm)) / 2


def lower_envelope(positions: NDArray, travel_mm: NDArray) -> NDArray[np.float64]:
    """The greatest trajectories nowhere above `positions[n, ...]` that move at most `travel_mm[k]`."""
    step = np.asarray(travel_mm).reshape((-1,) + (1,) * (positions.ndim - 1))
    out = positions.astype(np.float64)
    for k in range(1, len(out)):
        np.minimum(out[k], out[k - 1] + step[k - 1], out=out[k])
    for k in range(len(out) - 2, -1, -1):
        np.minimum(out[k], out[k + 1] + step[k], out=out[k])
    return out


def upper_envelope(positions: NDArray, travel_mm: NDArray) -> NDArray[np.float64]:
    """The least trajectories nowhere below `positions[n, ...]` that move at most `travel_mm[k]`."""
    return -lower_envelope(-positions, travel_mm)


def project_leaves(
    leaves_mm: NDArray, travel_mm: NDArray, gap_mm: float, low_mm: NDArray | float, high_mm: NDArray | float
) -> NDArray:
    """Leaves `(n, 2, rows)` moved onto the limits of travel, gap and range `[n, 1]`; all hold exactly.

    The minimum of two trajectories within the travel limit keeps it, so opening a pair that is too
    narrow, by half on either side, keeps it too.
    """
    smooth = lipschitz(leaves_mm, travel_mm)
    left, right = (np.clip(smooth[:, bank], low_mm, high_mm) for bank in (0, 1))
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
