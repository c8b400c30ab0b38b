"""Plan small phantoms with and without one goal of each new form: what the search makes of the goal.

    python benchmarks/goal_forms.py                # all, about ten minutes on two cores
    python benchmarks/goal_forms.py parotids       # one of them

Each phantom is made so that the goal decides: without it the plan misses it, with it the search must give
something up. The plans are coarse: 5 mm dose grid, 6 degrees between control points, a quarter of
the iterations.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import figures
import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Case, Role, Structure
from vmat_diffusion.evaluate.goals import GoalSheet, evaluate, judge_groups, parse_goals
from vmat_diffusion.evaluate.task import fit_to_each_other
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import load_machine
from vmat_diffusion.optimize import Settings, optimize

SETTINGS = Settings(effort=0.2, spacing_deg=6.0, grid_mm=5.0, max_minutes=None)
_LUNG_HU = -749  # 0.26 g/cm3


@dataclass(frozen=True)
class Question:
    """A phantom, a sheet, and the goals that are left out to see what they do.

    `without` names the plans that are made beside the one with all goals: for each the structures whose goals
    are left out, or None where the goals stay and stand alone instead of in their group.
    """

    name: str
    case: Callable[[], Case]
    sheet: str
    without: Mapping[str, tuple[str, ...] | None]
    shown: tuple[str, ...]


def _grid(size_mm: Sequence[float], spacing_mm: float = 4.0) -> Grid:
    counts = [int(np.ceil(length / spacing_mm)) for length in size_mm]
    origin = tuple(-(n - 1) / 2 * spacing_mm for n in counts)
    return Grid(tuple(counts[::-1]), (spacing_mm,) * 3, origin)  # type: ignore[arg-type]


def _ellipsoid(grid: Grid, center: Sequence[float], semi_mm: Sequence[float]) -> NDArray[np.bool_]:
    x, y, z = grid.axes_mm
    axes = (x[None, None, :], y[None, :, None], z[:, None, None])
    terms = (((a - c) / s) ** 2 for a, c, s in zip(axes, center, semi_mm, strict=True))
    return np.asarray(sum(terms, np.zeros(grid.shape)) <= 1)


def _case(
    name: str, grid: Grid, masks: Mapping[str, tuple[Role, NDArray[np.bool_]]], lung: str | None = None
) -> Case:
    """Water in BODY, lung in `lung`, air outside; organs do not leave the body."""
    body = masks["BODY"][1]
    hu = np.where(body, 0, -1000).astype(np.int16)
    if lung is not None:
        hu[masks[lung][1] & body] = _LUNG_HU
    structures = {key: Structure(key, role, mask & body) for key, (role, mask) in masks.items()}
    return Case(name, name, grid, hu, structures)


def parotids() -> Case:
    """A target across the midline that reaches into the left parotid and ends 1.4 cm before the right one."""
    grid = _grid((176.0, 200.0, 112.0))
    return _case(
        "parotids",
        grid,
        {
            "BODY": ("body", _ellipsoid(grid, (0, 0, 0), (80.0, 92.0, 1e3))),
            "PTV_60": ("target", _ellipsoid(grid, (10, 0, 0), (40.0, 26.0, 28.0))),
            "Parotid_L": ("organ", _ellipsoid(grid, (56, 4, 4), (14.0, 22.0, 22.0))),
            "Parotid_R": ("organ", _ellipsoid(grid, (-56, 4, 4), (14.0, 22.0, 22.0))),
            "SpinalCord": ("organ", _ellipsoid(grid, (0, 52, 0), (6.0, 6.0, 1e3))),
        },
    )


def lungs() -> Case:
    """A tumour of 65 cc in the right lung, which is contoured with it."""
    grid = _grid((340.0, 224.0, 176.0))
    right = _ellipsoid(grid, (-85, 0, 0), (55.0, 75.0, 80.0))
    left = _ellipsoid(grid, (85, 0, 0), (55.0, 75.0, 80.0))
    tumour = _ellipsoid(grid, (-75, 5, 0), (25.0, 25.0, 25.0))
    made = _case(
        "lungs",
        grid,
        {
            "BODY": ("body", _ellipsoid(grid, (0, 0, 0), (162.0, 106.0, 1e3))),
            "PTV_60": ("target", _ellipsoid(grid, (-75, 5, 0), (33.0, 33.0, 33.0))),
            "GTV": ("target", tumour),
            "Lung_L": ("organ", left),
            "Lung_R": ("organ", right),
            "air": ("other", (left | right) & ~tumour),
            "SpinalCord": ("organ", _ellipsoid(grid, (0, 60, 0), (6.0, 6.0, 1e3))),
        },
        lung="air",
    )
    return replace(made, structures={k: s for k, s in made.structures.items() if k != "air"})


def liver() -> Case:
    """A target of 65 cc in a liver of about 1070 cc."""
    grid = _grid((300.0, 220.0, 176.0))
    return _case(
        "liver",
        grid,
        {
            "BODY": ("body", _ellipsoid(grid, (0, 0, 0), (142.0, 102.0, 1e3))),
            "PTV_50": ("target", _ellipsoid(grid, (-45, -5, 0), (25.0, 25.0, 25.0))),
            "Liver": ("organ", _ellipsoid(grid, (-55, -10, 0), (72.0, 62.0, 57.0))),
        },
    )


def sphere() -> Case:
    """A target of 34 cc in the middle of a water cylinder."""
    grid = _grid((220.0, 220.0, 140.0))
    return _case(
        "sphere",
        grid,
        {
            "BODY": ("body", _ellipsoid(grid, (0, 0, 0), (100.0, 100.0, 1e3))),
            "PTV_50": ("target", _ellipsoid(grid, (0, 0, 0), (20.0, 20.0, 20.0))),
        },
    )


def _sheet(target: str, gy: float, fractions: int, rest: str, head: str = "") -> str:
    """A sheet with coverage and hot dose of one target, and more."""
    return f"""
