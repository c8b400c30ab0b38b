"""Dose prediction on the model's grid: the regression, and samples of the diffusion around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.case import Dose
from vmat_diffusion.diffusion.encode import (
    Encoded,
    decode,
    mirror_case,
    pad_to_multiple,
)
from vmat_diffusion.diffusion.model import DoseModel
from vmat_diffusion.diffusion.network import Anatomy, DoseNet
from vmat_diffusion.diffusion.process import Method, sample_residual

# Moves a dose `[z, y, x]` in Gy towards goals; `diffusion.steer.goal_guidance` makes one.
GoalGuidance = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    `samples` is their number, 0 for the regression alone; each takes `steps` of `method`. DPM-Solver++ 2M
    loses less of the spread in few steps than DDIM. The random stream of sample k depends on `seed` and k
    alone. `temperature` multiplies the residual that the network draws: below 1 a sample stays nearer to the
    regression. `calibrated` multiplies the standard deviation by the factor that was fitted for the weights,
    for this method and number of steps. `guidance` is the weight of classifier-free guidance on the goals (Ho
    and Salimans, arXiv:2207.12598): 1 takes the conditional output as it is, more goes further away from the
    unconditional output. With `mirror` the regression is the mean over the case and its mirror image.
    """

    samples: int = 0
    steps: int = 8
    seed: int = 0
    method: Method = "dpm2"
    temperature: float = 0.6
    calibrated: bool = True
    guidance: float = 1.0
    mirror: bool = True


@dataclass(frozen=True, eq=False)
class Prediction:
    """The doses that a model predicts, on the grid of the encoded case.

    `regression` is the dose without diffusion. `mean` is the mean of the samples, or the regression where
    there are none. From two samples on its `std_gy` is the standard deviation by which the true dose is
    expected to differ: that of the samples at temperature 1, times the fitted factor.
    """

    regression: Dose
    mean: Dose
    samples: tuple[Dose, ...] = ()


def predict_encoded(
    encoded: Encoded,
    model: DoseModel,
    sampling: Sampling,
    *,
    goal_guidance: GoalGuidance | None = None,
    progress: Callable[[float], None] | None = None,
) -> Prediction:
    """Predict the dose of an encoded case on its grid, whose voxels should have the training cases' size.

    `goal_guidance` changes the dose, cut to the box of the mask, at every step of the sampler. Raises
    InputError for samples of a model without diffusion.
    """
    model.require_samples(sampling.samples)
    sampler = _CaseSampler(encoded, model, sampling)
    # bfloat16 where it is fast; the sampler itself stays in single precision.
    with torch.no_grad(), torch.autocast(sampler.device.type, torch.bfloat16, enabled=sampler.on_gpu):
        made_with = _provenance(model, sampling, goals=sampler.has_goals)
        regression = decode(_numpy(sampler.regression, encoded), encoded, made_with)
        samples = []
        for k in range(sampling.samples):
            relative = sampler.sample(k, goal_guidance)
            samples.append(decode(_numpy(relative, encoded), encoded, {**made_with, "sample": k}))
            if progress:
                progress((k + 1) / sampling.samples)
    if not samples:
        return Prediction(regression, regression)
    stack = np.stack([dose.gy for dose in samples])
    std = stack.std(axis=0, ddof=1) * np.float32(sampler.widened) if len(samples) > 1 else None
    mean = replace(regression, gy=stack.mean(axis=0), std_gy=std)
    return Prediction(regression, mean, tuple(samples))


def band_factors(model: DoseModel, sampling: Sampling) -> tuple[float, float]:
    """What multiplies the standard deviation of drawn samples in their bands: of voxels, of DVH points.

    Raises InputError where the model's factors were fitted for another method or number of steps.
    """
    voxels = points = 1.0
    if sampling.samples > 1 and sampling.calibrated:
        voxels = model.spread(sampling.method, sampling.steps)
        fitted = model.description.calibration
        points = voxels if fitted is None or fitted.points is None else fitted.points
    return voxels / sampling.temperature, points / sampling.temperature


