"""How the dose changes with collimator angle and jaws: what a fit of two doses needs to see an error in them.

Neither moves the dose as a whole. The fast engine computes the change once for the plan at hand; how much of
it lies between the planned and the independent dose is then a matter of least squares (`fitted_motion`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case
from vmat_diffusion.dose.pencil_beam import PencilBeam
from vmat_diffusion.errors import InputError
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Arc, Plan

COLLIMATOR, JAWS_X, JAWS_Y, LEAVES = "collimator angle", "X jaws", "Y jaws", "leaves"
# Doses for differences need no fine grid, as they are smoothed before they are compared.
_SPACING_MM, _STEP_MM = 5.0, 4.0
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
    compute the plan. Costs seven of its doses on a grid of 5 mm.
    """
    coarse = tuple(max(_SPACING_MM, s) for s in grid.spacing_mm)
    wide = grid.around(*grid.bounds_mm, coarse)  # type: ignore[arg-type]
    changed = {
        COLLIMATOR: (_every(plan, _turned), _TURN_DEG),
        JAWS_X: (_every(plan, _narrower_x), -_CLOSER_MM),
        JAWS_Y: (_every(plan, _narrower_y), -_CLOSER_MM),
        LEAVES: (_every(plan, _opened), _OPENER_MM),
    }
    wider = {
        JAWS_X: (_every(plan, _wider_x), _WIDER_MM),
        JAWS_Y: (_every(plan, _wider_y), _WIDER_MM),
    }
    try:
        engine = PencilBeam(machine, step_mm=_STEP_MM)
        usual = engine(plan, case, wide)
        out = {}
        for name, (other, by) in (*changed.items(), *wider.items()):
            dose = engine(other, case, wide)
            change = (dose.gy - usual.gy) / np.float32(by)
            if name not in out or _cuts_in(change, usual.gy):
                out[name] = replace(dose, gy=change).on(grid)
        return out
    except (InputError, ValueError, IndexError):
        return {}


def _cuts_in(change_gy: NDArray, gy: NDArray) -> bool:
    """Whether opening the jaws lets more than penumbra through."""
    top = float(gy.max())
    lit = gy > _LIT * top
    return bool(lit.any()) and float(np.sqrt(np.mean(change_gy[lit] ** 2, dtype=np.float64))) > _CUTS_IN * top


def _every(plan: Plan, change: Callable[[Arc], Arc]) -> Plan:
    return replace(plan, arcs=tuple(change(arc) for arc in plan.arcs))


def _turned(arc: Arc) -> Arc:
    return replace(arc, collimator_deg=(arc.collimator_deg + _TURN_DEG) % 360.0)


def _narrower_x(arc: Arc) -> Arc:
    return replace(arc, jaws_mm=_closed(arc.jaws_mm, 0))


def _narrower_y(arc: Arc) -> Arc:
    return replace(arc, jaws_mm=_closed(arc.jaws_mm, 2))


def _wider_x(arc: Arc) -> Arc:
    return replace(arc, jaws_mm=arc.jaws_mm + np.array([-_WIDER_MM, _WIDER_MM, 0.0, 0.0]))


def _wider_y(arc: Arc) -> Arc:
    return replace(arc, jaws_mm=arc.jaws_mm + np.array([0.0, 0.0, -_WIDER_MM, _WIDER_MM]))


def _closed(jaws_mm: NDArray, first: int) -> NDArray[np.float64]:
    """Jaws that cut in, as opening them behind the leaves of a field does little. They never cross."""
    low, high = jaws_mm[:, first], jaws_mm[:, first + 1]
    by = np.minimum(_CLOSER_MM, np.maximum(high - low, 0.0) / 2.0)
    out = np.array(jaws_mm, np.float64)
    out[:, first], out[:, first + 1] = low + by, high - by
    return out


def _opened(arc: Arc) -> Arc:
    leaves = arc.leaves_mm.copy()
    by = np.where(leaves[:, 1] - leaves[:, 0] > _CLOSED_MM, _OPENER_MM, 0.0)
    leaves[:, 0] -= by
    leaves[:, 1] += by
    return replace(arc, leaves_mm=leaves)
