"""What is wrong with a goal sheet, as far as it can be told before anything is planned.

Names that no table knows, goals that contradict each other or are out of reach for a case, doses that do not
fit the fractionation, numbers without a source. Each finding is one sentence with the remedy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vmat_diffusion.case import Case
from vmat_diffusion.dicom.names import NameTable, default_table
from vmat_diffusion.evaluate.delivery_goals import DeliveryGoal
from vmat_diffusion.evaluate.fractionation import eqd2_gy
from vmat_diffusion.evaluate.goal_words import SEEN
from vmat_diffusion.evaluate.goals import Goal, GoalSheet, Group, missing_required
from vmat_diffusion.evaluate.spillage import rtog_limit
from vmat_diffusion.evaluate.structure_expressions import names_in, parse_expression
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.optimize.conflicts import Conflict, contradictions, proven_conflicts
from vmat_diffusion.optimize.delivery import delivery_faults
from vmat_diffusion.optimize.hinges import WITHOUT_HINGE

# Doses per fraction that are given: from two a day to the 34 Gy at once of RTOG 0915.
_FRACTION_GY = (1.1, 34.0)
# No course is stronger than 60 Gy in 3 fractions, as EQD2 of a tumour with an alpha/beta of 10 Gy.
_MOST_EQD2_GY, _TUMOUR_ALPHA_BETA_GY = 150.0, 10.0
# From this dose per fraction on a course is called stereotactic, below the second it is not.
_STEREOTACTIC_GY, _NOT_STEREOTACTIC_GY = 6.0, 4.0
# A normalisation, or dose that a target must have, further off its prescription is a slip of the pen.
_NORMALIZATION_SHARE, _COVERAGE_SHARE = 0.1, 0.1
# An upper limit on an organ above this share of the highest prescription cannot be missed.
_NO_LIMIT_SHARE = 1.5
# A limit on a hot spot this far below the published ones is of a course of fewer fractions.
_LOW_SHARE, _MANY_FRACTIONS = 0.2, 10
_WISH = 3
# At least so little, in percent, is a share that was meant as percent: V95% >= 0.95 %.
_SHARE_FOR_PERCENT = 1.0
# A number in a target's name that says its dose, and how far its prescription may be off.
_DOSE_IN_NAME, _NAME_SHARE = re.compile(r"_(\d{2,3}(?:\.\d+)?)$"), 0.01
_LEAST_NAMED_GY = 10.0


@dataclass(frozen=True)
class SerialLimit:
    """The highest limit on the hottest spot of an organ that is in use for any fractionation, as EQD2."""

    alpha_beta_gy: float
    eqd2_gy: float
    source: str


# Limits on the hottest spot that are in use for 1, 3, 5 and 25 to 35 fractions, as EQD2; an alpha/beta of
# 2 Gy is usual for late effects in nerves. The highest of each list, with 3 % of room: a limit above it
# belongs to another fractionation. QUANTEC: Marks et al., IJROBP 76(3)S:S10 (2010), table 1, seen in a
# transcription; the others in a clinic's planning template that names them.
_CORD = "50 Gy in 25 (QUANTEC), 30 in 5 (NCCN, table 3), 23.1 in 3 and 14 in 1 (HyTEC, in a template)"
_OPTIC = "60 Gy in 30 (QUANTEC, 3 to 7 % of neuropathy), 25 in 5, 20 in 3 and 12 in 1 (HyTEC, in a template)"
_STEM = "64 Gy in 32 (QUANTEC, a point), 31 in 5, 23.1 in 3 and 15 in 1 (a template)"
_CAUDA = "32 Gy in 5, 25.5 in 3 and 16 in 1 (a template)"
_SACRAL = "32 Gy in 5, 24 in 3 and 16 in 1 (a template)"
_PLEXUS = "66 Gy in 33 (practice), 32 in 5 (lists after RTOG 0813)"
_SERIAL = {
    **dict.fromkeys(("SpinalCord", "SpinalCord_PRV"), SerialLimit(2.0, 62.0, _CORD)),
    **dict.fromkeys(("Brainstem", "Brainstem_PRV"), SerialLimit(2.0, 66.0, _STEM)),
    **dict.fromkeys(("OpticChiasm", "OpticNrv_L", "OpticNrv_R"), SerialLimit(2.0, 62.0, _OPTIC)),
    "CaudaEquina": SerialLimit(2.0, 74.0, _CAUDA),
    "SacralPlex": SerialLimit(2.0, 74.0, _SACRAL),
    **dict.fromkeys(("BrachialPlex_L", "BrachialPlex_R"), SerialLimit(2.0, 70.0, _PLEXUS)),
}
# Up to this volume a D goal is on the hottest spot that those limits speak of.
_SPOT_CC = 0.5


@dataclass(frozen=True)
class Finding:
    """One thing that a sheet's author should look at.

    `kind` is "name", "conflict", "dose", "source", "goal", "delivery" or "sheet". `of_weight` says that the
    sheet should not be used before it is settled; other findings are remarks.
    """

    kind: str
    of_weight: bool
    sentence: str

    def __str__(self) -> str:
        return f"{'FINDING' if self.of_weight else 'remark '} {self.kind}: {self.sentence}"


def sheet_findings(
    sheet: GoalSheet,
    case: Case | None = None,
    table: NameTable | None = None,
    *,
    machine: Machine | None = None,
) -> tuple[Finding, ...]:
    """All findings on a sheet, those of weight first.

    With a case, sheet and case must be fitted to each other; what the case cannot reach is then found as
    well. `table` has the names that structure sets are read with; by default the shipped one.
    `machine` is the one that delivery goals are held against, by default generic_6mv.
    """
    found = [
        *_names(sheet, case, table or default_table()),
        *_conflicts(sheet, case),
        *_fractionation(sheet),
        *_prescribed(sheet),
        *_limits(sheet),
        *_sources(sheet),
        *_slips(sheet, table or default_table()),
        *_goals(sheet),
        *(
            Finding("delivery", *said)
            for said in delivery_faults(sheet, machine or load_machine("generic_6mv"))
        ),
        *(_of_case(sheet, case) if case is not None else ()),
    ]
    unique = dict.fromkeys(found)
    return tuple(sorted(unique, key=lambda finding: not finding.of_weight))


def _names(sheet: GoalSheet, case: Case | None, table: NameTable) -> Iterator[Finding]:
    """Names that neither the table nor the case nor the sheet itself knows."""
    known = {*sheet.structures, *(case.structures if case else ())}

    def meaning(name: str) -> str | None:
        if name in known:
            return name
        match = table.match(name)
        return None if match is None else match.name

    asked = [*sheet.prescription.target_gy, *(goal.structure for goal in sheet.goals)]
    texts = [name for name in asked if name not in sheet.structures] + list(sheet.structures.values())
    names = [name for text in texts for name in names_in(parse_expression(text, meaning))]
    for name in dict.fromkeys(names):
        if meaning(name) is None:
            near = " or ".join(table.nearest(name))
            remedy = f"write {near}" if near else "write the table's name (`mapping show` lists them)"
            yield Finding(
                "name", True, f"no table knows {name}; {remedy}, or make it of others in [structures]"
            )


def _conflicts(sheet: GoalSheet, case: Case | None) -> Iterator[Finding]:
    """Goals that contradict each other, and with a case what it puts out of reach."""
    always = {str(conflict.goal): conflict for world in _worlds(sheet) for conflict in contradictions(world)}
    for conflict in always.values():
        yield Finding("conflict", True, f"{conflict}, in any patient; change one of them")
    for conflict in proven_conflicts(case, sheet) if case is not None else ():
        if str(conflict.goal) not in always:
            yield Finding("conflict", conflict.goal.priority < _WISH, _out_of_reach(conflict, sheet))


def _worlds(sheet: GoalSheet) -> Iterator[GoalSheet]:
    """The sheet with the goals that count together: without conditions, with each, and with all.

    For a sheet that is fitted to a case alone the conditions are settled.
    """
    named = {(goal.condition or "").removeprefix("not ") for goal in sheet.goals} - {""}
    settings = [frozenset[str](), *(frozenset({name}) for name in sorted(named)), frozenset(named)]
    for on in dict.fromkeys(settings):
        held = tuple(
            goal
            for goal in sheet.goals
            if goal.condition is None
            or (goal.condition.removeprefix("not ") in on) is not goal.condition.startswith("not ")
        )
        yield replace(sheet, goals=held)


def _out_of_reach(conflict: Conflict, sheet: GoalSheet) -> str:
    goal, target = conflict.goal, next(iter(conflict.against), "").split(" ")[0]
    remedy = "relax it or lower its priority"
    structure = goal.structure if isinstance(goal, Goal) else ""
    if structure not in sheet.prescription.target_gy and target in sheet.prescription.target_gy:
        remedy += f', or judge it on "{structure} - {target}"'
    return f"{conflict}, in this case; {remedy}"


def _fractionation(sheet: GoalSheet) -> Iterator[Finding]:
    """A dose per fraction or a dose in all that nobody gives, or that does not fit the word stereotactic."""
    fractions = sheet.prescription.fractions
    name, gy = max(sheet.prescription.target_gy.items(), key=lambda item: item[1])
    each, eqd2 = gy / fractions, float(eqd2_gy(gy, _TUMOUR_ALPHA_BETA_GY, fractions))
    low, high = _FRACTION_GY
    what = f"{gy:g} Gy in {_counted(fractions)} for {name} are {each:.3g} Gy per fraction"
    if not low <= each <= high:
        yield Finding("dose", True, f"{what}, outside {low:g} to {high:g} Gy; correct fractions or dose")
    elif eqd2 > _MOST_EQD2_GY:
        yield Finding(
            "dose",
            True,
            f"{what}, which equals {eqd2:.0f} Gy in fractions of 2 Gy (alpha/beta "
            f"{_TUMOUR_ALPHA_BETA_GY:g} Gy), above the {_MOST_EQD2_GY:g} Gy of 60 Gy in 3; correct "
            "fractions or dose",
        )
    elif sheet.stereotactic and each < _NOT_STEREOTACTIC_GY:
        yield Finding("dose", False, f"{what}, yet the sheet is stereotactic; set stereotactic = false")
    elif not sheet.stereotactic and each >= _STEREOTACTIC_GY:
        yield Finding("dose", False, f"{what}; for a steep falloff and a hot target set stereotactic = true")


def _prescribed(sheet: GoalSheet) -> Iterator[Finding]:
    """Normalisation, coverage and names of targets that do not fit their prescriptions."""
    target_gy = sheet.prescription.target_gy
    for norm in sheet.normalizations:
        share = norm.gy / target_gy[norm.structure]
        if abs(share - 1) > _NORMALIZATION_SHARE:
            yield Finding(
                "dose",
                True,
                f"the normalisation {norm} is {100 * share:.0f} % of the {target_gy[norm.structure]:g} Gy "
                "that are prescribed; correct one of them",
            )
    for goal, physical in zip(sheet.goals, sheet.in_gy().goals, strict=True):
        bound = physical.bound(target_gy)
        gy = target_gy.get(goal.structure)
        if gy and bound and physical.demands_dose and bound.level_gy > gy * (1 + _COVERAGE_SHARE):
            yield Finding(
                "dose",
                True,
                f"{goal} asks for {100 * bound.level_gy / gy:.0f} % of the {gy:g} Gy that are prescribed; "
                "correct one of them",
            )
    for name, gy in target_gy.items():
        hit = _DOSE_IN_NAME.search(name)
        if hit and float(hit[1]) >= _LEAST_NAMED_GY and abs(float(hit[1]) / gy - 1) > _NAME_SHARE:
            yield Finding("dose", True, f"{name} is prescribed {gy:g} Gy; correct the name or the dose")


def _limits(sheet: GoalSheet) -> Iterator[Finding]:
    """Limits on organs that belong to another fractionation, or that no plan can miss."""
    target_gy, fractions = sheet.prescription.target_gy, sheet.prescription.fractions
    highest = max(target_gy.values())
    for goal, physical in zip(sheet.goals, sheet.in_gy().goals, strict=True):
        bound = physical.bound(target_gy)
        if goal.structure in target_gy or bound is None or physical.demands_dose:
            continue
        gy = bound.level_gy
        serial = _SERIAL.get(goal.structure)
        if serial and _on_hot_spot(physical):
            eqd2 = float(eqd2_gy(gy, serial.alpha_beta_gy, fractions))
            what = (
                f"{goal} in {_counted(fractions)} is {eqd2:.0f} Gy in fractions of 2 Gy (alpha/beta "
                f"{serial.alpha_beta_gy:g} Gy)"
            )
            remedy = f"take the limit for {_counted(fractions)}"
            if eqd2 > serial.eqd2_gy:
                sentence = f"{what}, above all limits in use ({serial.source}); {remedy}"
                yield Finding("dose", True, sentence)
                continue
            if eqd2 < serial.eqd2_gy * _LOW_SHARE and fractions >= _MANY_FRACTIONS:
                yield Finding("dose", False, f"{what}, far below the limits in use; {remedy}, or say why")
        if gy > highest * _NO_LIMIT_SHARE:
            yield Finding(
                "dose",
                # Lists of stereotactic limits hold for any dose; in others such a level is a slip.
                not sheet.stereotactic,
                f"{goal} cannot be missed beside {highest:g} Gy; take the limit for {_counted(fractions)} "
                "or leave it out",
            )


def _counted(fractions: int) -> str:
    return f"{fractions} fraction{'' if fractions == 1 else 's'}"


def _on_hot_spot(goal: Goal) -> bool:
    metric = goal.metric
    return metric.kind == "max" or (metric.kind == "Dcc" and (metric.value or 0.0) <= _SPOT_CC)


def _sources(sheet: GoalSheet) -> Iterator[Finding]:
    """Numbers that do not say where they come from or how that was seen."""
    every: list[Goal | Group | DeliveryGoal] = [
        *sheet.goals,
        *sheet.left_out,
        *sheet.groups.values(),
        *sheet.delivery,
    ]
    for stated in every:
        if not stated.source.strip():
            yield Finding("source", True, f"{stated} has no source; say where the number comes from")
        elif not stated.seen and sheet.format > 1:
            remedy = f"add seen = one of {', '.join(SEEN)}"
            yield Finding("source", False, f"{stated} does not say how its source was seen; {remedy}")
    if not sheet.current_to and sheet.format > 1:
        yield Finding(
            "source",
            False,
            'the sheet does not say until when it is current; add current_to = "2026-11" or the like',
        )


def _slips(sheet: GoalSheet, table: NameTable) -> Iterator[Finding]:
    """Goals the wrong way round, shares written for percent, targets and sheets that nothing is asked of."""
    target_gy = sheet.prescription.target_gy
    for goal in sheet.goals:
        match = table.match(goal.structure)
        if goal.demands_dose and goal.structure not in target_gy and match and match.role == "organ":
            yield Finding("goal", True, f"{goal} asks for dose in an organ; turn the comparison round")
        percent = goal.unit == "%" and goal.comparator == ">=" and math.isfinite(goal.limit)
        if percent and 0 < goal.limit <= _SHARE_FOR_PERCENT:
            yield Finding(
                "goal",
                True,
                f"{goal} asks for hardly anything; write {100 * goal.limit:g} % if that is meant",
            )
    for name in target_gy:
        if not any(goal.structure == name and goal.demands_dose for goal in sheet.goals):
            yield Finding(
                "goal", False, f"no goal asks for dose in {name}; add one such as D95%, so that it is judged"
            )
    if not any(goal.priority == 1 for goal in sheet.goals):
        yield Finding("goal", False, "no goal has priority 1, so the gate requires none; say which are musts")


def _goals(sheet: GoalSheet) -> Iterator[Finding]:
    """Goals that the search cannot act on, stand twice, or are in a group without a choice; old formats."""
    stated: dict[tuple[object, ...], Goal] = {}
    for goal in sheet.goals:
        if (why := WITHOUT_HINGE.get(goal.metric.kind)) is not None:
            yield Finding("goal", False, f"{goal} is judged, but the search has no term for it: {why}")
        key = (
            goal.structure,
            goal.metric,
            goal.comparator,
            goal.priority,
            goal.group,
            goal.condition,
            goal.eqd2,
        )
        if (first := stated.setdefault(key, goal)) is not goal:
            yield Finding("goal", False, f"{goal} stands beside {first} in the same priority; keep one")
    for name, group in sheet.groups.items():
        members = len(sheet.members(name))
        if 0 < members <= group.at_least and not group.every:
            yield Finding(
                "goal", False, f"group {name} asks for all of its {members} goals; a group is needless"
            )
    for remark in sheet.remarks if sheet.format == 1 else ():
        yield Finding("sheet", False, remark)  # what newer sheets lack is found goal by goal


def _of_case(sheet: GoalSheet, case: Case) -> Iterator[Finding]:
    """Goals that cannot be evaluated in a case, and targets outside the RTOG's table."""
    required = {str(goal) for goal in missing_required(sheet, case)}
    for goal in sheet.goals:
        structure = case.structures.get(goal.structure)
        if structure is None or not structure.voxels:
            must = str(goal) in required
            remedy = "contour it or write optional = true" if must else "it will not be evaluated"
            yield Finding("goal", must, f"{goal}: the case has no {goal.structure}; {remedy}")
        elif goal.table is not None:
            note = rtog_limit(goal.metric, structure.voxels * case.grid.voxel_cc).note
            if note:
                yield Finding("goal", False, f"{goal}: {note}; say whether that is meant")
