"""`judge`: every check of a plan, its dose and the independent dose, as one verdict. See `docs/gate.md`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.evaluate.dvh import outside_percent
from vmat_diffusion.evaluate.goals import GoalResult, GoalSheet, evaluate
from vmat_diffusion.geometry import signed_deg
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan, violations
from vmat_diffusion.qa.agreement import (
    denoised,
    gammas,
    on_grid,
    required_goals,
    target_means,
    tissue_of,
    uncertainty_percent,
)
from vmat_diffusion.qa.files import PlanFiles, plan_remarks, round_trip, same_patient
from vmat_diffusion.qa.limits import GateSettings
from vmat_diffusion.qa.verdict import Check, Verdict, fingerprint, warning


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

    Where `check` is None, the checks that need it fail. `sheet` must be fitted to the case; with None no
    goals are checked. `files` are read again and must hold `plan` and `dose`. `earlier_checks` join the
    verdict: those of what led to the plan. Never raises for a fault of what it judges.
    """
    settings = settings or GateSettings()
    checks = [*earlier_checks, _deliverable(plan, machine), *_coverage(case, dose, settings)]
    if (origin := same_patient(case, plan, dose, sheet.prescription if sheet else None)) is not None:
        checks.append(origin)
    if said := plan_remarks(plan, machine):
        checks.append(warning("plan file", said, ""))
    if turned := _turned_couch(plan):
        checks.append(warning("couch", turned, ""))
    if files is not None:
        checks.append(round_trip(files, case, plan, machine, dose))
    if check is None:
        checks.append(Check("independent dose", False, None, None, "", "no independent dose was computed"))
        return Verdict(tuple(checks), fingerprint=fingerprint(plan, case))
    body = on_grid(case.body.mask, case.grid, check.grid)
    tissue = tissue_of(body, case, check.grid)
    air = 100.0 * (1.0 - tissue.sum() / max(int(body.sum()), 1))
    if (sigma := uncertainty_percent(check, dose, tissue)) is not None:
        limit = settings.uncertainty_percent
        why = "mean sigma of the independent dose in tissue where the plan has more than half of its maximum"
        checks.append(Check("statistical uncertainty", sigma <= limit, sigma, limit, "%", why))
    others_passed = all(c.passed for c in checks)
    main, engines = gammas(tissue, air, dose, check, settings)
    engines += target_means(case, sheet, dose, check, settings)
    results: tuple[GoalResult, ...] = ()
    if sheet is not None:
        results = evaluate(sheet, case, denoised(dose, check))
        engines.append(required_goals(results))
    verdict = Verdict((*checks, *engines), main, results, fingerprint=fingerprint(plan, case))
    near = engines[0].value is not None and engines[0].value >= settings.correctable_gamma_percent
    return replace(verdict, correctable=others_passed and near and not verdict.passed)


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


def _turned_couch(plan: Plan) -> list[str]:
    """What a person must check of beams with the couch turned: no check here knows of collisions."""
    angles = {arc.couch_deg for arc in plan.arcs if abs(signed_deg(arc.couch_deg)) > 0.05}
    if not angles:
        return []
    listed = ", ".join(f"{angle:g}" for angle in sorted(angles))
    return [f"the couch stands at {listed} deg; look whether gantry and couch or patient can meet"]
