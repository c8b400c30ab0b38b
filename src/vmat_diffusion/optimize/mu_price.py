"""What monitor units cost the search: MU per Gy of the highest target, with a limit that may be set.

The quotient does not change when all MU are scaled, so it cannot be bought with coverage; and its gradient
opens leaves onto the target. After Craft, Suss and Bortfeld, Int J Radiat Oncol Biol Phys 67:1596 (2007), who
put MU into the objective of the fluence; see `docs/optimiser.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from vmat_diffusion.evaluate.delivery_goals import DeliveryGoal

# In units of what an open field needs: small beside any goal, enough to keep apertures wide.
_SLOPE = 0.008
# The weight of the limit grows while the limit is missed and eases when it is met, within these bounds.
_GROWTH, _EASED, _LEAST, _LARGEST = 1.6, 0.97, 0.5, 60.0
# The search aims at this share of the limit, as the final normalisation and the full dose add a little.
_ROOM = 0.96


@dataclass(frozen=True)
class MuPrice:
    """The price of a plan's MU, `weight` times the squared excess over a limit and a small slope.

    `fraction_gy` is the highest prescription in one fraction, `open_mu_per_gy` what the reference field
    needs, `limit_mu_per_gy` the most wanted; None for no limit.
    """

    fraction_gy: float
    open_mu_per_gy: float
    limit_mu_per_gy: float | None = None
    weight: float = 30.0

    @property
    def goal(self) -> DeliveryGoal | None:
        """The limit as a goal; None where there is none."""
        return None if self.limit_mu_per_gy is None else DeliveryGoal("MU", self.limit_mu_per_gy)

    def mu_per_gy(self, mu: Tensor, level: Tensor) -> Tensor:
        """MU per Gy, from the MU `mu` of a fraction and the mean relative dose of the highest target."""
        return mu / (self.fraction_gy * level.clamp_min(0.05))

    def __call__(self, mu: Tensor, level: Tensor) -> Tensor:
        """The price; differentiable in both."""
        spent = self.mu_per_gy(mu, level)
        price = _SLOPE * spent / self.open_mu_per_gy
        if self.limit_mu_per_gy is None:
            return price
        excess = (spent / (_ROOM * self.limit_mu_per_gy) - 1).clamp_min(0)
        return price + self.weight * excess.square()

    def met(self, mu: Tensor, level: Tensor) -> bool:
        """Whether the limit holds, or there is none."""
        return self.limit_mu_per_gy is None or float(self.mu_per_gy(mu, level)) <= self.limit_mu_per_gy

    def adapted(self, mu: Tensor, level: Tensor, *, hold: bool) -> MuPrice:
        """The price with its weight grown while the limit is missed, eased when it is met.

        With `hold`, where a must or a goal of a target fails, it does not grow: MU rank below them.
        """
        if self.met(mu, level):
            return replace(self, weight=max(self.weight * _EASED, _LEAST))
        return self if hold else replace(self, weight=min(self.weight * _GROWTH, _LARGEST))
