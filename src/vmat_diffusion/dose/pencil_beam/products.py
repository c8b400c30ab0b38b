"""Compiled loops over what `loops` tabulated: the matrix put together, the map's dose and its transpose."""

from __future__ import annotations

import numba


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
