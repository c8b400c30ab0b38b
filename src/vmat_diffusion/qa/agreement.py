"""How well two engines agree on a plan: gamma in tissue, the highest dose, noise, goals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.tissue import AIR_BELOW_G_CM3, density_of
from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.dvh import Dvh
from vmat_diffusion.evaluate.gamma import GammaResult, gamma
from vmat_diffusion.evaluate.goals import (
    GoalResult,
    GoalSheet,
    GroupResult,
    evaluate,
    group_results,
    missed_of,
)
from vmat_diffusion.geometry import Grid, Mask, resample
from vmat_diffusion.qa.limits import GateSettings
from vmat_diffusion.qa.verdict import SIGMAS, Check, bounded, computing_needed

# The report draws gamma up to here; a search beyond it costs time and changes no pass rate.
_MAP_TOP = 1.5
_REFERENCE_CC = 0.03
# Parts of which one at a time is left out of a dose.
_JACKKNIFE = 8
# Errors of gamma and of goals cost a computation for each part: only where the limit is so near, in percent
# (points of a pass rate, percent of a goal's limit). Those of usable doses are 0.1 to 0.5.
_NEAR_PERCENT = 3.0
# Of the room of a goal, for its errors: with a twentieth of it they are 0.1 % of the limit, 0.05 Gy of 50.
_SAME_GOAL = 0.02


@dataclass(frozen=True, eq=False)
class Compared:
    """Both doses on the grid of the independent one, where they are compared.

    `planned_gy` and `check_gy` are `[z, y, x]` on `check.grid`, `tissue` the voxels of the body that are not
    air, `air_percent` the share of the body that is. `reference_gy` is what counts as 100 %: the dose to the
    hottest 0.03 cc of tissue by the engine that has less, a lone voxel left out; 0 where a dose is empty.
    """

    dose: Dose
    check: Dose
    planned_gy: NDArray[np.float32]
    tissue: Mask
    air_percent: float
    reference_gy: float

    @classmethod
    def of(cls, case: Case, dose: Dose, check: Dose) -> Compared:
        """The two doses of a case, ready to be compared."""
        body = on_grid(case.body.mask, case.grid, check.grid)
        tissue = tissue_of(body, case, check.grid)
        planned = np.maximum(dose.on(check.grid), np.float32(0))
        air = 100.0 * (1.0 - tissue.sum() / max(int(body.sum()), 1))
        reference = min(_near_maximum_gy(gy, tissue, check.grid) for gy in (planned, check.gy))
        return cls(dose, check, planned, tissue, float(air), reference)

    @property
    def grid(self) -> Grid:
        """The grid of the independent dose."""
        return self.check.grid

    def group_errors(self, of_each: Callable[[NDArray[np.float32]], ArrayLike]) -> NDArray[np.float64] | None:
        """Standard errors of what `of_each` makes of a dose, where that is linear in the dose.

        From the spread over the independent doses that make up the check's: it holds whatever noise has in
        common between voxels. None where the check has no such doses.
        """
        groups = self.check.replicates_gy
        if groups is None:
            return None
        found = np.array([of_each(gy) for gy in groups], np.float64)
        return np.asarray(found.std(axis=0, ddof=1) / np.sqrt(len(found)))

    def jackknife_errors(self, of_dose: Callable[[Dose], ArrayLike]) -> NDArray[np.float64] | None:
        """Standard errors of whatever `of_dose` makes of the check's dose: it is left an eighth at a time.

        Miller, Biometrika 61:1 (1974). None where the check has no independent parts.
        """
        groups = self.check.replicates_gy
        if groups is None:
            return None
        part = len(groups) // _JACKKNIFE
        rest = [
            np.delete(np.arange(len(groups)), np.s_[k * part : (k + 1) * part]) for k in range(_JACKKNIFE)
        ]
        sigma = self.check.std_gy
        more = np.float32(np.sqrt(len(groups) / (len(groups) - part)))
        found = np.array(
            [
                of_dose(
                    replace(
                        self.check,
                        gy=groups[kept].mean(axis=0),
                        std_gy=None if sigma is None else sigma * more,
                        replicates_gy=None,
                    )
                )
                for kept in rest
            ],
            np.float64,
        )
        return np.asarray(found.std(axis=0) * np.sqrt(_JACKKNIFE - 1))


def _near_maximum_gy(gy: NDArray, tissue: Mask, grid: Grid) -> float:
    """D0.03cc of tissue; the median with its neighbours stands for each voxel, so that none rules alone."""
    if not tissue.any():
        return 0.0
    calm = ndimage.median_filter(gy, size=3, mode="nearest")
    return Dvh.of(calm[tissue], grid.voxel_cc).dose_at_cc_gy(_REFERENCE_CC)


def uncertainty_percent(check: Dose, dose: Dose, tissue: Mask) -> float | None:
    """Mean sigma of `check` in percent of `dose` where that is above half its maximum; None without sigmas.

    Only voxels of `tissue`, on the grid of `check`, count: Monte Carlo ends when their dose is known, not
    that of air, and the maximum of a noisy dose would lie in a voxel of air. The maximum is that of
    `Compared`, which a lone voxel does not set.
    """
    planned = np.where(tissue, dose.on(check.grid), np.float32(0))
    if check.std_gy is None or not planned.max() > 0:
        return None
    high = planned > 0.5 * _near_maximum_gy(planned, tissue, check.grid)
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


def highest_dose(pair: Compared, settings: GateSettings) -> Check:
    """The highest planned dose anywhere in its file against the reference dose in tissue."""
    top, limit = float(pair.dose.gy.max()), settings.peak_percent
    name, what = "highest planned dose", "the hottest 0.03 cc of tissue"
    if not pair.reference_gy > 0:
        return Check(name, False, None, limit, "% above", f"{what} gets no dose by one of the engines")
    value = 100.0 * (top / pair.reference_gy - 1.0)
    why = f"{top:.2f} Gy in the file, {pair.reference_gy:.2f} Gy to {what}, lone voxels left out"
    return Check(name, value <= limit, value, limit, "% above", why)


def gammas(pair: Compared, settings: GateSettings) -> tuple[GammaResult | None, list[Check]]:
    """Gamma of the planned dose in tissue by the usual criteria, and by the strict ones with a warning."""
    main, share, why = _gamma(
        pair, settings, settings.gamma_dose_percent, settings.gamma_distance_mm, _MAP_TOP
    )
    limit = settings.gamma_pass_percent
    name = f"gamma {settings.gamma_dose_percent:g} %/{settings.gamma_distance_mm:g} mm"
    how = settings.gamma_dose_percent, settings.gamma_distance_mm
    error = _gamma_error(pair, settings, how, share, limit)
    checks = [bounded(name, share, limit, "%", why, error=error, least=True)]
    how = settings.strict_dose_percent, settings.strict_distance_mm
    _, share, why = _gamma(pair, settings, *how, 1.1)
    limit, tolerance = settings.strict_action_percent, settings.strict_tolerance_percent
    name = f"gamma {settings.strict_dose_percent:g} %/{settings.strict_distance_mm:g} mm"
    between = share is not None and limit <= share < tolerance
    if between:
        why = f"{share:.2f} % lies below the tolerance limit of {tolerance:g} %: look where; {why}"
    error = _gamma_error(pair, settings, how, share, limit)
    strict = bounded(name, share, limit, "%", why, error=error, least=True)
    checks.append(replace(strict, cautions=between))
    # Too few voxels for a share of them decide nothing, whatever the share is.
    points = int(np.count_nonzero(_compared(pair, settings)))
    if 0 < points < settings.gamma_voxels:
        too_few = f"only {points} voxels, at least {settings.gamma_voxels} are needed; use a finer --grid-mm"
        checks = [check.left_open(too_few) if check.passed else check for check in checks]
    return main, checks


def _gamma_error(
    pair: Compared, settings: GateSettings, criteria: tuple[float, float], share: float | None, limit: float
) -> float | None:
    """Standard error of a share of voxels near its limit; None elsewhere."""
    if share is None or abs(share - limit) > _NEAR_PERCENT:
        return None

    def of(check: Dose) -> float:
        found = _gamma(replace(pair, check=check), settings, *criteria, 1.1)[1]
        return np.nan if found is None else found

    errors = pair.jackknife_errors(of)
    return None if errors is None else float(errors)


def _compared(pair: Compared, settings: GateSettings) -> Mask:
    """Tissue where either dose reaches the threshold."""
    least = settings.gamma_threshold_percent / 100.0 * pair.reference_gy
    return pair.tissue & (np.maximum(pair.planned_gy, pair.check.gy) >= least)


def _gamma(
    pair: Compared, settings: GateSettings, percent: float, mm: float, most: float
) -> tuple[GammaResult | None, float | None, str]:
    """Gamma, the share of the compared voxels that pass, and a sentence.

    A voxel without a planned dose near it has failed, and so has one near a planned dose that is too high
    to be one: between it and its neighbours lies every dose that a search may look for.
    """
    if not pair.reference_gy > 0:
        return None, None, "one of the doses is zero in tissue"
    compared = _compared(pair, settings)
    try:
        result = gamma(
            pair.check,
            pair.dose,
            dose_percent=percent,
            distance_mm=mm,
            local=settings.gamma_local,
            threshold_percent=0.0,
            max_gamma=most,
            mask=compared,
            maximum_gy=pair.reference_gy,
            sigmas=settings.gamma_sigmas,
        )
    except InputError as error:
        return None, None, str(error)
    gammas_found = np.where(compared & _near_a_peak(pair, settings, mm * most), np.float32(most), result.map)
    passing, points = np.count_nonzero(gammas_found[compared] <= 1.0), np.count_nonzero(compared)
    known = gammas_found[np.isfinite(gammas_found)]
    result = replace(
        result,
        map=gammas_found,
        points=int(known.size),
        outside=int(points - known.size),
        pass_percent=100.0 * float(passing) / known.size,
        mean=float(known.mean(dtype=np.float64)),
        threshold_percent=settings.gamma_threshold_percent,
    )
    why = (
        f"{result.criteria} of either dose, {points} voxels of tissue, 100 % = {pair.reference_gy:.2f} Gy; "
        f"{pair.air_percent:.1f} % of the body is air and not counted"
    )
    return result, 100.0 * float(passing) / points, why


def _near_a_peak(pair: Compared, settings: GateSettings, reach_mm: float) -> Mask:
    """The voxels that a search would reach from a planned dose above the highest that is plausible."""
    peak = pair.dose.gy > (1.0 + settings.peak_percent / 100.0) * pair.reference_gy
    if not peak.any():
        return np.zeros(pair.grid.shape, bool)
    z, y, x = (2 * int(np.ceil(reach_mm / s + 1.0)) + 1 for s in pair.dose.grid.spacing_mm[::-1])
    wide = ndimage.maximum_filter(peak, size=(z, y, x), mode="constant")
    return np.asarray(resample(wide.astype(np.float32), pair.dose.grid, pair.grid) > 0)


def tissue_of(body: Mask, case: Case, grid: Grid) -> Mask:
    """The voxels of the body that are not air; all of it where there is nothing else."""
    dense = body & (density_of(case, grid).g_cm3 >= AIR_BELOW_G_CM3)
    return dense if dense.any() else body


def on_grid(mask: Mask, grid: Grid, other: Grid) -> Mask:
    """A mask on another grid: the voxels whose centres lie inside."""
    return resample(mask.astype(np.float32), grid, other) > 0.5


def required_goals(sheet: GoalSheet, case: Case, pair: Compared, results: Sequence[GoalResult]) -> Check:
    """Goals of priority 1 on the independent dose; the acceptable variation counts as met.

    A must that could not be evaluated counts as missed, unless the sheet calls it optional. A group counts
    once, and is met where so many of its goals are as it asks for. Undecided where each goal that is missed
    is missed by less than two standard errors.
    """
    alone = [r for r in results if r.goal.priority == 1 and r.group is None]
    required = [r for r in alone if r.value is not None or r.missed]
    groups = [g for g in group_results(results) if g.priority == 1 and (g.evaluated or g.missed)]
    missed = missed_of(results, 1)
    why = f"all {len(required) + len(groups)} required goals are met on the independent dose"
    if missed:
        why = "missed on the independent dose: " + "; ".join(map(_missed_text, missed))
    errors = _goal_errors(sheet, case, pair, [r for r in alone if _is_near(r)])
    needs = [computing_needed(_from_limit(r), e, _SAME_GOAL * abs(_limit(r))) for r, e in errors]
    check = Check(
        "required goals", not missed, float(len(missed)), 0.0, "missed", why, needs=max(needs, default=1.0)
    )
    unsure = [r for r, e in errors if r.missed and _from_limit(r) <= SIGMAS * e]
    if missed and len(unsure) == len(missed):
        return check.left_open(f"by less than {SIGMAS:g} standard errors")
    return check


def _limit(result: GoalResult) -> float:
    """The value at which a goal is missed."""
    goal = result.goal
    return goal.limit if goal.variation is None else goal.variation


def _from_limit(result: GoalResult) -> float:
    return abs((result.value or 0.0) - _limit(result))


def _is_near(result: GoalResult) -> bool:
    """Whether noise may decide a goal."""
    return result.value is not None and _from_limit(result) <= _NEAR_PERCENT / 100.0 * abs(_limit(result))


def _goal_errors(
    sheet: GoalSheet, case: Case, pair: Compared, near: Sequence[GoalResult]
) -> list[tuple[GoalResult, float]]:
    """Goals and the standard errors of their values; empty where the independent dose has none."""
    if not near:
        return []
    alone = replace(sheet, goals=tuple(r.goal for r in near))

    def of(check: Dose) -> list[float]:
        found = evaluate(alone, case, denoised(pair.dose, check))
        return [np.nan if r.value is None else r.value for r in found]

    errors = pair.jackknife_errors(of)
    return [] if errors is None else list(zip(near, map(float, errors), strict=True))


def _missed_text(missed: GoalResult | GroupResult) -> str:
    if isinstance(missed, GroupResult):
        inner = ", ".join(_missed_text(r) for r in missed.results)
        return f"{missed.group}: {inner}"
    if missed.value is None:
        return f"{missed.goal} ({missed.note or 'not evaluated'})"
    return f"{missed.goal} ({missed.value:.2f} {missed.goal.unit})".replace(" )", ")")
