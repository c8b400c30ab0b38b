"""Fit of a beam model to water-tank scans: spectrum, source, off-axis ratio, head scatter, electrons.

Pencils in water stay those of the Monte Carlo engine; only the beam that enters them is adjusted. For
square fields the pencil-beam engine's dose has a closed form, so that a fit takes seconds. Method and
limits: `docs/beam_model.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.special import ndtr

from vmat_diffusion.commissioning.scans import Curve, OutputFactors
from vmat_diffusion.dose.pencil_beam.beam_tables import (
    Gaussians,
    blurred_ratio,
    by_depth,
    mixtures,
    off_axis,
    spectrum,
)
from vmat_diffusion.errors import MachineError
from vmat_diffusion.machine import BeamModel
from vmat_diffusion.progress import Progress

OFF_AXIS_RADIUS_MM = np.array([0, 15, 30, 45, 60, 80, 100, 120, 140, 160, 185, 210, 240.0])
REFERENCE_SIDE_MM, REFERENCE_DEPTH_MM = 100.0, 15.0
_EVERY_MM = 2.0
_KINDS = {"depth": 0.0, "crossline": 1.0, "inline": 1.0, "diagonal": 2.0}


@dataclass(frozen=True, eq=False)
class Scan:
    """Points of square fields in water, lengths in mm, dose relative to the reference point.

    The reference point is 10 x 10 cm2, SSD 1000 mm, `REFERENCE_DEPTH_MM` deep on the axis. `kind` is 0 for
    depth doses, 1 for profiles, 2 for diagonals.
    """

    side_mm: NDArray
    ssd_mm: NDArray
    x_mm: NDArray
    y_mm: NDArray
    depth_mm: NDArray
    dose: NDArray
    kind: NDArray


def absolute(curves: Sequence[Curve], factors: OutputFactors) -> Scan:
    """Curves of square fields as one table of doses relative to the reference point, about every 2 mm.

    Output factors anchor each field's depth dose at their depth (50 mm where it is not stated), depth doses
    anchor the profiles. Factors taken at another SSD than the depth doses are used as they are; the
    difference in phantom scatter is neglected. Rectangular fields are left out. Raises MachineError without
    a depth dose of the reference field, or for profiles without one of their field.
    """
    square = [c for c in curves if c.is_square]
    depth_dose = {c.field_mm[0]: c for c in square if c.kind == "depth"}
    if REFERENCE_SIDE_MM not in depth_dose:
        raise MachineError("scans hold no depth dose of the 100 x 100 mm field; it is the reference, add it")
    if missing := {c.field_mm[0] for c in square} - set(depth_dose):
        raise MachineError(f"scans hold profiles but no depth dose of the {min(missing):g} mm field; add it")
    sides, of = factors.square()
    if len(sides) < 2 or not sides[0] <= REFERENCE_SIDE_MM <= sides[-1]:
        raise MachineError("output factors of square fields on both sides of 100 mm are needed; add them")
    at = 50.0 if factors.depth_mm is None else factors.depth_mm

    def axis(side: float, depth: NDArray | float) -> NDArray:
        curve = depth_dose[side]
        relative = np.interp(depth, curve.z_mm, curve.dose) / np.interp(at, curve.z_mm, curve.dose)
        return np.asarray(np.interp(side, sides, of) * relative)

    reference = axis(REFERENCE_SIDE_MM, REFERENCE_DEPTH_MM)
    tables = []
    for curve in square:
        side = curve.field_mm[0]
        if curve.kind == "depth":
            depth = np.concatenate([np.arange(0, 30, 1.0), np.arange(30, curve.z_mm[-1], 4.0)])
            x, y, ratio = 0 * depth, 0 * depth, np.ones_like(depth)
        else:
            along = curve.along_mm
            wanted = np.arange(np.ceil(along[0]), along[-1], _EVERY_MM)
            ratio = np.interp(wanted, along, curve.dose) / np.interp(0.0, along, curve.dose)
            x, y = (np.interp(wanted, along, p) for p in (curve.x_mm, curve.y_mm))
            depth = np.full_like(x, curve.depth_mm)
        dose = ratio * axis(side, depth) / reference
        columns = (side, curve.ssd_mm, x, y, depth, dose, _KINDS[curve.kind])
        tables.append(np.stack([np.broadcast_to(column, depth.shape) for column in columns], axis=1))
    return Scan(*np.concatenate(tables).T)


def _share_of_field(scan: Scan, mixture: Gaussians, sad_mm: float) -> NDArray[np.float64]:
    """How much of a square field each Gaussian collects at each point: shape (points, Gaussians)."""
    scale = (scan.ssd_mm + scan.depth_mm) / sad_mm
    sigma = np.sqrt((mixture.sigma_mm / scale[:, None]) ** 2 + mixture.blur_mm2)
    half = scan.side_mm[:, None] / 2
    out = np.ones_like(sigma)
    for position in (scan.x_mm, scan.y_mm):
        at = (position / scale)[:, None]
        out *= ndtr((half - at) / sigma) - ndtr((-half - at) / sigma)
    return out


def scan_dose(beam: BeamModel, scan: Scan) -> NDArray[np.float64]:
    """Dose of a beam at the points of a scan in Gy per unit of fluence, as the engine would compute it."""
    distance = scan.ssd_mm + scan.depth_mm
    radius = np.hypot(scan.x_mm, scan.y_mm) * beam.sad_mm / distance
    hardness = off_axis(beam, radius)[1]
    depth = scan.depth_mm * np.sqrt(1 + (radius / beam.sad_mm) ** 2) * hardness
    nodes, primary, scatter = mixtures(beam)
    total = np.zeros(len(distance))
    for mixture in (primary, scatter):
        share = _share_of_field(scan, mixture, beam.sad_mm)
        reach = scan.side_mm[:, None] / 2
        share *= blurred_ratio(beam, radius[:, None], mixture.sigma_mm, reach)
        total += np.einsum("pj,pj->p", by_depth(depth, nodes, mixture.weight), share)
    return (beam.sad_mm / distance) ** 2 * total


def calibrated(beam: BeamModel) -> BeamModel:
    """The beam with the fluence per MU that gives `gy_per_mu` at the reference point."""
    point = Scan(*(np.array([v]) for v in (REFERENCE_SIDE_MM, 1000.0, 0, 0, REFERENCE_DEPTH_MM, 1, 0)))
    return replace(beam, photons_cm2_mu=beam.gy_per_mu / float(scan_dose(beam, point)[0]))


@dataclass(frozen=True, eq=False)
class BeamFit:
    """The fitted beam, the weighted residual in percent of the reference dose, and the model's doses."""

    beam: BeamModel
    rms_percent: float
    dose: NDArray[np.float64]


