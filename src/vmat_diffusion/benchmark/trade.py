"""The benchmark of quality against MU: each case planned at several limits of MU per Gy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vmat_diffusion.benchmark.attempts import attempted
from vmat_diffusion.benchmark.journal import Journal, check_places, journal_path
from vmat_diffusion.benchmark.plans import patient_number
from vmat_diffusion.benchmark.plans_patient import read_plannable
from vmat_diffusion.benchmark.settings import TradeSettings
from vmat_diffusion.benchmark.trade_plan import (
    PlanAtLimit,
    Subject,
    openkbp_subject,
    plan_at_limit,
    row_id,
    tg119_subject,
)
from vmat_diffusion.benchmark.trade_tables import FILES, of_limits, of_tg119, write_results
from vmat_diffusion.dataset.openkbp import GOALS, patients_of_split
from vmat_diffusion.dataset.splits import Split
from vmat_diffusion.dataset.tables import Rejection, rejection
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.evaluate.delivery_goals import limit_of
from vmat_diffusion.evaluate.goals import load_goals
from vmat_diffusion.progress import Progress, silent
from vmat_diffusion.workflow import PlanningTools
from vmat_diffusion.workflow.output import require_apart
from vmat_diffusion.workflow.planning.request import plan_settings, with_asked_delivery
from vmat_diffusion.workflow.provenance import program_record

_STAGE = "trade"
_SPLIT: Split = "validation"


@dataclass(frozen=True, eq=False)
class TradeResult:
    """The plans of all cases at all limits, case by case, those that failed, and cases left out."""

    settings: TradeSettings
    plans: tuple[PlanAtLimit, ...]
    failed: tuple[Rejection, ...]
    left_out: tuple[Rejection, ...]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """The object that `benchmark trade --json` prints; `default_mu_per_gy` are the sheets' own limits."""
        sheets = {"openkbp": GOALS, **{case.name: case.goals for case in self.settings.tg119_cases()}}
        return {
            "program": program_record(),
            "settings": {**asdict(self.settings), "data": self.settings.data and str(self.settings.data)},
            "default_mu_per_gy": {name: _default_limit(goals) for name, goals in sheets.items()},
            "planned": len(self.plans),
            "failed": [asdict(r) for r in self.failed],
            "left_out": [asdict(r) for r in self.left_out],
            "seconds": round(self.seconds, 1),
            "limits": of_limits([plan for plan in self.plans if plan.comparison]),
            "tg119": of_tg119([plan for plan in self.plans if not plan.comparison]),
            "plans": [asdict(plan) for plan in self.plans],
        }


@dataclass(frozen=True)
class _Source:
    """A case that can be read: its name, its files, None where it is built in code, and how it is read."""

    name: str
    goals: str
    path: Path | None
    read: Callable[[], Subject]


def benchmark_trade(
    settings: TradeSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    tools: PlanningTools | None = None,
    progress: Progress | None = None,
) -> TradeResult:
    """Search a plan of each case at each limit, and write tables and the plot into `out`.

    A patient without CT or clinical dose is left out and named, and the next one is taken; a search that
    fails is named and tried again by the next run. The others are kept as they come, and a run that was
    interrupted goes on there, also with more limits, cases or patients; `overwrite` starts afresh. Without
    `out` nothing is kept. `tools` are those of `plan_case`.
    Raises InputError for settings or folders that cannot be used, and where no case can be planned.
    """
    started = time.perf_counter()
    check_places(None, out)
    if out is not None:
        require_apart(out, settings.data, settings.machine)
        _refuse_foreign(out, overwrite=overwrite)
    journal = Journal.opened(journal_path(None, out), _depends_on(settings), PlanAtLimit, overwrite=overwrite)
    report = progress or silent
    sources, left_out = _sources(settings, journal)
    if not sources:
        why = f"; {left_out[0].case}: {left_out[0].reason}; {left_out[0].remedy}" if left_out else ""
        raise InputError(
            f"no patient of split {_SPLIT} from number {settings.first} on can be planned; give a lower "
            f"--first{why}"
        )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    plans, failed = _plan_all(sources, settings, journal, tools=tools, report=report)
    result = TradeResult(settings, plans, failed, left_out, time.perf_counter() - started)
    if out is not None:
        write_results(out, result.summary(), plans)
    return result


