"""The gap benchmark: what plans lose between ideal fluence and leaves, stage by stage."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from vmat_diffusion import __version__
from vmat_diffusion.benchmark.plans_patient import read_plannable
from vmat_diffusion.benchmark.settings import GapSettings
from vmat_diffusion.benchmark.tg119_cases import Tg119Case
from vmat_diffusion.dataset.openkbp import GOALS, patients_of_split
from vmat_diffusion.dataset.raw_cases import files_key, listing
from vmat_diffusion.dataset.tables import Rejection, rejection
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.evaluate.goals import load_goals
from vmat_diffusion.evaluate.task import Task
from vmat_diffusion.files import parse_json, write_json, written_whole
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.optimize.ideal import STAGES, prepared_for, stage_doses
from vmat_diffusion.phantom import phantom
from vmat_diffusion.progress import Progress, silent
from vmat_diffusion.workflow.output import kept_or_temporary, require_apart
from vmat_diffusion.workflow.planning.request import plan_settings
from vmat_diffusion.workflow.planning.search import optimizer_settings, search_plan
from vmat_diffusion.workflow.provenance import program_record

SUMMARY_JSON = "gap.json"
# Of a smaller gap shares say nothing: samples and voxels differ by as much.
_LEAST_GAP_GY = 0.5
# What lies between two stages.
LOSSES = ("sectors", "price of modulation", "leaves")


@dataclass(frozen=True)
class CaseGap:
    """A case with its organ means in Gy and the values of its goals at every stage; MU per fraction.

    All stages are judged at the same sampled points, normalised as the sheet asks.
    """

    id: str
    goals: str
    organ_means_gy: Mapping[str, Mapping[str, float]]
    goal_values: Mapping[str, Mapping[str, float]]
    mu: float
    mu_per_gy: float
    outcome: str
    minutes: float


@dataclass(frozen=True)
class Gap:
    """Stages of one dose of an organ: the distance from ideal to delivered, and the share of each loss.

    `percent` has a number for each of `LOSSES`; None where the gap is too small to be shared out.
    """

    what: str
    values: tuple[float, ...]
    gap: float
    percent: tuple[float, ...] | None


def gap_of(what: str, stages: Mapping[str, float]) -> Gap:
    """The gap of a dose in Gy at all stages."""
    values = tuple(stages[stage] for stage in STAGES)
    gap = values[-1] - values[0]
    lost = np.diff(values)
    percent = tuple(float(100 * part / gap) for part in lost) if abs(gap) >= _LEAST_GAP_GY else None
    return Gap(what, values, gap, percent)


@dataclass(frozen=True, eq=False)
class GapResult:
    """The gaps of all cases, and those that could not be planned."""

    settings: GapSettings
    cases: tuple[CaseGap, ...]
    failed: tuple[Rejection, ...]

    def pooled(self) -> list[Gap]:
        """For each organ the mean over the OpenKBP patients who have it, and over all organs."""
        patients = [case for case in self.cases if case.goals == GOALS]
        organs = dict.fromkeys(name for case in patients for name in case.organ_means_gy)
        found = [
            gap_of(f"{organ} mean, {len(own)} patients", _mean(own))
            for organ in organs
            if (own := [c.organ_means_gy[organ] for c in patients if organ in c.organ_means_gy])
        ]
        every = [means for case in patients for means in case.organ_means_gy.values()]
        return [*found, gap_of("all organ means", _mean(every))] if every else []

    def summary(self) -> dict[str, Any]:
        """The object that `benchmark gap --json` prints."""
        data = str(self.settings.data) if self.settings.data else None
        return {
            "program": program_record(),
            "settings": {**asdict(self.settings), "data": data},
            "stages": STAGES,
            "losses": LOSSES,
            "pooled": [asdict(gap) for gap in self.pooled()],
            "cases": [{**asdict(case), "gaps": [asdict(g) for g in gaps_of(case)]} for case in self.cases],
            "failed": [asdict(r) for r in self.failed],
        }


def _mean(of_stages: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {stage: float(np.mean([values[stage] for values in of_stages])) for stage in STAGES}


def gaps_of(case: CaseGap) -> list[Gap]:
    """The gaps of a case: means of organs, then its goals in Gy but for means."""
    gaps = [gap_of(f"{organ} mean", means) for organ, means in case.organ_means_gy.items()]
    for goal, values in case.goal_values.items():
        if goal.endswith(" Gy") and " mean " not in goal:
            gaps.append(gap_of(goal, values))
    return gaps


def benchmark_gap(
    settings: GapSettings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> GapResult:
    """Plan cases, and compute their free and priced fluence; nothing is recomputed by Monte Carlo.

    `out` gets a file for each case as it is done, where a stopped run goes on, and a summary; `overwrite`
    plans again. A patient without CT or clinical dose is named, and the next one is taken. Raises InputError
    for settings or folders that cannot be used, for a case in `out` that was planned otherwise, and where no
    case can be planned.
    """
    if out is not None:
        require_apart(out, settings.data, settings.machine)
    report = progress or silent
    wanted = list(_wanted(settings))
    asked = len(settings.phantoms) + (settings.count if settings.data else 0)
    done: list[CaseGap] = []
    failed: list[Rejection] = []
    with kept_or_temporary(out) as folder:
        for name, key, goals, read in wanted:
            if len(done) == asked:
                break
            head = {"version": __version__, "input": key, **settings.of_plan(goals)}
            file = folder / f"{name}.json"
            found = None if overwrite else _kept(file, head)
            if found is None:
                try:
                    found = _measured(name, read(), settings, _within(report, name, len(done), asked))
                except CaseError as error:
                    failed.append(rejection(name, str(error)))
                    continue
                with written_whole(file) as part:
                    write_json(part, {"head": head, "result": asdict(found)})
            done.append(found)
        report("gap", 1.0, f"{len(done)} measured, {len(failed)} failed")
        if not done:
            first = failed[0]
            raise InputError(
                f"none of {len(failed)} cases can be planned; {first.case}: {first.reason}; {first.remedy}"
            )
        result = GapResult(settings, tuple(done), tuple(failed))
        with written_whole(folder / SUMMARY_JSON) as part:
            write_json(part, result.summary())
    return result


def _within(report: Progress, name: str, count: int, cases: int) -> Progress:
    """The progress of one case as part of all."""

    def tell(stage: str, fraction: float, note: str) -> None:
        report("gap", count / cases, f"{count} of {cases}, {name}: {stage} {100 * fraction:.0f} % {note}")

    return tell


_Wanted = tuple[str, str, str, Callable[[], Task]]


def _wanted(settings: GapSettings) -> Iterator[_Wanted]:
    """Name, key of the input, goal sheet and reader of each case."""
    from vmat_diffusion.benchmark.tg119_cases import CASES

    machine = load_machine(settings.machine)
    for name in settings.phantoms:
        case = CASES[name]
        yield name, case.phantom, case.goals, partial(_phantom_task, case, machine)
    if settings.data is None:
        return
    paths = [p for p in patients_of_split(settings.data, "validation") if _number(p) >= settings.first]
    if not paths:
        raise InputError(
            f"no patient of split validation has a number from {settings.first} on; give a lower --first"
        )
    for path in paths:
        yield path.stem, _key(path), GOALS, partial(_patient_task, path, machine)


def _phantom_task(case: Tg119Case, machine: Machine) -> Task:
    return Task.fitted(phantom(case.phantom), case.sheet(), machine)


def _patient_task(path: Path, machine: Machine) -> Task:
    return Task.fitted(read_plannable(path).case, load_goals(GOALS), machine)


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("pt_"))


def _key(patient: Path) -> str:
    folder, files = (patient, listing(patient)) if patient.is_dir() else (patient.parent, [patient.name])
    return files_key(folder, files)


def _kept(file: Path, head: Mapping[str, Any]) -> CaseGap | None:
    """The result of an earlier run, None where there is none; InputError for one of other settings."""
    if not file.is_file():
        return None
    try:
        record = parse_json(file.read_text(encoding="utf-8"))
        before = dict(record["head"])
        found = TypeAdapter(CaseGap).validate_python(record["result"])
    except (ValueError, KeyError, TypeError, ValidationError):
        raise InputError(f"{file} is no result of this benchmark; name another folder or remove it") from None
    now = json.loads(json.dumps(head))
    changed = [name for name in (*now, *before) if now.get(name) != before.get(name)]
    if changed:
        raise InputError(
            f"{file} is of another {changed[0]}; pass --overwrite to plan it again or name another folder"
        )
    return found


def _measured(name: str, task: Task, asked: GapSettings, progress: Progress) -> CaseGap:
    """Search the plan of a case and compute all its stages."""
    began = time.monotonic()
    chosen = plan_settings(**asked.of_plan(task.sheet.name))
    made = search_plan(task, chosen, progress)
    prepared = prepared_for(task, made, optimizer_settings(chosen, task.sheet, task.machine), progress)
    stages = stage_doses(prepared, made)
    goals: dict[str, dict[str, float]] = {}
    for stage in STAGES:
        for words, value in stages.goals(stage).items():
            goals.setdefault(words, {})[stage] = round(value, 3)
    fraction_gy = max(task.sheet.prescription.target_gy.values()) / made.plan.fractions
    return CaseGap(
        id=name,
        goals=task.sheet.name,
        organ_means_gy=stages.organ_means_gy(),
        goal_values={words: values for words, values in goals.items() if len(values) == len(STAGES)},
        mu=round(made.plan.total_mu, 1),
        mu_per_gy=round(made.plan.total_mu / fraction_gy, 1),
        outcome=made.outcome.name,
        minutes=round((time.monotonic() - began) / 60, 2),
    )
