"""The dose engines by name. torch and numba load when the engine that needs them is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.errors import InputError
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan

ENGINES = ("pencil-beam", "monte-carlo")


class Engine(Protocol):
    """Computes the dose of a plan on a case; `progress` is told the share done and a note."""

    def __call__(
        self,
        plan: Plan,
        case: Case,
        grid: Grid | None = None,
        progress: Callable[[float, str], None] | None = None,
    ) -> Dose:
        """Dose in Gy for the whole course on `grid`."""
        ...


def dose_engine(
    name: str,
    machine: Machine,
    *,
    uncertainty: float = 0.02,
    max_minutes: float | None = None,
    seed: int = 0,
) -> Engine:
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
