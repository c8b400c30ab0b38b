"""The two roles of the network on a sample: regression of the dose, and diffusion of the residual."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vmat_diffusion.diffusion.network import DoseNet
from vmat_diffusion.diffusion.process import (
    SCHEDULES,
    STEPS,
    Process,
    add_noise,
    min_snr_weight,
    prediction_target,
    sample_residual,
    smooth_noise,
    time_of,
    x0_from,
)
from vmat_diffusion.training.samples import Sample

# Part of the seed of each draw: it keeps the noise of a sample independent of its augmentation.
_NOISE = 2


def regression(net: DoseNet, sample: Sample) -> Tensor:
    """The regression of the dose `[z, y, x]` in units of the prescription, in single precision."""
    time = torch.ones(1, device=sample.volume.device)
    return net(net.anatomy(sample.volume, sample.vector, sample.mask), time)[0, 0].float()


def residual_base(mean: DoseNet, sample: Sample) -> Tensor:
    """The regression to which a residual is added, `[z, y, x]`: nowhere negative, 0 outside the mask."""
    with torch.no_grad():
        return regression(mean, sample).clamp(min=0) * sample.mask


def denoise(
    net: DoseNet, base: Tensor, sample: Sample, process: Process, seed: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The dose `[z, y, x]` from the network's output for a noisy residual, and the loss of the output.

    The residual is the dose minus `base`; its step and noise depend on `seed` alone. The loss is the squared
    error inside the mask with the weight of its step.
    """
    schedule = SCHEDULES[process.schedule]()
    x0 = ((sample.dose - base) * sample.mask / process.scale)[None, None]
    rng = np.random.default_rng([*seed, _NOISE])
    t = torch.tensor([int(rng.integers(STEPS))], device=x0.device)
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    noise = smooth_noise(tuple(x0.shape), process.smooth_voxels, generator).to(x0.device)
    x = add_noise(x0, noise, t, schedule)
    output = net(
        net.anatomy(sample.volume, sample.vector, sample.mask), time_of(t), x, base[None, None]
    ).float()
    target = prediction_target(x0, noise, t, schedule, process.answer)
    error = (output - target).square() * sample.mask
    loss = min_snr_weight(t, schedule, process.answer)[0] * error.sum() / sample.mask.sum()
    implied = x0_from(output, x, t, schedule, process.answer)[0, 0]
    dose = base + process.scale * implied.clamp(-process.largest, process.largest)
    return dose, loss


def sample_doses(
    net: DoseNet, base: Tensor, sample: Sample, process: Process, *, samples: int, steps: int
) -> Tensor:
    """Samples of the dose `[k, z, y, x]` in units of the prescription; the noise of sample k has seed k."""
    anatomy = net.anatomy(sample.volume, sample.vector, sample.mask)
    residuals = [
        sample_residual(
            lambda x, time: net(anatomy, time, x, base[None, None]),
            sample.mask,
            process,
            torch.Generator().manual_seed(k),
            steps=steps,
        )
        for k in range(samples)
    ]
    return torch.stack([base + process.scale * r for r in residuals])
