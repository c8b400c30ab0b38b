"""The control points of all arcs in one array, and what the machine can deliver along them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.dose.delivery import Exposures
from vmat_diffusion.evaluate.complexity import OPEN_GAP_MM
from vmat_diffusion.machine import Limits, Machine
from vmat_diffusion.optimize.arcs import ArcFrame
from vmat_diffusion.optimize.open_gaps import closed_or_wide
from vmat_diffusion.optimize.result import Settings
from vmat_diffusion.optimize.sequence import project_leaves

# Gaps, MU and travel keep a little away from their limits, so that rounding for a file breaks none.
_GAP_MARGIN_MM, _MU_MARGIN, _MU_CAP_MARGIN, TRAVEL_MARGIN = 0.05, 1.02, 0.99, 0.99


@dataclass(frozen=True, eq=False)
class ControlPoints:
    """The control points of all arcs in one array, and which pairs of them bound a segment.

    `first[s]`, `last[s]` are control points of segment s; `gantry_deg[s]` its middle angle;
    `rotation_deg[s]` its width; `arc[s]` its arc; `bounds` are (begin, end) control points per arc.
    `jaws_mm[control points, 4]` are X1, X2, Y1, Y2.
    """

    frames: tuple[ArcFrame, ...]
    angles_deg: NDArray[np.float64]
    jaws_mm: NDArray[np.float64]
    bounds: tuple[tuple[int, int], ...]
    first: NDArray[np.intp]
    last: NDArray[np.intp]
    gantry_deg: NDArray[np.float64]
    rotation_deg: NDArray[np.float64]
    arc: NDArray[np.intp]


def control_points(frames: tuple[ArcFrame, ...], every: int) -> ControlPoints:
    """Every n-th control point of the frames, the jaws around the targets."""
    angles, jaws, bounds, first, arc = [], [], [], [], []
    count = 0
    for number, frame in enumerate(frames):
        gantry = frame.gantry_deg[frame.thinned(every)]
        angles.append(gantry)
        jaws.append(np.tile(np.array(frame.jaws_mm), (len(gantry), 1)))
        bounds.append((count, count + len(gantry)))
        first.append(np.arange(count, count + len(gantry) - 1))
        arc.append(np.full(len(gantry) - 1, number))
        count += len(gantry)
    all_angles, start = np.concatenate(angles), np.concatenate(first)
    return ControlPoints(
        frames,
        all_angles,
        np.concatenate(jaws),
        tuple(bounds),
        start,
        start + 1,
        (all_angles[start] + all_angles[start + 1]) / 2,
        np.abs(all_angles[start + 1] - all_angles[start]),
        np.concatenate(arc),
    )


def beam_directions(points: ControlPoints) -> Exposures:
    """Exposures at the middle of each segment for which only the angles and jaws mean anything."""
    n = len(points.gantry_deg)
    return Exposures(
        points.gantry_deg,
        np.array([points.frames[a].collimator_deg for a in points.arc]),
        np.array([points.frames[a].couch_deg for a in points.arc]),
        np.zeros((n, 2, 2, 1)),
        jaws_of(points).numpy(),
        np.ones(n),
    )


def jaws_of(points: ControlPoints) -> Tensor:
    """The jaws of all segments at their start and end, shape (segments, 2, 4) in mm."""
    jaws = np.stack([points.jaws_mm[points.first], points.jaws_mm[points.last]], axis=1)
    return torch.as_tensor(jaws).float()


@dataclass(frozen=True, eq=False)
class Apertures:
    """Leaves `leaves_mm[control points, 2, leaf rows]` and the MU of each segment, `mu[segments]`.

    The leaf rows are those that the jaws of the frames uncover.
    """

    leaves_mm: NDArray[np.float64]
    mu: NDArray[np.float64]

    def tensors(self, *, differentiable: bool = False) -> tuple[Tensor, Tensor]:
        """Leaves and MU in single precision, as the dose is computed from them."""
        leaves, mu = torch.as_tensor(self.leaves_mm).float(), torch.as_tensor(self.mu).float()
        return leaves.requires_grad_(differentiable), mu.requires_grad_(differentiable)


@dataclass(frozen=True)
class DeliveryRates:
    """Most MU per degree, and the dose rate at which segments of the most MU last as long as they may.

    `leaf_mm_per_deg` is the furthest that a leaf may travel per degree; None for no limit but its speed.
    """

    mu_cap_per_deg: float
    dose_rate_mu_min: float
    leaf_mm_per_deg: float | None = None

    def travel_mm_per_deg(self, limits: Limits) -> float:
        """How far a leaf may travel per degree while the gantry turns at full speed."""
        by_speed = limits.leaf_speed_mm_s / limits.gantry_speed_deg_s
        return by_speed if self.leaf_mm_per_deg is None else min(by_speed, self.leaf_mm_per_deg)


@dataclass(frozen=True, eq=False)
class DeliverableSet:
    """What the machine can deliver along control points at given rates, as a projection.

    Leaves may travel as far as they get while the gantry turns at full speed or the MU are given, whichever
    takes longer.
    """

    points: ControlPoints
    machine: Machine
    rates: DeliveryRates

    def travel_mm(self, mu: NDArray) -> NDArray[np.float64]:
        """How far a leaf may travel in each segment, given its MU."""
        limits = self.machine.limits
        turning = self.points.rotation_deg / limits.gantry_speed_deg_s
        seconds = np.maximum(turning, 60 * mu / self.rates.dose_rate_mu_min)
        travel = TRAVEL_MARGIN * limits.leaf_speed_mm_s * seconds
        if self.rates.leaf_mm_per_deg is None:
            return travel
        return np.minimum(travel, TRAVEL_MARGIN * self.rates.leaf_mm_per_deg * self.points.rotation_deg)

    @property
    def mu_bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Least and most MU of each segment."""
        low = self.machine.limits.mu_per_deg_min * _MU_MARGIN * self.points.rotation_deg
        return low, self.rates.mu_cap_per_deg * self.points.rotation_deg

    def least_mu(self, apertures: Apertures) -> NDArray[np.float64]:
        """Least MU of each segment with which the leaves of projected apertures keep up."""
        points, limits = self.points, self.machine.limits
        leaves = apertures.leaves_mm
        travel = np.abs(leaves[points.last] - leaves[points.first]).max(axis=(1, 2))
        seconds = travel / (TRAVEL_MARGIN * limits.leaf_speed_mm_s)
        slowed = seconds > points.rotation_deg / limits.gantry_speed_deg_s
        needed = np.where(slowed, seconds * self.rates.dose_rate_mu_min / 60, 0.0)
        return np.minimum(np.maximum(self.mu_bounds[0], needed), apertures.mu)

    def project(self, apertures: Apertures) -> Apertures:
        """The nearest apertures and MU that the machine can deliver."""
        gap = self.machine.limits.leaf_gap_mm + _GAP_MARGIN_MM
        leaves, mu = apertures.leaves_mm.copy(), np.clip(apertures.mu, *self.mu_bounds)
        travel = self.travel_mm(mu)
        for number, (begin, end) in enumerate(self.points.bounds):
            x1, x2 = self.points.jaws_mm[begin:end, :2, None].transpose(1, 0, 2)
            arc_travel = travel[self.points.arc == number]
            leaves[begin:end] = project_leaves(leaves[begin:end], arc_travel, gap, x1, x2)
        return Apertures(leaves, mu)

    def closed_or_wide(self, apertures: Apertures, wide_mm: float) -> Apertures:
        """Deliverable apertures with every pair closed or at least `wide_mm` open, where its leaves can.

        Unchanged on a machine whose closed pairs stand open by more than counts as closed.
        """
        closed = self.machine.limits.leaf_gap_mm + _GAP_MARGIN_MM
        if closed > OPEN_GAP_MM:
            return apertures
        leaves, travel = apertures.leaves_mm.copy(), self.travel_mm(apertures.mu)
        for number, (begin, end) in enumerate(self.points.bounds):
            x1, x2 = self.points.jaws_mm[begin:end, :2, None].transpose(1, 0, 2)
            leaves[begin:end] = closed_or_wide(
                leaves[begin:end],
                travel[self.points.arc == number],
                closed_mm=closed,
                wide_mm=wide_mm + _GAP_MARGIN_MM,
                low_mm=x1,
                high_mm=x2,
            )
        return Apertures(leaves, apertures.mu)


