"""A dose engine of your own as the independent check of a planning run.

    python examples/own_engine.py [FOLDER]

An engine is anything that is called as `engine(plan, case, grid)` and returns a `Dose`: a wrapper of another
program, of measured data, or as here the fast engine with an output factor measured on the linac. The gate
asks it in place of Monte Carlo; whether it is independent enough is your judgement.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import vmat_diffusion as vd


class MeasuredOutput:
    """The fast engine, corrected by the output that was measured on the day."""

    def __init__(self, machine: vd.Machine, measured: float) -> None:
        self.fast, self.measured = vd.PencilBeam(machine), measured

    def __call__(
        self, plan: vd.Plan, case: vd.Case, grid: vd.Grid | None = None, progress: Any = None
    ) -> vd.Dose:
        """Dose in Gy of the whole course."""
        dose = self.fast(plan, case, grid)
        made = {**dose.provenance, "engine": "pencil beam with measured output"}
        return replace(dose, gy=dose.gy * self.measured, provenance=made)


def quick(case: vd.Case, sheet: vd.GoalSheet, machine: vd.Machine, **options: Any) -> vd.Optimized:
    """The project's optimiser with a short search; an optimiser of your own would stand in its place."""
    options["settings"] = replace(options["settings"], spacing_deg=6.0, effort=0.1)
    return vd.optimize(case, sheet, machine, **options)


def main(folder: Path, measured: float = 1.004) -> bool:
    """Plan the prostate of TG-119 into `folder`; returns whether the plan passed the gate."""
    vd.write_case(folder / "patient", vd.phantom("tg119_prostate"))
    tools = vd.PlanningTools(
        optimizer=quick,
        check_engine=lambda machine, settings, correction: MeasuredOutput(machine, measured),
    )
    settings = vd.plan_settings(goals="tg119_prostate", arcs=1, grid_mm=8.0)
    run = vd.plan_case(folder / "patient", folder / "plan", settings, tools=tools)
    for check in run.verdict.checks:
        print(f"{check.word:8} {check.name}: {check.why}")
    return run.passed


if __name__ == "__main__":
    out = Path(sys.argv[1] if len(sys.argv) > 1 else "own_engine")
    out.mkdir(parents=True, exist_ok=True)
    main(out)
