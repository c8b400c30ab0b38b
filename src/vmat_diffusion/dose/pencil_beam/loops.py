"""Compiled loops over the points of a patient: dose of one beam direction, influence map and matrix.

They share one file because the cache of compiled code is renewed when a function's own file changes,
not when a function inlined from elsewhere does.
"""

from __future__ import annotations

import numba
import numpy as np

DEPTH_STEP_MM = 1.0
OFF_AXIS_STEP_MM = 2.0
SCALES = np.geomspace(0.12, 2.5, 16)  # lateral scales of the tables
SCALES_PER_UNIT = 256.0
LUT_PER_MM = 2.0
# Kernels lie side by side, padded with zeros, so that one instruction treats them all. The compiler does so
# in loops over `lanes`, whose number it must not know: it unrolls loops of constant length before. With
# vectors written by hand in LLVM's language a whole dose took 12 % less time and had the same bytes.
LANES = 8
RAY_LANES = 4  # depth, both densities and one to spare
_BLOCK = 512  # points whose scratch stays in the nearest cache
_F, _I, _U = np.float32, np.int32, np.uint32
# Unsigned offsets of the machine's own width: the compiler need not ask whether one is negative or too large.
_P = np.uintp
_NEXT, _NEXT_RAY, _NEXT_DEPTH = _P(LANES), _P(RAY_LANES), _P(len(SCALES) * LANES)


@numba.njit(inline="always", fastmath=True)
def _look(rays, seen, to, at, row, plane, part):  # type: ignore[no-untyped-def]
    """seen[to : to + 3] = depth and both densities, trilinear in the cell at offset `at` of `rays`.

    `row` and `plane` are the steps to the next depth and the next v; `part` the shares of the cell along u,
    w and v.
    """
    tu, tw, tv = part
    a, b, c, d, o = _P(at), _P(at + row), _P(at + plane), _P(at + plane + row), _P(to)
    for i in range(3):
        k = _P(i)
        near = rays[a + k] + tu * (rays[a + k + _NEXT_RAY] - rays[a + k])
        deep = rays[b + k] + tu * (rays[b + k + _NEXT_RAY] - rays[b + k])
        near += tw * (deep - near)
        far = rays[c + k] + tu * (rays[c + k + _NEXT_RAY] - rays[c + k])
        deep = rays[d + k] + tu * (rays[d + k + _NEXT_RAY] - rays[d + k])
        far += tw * (deep - far)
        seen[o + k] = near + tv * (far - near)


@numba.njit(inline="always", fastmath=True)
def _weigh(tables, weight, to, at, part, factor, lanes):  # type: ignore[no-untyped-def]
    """weight[to : to + lanes] = factor ratio (primary + scatter), of three flat tables at three offsets `at`.

    `part` holds the shares of the cell along depth, both lateral scales and radius.
    """
    primary, scatter, ratio = tables
    p, s, r, o = _P(at[0]), _P(at[1]), _P(at[2]), _P(to)
    t_depth, t_near, t_wide, t_radius = part
    for i in range(lanes):
        k = _P(i)
        a = primary[p + k] + t_near * (primary[p + k + _NEXT] - primary[p + k])
        q = p + _NEXT_DEPTH
        b = primary[q + k] + t_near * (primary[q + k + _NEXT] - primary[q + k])
        c = scatter[s + k] + t_wide * (scatter[s + k + _NEXT] - scatter[s + k])
        z = s + _NEXT_DEPTH
        d = scatter[z + k] + t_wide * (scatter[z + k + _NEXT] - scatter[z + k])
        dose = a + t_depth * (b - a) + c + t_depth * (d - c)
        weight[o + k] = dose * factor * (ratio[r + k] + t_radius * (ratio[r + k + _NEXT] - ratio[r + k]))


@numba.njit(inline="always", fastmath=True)
def _collect(field, weight, where, at, row, tu, tv, lanes):  # type: ignore[no-untyped-def]
    """Weights at offset `where` times the bilinear field at offset `at`, summed over kernels."""
    a, b, o = _P(at), _P(at + row), _P(where)
    total = _F(0)
    for i in range(lanes):
        k = _P(i)
        near = field[a + k] + tu * (field[a + k + _NEXT] - field[a + k])
        far = field[b + k] + tu * (field[b + k + _NEXT] - field[b + k])
        total += weight[o + k] * (near + tv * (far - near))
    return total


