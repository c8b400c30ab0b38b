"""What a plan is asked for in its delivery: by its goal sheet, by the user, else by default."""

from __future__ import annotations

from dataclasses import replace

from vmat_diffusion.evaluate.delivery_goals import QUANTITIES, Quantity, asked_delivery, default_delivery
from vmat_diffusion.evaluate.goal_types import GoalSheet
from vmat_diffusion.workflow.settings import PlanSettings


def with_asked_delivery(sheet: GoalSheet, settings: PlanSettings) -> GoalSheet:
    """The sheet with the delivery goals that hold for a plan; `remarks` name those that do not.

    A limit in the settings goes before the sheet's, "off" leaves it out. Where both are silent, MU and leaf
    motion have the limits of `default_delivery`.
    """
    asked: dict[Quantity, float | None] = {}
    for quantity, known in QUANTITIES.items():
        given = getattr(settings, known.setting)
        if given is not None:
            asked[quantity] = None if given == "off" else float(given)
    defaults = default_delivery(sheet.site, stereotactic=sheet.stereotactic)
    goals, remarks = asked_delivery(sheet.delivery, defaults, asked)
    return replace(sheet, delivery=goals, remarks=(*sheet.remarks, *remarks))
