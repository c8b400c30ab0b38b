"""Clinical goals judged on a dose, and all that belongs to them. See `docs/goals.md`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vmat_diffusion.case import Case, Dose, Structure
from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.delivery_goals import DeliveryGoal
from vmat_diffusion.evaluate.delivery_results import DeliveryResult, delivery_record, evaluate_delivery
from vmat_diffusion.evaluate.dvh import Dvh, isodose_volume_cc, outside_percent, structure_dvh
from vmat_diffusion.evaluate.fractionation import eqd2_gy, physical_gy
from vmat_diffusion.evaluate.goal_fitting import (
    add_structures,
    fit_to_case,
    how_made,
    missing_required,
    normalized_at,
    require_known_conditions,
    why_absent,
    with_conditions,
    with_known_conditions,
)
from vmat_diffusion.evaluate.goal_results import (
    GoalResult,
    GroupResult,
    goal_details,
    goal_record,
    group_record,
    group_results,
    missed_of,
    sheet_record,
)
from vmat_diffusion.evaluate.goal_sheets import goal_sheet_names, load_goals, parse_goals
from vmat_diffusion.evaluate.goal_types import Goal, GoalSheet, Group, Normalization
from vmat_diffusion.evaluate.goal_words import Comparator, Seen, Status
from vmat_diffusion.evaluate.metrics import histogram_value, homogeneity, paddick
from vmat_diffusion.evaluate.spillage import rtog_limit, spilled_gy, with_table_limit

__all__ = [
    "Comparator",
    "DeliveryGoal",
    "DeliveryResult",
    "Goal",
    "GoalResult",
    "GoalSheet",
    "Group",
    "GroupResult",
    "Normalization",
    "Seen",
    "Status",
    "add_structures",
    "delivery_record",
    "evaluate",
    "evaluate_delivery",
    "fit_to_case",
    "goal_details",
    "goal_record",
    "goal_sheet_names",
    "group_record",
    "group_results",
    "judge_groups",
    "load_goals",
    "missed_of",
    "missing_required",
    "normalization_gy",
    "normalized_at",
    "parse_goals",
    "require_known_conditions",
    "sheet_record",
    "with_conditions",
    "with_known_conditions",
]


def normalization_gy(dose: Dose, case: Case, sheet: GoalSheet) -> float:
    """The metric that the sheet normalises, in Gy; GoalError if it is neither a mean nor a D%."""
    wish = sheet.normalization
    value = histogram_value(wish.metric, structure_dvh(dose, case.structures[wish.structure], case.grid))
    if wish.metric.kind not in ("mean", "D%") or value is None:
        raise GoalError(f"goal sheet {sheet.name}: normalisation {wish} must be a mean or a D% metric")
    return value


def evaluate(sheet: GoalSheet, case: Case, dose: Dose) -> tuple[GoalResult, ...]:
    """Every goal of the sheet judged on a dose, in the sheet's order.

    A goal on a structure that is absent or empty is "not evaluated". Members of a group that is met are
    excused: `GoalResult.missed` counts that in, and is what decides everywhere.
    """
    histograms: dict[str, _Histogram] = {}
    results = []
    for goal in sheet.goals:
        group = sheet.groups.get(goal.group or "")
        if why := why_absent(goal.structure, sheet, case):
            results.append(GoalResult(goal, None, "not evaluated", why, group=group))
            continue
        if goal.structure not in histograms:
            histograms[goal.structure] = _histogram(dose, case.structures[goal.structure], case)
        found = histograms[goal.structure]
        goal = with_table_limit(goal, found.dvh.volume_cc) if not math.isfinite(goal.limit) else goal
        value = _value(goal, found.dvh, sheet, case, dose)
        if math.isfinite(value):
            physical, note = _beside(goal, found, sheet)
            results.append(
                GoalResult(goal, value, goal.status(value), note, group=group, physical_gy=physical)
            )
        else:
            results.append(GoalResult(goal, None, "not evaluated", "no dose in the structure", group=group))
    groups = {found.group.name: found for found in group_results(results)}
    return tuple(
        r if r.group is None else replace(r, excused=groups[r.group.name].excuses(r)) for r in results
    )


def judge_groups(sheet: GoalSheet, results: Sequence[GoalResult]) -> tuple[GroupResult, ...]:
    """The groups of the sheet on the results of its goals, as `group_results` has them."""
    own = [replace(r, group=sheet.groups.get(r.goal.group or "")) for r in results]
    return group_results(own)


@dataclass(frozen=True, eq=False)
class _Histogram:
    """A structure's histogram, its structure, and what to say of it."""

    dvh: Dvh
    note: str


