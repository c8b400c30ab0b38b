"""Fit of the multi-Gaussian beam model to water-tank scans.

The model is linear in its depth weights, so for given kernel widths they follow from one bounded
least-squares problem over depth doses, profiles and output factors together; widths, off-axis
ratio and softening are found around it. Method and limits: `docs/dose_engine.md`.
"""

from __future__ import annotations

import csv
import gzip
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import lsq_linear, minimize
from scipy.special import erf

from vmat_diffusion.errors import MachineError
from vmat_diffusion.machine import BeamModel

_SHALLOW_MM = (0, 1, 2, 3.5, 5, 7, 9, 11, 13, 15, 17.5, 20, 25, 30)
DEPTH_NODES_MM = np.array([*_SHALLOW_MM, 40, 50, 65, 80, 100, 125, 150, 175, 200, 250, 300, 350.0])
HORN_RADIUS_MM = np.array([0, 15, 30, 45, 60, 80, 100, 120, 140, 160, 185, 210, 240.0])
SAD_MM = 1000.0


@dataclass(frozen=True, eq=False)
class Scan:
    """Points of square fields in water: everything in mm, dose relative to the reference point."""

    side_mm: NDArray
    ssd_mm: NDArray
    x_mm: NDArray
    y_mm: NDArray
    depth_mm: NDArray
    dose: NDArray
    kind: NDArray


def read_scans(scans: Path, output_factors: Path, reference_depth_mm: float = 15.0) -> Scan:
    """Water-tank scans and output factors as absolute doses relative to the reference point.

    `scans` is a CSV (optionally gzipped) with columns curve, field_mm, ssd_mm, type, axis,
    depth_mm, x_mm, y_mm, z_depth_mm, dose_rel; `output_factors` the table of factors at SSD 950 mm
    and depth 50 mm. Each curve is thinned to about 2 mm. The reference point is the 10x10 field at
    SSD 1000 mm and `reference_depth_mm`.
    """
    curves = _read_curves(scans)
    factor = _square_output_factors(output_factors)
    depth_dose = {k.side_mm: v[np.argsort(v[:, 2])] for k, v in curves.items() if k.kind == "PDD"}
    if 100 not in depth_dose:
        raise MachineError("scans hold no depth dose of the 100*100 mm field; it sets the reference")
    if missing := {k.side_mm for k in curves} - set(depth_dose):
        raise MachineError(f"scans hold profiles but no depth dose of the {min(missing)} mm field; add it")

    def axis(side: int, depth: NDArray | float) -> NDArray:
        """Absolute dose on the axis: the depth dose, anchored by the output factor at 50 mm."""
        pdd = depth_dose[side]
        at = np.interp(depth, pdd[:, 2], pdd[:, 3])
        return np.interp(side, *factor) * at / np.interp(50.0, pdd[:, 2], pdd[:, 3])

    reference = axis(100, reference_depth_mm)
    tables = []
    for key, points in curves.items():
        if key.kind == "PDD":
            depth = np.concatenate([np.arange(0, 30, 1.0), np.arange(30, 348, 4.0)])
            x, y, ratio, kind, ssd = 0 * depth, 0 * depth, np.ones_like(depth), 0, 1000.0
        else:
            x, y, ratio = _thinned(points, diagonal=key.kind != "PRF")
            depth = np.full_like(x, points[0, 2])
            kind, ssd = (1 if key.kind == "PRF" else 2), points[0, 4]
        dose = ratio * axis(key.side_mm, depth) / reference
        columns = (float(key.side_mm), ssd, x, y, depth, dose, float(kind))
        tables.append(np.stack([np.broadcast_to(column, depth.shape) for column in columns], axis=1))
    return Scan(*np.concatenate(tables).T)


class _Curve(NamedTuple):
    kind: str
    side_mm: int
    depth: str


def _read_curves(scans: Path) -> dict[_Curve, NDArray]:
    """Points of each curve as rows of x, y, depth, relative dose, SSD."""
    curves: dict[_Curve, list[tuple[float, ...]]] = defaultdict(list)
    data = Path(scans).read_bytes()
    text = (gzip.decompress(data) if str(scans).endswith(".gz") else data).decode("utf-8")
    for row in csv.DictReader(text.splitlines()):
        key = _Curve(row["curve"], int(row["field_mm"].split("*")[0]), row["depth_mm"])
        columns = ("x_mm", "y_mm", "z_depth_mm", "dose_rel", "ssd_mm")
        curves[key].append(tuple(float(row[k] or 0) for k in columns))
    return {key: np.array(points) for key, points in curves.items()}


def _thinned(points: NDArray, *, diagonal: bool) -> tuple[NDArray, NDArray, NDArray]:
    """x, y and dose relative to the axis every 2 mm along a profile."""
    along = np.hypot(points[:, 0], points[:, 1]) * np.sign(points[:, 0]) if diagonal else points[:, 0]
    order = np.argsort(along)
    wanted = np.arange(np.ceil(along.min()), along.max(), 2.0)
    ratio = np.interp(wanted, along[order], points[order, 3])
    ratio /= np.interp(0.0, along[order], points[order, 3])
    x = wanted / np.sqrt(2) if diagonal else wanted
    return x, x if diagonal else 0 * x, ratio


