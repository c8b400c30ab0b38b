"""From a case and its goals to a dose: the mean, and samples around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.diffusion.encode import DoseGoals, Encoded, decode, encode, goal_numbers, mirrored, padded
from vmat_diffusion.diffusion.model import DoseModel, load_model
from vmat_diffusion.diffusion.network import Anatomy, DoseNet
from vmat_diffusion.diffusion.process import Method, sample_residual
from vmat_diffusion.geometry import Mask

Pull = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    `samples` is how many, 0 for the regression alone; `steps` of `method` each. The stream of sample k
    depends on `seed` and k alone. `guidance` is that of classifier-free guidance on the goals: 1 takes the
    answer to the goals as it is, more leads further away from the answer without goals. `mirror` takes the
    regression as the mean over the case and its mirror image.
    """

    samples: int = 0
    steps: int = 8
    seed: int = 0
    method: Method = "ddim"
    guidance: float = 1.0
    mirror: bool = True


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of a case; all doses on the grid of the case.

    `regression` is the answer without diffusion. `mean` is the mean of the samples, with their standard
    deviation as `std_gy` from two samples on, or the regression where none was drawn.
    """

    regression: Dose
    mean: Dose
    samples: tuple[Dose, ...] = ()


def predict(
    case: Case,
    possible_dose: Mask,
    model: DoseModel | str | Path = "shipped",
    *,
    has_ct: bool = True,
    goals: DoseGoals | None = None,
    sampling: Sampling | None = None,
    pull: Pull | None = None,
    progress: Callable[[float], None] | None = None,
) -> Prediction:
    """Predict the dose of a case on its own grid, whose voxels should be of the size it was trained on.

    `goals` are values the dose should meet, as told in training; `pull(gy)` changes the dose in Gy,
    `[z, y, x]` cut to the box of the mask, at every step of the sampler. Raises CaseError for a case that
    cannot be encoded, InputError where samples are asked of a model without diffusion.
    """
    model = model if isinstance(model, DoseModel) else load_model(model)
    encoded = encode(case, possible_dose, model.encoding, has_ct=has_ct, goals=goals)
    return predict_encoded(encoded, model, sampling or Sampling(), pull=pull, progress=progress)


def predict_encoded(
    encoded: Encoded,
    model: DoseModel,
    asked: Sampling,
    *,
    pull: Pull | None = None,
    progress: Callable[[float], None] | None = None,
) -> Prediction:
    """The same for a case that is encoded already."""
    model.require_samples(asked.samples)
    seen = _Seen(encoded, model, asked)
    # bfloat16 where convolutions gain by it; the sampler itself stays in single precision.
    with torch.no_grad(), torch.autocast(seen.device.type, torch.bfloat16):
        base = decode(_numpy(seen.regression, encoded), encoded, _provenance(model, asked, goals=seen.asks))
        drawn = []
        for k in range(asked.samples):
            relative = seen.drawn(k, pull)
            drawn.append(decode(_numpy(relative, encoded), encoded, {**base.provenance, "sample": k}))
            if progress:
                progress((k + 1) / asked.samples)
    if not drawn:
        return Prediction(base, base)
    stack = np.stack([d.gy for d in drawn])
    std = stack.std(axis=0, ddof=1) if len(drawn) > 1 else None
    return Prediction(base, replace(base, gy=stack.mean(axis=0), std_gy=std), tuple(drawn))


class _Seen:
    """One case before the networks: its anatomy is encoded once, for every view, role and set of goals."""

    def __init__(self, encoded: Encoded, model: DoseModel, asked: Sampling) -> None:
        self.encoded, self.model, self.asked = encoded, model, asked
        self.device = next(model.mean.parameters()).device
        numbers = encoded.vector[-goal_numbers(DoseGoals(), model.encoding, 1.0).size :]
        self.asks = bool(numbers.any())
        self.volume = padded(torch.from_numpy(encoded.volume), model.encoding, model.mean.multiple)[None]
        self.mask = torch.zeros(self.volume.shape[2:])
        self.mask[tuple(slice(n) for n in encoded.mask.shape)] = torch.from_numpy(encoded.mask).float()
        self.mask = self.mask.to(self.device)
        self.vector = torch.from_numpy(encoded.vector)[None]
        self.free = self.vector.clone()
        self.free[:, -numbers.size :] = 0.0

    def anatomies(self, net: DoseNet, *, mirror: bool = False) -> list[tuple[float, Anatomy]]:
        """What the encoder makes of the case, or of its mirror image, with the weight in the answer."""
        guided = self.asks and self.asked.guidance != 1.0
        vectors = [(self.vector, self.asked.guidance if guided else 1.0)]
        if guided:
            vectors.append((self.free, 1.0 - self.asked.guidance))
        out = []
        for vector, weight in vectors:
            volume, numbers = self.volume, vector
            if mirror:
                volume, numbers = mirrored(volume, numbers, self.model.encoding)
            volume = volume.to(self.device).contiguous(memory_format=torch.channels_last_3d)
            out.append((weight, net.anatomy(volume, numbers.to(self.device))))
        return out

    def _view(self, *, mirror: bool) -> Tensor:
        """What the regression answers to the case or to its mirror image, turned back."""
        one, net = torch.ones(1, device=self.device), self.model.mean
        answer = sum(
            (
                weight * net(anatomy, one)[0, 0].float()
                for weight, anatomy in self.anatomies(net, mirror=mirror)
            ),
            start=torch.zeros_like(self.mask),
        )
        return answer.flip(-1) if mirror else answer

    @cached_property
    def own(self) -> Tensor:
        """The regression without the mirror image: what the residual was learnt on."""
        return self._dose(self._own_view)

    @cached_property
    def regression(self) -> Tensor:
        """The dose relative to the prescription, `[z, y, x]`."""
        if not self.asked.mirror:
            return self.own
        return self._dose(0.5 * self._own_view + 0.5 * self._view(mirror=True))

    @cached_property
    def _own_view(self) -> Tensor:
        return self._view(mirror=False)

    @cached_property
    def _residual_anatomies(self) -> list[tuple[float, Anatomy]]:
        assert self.model.residual is not None  # checked at the door
        return self.anatomies(self.model.residual)

    def _dose(self, relative: Tensor) -> Tensor:
        """Never negative, and 0 outside the mask."""
        return relative.clamp(min=0) * self.mask

    def drawn(self, k: int, pull: Pull | None) -> Tensor:
        """One sample of the dose relative to the prescription."""
        net, process = self.model.residual, self.model.description.process
        assert net is not None  # checked at the door
        unit = process.scale * self.model.description.spread
        shape = tuple(slice(n) for n in self.encoded.mask.shape)

        def answer(x: Tensor, time: Tensor) -> Tensor:
            parts = [w * net(a, time, x, self.own[None, None]) for w, a in self._residual_anatomies]
            return torch.stack(parts).sum(0)

        def pulled(x0: Tensor) -> Tensor:
            assert pull is not None
            gy = self._dose(self.regression + unit * x0[0, 0])[shape] * self.encoded.top_gy
            out = x0.clone()
            out[0, 0][shape] = (pull(gy) / self.encoded.top_gy - self.regression[shape]) / unit
            return out

        residual = sample_residual(
            answer,
            self.mask,
            process,
            torch.Generator().manual_seed(_seed(self.asked.seed, k)),
            steps=self.asked.steps,
            method=self.asked.method,
            adjust=pulled if pull else None,
        )
        return self._dose(self.regression + unit * residual)


def _seed(seed: int, k: int) -> int:
    return int(np.random.SeedSequence([seed, k]).generate_state(1)[0])


def _numpy(relative: Tensor, encoded: Encoded) -> NDArray[np.float32]:
    cut = relative[tuple(slice(n) for n in encoded.mask.shape)]
    return cut.float().cpu().numpy()


def _provenance(model: DoseModel, asked: Sampling, *, goals: bool) -> dict[str, object]:
    name = model.description.card.get("name", "weights without a card")
    return {
        "predicted by": name,
        "samples": asked.samples,
        "steps": asked.steps,
        "seed": asked.seed,
        "goals": goals,
    }
