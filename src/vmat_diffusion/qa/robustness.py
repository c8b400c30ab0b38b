"""How far a plan's dose moves when the linac is a little wrong: leaves, gantry, collimator, isocentre, MU.

`robustness_of` computes the scenarios with the fast engine at points of targets and serial organs, and judges
each against its limits; `qa/robustness_result.py` says what comes out. Method and sources: `docs/gate.md`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose, Structure
from vmat_diffusion.dose.delivery import exposures, require_isocenter_near_body
from vmat_diffusion.dose.pencil_beam.several_plans import doses_of_plans
from vmat_diffusion.dose.tissue import density_of, dose_grid
from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.dvh import Dvh, structure_dose_gy
from vmat_diffusion.evaluate.goal_types import Goal, GoalSheet
from vmat_diffusion.evaluate.goals import why_absent
from vmat_diffusion.evaluate.metrics import histogram_value
from vmat_diffusion.machine import Limits, Machine
from vmat_diffusion.plan import Plan
from vmat_diffusion.progress import Progress
from vmat_diffusion.qa.plan_errors import (
    with_collimator,
    with_gantry,
    with_gap,
    with_isocenter,
    with_leaf_lag,
    with_leaf_shift,
    with_mu,
)
from vmat_diffusion.qa.robustness_result import (
    MEAN,
    NEAR_MINIMUM,
    Change,
    GoalChange,
    Robustness,
    ScenarioResult,
    not_computed,
)
from vmat_diffusion.qa.verdict import Verdict

_OWN = "our estimate"
_TG142 = "tolerance of Klein et al., AAPM TG-142, Med Phys 36:4197 (2009)"
# Sources of the limits; what is an estimate says so. docs/gate.md argues them.
_GAP_HALF = f"{_OWN}: banks were found 0.15 to 0.36 mm off (Radiat Oncol 2015, s13014-015-0381-0)"
_GAP_ONE = (
    f"{_OWN}: 0.5 mm for each leaf is the tolerance of AAPM MPPG 8.b (as quoted, its text was not seen)"
)
_SHIFT = f"{_OWN}: the size is the tolerance for a leaf of AAPM MPPG 8.b (as quoted, its text was not seen)"
_LAG = f"{_OWN}: 20 ms is the sampling interval of a TrueBeam's log"
_ANGLE = f"{_OWN}: half of the 1 degree of the {_TG142}"
_ISOCENTER = f"{_OWN}: half of the 2 mm for couch positions of the {_TG142}; margins are made for it"
_MU = f"linear, reported only: half of the 2 % monthly {_TG142}"

# Serial organs that are reported though no goal sheet asks for them.
_SERIAL = ("SpinalCord", "Brainstem", "OpticChiasm", "OpticNerve_L", "OpticNerve_R")
# A goal on a larger hot volume is one on a dose distribution, no longer on a spot.
_SPOT_CC = 2.0
_NEAR_MAXIMUM_CC = 0.03
# Points of a target, drawn at random, and of the hottest region of an organ.
_TARGET_POINTS, _ORGAN_POINTS, _ORGAN_CC = 2500, 1200, 1.0
# Of changes by 0.5 mm of gap in the dose of targets these leave less than 1 % undetermined.
_STEP_MM, _RAY_GRID_MM = 2.5, 3.0
# A pair with a smaller gap counts as closed in the mean gap.
_OPEN_MM = 1.0


@dataclass(frozen=True, eq=False)
class Scenario:
    """One error of the linac: its size in `unit`, the plan that is delivered then, and limits.

    Scenarios of one `row` share the limits: the largest change of a target's D95% or mean dose, in percent of
    the planned one, is `accepted_percent` at most in a plan that needs no thought, and a person must look
    above `limit_percent`. Without limits the change is only reported.
    """

    row: str
    name: str
    size: float
    unit: str
    delivered: Callable[[Plan], Plan]
    accepted_percent: float | None
    limit_percent: float | None
    source: str


def scenarios(limits: Limits) -> tuple[Scenario, ...]:
    """All scenarios for a machine with these limits, which decide how fast leaves move."""
    out = []
    for row, size, accepted, limit, source in (
        ("gap 0.5 mm", 0.5, 1.5, 2.5, _GAP_HALF),
        ("gap 1 mm", 1.0, 3.0, 5.0, _GAP_ONE),
    ):
        for by, word in ((size, "wider"), (-size, "narrower")):
            change = partial(with_gap, by_mm=by)
            out.append(Scenario(row, f"gaps {size:g} mm {word}", by, "mm", change, accepted, limit, source))
    for by, side in ((0.5, "X2"), (-0.5, "X1")):
        name, change = f"leaves 0.5 mm towards {side}", partial(with_leaf_shift, by_mm=by)
        out.append(Scenario("leaf banks 0.5 mm", name, by, "mm", change, 1.0, 2.0, _SHIFT))
    lag = partial(with_leaf_lag, by_s=0.02, limits=limits)
    out.append(Scenario("leaf lag 20 ms", "leaves 20 ms late", 20.0, "ms", lag, 0.5, 1.0, _LAG))
    for what, turned in (("gantry", with_gantry), ("collimator", with_collimator)):
        for by in (0.5, -0.5):
            change = partial(turned, by_deg=by)
            name = f"{what} {by:+g} deg"
            out.append(Scenario(f"{what} 0.5 deg", name, by, "deg", change, 0.75, 1.5, _ANGLE))
    for axis, letter in enumerate("xyz"):
        for by in (1.0, -1.0):
            away = [0.0, 0.0, 0.0]
            away[axis] = by
            change = partial(with_isocenter, by_mm=(away[0], away[1], away[2]))
            name = f"isocentre {by:+g} mm in {letter}"
            out.append(Scenario("isocentre 1 mm", name, by, "mm", change, 2.0, 4.0, _ISOCENTER))
    for by in (1.0, -1.0):
        change = partial(with_mu, by_percent=by)
        out.append(Scenario("MU 1 %", f"MU {by:+g} %", by, "%", change, None, None, _MU))
    return tuple(out)


@dataclass(frozen=True, eq=False)
class _Points:
    """Where a structure's dose is computed: a sample of a target, the hottest voxels of an organ."""

    structure: Structure
    points_mm: NDArray[np.float64]
    voxel_cc: float


