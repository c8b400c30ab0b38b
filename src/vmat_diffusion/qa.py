"""The gate: what must hold before a plan may be written, and why it does not. See `docs/gate.md`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked
from scipy import ndimage

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.materials import AIR_BELOW_G_CM3
from vmat_diffusion.dose.rays import density_of
from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.dvh import outside_percent, structure_dose_gy
from vmat_diffusion.evaluate.gamma import GammaResult, gamma
from vmat_diffusion.evaluate.goals import GoalResult, GoalSheet, evaluate
from vmat_diffusion.geometry import Grid, Mask, resample, signed_deg
from vmat_diffusion.machine import Machine
from vmat_diffusion.plan import Plan, violations

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Percent = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0, le=100)]

_WARNINGS = "warnings"
# The map is drawn up to here; searching farther costs time and changes no pass rate.
_MAP_TOP = 1.5
# Re-read numbers may differ by the rounding of DICOM's decimal strings and 32-bit doses.
_POSITION_MM, _ANGLE_DEG, _MU_SHARE, _DOSE_SHARE = 0.02, 0.001, 1e-4, 1e-4


@checked(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class GateSettings:
    """Limits of the gate; `configs/gate.toml` holds the same numbers with their sources.

    All in percent and mm. The gamma of `strict_*` is reported, not judged.
    """

    gamma_dose_percent: Positive = 3.0
    gamma_distance_mm: Positive = 3.0
    gamma_local: bool = False
    gamma_threshold_percent: Percent = 10.0
    gamma_pass_percent: Percent = 95.0
    gamma_sigmas: Annotated[float, Field(ge=0, le=2)] = 1.0
    strict_dose_percent: Positive = 2.0
    strict_distance_mm: Positive = 2.0
    target_mean_percent: Positive = 2.0
    target_outside_percent: Percent = 0.0
    body_outside_percent: Percent = 1.0
    uncertainty_percent: Positive = 2.5
    correctable_gamma_percent: Percent = 80.0


@dataclass(frozen=True)
class Check:
    """One question and its answer; `value` and `limit` are in `unit`. No limit: reported, not judged."""

    name: str
    passed: bool
    value: float | None
    limit: float | None
    unit: str
    why: str

    @property
    def warns(self) -> bool:
        """Whether it stops no plan but holds what a person must read."""
        return self.passed and self.unit == _WARNINGS and bool(self.value)

    @property
    def word(self) -> str:
        """The result in a word."""
        if self.warns or not self.passed:
            return "warning" if self.passed else "fail"
        return "reported" if self.limit is None else "pass"

    def record(self) -> dict[str, Any]:
        """Plain data with the value rounded."""
        value = None if self.value is None else round(self.value, 4)
        return {
            "name": self.name,
            "passed": self.passed,
            "result": self.word,
            "value": value,
            "limit": self.limit,
            "unit": self.unit,
            "why": self.why,
        }


def warning(name: str, sentences: Sequence[str], otherwise: str) -> Check:
    """A check that stops no plan and says what is unusual, or `otherwise` where nothing is."""
    why = "; ".join(sentences) or otherwise
    return Check(name, True, float(len(sentences)), None, _WARNINGS, why)


@dataclass(frozen=True, eq=False)
class Verdict:
    """All checks of one plan. `gamma` and `results` (goals on the second dose) are there if computed.

    `correctable` says that nothing but the two engines' disagreement keeps the plan from passing, and
    that they disagree no more than engines may.
    """

    checks: tuple[Check, ...]
    gamma: GammaResult | None = None
    results: tuple[GoalResult, ...] = ()
    correctable: bool = False

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not pass."""
        return tuple(check for check in self.checks if not check.passed)

    def summary(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "passed": self.passed,
            "checks": [check.record() for check in self.checks],
            "gamma": self.gamma.summary() if self.gamma else None,
        }


@dataclass(frozen=True)
class PlanFiles:
    """The RTPLAN and RTDOSE that are to be handed on; `dose` is None where there is none."""

    plan: Path
    dose: Path | None = None


def load_gate(file: Path | str | None = None) -> GateSettings:
    """Limits from a TOML file, what it leaves out by default. Raises InputError for an unknown key."""
    if file is None:
        return GateSettings()
    path = Path(file)
    if not path.is_file():
        raise InputError(f"gate file {path} does not exist; give an existing TOML file or none")
    try:
        return TypeAdapter(GateSettings).validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"gate file {path}: not valid TOML ({error}); correct the file") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"gate file {path}: {where}: {first['msg']}; correct the file") from None


