"""Dose-volume histograms as curves on one axis of doses, for every dose of a run."""

from __future__ import annotations

from typing import Any

import numpy as np

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
    better than this band says.
    """
    part, near = structure.part(grid)
    gy = structure_dose_gy(dose, part, near)
    dvh = Dvh.of(gy, grid.voxel_cc)
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
        "outside_percent": round(outside_percent(dose, part, near), 2),
    }
    if dose.std_gy is not None:
        error = structure_dose_gy(Dose(dose.grid, dose.std_gy), part, near)
        for name, shifted in (("low", np.maximum(gy - error, 0)), ("high", gy + error)):
            out[name] = _percent(Dvh.of(shifted, grid.voxel_cc))
    return out


def _percent(dvh: Dvh) -> list[float]:
    """Percent of the volume at 0, 0.1 Gy ... up to the first dose that no voxel reaches."""
    axis = AXIS_STEP_GY * np.arange(int(dvh.max_gy / AXIS_STEP_GY) + 2)
    return [round(float(v), 3) for v in dvh.volume_at_dose_percent(axis)]