# What is adjusted, with start, bounds and unit of change. Spectrum: number times E^power exp(-fall E).
_PARAMETERS = {
    "power": (0.0, -1.5, 1.5, 0.1),
    "fall_per_mev": (0.0, -1.0, 1.0, 0.05),
    "focal_sigma_mm": (2.2, 0.3, 6.0, 0.2),
    "head_share": (0.10, 0.0, 0.3, 0.02),
    "head_sigma_mm": (30.0, 8.0, 80.0, 4.0),
    "softening_per_mm2": (6e-6, 0.0, 2e-5, 2e-6),
    "electrons_per_photon": (0.005, 0.0, 0.05, 0.002),
    "electron_mean_mev": (1.4, 0.4, 4.0, 0.3),
    "electron_sigma_mm": (30.0, 5.0, 120.0, 10.0),
}


def with_parameters(start: BeamModel, values: NDArray, ratio: NDArray) -> BeamModel:
    """The beam that parameters in the order of the fit stand for."""
    named: dict[str, Any] = dict(zip(_PARAMETERS, (float(v) for v in values), strict=True))
    energy, number = spectrum(start)
    bent = number * energy ** named.pop("power") * np.exp(-named.pop("fall_per_mev") * energy)
    return replace(
        start,
        spectrum_number=tuple(float(v) for v in bent / bent.sum()),
        horn_radius_mm=tuple(float(v) for v in OFF_AXIS_RADIUS_MM),
        horn=tuple(float(v) for v in ratio),
        **named,
    )


