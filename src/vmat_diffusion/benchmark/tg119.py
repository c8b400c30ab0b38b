"""The TG-119 benchmark: its cases planned on the common road, gated, and scored beside the report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vmat_diffusion import __version__
from vmat_diffusion.benchmark.settings import Tg119Settings
from vmat_diffusion.benchmark.tg119_cases import SOURCE, ScoredGoal, Tg119Case
from vmat_diffusion.errors import InputError
from vmat_diffusion.files import content_hash, parse_json
from vmat_diffusion.progress import Progress, silent
from vmat_diffusion.workflow import PlanningTools, plan_case
from vmat_diffusion.workflow.output import appearing_whole, kept_or_temporary
from vmat_diffusion.workflow.planning.open_check import Keep
from vmat_diffusion.workflow.provenance import program_record, settings_record
from vmat_diffusion.workflow.settings import PlanSettings


@dataclass(frozen=True, eq=False)
class CaseResult:
    """One case: its goals beside the published ones, and the record of its planning run, `run.json`."""

    case: Tg119Case
    goals: tuple[ScoredGoal, ...]
    run: Mapping[str, Any]

    @property
    def gated(self) -> bool:
        """Whether the plan went through the gate."""
        return bool(self.run["verdict"]["passed"])

    @property
    def passed(self) -> bool:
        """Whether every goal is reached and the plan went through the gate."""
        return self.gated and all(goal.reaches_goal for goal in self.goals)

    @property
    def passed_by_published_mean(self) -> bool:
        """As `passed`, but the published mean is enough where the report's institutions missed a goal."""
        return self.gated and all(goal.reaches_goal_or_mean for goal in self.goals)

    @property
    def minutes(self) -> float:
        """Wall clock of the whole run: reading, optimising, checking, writing, report."""
        return float(sum(self.run["seconds"].values())) / 60

    def summary(self) -> dict[str, Any]:
        """Plain data."""
        copied = ("mu", "delivery_s", "outcome", "violations", "seconds")
        return {
            "name": self.case.name,
            "passed": self.passed,
            "passed_by_published_mean": self.passed_by_published_mean,
            "goals": [goal.record() for goal in self.goals],
            "sizes": [{"size": s.what, "verified": s.verified, "source": s.source} for s in self.case.sizes],
            "minutes": round(self.minutes, 3),
            **{name: self.run[name] for name in copied},
            "gate": self.run["verdict"],
        }


@dataclass(frozen=True, eq=False)
class Tg119Result:
    """The results of all cases that were asked for, in the report's order."""

    settings: Tg119Settings
    cases: tuple[CaseResult, ...]

    def summary(self) -> dict[str, Any]:
        """The object that `benchmark tg119 --json` prints."""
        return {
            "program": program_record(),
            "settings": {**asdict(self.settings), "cases": [c.name for c in self.settings.wanted()]},
            "published": SOURCE,
            "published_verified": all(goal.published.verified for case in self.cases for goal in case.goals),
            "passed": sum(case.passed for case in self.cases),
            "passed_by_published_mean": sum(case.passed_by_published_mean for case in self.cases),
            "cases": [case.summary() for case in self.cases],
        }


def benchmark_tg119(
    settings: Tg119Settings,
    *,
    out: Path | None = None,
    overwrite: bool = False,
    tools: PlanningTools | None = None,
    progress: Progress | None = None,
) -> Tg119Result:
    """Plan the cases and score them; `out/NAME/plan` has the files of `plan`, `out/NAME/case` the phantom.

    A case whose plan is in `out` already is scored as it is; `overwrite` plans it again. Without `out`
    nothing is kept. `tools` are those of `plan_case`. Ctrl-C ends the run and keeps the finished cases, not
    the one that is being planned. Raises InputError for settings that cannot be used, or a plan in `out` that
    was made with others.
    """
    report = progress or silent
    wanted = settings.wanted()
    asked = {case.name: settings.of_plan(case) for case in wanted}
    done: list[CaseResult] = []
    with kept_or_temporary(out) as folder:
        places = {case.name: folder / case.name for case in wanted}
        kept: dict[str, dict[str, Any] | None] = {}
        if not overwrite:  # what is in the way of a later case is said before time goes into an earlier one
            kept = {c.name: _kept(c, places[c.name], asked[c.name]) for c in wanted}
        for count, case in enumerate(wanted, start=1):
            run = kept.get(case.name)
            if run is None:
                run = _plan(
                    case, places[case.name], asked[case.name], report, overwrite=overwrite, tools=tools
                )
            done.append(CaseResult(case, case.scored(_values(run)), run))
            so_far = f"{count} of {len(wanted)}, {sum(one.passed for one in done)} passed"
            report("benchmark", count / len(wanted), so_far)
    return Tg119Result(settings, tuple(done))


def _plan(
    case: Tg119Case,
    folder: Path,
    settings: PlanSettings,
    report: Progress,
    *,
    overwrite: bool,
    tools: PlanningTools | None,
) -> dict[str, Any]:
    """Write the phantom as DICOM, plan it, and return what the run has recorded."""
    from vmat_diffusion.dicom import files_of_case, write_case
    from vmat_diffusion.phantom import phantom

    files = folder / "case"
    made = phantom(case.phantom)
    before = files_of_case(files, made)
    with appearing_whole(files, overwrite=True, names=before, listed=before) as part:
        write_case(part, made)

    def of_case(stage: str, fraction: float, note: str) -> None:
        report(f"{case.name}: {stage}", fraction, note)

    plan_case(
        files,
        folder / "plan",
        settings,
        overwrite=overwrite,
        keep=Keep.NOTHING,
        tools=tools,
        progress=of_case,
    )
    return _record(folder)


def _record(folder: Path) -> dict[str, Any]:
    return dict(parse_json((folder / "plan" / "run.json").read_text(encoding="utf-8")))


def _kept(case: Tg119Case, folder: Path, settings: PlanSettings) -> dict[str, Any] | None:
    """The record of a finished plan, None where there is none; InputError for one of other settings."""
    file = folder / "plan" / "run.json"
    if not file.is_file():
        return None
    try:
        record = _record(folder)
        before = {
            "version": record["program"]["version"],
            "phantom": record["inputs"]["sha256"],
            "goal sheet": list(_values(record)),
            **record["settings"],
        }
        if not {"seconds", "verdict", "mu"} <= set(record):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{file} is no record of a plan; name another folder or remove it") from None
    now = {
        "version": __version__,
        "phantom": content_hash(folder / "case"),
        "goal sheet": [(goal.structure, goal.statement) for goal in case.sheet().goals],
        **json.loads(json.dumps(settings_record(settings))),
    }
    changed = [name for name in (*now, *before) if now.get(name) != before.get(name)]
    if changed:
        raise InputError(
            f"{folder} holds a plan of another {changed[0]}; pass --overwrite to plan it again or name "
            "another folder"
        )
    return record


def _values(run: Mapping[str, Any]) -> dict[tuple[str, str], float | None]:
    """The value of each goal by structure and statement."""
    return {(goal["structure"], goal["goal"]): goal["value"] for goal in run["goals"]}
