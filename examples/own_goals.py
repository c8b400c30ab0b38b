"""Goals of your own: a sheet as text, what the shipped sheets are too.

    python examples/own_goals.py

`vmat-diffusion goals list` names the shipped ones; `load_goals` also takes the path of a TOML file.
"""

from __future__ import annotations

import vmat_diffusion as vd

SHEET = """
title = "Prostate, twenty fractions"
site = "prostate"
fractions = 20
source = "an example, for no patient"

[prescription_gy]
PTV = 60.0

# The MU are scaled until this holds exactly.
[normalization]
PTV = "D50% = 60 Gy"

# Priority 1 must be met, 2 should, 3 is a wish. A goal within its variation is acceptable.
[[goals]]
structure = "PTV"
goal = "D95% >= 57 Gy"
variation = 55.0
priority = 1
source = "an example, for no patient"

[[goals]]
structure = "Rectum"
goal = "V40Gy <= 30 %"
priority = 2
source = "an example, for no patient"

[[goals]]
structure = "Bladder"
goal = "mean <= 30 Gy"
priority = 3
source = "an example, for no patient"
"""


def main() -> list[vd.GoalResult]:
    """Plan the prostate of TG-119 by the sheet; returns how each goal is met."""
    machine = vd.load_machine("generic_6mv")
    task = vd.Task.fitted(vd.phantom("tg119_prostate"), vd.parse_goals(SHEET, "twenty"), machine)
    quick = vd.OptimizerSettings(grid_mm=8.0, arcs=1, spacing_deg=6.0, effort=0.1)
    result = vd.optimize(task.case, task.sheet, machine, settings=quick)
    results = list(vd.evaluate(task.sheet, task.case, result.dose))
    for goal in results:
        print(f"{goal.goal!s:24} {goal.value:6.2f} {goal.goal.unit:3} {goal.status}")
    return results


if __name__ == "__main__":
    main()
