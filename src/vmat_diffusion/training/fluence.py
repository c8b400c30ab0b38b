"""Training of the generator of fluence: one network, asked for the regression and for noisy states in turn.

Plans are few and small: all are held in memory, and one step sees one plan. A run that was ended goes on from
its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.diffusion.process import STEPS, add_noise, cosine
from vmat_diffusion.errors import InputError
from vmat_diffusion.files import written_whole
from vmat_diffusion.generate.encode import FEATURES, FluenceInput
from vmat_diffusion.generate.examples import FluenceExample
from vmat_diffusion.generate.known import plan_figures, plans_known
from vmat_diffusion.generate.model import Conditions, FluenceDescription, FluenceModel
from vmat_diffusion.generate.network import FluenceNet, FluenceSize
from vmat_diffusion.progress import Progress, silent

# A feature that hardly varies among open bixels is not blown up.
_LEAST_SCALE = 0.05
# Steps in which the rate rises to its full value.
_WARM_STEPS = 100


@dataclass(frozen=True)
class FluenceTraining:
    """How the generator is trained.

    One of `regressions` steps asks for the regression, the others for a state with noise. `rise` weighs the
    error of the rise of fluence along the leaves, which sweeps pay for in MU.
    """

    steps: int = 3000
    rate: float = 2e-3
    decay: float = 1e-2
    ema: float = 0.997
    regressions: float = 0.4
    rise: float = 0.3
    seed: int = 0
    size: FluenceSize = field(default_factory=FluenceSize)


def described(examples: Sequence[FluenceExample], size: FluenceSize) -> FluenceDescription:
    """The units of process and features, and the ranges, from the training plans."""
    inside = [e.given.open_bixels for e in examples]
    fluence = np.concatenate([e.relative[o] for e, o in zip(examples, inside, strict=True)])
    features = np.concatenate(
        [np.moveaxis(e.given.features, 1, -1)[o] for e, o in zip(examples, inside, strict=True)]
    )
    scales = np.maximum(np.sqrt(np.mean(np.square(features, dtype=np.float64), axis=0)), _LEAST_SCALE)
    return FluenceDescription(
        float(fluence.mean()),
        float(fluence.std()),
        tuple(float(f"{s:.5g}") for s in scales),
        size=size,
        known=plans_known([plan_figures(e.given) for e in examples]),
    )


def train_fluence(
    examples: Sequence[FluenceExample],
    settings: FluenceTraining,
    checkpoint: Path,
    *,
    validation: Sequence[FluenceExample] = (),
    minutes: float | None = None,
    report_every: int = 50,
    progress: Progress = silent,
) -> FluenceModel:
    """The generator after the settings' steps, or those that fit into `minutes`, with averaged weights.

    `checkpoint` is read where it exists, and written every `report_every` steps. Raises InputError for fewer
    than two plans or a checkpoint of other settings.
    """
    if len(examples) < 2:
        raise InputError(f"{len(examples)} plans are too few to train on; make more maps")
    examples, validation = ([cropped(e) for e in some] for some in (examples, validation))
    description = described(examples, settings.size)
    begun = _begun(settings, description)
    state = _State.at(checkpoint, settings, begun)
    trained, model = (FluenceModel(description, net) for net in (state.net, state.average))
    started, losses = time.monotonic(), []
    for step in range(state.step, settings.steps):
        rng = np.random.default_rng([settings.seed, step])
        example = flipped(examples[int(rng.integers(len(examples)))], *(rng.random(2) < 0.5))
        losses.append(state.stepped(_loss(trained, example, settings, rng), settings))
        ended = minutes is not None and time.monotonic() - started > 60 * minutes
        if state.step % report_every == 0 or state.step == settings.steps or ended:
            errors = validation_errors(model, validation)
            found = "".join(f", {name} {value:.4f}" for name, value in errors.items())
            note = f"step {state.step}, loss {np.mean(losses[-report_every:]):.4f}{found}"
            progress("train", state.step / settings.steps, note)
            state.save(checkpoint, begun)
        if ended:
            break
    state.average.eval().requires_grad_(False)
    return model


@dataclass(eq=False)
class _State:
    """A network in training, its running average, and the optimiser."""

    net: FluenceNet
    average: FluenceNet
    optimizer: torch.optim.Optimizer
    step: int = 0

    @classmethod
    def at(cls, checkpoint: Path, settings: FluenceTraining, begun: Mapping[str, Any]) -> _State:
        """The state of a checkpoint, which `begun` so, or a new one where there is none."""
        torch.manual_seed(settings.seed)
        net, average = (FluenceNet(len(FEATURES), settings.size) for _ in range(2))
        average.load_state_dict(net.state_dict())
        optimizer = torch.optim.AdamW(net.parameters(), lr=settings.rate, weight_decay=settings.decay)
        if not checkpoint.is_file():
            return cls(net, average, optimizer)
        kept = torch.load(checkpoint, weights_only=True)
        if kept["begun"] != begun:
            raise InputError(
                f"{checkpoint.name} is of other settings or other plans; name another file or remove it"
            )
        net.load_state_dict(kept["net"])
        average.load_state_dict(kept["average"])
        optimizer.load_state_dict(kept["optimizer"])
        return cls(net, average, optimizer, int(kept["step"]))

    def save(self, checkpoint: Path, begun: Mapping[str, Any]) -> None:
        """Write the checkpoint of a training that `begun` so."""
        kept = {
            "begun": begun,
            "step": self.step,
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with written_whole(checkpoint) as part:
            torch.save(kept, part)

    def stepped(self, loss: Tensor, settings: FluenceTraining) -> float:
        """One step down the gradient of a loss, which is returned; the rate rises, then falls as a cosine."""
        done = self.step / settings.steps
        warm = min(1.0, (self.step + 1) / _WARM_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate * warm * 0.5 * (1 + math.cos(math.pi * done))
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        keep = min(settings.ema, (self.step + 1) / (self.step + 10))
        with torch.no_grad():
            for mean, now in zip(self.average.parameters(), self.net.parameters(), strict=True):
                mean.lerp_(now, 1 - keep)
        self.step += 1
        return float(loss.detach())


def _begun(settings: FluenceTraining, description: FluenceDescription) -> dict[str, Any]:
    """What a checkpoint goes on with alone: the settings, and a code of the plans' figures."""
    figures = json.dumps(asdict(description), sort_keys=True)
    return {**asdict(settings), "plans": hashlib.sha256(figures.encode()).hexdigest()}


