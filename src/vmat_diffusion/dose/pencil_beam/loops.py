"""Compiled loops over the points of a patient: dose of one beam direction, influence map and matrix.

They share one file because the cache of compiled code is renewed when a function's own file changes,
not when a function inlined from elsewhere does.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import extending, types

DEPTH_STEP_MM = 1.0
OFF_AXIS_STEP_MM = 2.0
SCALES_PER_UNIT = 256.0
LUT_PER_MM = 2.0
LANES = 8  # kernels, padded with zeros, so that one instruction treats them all
RAY_LANES = 4  # depth, both densities and one to spare
_BLOCK = 512  # points whose scratch stays in the nearest cache
_FAST = ("contract", "nnan", "ninf", "nsz", "arcp", "reassoc")
_INT, _REAL = types.intp, types.float32
_F, _I, _U = np.float32, np.int32, np.uint32
intrinsic: Any = extending.intrinsic  # its stub forgets that the compiler passes the first argument


class _Lanes:
    """Vectors of `lanes` adjacent floats of an array while a function is compiled.

    The compiler's own vectors run along points, with a load for every number; kernels lie side by side.
    """

    def __init__(self, context: Any, builder: Any, kind: Any, array: Any, lanes: int) -> None:
        self.builder, self.lanes = builder, lanes
        self.vector = ir.VectorType(ir.FloatType(), lanes)
        self.data = context.make_array(kind)(context, builder, array).data

    def place(self, offset: Any) -> Any:
        """Pointer to the vector that begins `offset` floats into the array."""
        return self.builder.bitcast(self.builder.gep(self.data, [offset]), self.vector.as_pointer())

    def load(self, offset: Any) -> Any:
        return self.builder.load(self.place(offset), align=4)

    def line(self, offset: Any, t: Any) -> Any:
        """The vector at an offset and its successor, interpolated."""
        after = self.builder.add(offset, ir.Constant(offset.type, self.lanes))
        return self.mix(self.load(offset), self.load(after), t)

    def face(self, offset: Any, row: Any, t: Any, t_row: Any) -> Any:
        """Bilinear, the second direction `row` floats apart."""
        return self.mix(self.line(offset, t), self.line(self.builder.add(offset, row), t), t_row)

    def mix(self, a: Any, b: Any, t: Any) -> Any:
        """a + t (b - a)"""
        step = self.builder.fmul(t, self.builder.fsub(b, a, flags=_FAST), flags=_FAST)
        return self.builder.fadd(a, step, flags=_FAST)

    def spread(self, value: Any) -> Any:
        """One number in all lanes."""
        nothing = ir.Constant(self.vector, ir.Undefined)
        first = self.builder.insert_element(nothing, value, ir.Constant(ir.IntType(32), 0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, nothing, zeros)

    def sum(self, value: Any) -> Any:
        """Sum of the lanes, halves added to halves."""
        width, nothing = self.lanes // 2, ir.Constant(self.vector, ir.Undefined)
        while width:
            kind = ir.VectorType(ir.IntType(32), width)
            low = self.builder.shuffle_vector(value, nothing, ir.Constant(kind, list(range(width))))
            high = self.builder.shuffle_vector(
                value, nothing, ir.Constant(kind, list(range(width, 2 * width)))
            )
            value = self.builder.fadd(low, high, flags=_FAST)
            width, nothing = width // 2, ir.Constant(value.type, ir.Undefined)
        return self.builder.extract_element(value, ir.Constant(ir.IntType(32), 0))


@intrinsic
def _look(typing, field, out, to, at, row, plane, part):  # type: ignore[no-untyped-def]
    """out[to:to + 4] = trilinear depth and densities of the cell that begins at offset `at`."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        rays = _Lanes(context, builder, signature.args[0], args[0], RAY_LANES)
        found = _Lanes(context, builder, signature.args[1], args[1], RAY_LANES)
        to, at, row, plane = args[2:6]
        tu, tw, tv = (rays.spread(builder.extract_value(args[6], k)) for k in range(3))
        near, far = rays.face(at, row, tu, tw), rays.face(builder.add(at, plane), row, tu, tw)
        builder.store(rays.mix(near, far, tv), found.place(to), align=4)
        return context.get_dummy_value()

    return types.void(field, out, *[_INT] * 4, types.UniTuple(_REAL, 3)), code


