"""The diffusion process: it adds noise, and its samplers remove noise step by step.

Variance preserving, T = 1000 steps (Ho et al., arXiv:2006.11239). With a_t the product of all 1 - beta up to
t: x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise. The prediction target of a network is the noise (epsilon), x_0,
or v = sqrt(a_t) noise - sqrt(1 - a_t) x_0 (Salimans and Ho, arXiv:2202.00512). Samplers clamp x_0 and then
compute the noise from the clamped x_0; noise of the unclamped x_0 would not fit it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

PredictionTarget = Literal["noise", "v", "x0"]
Method = Literal["ddpm", "ddim", "dpm2"]
STEPS = 1000
# Last steps of the cosine schedule whose signal would be lost otherwise; the limit of its authors.
_MAX_BETA = 0.999


@dataclass(frozen=True, eq=False)
class Schedule:
    """`signal[t]` is a_t for t = 0 to T - 1, falling; float64."""

    signal: Tensor

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(a_t) and sqrt(1 - a_t), shaped to multiply `like[batch, ...]`."""
        a = self.signal.to(like.device)[t].reshape(-1, *(1,) * (like.ndim - 1))
        return a.sqrt().to(like.dtype), (1 - a).sqrt().to(like.dtype)


def cosine(steps: int = STEPS) -> Schedule:
    """a_t follows cos^2 (Nichol and Dhariwal, arXiv:2102.09672, eq. 17)."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    a = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
    beta = (1 - a[1:] / a[:-1]).clamp(max=_MAX_BETA)
    return Schedule(torch.cumprod(1 - beta, 0))


def linear(steps: int = STEPS) -> Schedule:
    """beta rises evenly from 1e-4 to 0.02 (Ho et al.)."""
    beta = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    return Schedule(torch.cumprod(1 - beta, 0))


SCHEDULES: dict[str, Callable[[], Schedule]] = {"cosine": cosine, "linear": linear}


@dataclass(frozen=True)
class Process:
    """The diffusion of the residual dose; kept with the weights.

    The residual is in units of `scale` (a share of the highest prescription) and is clamped to +-`largest`
    units at each step. The noise is blurred by `smooth_voxels`. `answer` is the prediction target.
    """

    schedule: Literal["cosine", "linear"] = "cosine"
    answer: PredictionTarget = "x0"
    scale: float = 0.05
    smooth_voxels: float = 1.5
    largest: float = 8.0


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """x_t of `x0[batch, ...]` for steps `t[batch]`."""
    root_a, root_b = schedule.at(t, x0)
    return root_a * x0 + root_b * noise


def prediction_target(
    x0: Tensor, noise: Tensor, t: Tensor, schedule: Schedule, target: PredictionTarget
) -> Tensor:
    """The output that the network is trained for."""
    if target == "x0":
        return x0
    if target == "noise":
        return noise
    root_a, root_b = schedule.at(t, x0)
    return root_a * noise - root_b * x0


def x0_from(output: Tensor, x: Tensor, t: Tensor, schedule: Schedule, target: PredictionTarget) -> Tensor:
    """The x_0 that follows from the network's output."""
    if target == "x0":
        return output
    root_a, root_b = schedule.at(t, x)
    if target == "noise":
        return (x - root_b * output) / root_a
    return root_a * x - root_b * output


def min_snr_weight(
    t: Tensor, schedule: Schedule, target: PredictionTarget, gamma: float = 5.0, floor: float = 1.0
) -> Tensor:
    """Weight of the squared error of the output at each step: SNR between `floor` and `gamma` on x_0.

    The upper bound is that of Hang et al. (arXiv:2303.09556), the lower the truncated SNR of Salimans and Ho
    (arXiv:2202.00512): without it the network would not learn the noisiest steps, with which every sample
    begins. The noise as prediction target has no lower bound: it is easiest at these steps.
    """
    a = schedule.signal.to(t.device)[t]
    snr = a / (1 - a)
    if target == "noise":
        return (snr.clamp(max=gamma) / snr).float()
    weight = snr.clamp(floor, gamma)
    return (weight if target == "x0" else weight / (snr + 1)).float()


def trailing_steps(schedule: Schedule, steps: int) -> list[int]:
    """`steps` of the schedule, evenly spaced from the noisiest down (Lin et al., arXiv:2305.08891)."""
    total = len(schedule.signal)
    if not 1 <= steps <= total:
        raise ValueError(f"{steps} sampling steps are outside 1 to {total}")
    return [round(total - k * total / steps) - 1 for k in range(steps)]


def run_sampler(
    model: Callable[[Tensor, Tensor], Tensor],
    start: Tensor,
    schedule: Schedule,
    *,
    steps: int,
    target: PredictionTarget = "x0",
    method: Method = "dpm2",
    clamp: tuple[float, float] | None = None,
    adjust: Callable[[Tensor, int], Tensor] | None = None,
    draw: Callable[[torch.Size], Tensor] = torch.randn,
) -> Tensor:
    """Denoise `start[batch, ...]`, which is pure noise, to x_0.

    `model(x, t[batch])` returns the prediction `target`. `adjust(x0, t)` may change x_0 at each step, for
    instance along the gradient of goals. `ddpm` is ancestral; its noise from `draw(shape)` must have the
    covariance of `start`. `ddim` (Song et al., arXiv:2010.02502, eta 0) and `dpm2` (DPM-Solver++ 2M, Lu et
    al., arXiv:2211.01095) are deterministic.
    """
    x, before = start, None
    times = trailing_steps(schedule, steps)
    for t, following in zip(times, [*times[1:], -1], strict=True):
        at = torch.full((len(x),), t, dtype=torch.long, device=x.device)
        x0 = x0_from(model(x, at), x, at, schedule, target)
        if clamp is not None:
            x0 = x0.clamp(*clamp)
        if adjust is not None:
            x0 = adjust(x0, t)
        if following < 0:
            return x0
        if method == "ddpm":
            x = _ancestral(x, x0, schedule, t=t, following=following, draw=draw)
        elif method == "ddim":
            x = _ddim(x, x0, schedule, t=t, following=following)
        else:
            x = _dpm2(x, x0, before, schedule, t=t, following=following)
            before = (x0, t)
    raise AssertionError("the last step returns")


