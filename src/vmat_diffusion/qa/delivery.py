"""Delivery as checks of the gate: the goals of the sheet on it, and complexity beside other plans."""

from __future__ import annotations

from vmat_diffusion.case import Case
from vmat_diffusion.evaluate.complexity import complexity_of, outside_ranges
from vmat_diffusion.evaluate.delivery_results import DeliveryResult, evaluate_delivery, missed_delivery
from vmat_diffusion.evaluate.goals import GoalSheet
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan
from vmat_diffusion.qa.verdict import Check, warning


def delivery_checks(case: Case, sheet: GoalSheet | None, plan: Plan, machine: Machine) -> list[Check]:
    """The sheet's goals on the delivery, where it has any, and a warning where the plan is unusually complex.

    A goal of priority 1 that is missed fails the check; others that are missed are a warning. What the
    machine cannot deliver is not judged here.
    """
    out = []
    if sheet is not None and sheet.delivery:
        out.append(_goals(evaluate_delivery(sheet, plan, machine)))
    found = complexity_of(plan, machine, sheet.prescription if sheet else case.prescription)
    site = sheet.site if sheet else case.site
    if found is not None and (said := outside_ranges(found, site)):
        out.append(warning("complexity", said, ""))
    return out


def _goals(results: tuple[DeliveryResult, ...]) -> Check:
    musts = missed_delivery(results, 1)
    others = [r for priority in (2, 3) for r in missed_delivery(results, priority)]
    absent = [r for r in results if r.value is None and not r.missed]
    parts = [
        f"{what}: " + "; ".join(map(str, found))
        for what, found in (("missed", [*musts, *others]), ("not evaluated", absent))
        if found
    ]
    why = ", ".join(parts) or f"all {len(results)} goals on the delivery are met"
    cautions = bool(others) and not musts
    return Check("delivery goals", not musts, float(len(musts)), 0.0, "musts missed", why, cautions=cautions)
