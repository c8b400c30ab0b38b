"""Direct aperture optimisation: leaves and MU of all control points against the objective.

After Bzdusek et al., Med Phys 36:2328 (2009), with exact gradients through the dose engine; the machine's
limits are held by projection after every step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.dose.pencil_beam.sampled import ApertureDose
from vmat_diffusion.evaluate.goals import Goal
from vmat_diffusion.optimize.deliverable_set import Apertures, ControlPoints, DeliverableSet, jaws_of
from vmat_diffusion.optimize.mu_price import MuPrice
from vmat_diffusion.optimize.objective_terms import ModulationPenalties, modulation_penalty
from vmat_diffusion.optimize.objectives import Objective

# Distance of the fluence's nodes in the search; what they miss the full dose makes good.
NODES_MM = 2.5
# Adam's decay of the mean and of the mean square of the gradient. The square forgets faster than the
# usual 0.999, as a stage has few iterations; the mean more slowly than 0.9, as many leaves pull at an organ
# together.
_MEAN_DECAY, _SQUARE_DECAY = 0.95, 0.97
# Adam's first steps have full length in every direction, however small the gradient: so many are shortened.
_SHORT_STEPS = 8
# Of the root mean square of all gradients: keeps leaves that hardly matter from moving at full pace.
_GRADIENT_FLOOR = 0.1
# The last MU step is shorter than the first by this share.
_MU_STEP_FALL = 0.8


@dataclass(frozen=True)
class Score:
    """The goals that a state misses, whether it misses the limit of MU, and the objective."""

    missed: tuple[Goal, ...]
    objective: float
    within_mu: bool = True

    @property
    def missed_by_priority(self) -> tuple[int, ...]:
        """How many of each priority, must, should and wish; the first difference decides. MU are a should."""
        musts, shoulds, wishes = by_priority(self.missed)
        return musts, shoulds + (not self.within_mu), wishes


def by_priority(missed: Iterable[Goal]) -> tuple[int, ...]:
    """How many goals of each priority are missed, must, should and wish."""
    priorities = [goal.priority for goal in missed]
    return tuple(priorities.count(p) for p in (1, 2, 3))


@dataclass(frozen=True, eq=False)
class ApertureProblem:
    """What one stage of the search minimises, and over which apertures.

    `doses` gives the dose of apertures at the objective's points in units of the output per MU.
    `correction` is added to the relative dose at these points: the difference between the full
    dose on its grid and the sampled dose when they were last compared. `relative_per_mu` is the relative dose
    of the course for one MU per fraction at the reference point.
    """

    allowed: DeliverableSet
    doses: ApertureDose
    objective: Objective
    relative_per_mu: float
    correction: Tensor
    penalties: ModulationPenalties
    mu_price: MuPrice

    @property
    def points(self) -> ControlPoints:
        """The control points and segments."""
        return self.allowed.points

    def within(self, allowed: DeliverableSet) -> ApertureProblem:
        """The same problem with other jaws at the same control points."""
        return replace(self, allowed=allowed, doses=self.doses.with_jaws(jaws_of(allowed.points)))

    def ends(self, leaves: Tensor) -> Tensor:
        """The leaves `[segments, start|end, bank, row]` at both ends of every segment."""
        return torch.stack([leaves[self.points.first], leaves[self.points.last]], dim=1)

    def mu_penalty(self, dose: Tensor, mu: Tensor) -> Tensor:
        """The price of the MU for the dose that they give the highest target."""
        return self.mu_price(mu.sum(), self.objective.highest_level(dose))

    def modulation_penalty(self, leaves: Tensor, mu: Tensor) -> Tensor:
        """The penalty on narrow gaps, ragged edges and travelling leaves."""
        first, last = torch.as_tensor(self.points.first), torch.as_tensor(self.points.last)
        gap = self.allowed.machine.limits.leaf_gap_mm
        return modulation_penalty(leaves, mu, first, last, self.penalties, least_gap_mm=gap)

    def relative_dose(self, leaves: Tensor, mu: Tensor) -> Tensor:
        """Relative dose at the objective's points, differentiable."""
        return self.doses.dose(self.ends(leaves), mu) * self.relative_per_mu + self.correction

    def value(self, dose: Tensor, leaves: Tensor, mu: Tensor) -> Tensor:
        """What the search minimises, for the relative dose of leaves and MU."""
        return self.objective(dose) + self.mu_penalty(dose, mu) + self.modulation_penalty(leaves, mu)

    def score(self, apertures: Apertures) -> Score:
        """The goals that apertures miss, and their objective."""
        with torch.no_grad():
            leaves, mu = apertures.tensors()
            dose = self.relative_dose(leaves, mu)
            missed = self.objective.missed_goals(dose.numpy())
            within = self.mu_price.met(mu.sum(), self.objective.highest_level(dose))
            return Score(tuple(missed), float(self.value(dose, leaves, mu)), within)

    def adapted(self, dose: Tensor, mu: Tensor) -> tuple[ApertureProblem, int]:
        """The problem with goals and MU weighed anew for a state, and how many goals miss their limit."""
        relative = dose.detach().numpy()
        objective, missed = self.objective.adapt(relative)
        hold = any(
            g.priority == 1 or g.structure in objective.target_gy for g in objective.missed_goals(relative)
        )
        price = self.mu_price.adapted(mu.detach().sum(), objective.highest_level(dose.detach()), hold=hold)
        return replace(self, objective=objective, mu_price=price), missed

    def dose(self, apertures: Apertures) -> NDArray[np.float32]:
        """Relative dose at the objective's points."""
        with torch.no_grad():
            return self.relative_dose(*apertures.tensors()).numpy()

    def gradients(self, apertures: Apertures) -> dict[str, NDArray[np.float64]]:
        """The gradient of each part of the objective by leaves and MU, by the part's name."""
        leaves, mu = apertures.tensors(differentiable=True)
        dose = self.relative_dose(leaves, mu)
        out = {}
        parts = dict(self.objective.parts(dose))
        if (limit := self.mu_price.goal) is not None:
            parts[str(limit)] = self.mu_penalty(dose, mu)
        for name, part in parts.items():
            if float(part.detach()) > 0:
                by_leaf, by_mu = torch.autograd.grad(part, (leaves, mu), retain_graph=True)
                # Per mm of leaf and per share of MU, as the search steps.
                both = [by_leaf.double().numpy().ravel(), by_mu.double().numpy() * apertures.mu]
                out[name] = np.concatenate(both)
        return out


