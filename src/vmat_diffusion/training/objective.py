"""The losses that a training may ask for, by name, as functions of a predicted dose and its sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from vmat_diffusion.training.encoded import Sample
from vmat_diffusion.training.losses import dvh, gradient, masked_l1


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
