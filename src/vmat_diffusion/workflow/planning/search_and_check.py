"""How `plan` makes a plan that may be handed on: search, check by Monte Carlo, judge, correct.

`search_and_check` is the whole story. It searches a plan (`search.py`), writes it under a name that no
planning system imports, recomputes what that file says with the independent engine, and judges it. If only
the two engines disagree, it searches on with their difference known and judges again. RP.dcm appears with a
passed verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dose.engines import DoseEngine, deciding
from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.task import Task
from vmat_diffusion.plan import Plan, violations
from vmat_diffusion.progress import Clock, Progress, under_name
from vmat_diffusion.workflow.planning.file_doses import beam_doses, histograms
from vmat_diffusion.workflow.planning.open_check import (
    CHECK_FOLDER,
    UNJUDGED_DOSE,
    UNJUDGED_FILE,
    Keep,
    drop,
    keep_open,
    tallies_of,
)
from vmat_diffusion.workflow.planning.prior import Prior
from vmat_diffusion.workflow.planning.run_files import DOSE_FILE, PLAN_FILE
from vmat_diffusion.workflow.planning.search import PlanningTools, search_plan, search_plans
from vmat_diffusion.workflow.settings import PlanSettings

if TYPE_CHECKING:
    from vmat_diffusion.evaluate.goals import GoalResult
    from vmat_diffusion.optimize import Optimized
    from vmat_diffusion.optimize.ideal import Yardstick
    from vmat_diffusion.qa import Check, GateSettings, Verdict

# Plans judged by looser limits than the shipped ones say so in every planning system.
_LOOSE_LABEL = "LOOSE GATE"
CANDIDATE_FOLDERS = tuple(f"candidate_{k}" for k in range(16))
# The share of the time limit that a correction may take, and how many corrections there may be: the
# difference found belongs to the plan before, and where it is large, as in the air of a target, one is not
# enough.
_CORRECTION_SHARE, _CORRECTIONS = 1 / 3, 2


# The stage of a run in which its goals are measured against ideal fluence.
YARDSTICK = "yardstick"


@dataclass(frozen=True, eq=False)
class JudgedPlan:
    """A plan with the verdict of the gate.

    `check` is the independent dose that the verdict rests on, None for a plan that cannot be delivered.
    `plan` is what was judged, as its file holds it. `first_verdict` is that of the plan before it was
    corrected, None if it was not.
    """

    optimized: Optimized
    verdict: Verdict
    check: Dose | None
    plan: Plan
    first_verdict: Verdict | None = None


def search_and_check(
    folder: Path,
    task: Task,
    settings: PlanSettings,
    *,
    gate: GateSettings,
    clock: Clock,
    prior: Prior | None = None,
    improve: Plan | None = None,
    keep: Keep = Keep.PLAN_AND_CHECK,
    tools: PlanningTools | None = None,
) -> tuple[JudgedPlan, ...]:
    """Search a plan for each dose of the prior, judge it, and correct it if only the engines disagree.

    One plan, by the goals alone, if the prior holds no dose. The files of each plan go into its
    `plan_folder`. `improve` is a plan to start each search from. Ctrl-C ends a search with its best plan;
    unless `keep` says so, KeyboardInterrupt is raised then.
    """
    from vmat_diffusion.qa import smooth_difference

    prior, tools = prior or Prior(), tools or PlanningTools()
    with clock.stage("optimise"):
        searches = search_plans(task, settings, prior, improve=improve, tools=tools, progress=clock.report)
    _stop_unless_wanted([search for search, _ in searches], keep)
    clock.split("optimise", "dose", sum(search.seconds.get("dose", 0.0) for search, _ in searches))

    quick = replace(settings, search_minutes=settings.search_minutes * _CORRECTION_SHARE)
    plans = []
    for number, (optimized, target) in enumerate(searches):
        place = plan_folder(folder, number, len(searches))
        place.mkdir(exist_ok=True)
        first, difference = None, None
        for correction in range(_CORRECTIONS + 1):
            stage = "check again" if correction else "check"
            with clock.stage(stage):
                judged = judge_files(
                    place,
                    task,
                    optimized,
                    engine=tools.check_engine(task.machine, settings, correction),
                    gate=gate,
                    settings=settings,
                    earlier=prior.checks,
                    correction=correction,
                    may_go_on=keep is not Keep.NOTHING,
                    progress=under_name(clock.report, stage),
                )
            left_open = (place / CHECK_FOLDER).is_dir()
            if not judged.verdict.correctable or judged.check is None or left_open:
                break
            if correction == _CORRECTIONS:
                break
            first = first or judged.verdict
            found = smooth_difference(optimized.dose, judged.check)
            # On top of what was added to the fast engine's dose in this search.
            difference = found if difference is None else _sum(found, difference)
            with clock.stage("optimise again"):
                optimized = search_plan(
                    task,
                    quick,
                    clock.report,
                    optimizer=tools.optimizer,
                    target=target,
                    difference=difference,
                    start=optimized,
                )
        plans.append(replace(judged, first_verdict=first))
    _stop_unless_wanted([plan.optimized for plan in plans], keep)
    return tuple(plans)


def measure(
    task: Task,
    judged: JudgedPlan,
    results: Sequence[GoalResult],
    settings: PlanSettings,
    *,
    clock: Clock,
    tools: PlanningTools | None = None,
) -> Yardstick | None:
    """What ideal fluence makes of the goals of a judged plan, where the settings ask for it; else None.

    Not after Ctrl-C, unless it is always asked for: who ends a search does not wait. The time is beyond that
    of the search. Ctrl-C or a case that is too large for it costs the yardstick, not the judged plan.
    """
    made = judged.optimized
    wanted = settings.yardstick == "always" or (
        settings.yardstick == "missed"
        and any(result.missed for result in results)
        and made.outcome.name != "INTERRUPTED"
    )
    if not wanted:
        return None
    with clock.stage(YARDSTICK):
        try:
            return (tools or PlanningTools()).yardstick(
                task, made, results, settings, under_name(clock.report, YARDSTICK)
            )
        except (KeyboardInterrupt, InputError, MemoryError) as ended:
            clock.report(YARDSTICK, 1.0, f"not computed: {ended or 'interrupted'}")
            return None


def plan_folder(folder: Path, number: int, count: int) -> Path:
    """Where the files of a plan go while the run is under way: a folder of its own if there are several."""
    return folder / CANDIDATE_FOLDERS[number] if count > 1 else folder


def judge_files(
    folder: Path,
    task: Task,
    optimized: Optimized,
    *,
    engine: DoseEngine,
    gate: GateSettings,
    settings: PlanSettings,
    earlier: Sequence[Check] = (),
    correction: int = 0,
    may_go_on: bool = False,
    progress: Progress | None = None,
) -> JudgedPlan:
    """Write plan and dose into `folder`, recompute what the file says, and judge it with `earlier` checks.

    The engine gets the plan as it is read back, so that a fault in writing shows as well. The plan
    becomes RP.dcm if every check passed, else it is removed; RD.dcm then refers to no plan. Until then both
    files are sealed. A plan that the machine cannot deliver is neither written nor recomputed; its dose is
    written. What small errors of the linac do to the dose joins the verdict. Limits looser than the shipped
    ones are named in the plan's label. With `may_go_on`, Ctrl-C ends the engine as its time limit does, and
    a check that stays inconclusive can go on from what lies in `open_check`.
    """
    from vmat_diffusion.dicom import read_plan, write_dose, write_unjudged_plan
    from vmat_diffusion.qa import (
        Decision,
        Outcome,
        PlanFiles,
        judge,
        robustness_of,
        with_robustness,
        with_way_on,
    )

    case, sheet, machine = task.case, task.sheet, task.machine
    plan, dose = optimized.plan, optimized.dose
    plan = replace(plan, label=_LOOSE_LABEL if gate.looser() else settings.label)
    unjudged, unjudged_dose = folder / UNJUDGED_FILE, folder / UNJUDGED_DOSE
    for name in (PLAN_FILE, DOSE_FILE):  # of the plan before a correction
        (folder / name).unlink(missing_ok=True)
    tallies = tallies_of(folder) if may_go_on else None
    decision = Decision(case, sheet, plan, machine, dose, gate)
    dose_form: dict[str, Any] = {"bits": 16 if settings.dose_16bit else 32}
    if settings.dose_dvh:
        dose_form["histograms"] = histograms(dose, case)
    check: Dose | None = None
    files: PlanFiles | None = None
    if not violations(plan, machine):
        write_unjudged_plan(
            unjudged,
            plan,
            case,
            machine,
            prescription=sheet.prescription,
            beam_doses=beam_doses(plan, task),
            overwrite=True,
        )
        write_dose(unjudged_dose, dose, case, plan_file=unjudged, overwrite=True, **dose_form)
        files = PlanFiles(unjudged, unjudged_dose)
        ending = deciding(engine, decision.needs, tallies)
        check = ending(read_plan(unjudged, machine), case, dose.grid, progress=progress)
    verdict = judge(
        case,
        sheet,
        plan,
        machine,
        dose=dose,
        check=check,
        settings=gate,
        files=files,
        earlier_checks=earlier,
        decision=decision,
    )
    # By the plan's own engine: a plan that the independent one corrects is asked anew.
    found = robustness_of(case, sheet, plan, machine, dose, progress=progress)
    verdict = with_robustness(verdict, found, stops=gate.robustness == "stop")
    may_continue = tallies is not None and tallies.is_file() and verdict.outcome is Outcome.INCONCLUSIVE
    kept = partial(keep_open, folder, dose.grid, correction, earlier) if may_continue else None
    if may_continue:
        verdict = with_way_on(verdict, "go on with `check-again`")
    _settle(folder, plan, dose, case, verdict, dose_form=dose_form, kept=kept)
    return JudgedPlan(optimized, verdict, without_parts(check), plan)


def _settle(
    folder: Path,
    plan: Plan,
    dose: Dose,
    case: Case,
    verdict: Verdict,
    *,
    dose_form: Mapping[str, Any],
    kept: Callable[[], None] | None,
) -> None:
    """Give the sealed files in `folder` their names if the verdict has passed; else only `kept` has them."""
    from vmat_diffusion.dicom import write_dose
    from vmat_diffusion.dicom.sealed import unseal
    from vmat_diffusion.qa import release_plan

    unjudged, unjudged_dose = folder / UNJUDGED_FILE, folder / UNJUDGED_DOSE
    if verdict.passed:
        release_plan(unjudged, folder / PLAN_FILE, plan, case, verdict)
        unseal(unjudged_dose, folder / DOSE_FILE)
    else:
        write_dose(folder / DOSE_FILE, dose, case, plan_file=None, overwrite=True, **dose_form)
    if kept is not None:
        kept()
    else:
        drop(folder)
    for file in (unjudged, unjudged_dose):
        file.unlink(missing_ok=True)


def without_parts(check: Dose | None) -> Dose | None:
    """The independent dose without the parts that it is the mean of, which take many times its memory."""
    return None if check is None else replace(check, replicates_gy=None)


def _stop_unless_wanted(searches: Sequence[Optimized], keep: Keep) -> None:
    """End the run after Ctrl-C if its plan is not wanted: the optimiser has kept its best one instead."""
    if keep is not Keep.PLAN_AND_CHECK and any(one.outcome.name == "INTERRUPTED" for one in searches):
        raise KeyboardInterrupt


def _sum(dose: Dose, other: Dose) -> Dose:
    return replace(dose, gy=dose.gy + other.on(dose.grid))
