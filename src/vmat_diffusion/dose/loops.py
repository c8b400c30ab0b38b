"""Compiled loops over the points of a patient: dose of one beam direction, influence matrix, its products.

They share one file because the cache of compiled code is renewed when a function's own file changes,
not when a function inlined from elsewhere does.
"""

from __future__ import annotations

import numba
import numpy as np

DEPTH_STEP_MM = 1.0
HORN_STEP_MM = 2.0
LUT_PER_MM = 2.0


@numba.njit(inline="always")
def depth_at(rays, u, v, w):  # type: ignore[no-untyped-def]
    """Trilinear depth at isocentre-plane (u, v) of collimator 0 and height w towards the source."""
    depth, low = rays.depth_mm, rays.low
    nw, nv, nu = depth.shape
    fu = min(max((u - low[0]) / rays.lateral_mm, 0.0), nu - 1.001)
    fv = min(max((v - low[1]) / rays.lateral_mm, 0.0), nv - 1.001)
    fw = min(max((low[2] - w) / rays.step_mm, 0.0), nw - 1.001)
    iu, iv, iw = int(fu), int(fv), int(fw)
    tu, tv, tw = fu - iu, fv - iv, fw - iw
    upper = (1 - tv) * ((1 - tu) * depth[iw, iv, iu] + tu * depth[iw, iv, iu + 1]) + tv * (
        (1 - tu) * depth[iw, iv + 1, iu] + tu * depth[iw, iv + 1, iu + 1]
    )
    lower = (1 - tv) * ((1 - tu) * depth[iw + 1, iv, iu] + tu * depth[iw + 1, iv, iu + 1]) + tv * (
        (1 - tu) * depth[iw + 1, iv + 1, iu] + tu * depth[iw + 1, iv + 1, iu + 1]
    )
    return (1 - tw) * upper + tw * lower


@numba.njit(inline="always")
def _in_beam(point, axes, rays, tables):  # type: ignore[no-untyped-def]
    """Projection (u, v) at collimator 0, depth index and remainder, inverse square times off-axis ratio."""
    height = point[0] * axes[2, 0] + point[1] * axes[2, 1] + point[2] * axes[2, 2]
    scale = tables.sad_mm / (tables.sad_mm - height)
    u = (point[0] * axes[0, 0] + point[1] * axes[0, 1] + point[2] * axes[0, 2]) * scale
    v = (point[0] * axes[1, 0] + point[1] * axes[1, 1] + point[2] * axes[1, 2]) * scale
    square = u * u + v * v
    d = depth_at(rays, u, v, height) * (1.0 + tables.softening_per_mm2 * square) / DEPTH_STEP_MM
    d = min(d, len(tables.weight) - 1.001)
    r = min(np.sqrt(square) / HORN_STEP_MM, len(tables.horn) - 1.001)
    i, j = int(d), int(r)
    ratio = tables.horn[j] + (r - j) * (tables.horn[j + 1] - tables.horn[j])
    return u, v, i, d - i, scale * scale * ratio


@numba.njit(inline="always")
def _node(lut, low, at):  # type: ignore[no-untyped-def]
    """Fractional node index of a position, -1 outside the nodes."""
    f = (at - low) * LUT_PER_MM
    if f < 0.0 or f >= len(lut) - 1:
        return -1.0
    i = int(f)
    return lut[i] + (f - i) * (lut[i + 1] - lut[i])