def _ddim(x: Tensor, x0: Tensor, schedule: Schedule, *, t: int, following: int) -> Tensor:
    a, b = schedule.signal[t], schedule.signal[following]
    noise = (x - a.sqrt().item() * x0) / (1 - a).sqrt().item()
    return b.sqrt().item() * x0 + (1 - b).sqrt().item() * noise


def _ancestral(
    x: Tensor,
    x0: Tensor,
    schedule: Schedule,
    *,
    t: int,
    following: int,
    draw: Callable[[torch.Size], Tensor],
) -> Tensor:
    """Mean and variance of q(x_s | x_t, x_0), Ho et al. eq. 7, for a jump from t to s."""
    a, b = schedule.signal[t].item(), schedule.signal[following].item()
    jump = a / b
    mean = b**0.5 * (1 - jump) / (1 - a) * x0 + jump**0.5 * (1 - b) / (1 - a) * x
    noise = draw(x.shape).to(x)
    return mean + ((1 - b) / (1 - a) * (1 - jump)) ** 0.5 * noise


def _dpm2(
    x: Tensor, x0: Tensor, before: tuple[Tensor, int] | None, schedule: Schedule, *, t: int, following: int
) -> Tensor:
    """Second-order multistep in lambda = ln(sqrt(a) / sqrt(1 - a)), algorithm 2 of the paper."""

    def log_ratio(step: int) -> float:
        a = schedule.signal[step]
        return float(0.5 * (a.log() - (1 - a).log()))

    h = log_ratio(following) - log_ratio(t)
    best = x0
    if before is not None:
        earlier, at = before
        ratio = (log_ratio(t) - log_ratio(at)) / h
        best = x0 + (x0 - earlier) / (2 * ratio)
    a, b = schedule.signal[t], schedule.signal[following]
    shrink = ((1 - b) / (1 - a)).sqrt().item()
    return shrink * x - b.sqrt().item() * torch.expm1(torch.tensor(-h)).item() * best


def smooth_noise(
    shape: tuple[int, ...], voxels: float, generator: torch.Generator | None = None, device: str = "cpu"
) -> Tensor:
    """Gaussian noise `[..., z, y, x]` of unit variance, blurred by a Gaussian of `voxels` standard deviation.

    The residual of a dose is smooth; white noise would hide its coarse features in the very first steps
    only. The blur is circular, so every voxel has the same variance. The process holds for noise of any
    covariance. 0 voxels is white noise.
    """
    noise = torch.randn(shape, generator=generator, device=device)
    if voxels <= 0:
        return noise
    for axis in (-3, -2, -1):
        frequency = torch.fft.rfftfreq(shape[axis], device=device)
        response = torch.exp(-2 * (torch.pi * voxels * frequency) ** 2)
        weight = torch.full_like(response, 2.0)
        weight[0] = 1.0
        if shape[axis] % 2 == 0:
            weight[-1] = 1.0
        response = response / ((weight * response**2).sum() / shape[axis]).sqrt()
        moved = torch.fft.rfft(noise.movedim(axis, -1))
        noise = torch.fft.irfft(moved * response, n=shape[axis]).movedim(-1, axis)
    return noise


def sample_residual(
    network: Callable[[Tensor, Tensor], Tensor],
    mask: Tensor,
    process: Process,
    generator: torch.Generator,
    *,
    steps: int,
    method: Method = "dpm2",
    adjust: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """One residual `[z, y, x]` in units of the process's scale, 0 outside `mask[z, y, x]`.

    `network(x, time)` is its output for the noisy `x[1, 1, z, y, x]` and a time from 0 to 1. `adjust` may
    change the noise-free residual of each step. All noise comes from `generator` on the CPU, so that it is
    the same on every device.
    """

    def draw(shape: torch.Size) -> Tensor:
        return smooth_noise(tuple(shape), process.smooth_voxels, generator).to(mask.device)

    def inside(x0: Tensor, t: int) -> Tensor:
        # There is no residual outside the mask; the network's output there is untrained.
        x0 = x0 * mask
        return x0 if adjust is None else adjust(x0) * mask

    residual = run_sampler(
        lambda x, t: network(x, time_of(t)).float(),
        draw(torch.Size((1, 1, *mask.shape))),
        SCHEDULES[process.schedule](),
        steps=steps,
        target=process.answer,
        method=method,
        clamp=(-process.largest, process.largest),
        adjust=inside,
        draw=draw,
    )
    return residual[0, 0]


def time_of(t: Tensor) -> Tensor:
    """The network's time for step t, from just above 0 to 1."""
    return (t + 1) / STEPS
