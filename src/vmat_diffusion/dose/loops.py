"""Compiled loops over the points of a patient: dose of one beam direction, influence matrix, its products.

They share one file because the cache of compiled code is renewed when a function's own file changes,
not when a function inlined from elsewhere does.
"""

from __future__ import annotations

import math

import numba
import numpy as np

DEPTH_STEP_MM = 1.0
HORN_STEP_MM = 2.0
LUT_PER_MM = 2.0


@numba.njit(inline="always")
def on_ray(rays, u, v, w):  # type: ignore[no-untyped-def]
    """Trilinear depth and both densities at isocentre-plane (u, v) of collimator 0 and height w."""
    field, low = rays.field, rays.low
    nw, nv, nu, _ = field.shape
    fu = min(max((u - low[0]) / rays.lateral_mm, 0.0), nu - 1.001)
    fv = min(max((v - low[1]) / rays.lateral_mm, 0.0), nv - 1.001)
    fw = min(max((low[2] - w) / rays.step_mm, 0.0), nw - 1.001)
    iu, iv, iw = int(fu), int(fv), int(fw)
    tu, tv, tw = fu - iu, fv - iv, fw - iw
    depth, near, wide = 0.0, 0.0, 0.0
    for cw in range(2):
        for cv in range(2):
            for cu in range(2):
                share = (tw if cw else 1 - tw) * (tv if cv else 1 - tv) * (tu if cu else 1 - tu)
                depth += share * field[iw + cw, iv + cv, iu + cu, 0]
                near += share * field[iw + cw, iv + cv, iu + cu, 1]
                wide += share * field[iw + cw, iv + cv, iu + cu, 2]
    return depth, near, wide


@numba.njit(inline="always")
def _add_weights(table, i, t, scale, low, per_log, factor, out):  # type: ignore[no-untyped-def]
    """Add `factor` times a table's kernel weights at depth index i + t and a lateral scale."""
    f = min(max((math.log(scale) - low) * per_log, 0.0), table.shape[1] - 1.001)
    j = int(f)
    s = f - j
    a, b, c, d = (1 - t) * (1 - s), (1 - t) * s, t * (1 - s), t * s
    for k in range(table.shape[2]):
        out[k] += factor * (
            a * table[i, j, k] + b * table[i, j + 1, k] + c * table[i + 1, j, k] + d * table[i + 1, j + 1, k]
        )


@numba.njit(inline="always")
def _in_beam(point, axes, rays, tables, weight):  # type: ignore[no-untyped-def]
    """Projection (u, v) at collimator 0; fills the weight of each kernel, all factors included."""
    height = point[0] * axes[2, 0] + point[1] * axes[2, 1] + point[2] * axes[2, 2]
    scale = tables.sad_mm / (tables.sad_mm - height)
    u = (point[0] * axes[0, 0] + point[1] * axes[0, 1] + point[2] * axes[0, 2]) * scale
    v = (point[0] * axes[1, 0] + point[1] * axes[1, 1] + point[2] * axes[1, 2]) * scale
    r = min(np.sqrt(u * u + v * v) / HORN_STEP_MM, len(tables.ratio) - 1.001)
    j = int(r)
    hardness = tables.hardness[j] + (r - j) * (tables.hardness[j + 1] - tables.hardness[j])
    depth, near, wide = on_ray(rays, u, v, height)
    d = min(depth * hardness / DEPTH_STEP_MM, len(tables.primary) - 1.001)
    i = int(d)
    factor = scale * scale
    weight[:] = 0.0
    low, per_log = tables.log_scale_low, tables.scales_per_log
    _add_weights(tables.primary, i, d - i, near / scale, low, per_log, factor, weight)
    _add_weights(tables.scatter, i, d - i, wide / scale, low, per_log, factor, weight)
    for k in range(len(weight)):
        weight[k] *= tables.ratio[j, k] + (r - j) * (tables.ratio[j + 1, k] - tables.ratio[j, k])
    return u, v


