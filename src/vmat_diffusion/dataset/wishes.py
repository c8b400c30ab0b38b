"""Wishes for doses of one anatomy: beams, prescription, goals and weights. Drawing and applying are apart.

A `Setting` is what several doses share: goal sheet, prescription, beams. A `Wish` is what each asks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from vmat_diffusion.case import Case
from vmat_diffusion.dataset.variation import left_of_middle_mm, relabel_target, scaled_goal
from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.goals import Goal, GoalSheet, add_structures, fit_to_case, load_goals
from vmat_diffusion.evaluate.metrics import Metric

BeamKind = Literal["nine fields", "full arc", "partial arc"]
BEAMS: Mapping[str, BeamKind | None] = {
    "drawn": None,
    "nine-fields": "nine fields",
    "full-arc": "full arc",
    "partial-arc": "partial arc",
}
# Of the settings of each site; OpenKBP has nine fields, head and neck.
_KINDS: tuple[BeamKind, ...] = ("nine fields", "full arc", "partial arc")
_KIND_SHARES: Mapping[str, tuple[float, float, float]] = {"head_neck": (0.6, 0.3, 0.1)}
_OTHER_SHARES = (0.25, 0.5, 0.25)
# An arc is as many fields as it has sectors of this width.
SECTOR_DEG = 10.0
# Spans of partial arcs: around the front, or around the side of targets that are off the midline.
_SPAN_DEG = (180.0, 320.0)
_OFF_MIDLINE_MM = 15.0
# A lower level is left unplanned, or raised or lowered, in this share of the settings each.
_WITHOUT_LEVEL, _OTHER_LEVEL, _LEVEL_FACTORS = 0.2, 0.3, (0.92, 1.05)
# A lower level stays below this share of the highest.
_HIGHEST_LOWER = 0.97
# How an organ is wished for: by the sheet's goals, by goals relative to the dose without wishes, by none.
_BY_SHEET, _BY_DOSE = 0.35, 0.45
_SHEET_FACTORS, _MEAN_FACTORS, _HOT_FACTORS = (0.6, 1.5), (0.35, 1.1), (0.5, 1.1)
_WITH_MEAN, _WITH_HOT = 0.75, 0.5
# Weights relative to the optimiser's own, and D95 of the highest level relative to the sheet's: in clinical
# doses of OpenKBP it is 96 to 102 % of the prescription (10th to 90th percentile of 50 patients).
_GOALS = (0.3, 3.0)
_SPARING, _COVERAGE, _HOT, _TISSUE = (0.02, 1.0), (0.1, 1.0), (3.0, 30.0), (0.3, 3.0)
_ROUGHNESS = (0.3, 3.0)
_NORMALIZED = (0.96, 1.02)
MEAN, HOT = Metric.parse("mean"), Metric.parse("D0.1cc")
OWN = (MEAN, HOT)
_OWN_SOURCE = "drawn for this dose"
# An organ with less has no goal of its own: it lies outside the fields.
_LEAST_GY = 1.0


@dataclass(frozen=True)
class Beams:
    """The beams of a dose: what they are, and the gantry angle of each field or arc sector, degrees."""

    kind: BeamKind
    gantry_deg: tuple[float, ...]


@dataclass(frozen=True)
class Setting:
    """What some doses of a patient share.

    `goals` names a shipped sheet, `levels_gy` are the prescribed targets. `seed` places the points at which
    the search computes dose.
    """

    goals: str
    levels_gy: Mapping[str, float]
    beams: Beams
    seed: int
    conditions: tuple[str, ...] = ()


@dataclass(frozen=True)
class OrganWish:
    """What is asked for an organ.

    `sheet` multiplies the limits of the sheet's goals; None leaves them out, but for musts. `mean` and `hot`
    are goals on mean dose and D0.1cc, as shares of what the dose without wishes gives. `sparing` weighs the
    mean dose.
    """

    sheet: float | None
    mean: float | None
    hot: float | None
    sparing: float


@dataclass(frozen=True)
class Wish:
    """What one dose is asked to be: by organ, weights of goals, coverage, hot dose, tissue and roughness.

    `normalized` is the value of the sheet's normalisation relative to the sheet's own.
    """

    organs: Mapping[str, OrganWish]
    goals: float
    coverage: float
    hot: float
    tissue: float
    roughness: float
    normalized: float


def draw_setting(
    rng: np.random.Generator, sheets: Sequence[GoalSheet], case: Case, kind: BeamKind | None = None
) -> Setting:
    """Sheet, prescription and beams for a case, of the sheets that fit it; beams of one `kind` or any."""
    sheet = sheets[int(rng.integers(len(sheets)))]
    levels = dict(sheet.prescription.target_gy)
    top = max(levels.values())
    for name in [n for n, gy in levels.items() if gy < top]:
        draw, factor = rng.random(), rng.uniform(*_LEVEL_FACTORS)
        if draw < _WITHOUT_LEVEL:
            del levels[name]
        elif draw < _WITHOUT_LEVEL + _OTHER_LEVEL:
            levels[name] = round(min(levels[name] * factor, _HIGHEST_LOWER * top), 1)
    return Setting(
        sheet.name, levels, draw_beams(rng, case, kind), int(rng.integers(2**31)), sheet.conditions_on
    )


def draw_beams(rng: np.random.Generator, case: Case, kind: BeamKind | None = None) -> Beams:
    """Nine fields 40 degrees apart, a full arc, or an arc around the front or the targets' side."""
    drawn = _KINDS[int(rng.choice(3, p=_KIND_SHARES.get(case.site, _OTHER_SHARES)))]
    kind = kind or drawn
    span, turn = rng.uniform(*_SPAN_DEG), rng.uniform(-30.0, 30.0)
    if kind == "nine fields":
        return Beams(kind, tuple(float(a) for a in range(0, 360, 40)))
    if kind == "full arc":
        return Beams(kind, tuple(float(a) for a in np.arange(0.0, 360.0, SECTOR_DEG)))
    off_mm = left_of_middle_mm(case)
    middle = 0.0 if abs(off_mm) < _OFF_MIDLINE_MM else math.copysign(90.0, off_mm)
    sectors = round(span / SECTOR_DEG)
    first = round(middle + turn - SECTOR_DEG * (sectors - 1) / 2)
    return Beams(kind, tuple((first + SECTOR_DEG * k) % 360.0 for k in range(sectors)))


