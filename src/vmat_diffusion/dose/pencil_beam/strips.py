"""Compiled loops from leaf edges to the fluence of strips, and back: innermost work of the search.

The same as in torch operations in `fluence.strips_in_torch`, in float32 alone and with the work left out that
comes to nothing: an edge is neither 0 nor 1 only near its place. Innermost loops have no branches and no
look-up tables, so that the compiler treats many nodes in one instruction.
"""

from __future__ import annotations

from pathlib import Path

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.compiled import watching
from vmat_diffusion.dose.pencil_beam.openings import RESTING
from vmat_diffusion.machine import Mlc

_F = np.float32
# Beyond so many widths an edge is 0 or 1.
_REACH = _F(6.0)
_ZERO, _HALF, _ONE = _F(0), _F(0.5), _F(1)
# The exponential of -x^2/2 as the 32nd power of that of a 32nd of it, by its series: good to 1e-7 of 1.
_THIRTY_SECOND, _LEAST = _F(-1 / 64), _F(-1)
_SERIES = tuple(_F(1 / n) for n in (2, 6, 24, 120, 720, 5040))
_DENSITY = _F(0.3989422804014327)
# The tail of the normal distribution to 7.5e-8: Abramowitz and Stegun, 26.2.17.
_P, _B1, _B2 = _F(0.2316419), _F(0.319381530), _F(-0.356563782)
_B3, _B4, _B5 = _F(1.781477937), _F(-1.821255978), _F(1.330274429)
_C2, _C3, _C4, _C5, _C6, _C7 = _SERIES


