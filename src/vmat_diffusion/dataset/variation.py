"""Variations of the plans of one patient: goals, arcs and collimators. Drawing and applying are apart."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vmat_diffusion.case import Case
from vmat_diffusion.dataset.prepare import target_middle_mm, targets_mask
from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.goals import (
    Goal,
    GoalSheet,
    add_structures,
    fit_to_case,
    goal_sheet_names,
    load_goals,
    with_known_conditions,
)
from vmat_diffusion.geometry import beam_axes, mask_bounds_mm
from vmat_diffusion.machine import Machine

# Factors on limits: some goals become hard to reach, some easy.
_FACTORS = (0.6, 1.2)
_ARCS, _ARC_SHARES = (1, 2, 3), (0.2, 0.5, 0.3)
_FULL_ARC_DEG = (182, 178)
_COLLIMATOR_DEG = (5, 30)
# Two fields that share a wide target do not cover its corners at larger collimator angles.
_WIDE_COLLIMATOR_DEG = (5, 12)
# A prostate is also treated without the angles from behind, through couch and rectum.
_OPEN_BEHIND_DEG = (10, 40)
# A lung tumour or a breast off the midline is also treated from its own side, with some degrees of the other.
_ACROSS_DEG = (10, 60)
_OFF_MIDLINE_MM = 15.0
# The jaws' margins and the beam's divergence reduce the leaf span by so much.
_FIELD_ROOM_MM = 20.0
_LEVEL = re.compile(r"PTV_\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Variation:
    """The differences of one plan from the other plans of its patient.

    `goals` names a shipped sheet. `factors` multiply the limits of each organ's goals. Angles are IEC 61217,
    in degrees; `collimator_deg` has one per arc, None leaves them to the optimiser. `seed` is the
    optimiser's. `conditions` of the sheet hold for the patient.
    """

    goals: str
    arcs: int
    arc_start_deg: float
    arc_stop_deg: float
    collimator_deg: tuple[float, ...] | None
    factors: Mapping[str, float]
    seed: int
    conditions: tuple[str, ...] = ()


def fitting_sheets(case: Case, conditions: Sequence[str] = ()) -> tuple[GoalSheet, ...]:
    """The shipped sheets of the case's site for its targets, fitted as by `apply_variation`.

    A sheet with one target of another dose level fits a case with one: its PTV_60 can be planned as
    PTV_78. A sheet must name an organ of the case. Each takes those of the `conditions`
    that it knows. Raises GoalError where there is none.
    """
    found = []
    for name in goal_sheet_names():
        sheet = with_known_conditions(load_goals(name), conditions)
        # A target drawn for a course of many fractions is no stereotactic one.
        if sheet.site != case.site or sheet.stereotactic or not _on_its_side(sheet, case):
            continue
        try:
            planned = relabel_target(case, sheet)
            fitted = fit_to_case(sheet, planned)
        except GoalError:
            continue
        if _organs(fitted, add_structures(fitted, planned)):
            found.append(fitted)
    if not found:
        targets = ", ".join(s.name for s in case.targets) or "none"
        raise GoalError(
            f"no goal sheet of the site {case.site!r} fits the case (its targets: {targets}); "
            "see vmat-diffusion goals list, and prepare the case with its --site and target names"
        )
    return tuple(found)


def _on_its_side(sheet: GoalSheet, case: Case) -> bool:
    """Whether the targets lie on the side that a sheet is for by its name, such as breast_left_26_5."""
    side = next((word for word in ("left", "right") if word in sheet.name.split("_")), None)
    return side is None or (left_of_middle_mm(case) > 0) == (side == "left")


def left_of_middle_mm(case: Case) -> float:
    """How far the middle of the targets lies to the patient's left of the body's; negative to the right."""
    low, high = mask_bounds_mm(case.body.mask, case.grid)
    off_mm = target_middle_mm(case)[0] - (low[0] + high[0]) / 2
    at_90 = beam_axes(90.0, patient_position=case.patient_position).to_source[0]
    return float(off_mm * np.sign(at_90))


def relabel_target(case: Case, sheet: GoalSheet) -> Case:
    """The case with its only PTV renamed to the sheet's only target; unchanged if either has several.

    Optional targets of a sheet that has others do not count.
    """
    targets = tuple(sheet.prescription.target_gy)
    wanted = tuple(name for name in targets if name not in sheet.optional_targets) or targets
    have = [s.name for s in case.targets if _LEVEL.fullmatch(s.name)]
    if len(wanted) != 1 or len(have) != 1 or wanted[0] == have[0] or not _LEVEL.fullmatch(wanted[0]):
        return case
    structures = {
        wanted[0] if name == have[0] else name: replace(s, name=wanted[0]) if name == have[0] else s
        for name, s in case.structures.items()
    }
    step = f"relabel-target: {have[0]} planned as {wanted[0]}"
    source = replace(case.source, steps=(*case.source.steps, step))
    return replace(case, structures=structures, prescription=None, source=source)


def draw_variation(
    rng: np.random.Generator, sheets: Sequence[GoalSheet], case: Case, machine: Machine
) -> Variation:
    """A variation for a case with one of the sheets that fit it: 1 to 3 arcs, full or partial by site."""
    sheet = sheets[int(rng.integers(len(sheets)))]
    wide = not _fits_one_field(case, machine)
    shares = np.array(_ARC_SHARES) * ([0, 1, 1] if wide else [1, 1, 1])
    arcs = int(rng.choice(_ARCS, p=shares / shares.sum()))
    start, stop = _draw_arc(rng, case)
    low, high = np.log(_FACTORS)
    organs = _organs(sheet, add_structures(sheet, case))
    return Variation(
        goals=sheet.name,
        arcs=arcs,
        arc_start_deg=float(start),
        arc_stop_deg=float(stop),
        collimator_deg=_draw_collimators(rng, arcs, *(_WIDE_COLLIMATOR_DEG if wide else _COLLIMATOR_DEG)),
        factors={name: round(float(np.exp(rng.uniform(low, high))), 2) for name in organs},
        seed=int(rng.integers(2**31)),
        conditions=sheet.conditions_on,
    )


def apply_variation(variation: Variation, case: Case) -> tuple[Case, GoalSheet]:
    """The case as it is planned, with prescription and unions, and the sheet with the varied limits.

    An organ's limits and acceptable values are multiplied by its factor. Goals that must hold (priority
    1) get no looser, and the targets' goals and the normalisation stay. Raises GoalError where the sheet
    does not fit.
    """
    sheet = load_goals(variation.goals)
    case = relabel_target(case, sheet)
    sheet = fit_to_case(sheet, case, variation.conditions)
    case = replace(case, prescription=sheet.prescription)
    goals = tuple(scaled_goal(g, variation.factors.get(g.structure, 1.0)) for g in sheet.goals)
    return add_structures(sheet, case), replace(sheet, goals=goals)


def _organs(sheet: GoalSheet, case: Case) -> list[str]:
    """Organs of the case that the sheet has goals for, in the sheet's order."""
    named = dict.fromkeys(g.structure for g in sheet.goals)
    return [n for n in named if n in case.structures and case.structures[n].role == "organ"]


