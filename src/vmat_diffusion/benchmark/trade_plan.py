"""One plan of the benchmark of quality against MU: searched at a limit of MU per Gy, and what it is like.

A plan is the search alone: it is judged on its own dose, and by the independent engine only where gamma is
asked for. No plan file is written, as no gate has judged it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vmat_diffusion.benchmark.plan_comparison import (
    Criterion,
    JudgedDose,
    PlanComparison,
    compare_plan,
    highest_target,
    judge_dose,
    organ_changes_percent,
    scaled,
)
from vmat_diffusion.benchmark.plans_patient import clinical_level_gy, read_plannable
from vmat_diffusion.benchmark.tg119_cases import Tg119Case
from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dataset.clinical_case import without_helpers
from vmat_diffusion.dataset.openkbp import GOALS
from vmat_diffusion.dicom.names import load_table
from vmat_diffusion.evaluate.complexity import complexity
from vmat_diffusion.evaluate.delivery_results import evaluate_delivery
from vmat_diffusion.evaluate.dvh import isodose_volume_cc, structure_dvh
from vmat_diffusion.evaluate.goals import GoalSheet, evaluate, load_goals, normalized_at
from vmat_diffusion.evaluate.metrics import paddick
from vmat_diffusion.evaluate.task import Task, fit_to_each_other
from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import violations
from vmat_diffusion.progress import Progress, silent
from vmat_diffusion.workflow import PlanningTools
from vmat_diffusion.workflow.planning.request import with_asked_delivery
from vmat_diffusion.workflow.planning.search import search_plan
from vmat_diffusion.workflow.settings import PlanSettings

if TYPE_CHECKING:
    from vmat_diffusion.optimize import Optimized

# The isodose of conformity, as a share of the prescription: as goal sheets have it.
_CONFORMITY_SHARE = 0.95
GAMMA = "gamma 3 %/2 mm"
# Whether a plan of TG-119 reaches its goals.
Reached = Literal["every goal", "by the published mean", "no"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A case to be planned, fitted to its goal sheet, with its clinical dose or what TG-119 asks of it."""

    name: str
    case: Case
    sheet: GoalSheet
    clinical: Dose | None = None
    tg119: Tg119Case | None = None


@dataclass(frozen=True)
class PlanAtLimit:
    """A plan searched with a limit of MU per Gy, None for no limit.

    `levels_gy` are the prescriptions by target, the highest first. `planned` is the plan's own dose, with
    the goals of the sheet; `comparison` is with the clinical dose where there is one. `conformity` is
    Paddick's, of the highest target at 95 % of its prescription: of the plan (at matched coverage where
    there is a clinical dose) and of the clinical dose. `delivery` has the metrics of `Complexity`,
    `delivery_goals` the status of each delivery goal of the sheet. `mu` are those of a fraction, `search_s`
    the wall clock of the search, `gamma_percent` the share of voxels that pass 3 %/2 mm by the independent
    engine, None where it was not asked for or could not be found.
    """

    id: str
    case: str
    limit_mu_per_gy: float | None
    levels_gy: Mapping[str, float]
    planned: JudgedDose
    comparison: PlanComparison | None
    conformity: float
    clinical_conformity: float | None
    mu: float
    delivery: Mapping[str, float | None]
    delivery_goals: Mapping[str, str]
    violations: int
    outcome: str
    search_s: float
    reached: Reached | None = None
    gamma_percent: float | None = None

    @property
    def target(self) -> str:
        """The target with the highest prescription."""
        return next(iter(self.levels_gy))

    @property
    def dose(self) -> JudgedDose:
        """The plan's dose, at the clinical coverage where there is a clinical dose."""
        return self.comparison.matched if self.comparison else self.planned

    @property
    def mu_per_gy(self) -> float:
        """MU of a fraction for each Gy of the highest prescription; 0 without MU."""
        return self.delivery["mu_per_gy"] or 0.0

    def organ_changes_percent(self) -> tuple[float, ...]:
        """By how much each organ's mean is above the clinical one at matched coverage; () without one."""
        return tuple(organ_changes_percent(self.comparison).values()) if self.comparison else ()

    def differences_gy(self, target: str, metric: str) -> tuple[float, ...]:
        """A DVH point of a target less the clinical one at matched coverage; () where one is absent."""
        if self.comparison is None or target not in self.comparison.clinical.points:
            return ()
        ours, theirs = self.comparison.matched.points[target], self.comparison.clinical.points[target]
        return (ours[metric] - theirs[metric],)


def row_id(name: str, limit: float | None) -> str:
    """The name of a plan in the file of results, such as `pt_201 at 300`."""
    return f"{name} at {limit_text(limit)}"


def limit_text(limit: float | None) -> str:
    """A limit of MU per Gy as it is given: `300` or `off`."""
    return "off" if limit is None else f"{limit:g}"