def interpolated(coarse: ControlPoints, fine: ControlPoints, apertures: Apertures) -> Apertures:
    """The same motion described by more control points: positions interpolated, MU shared out."""
    leaves = np.empty((len(fine.angles_deg), *apertures.leaves_mm.shape[1:]))
    mu = np.empty(len(fine.gantry_deg))
    for number, ((a, b), (c, d)) in enumerate(zip(coarse.bounds, fine.bounds, strict=True)):
        sign = np.sign(fine.angles_deg[d - 1] - fine.angles_deg[c])
        at, known = sign * fine.angles_deg[c:d], sign * coarse.angles_deg[a:b]
        leaves[c:d] = leaves_between(known, apertures.leaves_mm[a:b], at)
        per_deg = (apertures.mu / coarse.rotation_deg)[coarse.arc == number]
        segments = fine.arc == number
        middle = np.clip(np.searchsorted(known, sign * fine.gantry_deg[segments]) - 1, 0, b - a - 2)
        mu[segments] = per_deg[middle] * fine.rotation_deg[segments]
    return Apertures(leaves, mu)


def leaves_between(known_deg: NDArray, leaves_mm: NDArray, at_deg: NDArray) -> NDArray[np.float64]:
    """Leaves `[n, 2, rows]` at angles between those at which they are known; both angles ascend."""
    index = np.clip(np.searchsorted(known_deg, at_deg, side="right") - 1, 0, len(known_deg) - 2)
    share = ((at_deg - known_deg[index]) / (known_deg[index + 1] - known_deg[index]))[:, None, None]
    return leaves_mm[index] * (1 - share) + leaves_mm[index + 1] * share


# MU of a fraction in units of its dose over the output: what modulated plans need, with room.
_MU_OF_OPEN_FIELD = 4.5


def delivery_rates(
    frames: tuple[ArcFrame, ...], machine: Machine, fraction_gy: float, settings: Settings
) -> DeliveryRates:
    """The rates of arcs that are to give `fraction_gy` in each fraction.

    The MU are those that full gantry speed allows, or more for doses that need a slower gantry; a full turn
    takes the settings' `seconds_per_turn` where they do not ask for longer.
    """
    limits = machine.limits
    at_full_speed = limits.dose_rate_mu_min / 60 / limits.gantry_speed_deg_s
    rotation = sum(abs(f.gantry_deg[-1] - f.gantry_deg[0]) for f in frames)
    needed = _MU_OF_OPEN_FIELD * fraction_gy / machine.require_beam().gy_per_mu / rotation
    cap = min(max(at_full_speed, needed), limits.mu_per_deg_max * _MU_CAP_MARGIN)
    rate = min(60 * cap * 360 / settings.seconds_per_turn, limits.dose_rate_mu_min)
    return DeliveryRates(cap, rate, settings.leaf_mm_per_deg)
