"""Random numbers inside compiled loops: xoroshiro128+, one state per batch.

Seeded by splitmix64 from (seed, batch), so a batch's numbers depend on neither the number of threads
nor the order of batches. Blackman and Vigna, ACM Trans. Math. Softw. 47:36 (2021).
"""

from __future__ import annotations

import numba
import numpy as np

_U = np.uint64


@numba.njit(inline="always")
def _splitmix(x):  # type: ignore[no-untyped-def]
    x = x + _U(0x9E3779B97F4A7C15)
    z = x
    z = (z ^ (z >> _U(30))) * _U(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> _U(27))) * _U(0x94D049BB133111EB)
    return x, z ^ (z >> _U(31))


@numba.njit
def seeded(seed, batch):  # type: ignore[no-untyped-def]
    """A fresh state for one batch of one seed."""
    state = np.empty(2, np.uint64)
    x = _U(seed) * _U(0xD1342543DE82EF95) + _U(batch) * _U(0xA0761D6478BD642F)
    x, state[0] = _splitmix(x)
    x, state[1] = _splitmix(x)
    return state


@numba.njit(inline="always")
def uniform(state):  # type: ignore[no-untyped-def]
    """A number in [0, 1)."""
    s0, s1 = state[0], state[1]
    out = s0 + s1
    s1 ^= s0
    state[0] = ((s0 << _U(24)) | (s0 >> _U(40))) ^ s1 ^ (s1 << _U(16))
    state[1] = (s1 << _U(37)) | (s1 >> _U(27))
    return np.float64(out >> _U(11)) * 1.1102230246251565e-16


__all__ = ["seeded", "uniform"]