@dataclass(frozen=True)
class Stage:
    """One stage of the search: iterations, first and last leaf step in mm, first MU step (relative).

    It moves every n-th control point (`every`), weighs the goals anew every `adapt_every` iterations, and
    must have ended by a share of the time limit (`time_share`). Narrow kernels have nodes every `nodes_mm`.
    """

    name: str
    every: int
    iterations: int
    leaf_step_mm: float
    leaf_step_end_mm: float
    mu_step: float
    adapt_every: int
    time_share: float
    nodes_mm: float = NODES_MM

    def scaled(self, effort: float) -> Stage:
        """The stage with its iterations scaled.

        A longer search takes longer rounds, not more of them: the weights end where a short one's do.
        """
        return replace(
            self,
            iterations=max(int(self.iterations * effort), 1),
            adapt_every=int(self.adapt_every * max(effort, 1.0)),
        )


@dataclass(frozen=True, eq=False)
class SearchStep:
    """One iteration of the search; all its apertures are deliverable.

    `apertures` are those of this iteration and `value` is what the search minimises. A round is the
    iterations between two changes of the weights: `objective` has the weights of this one, `best` its
    apertures of least value. `leader` are, of all apertures at which the weights changed, those that missed
    fewest goals, higher priorities first. `missed` counts the goals open at the last change.
    """

    iteration: int
    round: int
    apertures: Apertures
    value: float
    best: Apertures
    best_value: float
    leader: Apertures
    missed: int
    objective: Objective
    mu_price: MuPrice


