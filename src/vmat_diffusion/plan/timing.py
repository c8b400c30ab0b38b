"""How long a linac needs for each segment of an arc, and the speeds that follow."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.machine import Limits, Machine
from vmat_diffusion.plan.arc import Arc, Plan

# A rotation below this is none.
STILL_DEG = 1e-6
# Each round only lengthens times, by less and less; a handful is usual.
_ROUNDS = 200
_SETTLED = 1e-9
# A plan's own dose rate is a multiple of this, in MU/min.
_RATE_STEP = 10.0


@dataclass(frozen=True, eq=False)
class Timing:
    """Delivery of one arc at the fastest pace within the limits; arrays are per segment."""

    time_s: NDArray[np.float64]
    gantry_speed_deg_s: NDArray[np.float64]
    dose_rate_mu_min: NDArray[np.float64]
    leaf_speed_mm_s: NDArray[np.float64]
    jaw_speed_mm_s: NDArray[np.float64]

    @property
    def total_s(self) -> float:
        """Beam-on time of the arc, from rest to rest."""
        return float(self.time_s.sum())


def dose_rate_cap_mu_min(limits: Limits, dose_rate_mu_min: float | None) -> float:
    """The highest dose rate of a plan: its own DoseRateSet, or the machine's maximum if that is lower."""
    return min(dose_rate_mu_min or limits.dose_rate_mu_min, limits.dose_rate_mu_min)


def timing(arc: Arc, limits: Limits, dose_rate_mu_min: float | None = None) -> Timing:
    """The times a linac needs for each segment, and the speeds that follow.

    Gantry and dose rate set the pace: `t = max(rotation / gantry speed, mu / dose rate)`; in a static beam
    leaves and jaws set it too. It is then slowed down until every change of speed that the machine limits
    is kept, with the gantry at rest at both ends of the arc. Slowing down for leaves, jaws or dose rate ends
    at the slowest gantry speed. Equations: `docs/deliverability.md`.
    """
    rotation = np.diff(arc.gantry_deg)
    turn = np.abs(rotation)
    leaves = _leaf_motion_mm(arc)
    jaws = np.diff(arc.jaws_mm, axis=0)
    leaf_travel = np.abs(leaves).max(axis=1, initial=0.0)
    jaw_travel = np.abs(jaws).max(axis=1, initial=0.0)
    rate = dose_rate_cap_mu_min(limits, dose_rate_mu_min) / 60.0
    time = np.maximum(turn / limits.gantry_speed_deg_s, arc.mu / rate)
    at_rest = np.maximum(leaf_travel / limits.leaf_speed_mm_s, jaw_travel / limits.jaw_speed_mm_s)
    time = _in_steps(np.where(turn > STILL_DEG, time, np.maximum(time, at_rest)), turn, arc.mu, limits)
    for _ in range(_ROUNDS):
        before = time
        time = _with_gantry(time, rotation, limits.gantry_acceleration_deg_s2)
        slowest = np.where(turn > STILL_DEG, np.maximum(time, turn / limits.gantry_speed_min_deg_s), np.inf)
        if limits.dose_rate_change_mu_min_s is not None:
            time = np.minimum(_with_dose_rate(time, arc.mu, limits.dose_rate_change_mu_min_s / 60), slowest)
        if limits.leaf_acceleration_mm_s2 is not None:
            time = _with_motion(time, leaves, limits.leaf_acceleration_mm_s2, slowest)
        if limits.jaw_acceleration_mm_s2 is not None:
            time = _with_motion(time, jaws, limits.jaw_acceleration_mm_s2, slowest)
        if np.allclose(time, before, rtol=_SETTLED, atol=0.0):
            break
    safe = np.maximum(time, 1e-9)
    return Timing(time, turn / safe, 60.0 * arc.mu / safe, leaf_travel / safe, jaw_travel / safe)


def delivery_s(plan: Plan, machine: Machine) -> float:
    """Beam-on time of the whole plan in seconds, without set-up between arcs."""
    return sum(timing(arc, machine.limits, plan.dose_rate_mu_min).total_s for arc in plan.arcs)


def arc_delivery_s(plan: Plan, machine: Machine) -> list[float]:
    """Beam-on time of each arc, rounded for a record."""
    paces = (timing(arc, machine.limits, plan.dose_rate_mu_min) for arc in plan.arcs)
    return [round(pace.total_s, 2) for pace in paces]