def robustness_of(
    case: Case,
    sheet: GoalSheet | None,
    plan: Plan,
    machine: Machine,
    dose: Dose,
    *,
    progress: Progress | None = None,
) -> Robustness:
    """Every scenario computed for a plan with the planned dose `dose`.

    `sheet` must be fitted to the case; without one no goal of an organ is judged. Never raises for a fault of
    the plan: what could not be computed says why. Cost: some 6 s of processor time for two full arcs.
    """
    began = time.perf_counter()
    try:
        require_isocenter_near_body(plan, case)
        goals = _goals(case, sheet, dose)
        places = _places(case, goals, dose)
        if not any(place.structure.role == "target" for place in places):
            return not_computed("the case has no target with a voxel in it")
        asked = scenarios(machine.limits)
        gy = doses_of_plans(
            machine,
            [plan, *(scenario.delivered(plan) for scenario in asked)],
            density_of(case, dose_grid(case, _RAY_GRID_MM)),
            np.concatenate([place.points_mm for place in places]),
            step_mm=_STEP_MM,
            progress=progress,
        )
        gap_mm = mean_effective_gap_mm(plan, machine)
    except (InputError, ValueError, IndexError) as fault:
        return not_computed(str(fault))
    ends = np.cumsum([len(place.points_mm) for place in places])[:-1]
    usual, *others = (
        [Dvh.of(part, place.voxel_cc) for part, place in zip(np.split(row, ends), places, strict=True)]
        for row in gy
    )
    rows = [
        _result(scenario, places, usual, changed, goals)
        for scenario, changed in zip(asked, others, strict=True)
    ]
    return Robustness(tuple(rows), gap_mm, time.perf_counter() - began)


def with_robustness(verdict: Verdict, found: Robustness, *, stops: bool) -> Verdict:
    """The verdict with a row for each kind of error, which stops a plan above its limit or warns."""
    return replace(verdict, checks=(*verdict.checks, *found.checks(stops=stops)), robustness=found)


def _result(
    scenario: Scenario,
    places: list[_Points],
    usual: list[Dvh],
    changed: list[Dvh],
    goals: list[tuple[Goal, float]],
) -> ScenarioResult:
    changes: list[Change] = []
    moved: list[GoalChange] = []
    for place, before, after in zip(places, usual, changed, strict=True):
        name = place.structure.name
        if place.structure.role == "target":
            for metric, value in ((NEAR_MINIMUM, _d95), (MEAN, _mean)):
                changes.append(Change(name, metric, value(before), value(after)))
            continue
        near_maximum = f"D{_NEAR_MAXIMUM_CC:g}cc"
        changes.append(
            Change(
                name,
                near_maximum,
                before.dose_at_cc_gy(_NEAR_MAXIMUM_CC),
                after.dose_at_cc_gy(_NEAR_MAXIMUM_CC),
            )
        )
        for goal, planned in goals:
            if goal.structure == name:
                by = _value(goal, after) - _value(goal, before)
                moved.append(GoalChange(str(goal), goal.status(planned), goal.status(planned + by)))
    return ScenarioResult(
        row=scenario.row,
        name=scenario.name,
        size=scenario.size,
        unit=scenario.unit,
        accepted_percent=scenario.accepted_percent,
        limit_percent=scenario.limit_percent,
        source=scenario.source,
        changes=tuple(changes),
        goals=tuple(moved),
    )


