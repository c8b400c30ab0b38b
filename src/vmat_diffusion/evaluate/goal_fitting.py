"""A goal sheet and a case fitted to each other: names, absent targets, conditions, structures to be made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from vmat_diffusion.case import Case, Role, Structure
from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.goal_types import Goal, GoalSheet
from vmat_diffusion.evaluate.spillage import rtog_limit, with_table_limit
from vmat_diffusion.evaluate.structure_expressions import (
    Expression,
    Named,
    in_words,
    mask_of,
    names_in,
    parse_expression,
    renamed,
    without_names,
)

_COMBINED = re.compile(r"\s-\s|[+&]")
# The dose of a normalisation may be chosen up to this share off the sheet's.
_LEVEL_SHARE = 0.2


def with_conditions(sheet: GoalSheet, conditions: Iterable[str]) -> GoalSheet:
    """The sheet with conditions that hold for the patient, beside those that are on already.

    Raises GoalError for one that the sheet does not know.
    """
    on = tuple(dict.fromkeys((*sheet.conditions_on, *conditions)))
    for name in on:
        if name not in sheet.conditions:
            known = ", ".join(f"{key} ({words})" for key, words in sheet.conditions.items())
            raise GoalError(
                f"goal sheet {sheet.name}: the condition {name!r} is not known; "
                + (f"it has {known}" if known else "it has no conditions")
            )
    return replace(sheet, conditions_on=on)


def with_known_conditions(sheet: GoalSheet, conditions: Iterable[str]) -> GoalSheet:
    """The sheet with those of the conditions that it knows, where a case chooses one of many sheets."""
    return with_conditions(sheet, [name for name in conditions if name in sheet.conditions])


def require_known_conditions(conditions: Iterable[str], sheets: Iterable[GoalSheet]) -> None:
    """Raise GoalError for a condition that none of the sheets knows."""
    known = {name: words for sheet in sheets for name, words in sheet.conditions.items()}
    for name in conditions:
        if name not in known:
            listed = ", ".join(f"{key} ({words})" for key, words in known.items()) or "none"
            raise GoalError(f"no goal sheet knows the condition {name!r}; the sheets have {listed}")


def fit_to_case(sheet: GoalSheet, case: Case, conditions: Iterable[str] = ()) -> GoalSheet:
    """The sheet for the targets that the case has, with its names as the case spells them.

    Names mean what they mean in a structure set: `Spinal Cord` and `Cord` are SpinalCord, in expressions as
    well. Optional targets that are absent are left out of prescription, normalisation, goals and
    expressions; goals on absent organs stay and are reported as not evaluated. Goals whose condition does
    not hold go to `left_out`; `conditions` hold beside those that are on already. Limits by the target's
    volume are looked up. Raises GoalError where a required target, or every target, is absent or empty,
    where two names of targets mean the same, and for a condition that the sheet does not know.
    """
    sheet = _for_conditions(with_conditions(sheet, conditions))
    sheet = _with_targets_as_in(sheet, case)
    present = {s.name for s in case.structures.values() if s.mask.any()}
    targets = sheet.prescription.target_gy
    absent = tuple(name for name in targets if name not in present)
    missing = [name for name in absent if name not in sheet.optional_targets] or (
        absent if len(absent) == len(targets) else []
    )
    if missing:
        known = ", ".join(s.name for s in case.targets) or "none"
        raise GoalError(
            f"goal sheet {sheet.name}: target {' and '.join(missing)} is not in the case "
            f"(its targets: {known}); map the structure's name or choose another sheet"
        )
    names = _Names(sheet, case, absent)
    goals = (names.goal(goal) for goal in sheet.goals)
    return replace(
        sheet,
        prescription=replace(
            sheet.prescription, target_gy={k: gy for k, gy in targets.items() if k not in absent}
        ),
        normalizations=tuple(n for n in sheet.normalizations if n.structure not in absent),
        goals=tuple(_with_limit(goal, case) for goal in goals if goal is not None),
        structures=dict(names.structures),
        optional_targets=tuple(t for t in sheet.optional_targets if t not in absent),
        remarks=tuple(dict.fromkeys((*sheet.remarks, *_beyond_table(sheet, case)))),
    )


def _beyond_table(sheet: GoalSheet, case: Case) -> list[str]:
    """Of stereotactic targets, whose falloff is planned after the RTOG's R50%: those outside its table."""
    if not sheet.stereotactic:
        return []
    targets = [case.structures[t] for t in sheet.prescription.target_gy if t in case.structures]
    notes = {t.name: rtog_limit("R50%", t.voxels * case.grid.voxel_cc).note for t in targets if t.voxels}
    return [f"RTOG's R50%, for the falloff: {name} is a {note}" for name, note in notes.items() if note]


