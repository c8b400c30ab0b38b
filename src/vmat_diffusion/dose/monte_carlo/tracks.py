"""Tracks of electrons and positrons: recorded once in one medium, repeated from many interaction points.

A track is made without geometry. Condensed history of class II with a random hinge; energy lost, not
length, measures a step, so that a track fits voxels of any density (Sempau et al., Phys Med Biol 45:2263,
2000). One history is repeated from many points (Kawrakow and Fippel, Phys Med Biol 45:2163, 2000). Each row
of a track is a straight stretch between two changes of direction, and the event at its end.
"""

from __future__ import annotations

import math

import numba

from vmat_diffusion.dose.monte_carlo.cross_sections import ECUT
from vmat_diffusion.dose.monte_carlo.electrons import (
    HARD,
    LOSS,
    MOLLER,
    SCATTER,
    SCREENING,
    STEP,
    brems_energy,
    deflected,
    moller,
    place,
    push,
    read,
)
from vmat_diffusion.dose.monte_carlo.photons import azimuth, turned
from vmat_diffusion.dose.monte_carlo.random_numbers import uniform
from vmat_diffusion.dose.tissue import ELECTRON_MEV

# Columns of a track: direction and its inverse; kinetic energy at the start; energy lost on the stretch, and
# that loss per g/cm2 in the track's medium; row of the table of media; the event and its value (the first row
# of the knocked-on electron, the energy of the photon); charge; the medium that it was made in; the energy
# that the particle and what it knocks on deposit from here on; the corners of the box that they reach, in
# g/cm2 from here. Particles whose box lies in their voxel are absorbed there at once, with the same dose.
U, V, W, PER_U, PER_V, PER_W, ENERGY, LOST, RATE, LEVEL, EVENT, VALUE, CHARGE, MEDIUM, REST = range(15)
LOW, HIGH = 15, 18
COLUMNS = 21
ROWS = 256  # of a track; of 4000 tracks of 20 MeV the longest had 104
TURN, KNOCK, PHOTON, END = range(4)
_FAR = 1e30


@numba.njit(inline="always")
def stretch(track, n, u, v, w, energy, lost, rate, level, charge, m, event):  # type: ignore[no-untyped-def]
    """Write row n of a track."""
    track[n, U], track[n, V], track[n, W] = u, v, w
    track[n, PER_U] = 1.0 / u if u != 0.0 else -_FAR
    track[n, PER_V] = 1.0 / v if v != 0.0 else -_FAR
    track[n, PER_W] = 1.0 / w if w != 0.0 else -_FAR
    track[n, ENERGY], track[n, LOST], track[n, RATE], track[n, LEVEL] = energy, lost, rate, level
    track[n, EVENT], track[n, VALUE], track[n, CHARGE], track[n, MEDIUM] = event, -1.0, charge, m


@numba.njit(error_model="numpy", fastmath=True)
def record(track, n, end, u, v, w, energy, charge, m, electron, state, knocked):  # type: ignore[no-untyped-def]
    """Record a particle and the electrons it knocks on, in medium m, from row n; returns the next free row.

    Rows stay below `end`. `knocked[k, 5]` is room for electrons that wait: direction, energy and the row of
    their event.
    """
    start, waiting = n, 0
    while True:
        i, t = place(energy)
        begin, lost, path, rate = energy, 0.0, 0.0, read(electron, m, i, t, LOSS)
        while energy > ECUT and n < end - 4:
            i, t = place(energy * (1.0 - 0.5 * STEP))
            step = min(STEP * energy, energy - ECUT + 1e-9)
            until = -math.log(1.0 - uniform(state)) / max(read(electron, m, i, t, HARD), 1e-12)
            event = until < step
            if event:
                step = until
            if step < 0.98 * STEP * energy:
                i, t = place(energy - 0.5 * step)
            rate = read(electron, m, i, t, LOSS)
            # The hinge ends a stretch that may have begun in the step before.
            hinge = uniform(state) * step
            lost, path = lost + hinge, path + hinge / rate
            stretch(track, n, u, v, w, begin, lost, lost / path if path > 0.0 else rate, i, charge, m, TURN)
            n += 1
            u, v, w = deflected(
                u, v, w, step * read(electron, m, i, t, SCATTER), read(electron, m, i, t, SCREENING), state
            )
            begin, lost, path = energy - hinge, step - hinge, (step - hinge) / rate
            energy -= step
            if not event:
                continue
            collision = uniform(state) < read(electron, m, i, t, MOLLER)
            if collision and (energy <= 2.0 * ECUT or waiting >= knocked.shape[0]):
                continue
            stretch(track, n, u, v, w, begin, lost, rate, i, charge, m, KNOCK if collision else PHOTON)
            if collision:
                given, cosine, cosine_left = moller(energy, state)
                c, s = azimuth(state)
                a, b, e = turned(u, v, w, cosine, c, s)
                knocked[waiting, 0], knocked[waiting, 1], knocked[waiting, 2] = a, b, e
                knocked[waiting, 3], knocked[waiting, 4] = given, n
                waiting += 1
                u, v, w = turned(u, v, w, cosine_left, -c, -s)
                energy -= given
            else:
                track[n, VALUE] = brems_energy(energy, state)
                energy -= track[n, VALUE]
            n += 1
            begin, lost, path = energy, 0.0, 0.0
        if lost > 0.0:
            stretch(track, n, u, v, w, begin, lost, rate, i, charge, m, TURN)
            n += 1
        stretch(track, n, u, v, w, energy, 0.0, 1.0, i, charge, m, END)
        n += 1
        if waiting == 0 or n >= end - 4:
            break
        waiting -= 1
        u, v, w, energy = knocked[waiting, 0], knocked[waiting, 1], knocked[waiting, 2], knocked[waiting, 3]
        charge = -1.0
        track[int(knocked[waiting, 4]), VALUE] = n
    enclose(track, start, n)
    return n


