"""What a goal sheet says: goals, groups of goals, the normalisation, the sheet as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from vmat_diffusion.case import Prescription
from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.delivery_goals import DeliveryGoal
from vmat_diffusion.evaluate.fractionation import physical_gy
from vmat_diffusion.evaluate.goal_words import (
    Comparator,
    Seen,
    Status,
    meets,
    require_consistent,
    source_text,
    sources_text,
)
from vmat_diffusion.evaluate.metrics import Bound, Metric


@dataclass(frozen=True)
class Goal:
    """One line of a goal sheet: `D95% >= 66.5 Gy` on a structure.

    `limit` and `variation`, the worst acceptable value, are in `unit`; `priority` 1 = must,
    2 = should, 3 = wish. The structure of an `optional` goal need not be in the case; any other must that
    cannot be evaluated is not met. A member of a `group` is judged with the others of its group and has the
    group's priority. A goal with a `condition` counts only where that is on ("not ..." where it is off).

    `source` says where the number comes from and `seen` how that was looked at; `variation_source` and
    `variation_seen` are those of the variation, "" for the same. `applies_to` is what the source speaks of
    where the structure alone does not say it. `table` names the table that gives limit and variation by the
    target's volume: they are NaN and None until `fit_to_case` looks them up. With an `eqd2` the doses of the
    goal are those in fractions of 2 Gy for that alpha/beta in Gy.
    """

    structure: str
    metric: Metric
    comparator: Comparator
    limit: float
    unit: str
    variation: float | None = None
    priority: int = 2
    source: str = ""
    optional: bool = False
    group: str | None = None
    condition: str | None = None
    applies_to: str = ""
    seen: Seen = ""
    variation_source: str = ""
    variation_seen: Seen = ""
    table: str | None = None
    eqd2: float | None = None

    def __post_init__(self) -> None:
        if self.unit != self.metric.result_unit:
            raise GoalError(
                f"{self.structure} {self.metric}: unit {self.unit!r} does not fit; "
                f"write {self.metric.result_unit!r}"
            )
        require_consistent(self, self.priority, self.limit, self.variation, self.comparator)
        if self.eqd2 is not None and not self.metric.takes_eqd2:
            raise GoalError(f"{self}: eqd2 is for goals on a dose in Gy; leave it out")

    @property
    def demands_dose(self) -> bool:
        """Whether more dose helps the goal; of homogeneity, which no single dose decides, False."""
        return (self.comparator == ">=") != (self.metric.kind == "CV")

    def hundred_percent_gy(self, target_gy: Mapping[str, float]) -> float | None:
        """The dose that 100 % means for this goal; `target_gy` are the prescribed doses by target.

        The structure's own prescription; for a dose in percent on a structure without one the highest.
        """
        own = target_gy.get(self.structure)
        if own is None and self.metric.is_dose_in_percent and target_gy:
            return max(target_gy.values())
        return own

    def bound(self, target_gy: Mapping[str, float]) -> Bound | None:
        """The dose level and volume that the goal bounds; `target_gy` are the prescribed doses by target."""
        return self.metric.bound(self.limit, self.hundred_percent_gy(target_gy))

    def in_gy(self, prescription: Prescription) -> Goal:
        """The goal as a search wants it: doses in percent and in EQD2 as physical Gy of the whole course.

        Exact for the dose to a volume, maximum, minimum and the volume at a dose. For a mean or a gEUD the
        limit in EQD2 becomes the physical dose that has it where the dose is uniform.
        """
        goal = self
        if self.metric.is_dose_in_percent:
            whole = self.hundred_percent_gy(prescription.target_gy)
            if whole is None:
                return self
            limits = [None if v is None else v * whole / 100 for v in (self.limit, self.variation)]
            assert limits[0] is not None
            goal = replace(
                self,
                metric=replace(self.metric, result_unit="Gy"),
                unit="Gy",
                limit=limits[0],
                variation=limits[1],
            )
        if goal.eqd2 is None:
            return goal

        def physical(gy: float) -> float:
            assert goal.eqd2 is not None
            return physical_gy(gy, goal.eqd2, prescription.fractions)

        if goal.metric.kind in ("V", "CV"):
            assert goal.metric.value is not None
            return replace(goal, metric=replace(goal.metric, value=physical(goal.metric.value)), eqd2=None)
        variation = None if goal.variation is None else physical(goal.variation)
        return replace(goal, limit=physical(goal.limit), variation=variation, eqd2=None)

    def status(self, value: float) -> Status:
        """Whether a result meets the limit, only the variation, or neither."""
        if self._meets(value, self.limit):
            return "pass"
        if self.variation is not None and self._meets(value, self.variation):
            return "acceptable"
        return "fail"

    def _meets(self, value: float, limit: float) -> bool:
        return meets(value, limit, at_least=self.comparator == ">=")

    @property
    def source_text(self) -> str:
        """The sources of limit and variation, what they speak of, and how they were seen if not in print."""
        parts = sources_text(self.source, self.seen, self.variation_source, self.variation_seen)
        if self.applies_to:
            parts.append(f"applies to: {self.applies_to}")
        return "; ".join(parts)

    @property
    def statement(self) -> str:
        """The goal without its structure, as it is written in a sheet."""
        text = f"{self.metric.plain_text} {self.comparator}"
        if not math.isfinite(self.limit):
            return f"{text} {self.table}"
        text = f"{text} {self.limit:g} {self.unit}".rstrip()
        if self.eqd2 is not None:
            text += f" EQD2 (alpha/beta {self.eqd2:g} Gy)"
        return f"{text} ({self.table})" if self.table else text

    def __str__(self) -> str:
        return f"{self.structure} {self.statement}"


@dataclass(frozen=True)
class Group:
    """Goals of which `at_least` so many must be met, such as either parotid.

    With `every` all goals that can be evaluated must be met, at least so many of them: cord or cauda, of
    which a patient may have but one in the fields. `priority`, `source` and `seen` are of the group as a
    whole and as those of a goal.
    """

    name: str
    at_least: int
    priority: int = 2
    source: str = ""
    seen: Seen = ""
    every: bool = False

    def __post_init__(self) -> None:
        if self.at_least < 1:
            raise GoalError(f"group {self.name}: at_least {self.at_least} must be 1 or more")
        if self.priority not in (1, 2, 3):
            raise GoalError(f"group {self.name}: priority {self.priority} is not 1, 2 or 3")

    @property
    def source_text(self) -> str:
        """Its source, and how that was seen if not in print."""
        return source_text(self.source, self.seen)

    def __str__(self) -> str:
        return f"{self.rule} of {self.name}"

    @property
    def rule(self) -> str:
        """`at least 1`, or `every contoured one, at least 1,`."""
        return (
            f"every contoured one, at least {self.at_least}," if self.every else f"at least {self.at_least}"
        )


@dataclass(frozen=True)
class Normalization:
    """The plan's MU are scaled until this dose metric has exactly this value."""

    structure: str
    metric: Metric
    gy: float

    def __str__(self) -> str:
        return f"{self.structure} {self.metric} = {self.gy:g} Gy"


