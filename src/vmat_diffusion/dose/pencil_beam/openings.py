"""A leaf row's opening, blurred by the beam's Gaussian kernels: exact, differentiable, without a pixel grid.

An edge blurred by a Gaussian is the normal distribution function; one that moves at constant speed during an
exposure is its mean between two places, in closed form.
"""

from __future__ import annotations

import math

import torch
from numpy.typing import NDArray
from torch import Tensor

RESTING = 0.5  # motion in units of sigma below which the mean is taken by its series, exact to 3e-5


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
    resting = moved.abs() < RESTING
    change = (ramp[:, 0] - ramp[:, 1]) + (tail[:, 0] - tail[:, 1])
    moving = change / torch.where(resting, torch.ones_like(moved), moved)
    middle = (x[:, 0] + x[:, 1]) / 2
    still = torch.special.ndtr(middle) - middle * _density(middle) * moved.square() / 24
    mean = torch.where(resting, still, moving)
    return mean[:, 0] - mean[:, 1]


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)
