"""A planning task: whom to treat, what for, and with which linac."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vmat_diffusion.case import Case
from vmat_diffusion.evaluate.goals import GoalSheet, add_structures, fit_to_case
from vmat_diffusion.machine import Machine


@dataclass(frozen=True, eq=False)
class Task:
    """A case, the goal sheet for the targets that it has, and the machine that is to deliver the plan."""

    case: Case
    sheet: GoalSheet
    machine: Machine

    @classmethod
    def fitted(cls, case: Case, sheet: GoalSheet, machine: Machine) -> Task:
        """The task in which case and sheet are fitted to each other.

        As in `fit_to_each_other`; unions are such as Lungs = Lung_L + Lung_R. Raises MachineError for a
        machine without a beam model.
        """
        machine.require_beam()
        return cls(*fit_to_each_other(case, sheet), machine)


def fit_to_each_other(case: Case, sheet: GoalSheet) -> tuple[Case, GoalSheet]:
    """The case with the sheet's prescription and unions, and the sheet for the targets that it has.

    Raises GoalError where a required target is absent.
    """
    sheet = fit_to_case(sheet, case)
    return add_structures(sheet, replace(case, prescription=sheet.prescription)), sheet
