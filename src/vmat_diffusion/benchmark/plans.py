"""The plans benchmark: OpenKBP patients planned, gated and compared with their clinical doses."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vmat_diffusion.benchmark.attempts import attempted
from vmat_diffusion.benchmark.journal import Journal, check_places, journal_path
from vmat_diffusion.benchmark.plan_comparison import (
    PlanComparison,
    criteria_shares,
    criteria_table,
    d95_difference,
    metric_table,
    organ_change,
)
from vmat_diffusion.benchmark.plans_patient import (
    CASES,
    PLANS,
    Level,
    PlannedPatient,
    plan_patient,
    read_plannable,
)
from vmat_diffusion.benchmark.plans_tables import write_results
from vmat_diffusion.benchmark.statistics import pooled_median
from vmat_diffusion.dataset.openkbp import GOALS, patients_of_split
from vmat_diffusion.dataset.splits import Split
from vmat_diffusion.dataset.tables import Rejection, rejection
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.progress import Progress, silent
from vmat_diffusion.workflow import PlanningTools
from vmat_diffusion.workflow.output import kept_or_temporary, require_apart
from vmat_diffusion.workflow.provenance import program_record
from vmat_diffusion.workflow.settings import PlanSettings

_STAGE = "plans"
# D95 within this share of the clinical one counts as reached.
_COVERAGE_PERCENT = 1.0


@dataclass(frozen=True)
class PlansSettings:
    """Which patients are planned and how: `cases` of the split, by number from `first` on.

    `level` says at which dose: the goal sheet's, or that of each clinical plan where it is higher.
    """

    data: Path
    cases: int
    plan: PlanSettings
    first: int = 1
    split: Split = "validation"
    level: Level = "clinical"

    def __post_init__(self) -> None:
        if self.cases < 1:
            raise InputError(f"benchmark plans: {self.cases} cases are none; ask for 1 or more")
        if self.plan.prior_file is not None:
            raise InputError(
                f"benchmark plans: the prior {self.plan.prior_file.name} is the dose of one patient; give "
                "--prior goals or --prior diffusion"
            )
        if self.plan.goals != GOALS:
            raise InputError(
                f"benchmark plans: the goal sheet {self.plan.goals} is not that of OpenKBP; give {GOALS}"
            )


@dataclass(frozen=True, eq=False)
class PlansResult:
    """The plans of all patients, those that failed, and those that cannot be planned."""

    settings: PlansSettings
    patients: tuple[PlannedPatient, ...]
    failed: tuple[Rejection, ...]
    left_out: tuple[Rejection, ...]
    seconds: float

    @property
    def compared(self) -> list[PlanComparison]:
        """The comparisons, in the order of the patients."""
        return [p.comparison for p in self.patients]

    def summary(self) -> dict[str, Any]:
        """The object that `benchmark plans --json` prints."""
        settings = {**asdict(self.settings), "data": str(self.settings.data)}
        return {
            "program": program_record(),
            "settings": settings,
            "asked": self.settings.cases,
            "planned": len(self.patients),
            "failed": [asdict(r) for r in self.failed],
            "left_out": [asdict(r) for r in self.left_out],
            "seconds": round(self.seconds, 1),
            **(self._statistics() if self.patients else {}),
            "patients": [asdict(p) for p in self.patients],
        }

    def _statistics(self) -> dict[str, Any]:
        """All over the patients with a plan; a failed plan counts as one that did not pass the gate."""
        compared, plans = self.compared, self.patients
        change = organ_change(compared)
        attempts = len(plans) + len(self.failed)
        return {
            "gate": {
                "passed": sum(p.passed for p in plans),
                "of": attempts,
                "percent": 100 * sum(p.passed for p in plans) / attempts,
            },
            "violations": sum(p.violations for p in plans),
            "d95_percent": {
                **asdict(d95_difference(compared)),
                "least": min(c.d95_percent for c in compared),
                "within_1_percent": sum(c.d95_percent >= -_COVERAGE_PERCENT for c in compared),
            },
            "factor": asdict(pooled_median([[c.factor] for c in compared])),
            "organ_mean_change_percent": None if change is None else asdict(change),
            "criteria_percent": {k: asdict(v) for k, v in criteria_shares(compared).items()},
            "criteria": {k: asdict(v) for k, v in criteria_table(compared).items()},
            "metrics": {
                name: {metric: asdict(pair) for metric, pair in metrics.items()}
                for name, metrics in metric_table(compared).items()
            },
            "minutes": asdict(pooled_median([[p.minutes] for p in plans])),
            "mu": asdict(pooled_median([[p.mu] for p in plans])),
        }


def benchmark_plans(
    settings: PlansSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    tools: PlanningTools | None = None,
    progress: Progress | None = None,
) -> PlansResult:
    """Plan patients, compare each plan with the clinical dose, and write tables and box plots into `out`.

    A patient without CT or clinical dose is left out and named; one whose planning fails is named with the
    reason and tried again by the next run. The others are kept as they come, and a run that was interrupted
    goes on there; `overwrite` starts afresh. Without `out` nothing is kept. `tools` are those of `plan_case`.
    Raises InputError for settings
    or folders that cannot be used, and where no patient can be planned.
    """
    started = time.perf_counter()
    check_places(None, out)
    if out is not None:
        require_apart(out, settings.data, settings.plan.weights, settings.plan.machine, settings.plan.gate)
    report = progress or silent
    paths = [
        p for p in patients_of_split(settings.data, settings.split) if patient_number(p) >= settings.first
    ]
    if out is not None:
        _refuse_foreign(out, overwrite=overwrite)
    journal = Journal.opened(
        journal_path(None, out), _depends_on(settings), PlannedPatient, overwrite=overwrite
    )
    with kept_or_temporary(out) as folder:
        patients, failed, left_out = _plan_all(paths, settings, journal, folder, tools=tools, report=report)
    result = PlansResult(settings, patients, failed, left_out, time.perf_counter() - started)
    _refuse_empty(result, len(paths))
    if out is not None:
        write_results(out, result.summary(), patients, failed, left_out)
    return result


def _plan_all(
    paths: Sequence[Path],
    settings: PlansSettings,
    journal: Journal[PlannedPatient],
    folder: Path,
    *,
    tools: PlanningTools | None,
    report: Progress,
) -> tuple[tuple[PlannedPatient, ...], tuple[Rejection, ...], tuple[Rejection, ...]]:
    """Plans as many as are asked for: those planned or kept, those that failed, those left out."""
    patients: list[PlannedPatient] = []
    failed: list[Rejection] = []
    left_out: list[Rejection] = []
    for path in paths:
        count = len(patients) + len(failed)
        if count == settings.cases:
            break
        report(_STAGE, count / settings.cases, f"{count} of {settings.cases}, {path.stem}")
        if (kept := journal.kept(path)) is not None:
            patients.append(kept)
            continue
        try:
            training = read_plannable(path)
        except CaseError as error:
            left_out.append(rejection(path.stem, str(error)))
            continue
        told = _within(report, path.stem, count, settings.cases)
        make = partial(
            plan_patient, training, folder, settings.plan, level=settings.level, tools=tools, progress=told
        )
        made = attempted(path.stem, make)
        if isinstance(made, Rejection):
            failed.append(made)
        else:
            patients.append(journal.keep(path, made))
    report(_STAGE, 1.0, f"{len(patients)} planned, {len(failed)} failed, {len(left_out)} left out")
    return tuple(patients), tuple(failed), tuple(left_out)


def _within(report: Progress, patient: str, count: int, cases: int) -> Progress:
    """The progress of one plan as part of all."""

    def tell(stage: str, fraction: float, note: str) -> None:
        report(_STAGE, count / cases, f"{count} of {cases}, {patient}: {stage} {100 * fraction:.0f} % {note}")

    return tell


def _depends_on(settings: PlansSettings) -> dict[str, Any]:
    """What a plan depends on, beside the patient's own files."""
    from vmat_diffusion.diffusion.model import weights_path
    from vmat_diffusion.files import sha256_of

    plan = settings.plan
    used = plan.prior == "diffusion"
    weights = sha256_of(weights_path(plan.weights)) if used else None
    return {"benchmark": _STAGE, "level": settings.level, **asdict(plan), "weights": weights}


def _refuse_foreign(out: Path, *, overwrite: bool) -> None:
    """Raises InputError for a folder with files that are not of this benchmark."""
    # A run that was stopped before its first result leaves these alone.
    ours = {CASES, PLANS, "patients.jsonl"}
    foreign = sorted(p.name for p in out.iterdir() if p.name not in ours) if out.is_dir() else []
    if foreign and not (out / "patients.jsonl").is_file() and not overwrite:
        raise InputError(
            f"--out {out} holds {foreign[0]} but no results by patient; name another folder or pass "
            "--overwrite"
        )


def _refuse_empty(result: PlansResult, among: int) -> None:
    if result.patients or result.failed:
        return
    if not among:
        raise InputError(
            f"no patient of split {result.settings.split} has a number from {result.settings.first} on; give "
            "a lower --first"
        )
    first = result.left_out[0]
    raise InputError(f"none of {among} patients can be planned; {first.case}: {first.reason}; {first.remedy}")


def patient_number(path: Path) -> int:
    """The number of a patient in the challenge."""
    return int(path.stem.removeprefix("pt_"))
