"""Doses that plan and dose files say beside the dose itself: of each beam at a point, and as histograms."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.engines import dose_engine
from vmat_diffusion.evaluate.dvh import structure_dvh
from vmat_diffusion.evaluate.task import Task
from vmat_diffusion.geometry import Grid, Point
from vmat_diffusion.plan import Plan

if TYPE_CHECKING:
    from vmat_diffusion.dicom.rtdose_write import Histogram
    from vmat_diffusion.dicom.rtplan_parts.fields import BeamDoses

_BIN_GY = 0.1
# The engine's grid around the point: its dose is interpolated there.
_AROUND = 3


def beam_doses(plan: Plan, task: Task) -> BeamDoses:
    """The dose of each beam by the fast engine, Gy per fraction, in the middle of the highest target."""
    from vmat_diffusion.dicom.rtplan_parts.fields import BeamDoses

    case, given = task.case, task.sheet.prescription.target_gy
    name = max((n for n in given if n in case.structures), key=lambda n: given[n])
    point = middle_mm(case, name)
    spacing = case.grid.spacing_mm
    x, y, z = (p - s * (_AROUND // 2) for p, s in zip(point, spacing, strict=True))
    grid = Grid((_AROUND,) * 3, spacing, (x, y, z))
    engine, middle = dose_engine("pencil-beam", task.machine), _AROUND // 2
    gy = {
        arc.number: float(engine(replace(plan, arcs=(arc,)), case, grid).gy[middle, middle, middle])
        / plan.fractions
        for arc in plan.arcs
    }
    return BeamDoses(point, gy)


def middle_mm(case: Case, name: str) -> Point:
    """The voxel of a structure that is nearest to its centre of mass, as a point of the patient."""
    inside = np.argwhere(case.structures[name].mask)
    size = np.asarray(case.grid.spacing_mm[::-1])
    away = ((inside - inside.mean(axis=0)) * size) ** 2
    k, j, i = inside[int(away.sum(axis=1).argmin())]
    axes = case.grid.axes_mm
    return float(axes[0][i]), float(axes[1][j]), float(axes[2][k])


def histograms(dose: Dose, case: Case) -> tuple[Histogram, ...]:
    """The cumulative DVH of each structure that the structure set has and the dose's grid holds."""
    from vmat_diffusion.dicom.rtdose_write import Histogram

    found = []
    for name, number in case.source.roi_numbers.items():
        structure = case.structures.get(name)
        if structure is None or not structure.mask.any():
            continue
        dvh = structure_dvh(dose, structure, case.grid)
        edges = np.arange(int(dvh.max_gy / _BIN_GY) + 2) * _BIN_GY
        volumes = dvh.volume_at_dose_cc(edges).tolist()
        found.append(Histogram(number, _BIN_GY, volumes, dvh.min_gy, dvh.max_gy, dvh.mean_gy))
    return tuple(found)
