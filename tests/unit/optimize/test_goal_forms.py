"""The search acts on each new form of goal: a short search with the goal ends nearer to it than without.

On a block of water with a cubic target of 3 cm and organs on either side; the plans are coarse and short.
`benchmarks/goal_forms.py` makes better plans of larger phantoms.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_case import small_case

from vmat_diffusion.case import Case, Structure
from vmat_diffusion.evaluate.goals import GoalSheet, evaluate, judge_groups, parse_goals
from vmat_diffusion.evaluate.task import fit_to_each_other
from vmat_diffusion.machine import load_machine
from vmat_diffusion.optimize import Settings, optimize

QUICK = Settings(effort=0.2, spacing_deg=6.0, grid_mm=5.0, max_minutes=None)
HEAD = """
format = 2
title = "t"
site = "any"
source = "chosen"
fractions = 25
prescription_gy = { PTV = 50.0 }
normalization = { PTV = "D95% = 50 Gy" }
"""


def goal(structure: str, text: str, more: str = "") -> str:
    return f'[[goals]]\nstructure = "{structure}"\ngoal = "{text}"\npriority = 2\nsource = "chosen"\n{more}\n'


def block() -> Case:
    """The organ `Near` touches the target and lies in it by a voxel, `Far` is 2 cm away."""
    case = small_case()
    near, far = (np.zeros(case.grid.shape, bool) for _ in range(2))
    near[8:13, 9:15, 14:19] = True
    far[8:13, 9:15, 2:6] = True
    organs = {"Near": Structure("Near", "organ", near), "Far": Structure("Far", "organ", far)}
    kept = {name: s for name, s in case.structures.items() if name != "Core"}
    return replace(case, structures={**kept, **organs})


COVERAGE = goal("PTV", "D98% >= 47.5 Gy")
# Each form with the side on which its value must end. A fifth of Near lies in the target, where it stays hot.
FORMS = {
    "Near CV15Gy[cc]": (goal("Near", "CV15Gy >= 10 cc"), 1),
    "Near - PTV mean": (goal("Near - PTV", "mean <= 8 Gy"), -1),
    "Near meancold50%": (goal("Near", "meancold50% <= 4 Gy"), -1),
    "PTV R50%": (goal("PTV", "R50% <= 3"), -1),
    "PTV D2cm": (goal("PTV", "D2cm <= 25 %"), -1),
    "Far max[%]": (goal("Far", "max <= 15 %"), -1),
}


def posed(goals: str, head: str = "") -> tuple[Case, GoalSheet]:
    return fit_to_each_other(block(), parse_goals(HEAD + head + COVERAGE + goals, "t"))


def planned(goals: str) -> dict[str, float]:
    """What a short search for some goals reaches of all forms."""
    dose = optimize(*posed(goals), load_machine("generic_6mv"), settings=QUICK).dose
    case, every = posed("".join(text for text, _ in FORMS.values()))
    results = evaluate(every, case, dose)
    return {f"{r.goal.structure} {r.goal.metric}": r.value for r in results if r.value is not None}


@pytest.fixture(scope="module")
def unasked() -> dict[str, float]:
    return planned("")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "Near CV15Gy[cc]",
        "Near - PTV mean",
        "PTV R50%",
        pytest.param("Near meancold50%", marks=pytest.mark.slow),
        pytest.param("PTV D2cm", marks=pytest.mark.slow),
        pytest.param("Far max[%]", marks=pytest.mark.slow),
    ],
)
def test_the_search_moves_towards_the_goal(name: str, unasked: dict[str, float]) -> None:
    text, sign = FORMS[name]
    asked = planned(text)
    # By 2 % at least, which no other seed makes.
    assert sign * asked[name] > sign * unasked[name] * (1 + sign * 0.02)


def test_one_of_two_is_spared_and_the_other_is_given_up() -> None:
    """The far organ is nearer to its goal: the group is met by it alone, and the target has what it needs."""
    group = '[groups.either]\nat_least = 1\npriority = 2\nsource = "chosen"\n'
    members = [goal(name, "mean <= 8 Gy", 'group = "either"') for name in ("Near", "Far")]
    case, sheet = posed("".join(members), group)
    made = optimize(case, sheet, load_machine("generic_6mv"), settings=QUICK)
    results = evaluate(sheet, case, made.dose)
    values = {r.goal.structure: r.value for r in results}
    (either,) = judge_groups(sheet, results)
    assert either.status == "pass" and not any(r.missed for r in results)
    assert values["Far"] <= 8.0 < values["Near"]
    # A member that its group is met without is no conflict, and does not make the plan infeasible.
    assert made.conflicts == ()