def _histogram(dose: Dose, structure: Structure, case: Case) -> _Histogram:
    made, outside = how_made(structure.name, case), outside_percent(dose, structure, case.grid)
    notes = [f"made as {made}" if made and made != structure.name else ""]
    if outside:
        notes.append(f"{outside:.1f} % of the structure lies outside the dose grid and counts as 0 Gy")
    note = "; ".join(part for part in notes if part)
    return _Histogram(structure_dvh(dose, structure, case.grid), note)


def _value(goal: Goal, dvh: Dvh, sheet: GoalSheet, case: Case, dose: Dose) -> float:
    """The goal's metric in its unit; NaN where there is no dose."""
    metric = goal.metric
    whole_gy = goal.hundred_percent_gy(sheet.prescription.target_gy)
    if goal.eqd2 is not None:
        dvh = Dvh(eqd2_gy(dvh.gy, goal.eqd2, sheet.prescription.fractions), dvh.voxel_cc)
    level_gy = metric.level_gy(whole_gy)
    if metric.kind in ("conformity", "R"):
        assert level_gy is not None  # a sheet with either of a structure without prescription is refused
        isodose_cc = isodose_volume_cc(dose, level_gy, case.body, case.grid)
        return (
            paddick(dvh, level_gy, isodose_cc) if metric.kind == "conformity" else isodose_cc / dvh.volume_cc
        )
    if metric.kind == "homogeneity":
        return homogeneity(dvh)
    if metric.kind == "Dcm":
        assert metric.value is not None
        gy: float | None = spilled_gy(dose, case.structures[goal.structure], case, metric.value)
    else:
        gy = histogram_value(
            replace(metric, result_unit="Gy") if metric.is_dose_in_percent else metric, dvh, level_gy
        )
    assert gy is not None  # every other kind has one
    if not metric.is_dose_in_percent:
        return gy
    assert whole_gy is not None  # a fitted sheet has a prescription
    return 100.0 * gy / whole_gy


def _beside(goal: Goal, found: _Histogram, sheet: GoalSheet) -> tuple[float | None, str]:
    """The physical dose beside a value in EQD2, and what a reader must know of the value."""
    notes, physical = [found.note], None
    metric, cc = goal.metric, found.dvh.volume_cc
    if goal.eqd2 is not None:
        fractions = sheet.prescription.fractions
        if metric.kind in ("V", "CV"):
            assert metric.value is not None
            physical = physical_gy(metric.value, goal.eqd2, fractions)
            notes.append(f"{metric.value:g} Gy EQD2 are {physical:.2f} Gy in {fractions} fractions")
        else:
            physical = histogram_value(metric, found.dvh)
            notes.append(f"EQD2; {physical:.2f} Gy in {fractions} fractions")
    if goal.table is not None:
        notes.append(rtog_limit(metric, cc).note)
    if metric.kind in ("R", "Dcm") and len(sheet.prescription.target_gy) > 1:
        notes.append("the dose of the other targets counts too")
    if metric.kind == "CV" and metric.result_unit == "cc" and goal.comparator == ">=" and cc < goal.limit:
        notes.append(f"the structure has only {cc:.1f} cc")
    return physical, "; ".join(note for note in notes if note)
