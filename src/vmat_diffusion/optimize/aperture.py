"""Direct aperture optimisation: leaves and MU of all control points against the objective.

After Bzdusek et al., Med Phys 36:2328 (2009), with exact gradients through the dose engine; the machine's
limits are held by projection after every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmat_diffusion.dose.pencil_beam.fluence import FluenceModel, JawParts, convolved_fluence, jaw_parts
from vmat_diffusion.dose.pencil_beam.sampled import SampledDose
from vmat_diffusion.evaluate.goals import Goal
from vmat_diffusion.optimize.objectives import Objective
from vmat_diffusion.optimize.reach import Apertures, Reach, Track, jaws_of

_MU_PRICE = 0.008


@dataclass(frozen=True)
class Judged:
    """The goals that a state misses, and the objective."""

    missed: tuple[Goal, ...]
    objective: float

    @property
    def failed(self) -> tuple[int, ...]:
        """How many of each priority, must, should and wish; the first difference decides."""
        return by_priority(self.missed)


def by_priority(missed: Iterable[Goal]) -> tuple[int, ...]:
    """How many goals of each priority are missed, must, should and wish."""
    priorities = [goal.priority for goal in missed]
    return tuple(priorities.count(p) for p in (1, 2, 3))


@dataclass(frozen=True, eq=False)
class ApertureProblem:
    """Everything that stays the same during one stage of the search.

    `correction` is added to the relative dose at the objective's points: what the final dose on its
    grid had over the sampled dose when last compared.
    """

    reach: Reach
    model: FluenceModel
    sampled: SampledDose
    objective: Objective
    relative_per_mu: float
    correction: Tensor
    parts: JawParts
    prices: Prices

    @property
    def way(self) -> Track:
        """The control points and segments."""
        return self.reach.way

    def along(self, reach: Reach) -> ApertureProblem:
        """The same problem with other jaws at the same control points."""
        return replace(self, reach=reach, parts=jaw_parts(self.model, jaws_of(reach.way)))

    def field(self, leaves: Tensor, mu: Tensor) -> Tensor:
        """Convolved fluence of all segments."""
        pair = torch.stack([leaves[self.way.first], leaves[self.way.last]], dim=1)
        return convolved_fluence(self.model, pair, jaws_of(self.way).to(leaves.dtype), mu, self.parts)

    def economy(self, mu: Tensor) -> Tensor:
        """A small price on MU, in units of what an open field would need, so that apertures stay wide."""
        return _MU_PRICE * mu.sum() * self.relative_per_mu

    def restlessness(self, leaves: Tensor, mu: Tensor) -> Tensor:
        """The price on narrow gaps, ragged edges and travelling leaves."""
        first, last = torch.as_tensor(self.way.first), torch.as_tensor(self.way.last)
        return price(leaves, mu, first, last, self.reach.machine.limits.leaf_gap_mm, self.prices)

    def relative(self, leaves: Tensor, mu: Tensor) -> Tensor:
        """Relative dose at the objective's points, differentiable."""
        return self.sampled.dose(self.field(leaves, mu)) * self.relative_per_mu + self.correction

    def value(self, dose: Tensor, leaves: Tensor, mu: Tensor) -> Tensor:
        """What the search minimises, for the relative dose of leaves and MU."""
        return self.objective(dose) + self.economy(mu) + self.restlessness(leaves, mu)

    def judged(self, state: Apertures) -> Judged:
        """How a state stands."""
        with torch.no_grad():
            leaves, mu = state.tensors()
            dose = self.relative(leaves, mu)
            return Judged(tuple(self.objective.missed(dose.numpy())), float(self.value(dose, leaves, mu)))

    def dose(self, state: Apertures) -> NDArray[np.float32]:
        """Relative dose at the objective's points."""
        with torch.no_grad():
            return self.relative(*state.tensors()).numpy()

    def pulls(self, state: Apertures) -> dict[str, NDArray[np.float64]]:
        """How each part of the objective would move leaves and MU: its gradient, by the part's name."""
        leaves, mu = state.tensors(differentiable=True)
        dose = self.relative(leaves, mu)
        out = {}
        for name, part in self.objective.parts(dose).items():
            if float(part.detach()) > 0:
                by_leaf, by_mu = torch.autograd.grad(part, (leaves, mu), retain_graph=True)
                # Per mm of leaf and per share of MU, as the search steps.
                both = [by_leaf.double().numpy().ravel(), by_mu.double().numpy() * state.mu]
                out[name] = np.concatenate(both)
        return out


@dataclass(frozen=True)
class Stage:
    """One stage of the search: iterations, first and last leaf step in mm, first MU step (relative).

    `every` says which control points it moves: every n-th.
    """

    name: str
    every: int
    iterations: int
    leaf_step_mm: float
    leaf_step_end_mm: float
    mu_step: float
    adapt_every: int = 20