class _CaseSampler:
    """The networks on one case, whose anatomy each network encodes once for all sampling steps."""

    def __init__(self, encoded: Encoded, model: DoseModel, sampling: Sampling) -> None:
        self.encoded, self.model, self.sampling = encoded, model, sampling
        self.device = next(model.mean.parameters()).device
        self.on_gpu = self.device.type != "cpu"
        self.widened, _ = band_factors(model, sampling)
        goals = model.encoding.layout.goals
        self.has_goals = bool(encoded.vector[goals].any())
        self.volume = pad_to_multiple(torch.from_numpy(encoded.volume), model.encoding, model.mean.multiple)[
            None
        ]
        self.mask = torch.zeros(self.volume.shape[2:])
        self.mask[self._box] = torch.from_numpy(encoded.mask).float()
        self.mask = self.mask.to(self.device)
        self.vector = torch.from_numpy(encoded.vector)[None]
        self.vector_without_goals = self.vector.clone()
        self.vector_without_goals[:, goals] = 0.0

    @cached_property
    def regression(self) -> Tensor:
        """The dose relative to the prescription, `[z, y, x]`."""
        if not self.sampling.mirror:
            return self._residual_base
        return self._dose(0.5 * self._direct + 0.5 * self._network_regression(mirror=True))

    def sample(self, k: int, goal_guidance: GoalGuidance | None) -> Tensor:
        """Sample k of the dose relative to the prescription, `[z, y, x]`."""
        net, process = self.model.residual, self.model.description.process
        assert net is not None  # `require_samples` has refused this model
        unit = process.scale * self.sampling.temperature

        def network(x: Tensor, time: Tensor) -> Tensor:
            base = self._residual_base[None, None]
            parts = [w * net(a, time, x, base) for w, a in self._residual_anatomies]
            return torch.stack(parts).sum(0)

        def towards_goals(x0: Tensor) -> Tensor:
            assert goal_guidance is not None
            gy = self._dose(self.regression + unit * x0[0, 0])[self._box] * self.encoded.top_gy
            guided = goal_guidance(gy) / self.encoded.top_gy
            out = x0.clone()
            out[0, 0][self._box] = (guided - self.regression[self._box]) / unit
            return out

        residual = sample_residual(
            network,
            self.mask,
            process,
            torch.Generator().manual_seed(_seed(self.sampling.seed, k)),
            steps=self.sampling.steps,
            method=self.sampling.method,
            adjust=towards_goals if goal_guidance else None,
        )
        return self._dose(self.regression + unit * residual)

    @property
    def _box(self) -> tuple[slice, ...]:
        """The place of the encoded case in the padded volume."""
        return tuple(slice(n) for n in self.encoded.mask.shape)

    def _anatomies(self, net: DoseNet, *, mirror: bool = False) -> list[tuple[float, Anatomy]]:
        """The encoded anatomy of the case, or of its mirror image, with its weight in the output.

        Two with classifier-free guidance: with goals and without.
        """
        weight = self.sampling.guidance if self.has_goals else 1.0
        vectors = [(self.vector, weight)]
        if weight != 1.0:
            vectors.append((self.vector_without_goals, 1.0 - weight))
        out = []
        for vector, share in vectors:
            volume, numbers = self.volume, vector
            if mirror:
                volume, numbers = mirror_case(volume, numbers, self.model.encoding)
            mask = self.mask.flip(-1) if mirror else self.mask
            out.append((share, net.anatomy(volume.to(self.device), numbers.to(self.device), mask)))
        return out

    def _network_regression(self, *, mirror: bool) -> Tensor:
        """The output of the regression for the case, or for its mirror image and then mirrored back."""
        time, net = torch.ones(1, device=self.device), self.model.mean
        total = torch.zeros_like(self.mask)
        for weight, anatomy in self._anatomies(net, mirror=mirror):
            total = total + weight * net(anatomy, time)[0, 0].float()
        return total.flip(-1) if mirror else total

    @cached_property
    def _direct(self) -> Tensor:
        return self._network_regression(mirror=False)

    @cached_property
    def _residual_base(self) -> Tensor:
        """The regression without the mirror image, to which the residual was trained."""
        return self._dose(self._direct)

    @cached_property
    def _residual_anatomies(self) -> list[tuple[float, Anatomy]]:
        assert self.model.residual is not None  # `require_samples` has refused this model
        return self._anatomies(self.model.residual)

    def _dose(self, relative: Tensor) -> Tensor:
        """Never negative, and 0 outside the mask."""
        return relative.clamp(min=0) * self.mask


def _seed(seed: int, k: int) -> int:
    return int(np.random.SeedSequence([seed, k]).generate_state(1)[0])


def _numpy(relative: Tensor, encoded: Encoded) -> NDArray[np.float32]:
    cut = relative[tuple(slice(n) for n in encoded.mask.shape)]  # without the padding
    return cut.float().cpu().numpy()


def _provenance(model: DoseModel, sampling: Sampling, *, goals: bool) -> dict[str, object]:
    return {
        "predicted by": model.name,
        "samples": sampling.samples,
        "steps": sampling.steps,
        "method": sampling.method,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "goals": goals,
    }
