"""What a dose engine is, and the engines by name. torch and numba load with the engine that needs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.errors import InputError
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan
from vmat_diffusion.progress import Progress

ENGINES = ("pencil-beam", "monte-carlo")


class DoseEngine(Protocol):
    """Anything that computes the dose of a plan on a case; two engines check each other."""

    def __call__(
        self, plan: Plan, case: Case, grid: Grid | None = None, progress: Progress | None = None
    ) -> Dose:
        """Dose in Gy for the whole course on `grid`, by default 3 mm over the body.

        `progress` is called with the stage "dose".
        """
        ...


# Told the dose so far: how many times the computing so far it takes to decide all that is asked of the
# dose; 1 or less where that is decided.
Enough = Callable[[Dose], float]


@runtime_checkable
class DecidingEngine(Protocol):
    """An engine whose dose becomes more certain with time."""

    def deciding(self, enough: Enough, kept: Path | None) -> DoseEngine:
        """The engine that ends as soon as the dose is `enough`; else it leaves what it has in `kept`."""
        ...


def deciding(engine: DoseEngine, enough: Enough, kept: Path | None = None) -> DoseEngine:
    """The engine, ending when the dose is `enough`, where it can; one that is sure of its dose as it is.

    Where it ends earlier, by its time limit or by Ctrl-C, what it has lies in the file `kept`; the same
    engine goes on from there.
    """
    return engine.deciding(enough, kept) if isinstance(engine, DecidingEngine) else engine


def dose_engine(
    name: str,
    machine: Machine,
    *,
    uncertainty: float = 0.02,
    max_minutes: float | None = None,
    seed: int = 0,
) -> DoseEngine:
    """The engine of that name for a machine; `uncertainty`, `max_minutes` and `seed` are Monte Carlo's.

    Raises InputError for an unknown name or a machine without what the engine needs.
    """
    if name == "pencil-beam":
        machine.require_beam()
        from vmat_diffusion.dose.pencil_beam import PencilBeam

        return PencilBeam(machine)
    if name == "monte-carlo":
        machine.require_beam()
        from vmat_diffusion.dose.monte_carlo import MonteCarlo

        limit_s = None if max_minutes is None else 60.0 * max_minutes
        return MonteCarlo(machine, uncertainty=uncertainty, max_seconds=limit_s, seed=seed)
    raise InputError(f"engine {name!r} is not known; known are {' and '.join(ENGINES)}")
