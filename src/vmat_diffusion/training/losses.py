"""Losses of a dose model, in units of the highest prescription.

Each is the mean over one case, of doses `[z, y, x]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from vmat_diffusion.evaluate.openkbp import TARGET_PERCENTILES
from vmat_diffusion.training.samples import Sample, StructureVoxels

# Losses of a predicted dose, 0 outside the mask, on a sample, by the names that settings use. Each times the
# prescription is in Gy.
LOSSES: Mapping[str, Callable[[Tensor, Sample], Tensor]] = {
    "l1": lambda predicted, s: dose_l1(predicted, s.dose, s.mask),
    "dvh": lambda predicted, s: dvh_l1(predicted, s.dose, s.structures),
    "gradient": lambda predicted, s: gradient_l1(predicted, s.dose, s.mask),
}
# The name of the squared error of the network's output for a noisy residual. It is no function of the dose
# and belongs to the role "residual" alone.
RESIDUAL = "residual"


def dose_l1(predicted: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference inside the mask: the dose score of OpenKBP."""
    return ((predicted - reference).abs() * mask).sum() / mask.sum()


def dvh_l1(predicted: Tensor, reference: Tensor, structures: Sequence[StructureVoxels]) -> Tensor:
    """Mean absolute difference of the DVH points of OpenKBP's DVH score, differentiable."""
    mine, theirs = predicted.flatten(), reference.flatten()
    points = [(_dvh_points(mine[s.flat], s) - _dvh_points(theirs[s.flat], s)).abs() for s in structures]
    return torch.cat(points).mean() if points else predicted.sum() * 0


def gradient_l1(predicted: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute difference of the steps between neighbours inside the mask, over the three axes."""
    total = predicted.sum() * 0
    for axis in range(3):
        step = (predicted - reference).diff(dim=axis).abs()
        both = mask.narrow(axis, 1, mask.shape[axis] - 1) * mask.narrow(axis, 0, mask.shape[axis] - 1)
        total = total + (step * both).sum() / both.sum().clamp(min=1)
    return total / 3


def _dvh_points(doses: Tensor, structure: StructureVoxels) -> Tensor:
    """D99, D95, D1 of a target; D0.1cc and mean of an organ: the points of `evaluate.openkbp` in torch."""
    ascending = doses.sort().values
    if structure.target:
        return torch.stack([_percentile(ascending, p) for p in TARGET_PERCENTILES.values()])
    return torch.stack([_percentile(ascending, 100 - structure.hot / len(doses) * 100), doses.mean()])


def _percentile(ascending: Tensor, percent: float) -> Tensor:
    """The percentile of sorted values, linear between neighbours as in numpy, within the range of values."""
    at = min(max(percent / 100 * (len(ascending) - 1), 0.0), len(ascending) - 1.0)
    low = int(at)
    high = min(low + 1, len(ascending) - 1)
    return torch.lerp(ascending[low], ascending[high], at - low)
