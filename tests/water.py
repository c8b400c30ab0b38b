"""Water phantoms, rectangular fields and doses on lines and planes, for tests of the dose engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Structure
from vmat_diffusion.dose import PencilBeam
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Arc, Plan


def block(low: tuple[float, float, float], high: tuple[float, float, float], step_mm: float = 4.0) -> Case:
    """A block of water whose faces lie where stated; nothing around it."""
    size = [round((b - a) / step_mm) for a, b in zip(low, high, strict=True)]
    assert np.allclose(np.array(low) + np.array(size) * step_mm, high), "faces must fall on voxel borders"
    origin = tuple(a + step_mm / 2 for a in low)
    grid = Grid((size[2], size[1], size[0]), (step_mm,) * 3, origin)  # type: ignore[arg-type]
    body = Structure("BODY", "body", np.ones(grid.shape, bool))
    return Case("water", "test", grid, np.zeros(grid.shape, np.float32), {"BODY": body})


def tank(surface_mm: float = 0.0, depth_mm: float = 320.0, half_mm: float = 160.0) -> Case:
    """A water tank under gantry 0: its surface is the plane y = `surface_mm`."""
    return block((-half_mm, surface_mm, -half_mm), (half_mm, surface_mm + depth_mm, half_mm))


def field(
    machine: Machine,
    box_mm: tuple[float, float, float, float],
    *,
    gantry_deg: float = 0.0,
    collimator_deg: float = 0.0,
    couch_deg: float = 0.0,
    isocenter_mm: tuple[float, float, float] = (0.0, 0.0, 0.0),
    mu: float = 100.0,
    fractions: int = 1,
) -> Plan:
    """A static field (x1, x2, y1, y2) made by the jaws, all leaves withdrawn."""
    leaves = np.zeros((2, 2, machine.mlc.pairs))
    leaves[:, 0], leaves[:, 1] = -200.0, 200.0
    arc = Arc(
        gantry_deg=np.full(2, gantry_deg),
        collimator_deg=collimator_deg,
        couch_deg=couch_deg,
        leaves_mm=leaves,
        jaws_mm=np.tile(box_mm, (2, 1)),
        mu=np.array([mu]),
    )
    return Plan((arc,), isocenter_mm, fractions, machine.name)


def with_leaves(plan: Plan, leaves_mm: NDArray, jaws_mm: NDArray | None = None) -> Plan:
    """The same field with other leaves `[2, pairs]` or `[n, 2, pairs]` and, if given, other jaws."""
    arc = plan.arcs[0]
    leaves = np.broadcast_to(leaves_mm, arc.leaves_mm.shape).copy()
    jaws = arc.jaws_mm if jaws_mm is None else np.broadcast_to(jaws_mm, arc.jaws_mm.shape).copy()
    return replace(plan, arcs=(replace(arc, leaves_mm=leaves, jaws_mm=jaws),))


def line(start: tuple[float, float, float], axis: int, count: int, step_mm: float = 1.0) -> Grid:
    """A row of points as a grid: `count` points from `start` along x (0), y (1) or z (2)."""
    shape = [1, 1, 1]
    shape[2 - axis] = count
    return Grid(tuple(shape), (step_mm,) * 3, start)  # type: ignore[arg-type]


def dose_along(machine: Machine, plan: Plan, case: Case, where: Grid) -> NDArray[np.float64]:
    """Dose in Gy at the points of `line`."""
    return PencilBeam(machine)(plan, case, where).gy.ravel().astype(float)


def edges_mm(position: NDArray, dose: NDArray, level: float) -> tuple[float, float]:
    """Where a profile first and last crosses a dose level, by linear interpolation."""
    above = np.flatnonzero(dose >= level)
    first, last = above[0], above[-1]
    assert first > 0 and last < len(dose) - 1, "the profile must fall below the level on both sides"
    low = np.interp(level, dose[[first - 1, first]], position[[first - 1, first]])
    high = np.interp(-level, -dose[[last, last + 1]], position[[last, last + 1]])
    return float(low), float(high)
