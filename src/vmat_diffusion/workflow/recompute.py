"""`dose`, `gamma`, `qa` and `reference-check`: doses of plans of any system, and their check."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.delivery import require_isocenter_near_body
from vmat_diffusion.dose.engines import ENGINES, DoseEngine, deciding, dose_engine
from vmat_diffusion.errors import CaseError, InputError, PlanError
from vmat_diffusion.evaluate.complexity import complexity_of, outside_ranges
from vmat_diffusion.evaluate.goals import (
    DeliveryResult,
    delivery_record,
    evaluate_delivery,
    goal_details,
    group_record,
    group_results,
    sheet_record,
)
from vmat_diffusion.files import write_json
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.origin import Comparison, compare, dose_origin
from vmat_diffusion.plan import Plan
from vmat_diffusion.progress import Progress, silent, under_name
from vmat_diffusion.qa import gate_limits
from vmat_diffusion.report.coding import Coding, coding_of
from vmat_diffusion.workflow.output import appearing_whole, require_apart
from vmat_diffusion.workflow.provenance import (
    origins_record,
    package_versions,
    profile_shown,
    program_record,
    settings_record,
)
from vmat_diffusion.workflow.reading import (
    plan_and_machine,
    read_for_dose,
    require_case_folder,
    require_file,
)
from vmat_diffusion.workflow.settings import IDENTITY_SHARED, DoseSettings, QaSettings

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.complexity import Complexity
    from vmat_diffusion.evaluate.gamma import GammaResult
    from vmat_diffusion.evaluate.goals import GoalSheet
    from vmat_diffusion.qa import Verdict

REFERENCE_KEYS = (
    "name",
    "mean_diff_pct",
    "max_diff_pct",
    "cax_diff_pct",
    "gamma_3_3",
    "gamma_2_2",
    "seconds",
)
QA_FILES = ("report.html", "report.pdf", "qa.json", "RD_check.dcm")
# What an inconclusive check leaves: the same command goes on from there.
OPEN_CHECK = "open_check.npz"


@dataclass(frozen=True, eq=False)
class SecondCheck:
    """The verdict on a plan from any system; `files` are absolute paths."""

    case: Case
    plan: Plan
    machine: Machine
    dose: Dose
    check: Dose
    verdict: Verdict
    files: tuple[Path, ...]
    sheet: GoalSheet | None = None

    @property
    def delivery_results(self) -> tuple[DeliveryResult, ...]:
        """The sheet's goals on the delivery, judged on the plan; none without a sheet."""
        return evaluate_delivery(self.sheet, self.plan, self.machine) if self.sheet else ()

    @property
    def complexity(self) -> Complexity | None:
        """The metrics of the plan, for the sheet's prescription or the case's or the plan's own."""
        prescription = self.sheet.prescription if self.sheet else self.case.prescription
        return complexity_of(self.plan, self.machine, prescription)

    @property
    def outside_published(self) -> tuple[str, ...]:
        """Where the plan is more complex than published plans, a sentence each."""
        found, site = self.complexity, self.sheet.site if self.sheet else self.case.site
        return outside_ranges(found, site) if found else ()

    def summary(self) -> dict[str, Any]:
        """The object that `qa --json` prints."""
        return {
            "machine": self.machine.name,
            "mu": round(self.plan.total_mu, 2),
            "verdict": self.verdict.summary(),
            "robustness": self.verdict.robustness.record() if self.verdict.robustness else None,
            "goals": [goal_details(r) for r in self.verdict.results],
            "groups": [group_record(g) for g in group_results(self.verdict.results)],
            "delivery_goals": [delivery_record(r) for r in self.delivery_results],
            "complexity": self.complexity.record() if self.complexity else None,
            "outside_published": list(self.outside_published),
            "sheet": sheet_record(self.sheet) if self.sheet else None,
            "check": _plain(self.check),
            "files": [str(file) for file in self.files],
        }


def _plain(dose: Dose) -> dict[str, Any]:
    """How a dose was made, without UIDs."""
    kept = ("engine", "version", "machine", "seed", "uncertainty", "histories", "seconds")
    return {key: dose.provenance[key] for key in kept if key in dose.provenance}


