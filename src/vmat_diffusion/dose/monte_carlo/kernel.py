"""The compiled loop over histories: photons ray-traced and split, their electrons followed at once.

Each photon is traced once; N interaction points are spread over its path in equal shares of
probability, each with weight 1/N. Scattered photons survive with probability 1/N and full weight and
are split again: Kawrakow and Fippel, Phys Med Biol 45:2163 (2000). The expectation is unchanged.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.dose.monte_carlo.cross_sections import PCUT
from vmat_diffusion.dose.monte_carlo.electrons import place, push, read, transport
from vmat_diffusion.dose.monte_carlo.photons import azimuth, compton, find, forward_cosine, rayleigh, turned
from vmat_diffusion.dose.monte_carlo.random_numbers import seeded, uniform
from vmat_diffusion.dose.tissue import ELECTRON_MEV

EVERYTHING, PRIMARY, SCATTER = range(3)
TOTAL, COHERENT, TO_COMPTON, TO_PAIR = range(4)
_STACK = 256
_SPREAD_A, _SPREAD_B = 0.7548776662466927, 0.5698402909980532  # 1 / g and 1 / g^2, g^3 = g + 1


class Voxels(NamedTuple):
    """The phantom as the loops read it: edges along each axis; density and medium flat, in the order z, y, x.

    A slow electron whose range in its voxel's medium is below `absorb_cm` is absorbed where it is.
    """

    x_cm: NDArray[np.float64]
    y_cm: NDArray[np.float64]
    z_cm: NDArray[np.float64]
    density_g_cm3: NDArray[np.float64]
    medium: NDArray[np.uint8]
    absorb_cm: float


@numba.njit(error_model="numpy", fastmath=True)
def enter(p, cell, voxels):  # type: ignore[no-untyped-def]
    """Move a particle to the grid's border along its direction; False if it misses the grid."""
    ex, ey, ez = voxels.x_cm, voxels.y_cm, voxels.z_cm
    near, far = 0.0, 1e30
    for axis, edges in enumerate((ex, ey, ez)):
        at, slope = p[axis], p[axis + 3]
        if abs(slope) < 1e-12:
            if at <= edges[0] or at >= edges[-1]:
                return False
            continue
        a, b = (edges[0] - at) / slope, (edges[-1] - at) / slope
        near, far = max(near, min(a, b)), min(far, max(a, b))
    if near >= far:
        return False
    for axis, edges in enumerate((ex, ey, ez)):
        moved = p[axis] + near * p[axis + 3]
        p[axis] = min(max(moved, edges[0]), edges[-1])
        cell[axis] = find(edges, p[axis])
    return True


@numba.njit(error_model="numpy", fastmath=True)
def interact(  # type: ignore[no-untyped-def]
    p,
    cell,
    m,
    i,
    t,
    split,
    weight,
    voxels,
    photon,
    electron,
    to_water,
    state,
    tally,
    charged,
    photons,
    n_photons,
):
    """One of the split interactions of photon p in medium m; electrons are followed to their end."""
    energy, keep = p[6], 1.0 / split
    n_charged = 0
    kind = uniform(state)
    if kind < read(photon, m, i, t, TO_COMPTON):
        share, cosine = compton(energy, state)
        given = energy * (1.0 - share)
        c, s = azimuth(state)
        left = energy * share
        if left > PCUT:
            if uniform(state) < keep and n_photons < _STACK:
                u, v, w = turned(p[3], p[4], p[5], cosine, c, s)
                push(photons, n_photons, p, u, v, w, left, cell, 0.0)
                n_photons += 1
        else:
            voxel = (cell[2] * (len(voxels.y_cm) - 1) + cell[1]) * (len(voxels.x_cm) - 1) + cell[0]
            tally[voxel] += left * weight
        momentum = math.sqrt(given * (given + 2.0 * ELECTRON_MEV))
        cosine = (energy - left * cosine) / momentum if momentum > 0.0 else 1.0
        u, v, w = turned(p[3], p[4], p[5], min(cosine, 1.0), -c, -s)
        push(charged, 0, p, u, v, w, given, cell, -1.0)
        n_charged = 1
    elif kind < read(photon, m, i, t, TO_PAIR):
        shared = energy - 2.0 * ELECTRON_MEV
        part = uniform(state)
        for charge in (-1.0, 1.0):
            kinetic = shared * (part if charge < 0.0 else 1.0 - part)
            c, s = azimuth(state)
            u, v, w = turned(p[3], p[4], p[5], forward_cosine(kinetic + ELECTRON_MEV, state), c, s)
            push(charged, n_charged, p, u, v, w, kinetic, cell, charge)
            n_charged += 1
    else:
        c, s = azimuth(state)
        u, v, w = turned(p[3], p[4], p[5], forward_cosine(energy + ELECTRON_MEV, state), c, s)
        push(charged, 0, p, u, v, w, energy, cell, -1.0)
        n_charged = 1
    return follow(
        keep, weight, voxels, electron, to_water, state, tally, charged, n_charged, photons, n_photons
    )