@dataclass(frozen=True)
class GoalSheet:
    """A prescription with its goals.

    `normalizations` are in order of preference: the first whose target is present holds.
    `optional_targets` may be absent from a case, though not all prescribed targets at once.
    `structures` are made of others by an expression, such as `Lungs - GTV`, where they are not contoured.
    In a `stereotactic` plan the target may be hot within, for a steeper falloff around it.
    `conditions` says in words what each condition means; those in `conditions_on` hold for the patient, and
    `left_out` are the goals that `fit_to_case` left out as their condition does not. `plan` are the sheet's
    defaults for the command of that name. `remarks` are sentences on the sheet itself: an old format,
    numbers without a source. `seen` is how the `source` of the prescription was seen. `delivery` are goals on
    how the plan is delivered: MU, leaf motion, gaps, edges, time.
    """

    name: str
    title: str
    site: str
    prescription: Prescription
    normalizations: tuple[Normalization, ...]
    goals: tuple[Goal, ...]
    source: str
    optional_targets: tuple[str, ...] = ()
    stereotactic: bool = False
    format: int = 1
    current_to: str = ""
    groups: Mapping[str, Group] = field(default_factory=dict)
    structures: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, str] = field(default_factory=dict)
    conditions_on: tuple[str, ...] = ()
    left_out: tuple[Goal, ...] = ()
    plan: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    seen: Seen = ""
    delivery: tuple[DeliveryGoal, ...] = ()

    @property
    def normalization(self) -> Normalization:
        """The normalisation that holds."""
        return self.normalizations[0]

    def members(self, group: str) -> tuple[Goal, ...]:
        """The goals of a group."""
        return tuple(goal for goal in self.goals if goal.group == group)

    def in_gy(self) -> GoalSheet:
        """The sheet with every goal as physical Gy of the whole course, as by `Goal.in_gy`."""
        return replace(self, goals=tuple(goal.in_gy(self.prescription) for goal in self.goals))