def compare_doses(
    reference: Path,
    evaluated: Path,
    *,
    dose_percent: float = 3.0,
    distance_mm: float = 3.0,
    local: bool = False,
    threshold_percent: float = 10.0,
    max_gamma: float = 2.0,
    force: bool = False,
    announce: Callable[[str], None] | None = None,
) -> GammaResult:
    """Gamma between two RTDOSE files, whose grids may differ; of two planes, or a plane in a volume.

    `announce` gets each sentence on what the files leave unsaid of belonging together, and, for planes, on
    what contradicts. Raises CaseError for volumes of different patients or frames of reference unless `force`
    lets it be.
    """
    from vmat_diffusion.dicom import read_plane_or_volume
    from vmat_diffusion.evaluate.gamma import gamma

    first, second = (read_plane_or_volume(require_file(file, "RTDOSE")) for file in (reference, evaluated))
    together = compare(dose_origin(first, "reference dose"), dose_origin(second, "evaluated dose"))
    # A film or a portal image is of a phantom, or of a device with IDs of its own.
    flat = any(1 in dose.grid.shape for dose in (first, second))
    said = (*together.contradictions, *together.silences) if flat else together.require(force=force)
    for remark in said:
        if announce:
            announce(remark)
    return gamma(
        first,
        second,
        dose_percent=dose_percent,
        distance_mm=distance_mm,
        local=local,
        threshold_percent=threshold_percent,
        max_gamma=max_gamma,
    )


