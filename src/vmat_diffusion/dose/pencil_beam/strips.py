"""Compiled loops from leaf edges to the fluence of strips, and back: innermost work of the search.

The same as in torch operations in `fluence.strips_in_torch`, but with the work left out that comes to
nothing: an edge is neither 0 nor 1 only near its place.
"""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.compiled import watching
from vmat_diffusion.dose.pencil_beam.openings import NORMAL, TABLE_REACH, mean_step
from vmat_diffusion.machine import Mlc


def strips_times_mu(
    edges_mm: Tensor,
    mu: Tensor,
    leaked: Tensor,
    across: tuple[NDArray, NDArray],
    mlc: Mlc,
) -> Tensor:
    """Fluence of strips times MU, blurred along the leaves, at nodes: `[n, kernels, strips, u]`.

    Differentiable in edges and MU. `edges_mm[n, start|end, low|high, rows]`, followed, where there are
    tongues, by what each two neighbours leave open in common; `leaked` and the order of the strips as in
    `JawParts`; `across` the positions of the nodes along the leaves and the widths of the kernels in mm.
    """
    passing = (mlc.transmission, mlc.tongue_transmission)
    out: Tensor = _Strips.apply(edges_mm.contiguous(), mu, leaked, *across, passing)
    return out


class _Strips(torch.autograd.Function):
    """Strips of edges and MU, and the transpose, both in compiled loops."""

    @staticmethod
    def forward(ctx, edges, mu, leaked, at, sigma, passing):  # type: ignore[no-untyped-def]
        given = [part.detach().contiguous() for part in (edges, mu, leaked)]
        values, weights, behind = (part.numpy() for part in given)
        kind, rows = values.dtype.type, values.shape[3]
        shape = (len(values), len(sigma), 2 * rows - behind.shape[2], len(at))
        opened, out = np.empty((*shape[:2], rows, len(at)), kind), np.empty(shape, kind)
        leaf, tongue = map(kind, passing)
        _forward(NORMAL, values, weights, behind, at, sigma, leaf, tongue, opened, out)
        if not np.isfinite(values).all():
            out.fill(np.nan)  # the loops would look up a place for an edge that is nowhere
        ctx.save_for_backward(*given)
        ctx.across, ctx.opened, ctx.passing = (at, sigma), opened, (leaf, tongue)
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        values, weights, behind = (part.numpy() for part in ctx.saved_tensors)
        (at, sigma), (leaf, tongue) = ctx.across, ctx.passing
        by_edge, by_mu = np.zeros_like(values), np.zeros_like(weights)
        above = gradient.contiguous().numpy()
        _backward(NORMAL, values, weights, behind, at, sigma, leaf, tongue, ctx.opened, above, by_edge, by_mu)
        return torch.from_numpy(by_edge), torch.from_numpy(by_mu), None, None, None, None


@numba.njit(inline="always")
def _open(table, edges, at, sigma, out):  # type: ignore[no-untyped-def]
    """Blurred openings `out[row, node]` of `edges[start|end, low|high, row]`."""
    nodes, inverse, reach = len(at), 1.0 / sigma, TABLE_REACH * sigma
    for r in range(edges.shape[2]):
        for side in range(2):
            start, end = edges[0, side, r], edges[1, side, r]
            first = np.searchsorted(at, min(start, end) - reach)
            last = np.searchsorted(at, max(start, end) + reach)
            if side == 0:
                out[r, :first] = 0.0
                for u in range(first, last):
                    out[r, u], _, _ = mean_step(table, (at[u] - start) * inverse, (at[u] - end) * inverse)
                out[r, last:nodes] = 1.0
            else:
                for u in range(first, last):
                    mean, _, _ = mean_step(table, (at[u] - start) * inverse, (at[u] - end) * inverse)
                    out[r, u] -= mean
                for u in range(last, nodes):
                    out[r, u] -= 1.0


@numba.njit(parallel=True, cache=True)
def _forward(  # type: ignore[no-untyped-def]
    table, edges, mu, leaked, at, sigma, transmission, tongue, opened, out
):
    """The blurred openings and the strips of every exposure.

    Strips are the rows, and the halves of tongues below and above each boundary.

    What one row alone leaves open passes through the tongue of the other in its own half of the strip, and
    through its own tongue in the half of the other.
    """
    rows, nodes = leaked.shape[2], len(at)
    unshaded, let_through, shaded = 1 - transmission, tongue - transmission, 1 - tongue
    for s in numba.prange(len(edges)):
        for k in range(len(sigma)):
            own = opened[s, k]
            _open(table, edges[s], at, sigma[k], own)
            for r in range(rows):
                for u in range(nodes):
                    out[s, k, r, u] = mu[s] * (leaked[s, k, r, u] + unshaded * own[r, u])
            for b in range(edges.shape[3] - rows):
                below, above = rows + b, 2 * rows - 1 + b
                for u in range(nodes):
                    low = own[b, u] - own[rows + b, u]
                    high = own[b + 1, u] - own[rows + b, u]
                    out[s, k, below, u] = mu[s] * (let_through * high - shaded * low)
                    out[s, k, above, u] = mu[s] * (let_through * low - shaded * high)


@numba.njit(parallel=True, cache=True)
def _backward(  # type: ignore[no-untyped-def]
    table, edges, mu, leaked, at, sigma, transmission, tongue, opened, gradient, by_edge, by_mu
):
    """Transpose of the derivative of `_forward`, added to `by_edge` and `by_mu`, which begin at 0."""
    rows, nodes = leaked.shape[2], len(at)
    unshaded, let_through, shaded = 1 - transmission, tongue - transmission, 1 - tongue
    for s in numba.prange(len(edges)):
        by_opened = np.empty((edges.shape[3], nodes), gradient.dtype)
        for k in range(len(sigma)):
            by_opened[rows:] = 0
            total = 0.0
            for r in range(rows):
                for u in range(nodes):
                    given = gradient[s, k, r, u]
                    by_opened[r, u] = unshaded * given
                    total += given * leaked[s, k, r, u]
            for b in range(edges.shape[3] - rows):
                below, above = rows + b, 2 * rows - 1 + b
                for u in range(nodes):
                    first, second = gradient[s, k, below, u], gradient[s, k, above, u]
                    by_low = let_through * second - shaded * first
                    by_high = let_through * first - shaded * second
                    by_opened[b, u] += by_low
                    by_opened[b + 1, u] += by_high
                    by_opened[rows + b, u] = -by_low - by_high
            inverse, reach = 1.0 / sigma[k], TABLE_REACH * sigma[k]
            for r in range(edges.shape[3]):
                for u in range(nodes):
                    total += by_opened[r, u] * opened[s, k, r, u]
                for side in range(2):
                    start, end = edges[s, 0, side, r], edges[s, 1, side, r]
                    total0, total1 = 0.0, 0.0
                    for u in range(
                        np.searchsorted(at, min(start, end) - reach),
                        np.searchsorted(at, max(start, end) + reach),
                    ):
                        _, d0, d1 = mean_step(table, (at[u] - start) * inverse, (at[u] - end) * inverse)
                        total0 -= by_opened[r, u] * d0
                        total1 -= by_opened[r, u] * d1
                    factor = mu[s] * inverse * (1.0 - 2.0 * side)
                    by_edge[s, 0, side, r] += factor * total0
                    by_edge[s, 1, side, r] += factor * total1
            by_mu[s] += total


for _loop in (_forward, _backward):
    watching(_loop, Path(__file__).parents[3])
