"""From leaves, jaws and MU to fluence, already convolved with the beam's Gaussian kernels.

A leaf row is open between two edges, so its convolution with a Gaussian is a difference of error
functions: exact at any leaf position, smooth, and differentiable without a pixel grid. An edge
that moves at constant speed during a segment is averaged over the segment in closed form. Where neighbour
leaves disagree, the tongue of one shades the opening of the other: a strip at their boundary, of which only
the intersection of both openings is open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.dose.pencil_beam.beam_tables import kernel_sigma_mm
from vmat_diffusion.dose.pencil_beam.loops import LUT_PER_MM
from vmat_diffusion.dose.pencil_beam.openings import opening
from vmat_diffusion.dose.pencil_beam.strips import strips_times_mu
from vmat_diffusion.machine import Machine, Mlc

# Nodes stay dense for this far beyond the jaws, where the narrowest kernel falls off, then thin out at
# these distances: the dose outside a jaw is within 0.5 % of the maximum.
_PENUMBRA_MM = 6.0
_OUTSIDE_MM = np.array([2.0, 4.5, 8, 13, 20, 29, 40, 55, 75, 100, 135, 180, 240])
# In units of its width, a kernel has fallen to nothing so far from where it is open.
_FALL_OFF = 5.0
# Kernels from this width on are wide, and need nodes at this share of the width of the least of them: linear
# between these, their fluence is off by 0.5 % at an edge, for a tenth of the dose.
_WIDE_MM, _NODES_PER_WIDTH = 15.0, 0.4
_REACH_STEP_MM = 5.0  # so that tables are shared by fields of nearly the same size


@dataclass(frozen=True, eq=False)
class Nodes:
    """Nodes along one axis of the isocentre plane: dense between the jaws, thinning outside.

    `lookup` is the fractional node index every 0.5 mm and the position in mm of its first entry.
    """

    position_mm: NDArray[np.float64]
    lookup: tuple[NDArray[np.float32], float]
    step_mm: float


def nodes(low_mm: float, high_mm: float, step_mm: float, beyond_mm: float = math.inf) -> Nodes:
    """Nodes that cover [low, high] every `step_mm` and reach `beyond_mm` beyond, 24 cm at the most."""
    count = max(math.ceil((high_mm - low_mm) / step_mm), 1)
    inner = low_mm + step_mm * np.arange(count + 1)
    outside = _OUTSIDE_MM[: int(np.searchsorted(_OUTSIDE_MM, beyond_mm)) + 1]
    outside = outside[outside >= min(step_mm, outside[-1])]
    position = np.concatenate([inner[0] - outside[::-1], inner, inner[-1] + outside])
    step = 1.0 / LUT_PER_MM
    grid = np.arange(position[0], position[-1] + step, step)
    index = np.interp(grid, position, np.arange(len(position)))
    return Nodes(position, (index.astype(np.float32), float(position[0])), step_mm)


@dataclass(frozen=True, eq=False)
class FluenceModel:
    """What turns apertures of one machine into convolved fluence on fixed nodes.

    It holds the beam's `kernels`, all or neighbouring ones of them, of widths `sigma_mm`. Only the leaf
    `rows` that the jaw box touches, with their tongues, are kept; `reach_mm` is half the width of the box.
    Interpolating between nodes blurs like a Gaussian of variance h^2/6 (triangle of half width h), so the
    kernels are narrowed by as much before sampling.
    """

    rows: slice
    row_edges_mm: NDArray[np.float64]
    kernels: slice
    sigma_mm: NDArray[np.float64]
    u: Nodes
    v: Nodes
    mlc: Mlc
    reach_mm: float

    @property
    def across(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Node positions and kernel widths along the leaves."""
        return self.u.position_mm, self.sigma_mm


def reach_mm(box_mm: tuple[float, float, float, float]) -> float:
    """Half the width of the square as large as a box (x1, x2, y1, y2), to 5 mm; `tables` are made for it."""
    x1, x2, y1, y2 = box_mm
    return _REACH_STEP_MM * max(round(math.sqrt((x2 - x1) * (y2 - y1)) / 2 / _REACH_STEP_MM), 1)


