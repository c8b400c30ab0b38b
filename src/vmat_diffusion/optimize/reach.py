"""The control points of all arcs in one array, and what the machine can deliver along them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.dose.delivery import Exposures
from vmat_diffusion.machine import Machine
from vmat_diffusion.optimize.arcs import ArcFrame
from vmat_diffusion.optimize.sequence import deliverable

_GAP_MARGIN_MM = 0.05
# Leaves and jaws travel a little less far than they could.
REACH_MARGIN = 0.99


@dataclass(frozen=True, eq=False)
class Track:
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


def track(frames: tuple[ArcFrame, ...], every: int) -> Track:
    """The track of every n-th control point of the frames, the jaws around the targets."""
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
    return Track(
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


def angles_only(way: Track) -> Exposures:
    """Exposures at the segments' middles whose apertures are still open questions."""
    n = len(way.gantry_deg)
    return Exposures(
        way.gantry_deg,
        np.array([way.frames[a].collimator_deg for a in way.arc]),
        np.array([way.frames[a].couch_deg for a in way.arc]),
        np.zeros((n, 2, 2, 1)),
        jaws_of(way).numpy(),
        np.ones(n),
    )


def jaws_of(way: Track) -> Tensor:
    """The jaws of all segments at their start and end, shape (segments, 2, 4) in mm."""
    return torch.as_tensor(np.stack([way.jaws_mm[way.first], way.jaws_mm[way.last]], axis=1)).float()


@dataclass(eq=False)
class Apertures:
    """State of the search: leaves `(control points, 2, strips in the frames)` in mm and MU per segment."""

    leaves_mm: NDArray[np.float64]
    mu: NDArray[np.float64]

    def tensors(self, *, differentiable: bool = False) -> tuple[Tensor, Tensor]:
        """Leaves and MU in single precision, as the dose is computed from them."""
        leaves, mu = torch.as_tensor(self.leaves_mm).float(), torch.as_tensor(self.mu).float()
        return leaves.requires_grad_(differentiable), mu.requires_grad_(differentiable)


@dataclass(frozen=True, eq=False)
class Reach:
    """What the machine can deliver along a track at a pace, as a projection.

    Gantry and dose rate set the pace: leaves may travel as far as they get while the gantry turns at full
    speed or the MU are given, whichever takes longer.
    """

    way: Track
    machine: Machine
    pace: Pace

    def travel_mm(self, mu: NDArray) -> NDArray[np.float64]:
        """How far a leaf may travel in each segment, given its MU."""
        limits = self.machine.limits
        turning = self.way.rotation_deg / limits.gantry_speed_deg_s
        return (
            REACH_MARGIN * limits.leaf_speed_mm_s * np.maximum(turning, 60 * mu / self.pace.dose_rate_mu_min)
        )

    @property
    def mu_bounds(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Least and most MU of each segment."""
        low = self.machine.limits.mu_per_deg_min * 1.02 * self.way.rotation_deg
        return low, self.pace.mu_cap_per_deg * self.way.rotation_deg

    def least_mu(self, state: Apertures) -> NDArray[np.float64]:
        """Least MU of each segment with which the leaves of a projected state keep up."""
        way, limits = self.way, self.machine.limits
        travel = np.abs(state.leaves_mm[way.last] - state.leaves_mm[way.first]).max(axis=(1, 2))
        seconds = travel / (REACH_MARGIN * limits.leaf_speed_mm_s)
        slowed = seconds > way.rotation_deg / limits.gantry_speed_deg_s
        needed = np.where(slowed, seconds * self.pace.dose_rate_mu_min / 60, 0.0)
        return np.minimum(np.maximum(self.mu_bounds[0], needed), state.mu)

    def project(self, state: Apertures) -> Apertures:
        """The nearest apertures and MU that the machine can deliver."""
        gap = self.machine.limits.leaf_gap_mm + _GAP_MARGIN_MM
        leaves, mu = state.leaves_mm.copy(), np.clip(state.mu, *self.mu_bounds)
        travel = self.travel_mm(mu)
        for number, (begin, end) in enumerate(self.way.bounds):
            x1, x2 = self.way.jaws_mm[begin:end, :2, None].transpose(1, 0, 2)
            own = travel[self.way.arc == number]
            leaves[begin:end] = deliverable(leaves[begin:end], own, gap, x1, x2)
        return Apertures(leaves, mu)


def interpolated(coarse: Track, fine: Track, state: Apertures) -> Apertures:
    """The same motion described by more control points: positions interpolated, MU shared out."""
    leaves = np.empty((len(fine.angles_deg), *state.leaves_mm.shape[1:]))
    mu = np.empty(len(fine.gantry_deg))
    for number, ((a, b), (c, d)) in enumerate(zip(coarse.bounds, fine.bounds, strict=True)):
        sign = np.sign(fine.angles_deg[d - 1] - fine.angles_deg[c])
        at, known = sign * fine.angles_deg[c:d], sign * coarse.angles_deg[a:b]
        index = np.clip(np.searchsorted(known, at, side="right") - 1, 0, b - a - 2)
        t = ((at - known[index]) / (known[index + 1] - known[index]))[:, None, None]
        own = state.leaves_mm[a:b]
        leaves[c:d] = own[index] * (1 - t) + own[index + 1] * t
        per_deg = (state.mu / coarse.rotation_deg)[coarse.arc == number]
        segments = fine.arc == number
        middle = np.clip(np.searchsorted(known, sign * fine.gantry_deg[segments]) - 1, 0, b - a - 2)
        mu[segments] = per_deg[middle] * fine.rotation_deg[segments]
    return Apertures(leaves, mu)


# MU of a fraction in units of its dose over the output: what modulated plans need, with room.
_MU_OF_OPEN_FIELD = 4.5


@dataclass(frozen=True)
class Pace:
    """Most MU per degree, and the dose rate at which segments of the most MU last as long as they may."""

    mu_cap_per_deg: float
    dose_rate_mu_min: float


def pace_of(
    frames: tuple[ArcFrame, ...], machine: Machine, fraction_gy: float, seconds_per_turn: float
) -> Pace:
    """The pace of arcs that are to give `fraction_gy` in each fraction.

    The MU are those that full gantry speed allows, or more for doses that need a slower gantry; a full turn
    takes `seconds_per_turn` where they do not ask for longer.
    """
    limits = machine.limits
    at_full_speed = limits.dose_rate_mu_min / 60 / limits.gantry_speed_deg_s
    turn = sum(abs(f.gantry_deg[-1] - f.gantry_deg[0]) for f in frames)
    wanted = _MU_OF_OPEN_FIELD * fraction_gy / machine.require_beam().gy_per_mu / turn
    cap = min(max(at_full_speed, wanted), limits.mu_per_deg_max * 0.99)
    return Pace(cap, min(60 * cap * 360 / seconds_per_turn, limits.dose_rate_mu_min))
