"""Doses of targets, organs and regions by both engines: points of histograms that gamma does not see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vmat_diffusion.case import Case, Dose, Structure
from vmat_diffusion.evaluate.dvh import Dvh, structure_dose_gy, structure_dvh
from vmat_diffusion.evaluate.goals import GoalSheet
from vmat_diffusion.geometry import Grid, resample
from vmat_diffusion.plan import Plan
from vmat_diffusion.qa.agreement import Compared, on_grid, tissue_of
from vmat_diffusion.qa.limits import GateSettings
from vmat_diffusion.qa.verdict import SIGMAS, Check, bounded, computing_needed, warning

# Noise lowers D98% and raises D2%: both doses are smoothed alike before their histograms are compared.
_SMOOTHING_MM = 3.0
# Mean doses over a region of about 60 cc, in which the noise of single voxels averages out.
_REGION_MM = 12.0
_LEAST_CC = 0.03
# The voxels that have about the dose of a point: at least so many, and this share of a structure.
_LEVEL_VOXELS, _LEVEL_SHARE = 27, 0.02
# How far a steep gradient may carry the dose of a voxel to its neighbours.
_NEAR_MM = 5.0
# ICRU 83 (2010) reports D50% as the dose that a plan was normalised to, and doses of at least 95 % of it for
# the planning target; ours: 90 % at D95%, as targets reach into air and build-up.
_LEAST_D95_SHARE, _LEAST_D50_SHARE = 0.90, 0.95


def target_means(case: Case, sheet: GoalSheet | None, pair: Compared, settings: GateSettings) -> list[Check]:
    """Mean dose of each prescribed target (of all targets without a sheet) by both engines."""
    wanted: Sequence[str] = list(sheet.prescription.target_gy) if sheet else [t.name for t in case.targets]
    out = []
    for name in wanted:
        structure = case.structures.get(name)
        if structure is None or not structure.mask.any():
            continue
        planned, checked = (
            float(structure_dose_gy(d, structure, case.grid).mean(dtype=np.float64))
            for d in (pair.dose, pair.check)
        )
        percent = 100.0 * (checked / planned - 1.0) if planned > 0 else None
        inside = np.flatnonzero(on_grid(structure.mask, case.grid, pair.grid))
        error = None
        if percent is not None and inside.size:
            found = pair.group_errors(lambda gy, at=inside: gy.ravel()[at].mean(dtype=np.float64))  # type: ignore[misc]
            error = None if found is None else 100.0 * float(found) / planned
        why = f"{checked:.2f} Gy by the independent engine, {planned:.2f} Gy planned"
        name = f"mean dose of {name}"
        out.append(bounded(name, percent, settings.target_mean_percent, "%", why, error=error))
    return out


def scale_factor(pair: Compared, settings: GateSettings) -> list[Check]:
    """The factor that carries the planned dose onto the independent one where it is high: wrong MU.

    Least squares over the tissue where the plan is above half of the reference dose. So many voxels leave a
    standard error of some 0.1 %, so that the factor is decided where single voxels are too noisy to judge.
    """
    high = pair.tissue & (pair.planned_gy > 0.5 * pair.reference_gy)
    if not pair.reference_gy > 0 or not high.any():
        return []
    planned = pair.planned_gy[high].astype(np.float64)
    total = float(planned @ planned)

    def factor(gy: NDArray[np.float32]) -> float:
        return 100.0 * float(planned @ gy[high]) / total

    percent, found = factor(pair.check.gy) - 100.0, pair.group_errors(factor)
    error = None if found is None else float(found)
    why = (
        f"{percent:+.2f}{_plus_minus(error)} % from the planned dose to the independent one over "
        f"{planned.size} voxels of tissue where the plan is above half of its maximum: the MU or the output "
        "differ by this"
    )
    return [bounded("factor between the doses", percent, settings.factor_percent, "%", why, error=error)]


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f" +- {error:.2f}"


def prescribed_doses(case: Case, plan: Plan, dose: Dose) -> Check | None:
    """A warning where a target gets less of the planned dose than the plan file itself prescribes to it.

    A contour that was moved after planning, and a prescription that was changed, show here without any goal.
    A prescription to no region is compared with the target that gets most. None where the file states none.
    """
    stated = plan.provenance.get("prescribed_gy")
    if not isinstance(stated, Mapping) or not stated:
        return None
    numbers = {number: name for name, number in case.source.roi_numbers.items()}
    curves = {t.name: structure_dvh(dose, t, case.grid) for t in case.targets if t.mask.any()}
    asked = [(numbers[n], gy) for n, gy in stated.items() if numbers.get(n) in curves]
    if not asked and curves:
        hottest = max(curves, key=lambda name: curves[name].dose_at_percent_gy(50.0))
        asked = [(hottest, max(stated.values()))]
    low: list[str] = []
    said: list[str] = []
    for name, gy in asked:
        got = [curves[name].dose_at_percent_gy(percent) for percent in (95.0, 50.0)]
        text = f"{name}: {gy:g} Gy prescribed, D95% {got[0]:.2f} Gy, D50% {got[1]:.2f} Gy planned"
        least = _LEAST_D95_SHARE, _LEAST_D50_SHARE
        (low if any(v < share * gy for v, share in zip(got, least, strict=True)) else said).append(text)
    return warning("prescription of the plan file", low, "; ".join(said)) if low or said else None


def dose_points(case: Case, pair: Compared, settings: GateSettings) -> list[Check]:
    """The worst point of the histograms of all targets and of all organs by both engines.

    D95%, D98% and D2% of targets, mean, D2% and D0.03cc of organs and the body; in percent of the reference
    dose, independent engine less plan. Air within a structure takes the dose of the tissue around it.
    """
    if not pair.reference_gy > 0:
        return []
    planned, check = (
        Dose(pair.grid, in_tissue(gy, pair, _SMOOTHING_MM)) for gy in (pair.planned_gy, pair.check.gy)
    )
    found: dict[str, list[Point]] = {"targets": [], "organs": [], "organ means": []}
    for structure in case.structures.values():
        if structure.role == "other" or structure.voxels * case.grid.voxel_cc < _LEAST_CC:
            continue
        both = [structure_dvh(d, structure, case.grid) for d in (planned, check)]
        for kind, name, (before, after) in _points(structure, both):
            percent = 100.0 * (after - before) / pair.reference_gy
            found[kind].append(Point(structure, name, before, after, percent))
    limits = {
        "targets": ("D95%, D98%, D2% of targets", settings.target_dvh_percent),
        "organs": ("D2%, D0.03cc of organs", settings.organ_dvh_percent),
        "organ means": ("mean doses of organs", settings.organ_mean_percent),
    }
    # Errors are asked for where they can matter: those of usable doses are far below half of any limit.
    near = [p for kind, (_, limit) in limits.items() for p in found[kind] if abs(p.percent) > 0.5 * limit]
    errors = dict(zip(near, _point_errors(near, case, pair, check), strict=True))
    return [_worst(name, limit, found[kind], errors) for kind, (name, limit) in limits.items() if found[kind]]


@dataclass(frozen=True, eq=False)
class Point:
    """A point of a structure's histograms by both engines in Gy, and its change in percent of 100 %."""

    structure: Structure
    name: str
    planned_gy: float
    check_gy: float
    percent: float

    def __str__(self) -> str:
        doses = f"{self.check_gy:.2f} Gy independently, {self.planned_gy:.2f} planned"
        return f"{self.structure.name} {self.name}: {doses}"


