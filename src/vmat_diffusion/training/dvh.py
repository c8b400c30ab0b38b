"""DVH points of doses in torch, exact and differentiable, as OpenKBP defines them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Region:
    """The voxels of a structure as flat indices, whether it is a target, and how many voxels make 0.1 cm3."""

    flat: Tensor
    target: bool
    hot: int


def percentile(ascending: Tensor, percent: float) -> Tensor:
    """The percentile of sorted values, linear between neighbours, as numpy has it."""
    at = min(max(percent / 100 * (len(ascending) - 1), 0.0), len(ascending) - 1.0)
    low = int(at)
    high = min(low + 1, len(ascending) - 1)
    return torch.lerp(ascending[low], ascending[high], at - low)


def hot_dose(doses: Tensor, region: Region) -> Tensor:
    """D0.1cc of the doses of one structure."""
    return percentile(doses.sort().values, 100 - region.hot / len(doses) * 100)


def dvh_points(doses: Tensor, region: Region) -> Tensor:
    """D99, D95, D1 of a target; D0.1cc and mean of an organ: exactly the points of OpenKBP's DVH score."""
    if region.target:
        ascending = doses.sort().values
        return torch.stack([percentile(ascending, p) for p in (1.0, 5.0, 99.0)])
    return torch.stack([hot_dose(doses, region), doses.mean()])
