"""MU scaled until the goal sheet's normalisation holds on the full dose of the plan as it is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.delivery import exposures
from vmat_diffusion.dose.pencil_beam import PencilBeam
from vmat_diffusion.dose.pencil_beam.engine import point_dose
from vmat_diffusion.dose.tissue import Density, medium_at
from vmat_diffusion.errors import PlanError
from vmat_diffusion.evaluate.goals import GoalSheet, normalization_gy
from vmat_diffusion.geometry import Grid, sample_dose
from vmat_diffusion.machine import Limits, Machine
from vmat_diffusion.plan import Arc, Plan
from vmat_diffusion.progress import Progress

# Rounds of scaling where segments at their least MU do not scale with the others.
_ROUNDS = 4

# Least MU stay this much above the machine's, so that rounding for a file does not break it.
_MU_MARGIN = 1.005


def normalized(
    plan: Plan,
    dose_of: Callable[[Plan], Dose],
    case: Case,
    sheet: GoalSheet,
    limits: Limits,
    *,
    finalize: Callable[[Plan], Plan],
) -> tuple[Plan, Dose]:
    """The plan whose dose meets the sheet's normalisation, as `finalize` leaves it, and that dose.

    No segment falls below the machine's least MU. `dose_of` is asked again only where the dose does not
    simply scale. Raises PlanError for a plan that no MU can normalise, GoalError for a normalisation that is
    neither a mean nor a D%.
    """
    normalization = sheet.normalization
    dose = dose_of(plan)
    total = 1.0
    for _ in range(_ROUNDS):
        value = normalization_gy(dose, case, sheet)
        if not value > 0:
            raise PlanError(
                f"{normalization.structure} {normalization.metric} is {value:.2f} Gy where "
                f"{normalization.gy:g} Gy is asked, so no MU can normalise it; look whether the target lies "
                "in the body, or give more minutes"
            )
        factor = normalization.gy / value
        total *= factor
        final = finalize(
            replace(
                plan,
                arcs=tuple(replace(arc, mu=_scaled_mu(arc, factor, limits)) for arc in plan.arcs),
                provenance={"normalization": str(normalization), "normalization_factor": round(total, 5)},
            )
        )
        if _proportional(plan, final, factor):
            return final, replace(dose, gy=dose.gy * np.float32(final.total_mu / plan.total_mu))
        # Segments at their least MU do not scale: the dose must be computed anew and looked at again.
        plan, dose = final, dose_of(final)
    return plan, dose


def _scaled_mu(arc: Arc, factor: float, limits: Limits) -> NDArray[np.float64]:
    low = limits.mu_per_deg_min * _MU_MARGIN
    return np.maximum(arc.mu * factor, low * np.abs(np.diff(arc.gantry_deg)))


def _proportional(plan: Plan, scaled: Plan, factor: float) -> bool:
    """Whether every segment's MU are `factor` times what they were, so that the dose simply scales."""
    return all(
        np.allclose(b.mu, a.mu * factor, rtol=1e-4, atol=1e-5)
        for a, b in zip(plan.arcs, scaled.arcs, strict=True)
    )


@dataclass(frozen=True)
class FullDose:
    """The fast engine for one case; `difference`, in Gy, is added to every dose where there is one."""

    machine: Machine
    case: Case
    difference: Dose | None

    def __call__(self, plan: Plan, grid: Grid, progress: Progress | None = None) -> Dose:
        """The dose of a plan on a grid."""
        dose = PencilBeam(self.machine)(plan, self.case, grid, progress=progress)
        if self.difference is None:
            return dose
        gy = np.maximum(dose.gy + self.difference.on(dose.grid), 0).astype(np.float32)
        return replace(dose, gy=gy, provenance={**dose.provenance, "difference_added": True})

    def at_points(
        self, plan: Plan, density: Density, points_mm: NDArray, progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """The dose of the course in Gy at points `[n, 3]` themselves, for half the time of a whole grid.

        The percentiles of structures differ from those read off a grid of 3 mm by up to 0.3 % of the
        prescription.
        """
        gy = plan.fractions * point_dose(
            self.machine,
            exposures(plan, self.machine),
            density,
            points_mm,
            plan.isocenter_mm,
            medium=medium_at(density, points_mm),
            patient_position=plan.patient_position,
            progress=progress,
        )
        return gy + self.difference_at(points_mm, 1.0).numpy()

    def difference_at(self, points_mm: NDArray, reference_gy: float) -> torch.Tensor:
        """The difference at points `[n, 3]`, in units of `reference_gy`; 0 where none is known."""
        if self.difference is None:
            return torch.zeros(len(points_mm))
        gy = sample_dose(self.difference.gy, self.difference.grid, points_mm)
        return torch.as_tensor(gy / reference_gy).float()
