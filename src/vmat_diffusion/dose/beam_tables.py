"""The beam model as evenly spaced tables, which the compiled loops read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.dose.loops import DEPTH_STEP_MM, HORN_STEP_MM
from vmat_diffusion.machine import BeamModel


class Tables(NamedTuple):
    """Kernel weights `[depth, kernel]` by depth, off-axis ratio by radius, and what goes with them."""

    weight: NDArray[np.float32]
    horn: NDArray[np.float32]
    softening_per_mm2: float
    sad_mm: float


def tables(beam: BeamModel) -> Tables:
    """Depth weights every 1 mm to 70 cm (exponential beyond the data), off-axis ratio every 2 mm."""
    depth = np.arange(0.0, 700.0, DEPTH_STEP_MM)
    nodes_mm, weight = np.asarray(beam.depth_mm), np.asarray(beam.kernel_weight)
    total = weight.sum(axis=0)
    fall_per_mm = np.log(total[-2] / total[-1]) / (nodes_mm[-1] - nodes_mm[-2])
    tail = np.exp(-fall_per_mm * np.maximum(depth - nodes_mm[-1], 0))
    rows = [np.interp(depth, nodes_mm, row) * tail for row in weight]
    radius = np.arange(0.0, 500.0, HORN_STEP_MM)
    return Tables(
        np.ascontiguousarray(np.stack(rows, axis=1), dtype=np.float32),
        np.interp(radius, beam.horn_radius_mm, beam.horn).astype(np.float32),
        float(beam.softening_per_mm2),
        float(beam.sad_mm),
    )
