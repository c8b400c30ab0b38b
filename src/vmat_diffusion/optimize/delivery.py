"""What a goal sheet asks of the delivery, as limits of the search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vmat_diffusion.evaluate.delivery_goals import DeliveryGoal, limit_of
from vmat_diffusion.evaluate.goal_types import GoalSheet
from vmat_diffusion.machine import Machine
from vmat_diffusion.optimize.result import Settings

# What an arc takes beyond its turns: the gantry starts and stops, and slows for MU.
_ARC_S = 5.0
# The shortest time of a turn that a plan can be asked for.
_SHORTEST_TURN_S = 30.0
# Of a beam-on time, what MU may take at the full dose rate: segments are not all delivered at it.
_TIME_SHARE = 0.92


# What a large open field needs in the depth of a trunk, for 1 cGy/MU at the depth of maximum dose, estimated;
# an open arc of 10 x 10 cm2 on the C-shape of TG-119 has 134 by the pencil beam. No plan needs less.
_OPEN_FIELD_MU_PER_GY = 118.0
# A full turn of an arc between the stops of a linac, and what a partial one has at the least, deg.
_FULL_DEG, _PARTIAL_DEG = 356.0, 90.0


def with_delivery(settings: Settings, sheet: GoalSheet, machine: Machine) -> Settings:
    """The settings with the limits of the sheet's delivery goals, where they have none of their own.

    Leaf motion becomes a hard limit, MU per Gy a limit with a price. A beam-on time shortens the turns, and
    bounds the MU that the machine can give in that time. A gap closes or opens narrow pairs at the end of the
    search. Edges have a price alone (`ModulationPenalties`): they are judged on the plan.
    """
    mu, motion = settings.mu_per_gy, settings.leaf_mm_per_deg
    if mu is None:
        mu = limit_of(sheet.delivery, "MU")
    if motion is None:
        motion = limit_of(sheet.delivery, "leaf motion")
    seconds, turn = limit_of(sheet.delivery, "beam-on time"), settings.seconds_per_turn
    if seconds is not None:
        fastest_s = max(_SHORTEST_TURN_S, 360.0 / machine.limits.gantry_speed_deg_s)
        turn = min(turn, max(seconds / settings.arcs - _ARC_S, fastest_s))
        rx = sheet.prescription
        fraction_gy = max(rx.target_gy.values()) / rx.fractions
        most = _TIME_SHARE * seconds * machine.limits.dose_rate_mu_min / 60 / fraction_gy
        mu = most if mu is None else min(mu, most)
    gap = settings.open_gap_mm
    if gap is None:
        gap = limit_of(sheet.delivery, "open gap")
    return replace(settings, mu_per_gy=mu, leaf_mm_per_deg=motion, open_gap_mm=gap, seconds_per_turn=turn)


def delivery_faults(sheet: GoalSheet, machine: Machine) -> Iterator[tuple[bool, str]]:
    """What is wrong with the sheet's delivery goals for a machine, and whether it must be settled."""
    stated: dict[tuple[str, int], DeliveryGoal] = {}
    for goal in sheet.delivery:
        edge, why = _best(goal, sheet, machine)
        short = edge is not None and (goal.limit < edge if goal.comparator == "<=" else goal.limit > edge)
        if short:
            yield True, f"{goal} is out of reach: {why}; relax it"
        first = stated.setdefault((goal.quantity, goal.priority), goal)
        if first is not goal:
            yield False, f"{goal} stands beside {first} in the same priority; keep one"


def _best(goal: DeliveryGoal, sheet: GoalSheet, machine: Machine) -> tuple[float | None, str]:
    """The best value that any plan of the sheet can have on the machine, and why; None if none is known."""
    limits, gy = machine.limits, max(sheet.prescription.target_gy.values()) / sheet.prescription.fractions
    gy_per_mu = machine.beam.gy_per_mu if machine.beam else 0.01
    open_mu = _OPEN_FIELD_MU_PER_GY * 0.01 / gy_per_mu
    if goal.quantity == "MU":
        return open_mu, f"an open field needs {open_mu:.0f} MU/Gy at depth"
    if goal.quantity == "beam-on time":
        stated = sheet.plan.get("arcs")
        arcs = stated if isinstance(stated, int) else Settings.arcs  # a wrong one is refused by `plan`
        turn = _PARTIAL_DEG if {"arc_start_deg", "avoid_deg"} & set(sheet.plan) else _FULL_DEG
        turn = _PARTIAL_DEG if sheet.plan.get("span") == "partial" else turn
        turning, giving = arcs * turn / limits.gantry_speed_deg_s, 60 * open_mu * gy / limits.dose_rate_mu_min
        if giving > turning:
            return giving, f"{open_mu * gy:.0f} MU of an open field take {giving:.0f} s at the full dose rate"
        return turning, f"{arcs} arcs of {turn:g} deg take {turning:.0f} s at full gantry speed"
    if goal.quantity == "open gap":
        return 2 * limits.leaf_position_mm, f"leaves open {2 * limits.leaf_position_mm:g} mm at the most"
    if goal.quantity == "edge":
        height = 2 * limits.jaw_position_mm
        return 2 / height, f"an open field of {height:g} mm has {2 / height:g} /mm"
    return None, ""