@numba.njit(error_model="numpy", fastmath=True)
def follow(  # type: ignore[no-untyped-def]
    keep, weight, voxels, electron, to_water, state, tally, charged, n_charged, photons, n_photons
):
    """Empty the stack of charged particles; returns the size of the stack of photons."""
    p, cell = np.empty(8), np.empty(3, np.int64)
    while n_charged > 0:
        n_charged -= 1
        for k in range(7):
            p[k] = charged[n_charged, k]
        for k in range(3):
            cell[k] = int(charged[n_charged, 7 + k])
        n_charged, n_photons = transport(
            p, cell, charged[n_charged, 10], weight, keep, voxels, electron, to_water, state, tally,
            charged, n_charged, photons, n_photons,
        )  # fmt: skip
    return n_photons


@numba.njit(error_model="numpy", fastmath=True)
def trace(  # type: ignore[no-untyped-def]
    p, cell, split, weight, voxels, photon, electron, to_water, state, tally, charged, photons, n_photons
):
    """Follow one photon of full weight through the grid with its split interactions."""
    ex, ey, ez, density, medium = voxels.x_cm, voxels.y_cm, voxels.z_cm, voxels.density_g_cm3, voxels.medium
    nx, ny, nz = len(ex) - 1, len(ey) - 1, len(ez) - 1
    ix, iy, iz = cell[0], cell[1], cell[2]
    x, y, z, u, v, w = p[0], p[1], p[2], p[3], p[4], p[5]
    i, t = place(p[6])
    offset, done, depth = uniform(state), 0, 0.0
    next_depth = -math.log(1.0 - offset / split)
    share = weight / split
    at = np.empty(3, np.int64)
    while True:
        dx = 1e30 if u == 0.0 else ((ex[ix + 1] if u > 0.0 else ex[ix]) - x) / u
        dy = 1e30 if v == 0.0 else ((ey[iy + 1] if v > 0.0 else ey[iy]) - y) / v
        dz = 1e30 if w == 0.0 else ((ez[iz + 1] if w > 0.0 else ez[iz]) - z) / w
        d = max(min(dx, dy, dz), 0.0)
        voxel = (iz * ny + iy) * nx + ix
        m = medium[voxel]
        rho = density[voxel]
        if rho > 0.0:
            total, coherent = read(photon, m, i, t, TOTAL), read(photon, m, i, t, COHERENT)
            rate = rho * (total + coherent)
            while done < split and depth + rate * d >= next_depth:
                s = (next_depth - depth) / rate
                p[0], p[1], p[2] = x + u * s, y + v * s, z + w * s
                at[0], at[1], at[2] = ix, iy, iz
                if uniform(state) * (total + coherent) < coherent:
                    if uniform(state) * split < 1.0 and n_photons < _STACK:
                        c, sn = azimuth(state)
                        a, b, e = turned(u, v, w, rayleigh(p[6], state), c, sn)
                        push(photons, n_photons, p, a, b, e, p[6], at, 0.0)
                        n_photons += 1
                else:
                    n_photons = interact(
                        p, at, m, i, t, split, share, voxels, photon, electron, to_water, state, tally,
                        charged, photons, n_photons,
                    )  # fmt: skip
                done += 1
                if done >= split:
                    return n_photons
                next_depth = -math.log(1.0 - (done + offset) / split)
            depth += rate * d
        x, y, z = x + u * d, y + v * d, z + w * d
        if dx <= dy and dx <= dz:
            ix += 1 if u > 0.0 else -1
            x = ex[ix] if u > 0.0 else ex[ix + 1]
            if ix < 0 or ix >= nx:
                return n_photons
        elif dy <= dz:
            iy += 1 if v > 0.0 else -1
            y = ey[iy] if v > 0.0 else ey[iy + 1]
            if iy < 0 or iy >= ny:
                return n_photons
        else:
            iz += 1 if w > 0.0 else -1
            z = ez[iz] if w > 0.0 else ez[iz + 1]
            if iz < 0 or iz >= nz:
                return n_photons