def _for_conditions(sheet: GoalSheet) -> GoalSheet:
    """The sheet with the goals whose condition holds; the others in `left_out`."""

    def holds(goal: Goal) -> bool:
        if goal.condition is None:
            return True
        name = goal.condition.removeprefix("not ")
        return (name in sheet.conditions_on) == (name == goal.condition)

    every = (*sheet.goals, *sheet.left_out)
    return replace(
        sheet,
        goals=tuple(goal for goal in every if holds(goal)),
        left_out=tuple(goal for goal in every if not holds(goal)),
    )


def _with_limit(goal: Goal, case: Case) -> Goal:
    """The goal with its limit by the target's volume, where a table has it."""
    structure = case.structures.get(goal.structure)
    if goal.table is None or structure is None:
        return goal
    return with_table_limit(goal, structure.voxels * case.grid.voxel_cc)


def _with_targets_as_in(sheet: GoalSheet, case: Case) -> GoalSheet:
    """The sheet with the names of prescription and normalisation as the case spells them."""
    prescribed: dict[str, float] = {}
    for name, gy in sheet.prescription.target_gy.items():
        meant = name_in_case(name, case)
        if meant in prescribed:
            raise GoalError(
                f"goal sheet {sheet.name}: prescription_gy names {meant} twice, once as {name}; keep one"
            )
        prescribed[meant] = gy
    return replace(
        sheet,
        prescription=replace(sheet.prescription, target_gy=prescribed),
        normalizations=tuple(
            replace(n, structure=name_in_case(n.structure, case)) for n in sheet.normalizations
        ),
        optional_targets=tuple(name_in_case(name, case) for name in sheet.optional_targets),
    )


