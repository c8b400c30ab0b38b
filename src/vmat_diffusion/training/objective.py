"""The losses that a training may ask for, by name, as functions of a predicted dose and its sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from vmat_diffusion.training.encoded import Sample
from vmat_diffusion.training.losses import dvh, gradient, masked_l1

# `predicted[z, y, x]` in units of the highest prescription, 0 outside the mask.
Loss = Callable[[Tensor, Sample], Tensor]

LOSSES: Mapping[str, Loss] = {
    "l1": lambda predicted, sample: masked_l1(predicted, sample.dose, sample.mask),
    "dvh": lambda predicted, sample: dvh(predicted, sample.dose, sample.regions),
    "gradient": lambda predicted, sample: gradient(predicted, sample.dose, sample.mask),
}
# Not a function of the dose but of the noise-free residual and its step; for the role "residual" alone.
RESIDUAL = "residual"