@numba.njit(error_model="numpy", fastmath=True)
def cascade(  # type: ignore[no-untyped-def]
    n, p, cell, split, weight, part, voxels, photon, electron, to_water, state, tally, charged, photons
):
    """Trace the n photons on the stack and, as `part` says, all that come of them; returns their number."""
    traced = 0
    while n > 0:
        n -= 1
        for k in range(7):
            p[k] = photons[n, k]
        for k in range(3):
            cell[k] = int(photons[n, 7 + k])
        traced += 1
        own = 0.0 if part == SCATTER and traced == 1 else weight
        n = trace(p, cell, split, own, voxels, photon, electron, to_water, state, tally, charged, photons, n)
        if part == PRIMARY:
            break
    return traced


@numba.njit(inline="always")
def emit(p, source, choice, across, along, state):  # type: ignore[no-untyped-def]
    """Draw one particle from the source: fills p, returns its weight and whether it is an electron."""
    cumulative, box = source.photons_cm2, source.box_cm
    entry = min(np.searchsorted(cumulative, choice * cumulative[-1], side="right"), len(cumulative) - 1)
    axes = source.axes[source.frame[entry]]
    # The moment within the exposure: openings close and open linearly, so draw it by their width.
    gap0, gap1 = box[entry, 1] - box[entry, 0], box[entry, 3] - box[entry, 2]
    xi = uniform(state)
    t = 1.0 - math.sqrt(1.0 - xi) if uniform(state) * (gap0 + gap1) < gap0 else math.sqrt(xi)
    low = box[entry, 0] + t * (box[entry, 2] - box[entry, 0])
    high = box[entry, 1] + t * (box[entry, 3] - box[entry, 1])
    a = low + across * (high - low)
    b = box[entry, 4] + along * (box[entry, 5] - box[entry, 4])
    sad, collimator = source.sad_cm, source.collimator_cm
    height, sx, sy = 0.0, 0.0, 0.0
    kind = uniform(state)
    electron = kind < source.electron_share
    sigma = source.focal_sigma_cm
    if electron:
        sigma = source.electron_sigma_cm
        height = source.head_distance_cm
    elif kind < source.electron_share + source.head_share:
        sigma, height = source.head_sigma_cm, source.head_distance_cm
    if sigma > 0.0:
        c, s = azimuth(state)
        r = sigma * math.sqrt(-2.0 * math.log(1.0 - uniform(state)))
        sx, sy = r * c, r * s
    # (a, b) are isocentre-plane coordinates of a point in the collimator plane, seen from the target.
    shrink = collimator / sad
    ax, ay, az = a * shrink - sx, b * shrink - sy, -(collimator - height)
    length = math.sqrt(ax * ax + ay * ay + az * az)
    ax, ay, az = ax / length, ay / length, az / length
    top = sad - height
    weight = source.electron_weight if electron else source.photon_weight
    if source.isotropic:
        weight *= (-az) ** 3
    fall = (sad - height) / -az
    hit_x, hit_y = sx + ax * fall, sy + ay * fall
    radius2 = hit_x * hit_x + hit_y * hit_y
    xi = uniform(state)
    if electron:
        drawn = -source.electron_mean_mev * math.log(1.0 - xi * source.electron_cdf_max)
        p[6] = min(drawn + source.electron_min_mev, source.electron_max_mev)
    else:
        edges, cdf, ratio = source.energy_mev, source.energy_cdf, source.off_axis_ratio
        k = np.searchsorted(cdf, xi, side="right")
        k = min(max(k, 1), len(cdf) - 1)
        share = (xi - cdf[k - 1]) / (cdf[k] - cdf[k - 1])
        p[6] = edges[k - 1] + share * (edges[k] - edges[k - 1])
        p[6] = max(p[6] * (1.0 - source.softening_per_cm2 * radius2), 0.02)
        f = min(math.sqrt(radius2) / source.off_axis_step_cm, len(ratio) - 1.001)
        j = int(f)
        weight *= ratio[j] + (f - j) * (ratio[j + 1] - ratio[j])
    origin = source.isocenter_cm
    for k in range(3):
        p[k] = origin[k] + sx * axes[0, k] + sy * axes[1, k] + top * axes[2, k]
        p[k + 3] = ax * axes[0, k] + ay * axes[1, k] + az * axes[2, k]
    return weight, electron


