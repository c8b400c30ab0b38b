"""Dose at chosen points as a linear map of the convolved fluence, with its transpose for gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.dose.delivery import Exposures
from vmat_diffusion.dose.pencil_beam.beam_tables import tables
from vmat_diffusion.dose.pencil_beam.fluence import FluenceModel
from vmat_diffusion.dose.pencil_beam.loops import tabulate
from vmat_diffusion.dose.pencil_beam.products import gather, gather_each, scatter
from vmat_diffusion.dose.pencil_beam.rays import trace_directions
from vmat_diffusion.dose.tissue import Density, medium_at
from vmat_diffusion.geometry import Point
from vmat_diffusion.machine import Machine
from vmat_diffusion.progress import Progress


@dataclass(frozen=True, eq=False)
class SampledDose:
    """The linear map from convolved fluence to dose at chosen points, as a compressed influence matrix.

    For each exposure and point: the fractional node index along u and v (-1 outside) and the weight
    of each kernel, 8 + 4 kernels bytes in float32. Exact: nothing is cut off, nothing is re-sampled.
    """

    index_u: Tensor
    index_v: Tensor
    weight: Tensor

    def to(self, device: torch.device | str) -> SampledDose:
        """The map on another device, for fields on that device."""
        return SampledDose(*(part.to(device) for part in (self.index_u, self.index_v, self.weight)))

    @property
    def arrays(self) -> tuple[NDArray, NDArray, NDArray]:
        """The three tables as the compiled loops read them."""
        return self.index_u.numpy(), self.index_v.numpy(), self.weight.numpy()

    def dose(self, field: Tensor) -> Tensor:
        """Dose in units of `gy_per_mu` at the points, shape (points,), from `convolved_fluence`.

        Of the field's precision. Compiled loops on the CPU, torch operations on any other device.
        """
        return _Gather.apply(field, self) if field.is_cpu else gathered_in_torch(field, self).sum(0)

    def by_exposure(self, field: Tensor) -> Tensor:
        """The same, kept apart for each exposure: shape (points, exposures), without gradient."""
        field = field.detach()
        if not field.is_cpu:
            return gathered_in_torch(field, self).T
        out = torch.zeros(self.index_u.shape[::-1], dtype=field.dtype)
        u, v, weight = self.arrays
        gather_each(field.numpy(), u, v, weight, out.numpy())
        return out


def sampled_dose(
    machine: Machine,
    density: Density,
    points_mm: NDArray,
    exposed: Exposures,
    model: FluenceModel,
    *,
    isocenter_mm: Point,
    patient_position: str = "HFS",
    dtype: type[np.floating] = np.float32,
    progress: Progress | None = None,
) -> SampledDose:
    """Trace all beam directions of `exposed` to the points and tabulate the map; angles count, not leaves.

    `dtype` is that of the tables; float64 is for tests.
    """
    table = tables(machine.require_beam(), model.reach_mm)
    n, m, kernels = len(exposed.gantry_deg), len(points_mm), len(model.sigma_mm)
    relative = (np.asarray(points_mm) - np.asarray(isocenter_mm)).astype(np.float32)
    medium = table.medium[medium_at(density, points_mm)]
    index_u, index_v = np.empty((n, m), dtype), np.empty((n, m), dtype)
    weight = np.empty((n, m, kernels), dtype)
    for members, axes, rays in trace_directions(
        density, exposed, isocenter_mm, table.sad_mm, patient_position, progress=progress
    ):
        angle = np.deg2rad(exposed.collimator_deg[members])
        turn = (np.cos(angle), np.sin(angle))
        at_u, at_v = model.u.lookup, model.v.lookup
        tabulate(relative, medium, axes, rays, table, turn, at_u, at_v, members, index_u, index_v, weight)
    return SampledDose(*(torch.from_numpy(part) for part in (index_u, index_v, weight)))


class _Gather(torch.autograd.Function):
    """Dose at points from node fields and its transpose, both in compiled loops."""

    @staticmethod
    def forward(ctx, field, sampled):  # type: ignore[no-untyped-def]
        ctx.sampled, ctx.shape = sampled, field.shape
        out = torch.zeros(sampled.index_u.shape[1], dtype=field.dtype)
        u, v, weight = sampled.arrays
        gather(field.detach().numpy(), u, v, weight, out.numpy())
        return out

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        out = torch.zeros(ctx.shape, dtype=gradient.dtype)
        u, v, weight = ctx.sampled.arrays
        scatter(gradient.contiguous().numpy(), u, v, weight, out.numpy())
        return out, None


def gathered_in_torch(field: Tensor, sampled: SampledDose) -> Tensor:
    """Dose of each exposure at each point in plain torch operations, on any device: (exposures, points).

    Differentiable in the field; memory of a few times the map.
    """
    n, rows, columns, kernels = field.shape
    u, v = sampled.index_u.clamp_min(0), sampled.index_v.clamp_min(0)
    iu, iv = u.long().clamp_max(columns - 2), v.long().clamp_max(rows - 2)
    tu, tv = (u - iu)[..., None], (v - iv)[..., None]
    node = (torch.arange(n, device=field.device)[:, None] * rows + iv) * columns + iu
    flat = field.reshape(-1, kernels)

    def corner(offset: int) -> Tensor:
        return flat.index_select(0, (node + offset).ravel()).view(*node.shape, kernels)

    near = (1 - tu) * corner(0) + tu * corner(1)
    far = (1 - tu) * corner(columns) + tu * corner(columns + 1)
    each = (sampled.weight * ((1 - tv) * near + tv * far)).sum(-1)
    return torch.where(sampled.index_u < 0, 0.0, each).to(field.dtype)