def _sources(
    settings: TradeSettings, journal: Journal[PlanAtLimit]
) -> tuple[list[_Source], tuple[Rejection, ...]]:
    """The cases to be planned, patients first, and the patients that cannot be."""
    found: list[_Source] = []
    left_out: list[Rejection] = []
    paths = patients_of_split(settings.data, _SPLIT) if settings.data is not None else ()
    for path in paths:
        if len(found) == settings.count or patient_number(path) < settings.first:
            continue
        source = _Source(path.stem, GOALS, path, partial(openkbp_subject, path))
        try:
            if _kept(source, settings, journal) is None:
                read_plannable(path)
        except CaseError as error:
            left_out.append(rejection(path.stem, str(error)))
            continue
        found.append(source)
    for case in settings.tg119_cases():
        found.append(_Source(case.name, case.goals, None, partial(tg119_subject, case)))
    return found, tuple(left_out)


def _kept(
    source: _Source, settings: TradeSettings, journal: Journal[PlanAtLimit]
) -> dict[float | None, PlanAtLimit] | None:
    """All plans of a case where each is kept, else None."""
    kept = {limit: _kept_plan(source, limit, settings, journal) for limit in settings.mu_per_gy}
    whole = {limit: plan for limit, plan in kept.items() if plan is not None}
    return whole if len(whole) == len(kept) else None


def _kept_plan(
    source: _Source, limit: float | None, settings: TradeSettings, journal: Journal[PlanAtLimit]
) -> PlanAtLimit | None:
    """A kept plan; one without gamma is searched again where gamma is asked for."""
    plan = journal.kept(source.path, row_id(source.name, limit))
    return None if plan is None or (settings.gamma and plan.gamma_percent is None) else plan


def _plan_all(
    sources: Sequence[_Source],
    settings: TradeSettings,
    journal: Journal[PlanAtLimit],
    *,
    tools: PlanningTools | None,
    report: Progress,
) -> tuple[tuple[PlanAtLimit, ...], tuple[Rejection, ...]]:
    """The plans, kept or searched, and those that failed. Progress counts those that are searched."""
    found = {
        (source.name, limit): _kept_plan(source, limit, settings, journal)
        for source in sources
        for limit in settings.mu_per_gy
    }
    to_search, done = sum(plan is None for plan in found.values()), 0
    failed: list[Rejection] = []
    for source in sources:
        missing = [limit for limit in settings.mu_per_gy if found[source.name, limit] is None]
        if not missing:
            continue
        subject = source.read()
        for limit in missing:
            name = row_id(source.name, limit)
            head = f"{done} of {to_search} searched, {name}"
            report(_STAGE, done / to_search, head)
            told = _within(report, head, done / to_search)
            asked = settings.of_plan(source.goals, limit)
            search = partial(plan_at_limit, subject, limit, asked, gamma=settings.gamma)
            made = attempted(name, partial(search, tools=tools, progress=told))
            done += 1
            if isinstance(made, Rejection):
                failed.append(made)
            else:
                found[source.name, limit] = journal.keep(source.path, made)
    plans = tuple(plan for plan in found.values() if plan is not None)
    report(_STAGE, 1.0, f"{len(plans)} plans, {len(failed)} failed")
    return plans, tuple(failed)


def _within(report: Progress, head: str, done: float) -> Progress:
    """The progress of one search as part of all."""

    def tell(stage: str, fraction: float, note: str) -> None:
        report(_STAGE, done, f"{head}: {stage} {100 * fraction:.0f} % {note}")

    return tell


def _default_limit(goals: str) -> float | None:
    """The limit of MU per Gy that a plan by a sheet has by default."""
    return limit_of(with_asked_delivery(load_goals(goals), plan_settings(goals=goals)).delivery, "MU")


def _depends_on(settings: TradeSettings) -> Mapping[str, Any]:
    """What every plan depends on, beside its limit and the case's own files."""
    shared = ("machine", "seed", "search_minutes", "uncertainty", "check_minutes")
    values = asdict(settings)
    return {"benchmark": _STAGE, **{name: values[name] for name in shared}, "weights": None}


def _refuse_foreign(out: Path, *, overwrite: bool) -> None:
    """Raises InputError for a folder with files that are not of this benchmark."""
    ours = {"patients.jsonl", *FILES}
    foreign = sorted(p.name for p in out.iterdir() if p.name not in ours) if out.is_dir() else []
    if foreign and not (out / "patients.jsonl").is_file() and not overwrite:
        raise InputError(
            f"--out {out} holds {foreign[0]} but no results of plans; name another folder or pass --overwrite"
        )
