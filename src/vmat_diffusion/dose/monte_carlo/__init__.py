"""Photon Monte Carlo: the independent engine that checks every plan.

Method, validation and limits: `docs/monte_carlo.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vmat_diffusion import __version__
from vmat_diffusion.case import Case, Dose
from vmat_diffusion.compiled import sources_digest
from vmat_diffusion.dose.delivery import exposures, require_isocenter_near_body
from vmat_diffusion.dose.monte_carlo import engine
from vmat_diffusion.dose.monte_carlo.engine import SPLIT, Ends, Estimate, Phantom, simulate
from vmat_diffusion.dose.monte_carlo.source import photon_source, plan_openings
from vmat_diffusion.dose.monte_carlo.tallies import read_tallies, run_key, write_tallies
from vmat_diffusion.dose.tissue import density_of, dose_grid, medium_of
from vmat_diffusion.errors import InputError
from vmat_diffusion.geometry import Grid, average_onto
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan
from vmat_diffusion.progress import Progress, ctrl_c_noted

# A voxel with less of the body than this counts as outside: its dose would be noise over a scrap of mass.
_LEAST_COVER = 0.02


@dataclass(frozen=True)
class MonteCarlo:
    """Dose to medium (or to water) by Monte Carlo, on all cores.

    `uncertainty` is the mean relative standard deviation over voxels above half of the maximum at which
    a run ends; `max_seconds` ends it earlier. The same seed gives the same dose on any number of
    threads unless the time limit strikes.

    With `enough`, the uncertainty is where the dose is looked at first, and the run goes on until `enough`
    says that it takes no more (`engines.Enough`), to half of the sigma at most. With `kept`, Ctrl-C ends the
    run as the time limit does. The tallies of a run that ended without `enough` are then in that file. The
    same run goes on from there, to the dose of a run that never ended in between.
    """

    machine: Machine
    uncertainty: float = 0.02
    max_seconds: float | None = None
    seed: int = 0
    to_water: bool = False
    enough: Callable[[Dose], float] | None = None
    kept: Path | None = None

    def deciding(self, enough: Callable[[Dose], float], kept: Path | None) -> MonteCarlo:
        """The engine that ends when the dose is `enough` and otherwise leaves what it has in `kept`."""
        return replace(self, enough=enough, kept=kept)

    def __call__(
        self, plan: Plan, case: Case, grid: Grid | None = None, progress: Progress | None = None
    ) -> Dose:
        """Dose in Gy of the whole course on `grid` (3 mm over the body where none is given).

        Raises PlanError for a plan that misses the body.
        """
        if not 0.001 <= self.uncertainty <= 0.2:
            raise InputError(f"uncertainty {self.uncertainty:g} is outside 0.001 to 0.2; 0.02 is usual")
        require_isocenter_near_body(plan, case)
        beam = self.machine.require_beam()
        where = grid or dose_grid(case)
        exposed = exposures(plan, self.machine, max_step_deg=0.5, max_travel_mm=5.0)
        openings = plan_openings(exposed, self.machine, plan.patient_position)
        phantom = phantom_of(case, where)
        source = photon_source(openings, beam, plan.isocenter_mm, self.machine.sad_mm)
        gy_per_gy = beam.photons_cm2_mu * plan.fractions
        looked: list[Dose] = []

        def look(found: Estimate) -> float:
            looked[:] = [self._dose(found, where, gy_per_gy)]
            return self.enough(looked[0]) if self.enough else 0.0

        key, begun = "", None
        if self.kept is not None:
            code = sources_digest(Path(engine.__file__), Path(__file__).parents[3])
            arrays = (phantom.x_mm, phantom.y_mm, phantom.z_mm, phantom.density_g_cm3, phantom.medium)
            key = run_key(arrays, tuple(source), self.seed, self.to_water, SPLIT, code)
            begun = read_tallies(self.kept, key)
        with ctrl_c_noted() if self.kept else nullcontext() as interrupted:
            ends = Ends(
                self.uncertainty,
                self.max_seconds,
                look=look if self.enough else None,
                interrupted=interrupted,
            )
            found = simulate(
                phantom,
                source,
                ends=ends,
                seed=self.seed,
                to_water=self.to_water,
                begun=begun,
                progress=progress,
            )
        if self.kept is not None and not found.decided:
            write_tallies(self.kept, found.tallies, key)
        elif self.kept is not None:
            self.kept.unlink(missing_ok=True)
        # The dose that was looked at last, so that what was found of it need not be found again.
        if looked and looked[0].provenance["histories"] == found.histories:
            return looked[0]
        return self._dose(found, where, gy_per_gy)

    def _dose(self, found: Estimate, grid: Grid, gy_per_gy: float) -> Dose:
        """The dose of the course; `gy_per_gy` is that to a source of one photon per cm2."""
        scale = np.float32(gy_per_gy)
        replicates = found.replicates_gy()
        replicates *= scale
        return Dose(
            grid,
            found.gy * scale,
            std_gy=found.sigma_gy * scale,
            medium="water" if self.to_water else "medium",
            provenance={
                "engine": "monte-carlo",
                "version": __version__,
                "machine": self.machine.name,
                "seed": self.seed,
                "uncertainty": round(found.uncertainty, 5),
                "histories": found.histories,
                "photons_traced": found.photons,
                "seconds": round(found.seconds, 1),
            },
            replicates_gy=replicates,
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
