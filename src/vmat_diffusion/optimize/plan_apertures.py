"""Plans as arc frames and apertures, which the search changes, and apertures as plans."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.errors import PlanError
from vmat_diffusion.geometry import Point
from vmat_diffusion.machine import Machine
from vmat_diffusion.optimize.arcs import ArcFrame, refuse_machine
from vmat_diffusion.optimize.deliverable_set import Apertures, ControlPoints, leaves_between
from vmat_diffusion.plan import Arc, Plan

# Control points closer than this are kept as they are; sparser ones get others between them.
_FINE_SHARE = 1.25
# A beam that rotates less has too few control points to be searched as an arc.
_LEAST_ROTATION_DEG = 10.0
# A closed pair stands this much wider than the least gap, so that rounding for a file does not break it.
_CLOSED_ROOM_MM = 0.1


def frames_of(plan: Plan, machine: Machine, spacing_deg: float) -> tuple[ArcFrame, ...]:
    """The plan's arcs with control points about `spacing_deg` apart, jaws as wide as each arc's widest.

    Raises PlanError for what cannot be searched: beams that do not rotate one way all the time, a machine
    that the optimiser cannot plan for.
    """
    refuse_machine(machine)
    frames = []
    for arc in plan.arcs:
        steps = np.diff(arc.gantry_deg)
        rotation = abs(arc.gantry_deg[-1] - arc.gantry_deg[0])
        if rotation < _LEAST_ROTATION_DEG or not (np.all(steps > 0) or np.all(steps < 0)):
            raise PlanError(
                f"{arc.title} rotates over {rotation:.0f} deg and not one way all the time; only arcs of "
                f"{_LEAST_ROTATION_DEG:g} deg and more can be improved; plan this case anew"
            )
        low, high = arc.jaws_mm.min(axis=0), arc.jaws_mm.max(axis=0)
        box = (float(low[0]), float(high[1]), float(low[2]), float(high[3]))
        angles = _angles(arc, spacing_deg, machine.limits.control_points_max)
        frames.append(ArcFrame(angles, arc.collimator_deg, box, arc.couch_deg))
    return tuple(frames)


def _angles(arc: Arc, spacing_deg: float, most: int) -> NDArray[np.float64]:
    """The arc's control points, or evenly spaced ones where these are too many, too few or too uneven."""
    gaps = np.abs(np.diff(arc.gantry_deg))
    if len(gaps) < most and gaps.max() <= _FINE_SHARE * spacing_deg and gaps.min() >= 0.5 * spacing_deg:
        return arc.gantry_deg.copy()
    count = min(max(round(float(gaps.sum()) / spacing_deg), 4), most - 1)
    return np.linspace(arc.gantry_deg[0], arc.gantry_deg[-1], count + 1)


def apertures_of(plan: Plan, frames: tuple[ArcFrame, ...], pairs: NDArray[np.intp]) -> Apertures:
    """Leaves of the `pairs` and MU of the plan at the frames' control points; MU are kept in sum."""
    leaves, mu = [], []
    for arc, frame in zip(plan.arcs, frames, strict=True):
        sign = np.sign(arc.gantry_deg[-1] - arc.gantry_deg[0])
        known, at = sign * arc.gantry_deg, sign * frame.gantry_deg
        leaves.append(leaves_between(known, arc.leaves_mm[:, :, pairs], at))
        mu.append(np.diff(np.interp(at, known, np.concatenate([[0.0], np.cumsum(arc.mu)]))))
    return Apertures(np.concatenate(leaves), np.concatenate(mu))


def plan_of(
    points: ControlPoints,
    apertures: Apertures,
    machine: Machine,
    *,
    pairs: NDArray[np.intp],
    isocenter_mm: Point,
    fractions: int,
    patient_position: str,
) -> Plan:
    """The plan of the search's leaf rows as the leaf `pairs` of the full bank; all other pairs are closed."""
    gap = machine.limits.leaf_gap_mm + _CLOSED_ROOM_MM
    arcs = []
    for number, ((begin, end), frame) in enumerate(zip(points.bounds, points.frames, strict=True)):
        n = end - begin
        x1, x2, _, _ = frame.jaws_mm
        leaves = np.empty((n, 2, machine.mlc.pairs))
        leaves[:, 0], leaves[:, 1] = (x1 + x2 - gap) / 2, (x1 + x2 + gap) / 2
        leaves[:, :, pairs] = apertures.leaves_mm[begin:end]
        arcs.append(
            Arc(
                points.angles_deg[begin:end],
                frame.collimator_deg,
                frame.couch_deg,
                leaves,
                points.jaws_mm[begin:end],
                apertures.mu[points.arc == number],
                name=f"Arc {number + 1} {'CW' if frame.gantry_deg[-1] > frame.gantry_deg[0] else 'CCW'}",
                number=number + 1,
            )
        )
    return Plan(tuple(arcs), isocenter_mm, fractions, machine.name, patient_position=patient_position)