def search(
    problem: ApertureProblem,
    stage: Stage,
    *,
    keep_going: Callable[[], bool],
    report: Callable[[int, float, float, int, int], None],
    newest: list[Apertures],
) -> tuple[Apertures, Apertures]:
    """Projected Adam from the deliverable state `newest[0]` to better ones; all iterates are deliverable.

    Returns the best state by objective since the weights last changed, which is in `newest[0]` all the
    time, for a caller who is interrupted; and of the states at which the weights changed the one that failed
    fewest goals, higher priorities first. `report(iteration, objective, best, round, missed
    goals)` is called in each step, a round being what lies between two changes of the weights; the search
    stops early where `keep_going()` says no.
    """
    state = newest[0]
    best, best_value, turn = state, np.inf, 0
    leader = state
    fewest: tuple[int, ...] | None = None
    moment = [np.zeros_like(state.leaves_mm), np.zeros_like(state.mu)]
    square = [np.zeros_like(state.leaves_mm), np.zeros_like(state.mu)]
    b1, b2, missed = 0.85, 0.97, 0
    for k in range(stage.iterations):
        if not keep_going():
            break
        leaves, mu = state.tensors(differentiable=True)
        dose = problem.relative(leaves, mu)
        value = problem.value(dose, leaves, mu)
        value.backward()
        now = value.item()
        if now < best_value:
            best, best_value = state, now
            newest[0] = best
        report(k, now, best_value, turn, missed)
        if (k + 1) % stage.adapt_every == 0 and k + 1 < stage.iterations:
            seen = dose.detach().numpy()
            failed = by_priority(problem.objective.missed(seen))
            if fewest is None or failed <= fewest:
                leader, fewest = state, failed
            missed = problem.objective.adapt(seen)
            best_value, turn = np.inf, turn + 1
        done = k / max(stage.iterations - 1, 1)
        leaf_step = stage.leaf_step_mm * (stage.leaf_step_end_mm / stage.leaf_step_mm) ** done
        # Adam's first steps have full length in every direction, however small the gradient.
        warm = min(1.0, (k + 1) / 8)
        leaf_step, mu_step = leaf_step * warm, stage.mu_step * (1 - 0.8 * done) * warm
        assert leaves.grad is not None and mu.grad is not None
        gradients = (leaves.grad.double().numpy(), (mu.grad.double().numpy() * state.mu))
        steps = []
        for i, g in enumerate(gradients):
            moment[i] = b1 * moment[i] + (1 - b1) * g
            square[i] = b2 * square[i] + (1 - b2) * g * g
            m, v = moment[i] / (1 - b1 ** (k + 1)), square[i] / (1 - b2 ** (k + 1))
            # The floor keeps leaves that hardly matter from wandering at full pace.
            steps.append(m / (np.sqrt(v) + 0.1 * np.sqrt(v.mean()) + 1e-20))
        state = problem.reach.project(
            Apertures(state.leaves_mm - leaf_step * steps[0], state.mu * np.exp(-mu_step * steps[1]))
        )
    return best, leader


def refine_mu(problem: ApertureProblem, state: Apertures, iterations: int = 40) -> Apertures:
    """The MU alone with apertures frozen: a convex problem, solved on the dose per MU of each segment."""
    with torch.no_grad():
        unit = problem.field(torch.as_tensor(state.leaves_mm).float(), torch.ones(len(state.mu)))
        per_mu = problem.sampled.by_exposure(unit) * problem.relative_per_mu
    bounds = problem.reach.least_mu(state), problem.reach.mu_bounds[1]
    low, high = (torch.as_tensor(bound).float() for bound in bounds)
    mu = torch.as_tensor(state.mu).float().requires_grad_(True)
    best, best_value = mu.detach().clone(), np.inf
    adam = torch.optim.Adam([mu], lr=0.03 * float(state.mu.mean()), betas=(0.8, 0.95))
    for _ in range(iterations):
        value = problem.objective(per_mu @ mu + problem.correction) + problem.economy(mu)
        if value.item() < best_value:
            best, best_value = mu.detach().clone(), value.item()
        adam.zero_grad()
        value.backward()
        adam.step()
        with torch.no_grad():
            mu.copy_(mu.clamp(low, high))
    return Apertures(state.leaves_mm, best.double().numpy())


# Gaps below this width are narrow; a closed pair costs nothing.
_NARROW_MM = 10.0
# Differences of neighbours below this are no edge.
_SMOOTH_MM = 2.0


@dataclass(frozen=True)
class Prices:
    """Weights of the three prices, in units of the objective; 0 switches one off."""

    narrow: float = 0.05
    edges: float = 0.02
    travel: float = 0.01


def price(leaves: Tensor, mu: Tensor, first: Tensor, last: Tensor, least_gap_mm: float, at: Prices) -> Tensor:
    """The price of apertures `leaves[control points, 2, strips]` (mm) with `mu[segments]`.

    `first[s]`, `last[s]` are the control points that bound segment s.
    """
    share = mu.detach() / mu.detach().sum()
    weight = leaves.new_zeros(len(leaves)).index_add(0, first, share / 2).index_add(0, last, share / 2)
    gap = leaves[:, 1] - leaves[:, 0]
    # 0 where closed, 1 from _NARROW_MM on.
    open_share = ((gap - least_gap_mm) / (_NARROW_MM - least_gap_mm)).clamp(0, 1)
    narrow = (weight * (6.75 * open_share * (1 - open_share).square()).mean(1)).sum()
    step = (leaves[:, :, 1:] - leaves[:, :, :-1]).square().add(_SMOOTH_MM**2).sqrt().sum(1) - 2 * _SMOOTH_MM
    both = torch.minimum(open_share[:, 1:], open_share[:, :-1]).detach()
    edges = (weight * (both * step).mean(1)).sum() / _NARROW_MM
    moved = (leaves[last] - leaves[first]).square().add(_SMOOTH_MM**2).sqrt() - _SMOOTH_MM
    travel = (share * moved.mean((1, 2))).sum() / _NARROW_MM
    return at.narrow * narrow + at.edges * edges + at.travel * travel
