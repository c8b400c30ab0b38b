"""How the dose changes with collimator angle and jaws: what a fit of two doses needs to see an error in them.

Neither moves the dose as a whole. The fast engine computes the change once for the plan at hand; how much of
it lies between the planned and the independent dose is then a matter of least squares (`fitted_motion`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.delivery import require_isocenter_near_body
from vmat_diffusion.dose.pencil_beam.several_plans import doses_of_plans
from vmat_diffusion.dose.tissue import density_of, dose_grid
from vmat_diffusion.errors import InputError
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan
from vmat_diffusion.qa.plan_errors import with_collimator, with_gap, with_jaws

COLLIMATOR, JAWS_X, JAWS_Y, LEAVES = "collimator angle", "X jaws", "Y jaws", "leaves"
# Doses for differences need no fine grid, as they are smoothed before they are compared.
_SPACING_MM, _STEP_MM, _RAY_GRID_MM = 5.0, 4.0, 2.5
_TURN_DEG, _CLOSER_MM, _WIDER_MM, _OPENER_MM = 2.0, 2.0, 3.0, 0.5
# Jaws that cut into the field change the dose by more than this share of its maximum for each mm that they
# open, in the mean; jaws behind the leaves by a third of it.
_CUTS_IN, _LIT = 0.003, 0.2
# A pair that is closed further than this stays closed.
_CLOSED_MM = 1.5


def collimation_changes(
    plan: Plan, case: Case, machine: Machine, grid: Grid
) -> dict[str, NDArray[np.float32]]:
    """Change of the dose on `grid`, in Gy per degree of all collimators and per mm a jaw or leaf opens.

    Jaws are closed, as opening them behind the leaves does little; where they cut into the field they are
    opened, as a plan with jaws that stand too close shows only so how far. Empty where the fast engine cannot
    compute the plan. Costs about three of its doses on a grid of 5 mm.
    """
    coarse = tuple(max(_SPACING_MM, s) for s in grid.spacing_mm)
    wide = grid.around(*grid.bounds_mm, coarse)  # type: ignore[arg-type]
    opened = with_gap(plan, 2.0 * _OPENER_MM, closed_mm=_CLOSED_MM)
    # Of jaws the opened ones come last, and count where they cut into the field.
    changed = (
        (COLLIMATOR, with_collimator(plan, _TURN_DEG), _TURN_DEG),
        (JAWS_X, with_jaws(plan, x_mm=-_CLOSER_MM), -_CLOSER_MM),
        (JAWS_Y, with_jaws(plan, y_mm=-_CLOSER_MM), -_CLOSER_MM),
        (LEAVES, opened, _OPENER_MM),
        (JAWS_X, with_jaws(plan, x_mm=_WIDER_MM), _WIDER_MM),
        (JAWS_Y, with_jaws(plan, y_mm=_WIDER_MM), _WIDER_MM),
    )
    try:
        require_isocenter_near_body(plan, case)
        inside = np.flatnonzero(density_of(case, wide).g_cm3.ravel() > 0)
        usual, *others = doses_of_plans(
            machine,
            [plan, *(other for _, other, _ in changed)],
            density_of(case, dose_grid(case, _RAY_GRID_MM)),
            wide.points_mm(inside),
            step_mm=_STEP_MM,
        )
    except (InputError, ValueError, IndexError):
        return {}
    out = {}
    for (name, _, by), other in zip(changed, others, strict=True):
        change = (other - usual) / np.float32(by)
        if name not in out or _cuts_in(change, usual):
            gy = np.zeros(wide.shape, np.float32)
            gy.ravel()[inside] = change
            out[name] = Dose(wide, gy).on(grid)
    return out


def _cuts_in(change_gy: NDArray, gy: NDArray) -> bool:
    """Whether opening the jaws lets more than penumbra through."""
    top = float(gy.max(initial=0.0))
    lit = gy > _LIT * top
    return bool(lit.any()) and float(np.sqrt(np.mean(change_gy[lit] ** 2, dtype=np.float64))) > _CUTS_IN * top