@numba.njit(parallel=True, cache=True, fastmath=True)
def deliver(points, axes, rays, tables, turn, at_u, at_v, field, out):  # type: ignore[no-untyped-def]
    """Add the dose of the exposures of one beam direction to every point.

    `points` (n, 3) relative to the isocentre; `turn` cosine and sine of each exposure's collimator
    angle; `at_u`, `at_v` as `Nodes.lookup`; `field` (exposures, v, u, kernels).
    """
    (cosine, sine), (lut_u, low_u), (lut_v, low_v) = turn, at_u, at_v
    n_exposures, n_kernels = field.shape[0], field.shape[3]
    weight = tables.weight
    block = 1024
    for b in numba.prange((len(points) + block - 1) // block):
        for i in range(b * block, min((b + 1) * block, len(points))):
            u, v, di, td, factor = _in_beam(points[i], axes, rays, tables)
            total = 0.0
            for m in range(n_exposures):
                fu = _node(lut_u, low_u, cosine[m] * u + sine[m] * v)
                fv = _node(lut_v, low_v, cosine[m] * v - sine[m] * u)
                if fu < 0.0 or fv < 0.0:
                    continue
                iu, iv = int(fu), int(fv)
                tu, tv = fu - iu, fv - iv
                for k in range(n_kernels):
                    near = field[m, iv, iu, k] + tu * (field[m, iv, iu + 1, k] - field[m, iv, iu, k])
                    iw = iv + 1
                    far = field[m, iw, iu, k] + tu * (field[m, iw, iu + 1, k] - field[m, iw, iu, k])
                    w = weight[di, k] + td * (weight[di + 1, k] - weight[di, k])
                    total += w * (near + tv * (far - near))
            out[i] += factor * total


@numba.njit(parallel=True, cache=True, fastmath=True)
def tabulate(points, axes, rays, tables, turn, at_u, at_v, rows, index_u, index_v, out):  # type: ignore[no-untyped-def]
    """Fill the rows of the influence map that belong to the exposures of one beam direction."""
    (cosine, sine), (lut_u, low_u), (lut_v, low_v) = turn, at_u, at_v
    n_kernels = tables.weight.shape[1]
    weight = tables.weight
    block = 1024
    for b in numba.prange((len(points) + block - 1) // block):
        for i in range(b * block, min((b + 1) * block, len(points))):
            u, v, di, td, factor = _in_beam(points[i], axes, rays, tables)
            for m in range(len(rows)):
                s = rows[m]
                fu = _node(lut_u, low_u, cosine[m] * u + sine[m] * v)
                fv = _node(lut_v, low_v, cosine[m] * v - sine[m] * u)
                outside = fu < 0.0 or fv < 0.0
                index_u[s, i] = -1.0 if outside else fu
                index_v[s, i] = -1.0 if outside else fv
                for k in range(n_kernels):
                    out[s, i, k] = factor * (weight[di, k] + td * (weight[di + 1, k] - weight[di, k]))


@numba.njit(inline="always")
def _read(field, index_u, index_v, weight, s, i):  # type: ignore[no-untyped-def]
    """Dose of exposure s at point i."""
    fu, fv = index_u[s, i], index_v[s, i]
    total = np.float32(0.0)
    if fu < 0.0:
        return total
    iu, iv = int(fu), int(fv)
    tu, tv = fu - iu, fv - iv
    a, c = (1 - tu) * (1 - tv), tu * (1 - tv)
    d, e = (1 - tu) * tv, tu * tv
    for k in range(weight.shape[2]):
        total += weight[s, i, k] * (
            a * field[s, iv, iu, k]
            + c * field[s, iv, iu + 1, k]
            + d * field[s, iv + 1, iu, k]
            + e * field[s, iv + 1, iu + 1, k]
        )
    return total


@numba.njit(parallel=True, cache=True, fastmath=True)
def gather(field, index_u, index_v, weight, out):  # type: ignore[no-untyped-def]
    """Dose at every point, summed over exposures, in `out[points]`."""
    n, m = index_u.shape
    block = 2048
    for b in numba.prange((m + block - 1) // block):
        for s in range(n):
            for i in range(b * block, min((b + 1) * block, m)):
                out[i] += _read(field, index_u, index_v, weight, s, i)


@numba.njit(parallel=True, cache=True, fastmath=True)
def gather_each(field, index_u, index_v, weight, out):  # type: ignore[no-untyped-def]
    """Dose at every point from each exposure, in `out[points, exposures]`."""
    n, m = index_u.shape
    for i in numba.prange(m):
        for s in range(n):
            out[i, s] = _read(field, index_u, index_v, weight, s, i)


@numba.njit(parallel=True, cache=True, fastmath=True)
def scatter(gradient, index_u, index_v, weight, out):  # type: ignore[no-untyped-def]
    """Transpose of `gather`: values at the points spread onto the nodes, in `out` shaped as a field."""
    n, m = index_u.shape
    kernels = weight.shape[2]
    for s in numba.prange(n):
        for i in range(m):
            fu, fv = index_u[s, i], index_v[s, i]
            g = gradient[i]
            if fu < 0.0 or g == 0.0:
                continue
            iu, iv = int(fu), int(fv)
            tu, tv = fu - iu, fv - iv
            a, c = g * (1 - tu) * (1 - tv), g * tu * (1 - tv)
            d, e = g * (1 - tu) * tv, g * tu * tv
            for k in range(kernels):
                w = weight[s, i, k]
                out[s, iv, iu, k] += w * a
                out[s, iv, iu + 1, k] += w * c
                out[s, iv + 1, iu, k] += w * d
                out[s, iv + 1, iu + 1, k] += w * e
