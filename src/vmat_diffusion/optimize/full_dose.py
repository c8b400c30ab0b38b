"""The dose of a plan on its grid, with what a better engine is known to find added to it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.pencil_beam import PencilBeam
from vmat_diffusion.dose.rays import Progress
from vmat_diffusion.geometry import Grid, sample
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan


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

    def difference_at(self, points_mm: NDArray, reference_gy: float) -> torch.Tensor:
        """The difference at points `[n, 3]`, in units of `reference_gy`; 0 where none is known."""
        if self.difference is None:
            return torch.zeros(len(points_mm))
        gy = sample(self.difference.gy, self.difference.grid, points_mm)
        return torch.as_tensor(gy / reference_gy).float()
