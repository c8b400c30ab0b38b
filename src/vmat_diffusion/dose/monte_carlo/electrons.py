"""Electrons and positrons: condensed history of class II with a random hinge.

Energy lost, not length, measures a step, so that a step crosses voxels of any density and only the
loss rate changes there: Sempau et al., Phys Med Biol 45:2263 (2000). Angles: soft elastic collisions
together as an exponential in 1 - cos, the rare hard ones singly from the Rutherford tail.
"""

from __future__ import annotations

import math

import numba

from vmat_diffusion.dose.monte_carlo.materials import BREMS, ECUT, ELECTRON_MEV, HIGHEST, LOWEST, PCUT, POINTS
from vmat_diffusion.dose.monte_carlo.photons import azimuth, turned
from vmat_diffusion.dose.monte_carlo.random_numbers import uniform

LOSS, HARD, MOLLER, SCATTER, SCREENING, RANGE = range(6)
STEP = 0.20  # share of its energy that an electron may lose in one step
_REJECT_MEV = 1.0  # below this energy a particle that cannot leave its voxel is absorbed in it
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


@numba.njit
def advance(p, cell, loss, i, t, weight, geometry, electron, to_water, tally):  # type: ignore[no-untyped-def]
    """Move along the direction until `loss` MeV are lost; False once outside the grid.

    `p` holds x, y, z, u, v, w, energy; `cell` ix, iy, iz. Deposits along the way, voxel by voxel.
    """
    ex, ey, ez, density, medium = geometry
    nx, ny, nz = len(ex) - 1, len(ey) - 1, len(ez) - 1
    ix, iy, iz = cell[0], cell[1], cell[2]
    x, y, z, u, v, w = p[0], p[1], p[2], p[3], p[4], p[5]
    while True:
        dx = 1e30 if u == 0.0 else ((ex[ix + 1] if u > 0.0 else ex[ix]) - x) / u
        dy = 1e30 if v == 0.0 else ((ey[iy + 1] if v > 0.0 else ey[iy]) - y) / v
        dz = 1e30 if w == 0.0 else ((ez[iz + 1] if w > 0.0 else ez[iz]) - z) / w
        d = max(min(dx, dy, dz), 0.0)
        voxel = (iz * ny + iy) * nx + ix
        m = medium[voxel]
        rate = density[voxel] * read(electron, m, i, t, LOSS)
        lost = rate * d
        if lost >= loss and rate > 0.0:
            d = loss / rate
            p[0], p[1], p[2] = x + u * d, y + v * d, z + w * d
            p[6] -= loss
            cell[0], cell[1], cell[2] = ix, iy, iz
            score = loss * weight
            if to_water:
                score *= read(electron, 0, i, t, LOSS) / read(electron, m, i, t, LOSS)
            tally[voxel] += score
            return True
        if lost > 0.0:
            loss -= lost
            p[6] -= lost
            score = lost * weight
            if to_water:
                score *= read(electron, 0, i, t, LOSS) / read(electron, m, i, t, LOSS)
            tally[voxel] += score
        x, y, z = x + u * d, y + v * d, z + w * d
        if dx <= dy and dx <= dz:
            ix += 1 if u > 0.0 else -1
            x = ex[ix] if u > 0.0 else ex[ix + 1]
            if ix < 0 or ix >= nx:
                return False
        elif dy <= dz:
            iy += 1 if v > 0.0 else -1
            y = ey[iy] if v > 0.0 else ey[iy + 1]
            if iy < 0 or iy >= ny:
                return False
        else:
            iz += 1 if w > 0.0 else -1
            z = ez[iz] if w > 0.0 else ez[iz + 1]
            if iz < 0 or iz >= nz:
                return False


@numba.njit
def deflect(p, strength, log_screening, state):  # type: ignore[no-untyped-def]
    """Turn the direction by multiple scattering with mean cosine exp(-strength)."""
    screening = math.exp(log_screening)
    rate = 0.5 * strength / (-log_screening - 1.0)  # collisions times screening
    # The border between soft and hard is set where one hard collision is expected per step.
    border = min(max(rate, 10.0 * screening), 0.5)
    hard = rate * (1.0 / (border + screening) - 1.0 / (1.0 + screening))
    soft = rate * (math.log((border + screening) / screening) - border / (border + screening))
    mean = 0.5 * (1.0 - math.exp(-2.0 * soft))
    half = 2.0
    while half > 1.0:
        half = -mean * math.log(1.0 - uniform(state))
    c, s = azimuth(state)
    p[3], p[4], p[5] = turned(p[3], p[4], p[5], 1.0 - 2.0 * half, c, s)
    waiting = -math.log(1.0 - uniform(state))
    while waiting < hard:
        low, high = 1.0 / (border + screening), 1.0 / (1.0 + screening)
        half = 1.0 / (low - uniform(state) * (low - high)) - screening
        c, s = azimuth(state)
        p[3], p[4], p[5] = turned(p[3], p[4], p[5], 1.0 - 2.0 * half, c, s)
        waiting -= math.log(1.0 - uniform(state))


