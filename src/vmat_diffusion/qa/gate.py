"""`judge`: every check of a plan, its dose and the independent dose, as one verdict. See `docs/gate.md`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.evaluate.dvh import outside_percent
from vmat_diffusion.evaluate.goals import GoalSheet
from vmat_diffusion.geometry import signed_deg
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan, violations
from vmat_diffusion.qa.agreement import Compared, highest_dose
from vmat_diffusion.qa.ct_numbers import ct_numbers, ignored_overrides
from vmat_diffusion.qa.decision import Decision
from vmat_diffusion.qa.delivery import delivery_checks
from vmat_diffusion.qa.dose_points import prescribed_doses
from vmat_diffusion.qa.field_of_view import beams_beyond_ct, supports_in_beam
from vmat_diffusion.qa.files import PlanFiles, dose_remarks, plan_remarks, round_trip, same_patient
from vmat_diffusion.qa.limits import GateSettings
from vmat_diffusion.qa.outline import body_outline, contours_left_out, outline_place
from vmat_diffusion.qa.verdict import LOOSER_LIMITS, Check, Verdict, fingerprint, warning

_DOSE_GRID = "dose grid"
_BEGIN_AGAIN = "begin again with"
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
    decision: Decision | None = None,
) -> Verdict:
    """Check a plan with the dose `dose` against `check`, the independent dose of the same plan.

    Where `check` is None, what needs it is undecided. `sheet` must be fitted to the case; with None no
    goals are checked. `files` are read again and must hold `plan` and `dose`. `earlier_checks` join the
    verdict: those of what led to the plan. `decision` has looked at `check` already.
    Never raises for a fault of what it judges.
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
    # What a coarse grid leaves open is worth the cost all the same.
    ready = all(c.passed or c.name == _DOSE_GRID for c in checks)
    decision = decision or Decision(case, sheet, plan, machine, dose, settings)
    found = decision.checks(check, pair, ready=ready)
    checks += [c if c.passed else _with_time(c, check) for c in found.checks]
    verdict = Verdict(tuple(checks), found.gamma, found.results, fingerprint=fingerprint(plan, case))
    sure = others_passed and found.near and (found.noise is None or found.noise.passed)
    return replace(verdict, correctable=sure and not verdict.passed)


def _with_time(check: Check, dose: Dose) -> Check:
    """A check that more computing would decide, with how many minutes that takes."""
    if not check.undecided or check.needs <= 1.0:
        return check
    took = dose.provenance.get("seconds")
    if not isinstance(took, int | float) or not took > 0:
        remedy = "compute the independent dose with a smaller --uncertainty"
    elif not math.isfinite(check.needs):
        remedy = "no time decides it"
    else:
        # Sigma falls with the square root of the time.
        whole = took / 60.0 * check.needs
        left = whole - took / 60.0
        remedy = (
            f"about {left:.1f} more minutes are needed: {_BEGIN_AGAIN} --check-minutes "
            f"{max(1, round(whole + 0.5))}"
        )
    return replace(check, why=f"{check.why}; {remedy}")


def with_way_on(verdict: Verdict, way: str) -> Verdict:
    """The verdict, whose undecided checks also name the way on: what was computed for them has been kept."""
    checks = [
        replace(check, why=check.why.replace(_BEGIN_AGAIN, f"{way}, or {_BEGIN_AGAIN}"))
        if check.undecided
        else check
        for check in verdict.checks
    ]
    return replace(verdict, checks=tuple(checks))


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
