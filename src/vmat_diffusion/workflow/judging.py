"""A plan through the gate, and again where only the engines disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.machine import Machine
from vmat_diffusion.workflow.clock import Clock
from vmat_diffusion.workflow.engines import Engine, dose_engine
from vmat_diffusion.workflow.gate import Judged, pass_gate
from vmat_diffusion.workflow.optimising import Made, optimised
from vmat_diffusion.workflow.settings import PlanSettings

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.goals import GoalSheet
    from vmat_diffusion.optimize import Optimized
    from vmat_diffusion.qa import Check, GateSettings, Verdict

# The most of the time limit that a correction of a plan may take, and how many there may be: the difference
# found belongs to the plan before, and where it is large, as in the air of a target, one is not enough.
_CORRECTION_SHARE, _CORRECTIONS = 1 / 3, 2


@dataclass(frozen=True, eq=False)
class Gated:
    """A plan with its verdict; `first` is that of the plan before it was corrected, if it was."""

    optimized: Optimized
    judged: Judged
    first: Verdict | None = None


def _engine(machine: Machine, settings: PlanSettings, again: int) -> Engine:
    """The independent engine, with other random numbers for each correction of a plan."""
    return dose_engine(
        "monte-carlo",
        machine,
        uncertainty=settings.uncertainty,
        max_minutes=settings.check_minutes,
        seed=(settings.seed + again) % 2**32,
    )


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
    """The plan judged, its files in `folder` if it passes.

    If only the engines disagree it is led on in the knowledge of what the independent engine finds, and
    judged again, at most twice.
    """
    from vmat_diffusion.qa import smooth_difference

    quick = replace(settings, max_minutes=settings.max_minutes * _CORRECTION_SHARE)

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

    now, first, difference = made.optimized, None, None
    found = judged(now, _engine(machine, settings, 0), "check")
    for again in range(1, _CORRECTIONS + 1):
        if not found.verdict.correctable or found.check is None:
            break
        first = first or found.verdict
        difference = _more(smooth_difference(now.dose, found.check), difference)
        with clock.stage("optimise again"):
            now = optimised(
                case, sheet, machine, quick, clock.report,
                target=made.target, difference=difference, start=now,
            )  # fmt: skip
        found = judged(now, _engine(machine, settings, again), "check again")
    return Gated(now, found, first)


def _more(found: Dose, before: Dose | None) -> Dose:
    """What is to be added to the fast engine's dose: what a check finds, beside what was added before."""
    return found if before is None else replace(found, gy=found.gy + before.on(found.grid))
