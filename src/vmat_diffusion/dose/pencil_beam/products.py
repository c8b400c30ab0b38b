"""Compiled loops over what `loops` tabulated: the matrix put together, the map's dose and its transpose."""

from __future__ import annotations

from functools import cache

import numba
import numpy as np

_BLOCK = 2048  # points of which the doses stay in the nearest cache
# Unsigned offsets of the machine's own width: the compiler need not ask whether one is negative.
_I, _P = np.int32, np.uintp


@numba.njit(parallel=True, cache=True)
def compact(pointer, columns, values, out_columns, out_values):  # type: ignore[no-untyped-def]
    """Move the entries of each row, which `beamlets` left with gaps behind them, to `pointer[row]` on."""
    for i in numba.prange(len(pointer) - 1):
        start = pointer[i]
        for j in range(pointer[i + 1] - start):
            out_columns[start + j] = columns[i, j]
            out_values[start + j] = values[i, j]


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
def transposed(pointer, at, gy, out_pointer, out_columns, out_values):  # type: ignore[no-untyped-def]
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


@numba.njit(inline="always")
def _read(flat, row, fu, fv, weight, first, kernels):  # type: ignore[no-untyped-def]
    """Dose at one point: weights from offset `first` times the bilinear field, summed over kernels."""
    u, v = np.floor(fu), np.floor(fv)
    tu, tv = fu - u, fv - v
    at = _P(_I(_I(v) * _I(row)) + _I(_I(u) * _I(kernels)))
    below = at + _P(row)
    total = fu - fu  # 0 of the tables' precision
    for k in range(kernels):
        near = flat[at + _P(k)] + tu * (flat[at + _P(k + kernels)] - flat[at + _P(k)])
        far = flat[below + _P(k)] + tu * (flat[below + _P(k + kernels)] - flat[below + _P(k)])
        total += weight[_P(first + k)] * (near + tv * (far - near))
    return total


@cache
def loops_for(kernels: int):  # type: ignore[no-untyped-def]
    """`gather`, `gather_each` and `scatter` for fields of so many kernels, compiled when first asked for.

    The compiler knows the number, so it lays out the innermost loop flat: 1.7 times as fast. The loops close
    over the number alone: numba finds what it compiled before by what a loop closes over, and no compiled
    function is the same in two processes.
    """

    @numba.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
    def gather(field, index_u, index_v, weight, out):  # type: ignore[no-untyped-def]
        """Dose at every point, summed over exposures, in `out[points]`."""
        n, m = index_u.shape
        row = field.shape[2] * kernels
        for b in numba.prange((m + _BLOCK - 1) // _BLOCK):
            for s in range(n):
                flat, flat_weight = field[s].reshape(-1), weight[s].reshape(-1)
                for i in range(b * _BLOCK, min((b + 1) * _BLOCK, m)):
                    if index_u[s, i] >= 0:
                        out[i] += _read(
                            flat, row, index_u[s, i], index_v[s, i], flat_weight, i * kernels, kernels
                        )

    @numba.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
    def gather_each(field, index_u, index_v, weight, out):  # type: ignore[no-untyped-def]
        """Dose at every point from each exposure, in `out[points, exposures]`, which begins at 0."""
        n, m = index_u.shape
        row = field.shape[2] * kernels
        for b in numba.prange((m + _BLOCK - 1) // _BLOCK):
            for s in range(n):
                flat, flat_weight = field[s].reshape(-1), weight[s].reshape(-1)
                for i in range(b * _BLOCK, min((b + 1) * _BLOCK, m)):
                    if index_u[s, i] >= 0:
                        out[i, s] = _read(
                            flat, row, index_u[s, i], index_v[s, i], flat_weight, i * kernels, kernels
                        )

    @numba.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
    def scatter(gradient, index_u, index_v, weight, out):  # type: ignore[no-untyped-def]
        """Transpose of `gather`: values at the points spread onto the nodes, in `out` shaped as a field."""
        n, m = index_u.shape
        row = out.shape[2] * kernels
        for s in numba.prange(n):
            flat, flat_weight = out[s].reshape(-1), weight[s].reshape(-1)
            for i in range(m):
                fu, fv, g = index_u[s, i], index_v[s, i], gradient[i]
                if fu < 0 or g == 0:
                    continue
                u, v = np.floor(fu), np.floor(fv)
                tu, tv = fu - u, fv - v
                at = _P(_I(_I(v) * _I(row)) + _I(_I(u) * _I(kernels)))
                below = at + _P(row)
                far = g * tv
                near = g - far
                c, e = near * tu, far * tu
                a, d = near - c, far - e
                for k in range(kernels):
                    w = flat_weight[_P(i * kernels + k)]
                    flat[at + _P(k)] += w * a
                    flat[at + _P(k + kernels)] += w * c
                    flat[below + _P(k)] += w * d
                    flat[below + _P(k + kernels)] += w * e

    return gather, gather_each, scatter
