"""What is wrong with a goal sheet: each kind of slip is found, and the shipped sheets have none."""

from __future__ import annotations

import numpy as np
import pytest

from vmat_diffusion.case import Case, Structure
from vmat_diffusion.evaluate.goals import GoalSheet, goal_sheet_names, load_goals, parse_goals
from vmat_diffusion.evaluate.task import fit_to_each_other
from vmat_diffusion.geometry import Grid
from vmat_diffusion.optimize.sheet_findings import Finding, sheet_findings

TEMPLATE = """
format = 2
title = "t"
site = "any"
source = "test"
current_to = "2026-11"
fractions = {fractions}
stereotactic = {stereotactic}
{head}
prescription_gy = {{ PTV_60 = {dose} }}
normalization = {{ PTV_60 = "{norm}" }}
{tables}
[[goals]]
structure = "PTV_60"
goal = "D98% >= 57 Gy"
priority = 1
source = "test"
seen = "practice"
{goals}
"""
PLAIN: dict[str, object] = {
    "fractions": 30,
    "stereotactic": "false",
    "head": "",
    "dose": 60.0,
    "norm": "D95% = 60 Gy",
    "tables": "",
}


def goal(structure: str, text: str, more: str = "", *, priority: int = 2, source: str = "test") -> str:
    return (
        f'[[goals]]\nstructure = "{structure}"\ngoal = "{text}"\npriority = {priority}\n'
        f'source = "{source}"\nseen = "practice"\n{more}\n'
    )


def sheet_of(goals: str = "", **changed: object) -> GoalSheet:
    return parse_goals(TEMPLATE.format(goals=goals, **{**PLAIN, **changed}), "mine")


def sheet_findings_of(**changed: object) -> tuple[Finding, ...]:
    return sheet_findings(sheet_of(**changed))  # type: ignore[arg-type]


def of_weight(sheet: GoalSheet, case: Case | None = None) -> list[Finding]:
    return [finding for finding in sheet_findings(sheet, case) if finding.of_weight]


def test_a_sheet_without_fault_has_no_findings() -> None:
    assert sheet_findings(sheet_of(goal("SpinalCord", "D0.03cc <= 45 Gy", priority=1))) == ()


@pytest.mark.parametrize("name", goal_sheet_names())
def test_shipped_sheets_have_nothing_to_settle(name: str) -> None:
    assert [str(finding) for finding in of_weight(load_goals(name))] == []


@pytest.mark.parametrize(
    ("sheet", "kind", "words"),
    [
        (sheet_of(goal("Rektumm", "V40Gy <= 50 %")), "name", "no table knows Rektumm; write Rectum"),
        (sheet_of(goal("Lungs - GTX", "mean <= 20 Gy")), "name", "no table knows GTX"),
        (
            sheet_of(goal("Cord_05", "max <= 45 Gy"), tables='[structures]\nCord_05 = "Myelom + 5 mm"'),
            "name",
            "no table knows Myelom",
        ),
        (
            sheet_of(goal("PTV_60", "max <= 56 Gy")),
            "conflict",
            "beside the normalisation PTV_60 D95% = 60 Gy",
        ),
        (sheet_of(goal("PTV_60", "D0.03cc <= 90 %")), "conflict", "100.0 % at the least"),
        (sheet_of(goal("PTV_60", "D99% >= 62 Gy")), "conflict", "60.0 Gy at the most"),
        (sheet_of(goal("PTV_60", "meanhot20% <= 55 Gy")), "conflict", "60.0 Gy at the least"),
        (sheet_of(goal("PTV_60", "R100% <= 0.9")), "conflict", "R100%"),
        (sheet_of(fractions=3, dose=63.0), "dose", "above the 150 Gy of 60 Gy in 3"),
        (sheet_of(fractions=60), "dose", "1 Gy per fraction, outside 1.1 to 34 Gy"),
        (sheet_of(fractions=1), "dose", "60 Gy per fraction"),
        (sheet_of(norm="D95% = 76 Gy"), "dose", "127 % of the 60 Gy"),
        (sheet_of(goal("PTV_60", "D2% >= 70 Gy")), "dose", "117 % of the 60 Gy"),
        (sheet_of(dose=62.0, norm="D95% = 62 Gy"), "dose", "PTV_60 is prescribed 62 Gy"),
        (
            sheet_of(goal("SpinalCord", "D0.03cc <= 45 Gy"), fractions=8, stereotactic="true"),
            "dose",
            "86 Gy in fractions of 2 Gy",
        ),
        (sheet_of(goal("Brainstem", "max <= 115 %")), "dose", "above all limits in use"),
        (sheet_of(goal("Rectum", "V95Gy <= 5 %")), "dose", "cannot be missed beside 60 Gy"),
        (sheet_of(goal("SpinalCord", "D0.03cc >= 45 Gy")), "goal", "asks for dose in an organ"),
        (sheet_of(goal("PTV_60", "V95% >= 0.95 %")), "goal", "write 95 % if that is meant"),
        (
            sheet_of(goal("Rectum", "V40Gy <= 50 %", source=" ")),
            "source",
            "Rectum V40Gy <= 50 % has no source",
        ),
    ],
)
def test_each_slip_is_found_with_its_remedy(sheet: GoalSheet, kind: str, words: str) -> None:
    found = [finding for finding in of_weight(sheet) if finding.kind == kind and words in finding.sentence]
    assert found, [str(f) for f in sheet_findings(sheet)]
    assert ";" in found[0].sentence and "\n" not in str(found[0])


