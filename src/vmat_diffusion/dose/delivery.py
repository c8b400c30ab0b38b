"""What a plan delivers: its arcs cut into short exposures. Both dose engines share it.

Within a segment gantry, leaves and jaws move linearly in meterset, as DICOM defines (PS3.3 C.8.8.14).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case
from vmat_diffusion.errors import PlanError
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan

# Both engines let the Y jaws stand still during an exposure, at their mean. The pencil beam's kernels are
# wider than half of such a step, so that no ripple is left.
_Y_JAW_STEP_MM = 5.0


# An isocentre is put into or beside a target, which lies in the body; further out than a field's half width
# nothing but a wrong CT or a wrong sign puts it.
_ISOCENTER_OUTSIDE_MM = 100.0


def require_isocenter_near_body(plan: Plan, case: Case) -> None:
    """Raise PlanError where the isocentre lies more than 100 mm outside the body: such a plan misses it."""
    outside = _outside_mm(plan, case)
    if outside > _ISOCENTER_OUTSIDE_MM:
        x, y, z = plan.isocenter_mm
        raise PlanError(
            f"IsocenterPosition (300A,012C) is at ({x:g}, {y:g}, {z:g}) mm, {outside:.0f} mm outside the "
            f"body, the limit is {_ISOCENTER_OUTSIDE_MM:g} mm; give the CT that the plan was made on"
        )


def _outside_mm(plan: Plan, case: Case) -> float:
    """Distance of the isocentre from the nearest voxel centre of the body, 0 inside."""
    mask, grid = case.body.mask, case.grid
    point = np.asarray(plan.isocenter_mm)
    at = np.round((point - np.asarray(grid.origin_mm)) / np.asarray(grid.spacing_mm)).astype(int)[::-1]
    if np.all(at >= 0) and np.all(at < mask.shape) and mask[tuple(at)]:
        return 0.0
    found = np.argwhere(mask)[:, ::-1]
    if not len(found):
        return 0.0
    centres = np.asarray(grid.origin_mm) + found * np.asarray(grid.spacing_mm)
    return float(np.sqrt(((centres - point) ** 2).sum(axis=1).min()))


@dataclass(frozen=True, eq=False)
class Exposures:
    """A plan cut into n short exposures at fixed gantry angles; what a dose engine delivers.

    `leaves_mm[n, 2, 2, rows]`: start and end of the exposure, bank, leaf rows between the machine's
    `row_edges_mm`, the layers of the collimator merged. `jaws_mm[n, 2, 4]`: start and end, X1, X2, Y1, Y2.
    `mu[n]` per fraction. Angles in degrees, IEC 61217.
    """

    gantry_deg: NDArray[np.float64]
    collimator_deg: NDArray[np.float64]
    couch_deg: NDArray[np.float64]
    leaves_mm: NDArray[np.float64]
    jaws_mm: NDArray[np.float64]
    mu: NDArray[np.float64]


def exposures(
    plan: Plan, machine: Machine, max_step_deg: float = 2.2, max_travel_mm: float = 12.0
) -> Exposures:
    """Cut segments so that the gantry turns `max_step_deg` and leaves and X jaws `max_travel_mm` at most.

    Each exposure stands at the middle of its gantry interval. Segments without MU are left out.
    Raises PlanError for a plan of another collimator or without monitor units.
    """
    pairs = machine.row_pairs()
    parts: list[tuple[NDArray, ...]] = []
    for arc in plan.arcs:
        if arc.leaves_mm.shape[2] != machine.mlc.pairs:
            raise PlanError(
                f"beam {arc.number} has {arc.leaves_mm.shape[2]} leaf pairs, machine {machine.name} has "
                f"{machine.mlc.pairs}; choose the machine that the plan was made for"
            )
        rows = _row_positions(arc.leaves_mm, pairs)
        for k in np.flatnonzero(arc.mu > 0):
            turn = abs(arc.gantry_deg[k + 1] - arc.gantry_deg[k])
            leaf, jaw = rows[k : k + 2], arc.jaws_mm[k : k + 2]
            travel_x = max(np.abs(leaf[1] - leaf[0]).max(), np.abs(jaw[1, :2] - jaw[0, :2]).max())
            travel_y = np.abs(jaw[1, 2:] - jaw[0, 2:]).max()
            least = (turn / max_step_deg, travel_x / max_travel_mm, travel_y / _Y_JAW_STEP_MM, 1)
            cuts = math.ceil(max(least))
            t = np.linspace(0.0, 1.0, cuts + 1)
            middle = arc.gantry_deg[k] + (arc.gantry_deg[k + 1] - arc.gantry_deg[k]) * (t[1:] + t[:-1]) / 2
            same = np.ones(cuts)
            parts.append(
                (
                    middle,
                    same * arc.collimator_deg,
                    same * arc.couch_deg,
                    _start_and_end(leaf, t),
                    _start_and_end(jaw, t),
                    same * arc.mu[k] / cuts,
                )
            )
    if not parts:
        raise PlanError("the plan has no beam with monitor units, so there is no dose; give it MU")
    return Exposures(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _start_and_end(between: NDArray, t: NDArray) -> NDArray[np.float64]:
    """Positions at the start and end of each cut, at shares `t` of the motion between two positions."""
    share = t.reshape(-1, *(1,) * (between.ndim - 1))
    position = between[0] + (between[1] - between[0]) * share
    return np.stack([position[:-1], position[1:]], axis=1)


def _row_positions(leaves_mm: NDArray, pairs: NDArray) -> NDArray[np.float64]:
    """Leaf positions of all layers merged into leaf rows: the narrowest opening of all layers counts."""
    n = leaves_mm.shape[0]
    out = np.empty((n, 2, len(pairs)))
    out[:, 0], out[:, 1] = -np.inf, np.inf
    for layer in range(pairs.shape[1]):
        has = pairs[:, layer] >= 0
        index = pairs[has, layer]
        out[:, 0, has] = np.maximum(out[:, 0, has], leaves_mm[:, 0, index])
        out[:, 1, has] = np.minimum(out[:, 1, has], leaves_mm[:, 1, index])
    shut = out[:, 1] < out[:, 0]
    middle = (out[:, 0] + out[:, 1]) / 2
    out[:, 0] = np.where(shut, middle, out[:, 0])
    out[:, 1] = np.where(shut, middle, out[:, 1])
    return out


def jaw_box(exposed: Exposures) -> tuple[float, float, float, float]:
    """The smallest box (x1, x2, y1, y2) in mm that holds all jaw openings."""
    jaws = exposed.jaws_mm.reshape(-1, 4)
    return (
        float(jaws[:, 0].min()),
        float(jaws[:, 1].max()),
        float(jaws[:, 2].min()),
        float(jaws[:, 3].max()),
    )