def draw_wish(rng: np.random.Generator, organs: Sequence[str]) -> Wish:
    """What a dose is asked to be for so many organs."""

    def within(low_high: tuple[float, float]) -> float:
        low, high = np.log(low_high)
        return float(f"{np.exp(rng.uniform(low, high)):.3g}")

    asked = {}
    for organ in organs:
        kind, mean, hot = rng.random(), rng.random() < _WITH_MEAN, rng.random() < _WITH_HOT
        factor, of_mean, of_hot = within(_SHEET_FACTORS), within(_MEAN_FACTORS), within(_HOT_FACTORS)
        by_dose = _BY_SHEET <= kind < _BY_SHEET + _BY_DOSE
        asked[organ] = OrganWish(
            sheet=factor if kind < _BY_SHEET else None,
            mean=of_mean if by_dose and mean else None,
            hot=of_hot if by_dose and hot else None,
            sparing=within(_SPARING),
        )
    return Wish(
        asked,
        goals=within(_GOALS),
        coverage=within(_COVERAGE),
        hot=within(_HOT),
        tissue=within(_TISSUE),
        roughness=within(_ROUGHNESS),
        normalized=round(float(rng.uniform(*_NORMALIZED)), 4),
    )


def apply_setting(setting: Setting, case: Case) -> tuple[Case, GoalSheet]:
    """The case with prescription and helper structures of a setting, and all goals that a wish may ask for.

    Beside the sheet's own goals on structures of the case these are the mean dose and D0.1cc of every organ.
    Goals of targets in Gy follow their level; those of targets that are not planned are left out, as are
    groups. Raises GoalError where the sheet does not fit.
    """
    sheet = load_goals(setting.goals)
    case = relabel_target(case, sheet)
    sheet = fit_to_case(sheet, case, setting.conditions)
    organs = organs_of(case)
    case = add_structures(sheet, case)
    levels, prescribed = setting.levels_gy, sheet.prescription.target_gy
    norms = tuple(n for n in sheet.normalizations if n.structure in levels)
    if not norms:
        raise GoalError(
            f"goal sheet {sheet.name} normalises none of {', '.join(levels)}; prescribe another level"
        )
    goals = []
    for goal in sheet.goals:
        structure = case.structures.get(goal.structure)
        if structure is None or not structure.voxels or structure.role == "body":
            continue
        if structure.role == "target" and goal.structure not in levels:
            continue
        factor = levels[goal.structure] / prescribed[goal.structure] if goal.structure in levels else 1.0
        goals.append(replace(_at_level(goal, factor), group=None))
    goals += [
        replace(own_goal(organ, metric), limit=max(levels.values())) for organ in organs for metric in OWN
    ]
    prescription = replace(sheet.prescription, target_gy=dict(levels))
    norm = replace(norms[0], gy=norms[0].gy * levels[norms[0].structure] / prescribed[norms[0].structure])
    sheet = replace(
        sheet, prescription=prescription, normalizations=(norm,), goals=tuple(goals), groups={}, structures={}
    )
    return replace(case, prescription=prescription), sheet