@pytest.mark.parametrize(
    ("sheet", "words"),
    [
        (sheet_of(goal("PTV_60", "conformity95% >= 0.8")), "the search has no term for it"),
        (sheet_of(goal("SpinalCord", "max <= 14 Gy")), "far below the limits in use"),
        (sheet_of(fractions=8, dose=60.0), "set stereotactic = true"),
        (
            parse_goals(TEMPLATE.replace("priority = 1", "priority = 2").format(**PLAIN, goals=""), "mine"),
            "no goal has priority 1",
        ),
        (
            parse_goals(TEMPLATE.replace(">= 57", "<= 66").format(**PLAIN, goals=""), "mine"),
            "no goal asks for dose in PTV_60",
        ),
        (sheet_of(stereotactic="true"), "set stereotactic = false"),
        (sheet_of(goal("Liver", "mean <= 28 Gy") + goal("Liver", "mean <= 30 Gy")), "stands beside"),
        (
            sheet_of(
                goal("Kidney_L", "mean <= 15 Gy", 'group = "both"')
                + goal("Kidney_R", "mean <= 15 Gy", 'group = "both"'),
                tables='[groups.both]\nat_least = 2\npriority = 2\nsource = "x"\nseen = "practice"',
            ),
            "asks for all of its 2 goals",
        ),
    ],
)
def test_what_is_odd_is_remarked_on(sheet: GoalSheet, words: str) -> None:
    found = [finding for finding in sheet_findings(sheet) if words in finding.sentence]
    assert found and not found[0].of_weight


def test_goals_of_conditions_that_exclude_each_other_do_not_contradict() -> None:
    goals = goal("PTV_60", "D50% >= 62 Gy", 'if = "boost"') + goal(
        "PTV_60", "max <= 61 Gy", 'if = "not boost"'
    )
    sheet = sheet_of(goals, head='conditions = { boost = "a boost" }')
    assert of_weight(sheet) == []
    both = sheet_of(goals.replace("not boost", "boost"), head='conditions = { boost = "a boost" }')
    assert [finding.kind for finding in of_weight(both)] == ["conflict"]


def test_limits_by_the_targets_volume_say_nothing_without_a_case() -> None:
    assert sheet_findings(sheet_of(goal("PTV_60", "R50% <= RTOG 0915"))) == ()


@pytest.fixture(scope="module")
def case() -> Case:
    """Voxels of 1 cc: a target of 200 cc, which takes 60 cc of the liver's 600 cc and half of a parotid."""
    shape = (10, 10, 20)
    grid = Grid(shape, (10.0, 10.0, 10.0), (0.0, 0.0, 0.0))

    def structure(name: str, role: str, voxels: slice) -> Structure:
        mask = np.zeros(shape, bool)
        mask.ravel()[voxels] = True
        return Structure(name, role, mask)  # type: ignore[arg-type]

    made = [
        structure("BODY", "body", slice(0, 2000)),
        structure("PTV_60", "target", slice(100, 300)),
        structure("Liver", "organ", slice(240, 840)),
        structure("Parotid_L", "organ", slice(90, 110)),
        structure("Parotid_R", "organ", slice(900, 920)),
    ]
    return Case("c", "any", grid, np.zeros(shape, np.int16), {s.name: s for s in made})


def checked(case: Case, sheet: GoalSheet) -> list[str]:
    patient, fitted = fit_to_each_other(case, sheet)
    return [finding.sentence for finding in of_weight(fitted, patient)]