def at_pace_of_leaves(plan: Plan, limits: Limits) -> Plan:
    """A plan with the highest dose rate set at which no leaf falls behind: whole tens or a machine's level.

    At full rate where the leaves keep up anyway. Only a segment that a slower gantry cannot help, as it has
    too few MU, still breaks the limit of leaf speed.
    """
    most = limits.dose_rate_mu_min
    for arc in plan.arcs:
        seconds = np.abs(_leaf_motion_mm(arc)).max(axis=1, initial=0.0) / limits.leaf_speed_mm_s
        late = (seconds > np.abs(np.diff(arc.gantry_deg)) / limits.gantry_speed_deg_s) & (arc.mu > 0)
        most = min(most, float((60 * arc.mu[late] / seconds[late]).min(initial=most)))
    if most >= limits.dose_rate_mu_min:
        return replace(plan, dose_rate_mu_min=None)
    tens = _RATE_STEP * np.arange(1, max(most // _RATE_STEP, 1) + 1)
    levels = limits.dose_rate_levels_mu_min or tuple(tens)
    return replace(plan, dose_rate_mu_min=float(max((x for x in levels if x <= most), default=min(levels))))


def _leaf_motion_mm(arc: Arc) -> NDArray[np.float64]:
    """Signed motion `[segments, leaves]` of every leaf of both banks."""
    return np.diff(arc.leaves_mm, axis=0).reshape(len(arc.mu), -1)


def _with_gantry(time: NDArray, rotation: NDArray, acceleration: float) -> NDArray[np.float64]:
    """Times at which the gantry's speed keeps `|w1^2 - w0^2| <= a (r0 + r1)` from segment to segment.

    That is constant acceleration between segment middles. A segment that begins or ends at rest, as at the
    ends of an arc or where the rotation turns round, is crossed under constant acceleration as a whole:
    `w^2 <= a r / 2`, and `a r / 4` where it does both.
    """
    turn, direction = np.abs(rotation), np.sign(rotation)
    moving = turn > STILL_DEG
    joined = moving[1:] & moving[:-1] & (direction[1:] == direction[:-1])
    rests = 2 - np.append(0, joined) - np.append(joined, 0)
    speed = np.divide(turn, time, out=np.zeros_like(turn), where=moving)
    squared = speed**2
    squared = np.where(
        rests > 0, np.minimum(squared, acceleration * turn / np.maximum(2 * rests, 1)), squared
    )
    step = acceleration * (turn[1:] + turn[:-1])
    for k in np.flatnonzero(joined):
        squared[k + 1] = min(squared[k + 1], squared[k] + step[k])
    for k in np.flatnonzero(joined)[::-1]:
        squared[k] = min(squared[k], squared[k + 1] + step[k])
    return np.divide(turn, np.sqrt(squared), out=time.copy(), where=moving)


def _with_dose_rate(time: NDArray, mu: NDArray, change: float) -> NDArray[np.float64]:
    """Times at which the dose rate D = m / t keeps `|D1 - D0| <= c (t0 + t1) / 2` in MU/s.

    Solved for the segment of the higher rate, which is slowed down: first where rates rise, then where
    they fall. A segment without MU is a beam hold, which takes no time to set in.
    """
    time = time.copy()

    def slowed(k: int, neighbour: int) -> None:
        if mu[k] > 0 and mu[neighbour] > 0:
            b = change * time[neighbour] / 2 + mu[neighbour] / time[neighbour]
            time[k] = max(time[k], 2 * mu[k] / (b + np.sqrt(b * b + 2 * change * mu[k])))

    for k in range(1, len(time)):
        slowed(k, k - 1)
    for k in range(len(time) - 2, -1, -1):
        slowed(k, k + 1)
    return time


def _with_motion(
    time: NDArray, motion: NDArray, acceleration: float, slowest: NDArray
) -> NDArray[np.float64]:
    """Times, not above `slowest`, at which all signed `motion[segments, axes]` keeps the acceleration.

    `|v1 - v0| <= a (t0 + t1) / 2` at every control point, at rest before the first and after the last.
    Both segments at a control point are stretched alike, by what they need alone: the product of their
    times only grows, so this ends.
    """
    for _ in range(_ROUNDS):
        speed = motion / np.maximum(time, 1e-9)[:, None]
        change = np.abs(np.diff(speed, axis=0, prepend=0.0, append=0.0)).max(axis=1, initial=0.0)
        room = acceleration * (np.append(0.0, time) + np.append(time, 0.0)) / 2
        need = np.sqrt(np.divide(change, room, out=np.zeros_like(room), where=room > 0))
        stretched = time * np.maximum(1.0, np.maximum(need[1:], need[:-1]))
        stretched = np.minimum(stretched, np.maximum(time, slowest))
        if np.allclose(stretched, time, rtol=_SETTLED, atol=0.0):
            break
        time = stretched
    return time


def _in_steps(time: NDArray, turn: NDArray, mu: NDArray, limits: Limits) -> NDArray[np.float64]:
    """Times at which dose rate or gantry speed is the next lower one that the linac has.

    A rate below the lowest is delivered by holding the beam, a speed below one step is kept. So are the
    rates and speeds of segments that are slowed down further, on the way from one level to another.
    """
    if limits.dose_rate_levels_mu_min is not None:
        levels = np.asarray(limits.dose_rate_levels_mu_min)
        rate = np.divide(60.0 * mu, time, out=np.zeros_like(time), where=time > 0)
        at = np.searchsorted(levels, rate * (1 + _SETTLED), side="right") - 1
        return np.where((at >= 0) & (mu > 0), 60.0 * mu / levels[np.maximum(at, 0)], time)
    if limits.gantry_speed_step_deg_s is not None:
        step = limits.gantry_speed_step_deg_s
        speed = np.divide(turn, time, out=np.zeros_like(time), where=turn > STILL_DEG)
        count = np.floor(speed / step * (1 + _SETTLED))
        return np.where(count >= 1, turn / (np.maximum(count, 1) * step), time)
    return time