@numba.njit(parallel=True, cache=True, error_model="numpy", fastmath=True)
def run_batches(  # type: ignore[no-untyped-def]
    first, histories, seed, split, part, source, voxels, photon, electron, to_water, tally
):
    """Fill one row of `tally[batch, voxel]` in MeV for each batch. Returns photons traced per batch.

    `part` is EVERYTHING, PRIMARY (what the source photons' first interactions set free) or SCATTER.
    """
    traced = np.zeros(tally.shape[0], np.int64)
    for batch in numba.prange(tally.shape[0]):
        state = seeded(seed, first + batch)
        p, cell = np.empty(8), np.empty(3, np.int64)
        charged, photons = np.empty((64, 11)), np.empty((_STACK, 11))
        row = tally[batch]
        # The histories of a batch cover openings and positions evenly (an additive sequence of the
        # plastic number in each opening's area); shifts drawn anew make batches independent.
        shift_a, shift_b = uniform(state), uniform(state)
        for h in range(histories):
            across = (shift_a + h * _SPREAD_A) % 1.0
            along = (shift_b + h * _SPREAD_B) % 1.0
            weight, is_electron = emit(p, source, (h + uniform(state)) / histories, across, along, state)
            if not enter(p, cell, voxels):
                continue
            u, v, w, energy = p[3], p[4], p[5], p[6]
            if is_electron:
                push(charged, 0, p, u, v, w, energy, cell, -1.0)
                n = follow(
                    1.0 / split, weight, voxels, electron, to_water, state, row, charged, 1, photons, 0
                )
                weight *= split
            else:
                push(photons, 0, p, u, v, w, energy, cell, 0.0)
                n = 1
            traced[batch] += cascade(
                n, p, cell, split, weight, part, voxels, photon, electron, to_water, state, row, charged,
                photons,
            )  # fmt: skip
    return traced


@numba.njit(parallel=True, cache=True, error_model="numpy", fastmath=True)
def collect(tally, total, square):  # type: ignore[no-untyped-def]
    """Add each batch and its square to the sums, and clear the tally."""
    for voxel in numba.prange(tally.shape[1]):
        for batch in range(tally.shape[0]):
            value = tally[batch, voxel]
            if value != 0.0:
                total[voxel] += value
                square[voxel] += np.float64(value) * value
                tally[batch, voxel] = 0.0
