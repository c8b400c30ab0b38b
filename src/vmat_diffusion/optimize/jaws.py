"""Jaws that follow the leaves: closed leaves let through what a jaw behind them does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.errors import PlanError
from vmat_diffusion.machine import Limits, Machine
from vmat_diffusion.optimize.deliverable_set import TRAVEL_MARGIN, Apertures, ControlPoints
from vmat_diffusion.optimize.sequence import lower_envelope, upper_envelope

# A pair this much wider than the least gap is open.
_OPEN_MM = 0.3
# Jaws never stand closer than this: beams are measured and fitted down to 3 x 3 cm.
_LEAST_FIELD_MM = 30.0


def jaws_track(machine: Machine, asked: bool | None) -> bool:
    """Whether jaws follow the leaves: as asked for, or where the machine can if nothing is asked for.

    Raises PlanError where tracking is asked of a machine that cannot.
    """
    can = machine.limits.jaw_tracking
    if asked and not can:
        raise PlanError(
            f"machine {machine.name} has no jaw tracking (jaw_tracking in its limits); ask for fixed jaws"
        )
    return can if asked is None else asked


def with_tracking_jaws(
    points: ControlPoints, apertures: Apertures, machine: Machine, row_edges_mm: NDArray, room_mm: float
) -> ControlPoints:
    """The control points with jaws `room_mm` outside the open leaves, or as near as the jaws' speed allows.

    Within a segment leaves and jaws move linearly in meterset, so jaws that enclose the openings at both of
    its ends enclose them in between; a pair that opens or closes in a segment counts at both ends. Jaws stay
    within those of `points.frames`, and at least 3 cm apart where these are. `row_edges_mm` bound the leaf
    rows.
    """
    limits = machine.limits
    jaws = np.empty_like(points.jaws_mm)
    for number, (begin, end) in enumerate(points.bounds):
        box = np.array(points.frames[number].jaws_mm)
        least_low, most_high = box[[0, 2]], box[[1, 3]]
        inside = (row_edges_mm[1:] > least_low[1]) & (row_edges_mm[:-1] < most_high[1])
        wide = np.diff(apertures.leaves_mm[begin:end], axis=1)[:, 0] > limits.leaf_gap_mm + _OPEN_MM
        low, high = _openings(apertures.leaves_mm[begin:end], wide & inside, row_edges_mm)
        low, high = low - room_mm, high + room_mm
        least = np.minimum(_LEAST_FIELD_MM, most_high - least_low)
        lacking = np.maximum(least - (high - low), 0.0) / 2
        # Widened on both sides, but on one alone where the other is at the frame.
        low = np.minimum(low - lacking, most_high - least)
        high = np.maximum(high + lacking, np.maximum(low, least_low) + least)
        over = np.array([limits.jaw_overtravel_x_mm, limits.jaw_overtravel_y_mm])
        travel = _jaw_travel_mm(limits, points.rotation_deg[points.arc == number])
        low = np.maximum(lower_envelope(np.minimum(low, over), travel), least_low)
        high = np.minimum(upper_envelope(np.maximum(high, -over), travel), most_high)
        jaws[begin:end] = np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], axis=1)
    return replace(points, jaws_mm=jaws)


def _openings(leaves: NDArray, wide: NDArray, row_edges_mm: NDArray) -> tuple[NDArray, NDArray]:
    """Lowest and highest x and y `[control points, 2]` of pairs open (`wide`) at a point or next to it."""
    opened = wide.copy()
    opened[1:] |= wide[:-1]
    opened[:-1] |= wide[1:]
    some = opened.any(axis=1)
    if not some.any():
        opened[:], some[:] = True, True
    lower = np.stack(np.broadcast_arrays(leaves[:, 0], row_edges_mm[:-1]), axis=1)
    upper = np.stack(np.broadcast_arrays(leaves[:, 1], row_edges_mm[1:]), axis=1)
    low = np.where(opened[:, None], lower, np.inf).min(axis=2)
    high = np.where(opened[:, None], upper, -np.inf).max(axis=2)
    # Where all pairs are closed the jaws are on their way from one opening to the next.
    index = np.arange(len(some))
    for edge in (low, high):
        for axis in (0, 1):
            edge[:, axis] = np.interp(index, index[some], edge[some, axis])
    return low, high


def _jaw_travel_mm(limits: Limits, rotation_deg: NDArray) -> NDArray[np.float64]:
    """How far a jaw may travel in each segment at full gantry speed; leaves must be able to keep up."""
    speed = min(limits.jaw_speed_mm_s, limits.leaf_speed_mm_s)
    return TRAVEL_MARGIN * speed * rotation_deg / limits.gantry_speed_deg_s