@numba.njit(inline="always")
def _interpolate(table, at):  # type: ignore[no-untyped-def]
    """Replace fractional indices by what a table holds there; alone, for look-ups cannot be vectorised."""
    for j in range(len(at)):
        i = _I(at[j])
        here, after = table[_U(i)], table[_U(i + 1)]
        at[j] = here + (at[j] - _F(i)) * (after - here)


@numba.njit(fastmath=True, error_model="numpy")
def _in_beam(points, medium, axes, rays, tables):  # type: ignore[no-untyped-def]
    """Projections `place[u | v, points]` at collimator 0 and `weight[points, kernels]`, all factors included.

    For one block of points, in stages: what is computed side by side stands apart from what is looked up.
    """
    n, sad, low = len(points), _F(tables.sad_mm), rays.low
    n_v, n_w, n_u, _ = rays.field.shape
    last_u, last_v, last_w = _F(n_u - 1.001), _F(n_v - 1.001), _F(n_w - 1.001)
    last_r, last_d = _F(len(tables.ratio) - 1.001), _F(len(tables.primary) - 1.001)
    last_s = _F(len(tables.scale_index) - 1.001)
    per_lateral, per_step = _F(1 / rays.lateral_mm), _F(1 / rays.step_mm)
    low_u, low_v, top = _F(low[0]), _F(low[1]), _F(low[2])
    ux, uy, uz = _F(axes[0, 0]), _F(axes[0, 1]), _F(axes[0, 2])
    vx, vy, vz = _F(axes[1, 0]), _F(axes[1, 1]), _F(axes[1, 2])
    wx, wy, wz = _F(axes[2, 0]), _F(axes[2, 1]), _F(axes[2, 2])
    # Of constant shape: only so the compiler knows that rows do not overlap.
    real, whole = np.empty((9, _BLOCK), np.float32), np.empty((3, _BLOCK), np.int32)
    seen, weight = np.empty((_BLOCK, RAY_LANES), np.float32), np.empty((_BLOCK, LANES), np.float32)
    flat_rays, flat_seen, flat_weight = rays.field.reshape(-1), seen.reshape(-1), weight.reshape(-1)
    flat_tables = (tables.primary.reshape(-1), tables.scatter.reshape(-1), tables.ratio.reshape(-1))
    lanes = tables.primary.shape[2]
    for j in range(n):
        x, y, z = points[j, 0], points[j, 1], points[j, 2]
        w = x * wx + y * wy + z * wz
        inverse = (sad - w) / sad
        scale = _F(1) / inverse
        u, v = (x * ux + y * uy + z * uz) * scale, (x * vx + y * vy + z * vz) * scale
        real[0, j], real[1, j], real[2, j] = u, v, inverse * _F(SCALES_PER_UNIT)
        real[3, j] = scale * scale * medium[j]
        r = min(np.sqrt(u * u + v * v) * _F(1 / OFF_AXIS_STEP_MM), last_r)
        fu = min(max((u - low_u) * per_lateral, _F(0)), last_u)
        fv = min(max((v - low_v) * per_lateral, _F(0)), last_v)
        fw = min(max((top - w) * per_step, _F(0)), last_w)
        ir, iu, iv, iw = _I(r), _I(fu), _I(fv), _I(fw)
        whole[0, j], whole[1, j] = ir, _I(_I(_I(iv * _I(n_w)) + iw) * _I(n_u)) + iu
        real[4, j], real[5, j] = r, fu - _F(iu)
        real[6, j], real[7, j] = fv - _F(iv), fw - _F(iw)
    row, plane = n_u * RAY_LANES, n_w * n_u * RAY_LANES
    for j in range(n):
        at = whole[1, j] * RAY_LANES
        part = (real[5, j], real[7, j], real[6, j])
        _look(flat_rays, flat_seen, j * RAY_LANES, at, row, plane, part)
    for j in range(n):
        real[5, j], real[8, j] = seen[j, 0], real[4, j]
        real[6, j] = min(seen[j, 1] * real[2, j], last_s)
        real[7, j] = min(seen[j, 2] * real[2, j], last_s)
    _interpolate(tables.hardness, real[8, :n])
    _interpolate(tables.scale_index, real[6, :n])
    _interpolate(tables.scale_index, real[7, :n])
    for j in range(n):
        d = min(real[5, j] * real[8, j] * _F(1 / DEPTH_STEP_MM), last_d)
        near, wide = real[6, j], real[7, j]
        i, p, q = _I(d), _I(near), _I(wide)
        real[4, j] -= _F(whole[0, j])
        real[5, j], real[6, j], real[7, j] = d - _F(i), near - _F(p), wide - _F(q)
        whole[1, j] = _I(i * _I(_NEXT_DEPTH)) + _I(p * _I(LANES))
        whole[2, j] = _I(i * _I(_NEXT_DEPTH)) + _I(q * _I(LANES))
    for j in range(n):
        at = (whole[1, j], whole[2, j], whole[0, j] * LANES)
        shares = (real[5, j], real[6, j], real[7, j], real[4, j])
        _weigh(flat_tables, flat_weight, j * LANES, at, shares, real[3, j], lanes)
    return real, weight