def _worst(name: str, limit: float, points: Sequence[Point], errors: Mapping[Point, float | None]) -> Check:
    """The check of points of one kind: what one of them decides against the plan is decided."""
    unit = "% of 100 %"
    checks = [bounded(name, p.percent, limit, unit, str(p), error=errors.get(p)) for p in points]
    worst = max(checks, key=lambda c: (c.fails, c.undecided, abs(c.value or 0.0)))
    beyond = sorted((p for p in points if abs(p.percent) > limit), key=lambda p: -abs(p.percent))
    needs = max(c.needs for c in checks)
    if len(beyond) > 1:
        worst = replace(
            worst, why="; ".join([worst.why, *(str(p) for p in beyond[:4] if str(p) not in worst.why)])
        )
    return replace(worst, needs=needs)


def _point_errors(points: Sequence[Point], case: Case, pair: Compared, smooth: Dose) -> list[float | None]:
    """Standard errors of points, in percent of 100 %: of the mean dose to the voxels with about their dose.

    To first order, noise moves a point of a histogram by its mean over these voxels.
    """
    places = []
    for point in points:
        inside = np.flatnonzero(on_grid(point.structure.mask, case.grid, pair.grid))
        if point.name != "mean" and inside.size > _LEVEL_VOXELS:
            away = np.abs(smooth.gy.ravel()[inside] - point.check_gy)
            many = max(_LEVEL_VOXELS, int(_LEVEL_SHARE * inside.size))
            inside = inside[np.argpartition(away, many - 1)[:many]]
        places.append(inside)
    if not points:
        return []

    def means(gy: NDArray[np.float32]) -> list[float]:
        smoothed = in_tissue(gy, pair, _SMOOTHING_MM).ravel()
        return [float(smoothed[at].mean(dtype=np.float64)) if at.size else 0.0 for at in places]

    errors = pair.group_errors(means)
    if errors is None:
        return [None] * len(points)
    return [100.0 * float(e) / pair.reference_gy for e in errors]


