"""The penalty on modulation: narrow gaps, ragged edges and travelling leaves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Gaps below this width are narrow; a closed pair costs nothing.
_NARROW_MM = 10.0
# Differences of neighbours below this are no edge.
_SMOOTH_MM = 2.0
# x (1 - x)^2 times this has its maximum of 1 at x = 1/3.
_PEAK = 6.75


@dataclass(frozen=True)
class ModulationPenalties:
    """Weights of the three penalties, in units of the objective; 0 switches one off."""

    narrow: float = 0.05
    edges: float = 0.02
    travel: float = 0.01


def modulation_penalty(
    leaves: Tensor,
    mu: Tensor,
    first: Tensor,
    last: Tensor,
    penalties: ModulationPenalties,
    *,
    least_gap_mm: float,
) -> Tensor:
    """The penalty of apertures `leaves[control points, 2, leaf rows]` (mm) with `mu[segments]`.

    `first[s]`, `last[s]` are the control points that bound segment s. Each penalty is a mean over the field,
    weighted by MU, so that more MU alone cost nothing.
    """
    share = mu.detach() / mu.detach().sum()
    weight = leaves.new_zeros(len(leaves)).index_add(0, first, share / 2).index_add(0, last, share / 2)
    gap = leaves[:, 1] - leaves[:, 0]
    # 0 where closed, 1 from _NARROW_MM on.
    open_share = ((gap - least_gap_mm) / (_NARROW_MM - least_gap_mm)).clamp(0, 1)
    narrow = (weight * (_PEAK * open_share * (1 - open_share).square()).mean(1)).sum()
    step = (leaves[:, :, 1:] - leaves[:, :, :-1]).square().add(_SMOOTH_MM**2).sqrt().sum(1) - 2 * _SMOOTH_MM
    both = torch.minimum(open_share[:, 1:], open_share[:, :-1]).detach()
    edges = (weight * (both * step).mean(1)).sum() / _NARROW_MM
    moved = (leaves[last] - leaves[first]).square().add(_SMOOTH_MM**2).sqrt() - _SMOOTH_MM
    travel = (share * moved.mean((1, 2))).sum() / _NARROW_MM
    return penalties.narrow * narrow + penalties.edges * edges + penalties.travel * travel
