"""Dose outside a stereotactic target: R100%, R50% and D2cm, and the RTOG's limits by target volume."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from vmat_diffusion.case import Case, Dose, Structure
from vmat_diffusion.distance import within_margin
from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.dvh import structure_dose_gy
from vmat_diffusion.evaluate.goal_types import Goal
from vmat_diffusion.evaluate.metrics import Metric

# RTOG 0813 and 0915, table 1 (identical in both, page 16; seen in a transcription): limits by the volume of
# the planning target, without deviation and with a minor one. Between columns they are interpolated
# linearly, as note 1 of the table demands. D2cm is in percent of the prescription.
_TARGET_CC = (1.8, 3.8, 7.4, 13.2, 22.0, 34.0, 50.0, 70.0, 95.0, 126.0, 163.0)
_LIMITS = {
    "R100%": ((1.2,) * 11, (1.5,) * 11),
    "R50%": (
        (5.9, 5.5, 5.1, 4.7, 4.5, 4.3, 4.0, 3.5, 3.3, 3.1, 2.9),
        (7.5, 6.5, 6.0, 5.8, 5.5, 5.3, 5.0, 4.8, 4.4, 4.0, 3.7),
    ),
    "D2cm": (
        (50.0, 50.0, 50.0, 50.0, 54.0, 58.0, 62.0, 66.0, 70.0, 73.0, 77.0),
        (57.0, 57.0, 58.0, 58.0, 63.0, 68.0, 77.0, 86.0, 89.0, 91.0, 94.0),
    ),
}
TABLES = ("RTOG 0813", "RTOG 0915")


@dataclass(frozen=True)
class SpillageLimit:
    """A limit of the RTOG's table for one target volume; `note` names a volume outside the table."""

    limit: float
    variation: float
    note: str = ""


def rtog_limit(metric: Metric | str, target_cc: float) -> SpillageLimit:
    """The RTOG's limit and minor deviation on R100%, R50% or D2cm (percent) for a target of `target_cc`.

    The table spans 1.8 to 163 cc and gives no rule beyond: there the value at its edge is taken, and the
    note names it. Raises GoalError for another metric.
    """
    text = str(metric)
    if text not in _LIMITS:
        raise GoalError(f"{text} is not in the RTOG's table; it has {', '.join(_LIMITS)}")
    limit, variation = (float(np.interp(target_cc, _TARGET_CC, column)) for column in _LIMITS[text])
    low, high = _TARGET_CC[0], _TARGET_CC[-1]
    if low <= target_cc <= high:
        return SpillageLimit(limit, variation)
    side, edge = ("below", low) if target_cc < low else ("above", high)
    note = f"target of {target_cc:.3g} cc is {side} the table's {edge:g} cc, whose limit is used"
    return SpillageLimit(limit, variation, note)


def with_table_limit(goal: Goal, target_cc: float) -> Goal:
    """The goal with limit and variation of its table for a target of `target_cc`; unchanged without one."""
    if goal.table is None:
        return goal
    row = rtog_limit(goal.metric, target_cc)
    return replace(goal, limit=row.limit, variation=row.variation)


def spilled_gy(dose: Dose, target: Structure, case: Case, distance_cm: float) -> float:
    """The highest dose in the body further than `distance_cm` from a target's surface; 0 where nothing is."""
    beyond = case.body.mask & ~within_margin(target.mask, 10.0 * distance_cm, case.grid.spacing_mm)
    if not beyond.any():
        return 0.0
    return float(structure_dose_gy(dose, Structure("beyond", "other", beyond), case.grid).max())