def openkbp_subject(path: Path) -> Subject:
    """A patient of OpenKBP, normalised as `benchmark plans` does it. Raises CaseError as `read_plannable`."""
    training = read_plannable(path)
    clinical = training.case.reference_dose
    assert clinical is not None  # as `read_plannable` makes sure
    case, sheet = fit_to_each_other(training.case, load_goals(GOALS))
    sheet = normalized_at(sheet, clinical_level_gy(clinical, case, sheet))
    return Subject(path.stem, replace(case, reference_dose=None), sheet, clinical=clinical)


def tg119_subject(asked: Tg119Case) -> Subject:
    """One of the cases of TG-119."""
    from vmat_diffusion.phantom import phantom

    case, sheet = fit_to_each_other(phantom(asked.phantom), asked.sheet())
    return Subject(asked.name, case, sheet, tg119=asked)


def plan_at_limit(
    subject: Subject,
    limit: float | None,
    settings: PlanSettings,
    *,
    gamma: bool = False,
    tools: PlanningTools | None = None,
    progress: Progress = silent,
) -> PlanAtLimit:
    """Search a plan with the settings, which hold the limit, and measure it.

    Raises InputError for a case that cannot be planned, KeyboardInterrupt where Ctrl-C ended the search:
    such a plan depends on when that was.
    """
    tools, machine = tools or PlanningTools(), load_machine(settings.machine)
    machine.require_beam()
    task = Task(subject.case, with_asked_delivery(subject.sheet, settings), machine)
    started = time.perf_counter()
    made = search_plan(task, settings, progress, optimizer=tools.optimizer)
    search_s = time.perf_counter() - started
    if made.outcome.name == "INTERRUPTED":
        raise KeyboardInterrupt
    plan, levels = made.plan, _levels_gy(task)
    comparison, planned, reached = _judged(subject, made.dose, task.sheet)
    dose = scaled(made.dose, comparison.factor) if comparison else made.dose
    return PlanAtLimit(
        id=row_id(subject.name, limit),
        case=subject.name,
        limit_mu_per_gy=limit,
        levels_gy=levels,
        planned=planned,
        comparison=comparison,
        conformity=_conformity(dose, subject.case, levels),
        clinical_conformity=_conformity(subject.clinical, subject.case, levels) if subject.clinical else None,
        mu=round(plan.total_mu, 1),
        delivery=complexity(plan, machine, max(levels.values()) / plan.fractions).record(),
        delivery_goals={r.goal.statement: r.status for r in evaluate_delivery(task.sheet, plan, machine)},
        violations=len(violations(plan, machine)),
        outcome=made.outcome.name,
        search_s=round(search_s, 1),
        reached=reached,
        gamma_percent=_gamma_percent(task, made, settings, tools, progress) if gamma else None,
    )


def _levels_gy(task: Task) -> dict[str, float]:
    """The prescriptions of the targets that the case has, the first of the highest first."""
    levels = task.sheet.prescription.target_gy
    first = highest_target(task.sheet.prescription)
    rest = sorted((name for name in levels if name != first), key=lambda name: -levels[name])
    return {name: levels[name] for name in (first, *rest) if name in task.case.structures}


def _judged(
    subject: Subject, dose: Dose, sheet: GoalSheet
) -> tuple[PlanComparison | None, JudgedDose, Reached | None]:
    """The comparison with the clinical dose, the plan's dose as planned, and whether TG-119 is reached."""
    if subject.clinical is not None:
        # Structures that only goals need, such as the body without targets, are no organs to compare.
        case = without_helpers(subject.case, load_table())
        comparison = compare_plan(dose, subject.clinical, case, sheet)
        return comparison, comparison.planned, None
    judged = judge_dose(dose, subject.case, sheet)
    if subject.tg119 is None:
        return None, judged, None
    results = evaluate(sheet, subject.case, dose)
    scored = subject.tg119.scored({(r.goal.structure, r.goal.statement): r.value for r in results})
    goals = {str(s.goal): Criterion(s.value_gy, s.reaches_goal) for s in scored if s.value_gy is not None}
    if all(s.reaches_goal for s in scored):
        reached: Reached = "every goal"
    else:
        reached = "by the published mean" if all(s.reaches_goal_or_mean for s in scored) else "no"
    return None, JudgedDose(judged.points, goals), reached


def _conformity(dose: Dose, case: Case, levels_gy: Mapping[str, float]) -> float:
    """Paddick's conformity of the highest target at 95 % of its prescription."""
    target, gy = next(iter(levels_gy.items()))
    level = _CONFORMITY_SHARE * gy
    volume_cc = isodose_volume_cc(dose, level, case.body, case.grid)
    return paddick(structure_dvh(dose, case.structures[target], case.grid), level, volume_cc)


def _gamma_percent(
    task: Task, made: Optimized, settings: PlanSettings, tools: PlanningTools, progress: Progress
) -> float | None:
    """Gamma of the plan's dose by the independent engine, as the shipped gate has it."""
    from vmat_diffusion.qa import load_gate
    from vmat_diffusion.qa.agreement import Compared, gammas

    engine = tools.check_engine(task.machine, settings, 0)
    check = engine(made.plan, task.case, made.dose.grid, progress=progress)
    _, checks = gammas(Compared.of(task.case, made.dose, check), load_gate())
    return next((check.value for check in checks if check.name == GAMMA), None)
