"""The goals of a sheet as they condition a network."""

from __future__ import annotations

from dataclasses import replace

from vmat_diffusion.case import Case
from vmat_diffusion.evaluate.goals import GoalSheet, evaluate, fit_to_case
from vmat_diffusion.training.cases import Constraint


def constraints_of(sheet: GoalSheet, case: Case) -> tuple[Constraint, ...]:
    """The sheet's goals on structures that the case has, with what its dose achieved.

    Raises GoalError where a target that the sheet needs is absent.
    """
    fitted = fit_to_case(sheet, case)
    present = {s.name for s in case.structures.values() if s.mask.any()}
    fitted = replace(fitted, goals=tuple(g for g in fitted.goals if g.structure in present))
    if case.reference_dose is None:
        return tuple(Constraint(g.structure, g.statement, g.limit) for g in fitted.goals)
    return tuple(
        Constraint(r.goal.structure, r.goal.statement, r.goal.limit, r.value)
        for r in evaluate(fitted, case, case.reference_dose)
    )
