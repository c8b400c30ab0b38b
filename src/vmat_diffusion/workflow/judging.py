"""A plan through the gate, and once more where only the engines disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmat_diffusion.case import Case
from vmat_diffusion.machine import Machine
from vmat_diffusion.workflow.clock import Clock, Progress
from vmat_diffusion.workflow.engines import Engine, dose_engine
from vmat_diffusion.workflow.gate import Judged, pass_gate
from vmat_diffusion.workflow.optimising import Made, optimised
from vmat_diffusion.workflow.settings import PlanSettings

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.goals import GoalSheet
    from vmat_diffusion.optimize import Optimized
    from vmat_diffusion.qa import Check, GateSettings, Verdict

# The most of the time limit that the correction of a plan may take.
_CORRECTION_SHARE = 1 / 3


@dataclass(frozen=True, eq=False)
class Gated:
    """A plan with its verdict; `first` is that of the plan before it was corrected, if it was."""

    optimized: Optimized
    judged: Judged
    first: Verdict | None = None


def _engines(machine: Machine, settings: PlanSettings) -> tuple[Engine, Engine]:
    """The independent engine for the plan and, with other random numbers, for a corrected one."""
    first, second = (
        dose_engine(
            "monte-carlo",
            machine,
            uncertainty=settings.uncertainty,
            max_minutes=settings.check_minutes,
            seed=(settings.seed + again) % 2**32,
        )
        for again in (0, 1)
    )
    return first, second


def through_gate(
    folder: Path,
    case: Case,
    sheet: GoalSheet,
    machine: Machine,
    settings: PlanSettings,
    gate: GateSettings,
    made: Made,
    more: Sequence[Check],
    clock: Clock,
) -> Gated:
    """The plan judged, its files in `folder` if it passes; if only the engines disagree, a corrected one."""

    def judged(candidate: Optimized, engine: Engine, stage: str) -> Judged:
        with clock.stage(stage):
            return pass_gate(
                folder,
                case,
                sheet,
                machine,
                candidate.plan,
                candidate.dose,
                engine=engine,
                settings=gate,
                more=more,
                progress=lambda done, note: clock.report(stage, done, note),
            )

    first_engine, second_engine = _engines(machine, settings)
    found = judged(made.optimized, first_engine, "check")
    if not found.verdict.correctable:
        return Gated(made.optimized, found)
    with clock.stage("optimise again"):
        better = _corrected(case, sheet, machine, settings, made, found, clock.report)
    return Gated(better, judged(better, second_engine, "check again"), found.verdict)


def _corrected(
    case: Case,
    sheet: GoalSheet,
    machine: Machine,
    settings: PlanSettings,
    made: Made,
    judged: Judged,
    report: Progress,
) -> Optimized:
    """The plan led on in the knowledge of what the independent engine finds."""
    from vmat_diffusion.qa import smooth_difference

    assert judged.check is not None  # or it would not be correctable
    difference = smooth_difference(made.optimized.dose, judged.check)
    quick = replace(settings, max_minutes=settings.max_minutes * _CORRECTION_SHARE)
    return optimised(
        case, sheet, machine, quick, report, target=made.target, difference=difference, start=made.optimized
    )