def fluence_model(
    machine: Machine,
    jaws_low_high_mm: tuple[float, float, float, float],
    step_mm: float,
    kernels: slice | None = None,
) -> FluenceModel:
    """The fluence model of a machine for fields inside a jaw box (x1, x2, y1, y2) in mm.

    Of the beam's `kernels`, in order of their width; all of them where none are named.
    """
    x1, x2, y1, y2 = jaws_low_high_mm
    sigma = kernel_sigma_mm(machine.require_beam())
    kernels = slice(*(kernels or slice(None)).indices(len(sigma)))
    sigma = sigma[kernels]
    beyond = _FALL_OFF * float(sigma.max())
    margin = max(2 * step_mm, _PENUMBRA_MM)
    edges = machine.row_edges_mm()
    # A row behind the jaw shades the one before it where its tongue reaches past the jaw.
    overlap = machine.mlc.tongue_mm / 2
    first = int(np.clip(np.searchsorted(edges, y1 - overlap + 1e-6, "right") - 1, 0, len(edges) - 2))
    last = int(np.clip(np.searchsorted(edges, y2 + overlap - 1e-6, "left"), first + 1, len(edges) - 1))
    return FluenceModel(
        rows=slice(first, last),
        row_edges_mm=edges[first : last + 1],
        kernels=kernels,
        sigma_mm=np.sqrt(np.maximum(sigma**2 - step_mm**2 / 6, (0.3 * sigma) ** 2)),
        u=nodes(x1 - margin, x2 + margin, step_mm, beyond),
        v=nodes(y1 - margin, y2 + margin, step_mm, beyond),
        mlc=machine.mlc,
        reach_mm=reach_mm(jaws_low_high_mm),
    )


def split_models(
    machine: Machine, jaws_low_high_mm: tuple[float, float, float, float], step_mm: float
) -> tuple[FluenceModel, ...]:
    """The fluence model in two parts, whose doses add up: wide kernels need nodes only every so often.

    Narrow kernels on nodes every `step_mm`, those above 15 mm on nodes of 0.4 of their least width.
    """
    sigma = kernel_sigma_mm(machine.require_beam())
    narrow = int(np.count_nonzero(sigma < _WIDE_MM))
    parts = [(slice(0, narrow), step_mm)]
    if narrow < len(sigma):
        parts.append((slice(narrow, None), max(_NODES_PER_WIDTH * float(sigma[narrow]), step_mm)))
    return tuple(fluence_model(machine, jaws_low_high_mm, step, part) for part, step in parts)


@dataclass(frozen=True, eq=False)
class JawParts:
    """What the jaws alone decide, for n exposures: worth keeping while only leaves and MU change.

    `leaked[n, kernels, rows, u]` is the fluence through the leaves between the X jaws;
    `shares[n, kernels, v, strips]` how much of each strip, cut by the Y jaws, reaches each node: the leaf
    rows, and after them, where the machine has tongues, the halves of the tongues' strips below and above
    each boundary between rows.
    """

    leaked: Tensor
    shares: Tensor


def jaw_parts(model: FluenceModel, jaws_mm: Tensor) -> JawParts:
    """The parts that follow from `jaws_mm[n, 2, 4]`; the Y jaws stand at their mean of the exposure."""
    rows = model.rows.stop - model.rows.start
    between = opening(jaws_mm[:, :, :2, None], *model.across)
    y1_mm, y2_mm = jaws_mm[:, :, 2].mean(1), jaws_mm[:, :, 3].mean(1)
    shares = row_shares(model, y1_mm, y2_mm)
    if model.mlc.tongue_mm:
        inner, half = model.row_edges_mm[1:-1], model.mlc.tongue_mm / 2
        below, above = (inner - half, inner), (inner, inner + half)
        halves = [_strip_shares(model, edges, y1_mm, y2_mm) for edges in (below, above)]
        shares = torch.cat([shares, *halves], dim=-1)
    return JawParts(model.mlc.transmission * between.expand(-1, -1, rows, -1), shares)


def convolved_fluence(
    model: FluenceModel, leaves_mm: Tensor, jaws_mm: Tensor, mu: Tensor, parts: JawParts | None = None
) -> Tensor:
    """Fluence times MU, convolved with each kernel, at the nodes: shape (n, v, u, kernels).

    `leaves_mm[n, 2, 2, rows]` (the rows of the model only) and `jaws_mm[n, 2, 4]` hold start and end.
    Open areas count 1, leaves inside the jaws the transmission, what only the tongue of one leaf covers its
    transmission, everything behind a jaw 0.
    Differentiable in all three arguments, in float32 or float64, on any device; `parts` saves work where
    the jaws stay.
    """
    fixed = parts or jaw_parts(model, jaws_mm)
    x1, x2 = jaws_mm[:, :, None, 0, None], jaws_mm[:, :, None, 1, None]
    seen_mm = torch.minimum(torch.maximum(_widened(model.mlc, leaves_mm), x1), x2)
    if model.mlc.tongue_mm:
        seen_mm = torch.cat([seen_mm, _common(seen_mm)], dim=-1)
    if seen_mm.is_cpu and seen_mm.dtype == torch.float32 and not fixed.leaked.requires_grad:
        strips = strips_times_mu(seen_mm, mu, fixed.leaked, model.across, model.mlc)
    else:
        strips = strips_in_torch(model.mlc, opening(seen_mm, *model.across), mu, fixed.leaked)
    return torch.matmul(fixed.shares, strips).permute(0, 2, 3, 1).contiguous()