@numba.njit(inline="always")
def _node(lut, low, at):  # type: ignore[no-untyped-def]
    """Fractional node index of a position, -1 outside the nodes."""
    f = (at - low) * LUT_PER_MM
    if f < 0.0 or f >= len(lut) - 1:
        return -1.0
    i = int(f)
    return lut[i] + (f - i) * (lut[i + 1] - lut[i])


@numba.njit(parallel=True, cache=True, fastmath=True)
def deliver(points, medium, axes, rays, tables, turn, at_u, at_v, field, out):  # type: ignore[no-untyped-def]
    """Add the dose of the exposures of one beam direction to every point.

    `points` (n, 3) relative to the isocentre; `medium` (n) dose to medium over dose to water; `turn` cosine
    and sine of each exposure's collimator angle; `at_u`, `at_v` as `Nodes.lookup`; `field` (exposures, v,
    u, kernels).
    """
    (cosine, sine), (lut_u, low_u), (lut_v, low_v) = turn, at_u, at_v
    n_exposures, n_kernels = field.shape[0], field.shape[3]
    block = 1024
    for b in numba.prange((len(points) + block - 1) // block):
        weight = np.empty(n_kernels)
        for i in range(b * block, min((b + 1) * block, len(points))):
            u, v = _in_beam(points[i], axes, rays, tables, weight)
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
                    total += weight[k] * (near + tv * (far - near))
            out[i] += medium[i] * total


@numba.njit(parallel=True, cache=True, fastmath=True)
def tabulate(points, medium, axes, rays, tables, turn, at_u, at_v, rows, index_u, index_v, out):  # type: ignore[no-untyped-def]
    """Fill the rows of the influence map that belong to the exposures of one beam direction."""
    (cosine, sine), (lut_u, low_u), (lut_v, low_v) = turn, at_u, at_v
    n_kernels = tables.primary.shape[2]
    block = 1024
    for b in numba.prange((len(points) + block - 1) // block):
        weight = np.empty(n_kernels)
        for i in range(b * block, min((b + 1) * block, len(points))):
            u, v = _in_beam(points[i], axes, rays, tables, weight)
            for m in range(len(rows)):
                s = rows[m]
                fu = _node(lut_u, low_u, cosine[m] * u + sine[m] * v)
                fv = _node(lut_v, low_v, cosine[m] * v - sine[m] * u)
                outside = fu < 0.0 or fv < 0.0
                index_u[s, i] = -1.0 if outside else fu
                index_v[s, i] = -1.0 if outside else fv
                for k in range(n_kernels):
                    out[s, i, k] = medium[i] * weight[k]


@numba.njit(inline="always")
def _shares(table, edges, at, sigma, out):  # type: ignore[no-untyped-def]
    """How much of each strip between ascending edges a Gaussian at `at` collects: `out[strip]`."""
    before = _normal_at(table, (edges[0] - at) / sigma)
    for e in range(1, len(edges)):
        here = _normal_at(table, (edges[e] - at) / sigma)
        out[e - 1] = here - before
        before = here


@numba.njit(inline="always")
def _normal_at(table, x):  # type: ignore[no-untyped-def]
    """The normal distribution function, linear between entries every 1/64 from -6 to 6."""
    f = (x + 6.0) * 64.0
    if f <= 0.0:
        return 0.0
    if f >= len(table) - 1:
        return 1.0
    i = int(f)
    return table[i] + (f - i) * (table[i + 1] - table[i])


@numba.njit(parallel=True, cache=True, fastmath=True)
def beamlets(  # type: ignore[no-untyped-def]
    points, medium, axes, rays, tables, turn, normal, sigma, edges, cut, number, counts, columns, values
):
    """Dose of every beamlet of one exposure at every point, as rows of at most `columns.shape[1]` entries.

    `edges` are those of columns and of rows of beamlets, which are numbered row by row. Doses below `cut[k]`
    times the weights, summed over kernels, are sampled systematically: gathered in order from a start that
    differs from point to point and with the exposure's `number`, they make one entry of that size whenever
    they reach it. The expectation of each entry is its dose.
    """
    cosine, sine = turn
    across, along = edges
    n_columns, n_rows, kernels = len(across) - 1, len(along) - 1, len(sigma)
    block = 256
    for b in numba.prange((len(points) + block - 1) // block):
        weight, every = np.empty(kernels), np.empty(kernels)
        by_column, by_row = np.empty((kernels, n_columns)), np.empty((kernels, n_rows))
        dose = np.empty(n_columns)
        for i in range(b * block, min((b + 1) * block, len(points))):
            u, v = _in_beam(points[i], axes, rays, tables, weight)
            least = 0.0
            for k in range(kernels):
                weight[k] *= medium[i]
                least += weight[k] * cut[k]
                _shares(normal, across, cosine * u + sine * v, sigma[k], by_column[k])
                _shares(normal, along, cosine * v - sine * u, sigma[k], by_row[k])
                every[k] = by_column[k].sum()
            carried, n = least * ((i * 0.7548776662466927 + number * 0.5698402909980532) % 1.0), 0
            for r in range(n_rows):
                total = 0.0
                for k in range(kernels):
                    total += weight[k] * by_row[k, r] * every[k]
                if carried + total < least:
                    carried += total
                    continue
                dose[:] = 0.0
                for k in range(kernels):
                    w = weight[k] * by_row[k, r]
                    if w > 0.0:
                        for c in range(n_columns):
                            dose[c] += w * by_column[k, c]
                for c in range(n_columns):
                    value = dose[c]
                    if value < least:
                        carried += value
                        if carried < least:
                            continue
                        value = least
                        carried -= least
                    if n == columns.shape[1]:
                        # The row is full: its last entry takes what comes.
                        values[i, n - 1] += value
                        continue
                    columns[i, n], values[i, n] = r * n_columns + c, value
                    n += 1
            counts[i] = n


@numba.njit(parallel=True, cache=True)
def join(pointer, at, gy, first, filled, out_columns, out_values):  # type: ignore[no-untyped-def]
    """Append the rows of one exposure to the rows of the whole matrix, at `filled`, which moves on."""
    for i in numba.prange(len(pointer) - 1):
        start = filled[i]
        for j in range(pointer[i], pointer[i + 1]):
            out_columns[start] = first + at[j]
            out_values[start] = gy[j]
            start += 1
        filled[i] = start


@numba.njit(cache=True, nogil=True)
def turn_over(pointer, at, gy, out_pointer, out_columns, out_values):  # type: ignore[no-untyped-def]
    """The rows of one exposure as columns: `out_pointer[beamlets + 1]`, voxels ascending in each."""
    out_pointer[:] = 0
    for j in range(len(at)):
        out_pointer[at[j] + 1] += 1
    for b in range(1, len(out_pointer)):
        out_pointer[b] += out_pointer[b - 1]
    place = out_pointer[:-1].copy()
    for i in range(len(pointer) - 1):
        for j in range(pointer[i], pointer[i + 1]):
            to = place[at[j]]
            out_columns[to], out_values[to] = i, gy[j]
            place[at[j]] = to + 1


@numba.njit(parallel=True, cache=True)
def compact(pointer, columns, values, out_columns, out_values):  # type: ignore[no-untyped-def]
    """Move the entries of each row, which `beamlets` left with gaps behind them, to `pointer[row]` on."""
    for i in numba.prange(len(pointer) - 1):
        start = pointer[i]
        for j in range(pointer[i + 1] - start):
            out_columns[start + j] = columns[i, j]
            out_values[start + j] = values[i, j]


@numba.njit(inline="always")
def _read(field, index_u, index_v, weight, s, i):  # type: ignore[no-untyped-def]
    """Dose of exposure s at point i."""
    fu, fv = index_u[s, i], index_v[s, i]
    total = 0.0
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