@numba.njit(error_model="numpy", fastmath=True)
def enclose(track, start, n):  # type: ignore[no-untyped-def]
    """Fill REST and the boxes of rows start to n: what follows a row always has higher rows."""
    for k in range(n - 1, start - 1, -1):
        event = track[k, EVENT]
        if event == END:
            track[k, REST] = track[k, ENERGY]
            # A positron's end sets photons free; no box may hold it.
            far = _FAR if track[k, CHARGE] > 0.0 else 0.0
            for axis in range(3):
                track[k, LOW + axis], track[k, HIGH + axis] = -far, far
            continue
        path = track[k, LOST] / track[k, RATE]
        track[k, REST] = track[k, LOST] + track[k + 1, REST]
        knocked = int(track[k, VALUE]) if event == KNOCK else -1
        if knocked >= 0:
            track[k, REST] += track[knocked, REST]
        for axis in range(3):
            low, high = track[k + 1, LOW + axis], track[k + 1, HIGH + axis]
            if knocked >= 0:
                low, high = min(low, track[knocked, LOW + axis]), max(high, track[knocked, HIGH + axis])
            if event == PHOTON:
                low, high = -_FAR, _FAR
            moved = track[k, U + axis] * path
            track[k, LOW + axis], track[k, HIGH + axis] = min(0.0, low + moved), max(0.0, high + moved)


@numba.njit(inline="always")
def wait(waiting, n, x, y, z, ix, iy, iz, row):  # type: ignore[no-untyped-def]
    """Put the start of a track on the stack of those that wait."""
    waiting[n, 0], waiting[n, 1], waiting[n, 2] = x, y, z
    waiting[n, 3], waiting[n, 4], waiting[n, 5], waiting[n, 6] = ix, iy, iz, row


