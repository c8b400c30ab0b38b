"""The sparse influence matrix: dose at chosen voxels per unit of fluence of each beamlet."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import get_num_threads
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import ndtr

from vmat_diffusion.dose.delivery import Exposures
from vmat_diffusion.dose.pencil_beam.beam_tables import Tables, kernel_sigma_mm, tables
from vmat_diffusion.dose.pencil_beam.fluence import reach_mm
from vmat_diffusion.dose.pencil_beam.loops import SCALES, beamlets
from vmat_diffusion.dose.pencil_beam.products import compact, join, transposed
from vmat_diffusion.dose.pencil_beam.rays import trace_directions
from vmat_diffusion.dose.tissue import Density, medium_at
from vmat_diffusion.errors import InputError
from vmat_diffusion.geometry import Point
from vmat_diffusion.machine import Machine
from vmat_diffusion.progress import Progress

_Block = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]  # CSR rows of one exposure
_NORMAL = ndtr(np.arange(-6.0, 6.0 + 1 / 128, 1 / 64))
_USUAL_ROW = 384  # entries of one voxel and exposure; where there are more, room is made
_BYTES = 8  # of an entry: float32 and int32


@dataclass(frozen=True, eq=False)
class InfluenceMatrix:
    """`dose = matrix @ fluence`, and the same matrix by beamlets for gradients.

    `matrix` (voxels, beamlets) and `transpose` (beamlets, voxels) are CSR, float32, in Gy per MU of fluence.
    Beamlet b of exposure s is number `s * rows * columns + row * columns + column`, between the edges
    at the isocentre plane, along the leaves (columns) and across them (rows).
    """

    matrix: sparse.csr_matrix
    transpose: sparse.csr_matrix
    column_edges_mm: NDArray[np.float64]
    row_edges_mm: NDArray[np.float64]
    exposures: int

    @property
    def gigabytes(self) -> float:
        """Memory of both matrices."""
        parts = (self.matrix, self.transpose)
        return sum(m.data.nbytes + m.indices.nbytes + m.indptr.nbytes for m in parts) / 1e9


def influence_matrix(
    machine: Machine,
    density: Density,
    points_mm: NDArray,
    exposed: Exposures,
    box_mm: tuple[float, float, float, float],
    *,
    isocenter_mm: Point,
    patient_position: str = "HFS",
    beamlet_mm: float = 5.0,
    cut: float = 0.005,
    max_gb: float = 4.0,
    announce: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> InfluenceMatrix:
    """Dose at `points_mm[n, 3]` per beamlet of `exposed`, whose angles count, not their leaves.

    Beamlets fill `box_mm` (x1, x2, y1, y2), `beamlet_mm` along the leaves and one leaf row across.
    Doses below `cut` of that of a beamlet centred on the voxel are sampled: a few larger entries stand for
    many small ones, with the same expectation. `announce` is called with the expected memory before anything
    is built. Raises InputError where that is above `max_gb`, or for a box without area.
    """
    x1, x2, y1, y2 = box_mm
    if not (x2 > x1 and y2 > y1 and beamlet_mm > 0):
        raise InputError(f"beamlets of {beamlet_mm:g} mm in the box {box_mm} have no area; open the jaws")
    edges = machine.row_edges_mm()
    rows = np.unique(np.clip(edges, y1, y2))
    columns = np.linspace(x1, x2, max(round((x2 - x1) / beamlet_mm), 1) + 1)
    count = (len(rows) - 1) * (len(columns) - 1)
    n, m = len(exposed.gantry_deg), len(points_mm)
    # Both matrices, and one exposure's full rows while it is built.
    beam = machine.require_beam()
    table, sigma = tables(beam, reach_mm(box_mm)), kernel_sigma_mm(beam)
    per_row = expected_entries(table, sigma, rows, columns, cut)
    room = min(count, max(_USUAL_ROW, round(1.5 * per_row)))
    gigabytes = (2 * n * m * per_row + m * room) * _BYTES / 1e9
    if announce:
        announce(f"{m} voxels x {n * count} beamlets, about {gigabytes:.2g} GB")
    _refuse_memory(gigabytes, max_gb, voxels=m, exposures=n)
    medium = table.medium[medium_at(density, points_mm)]
    relative = (np.asarray(points_mm) - np.asarray(isocenter_mm)).astype(np.float32)
    least = cut * _centred(sigma, columns, rows)
    blocks: list[Any] = [None] * n
    indices, values = np.empty((m, room), np.int32), np.empty((m, room), np.float32)
    counts = np.empty(m, np.int64)
    for members, axes, rays in trace_directions(
        density, exposed, isocenter_mm, table.sad_mm, patient_position, progress=progress
    ):
        for s in members:
            angle = np.deg2rad(exposed.collimator_deg[s])
            turn = (float(np.cos(angle)), float(np.sin(angle)))
            while True:
                beamlets(
                    relative, medium, axes, rays, table, turn, _NORMAL, sigma, (columns, rows), least, int(s),
                    counts, indices, values,
                )  # fmt: skip
                if (longest := int(counts.max(initial=0))) <= indices.shape[1]:
                    break
                room = min(count, 2 * longest)
                indices, values = np.empty((m, room), np.int32), np.empty((m, room), np.float32)
            pointer = np.concatenate([[0], np.cumsum(counts)])
            at, gy = np.empty(pointer[-1], np.int32), np.empty(pointer[-1], np.float32)
            compact(pointer, indices, values, at, gy)
            blocks[int(s)] = (pointer, at, gy * np.float32(beam.gy_per_mu))
    return _joined(blocks, m, count, columns, rows)


def _refuse_memory(gigabytes: float, max_gb: float, *, voxels: int, exposures: int) -> None:
    if gigabytes > max_gb:
        raise InputError(
            f"the influence matrix of {voxels} voxels and {exposures} exposures needs about {gigabytes:.1f} "
            f"GB, above the limit of {max_gb:g} GB; sample fewer voxels or raise --max-gb"
        )


def _joined(
    blocks: list[_Block], voxels: int, count: int, columns: NDArray, rows: NDArray
) -> InfluenceMatrix:
    """Both matrices from the rows of each exposure; exposures are transposed several at a time."""
    sizes = np.array([len(at) for _, at, _ in blocks])
    ends = np.concatenate([[0], np.cumsum(sizes)])
    shape = (voxels, count * len(blocks))
    by_voxel = np.empty(ends[-1], np.int32), np.empty(ends[-1], np.float32)
    by_beamlet = np.empty(ends[-1], np.int32), np.empty(ends[-1], np.float32)
    pointers = np.concatenate([[0], np.cumsum(sum(np.diff(pointer) for pointer, _, _ in blocks))])
    turned = np.zeros(shape[1] + 1, np.int64)

    def transpose(s: int) -> None:
        pointer = np.empty(count + 1, np.int64)
        where = slice(ends[s], ends[s + 1])
        transposed(*blocks[s], pointer, by_beamlet[0][where], by_beamlet[1][where])
        turned[s * count + 1 : (s + 1) * count + 1] = ends[s] + pointer[1:]

    with ThreadPoolExecutor(get_num_threads()) as pool:
        list(pool.map(transpose, range(len(blocks))))
    filled = pointers[:-1].copy()
    for s, block in enumerate(blocks):
        join(*block, s * count, filled, *by_voxel)
    matrix = sparse.csr_matrix((by_voxel[1], by_voxel[0], pointers), shape)
    transpose = sparse.csr_matrix((by_beamlet[1], by_beamlet[0], turned), shape[::-1])
    return InfluenceMatrix(matrix, transpose, columns, rows, len(blocks))


def expected_entries(
    table: Tables, sigma_mm: NDArray, rows_mm: NDArray, columns_mm: NDArray, cut: float
) -> float:
    """Entries of one exposure for a voxel 100 mm deep in water, in the middle of the box."""
    unscaled = int(np.abs(SCALES - 1).argmin())
    weight = (table.primary + table.scatter)[100, unscaled, : len(sigma_mm)]
    shares = []
    for edges in (columns_mm, rows_mm):
        middle = (edges[0] + edges[-1]) / 2
        shares.append(np.diff(ndtr((edges - middle) / sigma_mm[:, None]), axis=1))
    dose = np.einsum("k,kr,kc->rc", weight, shares[1], shares[0])
    least = cut * float(weight @ _centred(sigma_mm, columns_mm, rows_mm))
    large = dose >= least
    return float(large.sum() + dose[~large].sum() / least)


def _centred(sigma_mm: NDArray, columns_mm: NDArray, rows_mm: NDArray) -> NDArray[np.float64]:
    """What each Gaussian in the middle of a beamlet of median size collects from it."""
    sizes = np.median(np.diff(columns_mm)), np.median(np.diff(rows_mm))
    return np.prod([2 * ndtr(size / (2 * sigma_mm)) - 1 for size in sizes], axis=0)