def _square_output_factors(path: Path) -> tuple[list[float], list[float]]:
    """Sides of square fields in mm and their output factors relative to 10x10."""
    lines = [line.strip().rstrip(",").split(",") for line in Path(path).read_text().splitlines()[1:] if line]
    columns = [float(v) for v in lines[0]]
    sides = [float(line[0]) for line in lines[1:]]
    diagonal = [float(line[1 + columns.index(s)]) for s, line in zip(sides, lines[1:], strict=True)]
    return [10 * side for side in sides], diagonal


def kernel_field(scan: Scan, sigma_mm: NDArray) -> NDArray:
    """Each Gaussian's convolution with the square field at every point; shape (points, kernels).

    In isocentre-plane coordinates, as the engine has it.
    """
    scale = SAD_MM / (scan.ssd_mm + scan.depth_mm)
    half = scan.side_mm / 2
    out = np.ones((len(half), len(sigma_mm)))
    for position in (scan.x_mm * scale, scan.y_mm * scale):
        for k, sigma in enumerate(sigma_mm):
            s = np.sqrt(2) * sigma
            out[:, k] *= 0.5 * (erf((half - position) / s) + erf((half + position) / s))
    return out


def _hat(values: NDArray, nodes: NDArray) -> NDArray:
    """Weights of piecewise linear interpolation, shape (values, nodes); the ends are held."""
    return np.stack([np.interp(values, nodes, row) for row in np.eye(len(nodes))], axis=1)


@dataclass(frozen=True, eq=False)
class _Parts:
    field: NDArray
    hat_depth: NDArray
    hat_horn: NDArray
    inverse_square: NDArray


def _parts(scan: Scan, sigma_mm: NDArray, softening_per_mm2: float) -> _Parts:
    distance = scan.ssd_mm + scan.depth_mm
    radius = np.hypot(scan.x_mm, scan.y_mm) * SAD_MM / distance
    slant = np.sqrt(1 + (radius / SAD_MM) ** 2)
    depth = scan.depth_mm * slant * (1 + softening_per_mm2 * radius**2)
    return _Parts(
        field=kernel_field(scan, sigma_mm),
        hat_depth=_hat(depth, DEPTH_NODES_MM),
        hat_horn=_hat(radius, HORN_RADIUS_MM),
        inverse_square=(SAD_MM / distance) ** 2,
    )


def _solve_weights(scan: Scan, parts: _Parts, horn: NDArray, point_weight: NDArray) -> tuple[NDArray, float]:
    """Non-negative depth weights (kernels, depths) that fit all points, and the mean square residual."""
    n_kernel, n_depth = parts.field.shape[1], len(DEPTH_NODES_MM)
    common = parts.inverse_square * (parts.hat_horn @ horn)
    design = (parts.field[:, :, None] * parts.hat_depth[:, None, :]).reshape(len(common), -1)
    design *= common[:, None]
    # Smoothness of ln-like curvature: second differences on the node index, weak against the data.
    second = np.diff(np.eye(n_depth), 2, axis=0)
    spacing = np.diff(DEPTH_NODES_MM)
    second *= 0.15 * np.minimum(1.0, 20.0 / (spacing[1:] + spacing[:-1]))[:, None]
    smooth = np.kron(np.eye(n_kernel), second)
    a = np.concatenate([design * point_weight[:, None], smooth])
    b = np.concatenate([scan.dose * point_weight, np.zeros(len(smooth))])
    gram, right = a.T @ a + 1e-9 * np.eye(a.shape[1]), a.T @ b
    lower = np.linalg.cholesky(gram)
    found = lsq_linear(lower.T, np.linalg.solve(lower, right), bounds=(0, np.inf), method="bvls").x
    residual = (design @ found - scan.dose) * point_weight
    return found.reshape(n_kernel, n_depth), float(np.mean(residual**2))


def _solve_horn(scan: Scan, parts: _Parts, weight: NDArray, point_weight: NDArray) -> NDArray:
    """Off-axis ratio at HORN_RADIUS_MM, 1 on the axis."""
    inside = parts.inverse_square * np.einsum("pk,pd,kd->p", parts.field, parts.hat_depth, weight)
    design = inside[:, None] * parts.hat_horn
    smooth = 0.3 * np.diff(np.eye(len(HORN_RADIUS_MM)), 2, axis=0)
    a = np.concatenate([design * point_weight[:, None], smooth])
    b = np.concatenate([scan.dose * point_weight, np.zeros(len(smooth))])
    horn = np.linalg.lstsq(a, b, rcond=None)[0]
    return horn / horn[0]


