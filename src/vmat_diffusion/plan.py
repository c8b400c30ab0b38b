"""Plans as the linac delivers them, the times that follow from its limits, and what would not work.

`violations` is code of its own: it knows the plan and the machine, never who made the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.errors import PlanError
from vmat_diffusion.geometry import Point
from vmat_diffusion.machine import Limits, Machine

# Positions written to DICOM carry 0.01 mm; differences of two of them carry twice that.
_POSITION_TOLERANCE_MM = 0.02
_RELATIVE_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False)
class Arc:
    """One beam of n control points.

    `gantry_deg[n]` is unwrapped: consecutive differences are the signed rotation (positive is
    clockwise, IEC), the angle itself is meant modulo 360; equal angles make a static beam.
    `leaves_mm[n, 2, pairs]` at the isocentre plane, bank 0 = X1 <= bank 1 = X2, pairs by ascending Y.
    `jaws_mm[n, 4]` is X1, X2, Y1, Y2. `mu[n - 1]` is the meterset of each segment, per fraction.
    """

    gantry_deg: NDArray[np.float64]
    collimator_deg: float
    couch_deg: float
    leaves_mm: NDArray[np.float64]
    jaws_mm: NDArray[np.float64]
    mu: NDArray[np.float64]
    name: str = ""
    number: int = 1

    def __post_init__(self) -> None:
        for name in ("gantry_deg", "leaves_mm", "jaws_mm", "mu"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        n = len(self.gantry_deg)
        if n < 2:
            raise PlanError(f"beam {self.name}: {n} control points; at least 2 are needed")
        if self.leaves_mm.ndim != 3 or self.leaves_mm.shape[:2] != (n, 2):
            raise PlanError(f"beam {self.name}: leaves of shape {self.leaves_mm.shape}, not ({n}, 2, pairs)")
        if self.jaws_mm.shape != (n, 4) or self.mu.shape != (n - 1,):
            raise PlanError(
                f"beam {self.name}: jaws {self.jaws_mm.shape} and mu {self.mu.shape} do not fit {n} "
                "control points"
            )
        for what, array in (
            ("gantry angle", self.gantry_deg),
            ("leaf position", self.leaves_mm),
            ("jaw position", self.jaws_mm),
            ("MU", self.mu),
        ):
            if not np.all(np.isfinite(array)):
                raise PlanError(f"beam {self.name}: a {what} is not finite; export the plan again")

    @property
    def total_mu(self) -> float:
        """Monitor units of the beam, per fraction."""
        return float(self.mu.sum())

    @property
    def rotates(self) -> bool:
        """Whether the gantry moves while the beam is on."""
        return bool(np.any(np.abs(np.diff(self.gantry_deg)) > 1e-6))


@dataclass(frozen=True, eq=False)
class Plan:
    """A deliverable plan: arcs around one isocentre, MU per fraction, number of fractions.

    `dose_rate_mu_min` is the cap written as DoseRateSet; None takes the machine's maximum.
    """

    arcs: tuple[Arc, ...]
    isocenter_mm: Point
    fractions: int
    machine: str
    label: str = "VMAT"
    patient_position: str = "HFS"
    dose_rate_mu_min: float | None = None
    provenance: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.fractions < 1:
            raise PlanError(f"plan of {self.fractions} fractions; at least 1 is needed")
        if not np.all(np.isfinite(self.isocenter_mm)):
            raise PlanError("the isocentre is not finite; export the plan again")
        if self.dose_rate_mu_min is not None and not self.dose_rate_mu_min > 0:
            raise PlanError(f"dose rate {self.dose_rate_mu_min:g} MU/min must be positive; set or omit it")

    @property
    def total_mu(self) -> float:
        """Monitor units of all beams, per fraction."""
        return sum(arc.total_mu for arc in self.arcs)


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
        """Beam-on time of the arc."""
        return float(self.time_s.sum())


def timing(arc: Arc, limits: Limits, dose_rate_mu_min: float | None = None) -> Timing:
    """The times a linac needs for each segment, and the speeds that follow.

    Gantry and dose rate set the pace: `t = max(rotation / gantry speed, mu / dose rate)`, then the
    gantry speed is smoothed so that `|w1^2 - w0^2| <= 2 a dtheta` (constant acceleration between
    segment middles), which only lengthens times. Leaves and jaws must follow at that pace; in a
    static beam they set the time themselves.
    """
    rate = min(dose_rate_mu_min or limits.dose_rate_mu_min, limits.dose_rate_mu_min) / 60.0
    rotation = np.abs(np.diff(arc.gantry_deg))
    leaf_travel = np.abs(np.diff(arc.leaves_mm, axis=0)).max(axis=(1, 2), initial=0.0)
    jaw_travel = np.abs(np.diff(arc.jaws_mm, axis=0)).max(axis=1, initial=0.0)
    time = np.maximum(rotation / limits.gantry_speed_deg_s, arc.mu / rate)
    moving = rotation > 1e-6
    at_rest = np.maximum(leaf_travel / limits.leaf_speed_mm_s, jaw_travel / limits.jaw_speed_mm_s)
    time = np.where(moving, time, np.maximum(time, at_rest))
    speed = np.divide(rotation, time, out=np.zeros_like(time), where=time > 0)
    if moving.all():
        squared = speed**2
        step = limits.gantry_acceleration_deg_s2 * (rotation[1:] + rotation[:-1])
        for k in range(1, len(squared)):
            squared[k] = min(squared[k], squared[k - 1] + step[k - 1])
        for k in range(len(squared) - 2, -1, -1):
            squared[k] = min(squared[k], squared[k + 1] + step[k])
        speed = np.sqrt(squared)
        time = rotation / speed
    safe = np.maximum(time, 1e-9)
    return Timing(time, speed, 60.0 * arc.mu / safe, leaf_travel / safe, jaw_travel / safe)


def delivery_s(plan: Plan, machine: Machine) -> float:
    """Beam-on time of the whole plan in seconds, without set-up between arcs."""
    return sum(timing(arc, machine.limits, plan.dose_rate_mu_min).total_s for arc in plan.arcs)


def violations(plan: Plan, machine: Machine) -> list[str]:
    """Everything that keeps the machine from delivering the plan, one sentence each; [] is good."""
    found: list[str] = []
    if not plan.arcs:
        found.append("the plan has no beam with monitor units; at least one is needed")
    most = machine.limits.dose_rate_mu_min
    if plan.dose_rate_mu_min is not None and plan.dose_rate_mu_min > most * (1 + _RELATIVE_TOLERANCE):
        found.append(
            f"dose rate {plan.dose_rate_mu_min:g} MU/min is above the maximum {most:g} MU/min of machine "
            f"{machine.name}; lower it"
        )
    for arc in plan.arcs:
        name = f"beam {arc.number} ({arc.name})" if arc.name else f"beam {arc.number}"
        if arc.leaves_mm.shape[2] != machine.mlc.pairs:
            found.append(
                f"{name}: {arc.leaves_mm.shape[2]} leaf pairs, machine {machine.name} has "
                f"{machine.mlc.pairs}; choose the machine that the plan was made for"
            )
            continue
        found += [f"{name}: {sentence}" for sentence in _positions(arc, machine)]
        found += [f"{name}: {sentence}" for sentence in _meterset(arc, machine.limits)]
        found += [f"{name}: {sentence}" for sentence in _motion(arc, machine.limits, plan.dose_rate_mu_min)]
    return found


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
    pace = timing(arc, limits, dose_rate_mu_min)
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
        moving = np.abs(np.diff(arc.gantry_deg)) > 1e-6
        slow = np.where(moving, pace.gantry_speed_deg_s, limits.gantry_speed_min_deg_s)
        if (at := _worst(slow, limits.gantry_speed_min_deg_s / more, above=False, slack=0)) is not None:
            out.append(
                f"segment {at[0]}: the gantry would turn at {slow[at]:.3f} deg/s, below the minimum "
                f"{limits.gantry_speed_min_deg_s:g} deg/s; lower the MU of the segment"
            )
    return out
