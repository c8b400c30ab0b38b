"""`judge`: every check of a plan, its dose and the independent dose, as one verdict. See `docs/gate.md`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.evaluate.dvh import outside_percent
from vmat_diffusion.evaluate.goals import GoalResult, GoalSheet, evaluate
from vmat_diffusion.geometry import signed_deg
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan, violations
from vmat_diffusion.qa.agreement import (
    Compared,
    denoised,
    gammas,
    highest_dose,
    required_goals,
    uncertainty_percent,
)
from vmat_diffusion.qa.collimation import COLLIMATOR, LEAVES, collimation_changes
from vmat_diffusion.qa.ct_numbers import ct_numbers, ignored_overrides
from vmat_diffusion.qa.delivery import delivery_checks
from vmat_diffusion.qa.dose_points import (
    dose_points,
    prescribed_doses,
    regions,
    scale_factor,
    target_means,
    voxels,
)
from vmat_diffusion.qa.field_of_view import beams_beyond_ct, supports_in_beam
from vmat_diffusion.qa.files import PlanFiles, dose_remarks, plan_remarks, round_trip, same_patient
from vmat_diffusion.qa.limits import GateSettings
from vmat_diffusion.qa.motion import Motion, fitted_motion
from vmat_diffusion.qa.outline import body_outline, contours_left_out, outline_place
from vmat_diffusion.qa.verdict import LOOSER_LIMITS, Check, Verdict, fingerprint, warning

_DOSE_GRID = "dose grid"
_ROUNDING_MM = 1e-3  # spacings are read from decimal strings and differences of them


def judge(
    case: Case,
    sheet: GoalSheet | None,
    plan: Plan,
    machine: Machine,
    dose: Dose,
    *,
    check: Dose | None,
    settings: GateSettings | None = None,
    files: PlanFiles | None = None,
    earlier_checks: Sequence[Check] = (),
) -> Verdict:
    """Check a plan with the dose `dose` against `check`, the independent dose of the same plan.

    Where `check` is None, what needs it is undecided. `sheet` must be fitted to the case; with None no
    goals are checked. `files` are read again and must hold `plan` and `dose`. `earlier_checks` join the
    verdict: those of what led to the plan. Never raises for a fault of what it judges.
    """
    settings = settings or GateSettings()
    checks = [*earlier_checks, _deliverable(plan, machine), *_coverage(case, dose, settings)]
    checks.append(_dose_grid(dose, check, settings))
    if looser := settings.looser():
        why = "the gate's limits are looser than the shipped ones: " + ", ".join(looser)
        checks.insert(0, warning(LOOSER_LIMITS, [why], ""))
    checks += _said_of_files(case, sheet, plan, machine, dose)
    checks += _said_of_case(case, settings)
    if files is not None:
        checks.append(round_trip(files, case, plan, machine, dose))
    if check is None:
        none = Check("independent dose", False, None, None, "", "no independent dose was computed", True)
        return Verdict((*checks, none), fingerprint=fingerprint(plan, case))
    pair = Compared.of(case, dose, check)
    checks.append(highest_dose(pair, settings))
    others_passed = all(c.passed for c in checks)
    main, engines = gammas(pair, settings)
    near = engines[0].value is not None and engines[0].value >= settings.correctable_gamma_percent
    engines += target_means(case, sheet, pair, settings)
    engines += dose_points(case, pair, settings)
    engines += regions(pair, settings)
    engines += voxels(case, pair, settings)
    engines += _motion(plan, pair, settings)
    results: tuple[GoalResult, ...] = ()
    if sheet is not None:
        results = evaluate(sheet, case, denoised(dose, check))
        engines.append(required_goals(results))
    if (noise := _noise(pair, settings)) is not None:
        checks.append(noise)
        if noise.undecided and near:
            engines = [c.left_open("the independent dose is too noisy") if c.fails else c for c in engines]
    engines += scale_factor(pair, settings)
    # What a coarse grid leaves open is worth the cost all the same.
    if all(c.passed or c.name == _DOSE_GRID for c in (*checks, *engines)):
        engines += _collimation(case, plan, machine, pair, settings)
    verdict = Verdict((*checks, *engines), main, results, fingerprint=fingerprint(plan, case))
    sure = others_passed and near and not verdict.undecided
    return replace(verdict, correctable=sure and not verdict.passed)


def _said_of_files(
    case: Case, sheet: GoalSheet | None, plan: Plan, machine: Machine, dose: Dose
) -> list[Check]:
    """Whether the files belong together, and what a person must know of them."""
    out: list[Check] = []
    if (origin := same_patient(case, plan, dose, sheet.prescription if sheet else None)) is not None:
        out.append(origin)
    if said := plan_remarks(plan, machine):
        out.append(warning("plan file", said, ""))
    if said := dose_remarks(dose):
        out.append(warning("dose file", said, ""))
    if (prescribed := prescribed_doses(case, plan, dose)) is not None:
        out.append(prescribed)
    if turned := _turned_couch(plan):
        out.append(warning("couch", turned, ""))
    prescribed_names = list(sheet.prescription.target_gy) if sheet else None
    if beyond := beams_beyond_ct(case, plan, machine, prescribed_names):
        out.append(warning("field of view", beyond, ""))
    if held := supports_in_beam(case, plan, machine):
        out.append(warning("supports", held, ""))
    return out + delivery_checks(case, sheet, plan, machine)


def _said_of_case(case: Case, settings: GateSettings) -> list[Check]:
    """What a person must know of CT and structure set, and whether the body lies on the CT."""
    out: list[Check] = []
    if (numbers := ct_numbers(case)) is not None:
        out.append(numbers)
    if ignored := ignored_overrides(case):
        out.append(warning("density overrides", ignored, ""))
    if (outline := body_outline(case)) is not None:
        out.append(outline)
    out += outline_place(case, settings)
    if lost := contours_left_out(case):
        out.append(warning("contours without an image", lost, ""))
    return out


def _noise(pair: Compared, settings: GateSettings) -> Check | None:
    """Whether the independent dose is known well enough to judge; undecided with what is still needed."""
    sigma = uncertainty_percent(pair.check, pair.dose, pair.tissue)
    if sigma is None:
        return None
    name, limit = "statistical uncertainty", settings.uncertainty_percent
    why = "mean sigma of the independent dose in tissue where the plan has more than half of its maximum"
    if sigma <= limit:
        return Check(name, True, sigma, limit, "%", why)
    took = pair.check.provenance.get("seconds")
    if isinstance(took, int | float) and took > 0:
        # Sigma falls with the square root of the time; a tenth more, as it is itself an estimate.
        whole = 1.1 * took / 60.0 * (sigma / limit) ** 2
        left = whole - took / 60.0
        why += (
            f"; about {left:.1f} more minutes are needed: give the same command again with "
            f"--check-minutes {max(1, round(whole + 0.5))}"
        )
    else:
        why += "; compute the independent dose with a smaller --uncertainty"
    return Check(name, False, sigma, limit, "%", why, undecided=True)


def _motion(plan: Plan, pair: Compared, settings: GateSettings) -> list[Check]:
    """How far the planned dose must be moved and turned to lie on the independent one."""
    motion = _fitted(plan, pair) if pair.reference_gy > 0 else None
    if motion is None:
        return []
    shift, turn = (", ".join(f"{v:+.2f}" for v in values) for values in (motion.shift_mm, motion.turn_deg))
    return [
        Check(
            "shift between the doses",
            motion.length_mm <= settings.shift_mm,
            motion.length_mm,
            settings.shift_mm,
            "mm",
            f"{shift} mm along x, y, z from the planned dose to the independent one",
        ),
        Check(
            "turn between the doses",
            motion.angle_deg <= settings.turn_deg,
            motion.angle_deg,
            settings.turn_deg,
            "deg",
            f"{turn} deg about x, y, z through the isocentre, from the planned dose to the independent one",
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
        **options,
    )


def _collimation(
    case: Case, plan: Plan, machine: Machine, pair: Compared, settings: GateSettings
) -> list[Check]:
    """Whether an error of collimator or jaws explains what is left between the doses; the costliest check.

    An error that the dose does not show, and one within twice its standard error of the limit, passes.
    """
    if machine.beam is None or np.allclose(pair.planned_gy, pair.check.gy, atol=1e-3 * pair.reference_gy):
        return []
    changes = collimation_changes(plan, case, machine, pair.grid)
    motion = _fitted(plan, pair, least_percent=20.0, changes=changes)
    out = []
    for name, (value, sigma) in (motion.changes if motion else {}).items():
        limit = {COLLIMATOR: settings.turn_deg, LEAVES: settings.leaf_mm}.get(name, settings.jaw_mm)
        unit = "deg" if name == COLLIMATOR else "mm"
        why = f"{value:+.2f} +- {sigma:.2f} {unit}, as the independent dose differs from the planned one"
        out.append(
            Check(f"{name} by the doses", abs(value) - 2.0 * sigma <= limit, abs(value), limit, unit, why)
        )
    return out


def _deliverable(plan: Plan, machine: Machine) -> Check:
    faults = violations(plan, machine)
    why = f"{machine.name} can deliver the plan" if not faults else "; ".join(faults[:3])
    if len(faults) > 3:
        why += f"; and {len(faults) - 3} more"
    return Check("deliverable", not faults, float(len(faults)), 0.0, "violations", why)


def _coverage(case: Case, dose: Dose, settings: GateSettings) -> list[Check]:
    """How much of the targets and of the body lies outside the dose grid."""
    worst = max(
        ((float(outside_percent(dose, s, case.grid)), s.name) for s in case.targets if s.mask.any()),
        default=(0.0, "no target"),
    )
    body = float(outside_percent(dose, case.body, case.grid))
    empty = not float(dose.gy.max()) > 0
    return [
        Check(
            "dose grid covers the targets",
            worst[0] <= settings.target_outside_percent and not empty,
            worst[0],
            settings.target_outside_percent,
            "% outside",
            "the dose is zero everywhere"
            if empty
            else f"{worst[1]} has {worst[0]:.2f} % outside the dose grid",
        ),
        Check(
            "dose grid covers the body",
            body <= settings.body_outside_percent,
            body,
            settings.body_outside_percent,
            "% outside",
            f"{body:.2f} % of {case.body.name} lies outside the dose grid",
        ),
    ]


def _dose_grid(dose: Dose, check: Dose | None, settings: GateSettings) -> Check:
    """Whether the coarser of the two dose grids is fine enough for a verdict; undecided where it is not.

    A coarser grid smooths gamma and histograms, so that the same plan may pass on one and fail on another.
    """
    grids = {"planned": dose.grid}
    if check is not None:
        grids["independent"] = check.grid
    spacings = {what: max(grid.spacing_mm) for what, grid in grids.items()}
    value, limit = max(spacings.values()), settings.grid_mm
    fine = value <= limit + _ROUNDING_MM
    why = " and ".join(f"the {what} dose is on voxels of {mm:g} mm" for what, mm in spacings.items())
    if not fine:
        why += (
            f"; the limits of the gate hold up to {limit:g} mm: compute with --grid-mm {limit:g}, and export "
            "the dose of another planning system as finely"
        )
    return Check(_DOSE_GRID, fine, value, limit, "mm", why, undecided=not fine)


def _turned_couch(plan: Plan) -> list[str]:
    """What a person must check of beams with the couch turned: no check here knows of collisions."""
    angles = {arc.couch_deg for arc in plan.arcs if abs(signed_deg(arc.couch_deg)) > 0.05}
    if not angles:
        return []
    listed = ", ".join(f"{angle:g}" for angle in sorted(angles))
    return [f"the couch stands at {listed} deg; look whether gantry and couch or patient can meet"]