def steps_done(checkpoint: Path) -> int:
    """The steps of a checkpoint."""
    return int(torch.load(checkpoint, weights_only=True)["step"])


def cropped(example: FluenceExample) -> FluenceExample:
    """The plan with no more rows and columns than its open bixels need: less to compute.

    What lies beside them changes the network's normalisation a little, so whole plans are not quite alike.
    """
    given = example.given
    rows, columns = (np.flatnonzero(given.open_bixels.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    box = (..., slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    inside = FluenceInput(given.features[box], given.open_bixels[box], given.arc, given.gantry_deg)
    return FluenceExample(inside, example.relative[box], example.record)


def flipped(example: FluenceExample, along: bool, across: bool) -> FluenceExample:
    """The mirror image of a plan: columns reversed, rows reversed.

    No feature knows left from right or head from feet, so the mirror image of a patient is another patient.
    """
    axes = tuple(axis for axis, wanted in ((-1, along), (-2, across)) if wanted)

    def turned(values: NDArray) -> NDArray:
        return np.ascontiguousarray(np.flip(values, axes)) if axes else values

    given = example.given
    mirrored = FluenceInput(turned(given.features), turned(given.open_bixels), given.arc, given.gantry_deg)
    return FluenceExample(mirrored, turned(example.relative), example.record)


def _loss(
    model: FluenceModel, example: FluenceExample, settings: FluenceTraining, rng: np.random.Generator
) -> Tensor:
    """L1 of the noise-free state, and of its rise along the leaves."""
    conditions = model.conditions(example.given)
    x0 = model.state(example.relative, example.given)
    if rng.random() < settings.regressions:
        t, x = torch.tensor([STEPS - 1]), torch.zeros_like(x0)
    else:
        t = torch.tensor([int(rng.integers(STEPS))])
        noise = torch.as_tensor(rng.standard_normal(x0.shape), dtype=torch.float32) * conditions.mask
        x = add_noise(x0, noise, t, cosine())
    return fluence_error(model.predicted(x, t, conditions), x0, conditions, settings.rise)


def fluence_error(predicted: Tensor, x0: Tensor, conditions: Conditions, rise: float) -> Tensor:
    """Mean absolute error over open bixels, and `rise` times that of the differences along the leaves."""
    away = predicted - x0
    count = conditions.mask.sum().clamp_min(1)
    steps = torch.diff(away, dim=3, prepend=away[..., :1] * 0)
    return (away.abs().sum() + rise * steps.abs().sum()) / count


def validation_errors(model: FluenceModel, examples: Sequence[FluenceExample]) -> Mapping[str, float]:
    """Mean absolute error of relative fluence over plans: of the regression, and of the plans' own mean."""
    if not examples:
        return {}
    rows = []
    model.net.eval()
    with torch.no_grad():
        for e in examples:
            inside = e.given.open_bixels
            conditions = model.conditions(e.given)
            x = model.predicted(torch.zeros_like(conditions.mask), torch.tensor([STEPS - 1]), conditions)
            found = model.relative(x, e.given)[inside]
            truth = e.relative[inside]
            rows.append((np.abs(found - truth).mean(), np.abs(truth - np.median(truth)).mean()))
    model.net.train()
    mine, flat = np.mean(rows, axis=0)
    return {"validation error": float(mine), "of a flat map": float(flat)}


def card_of(examples: Sequence[FluenceExample], settings: FluenceTraining, **more: Any) -> dict[str, Any]:
    """The model card: whose plans, how many, and how it was trained."""
    records = [e.record for e in examples]
    return {
        "name": "fluence generator",
        "plans": len(records),
        "patients": len({r["patient"] for r in records}),
        "sites": {s: sum(r["site"] == s for r in records) for s in sorted({r["site"] for r in records})},
        "learnt": "fluence maps of the planner's first stage, before leaves",
        "training": asdict(settings),
        **more,
    }
