"""From leaves, jaws and MU to fluence, already convolved with the beam's Gaussian kernels.

A leaf row is open between two edges, so its convolution with a Gaussian is a difference of error
functions: exact at any leaf position, smooth, and differentiable without a pixel grid. An edge
that moves at constant speed during a segment is averaged over the segment in closed form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan

# Beyond the jaws the field is smooth: nodes thin out at these distances in mm.
_OUTSIDE_MM = np.array([4.0, 8, 13, 20, 29, 40, 55, 75, 100, 135, 180, 240])
_LUT_MM = 0.5


@dataclass(frozen=True, eq=False)
class Nodes:
    """Nodes along one axis of the isocentre plane: dense between the jaws, thinning outside.

    `lut` holds the fractional node index every 0.5 mm from `lut_low`; linear between entries.
    """

    position_mm: NDArray[np.float64]
    lut: NDArray[np.float32]
    lut_low_mm: float
    step_mm: float


def nodes(low_mm: float, high_mm: float, step_mm: float) -> Nodes:
    """Nodes that cover [low, high] every `step_mm` and reach 24 cm beyond."""
    count = max(math.ceil((high_mm - low_mm) / step_mm), 1)
    inner = low_mm + step_mm * np.arange(count + 1)
    position = np.concatenate([inner[0] - _OUTSIDE_MM[::-1], inner, inner[-1] + _OUTSIDE_MM])
    grid = np.arange(position[0], position[-1] + _LUT_MM, _LUT_MM)
    index = np.interp(grid, position, np.arange(len(position)))
    return Nodes(position, index.astype(np.float32), float(position[0]), step_mm)


@dataclass(frozen=True, eq=False)
class Exposures:
    """A plan cut into n short exposures at fixed gantry angles; what the dose engine delivers.

    `leaves_mm[n, 2, 2, strips]`: start and end of the exposure, bank, strips of `row_edges_mm` with
    the layers of the collimator merged. `jaws_mm[n, 2, 4]`, `mu[n]` per fraction. Angles in degrees.
    """

    gantry_deg: NDArray[np.float64]
    collimator_deg: NDArray[np.float64]
    couch_deg: NDArray[np.float64]
    leaves_mm: NDArray[np.float64]
    jaws_mm: NDArray[np.float64]
    mu: NDArray[np.float64]


def exposures(plan: Plan, machine: Machine, max_step_deg: float = 2.2, max_travel_mm: float = 12.0) -> Exposures:
    """Cut every segment so that the gantry turns at most `max_step_deg` and leaves move `max_travel_mm`.

    Within a segment gantry, leaves and jaws move linearly in meterset, as DICOM defines; each
    exposure stands at the middle of its gantry interval. Segments without MU are left out.
    """
    pairs = machine.row_pairs()
    parts: list[tuple[NDArray, ...]] = []
    for arc in plan.arcs:
        strips = _strip_positions(arc.leaves_mm, pairs)
        for k in np.flatnonzero(arc.mu > 0):
            turn = abs(arc.gantry_deg[k + 1] - arc.gantry_deg[k])
            travel = np.abs(strips[k + 1] - strips[k]).max()
            cuts = max(math.ceil(turn / max_step_deg), math.ceil(travel / max_travel_mm), 1)
            t = np.linspace(0.0, 1.0, cuts + 1)
            t0, t1 = t[:-1, None, None], t[1:, None, None]
            leaf, jaw = strips[k : k + 2], arc.jaws_mm[k : k + 2]
            between = np.stack([leaf[0] + (leaf[1] - leaf[0]) * t0, leaf[0] + (leaf[1] - leaf[0]) * t1], axis=1)
            jaws = np.stack([jaw[0] + (jaw[1] - jaw[0]) * t0[:, 0], jaw[0] + (jaw[1] - jaw[0]) * t1[:, 0]], axis=1)
            middle = arc.gantry_deg[k] + (arc.gantry_deg[k + 1] - arc.gantry_deg[k]) * (t[1:] + t[:-1]) / 2
            same = np.ones(cuts)
            parts.append(
                (middle, same * arc.collimator_deg, same * arc.couch_deg, between, jaws, same * arc.mu[k] / cuts)
            )
    return Exposures(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _strip_positions(leaves_mm: NDArray, pairs: NDArray) -> NDArray[np.float64]:
    """Leaf positions of the layers merged into strips: the narrowest opening of all layers counts."""
    n = leaves_mm.shape[0]
    out = np.empty((n, 2, len(pairs)))
    out[:, 0], out[:, 1] = -np.inf, np.inf
    for layer in range(pairs.shape[1]):
        has = pairs[:, layer] >= 0
        index = pairs[has, layer]
        out[:, 0, has] = np.maximum(out[:, 0, has], leaves_mm[:, 0, index])
        out[:, 1, has] = np.minimum(out[:, 1, has], leaves_mm[:, 1, index])
    shut = out[:, 1] < out[:, 0]
    middle = (out[:, 0] + out[:, 1]) / 2
    out[:, 0] = np.where(shut, middle, out[:, 0])
    out[:, 1] = np.where(shut, middle, out[:, 1])
    return out


@dataclass(frozen=True, eq=False)
class FluenceModel:
    """What turns apertures of one machine into convolved fluence on fixed nodes.

    Only the `strips` that the jaw box touches are kept. Interpolating between nodes blurs like a Gaussian of variance h^2/6 (triangle of half width h),
    so the kernels are narrowed by as much before sampling.
    """

    strips: slice
    row_edges_mm: Tensor
    sigma_u_mm: Tensor
    sigma_v_mm: Tensor
    u: Nodes
    v: Nodes
    transmission: float
    gap_offset_mm: float

    @property
    def device(self) -> torch.device:
        """Where the tensors live."""
        return self.sigma_u_mm.device


def fluence_model(
    machine: Machine,
    jaws_low_high_mm: tuple[float, float, float, float],
    step_mm: float,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FluenceModel:
    """The fluence model of a machine for fields inside a jaw box (x1, x2, y1, y2) in mm."""
    beam = machine.require_beam()
    x1, x2, y1, y2 = jaws_low_high_mm
    sigma = np.asarray(beam.kernel_sigma_mm)
    narrowed = np.sqrt(np.maximum(sigma**2 - step_mm**2 / 6, (0.3 * sigma) ** 2))
    tensor = torch.as_tensor(narrowed, dtype=dtype, device=device)
    margin = 2 * step_mm
    edges = machine.row_edges_mm()
    first = int(np.clip(np.searchsorted(edges, y1 + 1e-6, "right") - 1, 0, len(edges) - 2))
    last = int(np.clip(np.searchsorted(edges, y2 - 1e-6, "left"), first + 1, len(edges) - 1))
    return FluenceModel(
        strips=slice(first, last),
        row_edges_mm=torch.as_tensor(edges[first : last + 1], dtype=dtype, device=device),
        sigma_u_mm=tensor,
        sigma_v_mm=tensor,
        u=nodes(x1 - margin, x2 + margin, step_mm),
        v=nodes(y1 - margin, y2 + margin, step_mm),
        transmission=machine.mlc.transmission,
        gap_offset_mm=machine.mlc.gap_offset_mm,
    )


def _mean_step(start: Tensor, end: Tensor, at: Tensor, sigma: Tensor) -> Tensor:
    """Share of fluence right of an edge that moves from start to end, blurred by sigma, at nodes.

    `start`, `end` broadcast against `at`; the result is mean over the motion of
    `Phi((at - edge) / sigma)`, by the antiderivative of Phi; a resting edge takes Phi itself.
    """
    root = sigma * math.sqrt(2.0)
    a, b = (at - start) / root, (at - end) / root
    moved = a - b
    slow = moved.abs() < 0.15
    safe = torch.where(slow, torch.ones_like(moved), moved)

    def integral(x: Tensor) -> Tensor:
        return x * torch.erf(x) + torch.exp(-x * x) / math.sqrt(math.pi)

    middle = (a + b) / 2
    # Second order in the motion: the mean of erf over +-m/2 is erf - x m^2 exp(-x^2) / (6 sqrt(pi)).
    resting = torch.erf(middle) - middle * torch.exp(-middle * middle) * moved**2 / (6 * math.sqrt(math.pi))
    return 0.5 + 0.5 * torch.where(slow, resting, (integral(a) - integral(b)) / safe)


def convolved_fluence(model: FluenceModel, leaves_mm: Tensor, jaws_mm: Tensor, mu: Tensor) -> Tensor:
    """Fluence times MU, convolved with each kernel, at the nodes: shape (n, v, u, kernels).

    `leaves_mm[n, 2, 2, strips]` and `jaws_mm[n, 2, 4]` hold start and end of each exposure. Open
    areas count 1, leaves inside the jaws the transmission, everything behind a jaw 0. Differentiable
    in all three arguments.
    """
    leaves_mm = leaves_mm[..., model.strips]
    kw = {"dtype": leaves_mm.dtype, "device": leaves_mm.device}
    at_u = torch.as_tensor(model.u.position_mm, **kw)
    at_v = torch.as_tensor(model.v.position_mm, **kw)
    sigma_u = model.sigma_u_mm[:, None, None, None]
    x1, x2 = jaws_mm[:, :, 0, None], jaws_mm[:, :, 1, None]
    shift = model.gap_offset_mm / 2
    left = torch.minimum(torch.maximum(leaves_mm[:, :, 0] - shift, x1), x2)[None, ..., None]
    right = torch.minimum(torch.maximum(leaves_mm[:, :, 1] + shift, x1), x2)[None, ..., None]
    opening = _mean_step(left[:, :, 0], left[:, :, 1], at_u, sigma_u) - _mean_step(
        right[:, :, 0], right[:, :, 1], at_u, sigma_u
    )
    jaw = jaws_mm[None, :, :, :, None, None]
    between = _mean_step(jaw[:, :, 0, 0], jaw[:, :, 1, 0], at_u, sigma_u) - _mean_step(
        jaw[:, :, 0, 1], jaw[:, :, 1, 1], at_u, sigma_u
    )
    rows = (1 - model.transmission) * opening + model.transmission * between
    y1, y2 = jaws_mm[:, :, 2].mean(1)[:, None], jaws_mm[:, :, 3].mean(1)[:, None]
    edges = model.row_edges_mm[None, :].expand(len(mu), -1)
    # The outermost strips stand for everything up to the jaw beyond the last leaf: closed there.
    clipped = torch.minimum(torch.maximum(edges, y1), y2)
    z = (at_v[None, None, :, None] - clipped[None, :, None, :]) / (
        model.sigma_v_mm[:, None, None, None] * math.sqrt(2.0)
    )
    step = 0.5 * torch.erf(z)
    columns = step[..., :-1] - step[..., 1:]
    field = torch.matmul(columns, rows)
    return (field * mu[None, :, None, None]).permute(1, 2, 3, 0).contiguous()
