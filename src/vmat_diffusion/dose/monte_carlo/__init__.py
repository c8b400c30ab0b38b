"""Photon Monte Carlo: the independent engine that checks every plan.

Method, validation and limits: `docs/monte_carlo.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vmat_diffusion import __version__
from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.delivery import exposures, require_isocenter_near_body
from vmat_diffusion.dose.monte_carlo.engine import Phantom, simulate
from vmat_diffusion.dose.monte_carlo.source import photon_source, plan_openings
from vmat_diffusion.dose.tissue import density_of, dose_grid, medium_of
from vmat_diffusion.errors import InputError
from vmat_diffusion.geometry import Grid, average_onto
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan
from vmat_diffusion.progress import Progress

# A voxel with less of the body than this counts as outside: its dose would be noise over a scrap of mass.
_LEAST_COVER = 0.02


@dataclass(frozen=True)
class MonteCarlo:
    """Dose to medium (or to water) by Monte Carlo, on all cores.

    `uncertainty` is the mean relative standard deviation over voxels above half of the maximum at which
    a run ends; `max_seconds` ends it earlier. The same seed gives the same dose on any number of
    threads unless the time limit strikes.
    """

    machine: Machine
    uncertainty: float = 0.02
    max_seconds: float | None = None
    seed: int = 0
    to_water: bool = False

    def __call__(
        self, plan: Plan, case: Case, grid: Grid | None = None, progress: Progress | None = None
    ) -> Dose:
        """Dose in Gy of the whole course on `grid` (3 mm over the body where none is given).

        Raises PlanError for a plan that misses the body.
        """
        if not 0.001 <= self.uncertainty <= 0.2:
            raise InputError(f"uncertainty {self.uncertainty:g} is outside 0.001 to 0.2; 0.02 is usual")
        require_isocenter_near_body(plan, case)
        source = self.machine.require_beam()
        where = grid or dose_grid(case)
        exposed = exposures(plan, self.machine, max_step_deg=0.5, max_travel_mm=5.0)
        openings = plan_openings(exposed, self.machine, plan.patient_position)
        estimate = simulate(
            phantom_of(case, where),
            photon_source(openings, source, plan.isocenter_mm, self.machine.sad_mm),
            uncertainty=self.uncertainty,
            max_seconds=self.max_seconds,
            seed=self.seed,
            to_water=self.to_water,
            progress=progress,
        )
        scale = source.photons_cm2_mu * plan.fractions
        return Dose(
            where,
            estimate.gy * np.float32(scale),
            std_gy=estimate.sigma_gy * np.float32(scale),
            medium="water" if self.to_water else "medium",
            provenance={
                "engine": "monte-carlo",
                "version": __version__,
                "machine": self.machine.name,
                "seed": self.seed,
                "uncertainty": round(estimate.uncertainty, 5),
                "histories": estimate.histories,
                "photons_traced": estimate.photons,
                "seconds": round(estimate.seconds, 1),
            },
        )


def phantom_of(case: Case, grid: Grid) -> Phantom:
    """Density and medium of a case on a grid: the densities and media of `dose/tissue.py`."""
    covered = average_onto(case.body.mask, case.grid, grid)
    density = np.where(covered < _LEAST_COVER, 0.0, density_of(case, grid).g_cm3)
    low, _ = grid.bounds_mm
    edges = [
        lo + s * np.arange(n + 1) for lo, s, n in zip(low, grid.spacing_mm, grid.shape[::-1], strict=True)
    ]
    return Phantom(edges[0], edges[1], edges[2], density, medium_of(density))


__all__ = [
    "MonteCarlo",
    "Phantom",
    "phantom_of",
]
