"""A plan that aims at a dose of your own: from another model, an earlier plan, or a rule as here.

    python examples/own_aim.py

The optimiser is given a dose on any grid and does not know who made it. It holds organs below the histograms
of that dose where the goals allow.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

import vmat_diffusion as vd

# By 8 % for each mm away from the target: more than leaves can do everywhere, so that it always pulls.
FALL_PER_MM = 0.08


def expected_dose(case: vd.Case, sheet: vd.GoalSheet) -> vd.Dose:
    """The prescribed dose in the target, falling off with the distance from it; none outside the body."""
    ((name, gy),) = sheet.prescription.target_gy.items()
    outside = ~case.structures[name].mask
    distance_mm = ndimage.distance_transform_edt(outside, sampling=case.grid.spacing_mm[::-1])
    falling = gy * np.exp(-FALL_PER_MM * distance_mm) * case.body.mask
    return vd.Dose(case.grid, falling.astype(np.float32), provenance={"predicted by": "distance alone"})


def main() -> dict[str, float]:
    """Plan the prostate of TG-119 with and without the aim; returns the mean dose of the rectum in Gy."""
    task = vd.Task.fitted(
        vd.phantom("tg119_prostate"), vd.load_goals("tg119_prostate"), vd.load_machine("generic_6mv")
    )
    quick = vd.OptimizerSettings(
        grid_mm=8.0, arcs=1, arc_start_deg=182.0, arc_stop_deg=300.0, spacing_deg=4.0, effort=0.3
    )
    rectum = task.case.structures["Rectum"]
    means = {}
    for name, aim in (("goals alone", None), ("own aim", expected_dose(task.case, task.sheet))):
        result = vd.optimize(task.case, task.sheet, task.machine, settings=quick, target=aim)
        means[name] = vd.structure_dvh(result.dose, rectum, task.case.grid).mean_gy
        print(f"{name:12} mean of the rectum {means[name]:.1f} Gy")
    return means


if __name__ == "__main__":
    main()