def _points(structure: Structure, both: Sequence[Dvh]) -> Iterator[tuple[str, str, tuple[float, float]]]:
    """Kind, name and both values in Gy of every point of a structure's histograms."""

    def pair(value: str, at: float) -> tuple[float, float]:
        before, after = (
            d.dose_at_percent_gy(at) if value == "%" else d.dose_at_cc_gy(at) if value == "cc" else d.mean_gy
            for d in both
        )
        return before, after

    if structure.role == "target":
        for percent in (95.0, 98.0, 2.0):
            yield "targets", f"D{percent:g}%", pair("%", percent)
        return
    yield "organ means", "mean", pair("mean", 0.0)
    yield "organs", "D2%", pair("%", 2.0)
    yield "organs", "D0.03cc", pair("cc", 0.03)


def regions(pair: Compared, settings: GateSettings) -> list[Check]:
    """The largest difference of the doses averaged over a region of some 4 cm, anywhere in tissue."""
    if not pair.reference_gy > 0:
        return []
    difference = in_tissue(pair.check.gy - pair.planned_gy, pair, _REGION_MM)
    percent = np.where(pair.tissue, 100.0 * difference / pair.reference_gy, 0.0).ravel()
    name, limit, unit = "dose of any region", settings.region_percent, "% of 100 %"
    errors = _region_errors(pair)
    at = int(np.argmax(np.abs(percent)))
    needs = 1.0
    if errors is not None:
        # The region that decides is the one that lies furthest beyond the limit in its own errors.
        sure = np.abs(percent) - SIGMAS * errors
        at = int(np.argmax(sure)) if sure.max() > limit else at
        needs = computing_needed(np.abs(percent) - limit, errors, limit)
    x, y, z = pair.grid.points_mm(np.array([at]))[0]
    value, error = float(percent[at]), None if errors is None else float(errors[at])
    why = (
        f"mean over 4 cm around x, y, z = {x:.0f}, {y:.0f}, {z:.0f} mm, independent engine less plan"
        f"{_plus_minus(error)}"
    )
    return [replace(bounded(name, value, limit, unit, why, error=error), needs=needs)]


