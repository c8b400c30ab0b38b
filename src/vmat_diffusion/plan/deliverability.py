"""Every limit of the machine that a plan breaks, one sentence each.

`violations` sees only the plan and the machine, so that it checks plans from any system alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.machine import BeamModel, Limits, Machine
from vmat_diffusion.plan.arc import Arc, Plan
from vmat_diffusion.plan.timing import STILL_DEG, Timing, dose_rate_cap_mu_min, timing

# Positions written to DICOM carry 0.01 mm; differences of two of them carry twice that.
_POSITION_TOLERANCE_MM = 0.02
_RELATIVE_TOLERANCE = 1e-3


# A system writes the nominal energy of a beam, 6 or 10 MV, in whole or half numbers: less is another beam.
_SAME_MV = 0.05
# A source at 999 mm would change the dose by 0.2 %; systems write 1000.
_SAME_SAD_MM = 1.0


def beam_differences(plan: Plan, machine: Machine) -> list[str]:
    """Where the beam that a plan file was made for is not the machine's, a sentence each.

    Energy, fluence mode and distance of the source from the axis. A plan that comes from no file has none of
    them, and a machine without a beam model is not asked for its energy.
    """
    stated = plan.provenance
    out = []
    sad_mm = stated.get("sad_mm")
    if isinstance(sad_mm, float) and abs(sad_mm - machine.sad_mm) > _SAME_SAD_MM:
        out.append(
            f"SourceAxisDistance (300A,00B4) is {sad_mm:g} mm, machine {machine.name} has "
            f"{machine.sad_mm:g} mm; choose a machine with the plan's beam"
        )
    if machine.beam is not None:
        out += _other_energy(stated, machine.beam, machine.name)
    return out


def _other_energy(stated: Mapping[str, object], beam: BeamModel, name: str) -> list[str]:
    energy, mode = stated.get("energy_mv"), stated.get("fluence_mode")
    nominal = re.search(r"\d+(\.\d+)?", beam.energy)
    if not energy and stated.get("source") == "RTPLAN":
        return [
            f"NominalBeamEnergy (300A,0114) is missing, the beam of machine {name} is {beam.energy}; "
            "export the plan with its energy"
        ]
    other_energy = isinstance(energy, float) and nominal and abs(energy - float(nominal[0])) > _SAME_MV
    other_mode = isinstance(mode, str) and _flattened(mode) != _flattened(beam.fluence_mode)
    if other_energy or other_mode:
        what = "NominalBeamEnergy (300A,0114)" if other_energy else "FluenceMode (3002,0051)"
        return [
            f"{what}: the plan is for {energy} MV {mode}, the beam of machine {name} is {beam.energy} "
            f"{beam.fluence_mode}; choose a machine with the plan's beam"
        ]
    return []


def _flattened(mode: str) -> bool:
    return mode.upper() in ("", "STANDARD")


def violations(plan: Plan, machine: Machine) -> list[str]:
    """Everything that keeps the machine from delivering the plan, one sentence each; [] if nothing does."""
    sentences: list[str] = []
    if not plan.arcs:
        sentences.append("the plan has no beam with monitor units; at least one is needed")
    most = machine.limits.dose_rate_mu_min
    if plan.dose_rate_mu_min is not None and plan.dose_rate_mu_min > most * (1 + _RELATIVE_TOLERANCE):
        sentences.append(
            f"dose rate {plan.dose_rate_mu_min:g} MU/min is above the maximum {most:g} MU/min of machine "
            f"{machine.name}; lower it"
        )
    for arc in plan.arcs:
        name = arc.title
        if arc.leaves_mm.shape[2] != machine.mlc.pairs:
            sentences.append(
                f"{name}: {arc.leaves_mm.shape[2]} leaf pairs, machine {machine.name} has "
                f"{machine.mlc.pairs}; choose the machine that the plan was made for"
            )
            continue
        sentences += [f"{name}: {sentence}" for sentence in _positions(arc, machine)]
        sentences += [f"{name}: {sentence}" for sentence in _meterset(arc, machine.limits)]
        sentences += [
            f"{name}: {sentence}" for sentence in _motion(arc, machine.limits, plan.dose_rate_mu_min)
        ]
    return sentences


def turns_through(gantry_deg: NDArray, stop_deg: float) -> bool:
    """Whether unwrapped angles pass the stop; to start or end on it is allowed."""
    turns = (np.array([gantry_deg.min() + 1e-6, gantry_deg.max() - 1e-6]) - stop_deg) / 360.0
    return bool(np.floor(turns[0]) != np.floor(turns[1]))


def _worst(value: NDArray, limit: float, *, above: bool, slack: float) -> tuple[int, ...] | None:
    """Index of the value furthest beyond the limit, or None where all keep it."""
    excess = value - limit if above else limit - value
    at = np.unravel_index(int(np.argmax(excess)), value.shape)
    return tuple(int(i) for i in at) if excess[at] > slack else None


def _positions(arc: Arc, machine: Machine) -> list[str]:
    return [*_gaps(arc, machine.limits), *_banks(arc, machine), *_jaws(arc, machine)]


def _gaps(arc: Arc, limits: Limits) -> list[str]:
    """Crossed banks, gaps below the minimum, leaves out of range.

    The minimum gap is one of moving leaves: a pair that is closed and rests in the segments before and
    after is parked, as clinical plans do with all pairs outside the field.
    """
    out = []
    mm = _POSITION_TOLERANCE_MM
    gap = arc.leaves_mm[:, 1] - arc.leaves_mm[:, 0]
    rests = np.abs(np.diff(arc.leaves_mm, axis=0)).max(axis=1) <= mm
    always = np.ones((1, rests.shape[1]), bool)
    parked = (gap <= mm) & np.vstack([always, rests]) & np.vstack([rests, always])
    small = np.where(parked, np.inf, gap)
    if (at := _worst(gap, 0.0, above=False, slack=mm)) is not None:
        out.append(
            f"control point {at[0]}, leaf pair {at[1] + 1}: X1 is {-gap[at]:.2f} mm beyond X2; "
            "banks must not cross"
        )
    elif (at := _worst(small, limits.leaf_gap_mm, above=False, slack=mm)) is not None:
        out.append(
            f"control point {at[0]}, leaf pair {at[1] + 1}: gap {gap[at]:.2f} mm is below the minimum "
            f"{limits.leaf_gap_mm:g} mm of moving leaves; open the pair"
        )
    reach = np.abs(arc.leaves_mm)
    if (at := _worst(reach, limits.leaf_position_mm, above=True, slack=mm)) is not None:
        out.append(
            f"control point {at[0]}, leaf pair {at[2] + 1}: position {arc.leaves_mm[at]:.2f} mm is outside "
            f"+-{limits.leaf_position_mm:g} mm; move the leaf or the isocentre"
        )
    return out


def _banks(arc: Arc, machine: Machine) -> list[str]:
    limits, out, mm = machine.limits, [], _POSITION_TOLERANCE_MM
    first = 0
    for layer in machine.mlc.layers:
        leaves = arc.leaves_mm[:, :, first : first + layer.pairs]
        span = leaves.max(axis=2) - leaves.min(axis=2)
        if (at := _worst(span, limits.leaf_span_mm, above=True, slack=mm)) is not None:
            out.append(
                f"control point {at[0]}, bank X{at[1] + 1}: leaves span {span[at]:.1f} mm, the carriage "
                f"allows {limits.leaf_span_mm:g} mm; narrow the field"
            )
        if not machine.mlc.interdigitation:
            cross = np.maximum(leaves[:, 0, 1:] - leaves[:, 1, :-1], leaves[:, 0, :-1] - leaves[:, 1, 1:])
            if (at := _worst(cross, 0.0, above=True, slack=mm)) is not None:
                out.append(
                    f"control point {at[0]}, leaf pairs {at[1] + 1} and {at[1] + 2} interdigitate by "
                    f"{cross[at]:.2f} mm; machine {machine.name} does not allow it"
                )
        first += layer.pairs
    return out


def _jaws(arc: Arc, machine: Machine) -> list[str]:
    limits, out, mm = machine.limits, [], _POSITION_TOLERANCE_MM
    x1, x2, y1, y2 = arc.jaws_mm.T
    for label, one, low, high, over in (
        ("X", "an X jaw", x1, x2, limits.jaw_overtravel_x_mm),
        ("Y", "a Y jaw", y1, y2, limits.jaw_overtravel_y_mm),
    ):
        if f"ASYM{label}" not in machine.jaws and label not in machine.jaws:
            continue
        moved = np.abs(np.diff(np.stack([low, high]), axis=1)).max(axis=0) * (arc.mu > 0)
        if not limits.jaw_tracking and (at := _worst(moved, 0.0, above=True, slack=mm)) is not None:
            out.append(
                f"segment {at[0]}: {one} moves by {moved[at]:.1f} mm, and machine {machine.name} has no jaw "
                "tracking; plan with fixed jaws"
            )
        if (at := _worst(high - low, 0.0, above=False, slack=mm)) is not None:
            out.append(f"control point {at[0]}: {label} jaws cross by {low[at] - high[at]:.2f} mm; open them")
        outer = np.maximum(-low, high)
        if (at := _worst(outer, limits.jaw_position_mm, above=True, slack=mm)) is not None:
            out.append(
                f"control point {at[0]}: {one} stands at {outer[at]:.1f} mm, the limit is "
                f"{limits.jaw_position_mm:g} mm; close it"
            )
        inner = np.maximum(low, -high)
        if (at := _worst(inner, over, above=True, slack=mm)) is not None:
            out.append(
                f"control point {at[0]}: {one} is {inner[at]:.1f} mm beyond the central axis, the "
                f"limit is {over:g} mm; move the isocentre"
            )
    return out


def _meterset(arc: Arc, limits: Limits) -> list[str]:
    out = []
    if len(arc.gantry_deg) > limits.control_points_max:
        out.append(
            f"{len(arc.gantry_deg)} control points, the machine takes {limits.control_points_max}; thin them"
        )
    if np.any(arc.mu < -1e-9):
        k = int(np.argmin(arc.mu))
        out.append(f"segment {k}: {arc.mu[k]:.3f} MU is negative; cumulative weights must not decrease")
    if not arc.total_mu > 0:
        out.append("no monitor units at all; the beam must be deleted or given MU")
        return out
    rotation = np.abs(np.diff(arc.gantry_deg))
    if not arc.rotates:
        return out
    if limits.gantry_stop_deg is not None and turns_through(arc.gantry_deg, limits.gantry_stop_deg):
        out.append(
            f"the gantry turns through {limits.gantry_stop_deg:g} deg, where it has its stop; go the "
            "other way round or split the arc"
        )
    moving = rotation > 1e-6
    if not moving.all():
        k = int(np.argmin(moving))
        if arc.mu[k] > 1e-6:
            out.append(f"segment {k}: {arc.mu[k]:.2f} MU with the gantry at rest within an arc; spread them")
    density = np.divide(arc.mu, rotation, out=np.full_like(rotation, limits.mu_per_deg_min), where=moving)
    # A segment without any MU is beam-hold while moving, which avoidance sectors use on purpose.
    lit = np.where(arc.mu > 1e-9, density, limits.mu_per_deg_min)
    least, most = limits.mu_per_deg_min, limits.mu_per_deg_max
    if (at := _worst(lit, least * (1 - _RELATIVE_TOLERANCE), above=False, slack=0)) is not None:
        out.append(f"segment {at[0]}: {lit[at]:.4f} MU/deg is below the minimum {least:g} MU/deg; raise it")
    if (at := _worst(density, most * (1 + _RELATIVE_TOLERANCE), above=True, slack=0)) is not None:
        out.append(
            f"segment {at[0]}: {density[at]:.2f} MU/deg is above the maximum {most:g} MU/deg; "
            "spread the dose over more angles or arcs"
        )
    return out


def _motion(arc: Arc, limits: Limits, dose_rate_mu_min: float | None) -> list[str]:
    out = []
    # Speeds are judged at the pace of gantry and dose rate: slowing down for an acceleration excuses none.
    alone = replace(limits, leaf_acceleration_mm_s2=None, jaw_acceleration_mm_s2=None)
    pace = timing(arc, alone, dose_rate_mu_min)
    more = 1 + _RELATIVE_TOLERANCE
    # Rounding of positions adds speed; allow what 0.02 mm over the segment's time can add.
    rounding = _POSITION_TOLERANCE_MM / np.maximum(pace.time_s, 1e-9)
    for what, speed, limit in (
        ("leaf", pace.leaf_speed_mm_s, limits.leaf_speed_mm_s),
        ("jaw", pace.jaw_speed_mm_s, limits.jaw_speed_mm_s),
    ):
        if (at := _worst(speed - rounding, limit * more, above=True, slack=0)) is not None:
            out.append(
                f"segment {at[0]}: {what} speed {speed[at]:.2f} mm/s over {pace.time_s[at]:.3f} s is above "
                f"the maximum {limit:g} mm/s; move it less or give the segment more time"
            )
    if arc.rotates:
        # At the ends of an arc every gantry is slower than its minimum: what counts is what the MU ask.
        turn = np.abs(np.diff(arc.gantry_deg))
        rate = dose_rate_cap_mu_min(limits, dose_rate_mu_min) / 60.0
        asked = np.divide(turn * rate, arc.mu, out=np.full_like(turn, np.inf), where=arc.mu > 0)
        slow = np.where(turn > STILL_DEG, asked, np.inf)
        if (at := _worst(slow, limits.gantry_speed_min_deg_s / more, above=False, slack=0)) is not None:
            out.append(
                f"segment {at[0]}: the gantry would turn at {slow[at]:.3f} deg/s, below the minimum "
                f"{limits.gantry_speed_min_deg_s:g} deg/s; lower the MU of the segment"
            )
    return [*out, *_speed_changes(arc, limits, timing(arc, limits, dose_rate_mu_min))]


def _speed_changes(arc: Arc, limits: Limits, pace: Timing) -> list[str]:
    """Changes of speed that stay too quick even with the gantry at its slowest."""
    out = []
    if limits.leaf_acceleration_mm_s2 is not None:
        most = limits.leaf_acceleration_mm_s2
        if (sharpest := _sharpest(np.diff(arc.leaves_mm, axis=0), pace.time_s, most)) is not None:
            (point, bank, pair), words = sharpest
            out.append(
                f"control point {point}, leaf pair {pair + 1}: X{bank + 1} changes its speed {words}, "
                f"above the maximum {most:g} mm/s2; move it more evenly"
            )
    if limits.jaw_acceleration_mm_s2 is not None:
        most = limits.jaw_acceleration_mm_s2
        if (sharpest := _sharpest(np.diff(arc.jaws_mm, axis=0), pace.time_s, most)) is not None:
            (point, jaw), words = sharpest
            out.append(
                f"control point {point}: jaw {('X1', 'X2', 'Y1', 'Y2')[jaw]} changes its speed {words}, "
                f"above the maximum {most:g} mm/s2; move it more evenly"
            )
    if limits.dose_rate_change_mu_min_s is not None:
        most = limits.dose_rate_change_mu_min_s * (1 + _RELATIVE_TOLERANCE)
        rate, between = pace.dose_rate_mu_min, (pace.time_s[1:] + pace.time_s[:-1]) / 2
        lit = (arc.mu[1:] > 0) & (arc.mu[:-1] > 0)
        change = np.where(lit, np.abs(np.diff(rate)), 0.0) / np.maximum(between, 1e-9)
        if change.size and (at := _worst(change, most, above=True, slack=0)) is not None:
            k = at[0]
            out.append(
                f"control point {k + 1}: the dose rate changes from {rate[k]:.0f} to {rate[k + 1]:.0f} "
                f"MU/min within {between[k]:.3f} s, above the maximum "
                f"{limits.dose_rate_change_mu_min_s:g} MU/min/s; spread the MU more evenly"
            )
    return out


def _sharpest(motion: NDArray, time_s: NDArray, most: float) -> tuple[tuple[int, ...], str] | None:
    """Control point and axis whose acceleration is furthest above the limit, and the change in words.

    `motion[segments, ...]` in mm; everything is at rest before the first and after the last segment.
    """
    shape = (-1,) + (1,) * (motion.ndim - 1)
    time = np.maximum(time_s, 1e-9).reshape(shape)
    still, none = np.zeros_like(motion[:1]), np.zeros_like(time[:1])
    speed = np.concatenate([still, motion / time, still])
    between = (np.concatenate([none, time]) + np.concatenate([time, none])) / 2
    rounding = _POSITION_TOLERANCE_MM / time
    unsure = np.concatenate([none, rounding]) + np.concatenate([rounding, none])
    sharpness = (np.abs(np.diff(speed, axis=0)) - unsure) / between
    at = _worst(sharpness, most * (1 + _RELATIVE_TOLERANCE), above=True, slack=0)
    if at is None:
        return None
    after = (at[0] + 1, *at[1:])
    return at, f"from {speed[at]:.1f} to {speed[after]:.1f} mm/s within {float(between.ravel()[at[0]]):.3f} s"
