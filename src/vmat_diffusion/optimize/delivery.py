"""What a goal sheet asks of the delivery, as limits of the search."""

from __future__ import annotations

from dataclasses import replace

from vmat_diffusion.evaluate.delivery_goals import limit_of
from vmat_diffusion.evaluate.goal_types import GoalSheet
from vmat_diffusion.machine import Machine
from vmat_diffusion.optimize.result import Settings

# What an arc takes beyond its turns: the gantry starts and stops, and slows for MU.
_ARC_S = 5.0
# The shortest time of a turn that a plan can be asked for.
_SHORTEST_TURN_S = 30.0
# Of a beam-on time, what MU may take at the full dose rate: segments are not all delivered at it.
_TIME_SHARE = 0.9


def with_delivery(settings: Settings, sheet: GoalSheet, machine: Machine) -> Settings:
    """The settings with the limits of the sheet's delivery goals, where they have none of their own.

    Leaf motion becomes a hard limit, MU per Gy a limit with a price. A beam-on time shortens the turns, and
    bounds the MU that the machine can give in that time. Gap and edge have prices alone
    (`ModulationPenalties`): they are judged on the plan.
    """
    mu, motion = settings.mu_per_gy, settings.leaf_mm_per_deg
    if mu is None:
        mu = limit_of(sheet.delivery, "MU")
    if motion is None:
        motion = limit_of(sheet.delivery, "leaf motion")
    seconds, turn = limit_of(sheet.delivery, "beam-on time"), settings.seconds_per_turn
    if seconds is not None:
        turn = min(turn, max(seconds / settings.arcs - _ARC_S, _SHORTEST_TURN_S))
        rx = sheet.prescription
        fraction_gy = max(rx.target_gy.values()) / rx.fractions
        most = _TIME_SHARE * seconds * machine.limits.dose_rate_mu_min / 60 / fraction_gy
        mu = most if mu is None else min(mu, most)
    return replace(settings, mu_per_gy=mu, leaf_mm_per_deg=motion, seconds_per_turn=turn)