class _Names:
    """What a sheet's names and expressions mean in one case.

    `structures` are the expressions by name, with names as the case spells them; those of goals are added
    as the goals are asked for. Targets that are `absent`, as they may, count as empty.
    """

    def __init__(self, sheet: GoalSheet, case: Case, absent: tuple[str, ...]) -> None:
        self.case, self.sheet, self.absent = case, sheet, absent
        self.known = {*case.structures, *sheet.prescription.target_gy, *absent}
        self.known |= {name_in_case(name, case) for name in sheet.structures}
        self.being_made = ""
        self.structures: dict[str, str] = {}
        # Structures of which nothing is left, as they are made of absent targets.
        self.gone = set(absent)
        for name, text in sheet.structures.items():
            self.made(name_in_case(name, case), text)

    def meaning(self, name: str) -> str | None:
        """The structure, of the case or of the sheet, that a name means; None for another text."""
        meant = self.canonical(name)
        return meant if meant in self.known and meant != self.being_made else None

    def canonical(self, text: str) -> str:
        """What `name_in_case` says, but an expression is the name only of what is spelled with its operators.

        `Heart - PTV` may be contoured as Heart-PTV, but is not what was contoured as Heart_PTV.
        """
        meant = name_in_case(text, self.case)
        if "-" in meant or not _COMBINED.search(text):
            return meant
        structure = self.case.structures.get(meant)
        spelled = {_without_spaces(n) for n in (meant, structure.alias if structure else "")}
        return meant if _without_spaces(text) in spelled else text

    def made(self, name: str, text: str) -> str | None:
        """The name under which an expression is made; None where nothing is left of it."""
        self.being_made = name or self.canonical(text)
        try:
            expression = renamed(parse_expression(text, self.meaning), lambda n: name_in_case(n, self.case))
        except GoalError as error:
            raise GoalError(f"goal sheet {self.sheet.name}: {error}") from None
        finally:
            self.being_made = ""
        left = without_names(expression, tuple(self.absent))
        if left is None:
            self.gone.add(name)
            return None
        if isinstance(left, Named) and not name:
            return left.name
        name = name or self._own_name(text, str(left), names_in(left))
        self.structures.setdefault(name, str(left))
        return name

    def _own_name(self, text: str, expression: str, parts: tuple[str, ...]) -> str:
        """The table's name for an expression, such as Lungs-GTV, else the expression itself."""
        name = self.canonical(text)
        return expression if name == text or name in parts else name

    def goal(self, goal: Goal) -> Goal | None:
        """The goal with its structure's name; None where that is an absent target or made of nothing else."""
        try:
            name = self.meaning(goal.structure) or self.made("", goal.structure)
        except GoalError:
            if self.sheet.format >= 2:
                raise
            name = goal.structure  # older sheets know no expressions
        return None if name is None or name in self.gone else replace(goal, structure=name)


def _without_spaces(name: str) -> str:
    return "".join(name.casefold().split())


def name_in_case(name: str, case: Case) -> str:
    """The canonical name that a sheet's name means; a name that nothing knows stays as it is.

    First the case's own names, then those of its structures in the source file, which a user's mapping may
    have named, then the table of names that structure sets go through as well.
    """
    from vmat_diffusion.dicom.names import default_table, squeezed

    if name in case.structures:
        return name
    aliases = [s.name for s in case.structures.values() if s.alias and squeezed(s.alias) == squeezed(name)]
    if len(aliases) == 1:
        return aliases[0]
    if (match := default_table().match(name)) is not None:
        return match.name
    spelled = [known for known in case.structures if squeezed(known) == squeezed(name)]
    return spelled[0] if len(spelled) == 1 else name


def add_structures(sheet: GoalSheet, case: Case) -> Case:
    """The case with the structures that the sheet makes of others, on the case's own grid.

    Made where all parts are contoured and the structure itself is not; each is a named step of the case's
    source, which also says where nothing is left. For a sheet that is fitted to the case.
    """
    structures, steps = dict(case.structures), []
    pending = [name for name in sheet.structures if name not in structures]
    while pending:
        ready = [name for name in pending if not _missing_parts(name, sheet, structures)]
        if not ready:
            break
        for name in ready:
            expression = _expression(name, sheet, structures)
            masks = {part: structures[part].mask for part in names_in(expression)}
            mask = mask_of(expression, masks, case.grid.spacing_mm)
            structures[name] = Structure(name, _role([structures[part].role for part in masks]), mask)
            empty = "" if mask.any() else "; nothing is left"
            steps.append(f"{_made_as(name)}{in_words(expression)}{empty}")
            pending.remove(name)
    if not steps:
        return case
    return replace(
        case, structures=structures, source=replace(case.source, steps=(*case.source.steps, *steps))
    )


def _role(parts: Sequence[Role]) -> Role:
    """An organ where an organ is among the parts and the body is not; else a helper structure."""
    return "organ" if "organ" in parts and "body" not in parts else "other"


