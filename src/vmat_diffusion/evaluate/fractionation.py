"""Doses in fractions of 2 Gy: the linear-quadratic model's EQD2."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmat_diffusion.errors import GoalError


def eqd2_gy(gy: ArrayLike, alpha_beta_gy: float, fractions: int) -> NDArray[np.float64]:
    """The dose in fractions of 2 Gy with the effect of `gy`, the dose of the whole course in `fractions`.

    EQD2 = D (d + ab) / (2 + ab) with the dose of each fraction d = D / n and ab = alpha/beta. Withers et al.,
    Cancer 52:1283 (1983); Joiner and van der Kogel, Basic Clinical Radiobiology. No time factor. Any shape
    in, the same shape out. Raises GoalError for an alpha/beta or a number of fractions that is not positive.
    """
    _check(alpha_beta_gy, fractions)
    total = np.asarray(gy, np.float64)
    return total * (total / fractions + alpha_beta_gy) / (2.0 + alpha_beta_gy)


def physical_gy(eqd2: float, alpha_beta_gy: float, fractions: int) -> float:
    """The dose of the whole course in `fractions` whose EQD2 is `eqd2`: the inverse of `eqd2_gy`."""
    _check(alpha_beta_gy, fractions)
    half = fractions * alpha_beta_gy / 2.0
    return -half + math.sqrt(half**2 + fractions * eqd2 * (2.0 + alpha_beta_gy))


def _check(alpha_beta_gy: float, fractions: int) -> None:
    if not (math.isfinite(alpha_beta_gy) and alpha_beta_gy > 0):
        raise GoalError(f"alpha/beta {alpha_beta_gy:g} Gy must be positive; give for example 3")
    if fractions < 1:
        raise GoalError(f"EQD2 in {fractions} fractions; at least 1 is needed")
