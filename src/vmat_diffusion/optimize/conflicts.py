"""Goals that cannot be met together: proven from the contours, or observed where a search came to rest.

A goal that limits an organ is out of reach where the coverage that the targets ask for puts more dose into
the voxels they share, a goal on a target where another on it or the normalisation forbids it, a volume to be
spared where the organ is smaller. These bounds are exact and need no plan. What scatter and falloff add to
them is not known before planning: goals that a search leaves open are named with those whose gradients oppose
theirs.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case
from vmat_diffusion.evaluate.delivery_goals import DeliveryGoal
from vmat_diffusion.evaluate.delivery_results import DeliveryResult
from vmat_diffusion.evaluate.dvh import Dvh
from vmat_diffusion.evaluate.fractionation import eqd2_gy
from vmat_diffusion.evaluate.goals import Goal, GoalSheet
from vmat_diffusion.evaluate.metrics import Bound, Metric, histogram_value

# Voxels of a structure and their volume where no case says them: 100 cc.
_ASSUMED = (2000, 0.05)
# Without a case so small a volume in cc is taken as none.
_NEAR_MAXIMUM_CC = 0.2
# What a voxel may have that no limit binds: more than any goal asks for.
_ANY_GY = 1e6
# Gradients whose cosine is above this do not oppose each other.
_OPPOSED = -0.2


@dataclass(frozen=True)
class Conflict:
    """A goal that is not met, with the goals or parts of the objective that oppose it.

    `proven` where no plan at all can meet both; `least` is then the goal's best value beside them, in its
    unit: the least of an upper limit, the most of a lower one.
    """

    goal: Goal | DeliveryGoal
    against: tuple[str, ...]
    proven: bool = False
    least: float | None = None

    def __str__(self) -> str:
        against = " and ".join(self.against) or "the limits of machine and search"
        if not self.proven:
            return f"{self.goal} is held off by {against}"
        edge = "least" if self.goal.comparator == "<=" else "most"
        return f"{self.goal} cannot be met beside {against}: {self.least:.1f} {self.goal.unit} at the {edge}"


@dataclass(frozen=True)
class _Pin:
    """A goal, or the normalisation, that pins a point of a structure's histogram; `goal` is in physical Gy.

    `priority` is 0 for the normalisation, which holds exactly.
    """

    structure: str
    bound: Bound
    more: bool
    priority: int
    words: str


def proven_conflicts(case: Case, sheet: GoalSheet) -> tuple[Conflict, ...]:
    """Goals that others of the sheet, its normalisation or a structure's volume put out of reach.

    The sheet must be fitted to the case. A goal is weighed against each other goal of the same or a higher
    priority on a point of a histogram (D, V, CV, max, min), through the voxels that both structures have. Of
    a group that can be met without them, members are no conflict. D2cm, conformity and homogeneity are not
    looked at.
    """
    return _conflicts(sheet, _Overlaps(case))


def contradictions(sheet: GoalSheet) -> tuple[Conflict, ...]:
    """Goals that others on the same structure put out of reach in every patient: no case is needed."""
    return _conflicts(sheet, None)


def _conflicts(sheet: GoalSheet, overlaps: _Overlaps | None) -> tuple[Conflict, ...]:
    pins = _pins(sheet)
    found: list[tuple[Goal, Conflict]] = []
    for goal, physical in zip(sheet.goals, sheet.in_gy().goals, strict=True):
        if not math.isfinite(goal.limit):
            continue  # by the target's volume, which no case says
        worst: tuple[float, str] | None = None
        for value, words in _best_values(physical, pins, sheet, overlaps):
            beyond = worst is None or (value < worst[0] if physical.comparator == ">=" else value > worst[0])
            if physical.status(value) == "fail" and beyond:
                worst = value, words
        if worst is not None:
            best = as_stated(goal, physical, worst[0], sheet)
            found.append((goal, Conflict(goal, (worst[1],), proven=True, least=best)))
    spared = _needless(sheet, {str(goal) for goal, _ in found}, overlaps)
    return tuple(conflict for goal, conflict in found if str(goal) not in spared)


def _pins(sheet: GoalSheet) -> tuple[_Pin, ...]:
    """The points of histograms that the sheet's goals and its normalisation pin."""
    target_gy = sheet.prescription.target_gy
    pins = []
    for goal, physical in zip(sheet.goals, sheet.in_gy().goals, strict=True):
        group = sheet.groups.get(goal.group or "")
        if group is not None and not group.every:
            continue  # others of its group may be met in its stead
        if (bound := physical.bound(target_gy)) is not None:
            pins.append(_Pin(goal.structure, bound, physical.demands_dose, goal.priority, str(goal)))
    level = sheet.normalization
    if (bound := level.metric.bound(level.gy)) is not None:
        words = f"the normalisation {level}"
        pins += [_Pin(level.structure, bound, more, 0, words) for more in (True, False)]
    return tuple(pins)


