"""What a user may ask of the optimiser, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from numpy.typing import NDArray

from vmat_diffusion.case import Dose
from vmat_diffusion.optimize.arcs import ArcFrame
from vmat_diffusion.optimize.conflicts import Conflict
from vmat_diffusion.optimize.objective_terms import ModulationPenalties
from vmat_diffusion.plan import Plan


class Outcome(str, Enum):
    """How the search ended: with all goals met, with some open, or with some that no plan can meet."""

    CONVERGED = "converged"
    STALLED = "stalled"
    INFEASIBLE = "infeasible"
    OUT_OF_TIME = "out of time"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class Settings:
    """What a user may ask of the optimiser; the defaults are meant for clinical targets.

    Angles in degrees, IEC. `partial` replaces start and stop by an arc around the side of the targets.
    `couch_deg` has one angle for each arc, 0 unless given. `avoid_deg` holds sectors without beam, clockwise
    from the first angle to the second. `collimator_deg` None chooses crossed angles, or mirrored ones that
    the leaf span allows. `spacing_deg` is the distance of the control points in the plan. `seconds_per_turn`
    is how long a full turn of the gantry may take where the MU do not ask for more: the slower it turns, the
    further leaves can travel. With `jaw_tracking` the jaws follow the leaves; None means wherever the machine
    can. `mu_per_gy` is the most MU for each Gy of the highest prescription, and `leaf_mm_per_deg` how far a
    leaf may travel per degree of gantry; None for no limit but the machine's. At the end of the search pairs
    narrower than `open_gap_mm` close or open to it. `effort` scales all iterations.
    `penalties` weigh modulation. The search ends after `max_minutes` at the latest; with None nothing but
    convergence ends it.
    """

    arcs: int = 2
    arc_start_deg: float = 182.0
    arc_stop_deg: float = 178.0
    partial: bool = False
    collimator_deg: tuple[float, ...] | None = None
    couch_deg: tuple[float, ...] | None = None
    avoid_deg: tuple[tuple[float, float], ...] = ()
    spacing_deg: float = 2.0
    seconds_per_turn: float = 60.0
    mu_per_gy: float | None = None
    leaf_mm_per_deg: float | None = None
    open_gap_mm: float | None = None
    jaw_tracking: bool | None = None
    grid_mm: float = 3.0
    seed: int = 0
    max_minutes: float | None = 5.0
    effort: float = 1.0
    penalties: ModulationPenalties = field(default_factory=ModulationPenalties)


@dataclass(frozen=True, eq=False)
class Optimized:
    """A deliverable plan, its dose by the fast engine, and how the search went.

    `history` has one row per iteration: stage, round, iteration, objective, the best of the round, goals
    missed, seconds. The weights of goals change between rounds, so objectives compare only within one.
    `fluence` holds the ideal map of every arc sector, `ideal_mu[maps, leaf rows, columns]`, and its axes.
    `goal_weights` are the weights of the objective's goals in the end; `conflicts` the goals that stay open
    with what opposes them; `frames` the arcs with the most
    that their jaws may open.
    """

    plan: Plan
    dose: Dose
    outcome: Outcome
    history: tuple[Mapping[str, object], ...]
    fluence: Mapping[str, NDArray]
    seconds: Mapping[str, float] = field(default_factory=dict)
    goal_weights: tuple[float, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    frames: tuple[ArcFrame, ...] = ()
