"""How well two engines agree on a plan: gamma, mean doses of targets, goals on the independent dose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.tissue import AIR_BELOW_G_CM3, density_of
from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.dvh import structure_dose_gy
from vmat_diffusion.evaluate.gamma import GammaResult, gamma
from vmat_diffusion.evaluate.goals import GoalResult, GoalSheet
from vmat_diffusion.geometry import Grid, Mask, resample
from vmat_diffusion.qa.limits import GateSettings
from vmat_diffusion.qa.verdict import Check

# The report draws gamma up to here; a search beyond it costs time and changes no pass rate.
_MAP_TOP = 1.5


def uncertainty_percent(check: Dose, dose: Dose, tissue: Mask) -> float | None:
    """Mean sigma of `check` in percent of `dose` where that is above half its maximum; None without sigmas.

    Only voxels of `tissue`, on the grid of `check`, count: Monte Carlo ends when their dose is known, not
    that of air, and the maximum of a noisy dose would lie in a voxel of air.
    """
    planned = np.where(tissue, dose.on(check.grid), np.float32(0))
    if check.std_gy is None or not planned.max() > 0:
        return None
    high = planned > 0.5 * planned.max()
    return 100.0 * float(np.mean(check.std_gy[high] / planned[high], dtype=np.float64))


def denoised(dose: Dose, check: Dose) -> Dose:
    """The independent dose without its noise; a dose without sigma is returned as it is.

    Noise widens a histogram: it lowers D95% and raises maxima. The difference of two engines varies
    slowly where the dose itself does not, so it is smoothed (Gaussian, sigma 3 mm) and added to `dose`.
    """
    if check.std_gy is None:
        return check
    smooth = smooth_difference(dose, check)
    gy = np.maximum(dose.on(check.grid) + smooth.gy, 0.0).astype(np.float32)
    return Dose(check.grid, gy, medium=check.medium, provenance=check.provenance)


def smooth_difference(dose: Dose, check: Dose) -> Dose:
    """`check - dose` on the grid of `check`, smoothed by a Gaussian of 3 mm sigma; may be negative."""
    width = 3.0 / np.array(check.grid.spacing_mm)[::-1]
    difference = check.gy - dose.on(check.grid)
    return Dose(check.grid, ndimage.gaussian_filter(difference, width, mode="nearest").astype(np.float32))


def gammas(
    tissue: Mask, air: float, dose: Dose, check: Dose, settings: GateSettings
) -> tuple[GammaResult | None, list[Check]]:
    """The gamma that is judged and the one that is reported: `dose` against the independent dose in tissue.

    `air` is the percentage of the body that is air.
    """
    main: GammaResult | None = None
    checks: list[Check] = []
    for percent, mm, limit, most in (
        (settings.gamma_dose_percent, settings.gamma_distance_mm, settings.gamma_pass_percent, _MAP_TOP),
        (settings.strict_dose_percent, settings.strict_distance_mm, None, 1.1),
    ):
        name = f"gamma {percent:g} %/{mm:g} mm"
        try:
            result = gamma(
                check,
                dose,
                dose_percent=percent,
                distance_mm=mm,
                local=settings.gamma_local,
                threshold_percent=settings.gamma_threshold_percent,
                max_gamma=most,
                mask=tissue,
                maximum_gy=float(dose.gy.max()),
                sigmas=settings.gamma_sigmas,
            )
        except InputError as error:
            checks.append(Check(name, limit is None, None, limit, "%", str(error)))
            continue
        # A voxel outside the planned dose grid counts as one that fails.
        value = result.pass_percent * result.points / (result.points + result.outside)
        why = (
            f"{result.criteria}, {result.points + result.outside} voxels of tissue; "
            f"{air:.1f} % of the body is air and not counted"
        )
        if limit is None:
            why += "; reported only"
        main = main or result
        checks.append(Check(name, limit is None or value >= limit, value, limit, "%", why))
    return main, checks


def tissue_of(body: Mask, case: Case, grid: Grid) -> Mask:
    """The voxels of the body that are not air; all of it where there is nothing else."""
    dense = body & (density_of(case, grid).g_cm3 >= AIR_BELOW_G_CM3)
    return dense if dense.any() else body


def on_grid(mask: Mask, grid: Grid, other: Grid) -> Mask:
    """A mask on another grid: the voxels whose centres lie inside."""
    return resample(mask.astype(np.float32), grid, other) > 0.5


def target_means(
    case: Case, sheet: GoalSheet | None, dose: Dose, check: Dose, settings: GateSettings
) -> list[Check]:
    """Mean dose of each prescribed target (of all targets without a sheet) by both engines."""
    wanted: Sequence[str] = list(sheet.prescription.target_gy) if sheet else [t.name for t in case.targets]
    out = []
    for name in wanted:
        structure = case.structures.get(name)
        if structure is None or not structure.mask.any():
            continue
        planned, checked = (
            float(structure_dose_gy(d, structure, case.grid).mean(dtype=np.float64)) for d in (dose, check)
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


def required_goals(results: Sequence[GoalResult]) -> Check:
    """Goals of priority 1 on the independent dose; the acceptable variation counts as met."""
    required = [r for r in results if r.goal.priority == 1 and r.value is not None]
    missed = [r for r in required if r.status == "fail"]
    why = f"all {len(required)} required goals are met on the independent dose"
    if missed:
        why = "missed on the independent dose: " + "; ".join(
            f"{r.goal} ({r.value:.2f} {r.goal.unit})" for r in missed
        )
    return Check("required goals", not missed, float(len(missed)), 0.0, "missed", why)
