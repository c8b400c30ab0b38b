"""Patients of water whose CT ends where the test says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vmat_diffusion.case import Case, Prescription, Structure
from vmat_diffusion.geometry import Grid

SPACING_MM = 4.0


def patient(
    *,
    left_mm: float = 220.0,
    right_mm: float = 220.0,
    target_x_mm: float = 0.0,
    position: str = "HFS",
    site: str = "",
) -> Case:
    """An ellipse of 360 x 220 mm around the z axis with a ball of 40 mm, on a CT that ends at these x.

    Left is towards positive x. The CT is 280 mm high and reaches 100 mm to either side along z, the body too.
    """
    nx, ny, nz = round((left_mm + right_mm) / SPACING_MM), 70, 50
    origin = (-right_mm + SPACING_MM / 2, -138.0, -98.0)
    grid = Grid((nz, ny, nx), (SPACING_MM,) * 3, origin)
    x, y, z = grid.axes_mm
    x, y, z = x[None, None, :], y[None, :, None], z[:, None, None]
    body = np.broadcast_to((x / 180) ** 2 + (y / 110) ** 2 <= 1, grid.shape).copy()
    ptv = (x - target_x_mm) ** 2 + y**2 + z**2 <= 20.0**2
    structures = {
        "BODY": Structure("BODY", "body", body),
        "PTV": Structure("PTV", "target", np.broadcast_to(ptv, grid.shape).copy()),
    }
    hu = np.where(body, 0.0, -1000.0)
    return Case("cut", site, grid, hu, structures, Prescription(25, {"PTV": 50.0}), patient_position=position)


def with_round_field(case: Case, radius_mm: float) -> Case:
    """The case with padding, air everywhere the same, outside a circle around the middle of its slices.

    The grid must be a square of twice the radius in the plane of the slices.
    """
    x, y, _ = case.grid.axes_mm
    away = np.hypot(x[None, :] - x.mean(), y[:, None] - y.mean())
    hu = np.where(away[None] > radius_mm, -1000.0, case.hu)
    rng = np.random.default_rng(1)
    noisy = hu + np.where(away[None] > radius_mm, 0.0, rng.normal(0, 10, hu.shape))
    return replace(case, hu=noisy)
