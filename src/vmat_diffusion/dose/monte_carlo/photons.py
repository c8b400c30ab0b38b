"""Photon interactions: what leaves a Compton, coherent or pair event, and how directions turn."""

from __future__ import annotations

import math

import numba
import numpy as np

from vmat_diffusion.dose.monte_carlo.random_numbers import uniform
from vmat_diffusion.dose.tissue import ELECTRON_MEV

# Energy in MeV at which a momentum transfer equals the width of oxygen's form factor, fitted as a
# dipole: a = 0.306 / Angstrom times h c.
_FORM_FACTOR_MEV = 0.0038


@numba.njit(inline="always")
def turned(u, v, w, cosine, cos_phi, sin_phi):  # type: ignore[no-untyped-def]
    """The unit vector at an angle to (u, v, w), with azimuth phi."""
    sine = math.sqrt(max(0.0, 1.0 - cosine * cosine))
    across2 = u * u + v * v
    if across2 > 1e-12:
        across = math.sqrt(across2)
        a, b = sine * cos_phi / across, sine * sin_phi / across
        x = u * cosine + a * u * w - b * v
        y = v * cosine + a * v * w + b * u
        z = w * cosine - sine * cos_phi * across
    else:
        x, y, z = sine * cos_phi, sine * sin_phi, w * cosine
    norm = 1.0 / math.sqrt(x * x + y * y + z * z)
    return x * norm, y * norm, z * norm


@numba.njit(inline="always")
def azimuth(state):  # type: ignore[no-untyped-def]
    """Cosine and sine of an angle uniform in the circle, without trigonometry."""
    while True:
        a = 2.0 * uniform(state) - 1.0
        b = 2.0 * uniform(state) - 1.0
        r2 = a * a + b * b
        if 1e-12 < r2 <= 1.0:
            r = 1.0 / math.sqrt(r2)
            return a * r, b * r


@numba.njit(error_model="numpy", fastmath=True)
def compton(energy, state):  # type: ignore[no-untyped-def]
    """Share of the energy that the scattered photon keeps, and the cosine of its angle.

    Klein and Nishina by Butcher and Messel's composition and rejection, as in EGS and Geant4.
    """
    alpha = energy / ELECTRON_MEV
    least = 1.0 / (1.0 + 2.0 * alpha)
    a1 = -math.log(least)
    a2 = 0.5 * (1.0 - least * least)
    while True:
        if uniform(state) * (a1 + a2) < a1:
            share = math.exp(-a1 * uniform(state))
        else:
            share = math.sqrt(least * least + (1.0 - least * least) * uniform(state))
        t = (1.0 - share) / (alpha * share)
        if uniform(state) < 1.0 - share * t * (2.0 - t) / (1.0 + share * share):
            return share, 1.0 - t


@numba.njit(error_model="numpy", fastmath=True)
def rayleigh(energy, state):  # type: ignore[no-untyped-def]
    """Cosine of a coherent scattering: Thomson's formula times a dipole form factor squared."""
    a = (_FORM_FACTOR_MEV / energy) ** 2
    while True:
        xi = uniform(state)
        half = a * xi / (1.0 + a - xi)
        cosine = 1.0 - 2.0 * half
        if 2.0 * uniform(state) < 1.0 + cosine * cosine:
            return cosine


@numba.njit(inline="always")
def forward_cosine(total_mev, state):  # type: ignore[no-untyped-def]
    """Cosine of a charged particle made by a photon: the leading term of Sauter's distribution."""
    beta = math.sqrt(max(0.0, 1.0 - (ELECTRON_MEV / total_mev) ** 2))
    xi = 2.0 * uniform(state) - 1.0
    return min(1.0, (xi + beta) / (1.0 + beta * xi))


@numba.njit(inline="always")
def find(edges, value):  # type: ignore[no-untyped-def]
    """Index of the interval of ascending edges that holds the value."""
    return min(max(np.searchsorted(edges, value, side="right") - 1, 0), len(edges) - 2)
