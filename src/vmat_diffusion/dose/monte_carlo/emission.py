"""How particles leave the source and enter the grid."""

from __future__ import annotations

import math

import numba
import numpy as np

from vmat_diffusion.dose.monte_carlo.photons import azimuth, find
from vmat_diffusion.dose.monte_carlo.random_numbers import uniform


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
