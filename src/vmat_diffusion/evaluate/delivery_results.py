"""What a plan makes of the delivery goals of a sheet, in the words of the goals on dose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vmat_diffusion.evaluate.complexity import Complexity, complexity_of
from vmat_diffusion.evaluate.delivery_goals import DeliveryGoal
from vmat_diffusion.evaluate.goal_sources import stated_sources
from vmat_diffusion.evaluate.goal_types import GoalSheet
from vmat_diffusion.evaluate.goal_words import Status
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan


@dataclass(frozen=True)
class DeliveryResult:
    """A delivery goal with its value on one plan; `value` is None where it has none, and `note` says why."""

    goal: DeliveryGoal
    value: float | None
    status: Status
    note: str = ""

    @property
    def missed(self) -> bool:
        """Whether the goal is not met: it failed, or a must has no value."""
        return self.status == "fail" or (self.status == "not evaluated" and self.goal.priority == 1)

    @property
    def value_text(self) -> str:
        """The value in the goal's unit; a dash for none."""
        return "–" if self.value is None else f"{self.value:.3g} {self.goal.unit}"

    def __str__(self) -> str:
        return f"{self.goal} ({self.note if self.value is None else self.value_text})"


def evaluate_delivery(sheet: GoalSheet, plan: Plan, machine: Machine) -> tuple[DeliveryResult, ...]:
    """Every delivery goal of the sheet judged on a plan, in the sheet's order.

    MU per Gy refer to the highest prescription of the sheet, shared out over the plan's fractions. A goal
    whose quantity the plan does not have is "not evaluated".
    """
    if not sheet.delivery:
        return ()
    found = complexity_of(plan, machine, sheet.prescription)
    if found is None:
        why = f"the plan has other leaves than machine {machine.name}"
        return tuple(DeliveryResult(goal, None, "not evaluated", why) for goal in sheet.delivery)
    return tuple(judge_delivery(goal, found) for goal in sheet.delivery)


def judge_delivery(goal: DeliveryGoal, found: Complexity) -> DeliveryResult:
    """A delivery goal on the metrics of a plan."""
    value = getattr(found, goal.metric)
    if value is None or not found.mean_dose_rate_mu_min > 0:
        return DeliveryResult(goal, None, "not evaluated", _why_none(goal, found))
    return DeliveryResult(goal, float(value), goal.status(float(value)))


def _why_none(goal: DeliveryGoal, found: Complexity) -> str:
    if not found.mean_dose_rate_mu_min > 0:
        return "the plan has no MU"
    return {
        "MU": "no prescription is known",
        "leaf motion": "the gantry stands still",
        "open gap": "no leaf pair is open",
    }.get(goal.quantity, "the plan has no such quantity")


def missed_delivery(results: Sequence[DeliveryResult], priority: int) -> tuple[DeliveryResult, ...]:
    """The delivery goals of a priority that are missed."""
    return tuple(r for r in results if r.missed and r.goal.priority == priority)


def delivery_record(result: DeliveryResult) -> dict[str, Any]:
    """A delivery goal and its result as plain data, with its sources."""
    goal = result.goal
    return {
        "goal": goal.statement,
        "quantity": goal.quantity,
        "value": None if result.value is None else round(result.value, 4),
        "limit": goal.limit,
        "variation": goal.variation,
        "unit": goal.unit,
        "priority": goal.priority,
        "status": result.status,
        "missed": result.missed,
        "note": result.note,
        **stated_sources(goal),
    }
