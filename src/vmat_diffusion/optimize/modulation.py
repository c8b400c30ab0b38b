"""What restless apertures cost: narrow gaps, ragged neighbours, leaves that travel.

All three make a plan harder to deliver as computed: output and transmission of narrow gaps depend on leaf
position errors of tenths of a millimetre, ragged edges expose tongue and groove, travel costs time and
interplay. Each price is a mean over the field, weighted by MU, so that it does not grow with the plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Gaps below this width are narrow; a closed pair costs nothing.
_NARROW_MM = 10.0
# Differences of neighbours below this are no edge.
_SMOOTH_MM = 2.0


@dataclass(frozen=True)
class Prices:
    """Weights of the three prices, in units of the objective; 0 switches one off."""

    narrow: float = 0.05
    edges: float = 0.02
    travel: float = 0.01


def price(leaves: Tensor, mu: Tensor, first: Tensor, last: Tensor, least_gap_mm: float, at: Prices) -> Tensor:
    """The price of apertures `leaves[control points, 2, strips]` (mm) with `mu[segments]`.

    `first[s]`, `last[s]` are the control points that bound segment s.
    """
    share = mu.detach() / mu.detach().sum()
    weight = leaves.new_zeros(len(leaves)).index_add(0, first, share / 2).index_add(0, last, share / 2)
    gap = leaves[:, 1] - leaves[:, 0]
    # 0 where closed, 1 from _NARROW_MM on.
    open_share = ((gap - least_gap_mm) / (_NARROW_MM - least_gap_mm)).clamp(0, 1)
    narrow = (weight * (6.75 * open_share * (1 - open_share).square()).mean(1)).sum()
    step = (leaves[:, :, 1:] - leaves[:, :, :-1]).square().add(_SMOOTH_MM**2).sqrt().sum(1) - 2 * _SMOOTH_MM
    both = torch.minimum(open_share[:, 1:], open_share[:, :-1]).detach()
    edges = (weight * (both * step).mean(1)).sum() / _NARROW_MM
    moved = (leaves[last] - leaves[first]).square().add(_SMOOTH_MM**2).sqrt() - _SMOOTH_MM
    travel = (share * moved.mean((1, 2))).sum() / _NARROW_MM
    return at.narrow * narrow + at.edges * edges + at.travel * travel
