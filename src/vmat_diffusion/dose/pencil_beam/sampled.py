"""Dose at chosen points as a linear map of the convolved fluence, with its transpose for gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.dose.delivery import Exposures
from vmat_diffusion.dose.pencil_beam.beam_tables import tables
from vmat_diffusion.dose.pencil_beam.fluence import FluenceModel, JawParts, convolved_fluence, jaw_parts
from vmat_diffusion.dose.pencil_beam.loops import tabulate
from vmat_diffusion.dose.pencil_beam.products import loops_for
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
        _, gather_each, _ = loops_for(weight.shape[2])
        gather_each(field.numpy(), u, v, weight, out.numpy())
        return out


def sampled_doses(
    machine: Machine,
    density: Density,
    points_mm: NDArray,
    exposed: Exposures,
    models: Sequence[FluenceModel],
    *,
    isocenter_mm: Point,
    patient_position: str = "HFS",
    dtype: type[np.floating] = np.float32,
    progress: Progress | None = None,
) -> tuple[SampledDose, ...]:
    """Trace all beam directions of `exposed` to the points and tabulate the map of each model.

    Of `exposed` the angles count, not the leaves. The models are for the same jaws, each with kernels of its
    own; the dose is the sum over them. `dtype` is that of the tables; float64 is for tests.
    """
    table = tables(machine.require_beam(), models[0].reach_mm)
    n, m = len(exposed.gantry_deg), len(points_mm)
    relative = (np.asarray(points_mm) - np.asarray(isocenter_mm)).astype(np.float32)
    medium = table.medium[medium_at(density, points_mm)]
    maps = [
        (np.empty((n, m), dtype), np.empty((n, m), dtype), np.empty((n, m, len(model.sigma_mm)), dtype))
        for model in models
    ]
    for members, axes, rays in trace_directions(
        density, exposed, isocenter_mm, table.sad_mm, patient_position, progress=progress
    ):
        angle = np.deg2rad(exposed.collimator_deg[members])
        beam = (relative, medium, axes, rays, table, (np.cos(angle), np.sin(angle)))
        for model, (index_u, index_v, weight) in zip(models, maps, strict=True):
            nodes = (model.u.lookup, model.v.lookup)
            tabulate(*beam, *nodes, members, index_u, index_v, model.kernels.start, weight)
    return tuple(SampledDose(*(torch.from_numpy(part) for part in parts)) for parts in maps)


@dataclass(frozen=True, eq=False)
class ApertureDose:
    """Dose of apertures at chosen points, for the jaws that were given; differentiable in leaves and MU.

    The parts of `split_models` with the map of each; the doses of the parts add up.
    """

    models: tuple[FluenceModel, ...]
    maps: tuple[SampledDose, ...]
    jaws_mm: Tensor
    jaws: tuple[JawParts, ...]

    @classmethod
    def between(
        cls, jaws_mm: Tensor, models: tuple[FluenceModel, ...], maps: tuple[SampledDose, ...]
    ) -> ApertureDose:
        """For jaws `[exposures, start|end, x1|x2|y1|y2]` in mm."""
        return cls(models, maps, jaws_mm, tuple(jaw_parts(model, jaws_mm) for model in models))

    def with_jaws(self, jaws_mm: Tensor) -> ApertureDose:
        """The same with other jaws."""
        return ApertureDose.between(jaws_mm, self.models, self.maps)

    def dose(self, leaves_mm: Tensor, mu: Tensor) -> Tensor:
        """Dose in units of `gy_per_mu`, `[points]`, of `leaves_mm[exposures, start|end, bank, row]`."""
        doses = [map_.dose(field) for map_, field in zip(self.maps, self._fields(leaves_mm, mu), strict=True)]
        return torch.stack(doses).sum(0)

    def by_exposure(self, leaves_mm: Tensor, mu: Tensor) -> Tensor:
        """The same, kept apart for each exposure: `[points, exposures]`, without gradient."""
        with torch.no_grad():
            fields = self._fields(leaves_mm, mu)
            return sum(  # type: ignore[return-value]
                map_.by_exposure(field) for map_, field in zip(self.maps, fields, strict=True)
            )

    def _fields(self, leaves_mm: Tensor, mu: Tensor) -> list[Tensor]:
        jaws_mm = self.jaws_mm.to(leaves_mm.dtype)
        return [
            convolved_fluence(model, leaves_mm, jaws_mm, mu, parts)
            for model, parts in zip(self.models, self.jaws, strict=True)
        ]


class _Gather(torch.autograd.Function):
    """Dose at points from node fields and its transpose, both in compiled loops."""

    @staticmethod
    def forward(ctx, field, sampled):  # type: ignore[no-untyped-def]
        ctx.sampled, ctx.shape = sampled, field.shape
        out = torch.zeros(sampled.index_u.shape[1], dtype=field.dtype)
        u, v, weight = sampled.arrays
        gather, _, _ = loops_for(weight.shape[2])
        gather(field.detach().numpy(), u, v, weight, out.numpy())
        return out

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        out = torch.zeros(ctx.shape, dtype=gradient.dtype)
        u, v, weight = ctx.sampled.arrays
        _, _, scatter = loops_for(weight.shape[2])
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
