"""One patient of the plans benchmark: planned as `plan` does it, and compared with the clinical dose."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vmat_diffusion.benchmark.plan_comparison import PlanComparison, compare_plan
from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dataset.cases import TrainingCase
from vmat_diffusion.dataset.clinical_case import without_helpers
from vmat_diffusion.dataset.openkbp import read_openkbp
from vmat_diffusion.dicom import files_of_case, write_case
from vmat_diffusion.dicom.names import load_table
from vmat_diffusion.evaluate.goals import GoalSheet, load_goals, normalization_gy
from vmat_diffusion.evaluate.task import fit_to_each_other
from vmat_diffusion.progress import Progress
from vmat_diffusion.workflow import PlanningTools, plan_case
from vmat_diffusion.workflow.output import appearing_whole
from vmat_diffusion.workflow.planning.open_check import Keep
from vmat_diffusion.workflow.settings import PlanSettings
from vmat_diffusion.workflow.simulation.plans import require_plannable

CASES, PLANS = "cases", "plans"
# The dose at which a plan is normalised: the goal sheet's, or the clinical one where that is higher.
Level = Literal["clinical", "sheet"]


@dataclass(frozen=True)
class PlannedPatient:
    """A patient's plan against the clinical dose, and what the gate says of it.

    `failed_checks` are the names of the gate's checks that did not pass. MU and beam-on time are per
    fraction; `minutes` are those of the whole run with its independent dose and report.
    """

    id: str
    comparison: PlanComparison
    outcome: str
    violations: int
    passed: bool
    failed_checks: tuple[str, ...]
    mu: float
    delivery_s: float
    minutes: float


def read_plannable(path: Path) -> TrainingCase:
    """A patient with CT and clinical dose. Raises CaseError for any other."""
    training = read_openkbp(path)
    require_plannable(training)
    return training


def clinical_level_gy(clinical: Dose, case: Case, sheet: GoalSheet) -> float:
    """The dose of the sheet's normalisation, or what the clinical dose has of it where that is higher, Gy."""
    return max(sheet.normalization.gy, normalization_gy(clinical, case, sheet))


def plan_patient(
    training: TrainingCase,
    out: Path,
    settings: PlanSettings,
    *,
    level: Level = "clinical",
    tools: PlanningTools | None = None,
    progress: Progress | None = None,
) -> PlannedPatient:
    """Plan a patient of `read_plannable` and compare the plan with the clinical dose.

    At the `clinical` level the plan covers its highest target at least as the clinical dose does.

    The patient as DICOM files goes to `out/cases/ID`, the run to `out/plans/ID`. The comparison is on the
    patient's own voxels and structures, not on those that come back from contours. Ctrl-C leaves no run.
    Raises InputError for a patient that cannot be planned.
    """
    started = time.perf_counter()
    clinical = training.case.reference_dose
    assert clinical is not None  # as `read_plannable` makes sure
    fitted, sheet = fit_to_each_other(training.case, load_goals(settings.goals))
    # Structures that only goals need, such as the body without targets, are no organs to compare.
    case = without_helpers(fitted, load_table())
    if level == "clinical":
        settings = replace(settings, normalize_gy=clinical_level_gy(clinical, case, sheet))
    folder = out / CASES / case.id
    before = files_of_case(folder, case)
    with appearing_whole(folder, overwrite=True, names=before, listed=before) as part:
        write_case(part, case)
    run = plan_case(
        folder,
        out / PLANS / case.id,
        settings,
        overwrite=True,
        keep=Keep.NOTHING,
        tools=tools,
        progress=progress,
    )
    minutes = (time.perf_counter() - started) / 60
    return PlannedPatient(
        id=case.id,
        comparison=compare_plan(run.dose, clinical, case, sheet),
        outcome=run.outcome,
        violations=len(run.violations),
        passed=run.passed,
        failed_checks=tuple(check.name for check in run.verdict.checks if not check.passed),
        mu=round(run.plan.total_mu, 1),
        delivery_s=round(run.delivery_s, 1),
        minutes=round(minutes, 2),
    )
