"""Electrons and positrons: condensed history of class II with a random hinge.

Energy lost, not length, measures a step, so that a step crosses voxels of any density and only the
loss rate changes there: Sempau et al., Phys Med Biol 45:2263 (2000). Angles: soft elastic collisions
together as an exponential in 1 - cos, the rare hard ones singly from the Rutherford tail.
"""

from __future__ import annotations

import math

import numba

from vmat_diffusion.dose.monte_carlo.cross_sections import BREMS, ECUT, HIGHEST, LOWEST, PCUT, POINTS
from vmat_diffusion.dose.monte_carlo.photons import azimuth, turned
from vmat_diffusion.dose.monte_carlo.random_numbers import uniform
from vmat_diffusion.dose.tissue import ELECTRON_MEV

LOSS, HARD, MOLLER, SCATTER, SCREENING, RANGE = range(6)
STEP = 0.30  # share of its energy that an electron may lose in one step
INTERFACE = 0.25  # relative change of density from voxel to voxel at which a step ends
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


@numba.njit(error_model="numpy", fastmath=True)
def transport(  # type: ignore[no-untyped-def]
    p,
    cell,
    charge,
    weight,
    keep,
    voxels,
    electron,
    to_water,
    state,
    tally,
    charged,
    n_charged,
    photons,
    n_photons,
):
    """Follow one charged particle to its end. Returns the sizes of both stacks.

    Bremsstrahlung and annihilation photons survive with probability `keep` (Russian roulette); the
    caller gives survivors `weight / keep`. Long because it is the innermost loop of the engine: all
    state is in local variables, which a compiler keeps in registers.
    """
    ex, ey, ez, density, medium, absorb_cm = voxels
    nx, ny, nz = len(ex) - 1, len(ey) - 1, len(ez) - 1
    ix, iy, iz = cell[0], cell[1], cell[2]
    x, y, z, u, v, w, energy = p[0], p[1], p[2], p[3], p[4], p[5], p[6]
    voxel = (iz * ny + iy) * nx + ix
    while True:
        if energy <= ECUT:
            tally[voxel] += energy * weight
            break
        m, rho = medium[voxel], density[voxel]
        i, t = place(energy * (1.0 - 0.5 * STEP))
        if energy < _REJECT_MEV and rho > 0.0:
            reach = read(electron, m, i, t, RANGE)
            if reach < absorb_cm * rho:
                tally[voxel] += energy * weight
                break
            # The table is read below the energy; 1.25 covers the range at the energy itself.
            reach *= 1.25 / rho
            if (
                x - ex[ix] > reach and ex[ix + 1] - x > reach and y - ey[iy] > reach
                and ey[iy + 1] - y > reach and z - ez[iz] > reach and ez[iz + 1] - z > reach
            ):  # fmt: skip
                tally[voxel] += energy * weight
                break
        step = min(STEP * energy, energy - ECUT + 1e-9)
        until = -math.log(1.0 - uniform(state)) / max(read(electron, m, i, t, HARD), 1e-12)
        event = until < step
        if event:
            step = until
        if step < 0.98 * STEP * energy:
            i, t = place(energy - 0.5 * step)
        first = uniform(state) * step
        spent = 0.0
        crossed = False
        rate = read(electron, m, i, t, LOSS)
        water = read(electron, 0, i, t, LOSS)
        for half in range(2):
            left = first if half == 0 else step - first
            while True:
                dx = 1e30 if u == 0.0 else ((ex[ix + 1] if u > 0.0 else ex[ix]) - x) / u
                dy = 1e30 if v == 0.0 else ((ey[iy + 1] if v > 0.0 else ey[iy]) - y) / v
                dz = 1e30 if w == 0.0 else ((ez[iz + 1] if w > 0.0 else ez[iz]) - z) / w
                d = max(min(dx, dy, dz), 0.0)
                loss = rate * rho
                lost = loss * d
                arrived = lost >= left and loss > 0.0
                if arrived:
                    d = left / loss
                    lost = left
                x, y, z = x + u * d, y + v * d, z + w * d
                tally[voxel] += lost * weight * (water / rate if to_water else 1.0)
                spent += lost
                if arrived:
                    break
                left -= lost
                if dx <= dy and dx <= dz:
                    ix += 1 if u > 0.0 else -1
                    if ix < 0 or ix >= nx:
                        return n_charged, n_photons
                    x = ex[ix] if u > 0.0 else ex[ix + 1]
                elif dy <= dz:
                    iy += 1 if v > 0.0 else -1
                    if iy < 0 or iy >= ny:
                        return n_charged, n_photons
                    y = ey[iy] if v > 0.0 else ey[iy + 1]
                else:
                    iz += 1 if w > 0.0 else -1
                    if iz < 0 or iz >= nz:
                        return n_charged, n_photons
                    z = ez[iz] if w > 0.0 else ez[iz + 1]
                voxel = (iz * ny + iy) * nx + ix
                if abs(density[voxel] - rho) > INTERFACE * max(density[voxel], rho) and spent > 0.0:
                    # A step ends at an interface; the hinge fell before it as often as it should have.
                    crossed = True
                    break
                rho = density[voxel]
                if medium[voxel] != m:
                    m = medium[voxel]
                    rate = read(electron, m, i, t, LOSS)
            if crossed:
                break
            if half == 0:
                u, v, w = deflected(
                    u,
                    v,
                    w,
                    step * read(electron, m, i, t, SCATTER),
                    read(electron, m, i, t, SCREENING),
                    state,
                )
        energy -= spent
        if crossed or not event:
            continue
        p[0], p[1], p[2], p[3], p[4], p[5], p[6] = x, y, z, u, v, w, energy
        cell[0], cell[1], cell[2] = ix, iy, iz
        if uniform(state) < read(electron, m, i, t, MOLLER):
            n_charged = moller(p, cell, weight, state, charged, n_charged)
        elif energy > BREMS:
            k = brems_energy(energy, state)
            p[6] -= k
            if k > PCUT and uniform(state) < keep and n_photons < photons.shape[0]:
                push(photons, n_photons, p, u, v, w, k, cell, 0.0)
                n_photons += 1
        u, v, w, energy = p[3], p[4], p[5], p[6]
    if charge > 0.0:
        # Annihilation at rest: two photons back to back.
        p[0], p[1], p[2] = x, y, z
        cell[0], cell[1], cell[2] = ix, iy, iz
        along = 2.0 * uniform(state) - 1.0
        r = math.sqrt(1.0 - along * along)
        c, s = azimuth(state)
        for sign in (-1.0, 1.0):
            if uniform(state) < keep and n_photons < photons.shape[0]:
                push(photons, n_photons, p, sign * r * c, sign * r * s, sign * along, ELECTRON_MEV, cell, 0.0)
                n_photons += 1
    return n_charged, n_photons
