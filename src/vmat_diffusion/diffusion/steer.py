"""Goal guidance: how far a dose misses the goals of a sheet, and the pull of that function's gradient.

At each step of the sampler the noise-free dose that the network sees goes some way down the gradient of
the missed goals (guidance by a differentiable cost: Dhariwal and Nichol, arXiv:2105.05233, section 4).
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
from vmat_diffusion.diffusion.predict import Pull
from vmat_diffusion.evaluate.goals import Goal, GoalSheet

# Steps down the gradient at each step of the sampler: each blurs it, and a blurred step falls short. The
# longest is as many times the blurred gradient.
_ROUNDS = 4
_LONGEST = 3.0


@dataclass(frozen=True, eq=False)
class Aim:
    """A limit on the doses of one structure.

    `flat` are the indices of its voxels in the box of the encoded case, of `voxels` in all; beyond the box
    there is no dose. `movable` says which of them are pulled: those of an organ inside a target are not.
    Of an upper limit the hottest `count` voxels are free; at least, the hottest `count` must reach a
    lower one. With None it is the mean that counts.
    """

    name: str
    flat: Tensor
    movable: Tensor
    voxels: int
    limit_gy: float
    at_least: bool
    count: int | None


def aims_of(sheet: GoalSheet, case: Case, encoded: Encoded) -> tuple[Aim, ...]:
    """The goals of a fitted sheet that are limits on dose or volume, for a case on the model's grid.

    gEUD, conformity and homogeneity, and structures without voxels in the box, are left out.
    """
    in_targets = np.zeros(case.grid.shape, bool)
    for name in sheet.prescription.target_gy:
        if name in case.structures:
            in_targets |= case.structures[name].mask
    out = []
    for goal in sheet.goals:
        structure = case.structures.get(goal.structure)
        wish = None if structure is None else _limit(goal, sheet, structure.voxels, case.grid.voxel_cc)
        if structure is None or wish is None:
            continue
        flat = np.flatnonzero(structure.mask[encoded.box])
        inside = in_targets[encoded.box].ravel()[flat]
        movable = ~inside if structure.role != "target" else np.ones(len(flat), bool)
        if movable.any():
            limit_gy, count = wish
            at_least = goal.comparator == ">="
            tensors = torch.from_numpy(flat), torch.from_numpy(movable)
            out.append(Aim(goal.structure, *tensors, structure.voxels, limit_gy, at_least, count))
    return tuple(out)


def _limit(goal: Goal, sheet: GoalSheet, voxels: int, voxel_cc: float) -> tuple[float, int | None] | None:
    """Dose in Gy, and how many of the hottest voxels it concerns; None for what is no such limit."""
    if goal.metric.kind == "mean":
        return goal.limit, None
    bound = goal.bound(sheet.prescription.target_gy)
    if bound is None:
        return None
    at_least = goal.comparator == ">="
    if goal.metric.is_near_maximum and not at_least:
        return bound.level_gy, 0
    hottest = bound.voxels(voxels, voxel_cc)
    if goal.metric.kind in ("D%", "Dcc"):
        # Doses to a volume are read between the middles of neighbouring voxels: both must hold.
        hottest += 0.5 if at_least else -0.5
    return bound.level_gy, _whole(hottest, voxels, up=at_least)


def _whole(count: float, most: int, *, up: bool) -> int:
    return min(max(math.ceil(count - 1e-9) if up else math.floor(count + 1e-9), 0), most)


def shortfall(gy: Tensor, aims: Sequence[Aim]) -> Tensor:
    """Half the sum of squares of what the goals miss, in Gy2, for a dose `gy[z, y, x]`; 0 if all are met.

    Its gradient is by how many Gy each voxel is off: a step of 1 against it meets a goal whose voxels
    are all movable and belong to no other.
    """
    total = gy.new_zeros(())
    every = gy.flatten()
    for aim in aims:
        doses = every[aim.flat.to(gy.device)]
        doses = torch.where(aim.movable.to(gy.device), doses, doses.detach())
        sign = 1.0 if aim.at_least else -1.0
        if aim.count is None:
            missing = sign * (aim.limit_gy - doses.sum() / aim.voxels)
            total = total + 0.5 * aim.voxels * missing.clamp_min(0).square()
            continue
        ordered = doses.sort(descending=True).values
        concerned = ordered[: aim.count] if aim.at_least else ordered[aim.count :]
        total = total + 0.5 * (sign * (aim.limit_gy - concerned)).clamp_min(0).square().sum()
    return total


def pull_of(aims: Sequence[Aim], weight: float, smooth_voxels: float) -> Pull | None:
    """The pull towards goals for `predict`; None where there is nothing to pull.

    `weight` from 0 to 1 is how much of what is missing is made good at each step of the sampler. The
    gradient is blurred by the covariance of the process's noise, twice `smooth_voxels` squared in
    variance, so that what is drawn stays of one kind.
    """
    if weight == 0 or not aims:
        return None
    width = float(np.sqrt(2.0)) * smooth_voxels

    def pull(gy: Tensor) -> Tensor:
        dose = gy.float()
        with torch.autocast(gy.device.type, enabled=False), torch.enable_grad():
            for _ in range(_ROUNDS):
                dose = dose.detach().requires_grad_(True)
                (gradient,) = torch.autograd.grad(shortfall(dose, aims), dose)
                dose = dose - weight * _step(gradient, width)
        return dose.detach().clamp_min(0)

    return pull


def _step(gradient: Tensor, width: float) -> Tensor:
    """The blurred gradient, as long as meets best what the voxels with a gradient miss."""
    blurred = _blurred(gradient, width)
    there = blurred[gradient != 0]
    length = (gradient * blurred).sum() / there.square().sum().clamp_min(1e-12)
    return blurred * length.clamp(1.0, _LONGEST)


def _blurred(values: Tensor, width: float) -> Tensor:
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
