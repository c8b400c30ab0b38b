"""Goal sheets as files: the shipped ones and those of users, in TOML. See `docs/goals.md`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import (
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
)
from pydantic.dataclasses import dataclass as checked

from vmat_diffusion.case import Prescription
from vmat_diffusion.errors import CaseError, GoalError
from vmat_diffusion.evaluate.delivery_goals import DeliveryGoal, DeliveryText, parse_delivery
from vmat_diffusion.evaluate.fractionation import eqd2_gy
from vmat_diffusion.evaluate.goal_types import Goal, GoalSheet, Group, Normalization
from vmat_diffusion.evaluate.goal_words import Seen
from vmat_diffusion.evaluate.metrics import Metric
from vmat_diffusion.evaluate.spillage import TABLES, rtog_limit
from vmat_diffusion.evaluate.structure_expressions import names_in, parse_expression
from vmat_diffusion.files import parse_toml, why_no_file

NEWEST_FORMAT = 2
_STATEMENT = re.compile(r"(\S+)\s*(>=|<=|=)\s*(?:(\d+(?:\.\d+)?)\s*(Gy|%|cc)?|(\D.*))")
_MONTH = re.compile(r"\d{4}-(0[1-9]|1[0-2])")
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@checked(frozen=True, config=_STRICT)
class _GoalText:
    structure: StrictStr
    goal: StrictStr
    priority: StrictInt | None = None
    source: StrictStr = ""
    seen: Seen = ""
    variation: StrictFloat | None = None
    variation_source: StrictStr = ""
    variation_seen: Seen = ""
    optional: StrictBool = False
    group: StrictStr | None = None
    applies_to: StrictStr = ""
    condition: StrictStr | None = Field(default=None, alias="if")
    eqd2: StrictFloat | None = None
    fractions_of_source: StrictInt | None = None


@checked(frozen=True, config=_STRICT)
class _GroupText:
    at_least: StrictInt
    priority: StrictInt
    source: StrictStr = ""
    seen: Seen = ""
    every: StrictBool = False


@checked(frozen=True, config=_STRICT)
class _SheetText:
    title: StrictStr
    site: StrictStr
    source: StrictStr
    fractions: StrictInt
    prescription_gy: dict[StrictStr, StrictFloat]
    normalization: dict[StrictStr, StrictStr]
    goals: list[_GoalText]
    format: StrictInt = 1
    seen: Seen = ""
    current_to: StrictStr = ""
    stereotactic: StrictBool = False
    optional_targets: list[StrictStr] | None = None
    unions: dict[StrictStr, list[StrictStr]] | None = None
    structures: dict[StrictStr, StrictStr] | None = None
    groups: dict[StrictStr, _GroupText] | None = None
    conditions: dict[StrictStr, StrictStr] | None = None
    plan: dict[StrictStr, Any] | None = None
    delivery: list[DeliveryText] | None = None


def goal_sheet_names() -> tuple[str, ...]:
    """Names of the goal sheets shipped with the package."""
    folder = resources.files("vmat_diffusion") / "goals"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml")))


def load_goals(name_or_path: str | Path) -> GoalSheet:
    """A shipped goal sheet by name, or one's own by the path of its TOML file.

    What a reader should know of the sheet itself is in its `remarks`. Raises GoalError, one sentence naming
    the sheet, the goal and the key at fault.
    """
    if str(name_or_path).endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise GoalError(f"goal sheet {path} {why_no_file(path)}; give a name or an existing file")
        try:
            return parse_goals(path.read_text(encoding="utf-8-sig"), path.stem)
        except UnicodeDecodeError:
            raise GoalError(f"goal sheet {path} is not UTF-8 text; save it as such") from None
    if name_or_path not in goal_sheet_names():
        raise GoalError(
            f"goal sheet {str(name_or_path)!r} is not known; known are {', '.join(goal_sheet_names())}, "
            "or give the path of a .toml file"
        )
    file = resources.files("vmat_diffusion") / "goals" / f"{name_or_path}.toml"
    return parse_goals(file.read_text(encoding="utf-8"), str(name_or_path))


def parse_goals(text: str, name: str) -> GoalSheet:
    """The goal sheet that a TOML text describes; GoalError names the goal and the key at fault."""
    label = f"goal sheet {name}"
    raw = _raw_sheet(label, text)
    if not raw.prescription_gy:
        raise GoalError(f"{label}: prescription_gy names no target; at least one is needed")
    try:
        prescription = Prescription(raw.fractions, dict(raw.prescription_gy))
    except CaseError as error:
        raise GoalError(f"{label}: {error}") from None
    groups = {key: _group(label, key, group) for key, group in (raw.groups or {}).items()}
    numbered = enumerate(raw.goals, start=1)
    sheet = GoalSheet(
        name=name,
        title=raw.title,
        site=raw.site,
        prescription=prescription,
        normalizations=tuple(
            _normalization(label, k, v, raw.prescription_gy) for k, v in raw.normalization.items()
        ),
        goals=tuple(_goal(f"{label}: goal {i}", f"{label}: goals {i}", goal, groups) for i, goal in numbered),
        source=raw.source,
        seen=raw.seen,
        optional_targets=tuple(raw.optional_targets or ()),
        stereotactic=raw.stereotactic,
        format=raw.format,
        current_to=raw.current_to,
        groups=groups,
        structures={
            **{key: " + ".join(parts) for key, parts in (raw.unions or {}).items()},
            **(raw.structures or {}),
        },
        conditions=dict(raw.conditions or {}),
        plan=dict(raw.plan or {}),
        delivery=tuple(
            parse_delivery(f"{label}: delivery {i}", goal) for i, goal in enumerate(raw.delivery or (), 1)
        ),
    )
    _check_targets(label, sheet)
    _check_language(label, sheet)
    return replace(sheet, remarks=_remarks(sheet, raw))


def _raw_sheet(label: str, text: str) -> _SheetText:
    try:
        return TypeAdapter(_SheetText).validate_python(parse_toml(text))
    except ValidationError as error:
        # A misspelt key also leaves the right one missing; the misspelt one is what the user can see.
        first = min(error.errors(), key=lambda e: e["type"] != "unexpected_keyword_argument")
        where = " ".join(f"{p + 1}" if isinstance(p, int) else str(p) for p in first["loc"])
        raise GoalError(f"{label}: {where}: {first['msg']}; correct the file") from None
    except ValueError as error:
        raise GoalError(f"{label}: not valid TOML ({error}); correct the file") from None


def _remarks(sheet: GoalSheet, raw: _SheetText) -> tuple[str, ...]:
    """What a person should know of the sheet as a file, without its name: records are shared."""
    if sheet.format < NEWEST_FORMAT:
        unions = "; its [unions] are read as [structures]" if raw.unions else ""
        return (
            f"the goal sheet is of format {sheet.format}{unions}; it means what it meant, but does not say "
            f"how the source of each number was seen: with that added, write format = {NEWEST_FORMAT}",
        )
    stated: list[Goal | Group | DeliveryGoal] = [*sheet.goals, *sheet.groups.values(), *sheet.delivery]
    unsourced = [str(goal) for goal in stated if not goal.source.strip()]
    unseen = [str(goal) for goal in stated if goal.source.strip() and not goal.seen]
    out = []
    if unsourced:
        out.append(f"no source is stated for {_some(unsourced)}; state it with source")
    if unseen:
        out.append(f"it is not said how the source of {_some(unseen)} was seen; state it with seen")
    return tuple(out)


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} goals, the first {names[0]}"


def _group(label: str, name: str, raw: _GroupText) -> Group:
    try:
        return Group(name, raw.at_least, raw.priority, raw.source, raw.seen, raw.every)
    except GoalError as error:
        raise GoalError(f"{label}: {error}; correct the file") from None


def _split(where: str, text: str, structure: str) -> tuple[Metric, str, float, str]:
    """Metric, comparator, number and table of a statement; the number is NaN where a table has it."""
    match = _STATEMENT.fullmatch(text.strip().replace("\u2265", ">=").replace("\u2264", "<="))
    if match is None:
        raise GoalError(f"{where} ({structure}): cannot read {text!r}; write for example 'D95% >= 66.5 Gy'")
    try:
        metric = Metric.parse(match[1])
    except GoalError as error:
        raise GoalError(f"{where} ({structure}): {error}") from None
    if match[5]:
        return metric, match[2], math.nan, _table(where, text, structure, metric, match[5].strip())
    unit = match[4] or ""
    if (fitting := metric.in_unit(unit)) is None:
        expected = " or ".join(metric.units) or "no unit"
        raise GoalError(f"{where} ({structure}): {text!r} has the unit {unit!r}; {metric} needs {expected}")
    return fitting, match[2], float(match[3]), ""


def _table(where: str, text: str, structure: str, metric: Metric, table: str) -> str:
    if table not in TABLES:
        raise GoalError(
            f"{where} ({structure}): cannot read {text!r}; write a number, or {' or '.join(TABLES)} for "
            "the limit by the target's volume"
        )
    try:
        rtog_limit(metric, 1.8)
    except GoalError as error:
        raise GoalError(f"{where} ({structure}): {error}") from None
    return table


def _goal(where: str, key: str, raw: _GoalText, groups: Mapping[str, Group]) -> Goal:
    metric, comparator, limit, table = _split(where, raw.goal, raw.structure)
    where = f"{where} ({raw.structure})"
    if comparator == "=":
        raise GoalError(f"{where}: {raw.goal!r} needs >= or <=")
    if table and (comparator != "<=" or raw.variation is not None):
        raise GoalError(f"{where}: {table} gives limit and variation; write <= and leave the variation out")
    if raw.group is not None and raw.group not in groups:
        raise GoalError(f"{where}: group {raw.group} is not in the sheet; add [groups.{raw.group}]")
    priority = raw.priority if raw.group is None else groups[raw.group].priority
    if priority is None:
        raise GoalError(f"{key} priority: Field required; correct the file")
    if raw.variation is None and (raw.variation_source or raw.variation_seen):
        raise GoalError(f"{where}: a source of the variation is stated, but no variation; add it")
    metric, limit, variation, stated = _isoeffective(where, raw, metric, limit)
    try:
        return Goal(
            raw.structure,
            metric,
            comparator,  # type: ignore[arg-type]
            limit,
            metric.result_unit,
            variation,
            priority,
            raw.source,
            raw.optional,
            group=raw.group,
            condition=raw.condition,
            applies_to="; ".join(part for part in (raw.applies_to, stated) if part),
            seen=raw.seen,
            variation_source=raw.variation_source,
            variation_seen=raw.variation_seen,
            table=table or None,
            eqd2=raw.eqd2,
        )
    except GoalError as error:
        raise GoalError(f"{where.rpartition(' (')[0]}: {error}") from None


def _isoeffective(
    where: str, raw: _GoalText, metric: Metric, limit: float
) -> tuple[Metric, float, float | None, str]:
    """Metric, limit and variation as EQD2 where the sheet states them for a course of other fractions.

    The last is what the sheet states, in words; "" where nothing was converted.
    """
    if raw.fractions_of_source is None:
        return metric, limit, raw.variation, ""
    if raw.eqd2 is None:
        raise GoalError(
            f"{where}: fractions_of_source has no effect without eqd2, the alpha/beta in Gy; give both"
        )

    def converted(gy: float) -> float:
        assert raw.eqd2 is not None and raw.fractions_of_source is not None
        try:
            return round(float(eqd2_gy(gy, raw.eqd2, raw.fractions_of_source)), 4)
        except GoalError as error:
            raise GoalError(f"{where}: {error}") from None

    stated = f"stated as {raw.goal} in {raw.fractions_of_source} fractions"
    if raw.variation is not None:
        stated += f", acceptable {raw.variation:g}"
    if metric.kind in ("V", "CV") and metric.value is not None:
        return replace(metric, value=converted(metric.value)), limit, raw.variation, stated
    variation = None if raw.variation is None else converted(raw.variation)
    return metric, converted(limit), variation, stated


def _normalization(label: str, structure: str, text: str, target_gy: Mapping[str, float]) -> Normalization:
    where = f"{label}: normalization"
    metric, comparator, number, _ = _split(where, text, structure)
    if comparator != "=" or metric.kind not in ("D%", "mean") or not number > 0:
        raise GoalError(f"{where} ({structure}): {text!r} must read 'D95% = 66.5 Gy' or 'mean = 70 Gy'")
    if metric.is_dose_in_percent:
        gy = number / 100 * target_gy.get(structure, math.nan)
        return Normalization(structure, replace(metric, result_unit="Gy"), gy)
    return Normalization(structure, metric, number)


def _check_targets(label: str, sheet: GoalSheet) -> None:
    targets = sheet.prescription.target_gy
    if not sheet.goals:
        raise GoalError(f"{label}: goals is empty; at least one is needed")
    if not sheet.normalizations:
        raise GoalError(
            f"{label}: normalization is empty; name a target and its dose, as in PTV = 'D95% = 50 Gy'"
        )
    for kind, names in (
        ("normalization", [n.structure for n in sheet.normalizations]),
        ("optional_targets", sheet.optional_targets),
    ):
        for name in names:
            if name not in targets:
                raise GoalError(f"{label}: {kind} names {name}, which has no prescription_gy; add it there")
    for goal in sheet.goals:
        if goal.metric.needs_prescription and goal.structure not in targets:
            raise GoalError(
                f"{label}: goal {goal} is relative to a prescription, but {goal.structure} has none; "
                "state it in Gy"
            )
    required = set(targets) - set(sheet.optional_targets)
    normalized = {n.structure for n in sheet.normalizations}
    if not required & normalized and not set(targets) <= normalized:
        raise GoalError(
            f"{label}: normalization must name a target that is always present, or every target; "
            f"missing are {', '.join(sorted(set(targets) - normalized))}"
        )


def _check_language(label: str, sheet: GoalSheet) -> None:
    """Refuse what refers to something that the sheet does not have."""
    if not 1 <= sheet.format <= NEWEST_FORMAT:
        raise GoalError(
            f"{label}: format {sheet.format} is not known; this version reads 1 to {NEWEST_FORMAT}"
        )
    if sheet.current_to and not _MONTH.fullmatch(sheet.current_to):
        raise GoalError(f"{label}: current_to {sheet.current_to!r} is no month; write it as 2026-11")
    for name, group in sheet.groups.items():
        members = len(sheet.members(name))
        if members < group.at_least:
            raise GoalError(
                f"{label}: group {name} asks for {group.at_least} of {members} goals; give goals that "
                f'group = "{name}" or lower at_least'
            )
    for goal in sheet.goals:
        name = (goal.condition or "").removeprefix("not ")
        if goal.condition is not None and name not in sheet.conditions:
            raise GoalError(
                f"{label}: goal {goal}: the condition {name!r} is not in conditions; say there what it means"
            )
    for name, text in sheet.structures.items():
        if name in sheet.prescription.target_gy:
            raise GoalError(
                f"{label}: structures makes {name}, which has a prescription; targets must be contoured"
            )
        _check_structure(label, sheet, name, text)


def _check_structure(
    label: str, sheet: GoalSheet, name: str, text: str, within: tuple[str, ...] = ()
) -> None:
    """Refuse an expression that is none, and structures that are made of each other."""
    if name in within:
        raise GoalError(f"{label}: structures: {name} is made of itself; correct {name} = {text!r}")
    try:
        parts = names_in(parse_expression(text))
    except GoalError as error:
        raise GoalError(f"{label}: structures: {error}") from None
    for part in parts:
        if part in sheet.structures:
            _check_structure(label, sheet, part, sheet.structures[part], (*within, name))