def judge(
    case: Case,
    sheet: GoalSheet | None,
    plan: Plan,
    machine: Machine,
    dose: Dose,
    check: Dose | None,
    *,
    settings: GateSettings | None = None,
    files: PlanFiles | None = None,
    more: Sequence[Check] = (),
) -> Verdict:
    """Every check of a plan whose dose is `dose`, against the independent dose `check` of the same plan.

    Without `check`, what needs one fails. `sheet` must be fitted to the case; None asks no goals.
    `files` are read again and must hold `plan` and `dose`. `more` are checks made before, of what led to
    the plan. Never raises for what it is to judge.
    """
    settings = settings or GateSettings()
    checks = [*more, _deliverable(plan, machine), *_coverage(case, dose, settings)]
    if (origin := _same_patient(case, plan, dose)) is not None:
        checks.append(origin)
    if turned := _turned_couch(plan):
        checks.append(warning("couch", turned, ""))
    if files is not None:
        checks.append(_round_trip(files, case, plan, machine, dose))
    if check is None:
        checks.append(Check("independent dose", False, None, None, "", "no independent dose was computed"))
        return Verdict(tuple(checks))
    body = _on(case.body.mask, case.grid, check.grid)
    tissue = _tissue(body, case, check.grid)
    air = 100.0 * (1.0 - tissue.sum() / max(int(body.sum()), 1))
    if (sigma := uncertainty_percent(check, dose, tissue)) is not None:
        limit = settings.uncertainty_percent
        why = "mean sigma of the independent dose in tissue where the plan has more than half of its maximum"
        checks.append(Check("statistical uncertainty", sigma <= limit, sigma, limit, "%", why))
    alone = all(c.passed for c in checks)
    main, engines = _gammas(tissue, air, dose, check, settings)
    engines += _target_means(case, sheet, dose, check, settings)
    results: tuple[GoalResult, ...] = ()
    if sheet is not None:
        results = evaluate(sheet, case, denoised(dose, check))
        engines.append(_required_goals(results))
    verdict = Verdict((*checks, *engines), main, results)
    near = engines[0].value is not None and engines[0].value >= settings.correctable_gamma_percent
    return replace(verdict, correctable=alone and near and not verdict.passed)


def uncertainty_percent(check: Dose, dose: Dose, tissue: Mask) -> float | None:
    """Mean sigma of `check` in percent of `dose` where that is above half its maximum; None without sigmas.

    Only `tissue`, on the grid of `check`, counts: the run has gone on until it was known, not until air was.
    The maximum of a noisy dose would be that of some voxel of air.
    """
    planned = np.where(tissue, dose.on(check.grid), np.float32(0))
    if check.std_gy is None or not planned.max() > 0:
        return None
    high = planned > 0.5 * planned.max()
    return 100.0 * float(np.mean(check.std_gy[high] / planned[high], dtype=np.float64))


def denoised(dose: Dose, check: Dose) -> Dose:
    """The independent dose with the noise of its difference from `dose` smoothed away; no sigma: as it is.

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


def _deliverable(plan: Plan, machine: Machine) -> Check:
    found = violations(plan, machine)
    why = f"{machine.name} can deliver the plan" if not found else "; ".join(found[:3])
    if len(found) > 3:
        why += f"; and {len(found) - 3} more"
    return Check("deliverable", not found, float(len(found)), 0.0, "violations", why)


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


def _same_patient(case: Case, plan: Plan, dose: Dose) -> Check | None:
    """Frames of reference and the dose's plan, as far as the files say; None where none does."""
    own = case.source.frame_of_reference_uid
    faults, asked = [], 0
    for what, thing in (("plan", plan), ("dose", dose)):
        frame = thing.provenance.get("frame_of_reference_uid")
        if own and frame:
            asked += 1
            if frame != own:
                faults.append(f"the {what} has another frame of reference than the CT")
    made, belongs = plan.provenance.get("sop_instance_uid"), dose.provenance.get("plan_uid")
    if made and belongs:
        asked += 1
        if made != belongs:
            faults.append("the dose belongs to another plan")
    if not asked:
        return None
    why = "; ".join(faults) or "CT, plan and dose belong together"
    return Check("one patient, one plan", not faults, float(len(faults)), 0.0, "faults", why)


def _turned_couch(plan: Plan) -> list[str]:
    """What must be read of beams with the couch turned: no check here knows where gantry and couch meet."""
    angles = {arc.couch_deg for arc in plan.arcs if abs(signed_deg(arc.couch_deg)) > 0.05}
    if not angles:
        return []
    listed = ", ".join(f"{angle:g}" for angle in sorted(angles))
    return [f"the couch stands at {listed} deg; look whether gantry and couch or patient can meet"]


def _round_trip(files: PlanFiles, case: Case, plan: Plan, machine: Machine, dose: Dose) -> Check:
    """The files read again hold this plan and this dose, and belong together."""
    from vmat_diffusion.dicom.read import read_dose, read_plan

    faults: list[str] = []
    try:
        back = read_plan(files.plan, machine)
        faults += plan_differences(plan, back)
        if files.dose is not None:
            again = read_dose(files.dose)
            faults += _dose_differences(dose, again)
            together = _same_patient(case, back, again)
            if together is not None and not together.passed:
                faults.append(together.why)
    except InputError as error:
        faults.append(str(error))
    why = "; ".join(faults) or "the files read again hold this plan and this dose"
    return Check("files agree", not faults, float(len(faults)), 0.0, "faults", why)