@numba.njit(fastmath=True, error_model="numpy")
def _on_nodes(place, n, cosine, sine, at_u, at_v):  # type: ignore[no-untyped-def]
    """Fractional node indices `[u | v, n]` of projections turned by the collimator; which are among nodes."""
    (lut_u, low_u), (lut_v, low_v) = at_u, at_v
    last_u, last_v = _F(len(lut_u) - 1.001), _F(len(lut_v) - 1.001)
    cos, sin, first_u, first_v = _F(cosine), _F(sine), _F(low_u), _F(low_v)
    index, within = np.empty((2, _BLOCK), np.float32), np.empty(_BLOCK, np.bool_)
    for j in range(n):
        u, v = place[0, j], place[1, j]
        fu = (cos * u + sin * v - first_u) * _F(LUT_PER_MM)
        fv = (cos * v - sin * u - first_v) * _F(LUT_PER_MM)
        index[0, j], index[1, j] = min(max(fu, _F(0)), last_u), min(max(fv, _F(0)), last_v)
        within[j] = (fu >= _F(0)) & (fv >= _F(0)) & (fu < last_u) & (fv < last_v)
    _interpolate(lut_u, index[0, :n])
    _interpolate(lut_v, index[1, :n])
    return index, within


@numba.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def deliver(points, medium, axes, rays, tables, turn, at_u, at_v, field, out):  # type: ignore[no-untyped-def]
    """Add the dose of the exposures of one beam direction to every point.

    `points` (n, 3) relative to the isocentre; `medium` (n) dose to medium over dose to water; `turn` cosine
    and sine of each exposure's collimator angle; `at_u`, `at_v` as `Nodes.lookup`; `field` (exposures, v,
    u, LANES). Points that lie near each other should follow each other.
    """
    cosine, sine = turn
    row, lanes = field.shape[2] * LANES, field.shape[3]
    for b in numba.prange((len(points) + _BLOCK - 1) // _BLOCK):
        part = slice(b * _BLOCK, min((b + 1) * _BLOCK, len(points)))
        dose = out[part]
        place, weight = _in_beam(points[part], medium[part], axes, rays, tables)
        for m in range(len(field)):
            index, within = _on_nodes(place, len(dose), cosine[m], sine[m], at_u, at_v)
            flat_field, flat_weight = field[m].reshape(-1), weight.reshape(-1)
            for j in range(len(dose)):
                if within[j]:
                    fu, fv = index[0, j], index[1, j]
                    iu, iv = _I(fu), _I(fv)
                    at = iv * row + iu * LANES
                    tu, tv = fu - _F(iu), fv - _F(iv)
                    dose[j] += _collect(flat_field, flat_weight, j * LANES, at, row, tu, tv, lanes)


@numba.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def deliver_each(points, medium, axes, rays, tables, turn, at_u, at_v, field, which, scale, into, out):  # type: ignore[no-untyped-def]
    """As `deliver` for several plans: exposure m adds `scale[m]` times aperture `which[m]` to `out[into[m]]`.

    `field` (apertures, v, u, LANES) is for one MU; `out` (plans, n). What the rays say of a point is looked
    up once for all exposures.
    """
    cosine, sine = turn
    row, lanes = field.shape[2] * LANES, field.shape[3]
    for b in numba.prange((len(points) + _BLOCK - 1) // _BLOCK):
        first = b * _BLOCK
        n = min(_BLOCK, len(points) - first)
        place, weight = _in_beam(points[first : first + n], medium[first : first + n], axes, rays, tables)
        flat_weight = weight.reshape(-1)
        for m in range(len(which)):
            index, within = _on_nodes(place, n, cosine[m], sine[m], at_u, at_v)
            flat_field, mu, dose = field[which[m]].reshape(-1), _F(scale[m]), out[into[m], first : first + n]
            for j in range(n):
                if within[j]:
                    fu, fv = index[0, j], index[1, j]
                    iu, iv = _I(fu), _I(fv)
                    at = iv * row + iu * LANES
                    tu, tv = fu - _F(iu), fv - _F(iv)
                    dose[j] += mu * _collect(flat_field, flat_weight, j * LANES, at, row, tu, tv, lanes)


@numba.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def tabulate(  # type: ignore[no-untyped-def]
    points, medium, axes, rays, tables, turn, at_u, at_v, rows, index_u, index_v, first_kernel, out
):
    """Fill the rows of the influence map that belong to the exposures of one beam direction.

    `out[exposures, points, kernels]` takes the weights of so many kernels from the first on.
    """
    cosine, sine = turn
    for b in numba.prange((len(points) + _BLOCK - 1) // _BLOCK):
        first = b * _BLOCK
        part = slice(first, min(first + _BLOCK, len(points)))
        place, weight = _in_beam(points[part], medium[part], axes, rays, tables)
        for m in range(len(rows)):
            s = rows[m]
            n = len(index_u[s, part])
            index, within = _on_nodes(place, n, cosine[m], sine[m], at_u, at_v)
            for j in range(n):
                index_u[s, first + j] = index[0, j] if within[j] else _F(-1)
                index_v[s, first + j] = index[1, j] if within[j] else _F(-1)
                for k in range(out.shape[2]):
                    out[s, first + j, k] = weight[j, first_kernel + k]


@numba.njit(inline="always")
def _shares(table, edges, at, sigma, out):  # type: ignore[no-untyped-def]
    """Share of a Gaussian at `at` between each two neighbouring ascending edges: `out[intervals]`."""
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
    """Dose of every beamlet of one exposure at every point, as rows of `counts` entries.

    Where a count is above `columns.shape[1]` there was no room for the row; call again with more.
    `edges` are those of columns and of rows of beamlets, which are numbered row by row. Doses below `cut[k]`
    times the weights, summed over kernels, are sampled systematically: gathered in order from a start that
    differs from point to point and with the exposure's `number`, they make one entry of that size whenever
    they reach it. The expectation of each entry is its dose.
    """
    cosine, sine = turn
    across, along = edges
    n_columns, n_rows, kernels = len(across) - 1, len(along) - 1, len(sigma)
    for b in numba.prange((len(points) + _BLOCK - 1) // _BLOCK):
        part = slice(b * _BLOCK, min((b + 1) * _BLOCK, len(points)))
        place, weights = _in_beam(points[part], medium[part], axes, rays, tables)
        every = np.empty(kernels)
        by_column, by_row = np.empty((kernels, n_columns)), np.empty((kernels, n_rows))
        dose = np.empty(n_columns)
        for i in range(part.start, part.stop):
            u, v, weight = place[0, i - part.start], place[1, i - part.start], weights[i - part.start]
            least = 0.0
            for k in range(kernels):
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
                    if n < columns.shape[1]:
                        columns[i, n], values[i, n] = r * n_columns + c, value
                    n += 1
            counts[i] = n
