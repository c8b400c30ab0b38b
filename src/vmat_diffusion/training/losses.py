"""What a prediction is judged by while it is learnt; all in units of the highest prescription.

Each is the mean over one case: `predicted` and `wanted` are `[z, y, x]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Region:
    """The voxels of a structure as flat indices, whether it is a target, and how many voxels make 0.1 cm3."""

    flat: Tensor
    target: bool
    hot: int


def masked_l1(predicted: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference inside the mask: the dose score of OpenKBP."""
    return ((predicted - wanted).abs() * mask).sum() / mask.sum()


def percentile(ascending: Tensor, percent: float) -> Tensor:
    """The percentile of sorted values, linear between neighbours, as numpy has it; differentiable."""
    at = percent / 100 * (len(ascending) - 1)
    low = min(int(at), len(ascending) - 1)
    high = min(low + 1, len(ascending) - 1)
    return torch.lerp(ascending[low], ascending[high], at - low)


def dvh_points(doses: Tensor, region: Region) -> Tensor:
    """D99, D95, D1 of a target; D0.1cc and mean of an organ: exactly the points of OpenKBP's DVH score."""
    ascending = doses.sort().values
    if region.target:
        return torch.stack([percentile(ascending, p) for p in (1.0, 5.0, 99.0)])
    hot = percentile(ascending, 100 - region.hot / len(ascending) * 100)
    return torch.stack([hot, doses.mean()])


def dvh(predicted: Tensor, wanted: Tensor, regions: Sequence[Region]) -> Tensor:
    """Mean absolute difference of all DVH points."""
    mine, theirs = predicted.flatten(), wanted.flatten()
    points = [(dvh_points(mine[r.flat], r) - dvh_points(theirs[r.flat], r)).abs() for r in regions]
    return torch.cat(points).mean() if points else predicted.sum() * 0


def gradient(predicted: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference of the steps between neighbours inside the mask, over the three axes."""
    total = predicted.sum() * 0
    for axis in range(3):
        step = (predicted - wanted).diff(dim=axis).abs()
        both = mask.narrow(axis, 1, mask.shape[axis] - 1) * mask.narrow(axis, 0, mask.shape[axis] - 1)
        total = total + (step * both).sum() / both.sum().clamp(min=1)
    return total / 3
