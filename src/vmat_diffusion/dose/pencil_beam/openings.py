"""A leaf row's opening, blurred by the beam's Gaussian kernels: exact, differentiable, without a pixel grid.

An edge blurred by a Gaussian is the normal distribution function; one that moves at constant speed during an
exposure is its mean between two places, in closed form.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import erf
from torch import Tensor

# Phi, its density and its antiderivative J(x) = x Phi(x) + phi(x), every 1/64 from -6 to 6; a Taylor
# step of third order from the nearest entry is exact to 1e-8.
TABLE_REACH, _TABLE_DENSITY = 6.0, 64
_X = np.linspace(-TABLE_REACH, TABLE_REACH, int(2 * TABLE_REACH * _TABLE_DENSITY) + 1)
NORMAL = np.stack(
    [
        0.5 * (1 + erf(_X / math.sqrt(2))),
        np.exp(-_X * _X / 2) / math.sqrt(2 * math.pi),
        0.5 * _X * (1 + erf(_X / math.sqrt(2))) + np.exp(-_X * _X / 2) / math.sqrt(2 * math.pi),
        _X,
    ],
    axis=1,
)
_RESTING = 0.5  # motion in units of sigma below which the mean is taken by its series, exact to 3e-5


@numba.njit(inline="always")
def _normal(table, x):  # type: ignore[no-untyped-def]
    """(J, Phi, phi) of the standard normal distribution at x."""
    if x <= -TABLE_REACH:
        return 0.0, 0.0, 0.0
    if x >= TABLE_REACH:
        return x, 1.0, 0.0
    i = int((x + TABLE_REACH) * _TABLE_DENSITY + 0.5)
    x0, phi0 = table[i, 3], table[i, 1]
    d = x - x0
    j = table[i, 2] + d * (table[i, 0] + d * (0.5 * phi0 - d * x0 * phi0 / 6))
    big = table[i, 0] + d * (phi0 + d * (-0.5 * x0 * phi0 + d * (x0 * x0 - 1) * phi0 / 6))
    small = phi0 * (1 - d * x0 + d * d * (x0 * x0 - 1) / 2)
    return j, big, small


@numba.njit(inline="always")
def mean_step(table, a, b):  # type: ignore[no-untyped-def]
    """Mean of Phi between a and b, and its derivatives in a and in b."""
    moved = a - b
    if abs(moved) < _RESTING:
        x = 0.5 * (a + b)
        _, big, small = _normal(table, x)
        # mean = Phi(x) + Phi''(x) m^2 / 24 at the middle x; the derivatives are exactly this function's.
        bend = -x * small
        slope = 0.5 * (small + (x * x - 1.0) * small * moved * moved / 24)
        return big + bend * moved * moved / 24, slope + bend * moved / 12, slope - bend * moved / 12
    ja, pa, _ = _normal(table, a)
    jb, pb, _ = _normal(table, b)
    mean = (ja - jb) / moved
    return mean, (pa - mean) / moved, (mean - pb) / moved


def opening(edges_mm: Tensor, at_mm: NDArray, sigma_mm: NDArray) -> Tensor:
    """Openings `edges_mm[n, start|end, low|high, row]` blurred, at nodes: shape (n, kernels, rows, nodes).

    Averaged over the motion of both edges. Torch operations, on any device; `strips` has the same in
    compiled loops.
    """
    at, sigma = (torch.as_tensor(a, dtype=edges_mm.dtype, device=edges_mm.device) for a in (at_mm, sigma_mm))
    x = (at - edges_mm[:, :, :, None, :, None]) / sigma[:, None, None]
    moved = x[:, 0] - x[:, 1]
    # J(x) = max(x, 0) + J(-|x|): far from the edge the first part cancels exactly, in float32 too.
    # maximum, not clamp: its derivative at 0 is a half, as that of J.
    ramp = torch.maximum(x, torch.zeros_like(x))
    tail = _density(x) - x.abs() * torch.special.ndtr(-x.abs())
    resting = moved.abs() < _RESTING
    change = (ramp[:, 0] - ramp[:, 1]) + (tail[:, 0] - tail[:, 1])
    moving = change / torch.where(resting, torch.ones_like(moved), moved)
    middle = (x[:, 0] + x[:, 1]) / 2
    still = torch.special.ndtr(middle) - middle * _density(middle) * moved.square() / 24
    mean = torch.where(resting, still, moving)
    return mean[:, 0] - mean[:, 1]


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
