"""Plan synthetic patients for goal sheets of several sites, with each sheet's defaults, through the gate.

    python benchmarks/sites.py OUT                     # six sheets, about half an hour on two cores
    python benchmarks/sites.py OUT esophagus_41_4      # one of them

OUT gets a folder for each sheet: case/ (DICOM) and plan/ (the run with its report).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import figures
import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.anatomy import synthetic_case
from vmat_diffusion.case import Case, Structure
from vmat_diffusion.dicom import write_case
from vmat_diffusion.distance import within_margin
from vmat_diffusion.evaluate.complexity import complexity
from vmat_diffusion.evaluate.goals import judge_groups, load_goals
from vmat_diffusion.machine import load_machine
from vmat_diffusion.workflow import PlanRun, plan_case
from vmat_diffusion.workflow.planning.request import plan_settings

# The sheet, and the site and seed of the synthetic patient that it is planned on.
PATIENTS = {
    "head_neck_70_63_56": ("head_neck", 3),
    "prostate_78": ("prostate", 3),
    "lung_60": ("lung", 3),
    "esophagus_41_4": ("lung", 5),
    "prostate_sbrt_36_25_5": ("prostate", 5),
    "glioblastoma_60_30": ("head_neck", 5),
}
_ESOPHAGUS_HALF_MM, _ESOPHAGUS_MARGIN_MM = 40.0, 12.0
_BRAIN_RADIUS_MM, _BRAIN_OFFSET_MM = 26.0, (28.0, -10.0, 25.0)


def patient_for(name: str) -> Case:
    """The synthetic patient of a sheet, with the target that the sheet prescribes to."""
    site, seed = PATIENTS[name]
    case, sheet = synthetic_case(site, seed), load_goals(name)
    targets = list(sheet.prescription.target_gy)
    if set(targets) <= set(case.structures):
        return case
    special = {"esophagus_41_4": _around_esophagus, "glioblastoma_60_30": _in_brain}
    mask = special[name](case) if name in special else _highest(case).mask
    clinical = () if name in special else ("CTV",)
    kept = {s.name: s for s in case.structures.values() if s.role != "target" or s.name in clinical}
    made = {**kept, targets[0]: Structure(targets[0], "target", mask & case.body.mask)}
    return replace(case, structures=made, prescription=None, id=f"{site}_{seed}")


def _highest(case: Case) -> Structure:
    """The target of the highest level."""
    assert case.prescription is not None
    levels = case.prescription.target_gy
    return case.structures[max(levels, key=lambda target: levels[target])]


def _around_esophagus(case: Case) -> NDArray[np.bool_]:
    """8 cm of the oesophagus with a margin of 12 mm."""
    organ = case.structures["Esophagus"].mask.copy()
    z = case.grid.axes_mm[2]
    middle = z[np.flatnonzero(organ.any(axis=(1, 2)))].mean()
    organ[np.abs(z - middle) > _ESOPHAGUS_HALF_MM] = False
    return within_margin(organ, _ESOPHAGUS_MARGIN_MM, case.grid.spacing_mm)


def _in_brain(case: Case) -> NDArray[np.bool_]:
    """A ball in the left half of the brain, without the brainstem."""
    brain = case.structures["Brain"].mask
    points = case.grid.points_mm(np.flatnonzero(brain))
    center = points.mean(axis=0) + np.array(_BRAIN_OFFSET_MM)
    everywhere = case.grid.points_mm(np.arange(brain.size))
    ball = ((everywhere - center) ** 2).sum(axis=1).reshape(brain.shape) <= _BRAIN_RADIUS_MM**2
    return np.asarray(ball & brain & ~case.structures["Brainstem"].mask)


def row_of(name: str, run: PlanRun, minutes: float) -> dict[str, Any]:
    """What the page says of a plan."""
    judged = [r for r in run.results if r.value is not None]
    sheet = run.task.sheet
    gy = max(sheet.prescription.target_gy.values()) / sheet.prescription.fractions
    modulation = complexity(run.plan, load_machine(run.plan.machine), gy)
    return {
        "sheet": name,
        "patient": " ".join(map(str, PATIENTS[name])),
        "gate": run.verdict.outcome.value,
        "stopped_by": [c.name for c in run.verdict.checks if c.fails or c.undecided],
        "arcs": len(run.plan.arcs),
        "goals": len(judged),
        "not_evaluated": len(run.results) - len(judged),
        "met": sum(r.status in ("pass", "acceptable") for r in judged),
        "missed": [f"{r.goal} ({r.value:.4g})" for r in judged if r.status == "fail"],
        "groups": {str(g.group.name): g.status for g in judge_groups(sheet, run.results)},
        "mu_per_gy": round(run.plan.total_mu / gy),
        "mcs": round(modulation.mcs, 3),
        "minutes": round(minutes, 1),
    }


def section() -> Iterator[str]:
    """The section of docs/benchmarks.md."""
    kept = figures.load("sites")
    if not kept:
        return
    yield ""
    yield "## Sheets of several sites"
    yield ""
    yield f"`python benchmarks/sites.py OUT`, {kept['date']}, {kept['machine']}."
    yield ""
    yield "One synthetic patient for each sheet, planned with its defaults; goals of the plan's own dose."
    if remark := kept.get("remark"):
        yield ""
        yield remark
    yield ""
    yield "| sheet | patient | gate | arcs | goals met | missed | MU/Gy | MCS | minutes |"
    yield "|---|---|---|---:|---:|---|---:|---:|---:|"
    for row in (kept["rows"][name] for name in PATIENTS if name in kept["rows"]):
        gate = row["gate"] + (f": {', '.join(row['stopped_by'])}" if row["stopped_by"] else "")
        missed = "; ".join(row["missed"]).replace("<=", "&lt;=").replace(">=", "&gt;=")
        yield (
            f"| `{row['sheet']}` | {row['patient']} | {gate} | {row['arcs']} | "
            f"{row['met']} of {row['goals']} | {missed} | "
            f"{row['mu_per_gy']} | {row['mcs']} | {row['minutes']} |"
        )


def main() -> None:
    """Plan the patients and keep their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", help="the sheets; all by default")
    given = parser.parse_args()
    for name in given.names or PATIENTS:
        case = given.out / name / "case"
        write_case(case, patient_for(name))
        begun = time.monotonic()
        run = plan_case(case, given.out / name / "plan", plan_settings(goals=name), overwrite=True)
        row = row_of(name, run, (time.monotonic() - begun) / 60)
        figures.keep_row("sites", "rows", name, row)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
