"""From fluence to leaves and back: what sweeping leaves deliver of maps, as maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.optimize.deliverable_set import Apertures, ControlPoints, DeliverableSet, control_points
from vmat_diffusion.optimize.fluence_map import FluenceMaps, Sectors, first_apertures
from vmat_diffusion.optimize.preparation import Prepared

# Moments of each segment at which the leaves are looked at, in the middle of equal parts.
_MOMENTS = 4


def swept(prepared: Prepared, sectors: Sectors, maps: FluenceMaps) -> tuple[DeliverableSet, Apertures]:
    """Sliding windows through maps at every control point, moved onto what the machine can deliver.

    All limits of leaves and MU hold: travel, gap, range, MU per degree.
    """
    points = control_points(prepared.frames, 1)
    allowed = DeliverableSet(points, prepared.task.machine, prepared.rates)
    sweeps = first_apertures(sectors, maps, prepared.task.machine.limits, prepared.rates, every=1)
    return allowed, allowed.project(sweeps)


def fluence_of(
    points: ControlPoints, apertures: Apertures, sectors: Sectors, column_edges_mm: NDArray
) -> NDArray[np.float64]:
    """MU that each bixel of each sector receives through the leaves, `[sectors, rows, columns]`.

    Leaves move evenly during a segment; leakage and penumbra do not count. A segment belongs to the sector
    that its middle lies in.
    """
    out = np.zeros((len(sectors.each), apertures.leaves_mm.shape[2], len(column_edges_mm) - 1))
    low, high = column_edges_mm[:-1], column_edges_mm[1:]
    for number, sector in enumerate(sectors.each):
        begin = points.bounds[sector.arc][0]
        first = begin + sector.first
        last = begin + sector.last
        segments = np.flatnonzero((points.first >= first) & (points.last <= last))
        start, stop = apertures.leaves_mm[points.first[segments]], apertures.leaves_mm[points.last[segments]]
        for moment in range(_MOMENTS):
            share = (moment + 0.5) / _MOMENTS
            leaves = start + share * (stop - start)
            left, right = leaves[:, 0, :, None], leaves[:, 1, :, None]
            open_mm = np.clip(np.minimum(right, high) - np.maximum(left, low), 0, None)
            mu = apertures.mu[segments] / _MOMENTS
            out[number] += np.einsum("s,src->rc", mu, open_mm) / (high - low)
    return out


def deliverable_maps(prepared: Prepared, sectors: Sectors, maps: FluenceMaps) -> FluenceMaps:
    """The maps that the machine delivers where these are asked for: the projection in the reverse steps."""
    allowed, apertures = swept(prepared, sectors, maps)
    given = fluence_of(allowed.points, apertures, sectors, maps.column_edges_mm)
    return FluenceMaps(given, maps.column_edges_mm)
