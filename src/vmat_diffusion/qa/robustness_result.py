"""What small errors of the linac do to a plan's dose: rows of the gate, of the report and of records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from vmat_diffusion.evaluate.goal_types import Status
from vmat_diffusion.qa.verdict import Check

ROBUSTNESS = "robustness"
NEAR_MINIMUM, MEAN = "D95%", "mean"
_RANK: dict[str, int] = {"pass": 0, "acceptable": 1, "fail": 2}


@dataclass(frozen=True)
class Change:
    """A dose of one structure in Gy of the whole course: as planned, and delivered with the error."""

    structure: str
    metric: str
    planned_gy: float
    delivered_gy: float

    @property
    def gy(self) -> float:
        """By how much the dose changes."""
        return self.delivered_gy - self.planned_gy

    @property
    def percent(self) -> float | None:
        """The same in percent of the planned dose; None where none is planned."""
        return 100.0 * self.gy / self.planned_gy if self.planned_gy > 0 else None

    @property
    def of_target(self) -> bool:
        """Whether it is a dose of a target, which is judged in percent."""
        return self.metric in (NEAR_MINIMUM, MEAN)

    def __str__(self) -> str:
        if self.of_target and self.percent is not None:
            return f"{self.structure} {self.metric} {self.percent:+.2f} %"
        return f"{self.structure} {self.metric} {self.gy:+.2f} Gy"


@dataclass(frozen=True)
class GoalChange:
    """A must of an organ: its status as planned and with the error."""

    goal: str
    planned: Status
    delivered: Status

    @property
    def worse(self) -> bool:
        """Whether the error costs the goal."""
        return _RANK[self.delivered] > _RANK[self.planned]


@dataclass(frozen=True)
class ScenarioResult:
    """One scenario with the changes it makes; see `Scenario` for the first fields."""

    row: str
    name: str
    size: float
    unit: str
    accepted_percent: float | None
    limit_percent: float | None
    source: str
    changes: tuple[Change, ...]
    goals: tuple[GoalChange, ...] = ()

    @property
    def largest(self) -> Change | None:
        """The largest change of a target's dose; None where no target has a planned dose."""
        targets = [c for c in self.changes if c.of_target and c.percent is not None]
        return max(targets, key=lambda c: abs(c.percent or 0.0), default=None)

    @property
    def colour(self) -> str:
        """`green`, `amber` or `red` by its limits; empty where it is only reported."""
        if self.limit_percent is None or self.accepted_percent is None:
            return ""
        percent = self._percent
        if percent is None or percent > self.limit_percent or self._lost("fail"):
            return "red"
        return "amber" if percent > self.accepted_percent or self._lost("acceptable") else "green"

    @property
    def _percent(self) -> float | None:
        return None if self.largest is None else abs(self.largest.percent or 0.0)

    def _lost(self, status: str) -> list[str]:
        """Goals that the error brings to this status."""
        return [g.goal for g in self.goals if g.worse and g.delivered == status]

    @property
    def goals_lost(self) -> list[str]:
        """The goals of organs that the error costs, in words."""
        said = (("fail", "then missed"), ("acceptable", "then within the variation alone"))
        return [f"{words}: {', '.join(lost)}" for status, words in said if (lost := self._lost(status))]

    @property
    def sentence(self) -> str:
        """What it does, in words: its largest change, and the goals that it costs."""
        what = str(self.largest) if self.largest else "no target has a dose to compare with"
        return ", ".join([f"{self.name}: {what}", *self.goals_lost])

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "row": self.row,
            "scenario": self.name,
            "size": self.size,
            "unit": self.unit,
            "colour": self.colour,
            "accepted_percent": self.accepted_percent,
            "limit_percent": self.limit_percent,
            "source": self.source,
            "changes": [
                {
                    "structure": c.structure,
                    "metric": c.metric,
                    "planned_gy": round(c.planned_gy, 4),
                    "change_gy": round(c.gy, 4),
                    "change_percent": None if c.percent is None else round(c.percent, 4),
                }
                for c in self.changes
            ],
            "goals": [asdict(g) for g in self.goals],
        }


