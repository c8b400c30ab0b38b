"""The compiled loop over histories: photons ray-traced and split, one electron history for all their points.

Each photon is traced once; N interaction points are spread over its path in equal shares of probability, each
with weight 1/N. All Compton interactions of a photon in one medium are the same event, and so are its pair
and photoelectric interactions: their electrons are recorded once and repeated from every point. At one point,
drawn evenly, the scattered photon survives with full weight and is split again: Kawrakow and Fippel, Phys Med
Biol 45:2163 (2000). The expectation is unchanged.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.compiled import watching
from vmat_diffusion.dose.monte_carlo.cross_sections import PCUT
from vmat_diffusion.dose.monte_carlo.electrons import place, push, read
from vmat_diffusion.dose.monte_carlo.emission import emit, enter
from vmat_diffusion.dose.monte_carlo.photons import azimuth, compton, forward_cosine, rayleigh, turned
from vmat_diffusion.dose.monte_carlo.random_numbers import seeded, uniform
from vmat_diffusion.dose.monte_carlo.tracks import COLUMNS, ROWS, record, repeat, wait
from vmat_diffusion.dose.tissue import ELECTRON_MEV

EVERYTHING, PRIMARY, SCATTER = range(3)
TOTAL, COHERENT, TO_COMPTON, TO_PAIR = range(4)
COMPTON, PAIR, PHOTOELECTRIC, KINDS = range(4)
# Every second photon that a source photon sets free is followed, with twice the weight; each has this share
# of the source photon's interaction points. They bring a fifth of the dose.
SCATTERED_SHARE = 0.4
ROULETTE = 2.0
_STACK = 256
_WAITING, _MOST_STARTS = 512, 384  # starts of tracks; the others are for what they knock on
_LONE = 8  # particles by themselves that are made at a time
_SPREAD_A, _SPREAD_B = 0.7548776662466927, 0.5698402909980532  # 1 / g and 1 / g^2, g^3 = g + 1


class Voxels(NamedTuple):
    """The phantom as the loops read it: edges along each axis; density and medium flat, in order z, y, x."""

    x_cm: NDArray[np.float64]
    y_cm: NDArray[np.float64]
    z_cm: NDArray[np.float64]
    density_g_cm3: NDArray[np.float32]
    medium: NDArray[np.uint8]


class Physics(NamedTuple):
    """The tables of `cross_sections.py` as the loops read them, and whether dose is that to water."""

    photon: NDArray[np.float64]
    electron: NDArray[np.float64]
    alike: NDArray[np.bool_]
    to_water: bool


class Room(NamedTuple):
    """Working arrays of one batch: stacks of particles, and what the split points of a photon share.

    A slot is a kind of interaction in a medium. It has ROWS rows of `tracks` for what the interaction sets
    free, and in `events` whether it was drawn for this photon, the first rows of its one or two tracks (-1:
    none), and direction and energy of the scattered photon. Rows beyond the slots are for particles by
    themselves. `waiting` holds the starts of tracks: position, cell, first row.
    """

    charged: NDArray[np.float64]
    photons: NDArray[np.float64]
    waiting: NDArray[np.float64]
    knocked: NDArray[np.float64]
    tracks: NDArray[np.float64]
    events: NDArray[np.float64]


@numba.njit
def empty_room(media):  # type: ignore[no-untyped-def]
    """Working arrays for a number of media."""
    slots = KINDS * media
    return Room(
        np.empty((2 * _WAITING, 11)),
        np.empty((_STACK, 11)),
        np.empty((_WAITING, 7)),
        np.empty((64, 5)),
        np.empty(((slots + _LONE) * ROWS, COLUMNS)),
        np.zeros((slots, 7)),
    )


@numba.njit(error_model="numpy", fastmath=True)
def draw(slot, p, electron, state, room):  # type: ignore[no-untyped-def]
    """Draw one interaction of photon p: fills a slot with all that it sets free."""
    energy, kind, m = p[6], slot % KINDS, slot // KINDS
    event, first = room.events[slot], slot * ROWS
    end = first + ROWS
    event[0], event[1], event[2], event[6] = 1.0, first, -1.0, 0.0
    c, s = azimuth(state)
    if kind == COMPTON:
        share, cosine = compton(energy, state)
        given, left = energy * (1.0 - share), energy * share
        event[3], event[4], event[5] = turned(p[3], p[4], p[5], cosine, c, s)
        event[6] = left
        momentum = math.sqrt(given * (given + 2.0 * ELECTRON_MEV))
        cosine = (energy - left * cosine) / momentum if momentum > 0.0 else 1.0
        u, v, w = turned(p[3], p[4], p[5], min(cosine, 1.0), -c, -s)
        record(room.tracks, first, end, u, v, w, given, -1.0, m, electron, state, room.knocked)
    elif kind == PAIR:
        shared = energy - 2.0 * ELECTRON_MEV
        part = uniform(state)
        for charge in (-1.0, 1.0):
            kinetic = shared * (part if charge < 0.0 else 1.0 - part)
            u, v, w = turned(p[3], p[4], p[5], forward_cosine(kinetic + ELECTRON_MEV, state), c, s)
            half = first + ROWS // 2 if charge > 0.0 else first
            record(
                room.tracks,
                half,
                half + ROWS // 2,
                u,
                v,
                w,
                kinetic,
                charge,
                m,
                electron,
                state,
                room.knocked,
            )
            event[2] = half
            c, s = azimuth(state)
    else:
        u, v, w = turned(p[3], p[4], p[5], forward_cosine(energy + ELECTRON_MEV, state), c, s)
        record(room.tracks, first, end, u, v, w, energy, -1.0, m, electron, state, room.knocked)


@numba.njit(error_model="numpy", fastmath=True)
def follow(n, n_charged, weight, keep, voxels, physics, state, tally, room, n_photons):  # type: ignore[no-untyped-def]
    """Follow n tracks that wait and n_charged particles to their ends; returns the number of photons."""
    charged = room.charged
    nx, ny = len(voxels.x_cm) - 1, len(voxels.y_cm) - 1
    n_charged, n_photons = repeat(n, n_charged, weight, keep, voxels, physics, state, tally, room, n_photons)
    while n_charged > 0:
        n, row = 0, room.events.shape[0] * ROWS
        while n_charged > 0 and n < _LONE:
            n_charged -= 1
            c = charged[n_charged]
            voxel = (int(c[9]) * ny + int(c[8])) * nx + int(c[7])
            # What starts outside tissue is made in water.
            m = int(voxels.medium[voxel]) if voxels.density_g_cm3[voxel] > 0.0 else 0
            wait(room.waiting, n, c[0], c[1], c[2], c[7], c[8], c[9], row)
            record(
                room.tracks, row, row + ROWS, c[3], c[4], c[5], c[6], c[10], m, physics.electron, state,
                room.knocked,
            )  # fmt: skip
            n, row = n + 1, row + ROWS
        n_charged, n_photons = repeat(
            n, n_charged, weight, keep, voxels, physics, state, tally, room, n_photons
        )
    return n_photons


@numba.njit(inline="always")
def kind_of(choice, to_compton, to_pair, energy):  # type: ignore[no-untyped-def]
    """The kind of an interaction by a number drawn up to the sums of the cross sections.

    The table's step across the threshold of pairs holds a share of them below it as well: that is Compton's.
    """
    if choice < to_compton or (choice < to_pair and energy <= 2.0 * ELECTRON_MEV):
        return COMPTON
    return PAIR if choice < to_pair else PHOTOELECTRIC


@numba.njit(error_model="numpy", fastmath=True)
def trace(p, cell, split, keep, weight, voxels, physics, state, tally, room, n_photons):  # type: ignore[no-untyped-def]
    """Follow one photon of full weight through the grid with its split interactions.

    All split points in one medium share one interaction of a kind, drawn at the first of them.
    """
    ex, ey, ez, density, medium = voxels
    nx, ny, nz = len(ex) - 1, len(ey) - 1, len(ez) - 1
    photon, photons, waiting, events = physics.photon, room.photons, room.waiting, room.events
    ix, iy, iz = cell[0], cell[1], cell[2]
    x, y, z, u, v, w, energy = p[0], p[1], p[2], p[3], p[4], p[5], p[6]
    up_x, up_y, up_z = 1 if u > 0.0 else 0, 1 if v > 0.0 else 0, 1 if w > 0.0 else 0
    per_u = 1.0 / u if u != 0.0 else -1e30
    per_v = 1.0 / v if v != 0.0 else -1e30
    per_w = 1.0 / w if w != 0.0 else -1e30
    to_x, to_y, to_z = (ex[ix + up_x] - x) * per_u, (ey[iy + up_y] - y) * per_v, (ez[iz + up_z] - z) * per_w
    events[:, 0] = 0.0
    i, t = place(energy)
    share = weight / split
    # The point whose scattered photon survives; beyond the last: none.
    survivor = 1 + int(uniform(state) / keep)
    offset, done, depth, way = uniform(state), 0, 0.0, 0.0
    next_depth = -math.log(1.0 - offset / split)
    m, total, coherent, to_compton, to_pair = -1, 0.0, 0.0, 0.0, 0.0
    n = 0
    while done < split:
        to = min(to_x, to_y, to_z)
        voxel = (iz * ny + iy) * nx + ix
        rho = float(density[voxel])
        if rho > 0.0:
            if medium[voxel] != m:
                m = int(medium[voxel])
                coherent = read(photon, m, i, t, COHERENT)
                total = read(photon, m, i, t, TOTAL)
                to_compton = coherent + total * read(photon, m, i, t, TO_COMPTON)
                to_pair = coherent + total * read(photon, m, i, t, TO_PAIR)
                total += coherent
            rate = rho * total
            while depth + rate * (to - way) >= next_depth and done < split:
                s = way + (next_depth - depth) / rate
                at_x, at_y, at_z = x + u * s, y + v * s, z + w * s
                done += 1
                next_depth = -math.log(1.0 - (done + offset) / split) if done < split else 1e30
                choice = uniform(state) * total
                if choice < coherent:
                    if done == survivor and n_photons < _STACK:
                        c, sn = azimuth(state)
                        a, b, e = turned(u, v, w, rayleigh(energy, state), c, sn)
                        push(photons, n_photons, (at_x, at_y, at_z), a, b, e, energy, (ix, iy, iz), 0.0)
                        n_photons += 1
                    continue
                kind = kind_of(choice, to_compton, to_pair, energy)
                slot = KINDS * m + kind
                if events[slot, 0] == 0.0:
                    draw(slot, p, physics.electron, state, room)
                left = events[slot, 6]
                if left > PCUT:
                    if done == survivor and n_photons < _STACK:
                        a, b, e = events[slot, 3], events[slot, 4], events[slot, 5]
                        push(photons, n_photons, (at_x, at_y, at_z), a, b, e, left, (ix, iy, iz), 0.0)
                        n_photons += 1
                elif left > 0.0:
                    tally[voxel] += left * share
                for root in range(1, 3):
                    if events[slot, root] >= 0.0:
                        wait(waiting, n, at_x, at_y, at_z, ix, iy, iz, events[slot, root])
                        n += 1
                if n >= _MOST_STARTS:
                    n_photons = follow(n, 0, share, keep, voxels, physics, state, tally, room, n_photons)
                    n = 0
            depth += rate * (to - way)
        way = to
        if to_x <= to_y and to_x <= to_z:
            ix += 2 * up_x - 1
            if ix < 0 or ix >= nx:
                break
            to_x = (ex[ix + up_x] - x) * per_u
        elif to_y <= to_z:
            iy += 2 * up_y - 1
            if iy < 0 or iy >= ny:
                break
            to_y = (ey[iy + up_y] - y) * per_v
        else:
            iz += 2 * up_z - 1
            if iz < 0 or iz >= nz:
                break
            to_z = (ez[iz + up_z] - z) * per_w
    return follow(n, 0, share, keep, voxels, physics, state, tally, room, n_photons)


@numba.njit(error_model="numpy", fastmath=True)
def cascade(n, p, cell, split, weight, part, is_source, voxels, physics, state, tally, room):  # type: ignore[no-untyped-def]
    """Trace the n photons on the stack and, as `part` says, all that come of them; returns their number.

    `is_source`: the photon on the stack comes from the source.
    """
    traced = 0
    # Without splitting no roulette is played: each history conserves its energy.
    roulette = ROULETTE if split > 1 else 1.0
    while n > 0:
        n -= 1
        for k in range(7):
            p[k] = room.photons[n, k]
        for k in range(3):
            cell[k] = int(room.photons[n, 7 + k])
        traced += 1
        if is_source and traced == 1:
            own = 0.0 if part == SCATTER else weight
            n = trace(p, cell, split, 1.0 / (roulette * split), own, voxels, physics, state, tally, room, n)
            weight *= roulette
        else:
            points = max(1, int(split * SCATTERED_SHARE))
            n = trace(p, cell, points, 1.0 / points, weight, voxels, physics, state, tally, room, n)
        if part == PRIMARY:
            break
    return traced


@numba.njit(error_model="numpy", fastmath=True)
def run_batch(batch, histories, seed, split, part, source, voxels, physics, tally):  # type: ignore[no-untyped-def]
    """Add one batch to `tally[voxel]` in MeV. Returns the number of photons traced."""
    state = seeded(seed, batch)
    p, cell = np.empty(8), np.empty(3, np.int64)
    work = empty_room(physics.electron.shape[0])
    traced = 0
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
            push(work.charged, 0, p, u, v, w, energy, cell, -1.0)
            n = follow(0, 1, weight, 1.0 / split, voxels, physics, state, tally, work, 0)
            weight *= split
        else:
            push(work.photons, 0, p, u, v, w, energy, cell, 0.0)
            n = 1
        traced += cascade(
            n, p, cell, split, weight, part, not is_electron, voxels, physics, state, tally, work
        )
    return traced


@numba.njit(parallel=True, cache=True, error_model="numpy", fastmath=True)
def run_batches(first, histories, seed, split, part, source, voxels, physics, tally):  # type: ignore[no-untyped-def]
    """Fill one row of `tally[batch, voxel]` in MeV for each batch. Returns photons traced per batch.

    `part` is EVERYTHING, PRIMARY (what the source photons' first interactions set free) or SCATTER.
    """
    traced = np.zeros(tally.shape[0], np.int64)
    for batch in numba.prange(tally.shape[0]):
        traced[batch] = run_batch(
            first + batch, histories, seed, split, part, source, voxels, physics, tally[batch]
        )
    return traced


@numba.njit(parallel=True, cache=True, error_model="numpy", fastmath=True)
def collect(tally, groups, square):  # type: ignore[no-untyped-def]
    """Add each batch to its group and its square to the sum of squares, and clear the tally."""
    for voxel in numba.prange(tally.shape[1]):
        for batch in range(tally.shape[0]):
            value = tally[batch, voxel]
            if value != 0.0:
                groups[batch, voxel] += value
                square[voxel] += np.float64(value) * value
                tally[batch, voxel] = 0.0


for _loop in (run_batches, collect):
    watching(_loop, Path(__file__).parents[3])
