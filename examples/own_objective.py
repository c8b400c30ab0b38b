"""An objective of your own: a goal on a structure that nobody contoured, a ring round the target.

    python examples/own_objective.py

The optimiser makes a term of every goal of the sheet. A wish that no contour expresses becomes a structure,
as planners do it, and a goal on it.
"""

from __future__ import annotations

from dataclasses import replace

from scipy import ndimage

import vmat_diffusion as vd

SHEET = """
title = "Prostate with a ring"
site = "prostate"
fractions = 42
source = "an example, for no patient"

[prescription_gy]
PTV = 75.6

[normalization]
PTV = "D95% = 75.6 Gy"

[[goals]]
structure = "PTV"
goal = "D5% <= 83 Gy"
priority = 1
source = "an example, for no patient"

[[goals]]
structure = "Ring"
goal = "mean <= {ring_gy} Gy"
priority = 1
source = "an example, for no patient"
"""


def with_ring(case: vd.Case, target: str, near_mm: float, far_mm: float) -> vd.Case:
    """The case with a shell round a target, between two distances from it."""
    outside = ~case.structures[target].mask
    distance_mm = ndimage.distance_transform_edt(outside, sampling=case.grid.spacing_mm[::-1])
    mask = (distance_mm > near_mm) & (distance_mm <= far_mm) & case.body.mask
    return replace(case, structures={**case.structures, "Ring": vd.Structure("Ring", "other", mask)})


def main() -> dict[str, float]:
    """Plan the prostate of TG-119 with a loose and a tight ring; returns the mean dose of the ring in Gy."""
    machine = vd.load_machine("generic_6mv")
    case = with_ring(vd.phantom("tg119_prostate"), "PTV", near_mm=12.0, far_mm=24.0)
    quick = vd.OptimizerSettings(
        grid_mm=8.0, arcs=1, arc_start_deg=182.0, arc_stop_deg=300.0, spacing_deg=4.0, effort=0.3
    )
    found = {}
    for name, ring_gy in (("loose", 70.0), ("tight", 25.0)):
        task = vd.Task.fitted(case, vd.parse_goals(SHEET.format(ring_gy=ring_gy), name), machine)
        result = vd.optimize(task.case, task.sheet, machine, settings=quick)
        found[name] = vd.structure_dvh(result.dose, case.structures["Ring"], case.grid).mean_gy
        print(f"{name} goal on the ring: its mean is {found[name]:.1f} Gy")
    return found


if __name__ == "__main__":
    main()