@dataclass(frozen=True)
class Robustness:
    """All scenarios of a plan; none, and `reason`, where they could not be computed.

    `mean_gap_mm` is the mean effective gap (`mean_effective_gap_mm`); `seconds` is what it took.
    """

    results: tuple[ScenarioResult, ...]
    mean_gap_mm: float | None = None
    seconds: float = 0.0
    reason: str = ""

    @property
    def expected_percent_mm(self) -> float | None:
        """Change of a target's dose for each mm of gap that the mean effective gap lets expect."""
        return 100.0 / self.mean_gap_mm if self.mean_gap_mm else None

    @property
    def computed_percent_mm(self) -> float | None:
        """The computed one: mean dose of the target that changes most, by the smallest gap errors."""
        gaps = [r for r in self.results if r.row.startswith("gap ")]
        least = min((abs(r.size) for r in gaps), default=0.0)
        slopes = [
            abs(c.percent) / abs(r.size)
            for r in gaps
            if abs(r.size) == least
            for c in r.changes
            if c.metric == MEAN and c.percent is not None
        ]
        return max(slopes, default=None)

    @property
    def gap_text(self) -> str:
        """The mean effective gap and what it lets expect, beside what was computed; empty for none."""
        if self.mean_gap_mm is None or self.computed_percent_mm is None:
            return ""
        return (
            f"mean effective gap {self.mean_gap_mm:.1f} mm, so up to about {self.expected_percent_mm:.1f} % "
            f"of a target's dose for each mm of gap; computed: {self.computed_percent_mm:.1f} %/mm"
        )

    def checks(self, *, stops: bool) -> tuple[Check, ...]:
        """A row for each kind of error: its worst scenario against the limit.

        Above the limit a row fails if robustness `stops` a plan, else it warns. What could not be computed
        warns or is undecided.
        """
        if not self.results:
            why = f"not computed: {self.reason}"
            return (
                Check(
                    ROBUSTNESS,
                    not stops,
                    None,
                    None,
                    "%",
                    why,
                    undecided=stops,
                    cautions=True,
                    group=ROBUSTNESS,
                ),
            )
        rows: dict[str, list[ScenarioResult]] = {}
        for result in self.results:
            rows.setdefault(result.row, []).append(result)
        return tuple(self._check(row, found, stops=stops) for row, found in rows.items())

    def _check(self, row: str, found: list[ScenarioResult], *, stops: bool) -> Check:
        order = ("", "green", "amber", "red")
        worst = max(found, key=lambda r: (order.index(r.colour), r._percent or 0.0))
        red, why = worst.colour == "red", worst.sentence
        if worst.colour == "amber":
            why += f"; above {worst.accepted_percent:g} %, which asks for a look" if _is_above(worst) else ""
        if row.startswith("gap ") and self.gap_text:
            why += f"; {self.gap_text}"
        return Check(
            name=f"{ROBUSTNESS}: {row}",
            passed=not (red and stops),
            value=worst._percent,
            limit=worst.limit_percent,
            unit="%",
            why=f"{why} ({worst.source})",
            cautions=red,
            group=ROBUSTNESS,
        )

    def renamed(self, name: Callable[[str], str], sentence: Callable[[str], str]) -> Robustness:
        """The same with other names of structures, and its sentences as `sentence` has them."""
        results = tuple(
            replace(
                r,
                changes=tuple(replace(c, structure=name(c.structure)) for c in r.changes),
                goals=tuple(replace(g, goal=sentence(g.goal)) for g in r.goals),
            )
            for r in self.results
        )
        return replace(self, results=results, reason=sentence(self.reason))

    def record(self) -> dict[str, Any]:
        """Plain data."""

        def rounded(value: float | None) -> float | None:
            return None if value is None else round(value, 3)

        return {
            "computed": bool(self.results),
            "reason": self.reason or None,
            "mean_effective_gap_mm": rounded(self.mean_gap_mm),
            "expected_percent_per_mm_gap": rounded(self.expected_percent_mm),
            "computed_percent_per_mm_gap": rounded(self.computed_percent_mm),
            "seconds": round(self.seconds, 2),
            "scenarios": [r.record() for r in self.results],
        }


def not_computed(reason: str) -> Robustness:
    """That nothing was computed, and why."""
    return Robustness((), reason=reason)


def _is_above(result: ScenarioResult) -> bool:
    return (result._percent or 0.0) > (result.accepted_percent or 0.0)