@numba.njit
def moller(p, cell, weight, state, charged, n_charged):  # type: ignore[no-untyped-def]
    """A hard collision: the primary goes on, the knocked-on electron is pushed. Returns the stack size."""
    energy, m = p[6], ELECTRON_MEV
    if energy <= 2.0 * ECUT or n_charged >= charged.shape[0]:
        return n_charged
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
    c, s = azimuth(state)
    cosine = math.sqrt(given * (energy + 2.0 * m) / (energy * (given + 2.0 * m)))
    u, v, w = turned(p[3], p[4], p[5], cosine, c, s)
    push(charged, n_charged, p, u, v, w, given, cell, -1.0)
    cosine = math.sqrt(left * (energy + 2.0 * m) / (energy * (left + 2.0 * m)))
    p[3], p[4], p[5] = turned(p[3], p[4], p[5], cosine, -c, -s)
    p[6] = left
    return n_charged + 1


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


@numba.njit
def transport(
    p, cell, charge, weight, keep, geometry, electron, to_water, state, tally, charged, n_charged, photons, n_photons
):  # type: ignore[no-untyped-def]  # fmt: skip
    """Follow one charged particle to its end. Returns the sizes of both stacks.

    Bremsstrahlung and annihilation photons survive with probability `keep` (Russian roulette); the
    caller gives survivors `weight / keep`.
    """
    ex, ey, ez, density, medium = geometry
    nx, ny = len(ex) - 1, len(ey) - 1
    while True:
        energy = p[6]
        voxel = (cell[2] * ny + cell[1]) * nx + cell[0]
        if energy <= ECUT:
            tally[voxel] += energy * weight
            break
        m, rho = medium[voxel], density[voxel]
        if energy < _REJECT_MEV and rho > 0.0:
            near = min(p[0] - ex[cell[0]], ex[cell[0] + 1] - p[0], p[1] - ey[cell[1]])
            near = min(near, ey[cell[1] + 1] - p[1], p[2] - ez[cell[2]], ez[cell[2] + 1] - p[2])
            i, t = place(energy)
            if read(electron, m, i, t, RANGE) < near * rho:
                tally[voxel] += energy * weight
                break
        step = min(STEP * energy, energy - ECUT + 1e-9)
        i, t = place(energy - 0.5 * step)
        until = -math.log(1.0 - uniform(state)) / max(read(electron, m, i, t, HARD), 1e-12)
        event = until < step
        if event:
            step = until
            i, t = place(energy - 0.5 * step)
        first = uniform(state) * step
        if not advance(p, cell, first, i, t, weight, geometry, electron, to_water, tally):
            return n_charged, n_photons
        m = medium[(cell[2] * ny + cell[1]) * nx + cell[0]]
        deflect(p, step * read(electron, m, i, t, SCATTER), read(electron, m, i, t, SCREENING), state)
        if not advance(p, cell, step - first, i, t, weight, geometry, electron, to_water, tally):
            return n_charged, n_photons
        if not event:
            continue
        if uniform(state) < read(electron, m, i, t, MOLLER):
            n_charged = moller(p, cell, weight, state, charged, n_charged)
        elif p[6] > BREMS:
            k = brems_energy(p[6], state)
            p[6] -= k
            if k > PCUT and uniform(state) < keep and n_photons < photons.shape[0]:
                push(photons, n_photons, p, p[3], p[4], p[5], k, cell, 0.0)
                n_photons += 1
    if charge > 0.0:
        # Annihilation at rest: two photons back to back.
        z = 2.0 * uniform(state) - 1.0
        r = math.sqrt(1.0 - z * z)
        c, s = azimuth(state)
        for sign in (-1.0, 1.0):
            if uniform(state) < keep and n_photons < photons.shape[0]:
                push(photons, n_photons, p, sign * r * c, sign * r * s, sign * z, ELECTRON_MEV, cell, 0.0)
                n_photons += 1
    return n_charged, n_photons
