"""What a clinical case was treated for: site, goals and prescription, told by its structures and doses.

Each answer comes with the step that was taken to find it, a keyword for the case's provenance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from vmat_diffusion.case import Case, Prescription
from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.dvh import structure_dvh
from vmat_diffusion.evaluate.goal_fitting import structures_named
from vmat_diffusion.evaluate.goals import (
    GoalSheet,
    fit_to_case,
    goal_sheet_names,
    load_goals,
    with_known_conditions,
)
from vmat_diffusion.files import shipped_or_code
from vmat_diffusion.plan import Plan

_LEVEL = re.compile(r".*_(\d+(?:\.\d+)?)")
# Mean dose of a target over the level in its name; beyond, the dose is of another course or of a part of it.
_LEVEL_AGREES = (0.8, 1.25)
# So many organs that several sites share (cord, oesophagus) identify a site; fewer do not.
_ORGANS_OF_A_SITE = 3
# Structures that no goal names but that tell the site as well.
_TELLING = {"prostate": ("Prostate", "SeminalVes")}


@cache
def _shipped_sheets() -> tuple[GoalSheet, ...]:
    return tuple(load_goals(name) for name in goal_sheet_names())


def _organs(sheet: GoalSheet) -> set[str]:
    """What the sheet has goals for, with the parts of structures that it makes, but no prescribed target."""
    named = {*structures_named(sheet), *(g.structure for g in sheet.goals)}
    return named - set(sheet.prescription.target_gy)


def site_of(case: Case, stated: str) -> tuple[str, list[str]]:
    """The site and the step taken: the stated site, or the site whose shipped goals fit the structures best.

    The first criterion is the number of organs that no other site's goals name, the second whether goals
    fit the targets' doses and at least three organs, the third the number of organs. After a tie the site
    is unknown.
    """
    if stated:
        return stated, []
    organs: dict[str, set[str]] = {site: set(names) for site, names in _TELLING.items()}
    for sheet in _shipped_sheets():
        if sheet.site != "phantom":
            organs.setdefault(sheet.site, set()).update(_organs(sheet))
    contoured = {s.name for s in case.structures.values() if s.role == "organ"}
    score = {}
    for site, names in organs.items():
        here = names & contoured
        own = here - set().union(*(n for s, n in organs.items() if s != site))
        fits = any(
            _fitted(sheet, case) for sheet in _shipped_sheets() if sheet.site == site and _levels(sheet)
        )
        score[site] = (len(own), fits and len(here) >= _ORGANS_OF_A_SITE, len(here))
    best = max(score.values())
    found = [site for site, value in score.items() if value == best]
    if len(found) > 1 or not any(best[:2]):
        return "unknown", ["site-unknown"]
    return found[0], ["site-from-structures"]


def _levels(sheet: GoalSheet) -> bool:
    """Whether the names of all targets of the sheet state their dose."""
    return all(_LEVEL.fullmatch(name) for name in sheet.prescription.target_gy)


def _fitted(sheet: GoalSheet, case: Case) -> GoalSheet | None:
    """The sheet for the targets of the case; None if it does not fit or contradicts the plan."""
    try:
        fitted = fit_to_case(sheet, case)
    except GoalError:
        return None
    known = case.prescription.target_gy if case.prescription else {}
    for name, gy in fitted.prescription.target_gy.items():
        if abs(known.get(name, gy) - gy) > 0.01 * gy:
            return None
    return fitted


def fractions_of(case: Case, stated: int | None, plan: Plan | None) -> int | None:
    """The fractions of the prescription, else as the user states, else of the plan; None if unknown."""
    prescribed = case.prescription.fractions if case.prescription else None
    return prescribed or stated or (plan.fractions if plan else None)


def sheet_of(
    case: Case, site: str, fractions: int | None, *, goals: str = "", conditions: Sequence[str] = ()
) -> tuple[GoalSheet | None, list[str]]:
    """The goals of a case, and the step taken to find them.

    Limits hold for one fractionation: only shipped goals with the case's number of fractions fit, and
    stereotactic goals only where that number is known; of two sheets of one prescription that fit equally
    well neither. Goals that the user names are kept, and the step says so if their fractionation differs.
    """
    if goals:
        named = fit_to_case(load_goals(goals), case, conditions)
        other = fractions not in (None, named.prescription.fractions)
        name = shipped_or_code(goals, goal_sheet_names())
        steps = [f"goals-of-other-fractions: {name}"] if other else []
        return named, [*steps, *_conditions(named)]
    fitting = []
    for shipped in _shipped_sheets():
        sheet = with_known_conditions(shipped, conditions)
        known = fractions is not None or not sheet.stereotactic
        if not known or fractions not in (None, sheet.prescription.fractions):
            continue
        if sheet.site == site and _levels(sheet) and (fitted := _fitted(sheet, case)):
            fitting.append((-len(_organs(sheet) & set(case.structures)), sheet.name, fitted))
    if not fitting or _undecided(fitting) or not _dose_agrees(case, min(fitting)[2].prescription.target_gy):
        return None, ["goals-unknown"]
    _, name, found = min(fitting)
    return found, [f"goals-from-structures: {name}", *_conditions(found)]


def _conditions(sheet: GoalSheet) -> list[str]:
    """The step that names the conditions of a sheet that hold for the patient."""
    return [f"goals-with: {', '.join(sheet.conditions_on)}"] if sheet.conditions_on else []


def _undecided(fitting: list[tuple[int, str, GoalSheet]]) -> bool:
    """Whether two sheets of one prescription, such as those of either breast, fit equally well."""
    best, *others = sorted(fitting, key=lambda found: found[:2])
    return any(other[0] == best[0] and other[2].prescription == best[2].prescription for other in others)


def prescription_of(
    case: Case, sheet: GoalSheet | None, fractions: int | None
) -> tuple[Prescription | None, list[str]]:
    """The prescription of the plan, else of the goals, else of the targets' names; and the step taken.

    The number of fractions comes from the goals only if nothing else states it.
    """
    if case.prescription is not None:
        return case.prescription, []
    if sheet is not None:
        prescription = replace(sheet.prescription, fractions=fractions or sheet.prescription.fractions)
        return prescription, [f"prescription-from-goals: {sheet.name}"]
    levels = {s.name: float(m[1]) for s in case.targets if (m := _LEVEL.fullmatch(s.name))}
    levels = {name: gy for name, gy in levels.items() if name.startswith("PTV")} or levels
    if not levels or fractions is None or not _dose_agrees(case, levels):
        return None, ["prescription-unknown"]
    return Prescription(fractions, levels), ["prescription-from-names"]


def _dose_agrees(case: Case, levels: Mapping[str, float]) -> bool:
    """Whether the target of the highest level gets about that dose; a dose of a boost alone does not."""
    dose, highest = case.reference_dose, max(levels, key=lambda name: levels[name])
    if dose is None or highest not in case.structures:
        return True
    mean = structure_dvh(dose, case.structures[highest], case.grid).mean_gy
    return _LEVEL_AGREES[0] <= mean / levels[highest] <= _LEVEL_AGREES[1]
