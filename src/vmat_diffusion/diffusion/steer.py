"""Goal guidance: the sampler moves a dose down the gradient of a cost for missed goals.

This happens to the noise-free dose at each step of the sampler (guidance by a differentiable cost: Dhariwal
and Nichol, arXiv:2105.05233, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vmat_diffusion.case import Case
from vmat_diffusion.diffusion.encode import Encoded
from vmat_diffusion.diffusion.predict import GoalGuidance
from vmat_diffusion.evaluate.goals import Goal, GoalSheet

# Gradient steps at each step of the sampler. A blurred step falls short of the goal, so it takes several; a
# step is at most this many times the blurred gradient.
_ROUNDS = 4
_LONGEST = 3.0


@dataclass(frozen=True, eq=False)
class DoseLimit:
    """A limit on the doses of one structure.

    `flat` are the indices of its voxels in the box of the encoded case; the structure has `voxels` in all,
    and there is no dose beyond the box. `movable` is False for organ voxels inside a target: their dose is
    not changed. An upper limit holds for all but the hottest `count` voxels, a lower limit (`at_least`)
    for the hottest `count`. With `count` None the limit is on the mean.
    """

    name: str
    flat: Tensor
    movable: Tensor
    voxels: int
    limit_gy: float
    at_least: bool
    count: int | None


def dose_limits(sheet: GoalSheet, case: Case, encoded: Encoded) -> tuple[DoseLimit, ...]:
    """The goals of a fitted sheet that limit a dose or a volume, for a case on the model's grid.

    Without gEUD, partial means, R50%, D2cm, conformity and homogeneity, and without structures that have no
    voxel in the box.
    """
    in_targets = case.union(name for name in sheet.prescription.target_gy if name in case.structures)
    out = []
    for goal in sheet.in_gy().goals:
        structure = case.structures.get(goal.structure)
        limit = None if structure is None else _limit(goal, sheet, structure.voxels, case.grid.voxel_cc)
        if structure is None or limit is None:
            continue
        flat = np.flatnonzero(structure.mask[encoded.box])
        inside = in_targets[encoded.box].ravel()[flat]
        movable = ~inside if structure.role != "target" else np.ones(len(flat), bool)
        if movable.any():
            limit_gy, count = limit
            at_least = goal.demands_dose
            tensors = torch.from_numpy(flat), torch.from_numpy(movable)
            out.append(DoseLimit(goal.structure, *tensors, structure.voxels, limit_gy, at_least, count))
    return tuple(out)


def _limit(goal: Goal, sheet: GoalSheet, voxels: int, voxel_cc: float) -> tuple[float, int | None] | None:
    """The limit in Gy and the `count` of a DoseLimit for a goal in physical Gy; None for no such limit."""
    if goal.metric.kind == "mean":
        return goal.limit, None
    bound = goal.bound(sheet.prescription.target_gy)
    if bound is None:
        return None
    at_least = goal.demands_dose
    if goal.metric.is_near_maximum and not at_least:
        return bound.level_gy, 0
    hottest = bound.voxels(voxels, voxel_cc)
    if goal.metric.kind in ("D%", "Dcc"):
        # Doses to a volume are read between the middles of neighbouring voxels: both must hold.
        hottest += 0.5 if at_least else -0.5
    return bound.level_gy, _whole(hottest, voxels, up=at_least)


def _whole(count: float, most: int, *, up: bool) -> int:
    return min(max(math.ceil(count - 1e-9) if up else math.floor(count + 1e-9), 0), most)


def shortfall(gy: Tensor, limits: Sequence[DoseLimit]) -> Tensor:
    """Half the sum of squared violations of the limits by a dose `gy[z, y, x]`, in Gy2; 0 if it keeps all.

    Its gradient is the violation of each voxel in Gy. A step of 1 against it meets a limit whose voxels are
    all movable and belong to no other limit.
    """
    total = gy.new_zeros(())
    every = gy.flatten()
    for limit in limits:
        doses = every[limit.flat.to(gy.device)]
        doses = torch.where(limit.movable.to(gy.device), doses, doses.detach())
        sign = 1.0 if limit.at_least else -1.0
        if limit.count is None:
            missing = sign * (limit.limit_gy - doses.sum() / limit.voxels)
            total = total + 0.5 * limit.voxels * missing.clamp_min(0).square()
            continue
        ordered = doses.sort(descending=True).values
        concerned = ordered[: limit.count] if limit.at_least else ordered[limit.count :]
        total = total + 0.5 * (sign * (limit.limit_gy - concerned)).clamp_min(0).square().sum()
    return total


def goal_guidance(limits: Sequence[DoseLimit], weight: float, smooth_voxels: float) -> GoalGuidance | None:
    """The goal guidance for `predict`; None without limits or weight.

    `weight` from 0 to 1 is the share of the violations that each step of the sampler corrects. The gradient
    is blurred by the covariance of the process's noise (twice `smooth_voxels` squared in variance), so that
    the samples keep their texture.
    """
    if weight == 0 or not limits:
        return None
    width = float(np.sqrt(2.0)) * smooth_voxels

    def guided(gy: Tensor) -> Tensor:
        dose = gy.float()
        with torch.autocast(gy.device.type, enabled=False), torch.enable_grad():
            for _ in range(_ROUNDS):
                dose = dose.detach().requires_grad_(True)
                (gradient,) = torch.autograd.grad(shortfall(dose, limits), dose)
                dose = dose - weight * _step(gradient, width)
        return dose.detach().clamp_min(0)

    return guided


def _step(gradient: Tensor, width: float) -> Tensor:
    """The blurred gradient, scaled to fit the gradient best where there is one."""
    blurred = _blur(gradient, width)
    there = blurred[gradient != 0]
    length = (gradient * blurred).sum() / there.square().sum().clamp_min(1e-12)
    return blurred * length.clamp(1.0, _LONGEST)


def _blur(values: Tensor, width: float) -> Tensor:
    """`values[z, y, x]` blurred by a Gaussian of `width` voxels."""
    reach = int(np.ceil(3 * width))
    if reach == 0:
        return values
    at = torch.arange(-reach, reach + 1, dtype=values.dtype, device=values.device)
    kernel = torch.exp(-0.5 * (at / width) ** 2)
    kernel = kernel / kernel.sum()
    out = values[None, None]
    for axis in (2, 3, 4):
        shape, padding = [1] * 5, [0] * 3
        shape[axis], padding[axis - 2] = len(kernel), reach
        out = F.conv3d(out, kernel.reshape(shape), padding=padding)
    return out[0, 0]
