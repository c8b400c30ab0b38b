"""What a prediction is judged by while it is learnt; all in units of the highest prescription.

Each is the mean over one case: `predicted` and `wanted` are `[z, y, x]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vmat_diffusion.training.dvh import Region, dvh_points
from vmat_diffusion.training.encoded import Sample


def masked_l1(predicted: Tensor, wanted: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference inside the mask: the dose score of OpenKBP."""
    return ((predicted - wanted).abs() * mask).sum() / mask.sum()


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


class Loss(NamedTuple):
    """`of(predicted, sample)` for doses `[z, y, x]` in units of the highest prescription, 0 outside the mask.

    `in_gy` says whether the value becomes Gy by that prescription.
    """

    of: Callable[[Tensor, Sample], Tensor]
    in_gy: bool


LOSSES: Mapping[str, Loss] = {
    "l1": Loss(lambda predicted, s: masked_l1(predicted, s.dose, s.mask), in_gy=True),
    "dvh": Loss(lambda predicted, s: dvh(predicted, s.dose, s.regions), in_gy=True),
    "gradient": Loss(lambda predicted, s: gradient(predicted, s.dose, s.mask), in_gy=True),
}
# The squared error of the answer to a noisy residual: no function of the dose, and of the role "residual"
# alone.
RESIDUAL = "residual"