def _region_errors(pair: Compared) -> NDArray[np.float64] | None:
    """Standard error of the mean over a region around each voxel, flat, in percent of 100 %.

    On voxels of twice the size: it varies as slowly as the regions are large.
    """
    if pair.check.replicates_gy is None:
        return None
    widths = _REGION_MM / np.array(pair.grid.spacing_mm)[::-1] / 2
    weight = ndimage.gaussian_filter(_halved(pair.tissue.astype(np.float32)), widths, mode="constant")

    def smoothed(gy: NDArray[np.float32]) -> NDArray[np.float32]:
        return ndimage.gaussian_filter(
            _halved(np.where(pair.tissue, gy, np.float32(0))), widths, mode="constant"
        )

    errors = pair.group_errors(smoothed)
    assert errors is not None
    errors = np.divide(errors, weight, out=np.zeros_like(errors), where=weight > 1e-4)
    for axis, n in enumerate(pair.grid.shape):
        errors = np.repeat(errors, 2, axis=axis).take(np.arange(n), axis=axis)
    return np.asarray(100.0 / pair.reference_gy * errors).ravel()


def _halved(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Sums over blocks of two voxels along each axis."""
    even = np.pad(values, [(0, n % 2) for n in values.shape])
    for axis in range(3):
        even = np.add.reduceat(even, np.arange(0, even.shape[axis], 2), axis=axis)
    return even


def voxels(case: Case, pair: Compared, settings: GateSettings) -> list[Check]:
    """How far any voxel of tissue in the planned dose lies beyond all that is near it in the independent one.

    A voxel, a line or a slice that is damaged in the file moves neither a mean nor a share of voxels. The
    search over some 5 mm leaves room for steep gradients; noise makes the check blinder, not stricter.
    """
    if not pair.reference_gy > 0:
        return []
    grid, near = pair.dose.grid, [2 * int(np.ceil(_NEAR_MM / s - 1e-6)) + 1 for s in pair.grid.spacing_mm]
    highest = ndimage.maximum_filter(pair.check.gy, size=near[::-1], mode="nearest")
    lowest = ndimage.minimum_filter(pair.check.gy, size=near[::-1], mode="nearest")
    tissue = tissue_of(on_grid(case.body.mask, case.grid, grid), case, grid)
    above, below = (pair.dose.gy - resample(d, pair.grid, grid) for d in (highest, lowest))
    beyond = np.where(tissue, np.maximum(above, 0) + np.minimum(below, 0), 0.0) * (100.0 / pair.reference_gy)
    at = int(np.argmax(np.abs(beyond)))
    x, y, z = grid.points_mm(np.array([at]))[0]
    value, limit = float(beyond.ravel()[at]), settings.voxel_percent
    many = int(np.count_nonzero(np.abs(beyond) > limit))
    sigma = pair.check.std_gy
    error = (
        None
        if sigma is None
        else 100.0 * float(sigma.ravel()[_nearest(pair.grid, x, y, z)]) / pair.reference_gy
    )
    why = (
        f"planned dose beyond all of the independent one within {_NEAR_MM:g} mm, at x, y, z = {x:.0f}, "
        f"{y:.0f}, {z:.0f} mm; {many} voxels are further out than the limit"
    )
    return [bounded("dose of any voxel", value, limit, "% of 100 %", why, error=error)]


def _nearest(grid: Grid, x_mm: float, y_mm: float, z_mm: float) -> int:
    """The flat index of the voxel of a grid that lies nearest to a point."""
    at = np.rint(grid.index(np.array([[x_mm, y_mm, z_mm]]))[0]).astype(int)
    inside = np.clip(at, 0, np.array(grid.shape) - 1)
    return int(np.ravel_multi_index(tuple(inside), grid.shape))


def in_tissue(gy: NDArray, pair: Compared, sigma_mm: float) -> NDArray[np.float32]:
    """A mean of tissue alone, weighted by a Gaussian, everywhere; 0 far from tissue."""
    widths = sigma_mm / np.array(pair.grid.spacing_mm)[::-1]
    weight = ndimage.gaussian_filter(pair.tissue.astype(np.float32), widths, mode="constant")
    total = ndimage.gaussian_filter(
        np.where(pair.tissue, gy, 0.0).astype(np.float32), widths, mode="constant"
    )
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 1e-4)