@dataclass(frozen=True, eq=False)
class BeamFit:
    """The fitted numbers and how well they fit: `rms_percent` of the reference dose, weighted."""

    sigma_mm: NDArray
    weight: NDArray
    horn: NDArray
    softening_per_mm2: float
    rms_percent: float

    def dose(self, scan: Scan) -> NDArray:
        """Doses of the fitted model at the points of a scan, relative to the reference point."""
        parts = _parts(scan, self.sigma_mm, self.softening_per_mm2)
        inside = np.einsum("pk,pd,kd->p", parts.field, parts.hat_depth, self.weight)
        return parts.inverse_square * (parts.hat_horn @ self.horn) * inside

    def beam_model(self, template: BeamModel) -> BeamModel:
        """The template with the fitted parameters in place of its own."""
        return replace(
            template,
            kernel_sigma_mm=tuple(float(v) for v in self.sigma_mm),
            depth_mm=tuple(float(v) for v in DEPTH_NODES_MM),
            kernel_weight=tuple(tuple(float(v) for v in row) for row in self.weight),
            softening_per_mm2=self.softening_per_mm2,
            horn_radius_mm=tuple(float(v) for v in HORN_RADIUS_MM),
            horn=tuple(float(v) for v in self.horn),
        )


def fit_beam(
    scan: Scan, start_sigma_mm: tuple[float, ...] = (2.6, 7.0, 25.0, 90.0), rounds: int = 4
) -> BeamFit:
    """Kernel widths, depth weights, off-axis ratio and softening from scans; about two minutes.

    Points below 10 mm depth and fields over 30 cm count less: the model is for therapy depths.
    """
    point_weight = np.where(scan.depth_mm < 10, 0.5, 1.0) * np.where(scan.side_mm > 300, 0.3, 1.0)
    point_weight *= np.where(scan.kind == 0, 3.0, 1.0) * np.where(scan.kind == 2, 0.5, 1.0)
    radius = np.hypot(scan.x_mm, scan.y_mm) * SAD_MM / (scan.ssd_mm + scan.depth_mm)
    point_weight *= radius < HORN_RADIUS_MM[-1]
    horn, softening = np.ones(len(HORN_RADIUS_MM)), 2e-6
    log_sigma = np.log(start_sigma_mm)

    def cost(p: NDArray) -> float:
        parts = _parts(scan, np.exp(p[:-1]), p[-1] * 1e-6)
        return 1e4 * _solve_weights(scan, parts, horn, point_weight)[1]

    for _ in range(rounds):
        for _ in range(3):
            parts = _parts(scan, np.exp(log_sigma), softening)
            weight, _unused = _solve_weights(scan, parts, horn, point_weight)
            horn = _solve_horn(scan, parts, weight, point_weight)
        start = np.array([*log_sigma, softening * 1e6])
        found = minimize(cost, start, method="Powell", options={"maxfev": 120, "xtol": 1e-3, "ftol": 1e-5})
        log_sigma, softening = found.x[:-1], float(found.x[-1]) * 1e-6
    parts = _parts(scan, np.exp(log_sigma), softening)
    weight, mean_square = _solve_weights(scan, parts, horn, point_weight)
    order = np.argsort(log_sigma)
    fit = BeamFit(np.exp(log_sigma)[order], weight[order], horn, softening, 0.0)
    reference = Scan(*(np.array([v]) for v in (100.0, 1000.0, 0.0, 0.0, 15.0, 1.0, 0.0)))
    return replace(fit, weight=fit.weight / fit.dose(reference)[0], rms_percent=100 * mean_square**0.5)


def beam_toml(beam: BeamModel, source: str) -> str:
    """The `[beam]` section of a machine file, every number with its source."""

    def row(values: tuple[float, ...], digits: int = 6) -> str:
        return "[" + ", ".join(f"{v:.{digits}g}" for v in values) + "]"

    weights = ", ".join(row(r, 5) for r in beam.kernel_weight)
    quoted = f'source = "{source}"'
    return "\n".join(
        [
            "[beam]",
            f'energy = "{beam.energy}"',
            f'fluence_mode = "{beam.fluence_mode}"',
            f'reference_point = "{beam.reference_point}"',
            f'sad_mm = {{ value = {beam.sad_mm:g}, source = "isocentric C-arm linac" }}',
            f"gy_per_mu = {{ value = {beam.gy_per_mu:g}, "
            'source = "calibration: 1 cGy/MU at the reference point" }',
            f"kernel_sigma_mm = {{ value = {row(beam.kernel_sigma_mm)}, {quoted} }}",
            f"depth_mm = {{ value = {row(beam.depth_mm)}, {quoted} }}",
            f"kernel_weight = {{ value = [{weights}], {quoted} }}",
            f"softening_per_mm2 = {{ value = {beam.softening_per_mm2:.5g}, {quoted} }}",
            f"horn_radius_mm = {{ value = {row(beam.horn_radius_mm)}, {quoted} }}",
            f"horn = {{ value = {row(beam.horn)}, {quoted} }}",
            "",
        ]
    )