def plan_differences(plan: Plan, other: Plan) -> list[str]:
    """What distinguishes two plans beyond the rounding of a file, in words; [] where nothing does."""
    if len(plan.arcs) != len(other.arcs):
        return [f"{len(other.arcs)} beams in the file, {len(plan.arcs)} in the plan"]
    out = []
    if plan.fractions != other.fractions:
        out.append(f"{other.fractions} fractions in the file, {plan.fractions} in the plan")
    if not np.allclose(plan.isocenter_mm, other.isocenter_mm, rtol=0, atol=_POSITION_MM):
        out.append("the isocentre differs")
    for a, b in zip(plan.arcs, other.arcs, strict=True):
        if a.leaves_mm.shape != b.leaves_mm.shape:
            out.append(f"beam {a.number}: numbers of control points or leaves differ")
            continue
        angles = [
            (a.gantry_deg, b.gantry_deg),
            (a.collimator_deg, b.collimator_deg),
            (a.couch_deg, b.couch_deg),
        ]
        turned = [np.abs(signed_deg(np.asarray(x) - np.asarray(y))).max() for x, y in angles]
        for name, same in (
            ("leaf positions", np.allclose(a.leaves_mm, b.leaves_mm, rtol=0, atol=_POSITION_MM)),
            ("jaw positions", np.allclose(a.jaws_mm, b.jaws_mm, rtol=0, atol=_POSITION_MM)),
            ("MU", np.allclose(a.mu, b.mu, rtol=_MU_SHARE, atol=_MU_SHARE)),
            ("angles", max(turned) <= _ANGLE_DEG),
            (
                "direction of rotation",
                np.allclose(np.diff(a.gantry_deg), np.diff(b.gantry_deg), atol=_ANGLE_DEG),
            ),
        ):
            if not same:
                out.append(f"beam {a.number}: the {name} differ")
    return out


def _dose_differences(dose: Dose, other: Dose) -> list[str]:
    if not dose.grid.matches(other.grid, tolerance_mm=_POSITION_MM):
        return ["the dose in the file lies on another grid"]
    most = float(np.abs(dose.gy - other.gy).max())
    return [f"the doses differ by {most:.3g} Gy"] if most > _DOSE_SHARE * float(dose.gy.max()) else []


def _gammas(
    tissue: Mask, air: float, dose: Dose, check: Dose, settings: GateSettings
) -> tuple[GammaResult | None, list[Check]]:
    """The judged and the reported gamma: how well `dose` meets the independent dose in tissue.

    `air` is the percentage of the body that is none.
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
        # A voxel without any planned dose near it is no voxel that agrees.
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


def _tissue(body: Mask, case: Case, grid: Grid) -> Mask:
    """The voxels of the body that are not air; all of it where there is nothing else."""
    dense = body & (density_of(case, grid).g_cm3 >= AIR_BELOW_G_CM3)
    return dense if dense.any() else body


def _on(mask: Mask, grid: Grid, other: Grid) -> Mask:
    """A mask on another grid: the voxels whose centres lie inside."""
    return resample(mask.astype(np.float32), grid, other) > 0.5


def _target_means(
    case: Case, sheet: GoalSheet | None, dose: Dose, check: Dose, settings: GateSettings
) -> list[Check]:
    """Mean dose of each prescribed target (of all targets without a sheet) by both engines."""
    wanted: Sequence[str] = list(sheet.prescription.target_gy) if sheet else [t.name for t in case.targets]
    out = []
    for name in wanted:
        structure = case.structures.get(name)
        if structure is None or not structure.mask.any():
            continue
        planned, found = (
            float(structure_dose_gy(d, structure, case.grid).mean(dtype=np.float64)) for d in (dose, check)
        )
        limit = settings.target_mean_percent
        percent = 100.0 * (found / planned - 1.0) if planned > 0 else None
        out.append(
            Check(
                f"mean dose of {name}",
                percent is not None and abs(percent) <= limit,
                percent,
                limit,
                "%",
                f"{found:.2f} Gy by the independent engine, {planned:.2f} Gy planned",
            )
        )
    return out


def _required_goals(results: Sequence[GoalResult]) -> Check:
    """Goals of priority 1 on the independent dose; the acceptable variation counts as met."""
    required = [r for r in results if r.goal.priority == 1 and r.value is not None]
    missed = [r for r in required if r.status == "fail"]
    why = f"all {len(required)} required goals are met on the independent dose"
    if missed:
        why = "missed on the independent dose: " + "; ".join(
            f"{r.goal} ({r.value:.2f} {r.goal.unit})" for r in missed
        )
    return Check("required goals", not missed, float(len(missed)), 0.0, "missed", why)