def compute_dose(
    plan_file: Path,
    case_folder: Path,
    out: Path,
    settings: DoseSettings,
    *,
    force: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Dose:
    """Compute the dose of an RTPLAN on a case and write it as RTDOSE.

    The dose refers to the plan only where both are of one frame of reference. `provenance["remarks"]` of what
    is returned says what a person must know of the plan file and of how the files belong together.
    Raises InputError where a file cannot be used or the machine lacks what the engine needs.
    """
    report = progress or silent
    require_apart(out, case_folder, plan_file)
    if out.exists() and not overwrite:
        raise CaseError(f"dose file {out} exists; name another one or pass --overwrite")
    plan, case, linac = _read(plan_file, case_folder, settings)
    from vmat_diffusion.dicom import write_dose
    from vmat_diffusion.qa.ct_numbers import ignored_overrides
    from vmat_diffusion.qa.files import belonging, plan_remarks

    together = belonging(case, plan, None) or Comparison()
    belong = together.require(force=force)
    remarks = (*belong, *plan_remarks(plan, linac), *ignored_overrides(case))
    compute = _engine(linac, settings)
    from vmat_diffusion.dose.tissue import dose_grid

    grid = dose_grid(case, settings.grid_mm)
    dose = compute(plan, case, grid, progress=report)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    linked = plan_file if belongs(plan, case) else None
    write_dose(out, dose, case, plan_file=linked, overwrite=overwrite)
    return replace(dose, provenance={**dose.provenance, "remarks": remarks})


def second_check(
    plan_file: Path,
    case_folder: Path,
    out: Path,
    settings: QaSettings | None = None,
    *,
    dose_file: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SecondCheck:
    """Recompute an RTPLAN from any system and judge it; writes `QA_FILES` into `out`.

    Without `dose_file` the fast engine stands in for the planned dose, and so it does for a file that
    cannot be read, which fails the check of the files. Monte Carlo ends as soon as all is decided. What it
    has of a check that stays inconclusive, or that Ctrl-C ends, lies in `OPEN_CHECK`; the same command with
    `overwrite` goes on from there. Raises InputError where the plan or the case cannot
    be read, a file does not exist or the machine cannot represent the plan.
    """
    from vmat_diffusion.qa import (
        Decision,
        Outcome,
        PlanFiles,
        judge,
        robustness_of,
        with_robustness,
        with_way_on,
    )

    settings, report = settings or QaSettings(), progress or silent
    if settings.identity and settings.shareable:
        raise InputError(IDENTITY_SHARED)
    require_apart(out, case_folder, plan_file, dose_file)
    asked = settings.uncertainty if settings.engine == "monte-carlo" else 0.0
    limits = gate_limits(settings.gate, asked, settings.robustness)
    if dose_file is None and settings.engine == "pencil-beam":
        raise InputError("the pencil beam cannot check itself; give the planned dose or --engine monte-carlo")
    if dose_file is not None:
        require_file(dose_file, "RTDOSE")
    with appearing_whole(out, overwrite=overwrite, names=(*QA_FILES, OPEN_CHECK)) as folder:
        report("read", 0.0, "")
        plan, case, linac = _read(plan_file, case_folder, settings)
        compute = _engine(linac, settings)
        case, sheet = _asked(case, plan, settings.goals, settings.conditions)
        from vmat_diffusion.dose.tissue import dose_grid

        grid = dose_grid(case, settings.grid_mm)
        require_isocenter_near_body(plan, case)
        dose = _planned_dose(dose_file, settings.engine)
        if dose is not None and not float(dose.gy.max()) > 0:
            raise CaseError("the planned dose is zero everywhere; export the dose of the calculated plan")
        if dose is None:
            fast = dose_engine("pencil-beam", linac)
            dose = fast(plan, case, grid, progress=report)
        tallies = folder / OPEN_CHECK
        if (out / OPEN_CHECK).is_file():
            shutil.copyfile(out / OPEN_CHECK, tallies)
        decision = Decision(case, sheet, plan, linac, dose, limits)
        ending = deciding(compute, decision.needs, tallies)
        check = ending(plan, case, grid, progress=under_name(report, "check"))
        files = PlanFiles(plan_file, dose_file)
        verdict = judge(
            case, sheet, plan, linac, dose, check=check, settings=limits, files=files, decision=decision
        )
        check = replace(check, replicates_gy=None)
        found = robustness_of(case, sheet, plan, linac, dose, progress=under_name(report, "robustness"))
        verdict = with_robustness(verdict, found, stops=limits.robustness == "stop")
        if verdict.outcome is not Outcome.INCONCLUSIVE:
            tallies.unlink(missing_ok=True)
        elif tallies.is_file():
            verdict = with_way_on(verdict, "go on with the same command and --overwrite")
        report("report", 0.0, "")
        kept = (*QA_FILES, *([OPEN_CHECK] if tallies.is_file() else []))
        names = tuple(out.resolve() / name for name in kept)
        done = SecondCheck(case, plan, linac, dose, check, verdict, names, sheet)
        coding = coding_of(
            case,
            linac,
            machine_file=settings.machine,
            folder=case_folder,
            files=[plan_file, dose_file],
            plans=[plan],
            mapping=settings.mapping,
            shareable=settings.shareable,
        )
        _write(folder, done, plan_file, asdict(limits), settings, coding=coding)
    return done


def _planned_dose(file: Path | None, engine: str) -> Dose | None:
    """The dose in the file; None where none is given, or the RTDOSE cannot be read."""
    if file is None:
        return None
    from vmat_diffusion.dicom import read_dose
    from vmat_diffusion.dicom.attributes import about
    from vmat_diffusion.dicom.folder import open_one

    with about(file.name):
        open_one(file, "RTDOSE")  # another kind of file was given by mistake
    try:
        return read_dose(file)
    except InputError:
        # Where the fast engine is the second one, nothing can stand in for the planned dose.
        if engine == "pencil-beam":
            raise
        return None


def _write(
    folder: Path,
    done: SecondCheck,
    plan_file: Path,
    limits: dict[str, Any],
    settings: QaSettings,
    *,
    coding: Coding,
) -> None:
    from vmat_diffusion.dicom import patient_named, write_dose
    from vmat_diffusion.evaluate.goals import evaluate
    from vmat_diffusion.plan import violations
    from vmat_diffusion.report import Identity, Reported, write_report

    report, _, record, dose = QA_FILES
    origins = settings.origins
    patient = patient_named(done.case.source.image_path) if settings.identity else ()
    uid = str(done.plan.provenance.get("sop_instance_uid", ""))
    write_report(
        folder / report,
        Reported(
            **coding.report(
                case=done.case,
                plan=done.plan,
                machine=done.machine,
                provenance={
                    "program": program_record(),
                    "packages": package_versions(),
                    "settings": settings_record(settings),
                    **origins_record(origins),
                    "profile": profile_shown(origins, shareable=settings.shareable),
                    "gate": limits,
                    "check": _plain(done.check),
                },
            ),
            dose=coding.dose(done.dose),
            results=coding.results(evaluate(done.sheet, done.case, done.dose) if done.sheet else ()),
            sheet=coding.sheet(done.sheet),
            violations=list(map(coding.shown, violations(done.plan, done.machine))),
            verdict=coding.verdict(done.verdict),
            check=coding.dose(done.check),
            identity=Identity(coding.own_uid(uid), "", patient),
        ),
    )
    linked = plan_file if belongs(done.plan, done.case) else None
    write_dose(folder / dose, done.check, done.case, plan_file=linked)
    write_json(
        folder / record,
        coding.record(
            {
                **done.summary(),
                **origins_record(origins),
                "gate": limits,
                "files": [f.name for f in done.files],
            }
        ),
    )


def belongs(plan: Plan, case: Case) -> bool:
    """Whether plan and CT share a frame of reference, without which no dose may refer to the plan."""
    return plan.provenance.get("frame_of_reference_uid") == case.source.frame_of_reference_uid


def _read(plan_file: Path, case_folder: Path, settings: DoseSettings) -> tuple[Plan, Case, Machine]:
    """The plan, the case, and the beam of the machine behind the plan's own collimator."""
    base = load_machine(settings.machine)
    require_case_folder(case_folder)
    plan, machine = plan_and_machine(plan_file, base)
    return plan, read_for_dose(case_folder, settings), machine


def _engine(machine: Machine, settings: DoseSettings) -> DoseEngine:
    return dose_engine(
        settings.engine,
        machine,
        uncertainty=settings.uncertainty,
        max_minutes=settings.check_minutes,
        seed=settings.seed,
    )


def _asked(
    case: Case, plan: Plan, goals: str | None, conditions: Sequence[str]
) -> tuple[Case, GoalSheet | None]:
    """The case with the sheet's prescription, and the sheet for its targets, if goals are asked."""
    if goals is None:
        return case, None
    from vmat_diffusion.evaluate.goals import add_structures, fit_to_case, load_goals

    sheet = fit_to_case(load_goals(goals), case, conditions)
    if sheet.prescription.fractions != plan.fractions:
        raise PlanError(
            f"the plan has {plan.fractions} fractions, goal sheet {sheet.name} "
            f"{sheet.prescription.fractions}; choose the sheet that the plan was made for"
        )
    return add_structures(sheet, replace(case, prescription=sheet.prescription)), sheet


def check_references(
    folder: Path,
    *,
    engine: str = "monte-carlo",
    uncertainty: float = 0.01,
    check_minutes: float | None = 5.0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Every case in a folder of reference doses against the engine: what `reference-check` prints.

    Gamma is global with a threshold of 10 %; its dose criterion is widened in quadrature by one sigma of
    both doses.
    """
    if engine not in ENGINES:
        raise InputError(f"engine {engine!r} is not known; known are {' and '.join(ENGINES)}")
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; give a folder of reference cases")
    from vmat_diffusion.dicom import read_plan
    from vmat_diffusion.evaluate.gamma import gamma
    from vmat_diffusion.qa.reference_doses import monte_carlo_engine, pencil_beam_engine, reference_check

    def rate(reference: Dose, evaluated: Dose, percent: float, mm: float) -> float:
        found = gamma(reference, evaluated, dose_percent=percent, distance_mm=mm, max_gamma=1.1, sigmas=1.0)
        return found.pass_percent

    limit_s = None if check_minutes is None else 60.0 * check_minutes
    chosen = pencil_beam_engine() if engine == "pencil-beam" else monte_carlo_engine(uncertainty, limit_s)
    results = reference_check(folder, chosen, read_plan=read_plan, gamma=rate, progress=progress)
    return {"cases": [{key: _rounded(getattr(r, key)) for key in REFERENCE_KEYS} for r in results]}


def _rounded(value: object) -> object:
    return round(value, 3) if isinstance(value, float) and math.isfinite(value) else value
