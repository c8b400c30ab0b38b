"""What two engines say of a plan together, and whether the independent dose is certain enough for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.evaluate.gamma import GammaResult
from vmat_diffusion.evaluate.goals import GoalResult, GoalSheet, evaluate
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan
from vmat_diffusion.qa.agreement import Compared, denoised, gammas, required_goals, uncertainty_percent
from vmat_diffusion.qa.collimation import COLLIMATOR, LEAVES, collimation_changes
from vmat_diffusion.qa.dose_points import dose_points, regions, scale_factor, target_means, voxels
from vmat_diffusion.qa.limits import GateSettings
from vmat_diffusion.qa.motion import Motion, fitted_motion
from vmat_diffusion.qa.verdict import SIGMAS, Check, bounded

NOISE = "statistical uncertainty"


@dataclass(frozen=True, eq=False)
class EngineChecks:
    """The checks of a planned dose against an independent one.

    `noise` is the check of the independent dose's own uncertainty, None for one without sigmas. `near`: the
    engines disagree no more than a new optimisation can correct. `gamma` and `results` (goals on the
    independent dose) where computed.
    """

    noise: Check | None
    engines: tuple[Check, ...]
    near: bool
    gamma: GammaResult | None
    results: tuple[GoalResult, ...]

    @property
    def checks(self) -> tuple[Check, ...]:
        """All checks, the noise first."""
        return (*([self.noise] if self.noise else []), *self.engines)

    @property
    def needs(self) -> float:
        """How many times the computing so far it takes to decide the plan; 1 where one check stops it."""
        quiet = self.noise is None or self.noise.passed
        if quiet and any(c.fails for c in self.engines):
            return 1.0
        return max((c.needs for c in self.checks), default=1.0)


@dataclass(eq=False)
class Decision:
    """Compares a planned dose with independent ones, each more certain than the one before.

    `needs` is what an engine asks that computes the independent dose (`dose.engines.Enough`). What was found
    of the last dose is kept for the verdict on it, and what does not depend on it for all.
    """

    case: Case
    sheet: GoalSheet | None
    plan: Plan
    machine: Machine
    dose: Dose
    settings: GateSettings
    _last: tuple[Dose, EngineChecks] | None = None
    _changes: dict[str, dict[str, NDArray[np.float32]]] = field(default_factory=dict)

    def needs(self, check: Dose) -> float:
        """How many times the computing so far it takes to decide all checks; 1 where it is enough."""
        return self.checks(check, Compared.of(self.case, self.dose, check), ready=True).needs

    def checks(self, check: Dose, pair: Compared, *, ready: bool) -> EngineChecks:
        """All checks against an independent dose.

        `ready`: nothing else has failed, so that the costliest one, that of the collimation, is worth its
        time where the others pass.
        """
        if self._last is None or self._last[0] is not check:
            self._last = check, self._compare(pair, ready=ready)
        return self._last[1]

    def _compare(self, pair: Compared, *, ready: bool) -> EngineChecks:
        settings = self.settings
        main, found = gammas(pair, settings)
        near = found[0].value is not None and found[0].value >= settings.correctable_gamma_percent
        found += target_means(self.case, self.sheet, pair, settings)
        found += dose_points(self.case, pair, settings)
        found += regions(pair, settings)
        found += voxels(self.case, pair, settings)
        found += _motion(self.plan, pair, settings)
        results: tuple[GoalResult, ...] = ()
        if self.sheet is not None:
            results = evaluate(self.sheet, self.case, denoised(self.dose, pair.check))
            found.append(required_goals(self.sheet, self.case, pair, results))
        noise = _noise(pair, settings)
        if noise is not None and noise.undecided:
            found = [c.left_open("the independent dose is too noisy") if c.fails else c for c in found]
        found += scale_factor(pair, settings)
        if ready and all(c.passed for c in found) and (noise is None or noise.passed):
            found += _collimation(self._change, self.machine, self.plan, pair, settings)
        return EngineChecks(noise, tuple(found), near, main, results)

    def _change(self, grid: Grid) -> dict[str, NDArray[np.float32]]:
        """What errors of the collimation would change, computed once for a grid."""
        key = str(grid)
        if key not in self._changes:
            self._changes[key] = collimation_changes(self.plan, self.case, self.machine, grid)
        return self._changes[key]


def _noise(pair: Compared, settings: GateSettings) -> Check | None:
    """Whether the independent dose is known well enough to judge; undecided where it is not."""
    sigma = uncertainty_percent(pair.check, pair.dose, pair.tissue)
    if sigma is None:
        return None
    limit = settings.uncertainty_percent
    why = "mean sigma of the independent dose in tissue where the plan has more than half of its maximum"
    passed = sigma <= limit
    # A tenth more, as sigma is itself an estimate.
    needs = 1.0 if passed else 1.1 * (sigma / limit) ** 2
    return Check(NOISE, passed, sigma, limit, "%", why, undecided=not passed, needs=needs)


def _motion(plan: Plan, pair: Compared, settings: GateSettings) -> list[Check]:
    """How far the planned dose must be moved and turned to lie on the independent one."""
    motion = _fitted(plan, pair) if pair.reference_gy > 0 else None
    if motion is None:
        return []
    shift, turn = (", ".join(f"{v:+.2f}" for v in values) for values in (motion.shift_mm, motion.turn_deg))
    return [
        bounded(
            "shift between the doses",
            motion.length_mm,
            settings.shift_mm,
            "mm",
            f"{shift} mm along x, y, z from the planned dose to the independent one",
            error=motion.length_error_mm,
        ),
        bounded(
            "turn between the doses",
            motion.angle_deg,
            settings.turn_deg,
            "deg",
            f"{turn} deg about x, y, z through the isocentre, from the planned dose to the independent one",
            error=motion.angle_error_deg,
        ),
    ]


def _fitted(plan: Plan, pair: Compared, **options: Any) -> Motion | None:
    """The motion of the planned dose that explains the independent one best; `options` of `fitted_motion`."""
    return fitted_motion(
        pair.grid,
        pair.planned_gy,
        pair.check.gy,
        pair.tissue,
        plan.isocenter_mm,
        reference_gy=pair.reference_gy,
        replicates_gy=pair.check.replicates_gy,
        **options,
    )


def _collimation(
    changes: Callable[[Grid], dict[str, NDArray[np.float32]]],
    machine: Machine,
    plan: Plan,
    pair: Compared,
    settings: GateSettings,
) -> list[Check]:
    """Whether an error of collimator or jaws explains what is left between the doses; the costliest check.

    An error that the dose does not show passes: one whose two standard errors by the residuals of the fit are
    above the limit. What the noise of the independent dose hides is undecided.
    """
    if machine.beam is None or np.allclose(pair.planned_gy, pair.check.gy, atol=1e-3 * pair.reference_gy):
        return []
    motion = _fitted(plan, pair, least_percent=20.0, changes=changes(pair.grid))
    out = []
    for name, (value, sigma, residual) in (motion.changes if motion else {}).items():
        limit = {COLLIMATOR: settings.turn_deg, LEAVES: settings.leaf_mm}.get(name, settings.jaw_mm)
        unit = "deg" if name == COLLIMATOR else "mm"
        why = f"{value:+.2f} +- {sigma:.2f} {unit}, as the independent dose differs from the planned one"
        shown = SIGMAS * residual <= limit
        if shown or abs(value) - SIGMAS * residual > limit:
            out.append(bounded(f"{name} by the doses", value, limit, unit, why, error=sigma))
        else:
            out.append(Check(f"{name} by the doses", True, abs(value), limit, unit, why, error=sigma))
    return out
