"""The goals of a sheet as they condition a network."""

from __future__ import annotations

from vmat_diffusion.case import Case
from vmat_diffusion.evaluate.goals import GoalSheet, evaluate
from vmat_diffusion.training.cases import Constraint


def constraints_of(sheet: GoalSheet, case: Case) -> tuple[Constraint, ...]:
    """The goals of a sheet that was fitted to the case, with what its dose achieved if it has one.

    A goal on an organ that is not contoured achieved None.
    """
    if case.reference_dose is None:
        return tuple(Constraint(g.structure, g.statement, g.limit) for g in sheet.goals)
    return tuple(
        Constraint(r.goal.structure, r.goal.statement, r.goal.limit, r.value)
        for r in evaluate(sheet, case, case.reference_dose)
    )
