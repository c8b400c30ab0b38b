"""Goals that cannot be met together: proven from the contours, or seen where a search came to rest.

A goal that limits an organ is out of reach where the coverage that the targets ask for puts more dose into
the voxels they share. That bound is exact and needs no plan. What scatter and falloff add to it is not known
before planning: goals that a search leaves open are named with those that pull against them.
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

# Pulls whose cosine is above this do not oppose each other.
_OPPOSED = -0.2


@dataclass(frozen=True)
class Conflict:
    """A goal that is not met and what is in its way; `proven` where no plan at all can meet both.

    `least` is then the goal's best value beside them, in its unit.
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
        for one in coverage:
            if one.priority > goal.priority:
                continue
            least = _least(goal, one, structure.mask, case.structures[one.structure].mask, case.grid.voxel_cc)
            if least is not None and goal.status(least) == "fail" and (best is None or least > best[0]):
                best = least, one
        if best:
            out.append(Conflict(goal, (str(best[1]),), proven=True, least=best[0]))
    return tuple(out)


def _least(
    goal: Goal, coverage: Goal, organ: NDArray[np.bool_], target: NDArray[np.bool_], voxel_cc: float
) -> float | None:
    """The least value of an organ's metric beside one coverage goal: cold voxels lie in the organ first."""
    level = _level_gy(coverage)
    if level is None:
        return None
    share = {"D%": coverage.metric.value, "V": coverage.limit, "min": 100.0}[coverage.metric.kind]
    if share is None or (coverage.metric.kind == "V" and coverage.unit != "%"):
        return None
    shared = int((organ & target).sum())
    cold = int(np.ceil((1 - share / 100) * int(target.sum()) - 1e-6))
    warm = shared - cold
    if warm <= 0:
        return None
    gy = np.zeros(int(organ.sum()))
    gy[:warm] = level
    # A V metric of the structure's own prescription is a target's, of which there is none here.
    own_level = goal.metric.value if goal.metric.value_unit == "Gy" else None
    return histogram_value(goal.metric, Dvh.of(gy, voxel_cc), own_level)


def _level_gy(coverage: Goal) -> float | None:
    if coverage.metric.kind in ("D%", "min"):
        return coverage.limit
    return coverage.metric.value if coverage.metric.value_unit == "Gy" else None


def seen_conflicts(missed: Sequence[Goal], pulls: Mapping[str, NDArray[np.float64]]) -> tuple[Conflict, ...]:
    """Missed goals with what pulls the plan the other way where the search came to rest.

    `pulls` are gradients of the objective's parts by the plan's variables, a goal's part named as the goal.
    Per missed goal the opposing parts are named, the most opposed first.
    """
    out = []
    for goal in missed:
        own = pulls.get(str(goal), np.zeros(0))
        opposed = []
        for name, pull in pulls.items() if own.any() else ():
            size = np.linalg.norm(own) * np.linalg.norm(pull)
            if size > 0 and (cosine := float(own @ pull / size)) < _OPPOSED:
                opposed.append((cosine, name))
        out.append(Conflict(goal, tuple(name for _, name in sorted(opposed))))
    return tuple(out)


def merged(proven: Sequence[Conflict], seen: Sequence[Conflict]) -> tuple[Conflict, ...]:
    """One conflict for each goal, the proven before the seen."""
    by_goal = {str(conflict.goal): conflict for conflict in (*seen, *proven)}
    return tuple(by_goal[name] for name in sorted(by_goal))
