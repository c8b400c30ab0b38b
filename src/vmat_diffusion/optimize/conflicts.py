"""Goals that cannot be met together: proven from the contours, or observed where a search came to rest.

A goal that limits an organ is out of reach where the coverage that the targets ask for puts more dose into
the voxels they share. That bound is exact and needs no plan. What scatter and falloff add to it is not known
before planning: goals that a search leaves open are named with those whose gradients oppose theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case
from vmat_diffusion.evaluate.dvh import Dvh
from vmat_diffusion.evaluate.goals import Goal, GoalSheet
from vmat_diffusion.evaluate.metrics import histogram_value

# Gradients whose cosine is above this do not oppose each other.
_OPPOSED = -0.2


@dataclass(frozen=True)
class Conflict:
    """A goal that is not met, with the goals or parts of the objective that oppose it.

    `proven` where no plan at all can meet both; `least` is then the goal's best value beside them, in its
    unit.
    """

    goal: Goal
    against: tuple[str, ...]
    proven: bool = False
    least: float | None = None

    def __str__(self) -> str:
        against = " and ".join(self.against) or "the limits of machine and search"
        if not self.proven:
            return f"{self.goal} is held off by {against}"
        return f"{self.goal} cannot be met beside {against}: {self.least:.1f} {self.goal.unit} at the least"


def proven_conflicts(case: Case, sheet: GoalSheet) -> tuple[Conflict, ...]:
    """Upper limits that the targets' own coverage goals forbid; the sheet must be fitted to the case.

    Taken are mean, max, D% and Dcc limits of structures that are no targets, and V limits in Gy.
    """
    coverage = [
        g
        for g in sheet.goals
        if g.comparator == ">="
        and g.structure in sheet.prescription.target_gy
        and g.structure in case.structures
        and g.metric.kind in ("D%", "V", "min")
    ]
    out = []
    for goal in sheet.goals:
        structure = case.structures.get(goal.structure)
        if goal.comparator != "<=" or structure is None or not structure.voxels:
            continue
        if goal.structure in sheet.prescription.target_gy:
            continue
        best: tuple[float, Goal] | None = None
        for target_goal in coverage:
            if target_goal.priority > goal.priority:
                continue
            target = case.structures[target_goal.structure]
            least = _least(goal, target_goal, structure.mask, target.mask, case.grid.voxel_cc)
            if least is not None and goal.status(least) == "fail" and (best is None or least > best[0]):
                best = least, target_goal
        if best:
            out.append(Conflict(goal, (str(best[1]),), proven=True, least=best[0]))
    return tuple(out)


def _least(
    goal: Goal, coverage: Goal, organ: NDArray[np.bool_], target: NDArray[np.bool_], voxel_cc: float
) -> float | None:
    """The least value of an organ's metric beside one coverage goal: cold voxels lie in the organ first."""
    # Neither goal is given a prescription: a level in percent of it proves nothing here.
    bound = coverage.metric.bound(coverage.limit)
    if bound is None or bound.unit != "%":
        return None
    shared = int((organ & target).sum())
    cold = int(np.ceil((1 - bound.volume / 100) * int(target.sum()) - 1e-6))
    warm = shared - cold
    if warm <= 0:
        return None
    gy = np.zeros(int(organ.sum()))
    gy[:warm] = bound.level_gy
    return histogram_value(goal.metric, Dvh.of(gy, voxel_cc), goal.metric.level_gy(None))


def observed_conflicts(
    missed: Sequence[Goal], gradients: Mapping[str, NDArray[np.float64]]
) -> tuple[Conflict, ...]:
    """Missed goals with the parts of the objective whose gradients oppose theirs, where the search ended.

    `gradients` are those of the objective's parts by the plan's variables; the part of a goal has the goal's
    words as its name. The most opposed parts come first.
    """
    out = []
    for goal in missed:
        gradient = gradients.get(str(goal), np.zeros(0))
        opposed = []
        for name, other in gradients.items() if gradient.any() else ():
            size = np.linalg.norm(gradient) * np.linalg.norm(other)
            if size > 0 and (cosine := float(gradient @ other / size)) < _OPPOSED:
                opposed.append((cosine, name))
        out.append(Conflict(goal, tuple(name for _, name in sorted(opposed))))
    return tuple(out)


def merge_conflicts(proven: Sequence[Conflict], observed: Sequence[Conflict]) -> tuple[Conflict, ...]:
    """One conflict for each goal, the proven before the observed."""
    by_goal = {str(conflict.goal): conflict for conflict in (*observed, *proven)}
    return tuple(by_goal[name] for name in sorted(by_goal))
