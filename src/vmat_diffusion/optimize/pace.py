"""How fast arcs are meant to be delivered: what leaves can travel meanwhile depends on it."""

from __future__ import annotations

from dataclasses import dataclass

from vmat_diffusion.machine import Machine
from vmat_diffusion.optimize.arcs import ArcFrame

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