def own_goal(organ: str, metric: Metric) -> Goal:
    """A goal on an organ that no sheet has; its limit is still to be set."""
    return Goal(organ, metric, "<=", 0.0, "Gy", priority=2, source=_OWN_SOURCE)


def organs_of(case: Case) -> tuple[str, ...]:
    """The organs that have voxels."""
    return tuple(s.name for s in case.structures.values() if s.role == "organ" and s.voxels)


def wished_organs(sheet: GoalSheet, case: Case) -> tuple[str, ...]:
    """The organs that a wish is drawn for: those with goals, made of others or not; no rest of the body."""
    named = dict.fromkeys(goal.structure for goal in sheet.goals)
    return tuple(name for name in named if name in case.structures and case.structures[name].role == "organ")


def apply_wish(
    wish: Wish, sheet: GoalSheet, without_gy: Mapping[tuple[str, str], float]
) -> tuple[GoalSheet, tuple[tuple[Goal, Goal], ...]]:
    """The sheet of a wish, and each of its organ goals with the goal of the setting's `sheet` it comes from.

    `without_gy` has the dose without wishes by organ and metric. The goals of targets and of the rest of the
    body stay.
    """
    kept: list[Goal] = []
    pairs: list[tuple[Goal, Goal]] = []
    for goal in sheet.goals:
        asked = wish.organs.get(goal.structure)
        if asked is None:
            kept.append(goal)
            pairs.append((goal, goal))
            continue
        now = None
        if goal.source == _OWN_SOURCE:
            share, gy = (
                (asked.mean if goal.metric == MEAN else asked.hot),
                without_gy.get((goal.structure, str(goal.metric)), 0.0),
            )
            if share is not None and gy > _LEAST_GY:
                now = replace(goal, limit=round(share * gy, 2))
        elif asked.sheet is not None or goal.priority == 1:
            now = scaled_goal(goal, asked.sheet or 1.0)
        if now is not None:
            kept.append(now)
            pairs.append((goal, now))
    norm = replace(sheet.normalization, gy=round(sheet.normalization.gy * wish.normalized, 2))
    return replace(sheet, goals=tuple(kept), normalizations=(norm,)), tuple(pairs)


def _at_level(goal: Goal, factor: float) -> Goal:
    """A target's goal at another level: its limit in Gy, or the dose of a volume, is multiplied."""
    if factor == 1.0:
        return goal

    def times(value: float | None) -> float | None:
        return None if value is None else float(f"{value * factor:.4g}")

    if goal.unit == "Gy":
        limit = times(goal.limit)
        assert limit is not None
        return replace(goal, limit=limit, variation=times(goal.variation))
    if goal.metric.kind in ("V", "CV") and goal.metric.value_unit == "Gy":
        return replace(goal, metric=replace(goal.metric, value=times(goal.metric.value)))
    return goal
