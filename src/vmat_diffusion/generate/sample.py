"""The reverse process: predict fluence, descend on the plan's objective, project, and add noise again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from vmat_diffusion.diffusion.process import STEPS, cosine, run_sampler
from vmat_diffusion.errors import InputError
from vmat_diffusion.generate.deliver import deliverable_maps
from vmat_diffusion.generate.encode import FluenceInput, encode_fluence
from vmat_diffusion.generate.model import Conditions, FluenceModel
from vmat_diffusion.optimize.fluence_map import (
    FluenceMaps,
    FluenceProblem,
    Sectors,
    columns_over_jaws,
    cut_into_sectors,
)
from vmat_diffusion.optimize.objectives import Objective
from vmat_diffusion.optimize.planner import OptimizedMaps, fluence_problem
from vmat_diffusion.optimize.preparation import Prepared

# States beyond this many units of the process are cut at each step, as in the dose model.
_LARGEST = 4.0


@dataclass(frozen=True)
class Reverse:
    """How samples are drawn.

    `steps` of the process; after each, `descents` evaluations of the plan's objective, warm-started, and with
    `project` the projection onto what the machine delivers. With 0 steps the regression alone is taken, and
    descents and projection follow it once.
    """

    steps: int = 4
    descents: int = 10
    project: bool = True
    method: Literal["ddpm", "ddim"] = "ddpm"

    def __post_init__(self) -> None:
        if not 0 <= self.steps <= 100 or self.descents < 0:
            raise InputError(
                f"{self.steps} steps of {self.descents} evaluations cannot be drawn; give 0 to 100 steps and "
                "0 evaluations or more"
            )


@dataclass(frozen=True, eq=False)
class FluenceTask:
    """The maps that are asked for: what the network is told of them, and the plan's own problem."""

    prepared: Prepared
    sectors: Sectors
    problem: FluenceProblem
    given: FluenceInput

    @classmethod
    def of(cls, prepared: Prepared) -> FluenceTask:
        """The task of a prepared search."""
        sectors = cut_into_sectors(prepared.frames)
        problem = fluence_problem(prepared, sectors, "fluence maps")
        return cls(prepared, sectors, problem, encode_fluence(prepared, sectors, problem))

    def maps(self, relative: NDArray) -> FluenceMaps:
        """Maps in MU of a relative fluence."""
        return FluenceMaps(relative * self.problem.uniform_mu, columns_over_jaws(self.problem.model))

    def cost(self, relative: NDArray, objective: Objective) -> float:
        """The objective with its price on MU of a relative fluence, as the planner's maps minimise it."""
        return self.problem.cost(relative[self.given.open_bixels], objective)[0]

    def adapted(self, relative: NDArray, objective: Objective) -> Objective:
        """The objective with the goals weighed anew for a relative fluence."""
        with torch.no_grad():
            dose = self.problem.dose(torch.as_tensor(self.maps(relative).mu).float()).numpy()
        return objective.adapt(dose)[0]

    def descended(self, relative: NDArray, objective: Objective, evaluations: int) -> NDArray[np.float64]:
        """Relative fluence after so many evaluations of L-BFGS-B from a start."""
        inside = self.given.open_bixels
        start = np.clip(relative[inside], 0, self.problem.highest)
        found = minimize(
            self.problem.cost, start, args=(objective,), jac=True, method="L-BFGS-B",
            bounds=[(0, self.problem.highest)] * len(start),
            options={"maxfun": evaluations, "maxiter": evaluations, "maxcor": 12},
        ).x  # fmt: skip
        out = np.zeros(inside.shape)
        out[inside] = found
        return out

    def delivered(self, relative: NDArray) -> NDArray[np.float64]:
        """Relative fluence that leaves deliver where this one is asked for, 0 outside open bixels."""
        given = deliverable_maps(self.prepared, self.sectors, self.maps(relative))
        return given.mu / self.problem.uniform_mu * self.given.open_bixels


@dataclass(frozen=True, eq=False)
class FluenceSample:
    """Relative fluence `[sectors, rows, columns]`, and the objective as it was adapted on the way."""

    relative: NDArray[np.float64]
    objective: Objective


def regression(task: FluenceTask, model: FluenceModel) -> NDArray[np.float64]:
    """The network's own fluence, without noise and without physics."""
    conditions = model.conditions(task.given)
    with torch.no_grad():
        return model.relative(_regressed(model, conditions), task.given)


def _regressed(model: FluenceModel, conditions: Conditions) -> Tensor:
    """The regression is the process's last step asked with no noise at all."""
    return model.predicted(torch.zeros_like(conditions.mask), torch.tensor([STEPS - 1]), conditions)


def draw_sample(
    task: FluenceTask, model: FluenceModel, reverse: Reverse, *, seed: int, number: int = 0
) -> FluenceSample:
    """One sample of the maps; `number` counts samples of the same seed.

    Cost: a second for each step of the network, and the planner's evaluations.
    """
    generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
    conditions = model.conditions(task.given)
    held = [task.problem.objective]

    def physical(relative: NDArray) -> NDArray[np.float64]:
        if reverse.descents:
            held[0] = task.adapted(relative, held[0])
            relative = task.descended(relative, held[0], reverse.descents)
        return task.delivered(relative) if reverse.project else relative

    def adjust(x0: Tensor, t: int) -> Tensor:
        return model.state(physical(model.relative(x0, task.given)), task.given)

    def draw(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=generator) * conditions.mask

    with torch.no_grad():
        if reverse.steps == 0:
            regressed = model.relative(_regressed(model, conditions), task.given)
            with torch.enable_grad():
                return FluenceSample(physical(regressed), held[0])
        x = run_sampler(
            lambda x, t: model.predicted(x, t, conditions),
            draw(conditions.mask.shape),
            cosine(),
            steps=reverse.steps,
            target="x0",
            method=reverse.method,
            clamp=(-_LARGEST, _LARGEST),
            adjust=_with_gradient(adjust),
            draw=draw,
        )
    return FluenceSample(model.relative(x, task.given), held[0])


def _with_gradient(adjust):  # type: ignore[no-untyped-def]
    """The physics needs gradients inside a process without them."""

    def enabled(x0: Tensor, t: int) -> Tensor:
        with torch.enable_grad():
            return adjust(x0, t).detach()  # type: ignore[no-any-return]

    return enabled


@dataclass(frozen=True)
class GeneratedMaps:
    """The generator in place of the planner's search for fluence maps; a process can be sent it.

    Called with a prepared search it returns the maps of one sample, `number` of `seed`.
    """

    weights: str
    seed: int = 0
    number: int = 0
    reverse: Reverse = Reverse()

    def __call__(self, prepared: Prepared) -> OptimizedMaps:
        """The maps that the leaves sweep at first."""
        from vmat_diffusion.generate.model import load_fluence_model

        task = FluenceTask.of(prepared)
        sample = draw_sample(
            task, load_fluence_model(self.weights), self.reverse, seed=self.seed, number=self.number
        )
        return OptimizedMaps(task.sectors, task.maps(sample.relative), sample.objective)
