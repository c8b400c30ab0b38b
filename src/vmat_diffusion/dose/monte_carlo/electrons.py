"""What befalls an electron on its way: multiple scattering, hard collisions, bremsstrahlung.

Angles: soft elastic collisions together as an exponential in 1 - cos, the rare hard ones singly from the
Rutherford tail.
"""

from __future__ import annotations

import math

import numba

from vmat_diffusion.dose.monte_carlo.cross_sections import BREMS, ECUT, HIGHEST, LOWEST, POINTS
from vmat_diffusion.dose.monte_carlo.photons import azimuth, turned
from vmat_diffusion.dose.monte_carlo.random_numbers import uniform
from vmat_diffusion.dose.tissue import ELECTRON_MEV

LOSS, HARD, MOLLER, SCATTER, SCREENING = range(5)
STEP = 0.30  # share of its energy that an electron may lose in one step
LOG_LOWEST = math.log(LOWEST)
PER_LOG = (POINTS - 1) / math.log(HIGHEST / LOWEST)


@numba.njit(inline="always")
def place(energy):  # type: ignore[no-untyped-def]
    """Table row below an energy and the fraction towards the next."""
    f = (math.log(energy) - LOG_LOWEST) * PER_LOG
    f = min(max(f, 0.0), POINTS - 1.001)
    i = int(f)
    return i, f - i


@numba.njit(inline="always")
def read(table, medium, i, t, column):  # type: ignore[no-untyped-def]
    """Linear interpolation in a table of the materials module."""
    a = table[medium, i, column]
    return a + t * (table[medium, i + 1, column] - a)


@numba.njit(inline="always")
def deflected(u, v, w, rate, screening, state):  # type: ignore[no-untyped-def]
    """A direction after multiple scattering; `rate` is the number of elastic collisions times screening.

    With eta the screening and n = rate / eta collisions of density eta (1 + eta) / (h + eta)^2 in
    h = (1 - cos) / 2, those beyond a border are drawn singly and the rest together. The border is
    where one hard collision is expected; the mean cosine of the whole is exact.
    """
    border = rate / (1.0 + rate) - screening
    none = 0.36787944117144233
    if border <= 0.0:
        border = 0.0
        none = math.exp(-rate * (1.0 / screening - 1.0))
    else:
        reached = border + screening
        soft = rate * (math.log(reached / screening) - border / reached)
        mean = soft * (1.0 - soft * (1.0 - soft * (2.0 / 3.0)))
        half = 2.0
        while half > 1.0:
            half = -mean * math.log(1.0 - uniform(state))
        c, s = azimuth(state)
        u, v, w = turned(u, v, w, 1.0 - 2.0 * half, c, s)
    product = uniform(state)
    while product > none:
        low = 1.0 / (border + screening)
        half = 1.0 / (low - uniform(state) * (low - 1.0)) - screening
        c, s = azimuth(state)
        u, v, w = turned(u, v, w, 1.0 - 2.0 * min(half, 1.0), c, s)
        product *= uniform(state)
    return u, v, w


@numba.njit(error_model="numpy", fastmath=True)
def moller(energy, state):  # type: ignore[no-untyped-def]
    """A hard collision of an electron above 2 ECUT: energy of the one knocked on, cosines of both."""
    m = ELECTRON_MEV
    tau = energy / m
    a1, a2 = (2.0 * tau + 1.0) / (tau + 1.0) ** 2, (tau / (tau + 1.0)) ** 2
    low = energy / ECUT
    highest = max(1.0, 2.0 + 0.25 * a2 - a1)
    while True:
        share = 1.0 / (low - uniform(state) * (low - 2.0))
        ratio = share / (1.0 - share)
        if highest * uniform(state) < 1.0 + ratio * ratio + a2 * share * share - a1 * ratio:
            break
    given = share * energy
    left = energy - given
    cosine = math.sqrt(given * (energy + 2.0 * m) / (energy * (given + 2.0 * m)))
    cosine_left = math.sqrt(left * (energy + 2.0 * m) / (energy * (left + 2.0 * m)))
    return given, cosine, cosine_left


@numba.njit(inline="always")
def push(stack, n, p, u, v, w, energy, cell, charge):  # type: ignore[no-untyped-def]
    """Put a particle that starts at p on a stack."""
    stack[n, 0], stack[n, 1], stack[n, 2] = p[0], p[1], p[2]
    stack[n, 3], stack[n, 4], stack[n, 5], stack[n, 6] = u, v, w, energy
    stack[n, 7], stack[n, 8], stack[n, 9] = cell[0], cell[1], cell[2]
    stack[n, 10] = charge


@numba.njit
def brems_energy(energy, state):  # type: ignore[no-untyped-def]
    """Energy of a hard bremsstrahlung photon."""
    while True:
        k = BREMS * (energy / BREMS) ** uniform(state)
        x = k / energy
        if uniform(state) < 1.0 - x + 0.75 * x * x:
            return k
