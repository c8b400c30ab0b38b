"""Dose-volume histograms as curves on one axis of doses, for every dose of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Dose
from vmat_diffusion.evaluate.dvh import Dvh, outside_percent, structure_dose_gy
from vmat_diffusion.geometry import Grid
from vmat_diffusion.web.view.masks import PackedStructure

# All curves are given at whole multiples of this dose, so that those of two plans can be compared.
AXIS_STEP_GY = 0.1


def curves(structure: PackedStructure, grid: Grid, dose: Dose) -> dict[str, Any]:
    """The cumulative histogram of a structure at 0, 0.1, 0.2 Gy ..., in percent, and its figures.

    Where the dose knows its standard error, `low` and `high` are the histograms of all voxels one standard
    error lower and higher: the errors of voxels are nearly independent, so that the histogram itself is known
    better than this band says. Memory: 4 bytes a voxel, as a body of a fine CT has 20 million.
    """
    every = np.empty(structure.voxels, np.float32)
    low, high, outside, done = _Curve(), _Curve(), 0.0, 0
    for part, near in structure.slabs(grid):
        gy = structure_dose_gy(dose, part, near)
        every[done : done + len(gy)] = gy
        done += len(gy)
        outside += outside_percent(dose, part, near) * len(gy)
        if dose.std_gy is not None:
            error = structure_dose_gy(Dose(dose.grid, dose.std_gy), part, near)
            low.add(np.maximum(gy - error, 0))
            high.add(gy + error)
    every.sort()
    dvh = Dvh(every[::-1], grid.voxel_cc)
    out: dict[str, Any] = {
        "percent": _percent(dvh),
        "volume_cc": round(dvh.volume_cc, 4),
        "min_gy": round(dvh.min_gy, 3),
        "mean_gy": round(dvh.mean_gy, 3),
        "max_gy": round(dvh.max_gy, 3),
        "d98_gy": round(dvh.dose_at_percent_gy(98), 3),
        "d95_gy": round(dvh.dose_at_percent_gy(95), 3),
        "d50_gy": round(dvh.dose_at_percent_gy(50), 3),
        "d2_gy": round(dvh.dose_at_percent_gy(2), 3),
        "outside_percent": round(outside / len(every), 2),
    }
    if dose.std_gy is not None:
        out |= {"low": low.percent(), "high": high.percent()}
    return out


def _axis_gy(max_gy: float) -> NDArray[np.floating]:
    """Doses of a curve: 0, 0.1 Gy ... up to the first that no voxel reaches."""
    return AXIS_STEP_GY * np.arange(int(max_gy / AXIS_STEP_GY) + 2)


def _percent(dvh: Dvh) -> list[float]:
    """Percent of the volume at each dose of the axis."""
    return [round(float(v), 3) for v in dvh.volume_at_dose_percent(_axis_gy(dvh.max_gy))]


class _Curve:
    """A cumulative histogram that is counted part by part, as `Dvh` counts a whole."""

    def __init__(self) -> None:
        self._voxels = np.zeros(0, np.int64)
        self._all = 0
        self._max_gy = 0.0

    def add(self, gy: NDArray[np.float32]) -> None:
        """Count further voxels; their doses are sorted in place."""
        gy.sort()
        self._max_gy = max(self._max_gy, float(gy[-1]))
        axis = _axis_gy(self._max_gy).astype(gy.dtype)
        found = len(gy) - np.searchsorted(gy, axis, side="left")
        found[: len(self._voxels)] += self._voxels
        self._voxels, self._all = found, self._all + len(gy)

    def percent(self) -> list[float]:
        """Percent of the volume at each dose of the axis."""
        return [round(float(v), 3) for v in 100.0 * self._voxels / self._all]