def search(problem: ApertureProblem, stage: Stage, start: Apertures) -> Iterator[SearchStep]:
    """Projected Adam from deliverable apertures to better ones, iteration by iteration.

    A caller may stop at any step and keep its `best`.
    """
    apertures = best = leader = start
    best_value, round_number, missed = np.inf, 0, 0
    fewest: tuple[int, ...] | None = None
    adam = _Adam.at_rest(apertures)
    for k in range(stage.iterations):
        leaves, mu = apertures.tensors(differentiable=True)
        dose = problem.relative_dose(leaves, mu)
        value = problem.value(dose, leaves, mu)
        value.backward()
        if value.item() < best_value:
            best, best_value = apertures, value.item()
        yield SearchStep(
            k,
            round_number,
            apertures,
            value.item(),
            best,
            best_value,
            leader,
            missed,
            problem.objective,
            problem.mu_price,
        )
        if (k + 1) % stage.adapt_every == 0 and k + 1 < stage.iterations:
            relative = dose.detach().numpy()
            failed = by_priority(problem.objective.missed_goals(relative))
            if fewest is None or failed <= fewest:
                leader, fewest = apertures, failed
            problem, missed = problem.adapted(dose, mu)
            best_value, round_number = np.inf, round_number + 1
        assert leaves.grad is not None and mu.grad is not None
        gradients = (leaves.grad.double().numpy(), (mu.grad.double().numpy() * apertures.mu))
        adam, (leaf_direction, mu_direction) = adam.step(gradients, k)
        leaf_step, mu_step = _step_lengths(stage, k)
        apertures = problem.allowed.project(
            Apertures(
                apertures.leaves_mm - leaf_step * leaf_direction,
                apertures.mu * np.exp(-mu_step * mu_direction),
            )
        )


def _step_lengths(stage: Stage, iteration: int) -> tuple[float, float]:
    """Leaf step in mm and relative MU step: short at first, then falling from the first to the last."""
    done = iteration / max(stage.iterations - 1, 1)
    leaf_step = stage.leaf_step_mm * (stage.leaf_step_end_mm / stage.leaf_step_mm) ** done
    short = min(1.0, (iteration + 1) / _SHORT_STEPS)
    return leaf_step * short, stage.mu_step * (1 - _MU_STEP_FALL * done) * short


@dataclass(frozen=True, eq=False)
class _Adam:
    """Running mean and mean square of the gradients by leaves and by MU."""

    mean: tuple[NDArray[np.float64], ...]
    square: tuple[NDArray[np.float64], ...]

    @classmethod
    def at_rest(cls, apertures: Apertures) -> _Adam:
        zeros = tuple(np.zeros_like(a) for a in (apertures.leaves_mm, apertures.mu))
        return cls(zeros, zeros)

    def step(
        self, gradients: tuple[NDArray[np.float64], ...], iteration: int
    ) -> tuple[_Adam, tuple[NDArray[np.float64], ...]]:
        """The state after these gradients, and the directions to go against, of about unit length."""
        b1, b2 = _MEAN_DECAY, _SQUARE_DECAY
        mean = tuple(b1 * m + (1 - b1) * g for m, g in zip(self.mean, gradients, strict=True))
        square = tuple(b2 * s + (1 - b2) * g * g for s, g in zip(self.square, gradients, strict=True))
        directions = []
        for m, s in zip(mean, square, strict=True):
            m, v = m / (1 - b1 ** (iteration + 1)), s / (1 - b2 ** (iteration + 1))
            directions.append(m / (np.sqrt(v) + _GRADIENT_FLOOR * np.sqrt(v.mean()) + 1e-20))
        return _Adam(mean, square), tuple(directions)


def refine_mu(problem: ApertureProblem, apertures: Apertures, iterations: int = 40) -> Apertures:
    """The MU alone with leaves at rest: a convex problem, solved on the dose per MU of each segment."""
    ends = problem.ends(torch.as_tensor(apertures.leaves_mm).float())
    per_mu = problem.doses.by_exposure(ends, torch.ones(len(apertures.mu))) * problem.relative_per_mu
    bounds = problem.allowed.least_mu(apertures), problem.allowed.mu_bounds[1]
    low, high = (torch.as_tensor(bound).float() for bound in bounds)
    mu = torch.as_tensor(apertures.mu).float().requires_grad_(True)
    best, best_value = mu.detach().clone(), np.inf
    # Steps of 3 % of the mean MU, and short memories: 40 iterations have to do.
    adam = torch.optim.Adam([mu], lr=0.03 * float(apertures.mu.mean()), betas=(0.8, 0.95))
    for _ in range(iterations):
        dose = per_mu @ mu + problem.correction
        value = problem.objective(dose) + problem.mu_penalty(dose, mu)
        if value.item() < best_value:
            best, best_value = mu.detach().clone(), value.item()
        adam.zero_grad()
        value.backward()
        adam.step()
        with torch.no_grad():
            mu.copy_(mu.clamp(low, high))
    return Apertures(apertures.leaves_mm, best.double().numpy())