@numba.njit(error_model="numpy", fastmath=True)
def repeat(n, n_charged, weight, keep, voxels, physics, state, tally, room, n_photons):  # type: ignore[no-untyped-def]
    """Follow the n tracks that wait from their starts. Returns the numbers of particles and photons.

    In a medium like the track's its angles stay and its losses follow the stopping powers; at the border of
    another the particle is put on the stack `charged`, to be made anew there. Bremsstrahlung and annihilation
    photons survive with probability `keep` (Russian roulette). Long because it is the innermost loop of the
    engine: all state is in local variables, which a compiler keeps in registers.
    """
    ex, ey, ez, density, medium = voxels
    electron, alike, to_water = physics.electron, physics.alike, physics.to_water
    charged, photons, waiting, track = room.charged, room.photons, room.waiting, room.tracks
    nx, ny, nz = len(ex) - 1, len(ey) - 1, len(ez) - 1
    while n > 0:
        n -= 1
        x, y, z, k = waiting[n, 0], waiting[n, 1], waiting[n, 2], int(waiting[n, 6])
        ix, iy, iz = int(waiting[n, 3]), int(waiting[n, 4]), int(waiting[n, 5])
        m0 = int(track[k, MEDIUM])
        voxel = (iz * ny + iy) * nx + ix
        inside = True
        while inside:
            rho, m = float(density[voxel]), medium[voxel]
            level = int(track[k, LEVEL])
            event = track[k, EVENT]
            if rho > 0.0:
                per_rho = 1.0 / rho
                if event == END or (
                    x + track[k, LOW] * per_rho > ex[ix]
                    and x + track[k, HIGH] * per_rho < ex[ix + 1]
                    and y + track[k, LOW + 1] * per_rho > ey[iy]
                    and y + track[k, HIGH + 1] * per_rho < ey[iy + 1]
                    and z + track[k, LOW + 2] * per_rho > ez[iz]
                    and z + track[k, HIGH + 2] * per_rho < ez[iz + 1]
                ):
                    water = electron[0, level, LOSS] / electron[m, level, LOSS] if to_water else 1.0
                    tally[voxel] += track[k, REST] * weight * water
                    if event == END and track[k, CHARGE] > 0.0:
                        n_photons = annihilate(x, y, z, ix, iy, iz, keep, state, photons, n_photons)
                    break
            u, v, w = track[k, U], track[k, V], track[k, W]
            per_u, per_v, per_w = track[k, PER_U], track[k, PER_V], track[k, PER_W]
            up_x, up_y, up_z = 1 if u > 0.0 else 0, 1 if v > 0.0 else 0, 1 if w > 0.0 else 0
            left, rate, water = track[k, LOST], track[k, RATE], 1.0
            if m != m0:
                rate *= electron[m, level, LOSS] / electron[m0, level, LOSS]
            if to_water:
                water = electron[0, level, LOSS] / electron[m, level, LOSS]
            to_x, to_y, to_z = (
                (ex[ix + up_x] - x) * per_u,
                (ey[iy + up_y] - y) * per_v,
                (ez[iz + up_z] - z) * per_w,
            )
            done = 0.0
            while True:
                to = min(to_x, to_y, to_z)
                loss = rate * rho
                lost = loss * (to - done)
                if lost >= left and loss > 0.0:
                    tally[voxel] += left * weight * water
                    done += left / loss
                    break
                if lost > 0.0:
                    tally[voxel] += lost * weight * water
                    left -= lost
                    done = to
                elif loss == 0.0:
                    done = max(done, to)
                if to_x <= to_y and to_x <= to_z:
                    ix += 2 * up_x - 1
                    inside = 0 <= ix < nx
                    if not inside:
                        break
                    to_x = (ex[ix + up_x] - x) * per_u
                elif to_y <= to_z:
                    iy += 2 * up_y - 1
                    inside = 0 <= iy < ny
                    if not inside:
                        break
                    to_y = (ey[iy + up_y] - y) * per_v
                else:
                    iz += 2 * up_z - 1
                    inside = 0 <= iz < nz
                    if not inside:
                        break
                    to_z = (ez[iz + up_z] - z) * per_w
                voxel = (iz * ny + iy) * nx + ix
                rho = float(density[voxel])
                if medium[voxel] != m and rho > 0.0:
                    m = medium[voxel]
                    rate = track[k, RATE] * electron[m, level, LOSS] / electron[m0, level, LOSS]
                    if to_water:
                        water = electron[0, level, LOSS] / electron[m, level, LOSS]
                    if not alike[m0, m] and n_charged < charged.shape[0]:
                        at = (x + u * done, y + v * done, z + w * done)
                        now = track[k, ENERGY] - track[k, LOST] + left
                        push(charged, n_charged, at, u, v, w, now, (ix, iy, iz), track[k, CHARGE])
                        n_charged += 1
                        inside = False
                        break
            if not inside:
                break
            x, y, z = x + u * done, y + v * done, z + w * done
            if event == KNOCK:
                if track[k, VALUE] >= 0.0 and n < waiting.shape[0]:
                    wait(waiting, n, x, y, z, ix, iy, iz, track[k, VALUE])
                    n += 1
            elif event == PHOTON and uniform(state) < keep and n_photons < photons.shape[0]:
                push(photons, n_photons, (x, y, z), u, v, w, track[k, VALUE], (ix, iy, iz), 0.0)
                n_photons += 1
            if event != END:
                k += 1
    return n_charged, n_photons


@numba.njit(error_model="numpy", fastmath=True)
def annihilate(x, y, z, ix, iy, iz, keep, state, photons, n_photons):  # type: ignore[no-untyped-def]
    """Annihilation at rest: two photons back to back. Returns the size of the stack."""
    along = 2.0 * uniform(state) - 1.0
    r = math.sqrt(1.0 - along * along)
    c, s = azimuth(state)
    for sign in (-1.0, 1.0):
        if uniform(state) < keep and n_photons < photons.shape[0]:
            u, v, w = sign * r * c, sign * r * s, sign * along
            push(photons, n_photons, (x, y, z), u, v, w, ELECTRON_MEV, (ix, iy, iz), 0.0)
            n_photons += 1
    return n_photons
