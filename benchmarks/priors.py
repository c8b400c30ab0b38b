"""Plans driven by the goals alone against plans that also aim at the predicted dose.

    python benchmarks/priors.py DATA [--cases pt_201 ...] [--weights shipped] [--max-minutes 5] [--out FILE]

DATA is a data set folder as `import openkbp` writes it. Each case is planned twice with the same
settings; doses are those of the planning engine, and no gate is asked. Kept case by case, so that an
interrupted run goes on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from computer import today
from figures import file_of, load, load_file, save_file

from vmat_diffusion.evaluate.dvh import structure_dose_gy
from vmat_diffusion.evaluate.goals import evaluate
from vmat_diffusion.evaluate.ranking import goal_score
from vmat_diffusion.evaluate.task import Task
from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import violations
from vmat_diffusion.progress import silent
from vmat_diffusion.workflow.planning.prior import prior_of
from vmat_diffusion.workflow.planning.search import search_plan
from vmat_diffusion.workflow.predict import read_input
from vmat_diffusion.workflow.settings import PlanSettings, PredictSettings

GOALS = "head_neck_70_63_56"
# The first validation patients with a CT.
CASES = ("pt_201", "pt_202", "pt_203", "pt_204", "pt_206", "pt_207")
PRIORS: tuple[Literal["goals", "diffusion"], ...] = ("goals", "diffusion")


def planned(source: Path, settings: PlanSettings) -> dict[str, Any]:
    """One plan as figures: goals, organ means, target D95, MU, time."""
    start = time.perf_counter()
    source_case = read_input(source, PredictSettings(goals=settings.goals))
    case, sheet, machine = source_case.case, source_case.sheet, load_machine(settings.machine)
    doses = () if settings.prior == "goals" else prior_of(case, sheet, settings, silent).doses
    made = search_plan(Task(case, sheet, machine), settings, silent, target=doses[0] if doses else None)
    results = evaluate(sheet, case, made.dose)
    inside = {
        s.name: structure_dose_gy(made.dose, s, case.grid) for s in case.structures.values() if s.voxels
    }
    organs = [s.name for s in case.structures.values() if s.role == "organ" and s.voxels]
    return {
        **goal_score(results).record(),
        "goals": {str(r.goal): None if r.value is None else round(r.value, 2) for r in results},
        "organ_mean_gy": {n: round(float(inside[n].mean()), 2) for n in organs},
        "d95_gy": {
            t.name: round(float(np.percentile(inside[t.name], 5)), 2) for t in case.targets if t.voxels
        },
        "mu": round(made.plan.total_mu, 1),
        "violations": len(violations(made.plan, machine)),
        "outcome": made.outcome.name,
        "minutes": round((time.perf_counter() - start) / 60, 2),
    }


def section() -> Iterator[str]:
    """The lines of docs/benchmarks.md about these plans; none without figures."""
    found = load("priors")
    if not found:
        return
    yield ""
    yield "## Plans that aim at the predicted dose"
    yield ""
    yield f"`python benchmarks/priors.py`, {found['date']}; search of at most {found['max_minutes']:g} min."
    yield "Missed goals are must/should/wish; excess is by how much all limits are missed, in percent of"
    yield "them."
    yield ""
    yield "| patient | prior | missed | excess % | organ means, Gy | MU | minutes | search |"
    yield "|---|---|---|---:|---:|---:|---:|---|"
    for patient, plans in found["plans"].items():
        for prior, p in plans.items():
            organs = p["organ_mean_gy"].values()
            mean = sum(organs) / len(organs)
            missed = f"{p['missed_must']}/{p['missed_should']}/{p['missed_wish']}"
            yield (
                f"| {patient} | {prior} | {missed} | {p['excess_percent']:.0f} | {mean:.1f} "
                f"| {p['mu']:.0f} | {p['minutes']:.1f} | {p['outcome'].lower().replace('_', ' ')} |"
            )


def main() -> None:
    """Plan what is not there yet, and print a line for each plan."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--cases", nargs="*", default=list(CASES))
    parser.add_argument("--weights", default="shipped")
    parser.add_argument("--max-minutes", type=float, default=5.0)
    parser.add_argument("--out", type=Path, default=file_of("priors"))
    asked = parser.parse_args()
    done = load_file(asked.out)
    done |= {"max_minutes": asked.max_minutes, "date": today()}
    plans = done.setdefault("plans", {})
    for name in asked.cases:
        for prior in PRIORS:
            if prior in plans.setdefault(name, {}):
                continue
            settings = PlanSettings(
                goals=GOALS, prior=prior, weights=asked.weights, search_minutes=asked.max_minutes
            )
            plans[name][prior] = planned(asked.data / f"{name}.npz", settings)
            save_file(asked.out, done)
            shown = {k: v for k, v in plans[name][prior].items() if k not in ("goals", "organ_mean_gy")}
            print(name, prior, shown, flush=True)


if __name__ == "__main__":
    main()