def _d95(dvh: Dvh) -> float:
    return dvh.dose_at_percent_gy(95.0)


def _mean(dvh: Dvh) -> float:
    return dvh.mean_gy


def _value(goal: Goal, dvh: Dvh) -> float:
    value = histogram_value(goal.metric, dvh)
    assert value is not None  # of a maximum or a dose to a volume every histogram has one
    return value


def _goals(case: Case, sheet: GoalSheet | None, dose: Dose) -> list[tuple[Goal, float]]:
    """The musts on hot spots of organs, their doses physical and in Gy, with the planned value of each.

    A member of a group counts only where every member must be met.
    """
    out = []
    for goal in sheet.goals if sheet else ():
        assert sheet is not None
        metric, group = goal.metric, sheet.groups.get(goal.group or "")
        spot = metric.kind == "max" or (metric.kind == "Dcc" and (metric.value or 0.0) <= _SPOT_CC)
        if goal.priority != 1 or goal.comparator != "<=" or not spot or (group and not group.every):
            continue
        if why_absent(goal.structure, sheet, case) or case.structures[goal.structure].role != "organ":
            continue
        physical = goal.in_gy(sheet.prescription)
        structure = case.structures[goal.structure]
        planned = Dvh.of(structure_dose_gy(dose, structure, case.grid), case.grid.voxel_cc)
        out.append((physical, _value(physical, planned)))
    return out


def _places(case: Case, goals: list[tuple[Goal, float]], dose: Dose) -> list[_Points]:
    """Points of the prescribed targets, then of the organs of the goals and of the known serial organs."""
    prescribed = case.prescription.target_gy if case.prescription else {}
    targets = [s for s in case.targets if s.name in prescribed and s.mask.any()]
    targets = targets or [s for s in case.targets if s.mask.any()]
    deepest: dict[str, float] = {}
    for goal, _ in goals:
        wanted = max(_ORGAN_CC, 2.0 * (goal.metric.value or 0.0))
        deepest[goal.structure] = max(deepest.get(goal.structure, 0.0), wanted)
    for name in _SERIAL:
        if name in case.structures and case.structures[name].mask.any():
            deepest.setdefault(name, _ORGAN_CC)
    organs = [(case.structures[name], cc) for name, cc in deepest.items()]
    draw = np.random.default_rng(0)
    out = []
    for structure in targets:
        voxels = np.flatnonzero(structure.mask)
        if len(voxels) > _TARGET_POINTS:
            voxels = np.sort(draw.choice(voxels, _TARGET_POINTS, replace=False))
        out.append(_Points(structure, case.grid.points_mm(voxels), case.grid.voxel_cc))
    for structure, cc in organs:
        voxels, gy = np.flatnonzero(structure.mask), structure_dose_gy(dose, structure, case.grid)
        count = max(_ORGAN_POINTS, round(cc / case.grid.voxel_cc))
        hottest = np.argsort(-gy, kind="stable")[:count]
        out.append(_Points(structure, case.grid.points_mm(voxels[hottest]), case.grid.voxel_cc))
    return out


def mean_effective_gap_mm(plan: Plan, machine: Machine) -> float | None:
    """Area of the openings, as the dose sees them, over what they gain for each mm that all gaps widen.

    The dose of a target changes by about 1 / (this) for each mm of gap. Openings are weighted by MU; an edge
    behind a jaw gains nothing, and closed pairs do not count. None where no leaf bounds an opening.
    """
    exposed, edges = exposures(plan, machine), machine.row_edges_mm()
    area, gain = 0.0, 0.0
    for at in (0, 1):
        leaves, jaws = exposed.leaves_mm[:, at], exposed.jaws_mm[:, at]
        x1, x2, y1, y2 = (jaws[:, k, None] for k in range(4))
        height = np.clip(np.minimum(edges[1:], y2) - np.maximum(edges[:-1], y1), 0.0, None)
        offset = machine.mlc.gap_offset_of(leaves) / 2.0
        left, right = leaves[:, 0] - offset[:, 0], leaves[:, 1] + offset[:, 1]
        width = np.minimum(right, x2) - np.maximum(left, x1)
        lit = exposed.mu[:, None] * height * ((leaves[:, 1] - leaves[:, 0] > _OPEN_MM) & (width > 0))
        area += float((lit * width).sum())
        gain += float((lit * ((left > x1) * 0.5 + (right < x2) * 0.5)).sum())
    return area / gain if gain > 0 else None