def test_a_case_shows_what_it_cannot_reach(case: Case) -> None:
    (found,) = checked(case, sheet_of(goal("Liver", "CV15Gy >= 700 cc")))
    assert "beside the volume of Liver, 600 cc: 600.0 cc at the most" in found
    (found,) = checked(case, sheet_of(goal("Liver", "CV15Gy >= 560 cc")))
    assert "beside PTV_60 D98% >= 57 Gy: 544.0 cc at the most" in found or "normalisation" in found
    assert checked(case, sheet_of(goal("Liver", "CV15Gy >= 540 cc"))) == []
    (found,) = checked(case, sheet_of(goal("Parotid_L", "mean <= 10 Gy")))
    assert 'judge it on "Parotid_L - PTV_60"' in found
    assert checked(case, sheet_of(goal("Parotid_L - PTV_60", "mean <= 10 Gy"))) == []


def test_a_group_that_can_be_met_without_it_needs_no_member(case: Case) -> None:
    tables = '[groups.either]\nat_least = {}\npriority = 2\nsource = "x"\nseen = "practice"'
    goals = "".join(goal(name, "mean <= 0.1 Gy", 'group = "either"') for name in ("Parotid_L", "Parotid_R"))
    assert checked(case, sheet_of(goals, tables=tables.format(1))) == []
    every = tables.format(1) + "\nevery = true"
    for stricter in (tables.format(2), every):
        (found,) = checked(case, sheet_of(goals, tables=stricter))
        assert found.startswith("Parotid_L")


def test_a_must_on_what_is_not_there_and_a_target_off_the_table_are_found(case: Case) -> None:
    (found,) = checked(case, sheet_of(goal("SpinalCord", "max <= 45 Gy", priority=1)))
    assert "the case has no SpinalCord; contour it or write optional = true" in found
    patient, fitted = fit_to_each_other(case, sheet_of(goal("PTV_60", "R50% <= RTOG 0915")))
    remarks = [f.sentence for f in sheet_findings(fitted, patient) if not f.of_weight]
    assert len(remarks) == 1 and "above the table's 163 cc" in remarks[0]


def test_a_wish_out_of_reach_is_a_remark(case: Case) -> None:
    sheet = sheet_of(goal("Parotid_L", "mean <= 10 Gy", priority=3))
    assert checked(case, sheet) == []
    patient, fitted = fit_to_each_other(case, sheet)
    assert any("at the least" in f.sentence for f in sheet_findings(fitted, patient))


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("MU <= 100 MU/Gy", "an open field needs 118 MU/Gy at depth"),
        ("beam-on time <= 100 s", "2 arcs of 356 deg take 119 s at full gantry speed"),
        ("open gap >= 500 mm", "leaves open 400 mm at the most"),
        ("edge <= 0.001 /mm", "an open field of 400 mm has 0.005 /mm"),
    ],
)
def test_a_limit_of_delivery_out_of_reach_is_named(said: str, found: str) -> None:
    entry = f'[[delivery]]\ngoal = "{said}"\npriority = 2\nsource = "test"\nseen = "chosen"\n'
    (finding,) = sheet_findings_of(goals=entry)
    assert finding == Finding("delivery", True, f"{said} is out of reach: {found}; relax it")
    within = entry.replace(said, "MU <= 300 MU/Gy")
    assert sheet_findings_of(goals=within) == ()
    (twice,) = sheet_findings_of(goals=within + within)
    assert not twice.of_weight and "stands beside" in twice.sentence


def test_little_time_for_a_large_fraction_is_named() -> None:
    """60 Gy in 3 fractions: 20 Gy x 118 MU/Gy at 600 MU/min take 236 s."""
    entry = '[[delivery]]\ngoal = "beam-on time <= 200 s"\npriority = 2\nsource = "t"\nseen = "chosen"\n'
    (finding,) = sheet_findings_of(goals=entry, fractions=3, stereotactic="true")
    assert "2360 MU of an open field take 236 s" in finding.sentence


def test_a_wrong_number_of_arcs_is_no_crash_here() -> None:
    entry = '[[delivery]]\ngoal = "beam-on time <= 100 s"\npriority = 2\nsource = "t"\nseen = "chosen"\n'
    (finding,) = sheet_findings_of(goals=entry, tables='[plan]\narcs = "two"')
    assert "2 arcs of 356 deg" in finding.sentence


def test_a_limit_of_delivery_without_a_source_is_named() -> None:
    (finding,) = sheet_findings_of(goals='[[delivery]]\ngoal = "MU <= 300 MU/Gy"\npriority = 2\n')
    assert (
        finding.kind == "source" and finding.of_weight and "MU <= 300 MU/Gy has no source" in finding.sentence
    )