def strips_in_torch(mlc: Mlc, seen: Tensor, mu: Tensor, leaked: Tensor) -> Tensor:
    """Fluence of strips times MU, as `strips_times_mu` has it, in torch operations on any device.

    `seen[n, kernels, rows, u]` are the blurred openings of the rows and, where there are tongues, of what
    each two neighbours leave open in common.
    """
    rows = leaked.shape[2]
    strips = torch.add(leaked, seen[:, :, :rows], alpha=1 - mlc.transmission)
    if mlc.tongue_mm:
        strips = torch.cat([strips, *_tongues(mlc, seen[:, :, :rows], seen[:, :, rows:])], dim=2)
    return strips * mu[:, None, None, None]


def _tongues(mlc: Mlc, own: Tensor, common: Tensor) -> tuple[Tensor, Tensor]:
    """What tongues change in the strips below and above each boundary, against rows without tongues.

    Of the fluence `own[n, kernels, rows, u]` that rows leave open and `common[n, kernels, rows - 1, u]` that
    both neighbours do: what one row alone leaves open passes through the tongue of the other in its own half
    of the strip, and through its own tongue in the half of the other.
    """
    shaded, let_through = 1 - mlc.tongue_transmission, mlc.tongue_transmission - mlc.transmission
    low, high = own[:, :, :-1] - common, own[:, :, 1:] - common
    return let_through * high - shaded * low, let_through * low - shaded * high


def _widened(mlc: Mlc, leaves_mm: Tensor) -> Tensor:
    """Edges `[..., bank, row]` in mm as the dose sees them: each leaf stands back by half the gap offset."""
    outward = leaves_mm.new_tensor([-0.5, 0.5])[:, None]
    if not mlc.gap_growth_mm:
        return leaves_mm + outward * mlc.gap_offset_mm
    at, growth = (leaves_mm.new_tensor(table) for table in (mlc.gap_growth_at_mm, mlc.gap_growth_mm))
    off_axis = leaves_mm.abs().clamp(at[0], at[-1])
    above = torch.searchsorted(at, off_axis.detach().contiguous()).clamp(1, len(at) - 1)
    slope = (growth[1:] - growth[:-1]) / (at[1:] - at[:-1])
    more = growth[above - 1] + slope[above - 1] * (off_axis - at[above - 1])
    return leaves_mm + outward * (mlc.gap_offset_mm + more)


def _common(edges_mm: Tensor) -> Tensor:
    """What both neighbours leave open: `edges_mm[n, 2, low|high, rows]` to `[n, 2, low|high, rows - 1]`."""
    one, other = edges_mm[..., :-1], edges_mm[..., 1:]
    bend = _bend_mm(one - other)[:, None]
    low = torch.maximum(one[:, :, 0], other[:, :, 0]) - bend[:, :, 0]
    high = torch.minimum(one[:, :, 1], other[:, :, 1]) + bend[:, :, 1]
    return torch.stack([low, torch.maximum(low, high)], dim=2)


def _bend_mm(apart_mm: Tensor) -> Tensor:
    """How far the mean of the larger of two moving edges lies below the chord from its start to its end.

    `apart_mm[n, start|end, ...]` is the one less the other. Edges that pass each other on the way bend the
    larger of both; with this its mean is exact.
    """
    start, end = apart_mm[:, 0], apart_mm[:, 1]
    # maximum, not clamp: its derivative at 0 is a half, the mean of both sides.
    passing = torch.maximum(-start * end, torch.zeros_like(start))
    return passing / (2 * (start.abs() + end.abs()).clamp_min(1e-9))


def row_shares(model: FluenceModel, y1_mm: Tensor, y2_mm: Tensor) -> Tensor:
    """How much of each leaf row, cut by the Y jaws, reaches each node along v: (n, kernels, v, rows).

    The Y jaws stand at their mean position of the exposure.
    """
    return _strip_shares(model, (model.row_edges_mm[:-1], model.row_edges_mm[1:]), y1_mm, y2_mm)


def _strip_shares(
    model: FluenceModel, low_high_mm: tuple[NDArray, NDArray], y1_mm: Tensor, y2_mm: Tensor
) -> Tensor:
    """How much of strips between two edges, cut by the Y jaws, reaches each node: (n, kernels, v, strips)."""
    at, low, high, sigma = (
        torch.as_tensor(a, dtype=y1_mm.dtype, device=y1_mm.device)
        for a in (model.v.position_mm, *low_high_mm, model.sigma_mm)
    )

    def step(edge: Tensor) -> Tensor:
        clipped = torch.minimum(torch.maximum(edge, y1_mm[:, None]), y2_mm[:, None])
        distance = at[:, None] - clipped[:, None, None, :]
        return 0.5 * torch.erf(distance / (sigma[:, None, None] * math.sqrt(2.0)))

    return step(low) - step(high)