format = 2
title = "one form of goal"
site = "phantom"
source = "benchmarks/goal_forms.py"
fractions = {fractions}
{head}
[prescription_gy]
{target} = {gy}
[normalization]
{target} = "D95% = {gy} Gy"
[[goals]]
structure = "{target}"
goal = "D98% >= {0.95 * gy} Gy"
priority = 1
source = "chosen"
seen = "practice"
[[goals]]
structure = "{target}"
goal = "D2% <= {1.1 * gy} Gy"
priority = 2
source = "chosen"
seen = "practice"
{rest}
"""


def _goal(structure: str, text: str, priority: int = 2, more: str = "") -> str:
    return (
        f'[[goals]]\nstructure = "{structure}"\ngoal = "{text}"\npriority = {priority}\n'
        f'source = "chosen"\nseen = "practice"\n{more}\n'
    )


_EITHER = '[groups.parotids]\nat_least = 1\npriority = 2\nsource = "chosen"\nseen = "practice"\n'
_MEMBER = 'group = "parotids"'
QUESTIONS = (
    Question(
        "parotids",
        parotids,
        _sheet(
            "PTV_60",
            60.0,
            30,
            _EITHER
            + _goal("Parotid_L", "mean <= 20 Gy", more=_MEMBER)
            + _goal("Parotid_R", "mean <= 20 Gy", more=_MEMBER)
            + _goal("SpinalCord", "D0.03cc <= 45 Gy", 1),
        ),
        {"no goal on them": ("Parotid_L", "Parotid_R"), "each by itself": None},
        ("PTV_60 D98%", "PTV_60 D2%", "Parotid_L mean", "Parotid_R mean"),
    ),
    Question(
        "lungs",
        lungs,
        _sheet(
            "PTV_60",
            60.0,
            30,
            '[structures]\nLungs = "Lung_L + Lung_R"\n'
            + _goal("Lungs - GTV", "V20Gy <= 15 %")
            + _goal("SpinalCord", "D0.03cc <= 45 Gy", 1),
        ),
        {"no goal on it": ("Lungs-GTV",)},
        ("PTV_60 D98%", "PTV_60 D2%", "Lungs-GTV V20Gy"),
    ),
    Question(
        "liver",
        liver,
        _sheet("PTV_50", 50.0, 5, _goal("Liver", "CV15Gy >= 700 cc")),
        {"no goal on it": ("Liver",)},
        ("PTV_50 D98%", "PTV_50 D2%", "Liver CV15Gy[cc]"),
    ),
    Question(
        "sphere",
        sphere,
        _sheet(
            "PTV_50", 50.0, 5, _goal("PTV_50", "R50% <= RTOG 0915") + _goal("PTV_50", "D2cm <= RTOG 0915")
        ),
        {"no goal on them": ("PTV_50 R50%", "PTV_50 D2cm")},
        ("PTV_50 D98%", "PTV_50 D2%", "PTV_50 R50%", "PTV_50 D2cm"),
    ),
)


def posed(question: Question) -> tuple[Case, GoalSheet]:
    """The case and the sheet with all goals, fitted to each other."""
    return fit_to_each_other(question.case(), parse_goals(question.sheet, question.name))


def variants(question: Question, sheet: GoalSheet) -> Iterator[tuple[str, GoalSheet]]:
    """The sheet with all goals, and those of which goals are left out or stand alone."""
    yield "with the goal", sheet
    for words, left_out in question.without.items():
        if left_out is None:
            alone = tuple(replace(goal, group=None) for goal in sheet.goals)
            yield words, replace(sheet, goals=alone, groups={})
        else:
            kept = tuple(g for g in sheet.goals if not f"{g.structure} {g.metric}".startswith(left_out))
            yield words, replace(sheet, goals=kept)


def answered(question: Question, settings: Settings = SETTINGS) -> list[dict[str, Any]]:
    """A plan for each variant, judged by the sheet with all goals."""
    case, sheet = posed(question)
    machine = load_machine("generic_6mv")
    rows = []
    for words, variant in variants(question, sheet):
        made = optimize(case, variant, machine, settings=settings)
        results = evaluate(sheet, case, made.dose)
        rows.append(
            {
                "plan": words,
                "values": {f"{r.goal.structure} {r.goal.metric}": r.value for r in results},
                "status": {f"{r.goal.structure} {r.goal.metric}": r.status for r in results},
                "groups": {str(g.group): g.status for g in judge_groups(sheet, results)},
                "missed": [str(r.goal) for r in results if r.missed],
                "outcome": made.outcome.name,
                "mu": round(made.plan.total_mu),
            }
        )
    return rows


def section() -> Iterator[str]:
    """The section of docs/benchmarks.md."""
    kept = figures.load("goal_forms")
    if not kept:
        return
    yield ""
    yield "## Forms of goals"
    yield ""
    yield f"`python benchmarks/goal_forms.py`, {kept['date']}, {kept['machine']}."
    yield ""
    yield "Small phantoms on which one goal decides, planned with and without it; coarse plans. A value that"
    yield "misses its goal is marked with `!`."
    for question in QUESTIONS:
        if (rows := kept["questions"].get(question.name)) is None:
            continue
        case = question.case
        yield ""
        yield f"**{question.name}**: {(case.__doc__ or '').strip()}"
        yield ""
        yield f"| plan | {' | '.join(question.shown)} | MU |"
        yield f"|---|{'---|' * (len(question.shown) + 1)}"
        for row in rows:
            yield f"| {row['plan']} | {' | '.join(_shown(row, question))} | {row['mu']} |"
        for group in rows[0]["groups"]:
            met = [row["plan"] for row in rows if row["groups"][group] == "pass"]
            yield ""
            yield f"*{group}* is met by: {', '.join(met) or 'none'}."


def _shown(row: Mapping[str, Any], question: Question) -> Iterator[str]:
    """The values of the metrics that are shown, marked where one misses its goal."""
    for name in question.shown:
        status = row["status"][name]
        yield f"{row['values'][name]:.4g}{'!' if status == 'fail' else ''}"


def main() -> None:
    """Make the plans and keep their figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", help="the phantoms; all by default")
    names = parser.parse_args().names or [question.name for question in QUESTIONS]
    for question in QUESTIONS:
        if question.name in names:
            rows = answered(question)
            figures.keep_row("goal_forms", "questions", question.name, rows)
            for row in rows:
                print(question.name, row["plan"], *_shown(row, question), row["outcome"], flush=True)


if __name__ == "__main__":
    main()
