"""Doses of targets, organs and regions by both engines: points of histograms that gamma does not see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vmat_diffusion.case import Case, Dose, Structure
from vmat_diffusion.evaluate.dvh import Dvh, structure_dose_gy, structure_dvh
from vmat_diffusion.evaluate.goals import GoalSheet
from vmat_diffusion.geometry import resample
from vmat_diffusion.plan import Plan
from vmat_diffusion.qa.agreement import Compared, on_grid, tissue_of
from vmat_diffusion.qa.limits import GateSettings
from vmat_diffusion.qa.verdict import Check, warning

# Noise lowers D98% and raises D2%: both doses are smoothed alike before their histograms are compared.
_SMOOTHING_MM = 3.0
# Mean doses over a region of about 60 cc, in which the noise of single voxels averages out.
_REGION_MM = 12.0
_LEAST_CC = 0.03
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
        limit = settings.target_mean_percent
        percent = 100.0 * (checked / planned - 1.0) if planned > 0 else None
        out.append(
            Check(
                f"mean dose of {name}",
                percent is not None and abs(percent) <= limit,
                percent,
                limit,
                "%",
                f"{checked:.2f} Gy by the independent engine, {planned:.2f} Gy planned",
            )
        )
    return out


def scale_factor(pair: Compared, settings: GateSettings) -> list[Check]:
    """The factor that carries the planned dose onto the independent one where it is high: wrong MU.

    Least squares over the tissue where the plan is above half of the reference dose. So many voxels leave a
    standard error of some 0.1 %, so that the factor is decided where single voxels are too noisy to judge.
    What lies within three standard errors of the limit passes.
    """
    high = pair.tissue & (pair.planned_gy > 0.5 * pair.reference_gy)
    if not pair.reference_gy > 0 or not high.any():
        return []
    planned, check = (d[high].astype(np.float64) for d in (pair.planned_gy, pair.check.gy))
    total = float(planned @ planned)
    percent = 100.0 * (float(planned @ check) / total - 1.0)
    error = 0.0
    if pair.check.std_gy is not None:
        error = 100.0 * float(np.linalg.norm(planned * pair.check.std_gy[high])) / total
    limit = settings.factor_percent
    why = (
        f"{percent:+.2f} +- {error:.2f} % from the planned dose to the independent one over {planned.size} "
        "voxels of tissue where the plan is above half of its maximum: the MU or the output differ by this"
    )
    passed = abs(percent) - 3.0 * error <= limit
    return [Check("factor between the doses", passed, percent, limit, "%", why)]


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
    found: dict[str, list[tuple[float, str]]] = {"targets": [], "organs": [], "organ means": []}
    for structure in case.structures.values():
        if structure.role == "other" or structure.voxels * case.grid.voxel_cc < _LEAST_CC:
            continue
        both = [structure_dvh(d, structure, case.grid) for d in (planned, check)]
        for kind, point, (before, after) in _points(structure, both):
            percent = 100.0 * (after - before) / pair.reference_gy
            found[kind].append(
                (
                    percent,
                    f"{structure.name} {point}: {after:.2f} Gy independently, {before:.2f} planned",
                )
            )
    limits = {
        "targets": ("D95%, D98%, D2% of targets", settings.target_dvh_percent),
        "organs": ("D2%, D0.03cc of organs", settings.organ_dvh_percent),
        "organ means": ("mean doses of organs", settings.organ_mean_percent),
    }
    out = []
    for kind, (name, limit) in limits.items():
        if found[kind]:
            percent, why = max(found[kind], key=lambda row: abs(row[0]))
            beyond = sorted((r for r in found[kind] if abs(r[0]) > limit), key=lambda r: -abs(r[0]))
            why = "; ".join(text for _, text in beyond[:4]) or why
            out.append(Check(name, not beyond, percent, limit, "% of 100 %", why))
    return out


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
    percent = np.where(pair.tissue, 100.0 * difference / pair.reference_gy, 0.0)
    at = int(np.argmax(np.abs(percent)))
    x, y, z = pair.grid.points_mm(np.array([at]))[0]
    value, limit = float(percent.ravel()[at]), settings.region_percent
    why = f"mean over 4 cm around x, y, z = {x:.0f}, {y:.0f}, {z:.0f} mm, independent engine less plan"
    return [Check("dose of any region", abs(value) <= limit, value, limit, "% of 100 %", why)]


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
    why = (
        f"planned dose beyond all of the independent one within {_NEAR_MM:g} mm, at x, y, z = {x:.0f}, "
        f"{y:.0f}, {z:.0f} mm; {many} voxels are further out than the limit"
    )
    return [Check("dose of any voxel", abs(value) <= limit, value, limit, "% of 100 %", why)]


def in_tissue(gy: NDArray, pair: Compared, sigma_mm: float) -> NDArray[np.float32]:
    """A mean of tissue alone, weighted by a Gaussian, everywhere; 0 far from tissue."""
    widths = sigma_mm / np.array(pair.grid.spacing_mm)[::-1]
    weight = ndimage.gaussian_filter(pair.tissue.astype(np.float32), widths, mode="constant")
    total = ndimage.gaussian_filter(
        np.where(pair.tissue, gy, 0.0).astype(np.float32), widths, mode="constant"
    )
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 1e-4)