def scaled_goal(goal: Goal, factor: float) -> Goal:
    """A goal of an organ with its limits multiplied; a must gets no looser, "at least" goals stay."""
    if goal.comparator != "<=" or factor == 1.0:
        return goal
    if goal.priority == 1:
        factor = min(factor, 1.0)
    # A share of a volume ends at 100 %; a dose in percent of the prescription does not.
    most = 100.0 if goal.unit == "%" and not goal.metric.is_dose_in_percent else math.inf

    def times(value: float) -> float:
        return min(float(f"{value * factor:.4g}"), most)  # no more digits than the goal's text shows

    return replace(
        goal, limit=times(goal.limit), variation=None if goal.variation is None else times(goal.variation)
    )


def _fits_one_field(case: Case, machine: Machine) -> bool:
    """Whether the targets fit the leaf span from all angles, so that one arc irradiates all of them."""
    low, high = mask_bounds_mm(targets_mask(case), case.grid)
    return math.dist(low, high) < machine.limits.leaf_span_mm - _FIELD_ROOM_MM


def _draw_arc(rng: np.random.Generator, case: Case) -> tuple[int, int]:
    """Start and stop of the arcs, clockwise."""
    start, stop = _FULL_ARC_DEG
    partial = rng.random() < 0.5
    behind = int(rng.integers(_OPEN_BEHIND_DEG[0], _OPEN_BEHIND_DEG[1] + 1))
    across = int(rng.integers(_ACROSS_DEG[0], _ACROSS_DEG[1] + 1))
    if not partial or case.site not in ("prostate", "lung", "breast"):
        return start, stop
    if case.site == "prostate":
        return start + behind, stop - behind
    off_mm = left_of_middle_mm(case)
    if abs(off_mm) < _OFF_MIDLINE_MM:
        return start, stop
    return (360 - across, stop) if off_mm > 0 else (start, across)


def _draw_collimators(rng: np.random.Generator, arcs: int, least: int, most: int) -> tuple[float, ...] | None:
    """Angles of alternating sign, or None in half of the cases."""
    chosen = rng.random() < 0.5
    sizes = [int(rng.integers(least, most + 1)) for _ in range(2)]
    if chosen:
        return None
    return tuple(float(a) for a in (sizes[0], 360 - sizes[0], sizes[1])[:arcs])