def strips_times_mu(
    edges_mm: Tensor,
    mu: Tensor,
    leaked: Tensor,
    across: tuple[NDArray, NDArray],
    mlc: Mlc,
) -> Tensor:
    """Fluence of strips times MU, blurred along the leaves, at nodes: `[n, kernels, strips, u]`, float32.

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
        at, sigma = at.astype(np.float32), sigma.astype(np.float32)
        rows = values.shape[3]
        shape = (len(values), len(sigma), 2 * rows - behind.shape[2], len(at))
        opened, out = np.empty((*shape[:2], rows, len(at)), np.float32), np.empty(shape, np.float32)
        leaf, tongue = map(np.float32, passing)
        _forward(values, weights, behind, at, sigma, leaf, tongue, opened, out)
        if not np.isfinite(values).all():
            out.fill(np.nan)  # the loops would look for a place of an edge that is nowhere
        ctx.save_for_backward(*given)
        ctx.across, ctx.opened, ctx.passing = (at, sigma), opened, (leaf, tongue)
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        values, weights, behind = (part.numpy() for part in ctx.saved_tensors)
        (at, sigma), (leaf, tongue) = ctx.across, ctx.passing
        by_edge, by_mu = np.zeros_like(values), np.zeros_like(weights)
        above = gradient.contiguous().numpy()
        _backward(values, weights, behind, at, sigma, leaf, tongue, ctx.opened, above, by_edge, by_mu)
        return torch.from_numpy(by_edge), torch.from_numpy(by_mu), None, None, None, None


@numba.njit(inline="always", fastmath=True)
def _tail(x):  # type: ignore[no-untyped-def]
    """The density of the standard normal distribution at x, and its share beyond |x|."""
    y = max(x * x * _THIRTY_SECOND, _LEAST)
    e = _C4 + y * (_C5 + y * (_C6 + y * _C7))
    e = _ONE + y * (_ONE + y * (_C2 + y * (_C3 + y * e)))
    e = e * e
    e = e * e
    e = e * e
    e = e * e
    density = e * e * _DENSITY
    t = _ONE / (_ONE + _P * abs(x))
    return density, density * t * (_B1 + t * (_B2 + t * (_B3 + t * (_B4 + t * _B5))))


@numba.njit(inline="always", fastmath=True)
def _below(x, beyond):  # type: ignore[no-untyped-def]
    """The share of the normal distribution below x, of that beyond |x|."""
    return beyond if x < _ZERO else _ONE - beyond


@numba.njit(inline="always", fastmath=True)
def _mean_of_moving(a, b, per_moved):  # type: ignore[no-untyped-def]
    """The mean of the normal distribution function between a and b, and the function at both.

    Its integral is max(x, 0) + density - |x| beyond: far from the edge the first part alone is left.
    """
    density_a, beyond_a = _tail(a)
    density_b, beyond_b = _tail(b)
    ramps = max(a, _ZERO) - max(b, _ZERO)
    tails = (density_a - abs(a) * beyond_a) - (density_b - abs(b) * beyond_b)
    return (ramps + tails) * per_moved, _below(a, beyond_a), _below(b, beyond_b)


@numba.njit(inline="always", fastmath=True, error_model="numpy")
def _blurred(edge, at, inverse, out):  # type: ignore[no-untyped-def]
    """The step `out[node]` of an edge `(start, end)`, blurred and averaged over its motion."""
    start, end = edge
    reach = _REACH / inverse
    first, last = np.searchsorted(at, min(start, end) - reach), np.searchsorted(at, max(start, end) + reach)
    moved = (end - start) * inverse
    out[:first] = _ZERO
    out[last:] = _ONE
    if abs(moved) < _F(RESTING):
        middle, bend = _HALF * (start + end), moved * moved * _F(1 / 24)
        for u in range(first, last):
            x = (at[u] - middle) * inverse
            density, beyond = _tail(x)
            out[u] = _below(x, beyond) - x * density * bend
    else:
        per_moved = _ONE / moved
        for u in range(first, last):
            a = (at[u] - start) * inverse
            out[u] = _mean_of_moving(a, a - moved, per_moved)[0]


@numba.njit(inline="always", fastmath=True, error_model="numpy")
def _by_ends(edge, at, inverse, gradient):  # type: ignore[no-untyped-def]
    """`gradient[node]` times the derivatives of `_blurred` by start and end, in units of 1/width."""
    start, end = edge
    reach = _REACH / inverse
    first, last = np.searchsorted(at, min(start, end) - reach), np.searchsorted(at, max(start, end) + reach)
    moved = (end - start) * inverse
    by_start, by_end = _ZERO, _ZERO
    if abs(moved) < _F(RESTING):
        # The mean is Phi(x) + Phi''(x) m^2 / 24 at the middle x; the derivatives are exactly this function's.
        middle, square = _HALF * (start + end), moved * moved * _F(1 / 24)
        for u in range(first, last):
            x = (at[u] - middle) * inverse
            density, _ = _tail(x)
            by_start += gradient[u] * (density + (x * x - _ONE) * density * square)
            by_end -= gradient[u] * x * density
        level, bent = _HALF * by_start, by_end * moved * _F(1 / 12)
        return -(level + bent), -(level - bent)
    per_moved = _ONE / moved
    for u in range(first, last):
        a = (at[u] - start) * inverse
        mean, at_start, at_end = _mean_of_moving(a, a - moved, per_moved)
        by_start += gradient[u] * (at_start - mean)
        by_end += gradient[u] * (mean - at_end)
    return -by_start * per_moved, -by_end * per_moved


@numba.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def _forward(edges, mu, leaked, at, sigma, transmission, tongue, opened, out):  # type: ignore[no-untyped-def]
    """The blurred openings and the strips of every exposure.

    Strips are the rows, and the halves of tongues below and above each boundary.

    What one row alone leaves open passes through the tongue of the other in its own half of the strip, and
    through its own tongue in the half of the other.
    """
    rows, nodes = leaked.shape[2], len(at)
    unshaded, let_through, shaded = _ONE - transmission, tongue - transmission, _ONE - tongue
    for s in numba.prange(len(edges)):
        far = np.empty(nodes, np.float32)
        for k in range(len(sigma)):
            inverse = _ONE / sigma[k]
            for r in range(edges.shape[3]):
                own = opened[s, k, r]
                _blurred((edges[s, 0, 0, r], edges[s, 1, 0, r]), at, inverse, own)
                _blurred((edges[s, 0, 1, r], edges[s, 1, 1, r]), at, inverse, far)
                for u in range(nodes):
                    own[u] -= far[u]
            for r in range(rows):
                own, behind, strip = opened[s, k, r], leaked[s, k, r], out[s, k, r]
                for u in range(nodes):
                    strip[u] = mu[s] * (behind[u] + unshaded * own[u])
            for b in range(edges.shape[3] - rows):
                lower, upper, common = opened[s, k, b], opened[s, k, b + 1], opened[s, k, rows + b]
                below, above = out[s, k, rows + b], out[s, k, 2 * rows - 1 + b]
                for u in range(nodes):
                    low, high = lower[u] - common[u], upper[u] - common[u]
                    below[u] = mu[s] * (let_through * high - shaded * low)
                    above[u] = mu[s] * (let_through * low - shaded * high)


@numba.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def _backward(  # type: ignore[no-untyped-def]
    edges, mu, leaked, at, sigma, transmission, tongue, opened, gradient, by_edge, by_mu
):
    """Transpose of the derivative of `_forward`, added to `by_edge` and `by_mu`, which begin at 0."""
    rows, nodes = leaked.shape[2], len(at)
    unshaded, let_through, shaded = _ONE - transmission, tongue - transmission, _ONE - tongue
    for s in numba.prange(len(edges)):
        by_opened = np.empty((edges.shape[3], nodes), np.float32)
        for k in range(len(sigma)):
            total = _ZERO
            for r in range(rows):
                given, behind, into = gradient[s, k, r], leaked[s, k, r], by_opened[r]
                for u in range(nodes):
                    into[u] = unshaded * given[u]
                    total += given[u] * behind[u]
            for b in range(edges.shape[3] - rows):
                first, second = gradient[s, k, rows + b], gradient[s, k, 2 * rows - 1 + b]
                lower, upper, common = by_opened[b], by_opened[b + 1], by_opened[rows + b]
                for u in range(nodes):
                    by_low = let_through * second[u] - shaded * first[u]
                    by_high = let_through * first[u] - shaded * second[u]
                    lower[u] += by_low
                    upper[u] += by_high
                    common[u] = -by_low - by_high
            inverse = _ONE / sigma[k]
            for r in range(edges.shape[3]):
                into, own = by_opened[r], opened[s, k, r]
                for u in range(nodes):
                    total += into[u] * own[u]
                for side in range(2):
                    by_start, by_end = _by_ends(
                        (edges[s, 0, side, r], edges[s, 1, side, r]), at, inverse, into
                    )
                    factor = mu[s] * inverse * (_ONE if side == 0 else -_ONE)
                    by_edge[s, 0, side, r] += factor * by_start
                    by_edge[s, 1, side, r] += factor * by_end
            by_mu[s] += total


for _loop in (_forward, _backward):
    watching(_loop, Path(__file__).parents[3])
