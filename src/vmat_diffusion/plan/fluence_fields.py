"""Fields of free fluence, which no leaves deliver: what a dose of a fluence optimisation is the dose of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.errors import PlanError
from vmat_diffusion.geometry import Point


@dataclass(frozen=True, eq=False)
class FluenceFields:
    """Fixed fields, each with a map of fluence.

    `mu[fields, rows, columns]` per fraction: a bixel of m MU receives what an open field of m MU gives there.
    Bixels lie between `row_edges_mm` (across the leaves) and `column_edges_mm` (along them) at the isocentre
    plane, both ascending. Angles are IEC 61217, in degrees; the couch is at 0. Raises PlanError where the
    arrays do not fit together or fluence is negative.
    """

    gantry_deg: NDArray[np.float64]
    collimator_deg: NDArray[np.float64]
    mu: NDArray[np.float32]
    row_edges_mm: NDArray[np.float64]
    column_edges_mm: NDArray[np.float64]
    isocenter_mm: Point
    fractions: int

    def __post_init__(self) -> None:
        expected = (len(self.gantry_deg), len(self.row_edges_mm) - 1, len(self.column_edges_mm) - 1)
        if self.mu.shape != expected or self.collimator_deg.shape != self.gantry_deg.shape:
            raise PlanError(f"fluence of shape {self.mu.shape} does not fit fields and edges, {expected}")
        for name, edges in (("row", self.row_edges_mm), ("column", self.column_edges_mm)):
            if len(edges) < 2 or not (np.diff(edges) > 0).all():
                raise PlanError(f"the {name} edges of the fluence do not ascend; sort them")
        if not (np.isfinite(self.mu).all() and (self.mu >= 0).all()):
            raise PlanError("a bixel's fluence is negative or no number; it must be 0 MU or more")

    @property
    def box_mm(self) -> tuple[float, float, float, float]:
        """X1, X2, Y1, Y2 of the bixels at the isocentre plane."""
        rows, columns = self.row_edges_mm, self.column_edges_mm
        return float(columns[0]), float(columns[-1]), float(rows[0]), float(rows[-1])
