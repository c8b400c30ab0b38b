"""How far a fitted beam is from its scans, and the fields that check it with the engine itself."""

from __future__ import annotations

import numpy as np

from vmat_diffusion.commissioning.beam_fit import Scan
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Arc, Plan

# Gamma of profiles as beam commissioning reports them: percent of the axis at that depth, mm.
_PERCENT, _MM = 2.0, 2.0
_TANK_STEP_MM = 4.0


def tank_dose(machine: Machine, scan: Scan) -> np.ndarray:
    """Dose of the pencil-beam engine itself at the points of a scan, relative to the reference dose.

    The fit uses a closed form; this is what plans are computed with. A second per field.
    """
    from vmat_diffusion.dose.delivery import exposures
    from vmat_diffusion.dose.pencil_beam import point_dose
    from vmat_diffusion.dose.tissue import MEDIA, Density

    sad_mm = machine.sad_mm
    out = np.zeros(len(scan.dose))
    for side, ssd in np.unique(np.stack([scan.side_mm, scan.ssd_mm], axis=1), axis=0):
        at = (scan.side_mm == side) & (scan.ssd_mm == ssd)
        points = np.stack([scan.x_mm[at], scan.depth_mm[at], scan.y_mm[at]], axis=1)
        beyond = float(np.abs(points).max()) + _TANK_STEP_MM
        count = int(np.ceil(2 * beyond / _TANK_STEP_MM))
        first = -(count - 1) / 2 * _TANK_STEP_MM
        deep = int(np.ceil(beyond / _TANK_STEP_MM))
        grid = Grid((count, deep, count), (_TANK_STEP_MM,) * 3, (first, _TANK_STEP_MM / 2, first))
        out[at] = point_dose(
            machine,
            exposures(open_square(machine, float(side)), machine),
            Density(grid, np.ones(grid.shape, np.float32)),
            points,
            (0.0, float(sad_mm - ssd), 0.0),
            medium=np.full(len(points), MEDIA.index("water"), np.uint8),
        )
    return out / machine.require_beam().gy_per_mu


def open_square(machine: Machine, side_mm: float) -> Plan:
    """1 MU of a square field made by the jaws, all leaves withdrawn, gantry 0, isocentre at the origin."""
    reach = machine.limits.leaf_position_mm
    leaves = np.tile([[-reach], [reach]], (2, 1, machine.mlc.pairs))
    jaws = np.tile(np.array([-1.0, 1.0, -1.0, 1.0]) * side_mm / 2, (2, 1))
    return Plan(
        (Arc(np.zeros(2), 0.0, 0.0, leaves, jaws, np.array([1.0])),), (0.0, 0.0, 0.0), 1, machine.name
    )


def residuals(scan: Scan, dose: np.ndarray) -> list[dict[str, float]]:
    """For each field, in percent: depth dose from 15 mm and build-up from 3 mm, of its maximum; the level at
    100 mm, which is the output factor; and how many profile points are within 2 % and 2 mm."""
    rows = []
    for side in np.unique(scan.side_mm):
        own = (scan.side_mm == side) & (scan.kind == 0)
        depth, measured, model = scan.depth_mm[own], scan.dose[own], dose[own]
        # A depth dose is relative to its own maximum; the level at 100 mm is the output factor's affair.
        level = np.interp(100.0, depth, model) / np.interp(100.0, depth, measured)
        difference = 100 * (model / level - measured) / measured.max()
        beyond, build_up = (depth >= 15) & (depth <= 300), (depth >= 3) & (depth < 15)
        row = {
            "side_mm": float(side),
            "pdd_max_percent": float(np.abs(difference[beyond]).max()),
            "build_up_max_percent": float(np.abs(difference[build_up]).max()),
            "output_factor_percent": 100 * (float(level) - 1),
        }
        passed = profile_agreement(scan, dose, float(side))
        if len(passed):
            row["profile_points_percent"] = 100 * float(np.mean(passed))
        rows.append(row)
    return rows


def profile_agreement(scan: Scan, dose: np.ndarray, side_mm: float) -> np.ndarray:
    """Whether each profile point of a field, 15 to 200 mm deep, has gamma below 1 (2 % of the axis, 2 mm)."""
    out = []
    profile = (scan.side_mm == side_mm) & (scan.kind == 1) & (scan.depth_mm >= 15) & (scan.depth_mm <= 200)
    for depth in np.unique(scan.depth_mm[profile]):
        at = np.flatnonzero(profile & (scan.depth_mm == depth))
        order = at[np.argsort(scan.x_mm[at])]
        x, measured, model = scan.x_mm[order], scan.dose[order], dose[order]
        axis = np.interp(0.0, x, measured)
        fine = np.arange(x[0], x[-1], 0.1)
        curve = np.interp(fine, x, model / np.interp(0.0, x, model) * axis)
        for place, wanted in zip(x, measured, strict=True):
            gamma = np.hypot((fine - place) / _MM, 100 * (curve - wanted) / axis / _PERCENT)
            out.append(float(gamma.min()) <= 1.0)
    return np.array(out, bool)
