"""The two roles of the network with one encoded sample: regression of the dose, and diffusion of the rest."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vmat_diffusion.diffusion.network import DoseNet
from vmat_diffusion.diffusion.process import (
    SCHEDULES,
    STEPS,
    Process,
    min_snr_weight,
    noisy,
    sample_residual,
    smooth_noise,
    time_of,
    wanted,
    x0_from,
)
from vmat_diffusion.training.encoded import Sample

# Part of the seed of each draw, so that noise and changes of a sample have nothing to do with each other.
_NOISE = 2


def regression(net: DoseNet, case: Sample) -> Tensor:
    """The regression of the dose `[z, y, x]` in units of the prescription, in single precision."""
    time = torch.ones(1, device=case.volume.device)
    return net(net.anatomy(case.volume, case.vector), time)[0, 0].float()


def base_of(mean: DoseNet, case: Sample) -> Tensor:
    """The regression that a residual refers to, `[z, y, x]`: nowhere negative, 0 outside the mask."""
    with torch.no_grad():
        return regression(mean, case).clamp(min=0) * case.mask


def denoised(
    net: DoseNet, base: Tensor, case: Sample, process: Process, seed: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """The dose `[z, y, x]` that the answer to a noisy residual implies, and the loss of the answer.

    The residual is what `base` leaves of the dose; its step and noise depend on `seed` alone. The loss is
    the squared error inside the mask with the weight of its step.
    """
    schedule = SCHEDULES[process.schedule]()
    x0 = ((case.dose - base) * case.mask / process.scale)[None, None]
    rng = np.random.default_rng([*seed, _NOISE])
    t = torch.tensor([int(rng.integers(STEPS))], device=x0.device)
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    noise = smooth_noise(tuple(x0.shape), process.smooth_voxels, generator).to(x0.device)
    x = noisy(x0, noise, t, schedule)
    answer = net(net.anatomy(case.volume, case.vector), time_of(t), x, base[None, None]).float()
    error = (answer - wanted(x0, noise, t, schedule, process.answer)).square() * case.mask
    loss = min_snr_weight(t, schedule, process.answer)[0] * error.sum() / case.mask.sum()
    implied = x0_from(answer, x, t, schedule, process.answer)[0, 0]
    dose = base + process.scale * implied.clamp(-process.largest, process.largest)
    return dose, loss


def drawn(net: DoseNet, base: Tensor, case: Sample, process: Process, *, samples: int, steps: int) -> Tensor:
    """Samples of the dose `[k, z, y, x]` in units of the prescription; each k has a noise of its own."""
    anatomy = net.anatomy(case.volume, case.vector)
    residuals = [
        sample_residual(
            lambda x, time: net(anatomy, time, x, base[None, None]),
            case.mask,
            process,
            torch.Generator().manual_seed(k),
            steps=steps,
        )
        for k in range(samples)
    ]
    return torch.stack([base + process.scale * r for r in residuals])