def point_weights(scan: Scan) -> NDArray[np.float64]:
    """How much each point counts.

    Less in the first millimetres, where chambers read high, in fields over 30 cm and beyond the off-axis
    ratio; the axis counts most.
    """
    weight = np.where(scan.depth_mm < 10, 0.4, 1.0) * np.where(scan.depth_mm < 3, 0.3, 1.0)
    weight *= np.where(scan.kind == 0, 3.0, 1.0) * np.where(scan.kind == 2, 0.5, 1.0)
    weight *= np.where(scan.side_mm > 300, 0.3, 1.0)
    radius = np.hypot(scan.x_mm, scan.y_mm) * 1000.0 / (scan.ssd_mm + scan.depth_mm)
    return weight * (radius < OFF_AXIS_RADIUS_MM[-1])


def fit_beam(scan: Scan, start: BeamModel, *, rounds: int = 3, progress: Progress | None = None) -> BeamFit:
    """The beam that fits a scan best in the least-squares sense; about a minute.

    `start` gives the spectrum's shape and what scans do not tell: energy, distances, the collimator's plane.
    """
    weight = point_weights(scan)
    ratio = np.ones(len(OFF_AXIS_RADIUS_MM))
    first, low, high, unit = (np.array(column) for column in zip(*_PARAMETERS.values(), strict=True))
    values = first.copy()

    def relative(values: NDArray) -> NDArray:
        beam = calibrated(with_parameters(start, values, ratio))
        return scan_dose(beam, scan) * beam.photons_cm2_mu / beam.gy_per_mu

    for turn in range(rounds):
        if progress:
            progress("fit", turn / rounds, f"round {turn + 1} of {rounds}")
        for _ in range(2):
            ratio = _fitted_off_axis_ratio(scan, relative(values), ratio, weight)
        solution = least_squares(
            lambda v: (relative(v * unit) - scan.dose) * weight,
            values / unit,
            bounds=(low / unit, high / unit),
            max_nfev=12,
        )
        values = solution.x * unit
    ratio = _fitted_off_axis_ratio(scan, relative(values), ratio, weight)
    beam = calibrated(with_parameters(start, values, ratio))
    dose = scan_dose(beam, scan) * beam.photons_cm2_mu / beam.gy_per_mu
    rms = 100 * float(np.sqrt(np.mean(((dose - scan.dose) * weight) ** 2)))
    return BeamFit(beam, rms, dose)


def _fitted_off_axis_ratio(
    scan: Scan, dose: NDArray, present: NDArray, weight: NDArray
) -> NDArray[np.float64]:
    """Off-axis ratio at OFF_AXIS_RADIUS_MM, 1 on the axis, given the dose with the ratio `present`."""
    radius = np.hypot(scan.x_mm, scan.y_mm) * 1000.0 / (scan.ssd_mm + scan.depth_mm)
    hats = np.stack([np.interp(radius, OFF_AXIS_RADIUS_MM, row) for row in np.eye(len(present))], axis=1)
    design = (dose / (hats @ present))[:, None] * hats
    smooth = 0.3 * np.diff(np.eye(len(present)), 2, axis=0)
    rows = np.concatenate([design * weight[:, None], smooth])
    wanted = np.concatenate([scan.dose * weight, np.zeros(len(smooth))])
    ratio = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    return ratio / ratio[0]


# What `fit_beam` sets besides the parameters of the same name.
_FITTED = {*_PARAMETERS, "photons_cm2_mu", "spectrum_number", "horn_radius_mm", "horn"}


def beam_toml(beam: BeamModel, fitted: str, kept: str) -> str:
    """The `[beam]` section of a machine file; sources: `fitted` of what the fit sets, `kept` of the rest."""
    lines = ["[beam]"]
    for name in BeamModel.__dataclass_fields__:
        value = getattr(beam, name)
        if isinstance(value, str):
            lines.append(f'{name} = "{value}"')
        else:
            numbers = [f"{v:.6g}" for v in value] if isinstance(value, tuple) else f"{value:.6g}"
            text = f"[{', '.join(numbers)}]" if isinstance(value, tuple) else numbers
            source = fitted if name in _FITTED else kept
            lines.append(f'{name} = {{ value = {text}, source = "{source}" }}')
    return "\n".join(lines) + "\n"