def why_absent(name: str, sheet: GoalSheet, case: Case) -> str:
    """Why a structure cannot be evaluated, absent or empty or made of what is; "" where it can be."""
    structure = case.structures.get(name)
    if structure is None:
        missing = _missing_parts(name, sheet, case.structures) if name in sheet.structures else ()
        if not missing:
            return "not contoured"
        parts = " and ".join(
            f"{part} is {'empty' if part in case.structures else 'not contoured'}" for part in missing
        )
        return f"{parts}, so {sheet.structures[name]} cannot be made"
    if structure.mask.any():
        return ""
    made = any(step.startswith(_made_as(name)) for step in case.source.steps)
    return (
        f"nothing is left of {sheet.structures[name]}"
        if made and name in sheet.structures
        else "contour is empty"
    )


def how_made(name: str, case: Case) -> str:
    """What a structure was made of by `add_structures`, in words; "" for one that was not made."""
    steps = (step for step in case.source.steps if step.startswith(_made_as(name)))
    return next((step.removeprefix(_made_as(name)).partition(";")[0] for step in steps), "")


def structures_named(sheet: GoalSheet) -> tuple[str, ...]:
    """The structures that a sheet's goals are on, in place of an expression those that it names."""
    names: dict[str, None] = {}
    waiting = [goal.structure for goal in reversed(sheet.goals)]
    while waiting:
        name = waiting.pop()
        text = sheet.structures.get(name, name)
        try:
            parts = names_in(parse_expression(text))
        except GoalError:
            parts = (name,)
        if parts == (name,) or name in names:
            names[name] = None
        else:
            names |= {name: None} if name in sheet.structures else {}
            waiting += reversed(parts)
    return tuple(names)


def _made_as(name: str) -> str:
    return f"{name} made as "


def _expression(name: str, sheet: GoalSheet, structures: Mapping[str, Structure]) -> Expression:
    """How a structure of a fitted sheet is made: its names are those of the case, letter by letter."""
    names = {*structures, *sheet.structures} - {name}
    return parse_expression(sheet.structures[name], lambda text: text if text in names else None)


def _missing_parts(name: str, sheet: GoalSheet, structures: Mapping[str, Structure]) -> tuple[str, ...]:
    """What a structure is made of that is not contoured or empty; of what is made itself, its own parts."""
    out: list[str] = []
    for part in names_in(_expression(name, sheet, structures)):
        structure = structures.get(part)
        if structure is not None and structure.mask.any():
            continue
        inner = (
            _missing_parts(part, sheet, structures) if structure is None and part in sheet.structures else ()
        )
        out += inner or [part]
    return tuple(dict.fromkeys(out))


def missing_required(sheet: GoalSheet, case: Case) -> tuple[Goal, ...]:
    """The musts that cannot be evaluated, as their structure is absent or empty and they are not optional.

    Of a group only where fewer of its structures are there than it asks for. For a sheet and a case that are
    fitted to each other.
    """
    present = {s.name for s in case.structures.values() if s.mask.any()}

    def enough(group: str) -> bool:
        there = sum(member.structure in present for member in sheet.members(group))
        return there >= sheet.groups[group].at_least

    return tuple(
        goal
        for goal in sheet.goals
        if goal.priority == 1
        and not goal.optional
        and goal.structure not in present
        and not (goal.group and enough(goal.group))
    )


def normalized_at(sheet: GoalSheet, gy: float) -> GoalSheet:
    """The sheet with another dose for its normalisation, such as 71 Gy for `D95% = 70 Gy`; the goals stay.

    Raises GoalError for a dose that is more than a fifth off the sheet's, as no other plan would meet its
    goals.
    """
    wish = sheet.normalization
    low, high = ((1.0 + side * _LEVEL_SHARE) * wish.gy for side in (-1, 1))
    if not low <= gy <= high:
        raise GoalError(
            f"goal sheet {sheet.name}: normalisation at {gy:g} Gy is outside {low:g} to {high:g} Gy, a fifth "
            f"off its {wish}; choose a dose within or another sheet"
        )
    return replace(sheet, normalizations=(replace(wish, gy=gy), *sheet.normalizations[1:]))
