"""What one planning run made: the plan chosen and its verdict, and the record of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmat_diffusion.case import Dose
from vmat_diffusion.evaluate.goals import (
    DeliveryResult,
    delivery_record,
    evaluate_delivery,
    goal_details,
    goal_record,
    group_record,
    group_results,
    sheet_record,
)
from vmat_diffusion.evaluate.task import Task
from vmat_diffusion.plan import Plan, arc_delivery_s
from vmat_diffusion.workflow.planning.search_and_check import JudgedPlan

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.complexity import Complexity
    from vmat_diffusion.evaluate.goals import GoalResult
    from vmat_diffusion.evaluate.ranking import GoalScore
    from vmat_diffusion.optimize.ideal import Yardstick
    from vmat_diffusion.qa import Verdict


@dataclass(frozen=True)
class Candidate:
    """One of several plans: how it meets the goals, how its search ended, its gate, whether it is the one."""

    number: int
    score: GoalScore
    outcome: str
    passed: bool
    chosen: bool = False

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "candidate": self.number,
            "chosen": self.chosen,
            **self.score.record(),
            "outcome": self.outcome,
            "passed": self.passed,
        }


@dataclass(frozen=True, eq=False)
class PlanRun:
    """What one planning run made. `files` are absolute paths; `violations` is empty if deliverable.

    `results` are the goals on the plan's dose. `candidates` are the plans among which this one was chosen;
    `before` says how the plan that the search started from met the goals; `yardstick` what ideal fluence
    makes of them, where that was asked for.
    """

    task: Task
    judged: JudgedPlan
    results: tuple[GoalResult, ...]
    violations: tuple[str, ...]
    delivery_s: float
    complexity: Complexity
    seconds: Mapping[str, float]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    before: GoalScore | None = None
    yardstick: Yardstick | None = None
    candidates: tuple[Candidate, ...] = ()
    files: tuple[Path, ...] = ()
    peak_gb: float | None = None

    @property
    def plan(self) -> Plan:
        """The plan, exactly as its file holds it."""
        return self.judged.plan

    @property
    def dose(self) -> Dose:
        """The plan's dose by the fast engine."""
        return self.judged.optimized.dose

    @property
    def delivery_results(self) -> tuple[DeliveryResult, ...]:
        """The sheet's goals on the delivery, judged on the plan."""
        return evaluate_delivery(self.task.sheet, self.plan, self.task.machine)

    @property
    def verdict(self) -> Verdict:
        """What the gate says of the plan."""
        return self.judged.verdict

    @property
    def check(self) -> Dose | None:
        """The independent dose; None for a plan that cannot be delivered."""
        return self.judged.check

    @property
    def corrected(self) -> bool:
        """Whether the search went on after a first verdict, knowing how the engines differ."""
        return self.judged.first_verdict is not None

    @property
    def passed(self) -> bool:
        """Whether the plan went through the gate, so that RP.dcm is there."""
        return self.verdict.passed

    @property
    def outcome(self) -> str:
        """How the search ended."""
        return self.judged.optimized.outcome.name

    @property
    def arrangement(self) -> str:
        """Which arcs the plan got and why; empty where they are those of a plan that was improved."""
        found = self.provenance.get("arrangement")
        return str(found["text"]) if found else ""

    @property
    def conflicts(self) -> tuple[str, ...]:
        """What stands in the way of the goals that stay open."""
        return tuple(map(str, self.judged.optimized.conflicts))

    def summary(self) -> dict[str, Any]:
        """The object that `plan --json` prints."""
        return {
            "outcome": self.outcome,
            "conflicts": list(self.conflicts),
            "yardstick": self.yardstick.record() if self.yardstick else None,
            "arrangement": self.provenance.get("arrangement"),
            "before": self.before.record() if self.before else None,
            "goals": [goal_record(r) for r in self.results],
            "groups": [group_record(g) for g in group_results(self.results)],
            "delivery_goals": [delivery_record(r) for r in self.delivery_results],
            "remarks": list(self.task.sheet.remarks),
            "mu": round(self.plan.total_mu, 2),
            "delivery_s": round(self.delivery_s, 2),
            "arc_delivery_s": arc_delivery_s(self.plan, self.task.machine),
            "complexity": self.complexity.record(),
            "violations": list(self.violations),
            "verdict": {**self.verdict.summary(), "corrected": self.corrected},
            "robustness": self.verdict.robustness.record() if self.verdict.robustness else None,
            "seconds": {name: round(s, 2) for name, s in self.seconds.items()},
            "peak_gb": self.peak_gb,
            "files": [str(f) for f in self.files],
        }


def run_record(run: PlanRun) -> dict[str, Any]:
    """Everything about the run that is not in its other files."""
    sheet, first = run.task.sheet, run.judged.first_verdict
    return {
        **run.provenance,
        **run.summary(),
        "goals": [goal_details(r) for r in run.results],
        "check_goals": [goal_record(r) for r in run.verdict.results],
        "sheet": sheet_record(sheet),
        "files": [file.name for file in run.files],
        "site": sheet.site,
        "fractions": run.plan.fractions,
        "prescription_gy": dict(sheet.prescription.target_gy),
        "normalization": str(sheet.normalization),
        "dose": dict(run.dose.provenance),
        "check": dict(run.check.provenance) if run.check else None,
        "first_verdict": first.summary() if first else None,
        "candidates": [c.record() for c in run.candidates],
        "optimiser_seconds": dict(run.judged.optimized.seconds),
        "history": list(run.judged.optimized.history),
    }