@intrinsic
def _weigh(typing, tables, out, to, at, row, t, factor):  # type: ignore[no-untyped-def]
    """out[to:to + 8] = factor ratio (primary + scatter), of three tables at three offsets `at`.

    Rows of depth are `row` floats apart; `t` holds the parts along depth, both lateral scales and radius.
    """

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        kinds = signature.args[0].types
        primary, scatter, ratio = (
            _Lanes(context, builder, kind, builder.extract_value(args[0], k), LANES)
            for k, kind in enumerate(kinds)
        )
        weight = _Lanes(context, builder, signature.args[1], args[1], LANES)
        near, wide, radius = (builder.extract_value(args[3], k) for k in range(3))
        t_depth, t_near, t_wide, t_radius = (
            weight.spread(builder.extract_value(args[5], k)) for k in range(4)
        )
        dose = builder.fadd(
            primary.face(near, args[4], t_near, t_depth),
            scatter.face(wide, args[4], t_wide, t_depth),
            flags=_FAST,
        )
        horn = builder.fmul(ratio.line(radius, t_radius), weight.spread(args[6]), flags=_FAST)
        builder.store(builder.fmul(dose, horn, flags=_FAST), weight.place(args[2]), align=4)
        return context.get_dummy_value()

    return types.void(tables, out, _INT, types.UniTuple(_INT, 3), _INT, types.UniTuple(_REAL, 4), _REAL), code


@intrinsic
def _collect(typing, field, weight, where, at, row, tu, tv):  # type: ignore[no-untyped-def]
    """Weights at offset `where` times the bilinear field at offset `at`, summed over kernels."""

    def code(context, builder, signature, args):  # type: ignore[no-untyped-def]
        fluence = _Lanes(context, builder, signature.args[0], args[0], LANES)
        weights = _Lanes(context, builder, signature.args[1], args[1], LANES)
        here = fluence.face(args[3], args[4], fluence.spread(args[5]), fluence.spread(args[6]))
        weight = weights.load(args[2])
        return fluence.sum(builder.fmul(weight, here, flags=_FAST))

    return _REAL(field, weight, *[_INT] * 3, *[_REAL] * 2), code


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
    last_s, depth_row = _F(len(tables.scale_index) - 1.001), tables.primary.shape[1] * LANES
    per_lateral, per_step = _F(1 / rays.lateral_mm), _F(1 / rays.step_mm)
    low_u, low_v, top = _F(low[0]), _F(low[1]), _F(low[2])
    ux, uy, uz = _F(axes[0, 0]), _F(axes[0, 1]), _F(axes[0, 2])
    vx, vy, vz = _F(axes[1, 0]), _F(axes[1, 1]), _F(axes[1, 2])
    wx, wy, wz = _F(axes[2, 0]), _F(axes[2, 1]), _F(axes[2, 2])
    # Of constant shape: only so the compiler knows that rows do not overlap.
    real, whole = np.empty((9, _BLOCK), np.float32), np.empty((3, _BLOCK), np.int32)
    seen, weight = np.empty((_BLOCK, RAY_LANES), np.float32), np.empty((_BLOCK, LANES), np.float32)
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
        _look(rays.field, seen, j * RAY_LANES, at, row, plane, part)
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
        whole[1, j] = _I(i * _I(depth_row)) + _I(p * _I(LANES))
        whole[2, j] = _I(i * _I(depth_row)) + _I(q * _I(LANES))
    for j in range(n):
        at = (whole[1, j], whole[2, j], whole[0, j] * LANES)
        t = (real[5, j], real[6, j], real[7, j], real[4, j])
        _weigh(
            (tables.primary, tables.scatter, tables.ratio), weight, j * LANES, at, depth_row, t, real[3, j]
        )
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
    row = field.shape[2] * LANES
    for b in numba.prange((len(points) + _BLOCK - 1) // _BLOCK):
        part = slice(b * _BLOCK, min((b + 1) * _BLOCK, len(points)))
        dose = out[part]
        place, weight = _in_beam(points[part], medium[part], axes, rays, tables)
        for m in range(len(field)):
            index, within = _on_nodes(place, len(dose), cosine[m], sine[m], at_u, at_v)
            one = field[m]
            for j in range(len(dose)):
                if within[j]:
                    fu, fv = index[0, j], index[1, j]
                    iu, iv = _I(fu), _I(fv)
                    at = iv * row + iu * LANES
                    dose[j] += _collect(one, weight, j * LANES, at, row, fu - _F(iu), fv - _F(iv))


@numba.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def tabulate(points, medium, axes, rays, tables, turn, at_u, at_v, rows, index_u, index_v, out):  # type: ignore[no-untyped-def]
    """Fill the rows of the influence map that belong to the exposures of one beam direction."""
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
                    out[s, first + j, k] = weight[j, k]


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
