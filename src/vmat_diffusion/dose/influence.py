"""Dose at chosen points as a linear map of the convolved fluence, with its transpose for gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.dose import loops
from vmat_diffusion.dose.beam_tables import tables
from vmat_diffusion.dose.fluence import Exposures, FluenceModel
from vmat_diffusion.dose.rays import Density, Progress, medium_at, trace_directions
from vmat_diffusion.geometry import Point
from vmat_diffusion.machine import Machine


@dataclass(frozen=True, eq=False)
class SampledDose:
    """The linear map from convolved fluence to dose at chosen points, as a compressed influence matrix.

    For each exposure and point: the fractional node index along u and v (-1 outside) and the weight
    of each kernel, 8 + 4 kernels bytes. Exact: nothing is cut off, nothing is re-sampled.
    """

    index_u: NDArray[np.float32]
    index_v: NDArray[np.float32]
    weight: NDArray[np.float32]

    def dose(self, field: Tensor) -> Tensor:
        """Dose in units of `gy_per_mu` at the points, shape (points,), from `convolved_fluence`."""
        return _Gather.apply(field, self)

    def by_exposure(self, field: Tensor) -> NDArray[np.float32]:
        """The same, kept apart for each exposure: shape (points, exposures)."""
        out = np.zeros((self.index_u.shape[1], self.index_u.shape[0]), np.float32)
        loops.gather_each(field.detach().numpy(), self.index_u, self.index_v, self.weight, out)
        return out


def sampled_dose(
    machine: Machine,
    density: Density,
    points_mm: NDArray,
    exposed: Exposures,
    model: FluenceModel,
    isocenter_mm: Point,
    patient_position: str = "HFS",
    progress: Progress | None = None,
) -> SampledDose:
    """Trace all beam directions of `exposed` to the points and tabulate the map; angles count, not leaves."""
    table = tables(machine.require_beam(), model.reach_mm)
    n, m, kernels = len(exposed.gantry_deg), len(points_mm), len(model.sigma_mm)
    relative = (np.asarray(points_mm) - np.asarray(isocenter_mm)).astype(np.float32)
    medium = table.medium[medium_at(density, points_mm)]
    index_u, index_v = np.empty((n, m), np.float32), np.empty((n, m), np.float32)
    weight = np.empty((n, m, kernels), np.float32)
    for members, axes, rays in trace_directions(
        density, exposed, isocenter_mm, table.sad_mm, patient_position, progress
    ):
        angle = np.deg2rad(exposed.collimator_deg[members])
        turn = (np.cos(angle), np.sin(angle))
        at_u, at_v = model.u.lookup, model.v.lookup
        loops.tabulate(
            relative, medium, axes, rays, table, turn, at_u, at_v, members, index_u, index_v, weight
        )
    return SampledDose(index_u, index_v, weight)


class _Gather(torch.autograd.Function):
    """Dose at points from node fields and its transpose, both in compiled loops."""

    @staticmethod
    def forward(ctx, field, sampled):  # type: ignore[no-untyped-def]
        ctx.sampled, ctx.shape = sampled, field.shape
        out = np.zeros(sampled.index_u.shape[1], np.float32)
        loops.gather(field.detach().numpy(), sampled.index_u, sampled.index_v, sampled.weight, out)
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        sampled = ctx.sampled
        out = np.zeros(ctx.shape, np.float32)
        loops.scatter(gradient.contiguous().numpy(), sampled.index_u, sampled.index_v, sampled.weight, out)
        return torch.from_numpy(out), None