def _best_values(
    goal: Goal, pins: Sequence[_Pin], sheet: GoalSheet, overlaps: _Overlaps | None
) -> Iterator[tuple[float, str]]:
    """The best value of a goal in physical Gy beside each pin, and beside its structure's volume."""
    name = goal.structure
    voxels, voxel_cc = _ASSUMED if overlaps is None else (overlaps.voxels(name), overlaps.voxel_cc)
    if not voxels:
        return
    if overlaps is not None and goal.metric.result_unit == "cc" and goal.comparator == ">=":
        cc = voxels * voxel_cc
        if goal.status(cc) == "fail":
            yield cc, f"the volume of {name}, {cc:.0f} cc"
            return
    for pin in pins:
        # A goal that asks for dose yields to limits of a higher priority alone: of equals the limit is named.
        outranks = pin.priority < goal.priority if goal.demands_dose else pin.priority <= goal.priority
        if pin.more is goal.demands_dose or not outranks:
            continue
        shared, size = voxels, voxels
        if overlaps is not None:
            shared, size = overlaps.shared(name, pin.structure), overlaps.voxels(pin.structure)
        elif pin.structure != name or not (_volume_known(pin.bound) and _metric_known(goal.metric)):
            continue
        if not shared:
            continue
        beyond = pin.bound.voxels(size, voxel_cc)
        # Voxels that need not have the level: cold ones of a coverage goal, hot ones of a limit.
        free = int(np.ceil(size - beyond - 1e-6)) if pin.more else int(np.floor(beyond + 1e-6))
        pinned = shared - free
        if pinned <= 0:
            continue
        gy = np.full(voxels, 0.0 if pin.more else _ANY_GY)
        gy[:pinned] = pin.bound.level_gy
        value = _value(goal, Dvh.of(gy, voxel_cc), sheet)
        if value is not None:
            yield value, pin.words


def _value(goal: Goal, dvh: Dvh, sheet: GoalSheet) -> float | None:
    """A goal's metric on a histogram; of R the share of the target's own volume at the level."""
    level_gy = goal.metric.level_gy(sheet.prescription.target_gy.get(goal.structure))
    if goal.metric.kind == "R":
        return None if level_gy is None else float(dvh.volume_at_dose_percent(level_gy)) / 100
    return histogram_value(goal.metric, dvh, level_gy)


def _volume_known(bound: Bound) -> bool:
    """Whether a volume means something without a case: a share, or so little that it is about nothing."""
    return bound.unit == "%" or (bound.volume <= _NEAR_MAXIMUM_CC and not bound.spared)


def _metric_known(metric: Metric) -> bool:
    """Whether a metric's value means something without a case."""
    if metric.kind == "Dcc":
        return metric.is_near_maximum
    return metric.result_unit != "cc" and metric.value_unit != "cc"


def as_stated(goal: Goal, physical: Goal, value: float, sheet: GoalSheet) -> float:
    """A value of the goal in physical Gy in the unit of the goal as the sheet states it."""
    if goal.metric.is_dose_in_percent and physical.limit:
        return value * goal.limit / physical.limit
    if goal.eqd2 is not None and goal.metric.kind not in ("V", "CV"):
        return float(eqd2_gy(value, goal.eqd2, sheet.prescription.fractions))
    return value


def _needless(sheet: GoalSheet, hopeless: Collection[str], overlaps: _Overlaps | None) -> set[str]:
    """The goals out of reach whose group can be met without them."""
    out: set[str] = set()
    for name, group in sheet.groups.items():
        members = [g for g in sheet.members(name) if overlaps is None or overlaps.voxels(g.structure)]
        lost = [str(g) for g in members if str(g) in hopeless]
        if not group.every and len(members) - len(lost) >= group.at_least:
            out.update(lost)
    return out


class _Overlaps:
    """How many voxels the structures of a case have, alone and in common; each is counted once."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._counted: dict[frozenset[str], int] = {}
        self.voxel_cc = case.grid.voxel_cc

    def voxels(self, name: str) -> int:
        """The voxels of a structure; 0 for one that the case does not have."""
        return self.shared(name, name)

    def shared(self, name: str, other: str) -> int:
        """The voxels that two structures have in common."""
        key = frozenset((name, other))
        if key not in self._counted:
            parts = [self._case.structures.get(part) for part in key]
            masks = [part.mask for part in parts if part is not None]
            both = masks[0] & masks[-1] if len(masks) == len(parts) else np.zeros(1, bool)
            self._counted[key] = int(np.count_nonzero(both))
        return self._counted[key]


def observed_conflicts(
    missed: Sequence[Goal | DeliveryGoal], gradients: Mapping[str, NDArray[np.float64]]
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


def delivery_conflicts(
    results: Sequence[DeliveryResult], observed: Sequence[Conflict]
) -> tuple[Conflict, ...]:
    """The delivery goals that fail, those that MU decide with what was `observed` to oppose their limit."""
    against = next((c.against for c in observed if isinstance(c.goal, DeliveryGoal)), ())
    return tuple(
        Conflict(r.goal, against if r.goal.quantity in ("MU", "beam-on time") else ())
        for r in results
        if r.status == "fail"
    )


def merge_conflicts(proven: Sequence[Conflict], observed: Sequence[Conflict]) -> tuple[Conflict, ...]:
    """One conflict for each goal, the proven before the observed."""
    by_goal = {str(conflict.goal): conflict for conflict in (*observed, *proven)}
    return tuple(by_goal[name] for name in sorted(by_goal))
