"""Clinical goals: sheets in TOML, fitted to a case, and judged on a dose. See `docs/goals.md`.

More than 400 lines, as what a sheet may say, how it is read and how it is judged change together.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict, StrictBool, StrictFloat, StrictInt, StrictStr, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from vmat_diffusion.case import Case, Dose, Prescription, Structure
from vmat_diffusion.errors import CaseError, GoalError
from vmat_diffusion.evaluate.dvh import Dvh, isodose_volume_cc, outside_percent, structure_dvh
from vmat_diffusion.evaluate.metrics import Bound, Metric, histogram_value, homogeneity, paddick
from vmat_diffusion.files import parse_toml

Comparator = Literal[">=", "<="]
Status = Literal["pass", "acceptable", "fail", "not evaluated"]

_STATEMENT = re.compile(r"(\S+)\s*(>=|<=|=)\s*(\d+(?:\.\d+)?)\s*(Gy|%|cc)?")
# float32 doses carry 1e-7; a result that equals its limit on paper must not fail by rounding.
_ROUNDING = 1e-6
# The dose of a normalisation may be chosen up to this share off the sheet's.
_LEVEL_SHARE = 0.2


@dataclass(frozen=True)
class Goal:
    """One line of a goal sheet: `D95% >= 66.5 Gy` on a structure.

    `limit` and `variation`, the worst acceptable value, are in `unit`; `priority` 1 = must,
    2 = should, 3 = wish; `source` says where the number comes from. The structure of an `optional` goal
    need not be in the case; any other must that cannot be evaluated is not met.
    """

    structure: str
    metric: Metric
    comparator: Comparator
    limit: float
    unit: str
    variation: float | None = None
    priority: int = 2
    source: str = ""
    optional: bool = False

    def __post_init__(self) -> None:
        if self.unit != self.metric.result_unit:
            raise GoalError(
                f"{self.structure} {self.metric}: unit {self.unit!r} does not fit; "
                f"write {self.metric.result_unit!r}"
            )
        if self.priority not in (1, 2, 3):
            raise GoalError(f"{self}: priority {self.priority} is not 1 (must), 2 (should) or 3 (wish)")
        if self.variation is not None and not self._meets(self.variation, self.limit, opposite=True):
            raise GoalError(
                f"{self}: variation {self.variation:g} is stricter than the limit; "
                "it is the worst acceptable value"
            )

    def bound(self, target_gy: Mapping[str, float]) -> Bound | None:
        """The dose level and volume that the goal bounds; `target_gy` are the prescribed doses by target."""
        return self.metric.bound(self.limit, target_gy.get(self.structure))

    def status(self, value: float) -> Status:
        """Whether a result meets the limit, only the variation, or neither."""
        if self._meets(value, self.limit):
            return "pass"
        if self.variation is not None and self._meets(value, self.variation):
            return "acceptable"
        return "fail"

    def _meets(self, value: float, limit: float, *, opposite: bool = False) -> bool:
        slack = _ROUNDING * max(abs(limit), 1.0)
        at_least = (self.comparator == ">=") is not opposite
        return value >= limit - slack if at_least else value <= limit + slack

    @property
    def statement(self) -> str:
        """The goal without its structure, as it is written in a sheet."""
        return f"{self.metric} {self.comparator} {self.limit:g} {self.unit}".rstrip()

    def __str__(self) -> str:
        return f"{self.structure} {self.statement}"


@dataclass(frozen=True)
class Normalization:
    """The plan's MU are scaled until this dose metric has exactly this value."""

    structure: str
    metric: Metric
    gy: float

    def __str__(self) -> str:
        return f"{self.structure} {self.metric} = {self.gy:g} Gy"


@dataclass(frozen=True)
class GoalSheet:
    """A prescription with its goals.

    `normalizations` are in order of preference: the first whose target is present holds.
    `optional_targets` may be absent from a case, though not all prescribed targets at once.
    `unions` name structures that are the sum of others where they are not contoured themselves.
    In a `stereotactic` plan the target may be hot within, for a steeper falloff around it.
    """

    name: str
    title: str
    site: str
    prescription: Prescription
    normalizations: tuple[Normalization, ...]
    goals: tuple[Goal, ...]
    source: str
    optional_targets: tuple[str, ...] = ()
    unions: Mapping[str, tuple[str, ...]] | None = None
    stereotactic: bool = False

    @property
    def normalization(self) -> Normalization:
        """The normalisation that holds."""
        return self.normalizations[0]


@dataclass(frozen=True)
class GoalResult:
    """A goal with its value on one dose; `value` is None where it could not be evaluated.

    `note` says what a reader must know, such as voxels outside the dose grid.
    """

    goal: Goal
    value: float | None
    status: Status
    note: str = ""

    @property
    def missed(self) -> bool:
        """Whether the goal is not met: it failed, or a must could not be evaluated and is not optional."""
        required = self.goal.priority == 1 and not self.goal.optional
        return self.status == "fail" or (self.status == "not evaluated" and required)


_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@checked(frozen=True, config=_STRICT)
class _GoalText:
    structure: StrictStr
    goal: StrictStr
    priority: StrictInt
    source: StrictStr
    variation: StrictFloat | None = None
    optional: StrictBool = False


@checked(frozen=True, config=_STRICT)
class _SheetText:
    title: StrictStr
    site: StrictStr
    source: StrictStr
    fractions: StrictInt
    prescription_gy: dict[StrictStr, StrictFloat]
    normalization: dict[StrictStr, StrictStr]
    goals: list[_GoalText]
    stereotactic: StrictBool = False
    optional_targets: list[StrictStr] | None = None
    unions: dict[StrictStr, list[StrictStr]] | None = None


def goal_sheet_names() -> tuple[str, ...]:
    """Names of the goal sheets shipped with the package."""
    folder = resources.files("vmat_diffusion") / "goals"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml")))


def load_goals(name_or_path: str | Path) -> GoalSheet:
    """A shipped goal sheet by name, or one's own by the path of its TOML file.

    Raises GoalError, one sentence naming the sheet, the goal and the key at fault.
    """
    if str(name_or_path).endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise GoalError(f"goal sheet {path} does not exist; give a name or an existing file")
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
    try:
        tree = parse_toml(text)
    except ValueError as error:
        raise GoalError(f"{label}: not valid TOML ({error}); correct the file") from None
    try:
        raw = TypeAdapter(_SheetText).validate_python(tree)
    except ValidationError as error:
        # A misspelt key also leaves the right one missing; the misspelt one is what the user can see.
        first = min(error.errors(), key=lambda e: e["type"] != "unexpected_keyword_argument")
        where = " ".join(f"{p + 1}" if isinstance(p, int) else str(p) for p in first["loc"])
        raise GoalError(f"{label}: {where}: {first['msg']}; correct the file") from None
    if not raw.prescription_gy:
        raise GoalError(f"{label}: prescription_gy names no target; at least one is needed")
    try:
        prescription = Prescription(raw.fractions, dict(raw.prescription_gy))
    except CaseError as error:
        raise GoalError(f"{label}: {error}") from None
    sheet = GoalSheet(
        name=name,
        title=raw.title,
        site=raw.site,
        prescription=prescription,
        normalizations=tuple(_normalization(label, k, v) for k, v in raw.normalization.items()),
        goals=tuple(_goal(f"{label}: goal {i}", goal) for i, goal in enumerate(raw.goals, start=1)),
        source=raw.source,
        optional_targets=tuple(raw.optional_targets or ()),
        unions={k: tuple(v) for k, v in (raw.unions or {}).items()},
        stereotactic=raw.stereotactic,
    )
    _check(label, sheet)
    return sheet


def _split(where: str, text: str, structure: str) -> tuple[Metric, str, float]:
    match = _STATEMENT.fullmatch(text.strip())
    if match is None:
        raise GoalError(f"{where} ({structure}): cannot read {text!r}; write for example 'D95% >= 66.5 Gy'")
    try:
        metric = Metric.parse(match[1])
    except GoalError as error:
        raise GoalError(f"{where} ({structure}): {error}") from None
    unit = match[4] or ""
    if metric.kind == "V" and unit == "cc":
        metric = replace(metric, result_unit="cc")
    if unit != metric.result_unit:
        expected = "% or cc" if metric.kind == "V" else metric.result_unit or "no unit"
        raise GoalError(f"{where} ({structure}): {text!r} has the unit {unit!r}; {metric} needs {expected}")
    return metric, match[2], float(match[3])


def _goal(where: str, raw: _GoalText) -> Goal:
    metric, comparator, limit = _split(where, raw.goal, raw.structure)
    if comparator == "=":
        raise GoalError(f"{where} ({raw.structure}): {raw.goal!r} needs >= or <=")
    if not raw.source.strip():
        raise GoalError(f"{where} ({raw.structure}): source is empty; say where the number comes from")
    try:
        return Goal(
            raw.structure,
            metric,
            comparator,  # type: ignore[arg-type]
            limit,
            metric.result_unit,
            raw.variation,
            raw.priority,
            raw.source,
            raw.optional,
        )
    except GoalError as error:
        raise GoalError(f"{where}: {error}") from None


def _normalization(label: str, structure: str, text: str) -> Normalization:
    where = f"{label}: normalization"
    metric, comparator, gy = _split(where, text, structure)
    if comparator != "=" or metric.kind not in ("D%", "mean") or gy <= 0:
        raise GoalError(f"{where} ({structure}): {text!r} must read 'D95% = 66.5 Gy' or 'mean = 70 Gy'")
    return Normalization(structure, metric, gy)


def _check(label: str, sheet: GoalSheet) -> None:
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


def fit_to_case(sheet: GoalSheet, case: Case) -> GoalSheet:
    """The sheet for the targets that the case has, with its names as the case spells them.

    Names mean what they mean in a structure set: `Spinal Cord` and `Cord` are SpinalCord. Optional targets
    that are absent are left out of prescription, normalisation and goals; goals on absent organs stay and
    are reported as not evaluated. Raises GoalError where a required target, or every target, is absent or
    empty, and where two names of targets mean the same.
    """
    sheet = _renamed(sheet, case)
    present = {s.name for s in case.structures.values() if s.mask.any()}
    targets = sheet.prescription.target_gy
    absent = [name for name in targets if name not in present]
    missing = [name for name in absent if name not in sheet.optional_targets] or (
        absent if len(absent) == len(targets) else []
    )
    if missing:
        known = ", ".join(s.name for s in case.targets) or "none"
        raise GoalError(
            f"goal sheet {sheet.name}: target {' and '.join(missing)} is not in the case "
            f"(its targets: {known}); map the structure's name or choose another sheet"
        )
    return replace(
        sheet,
        prescription=replace(
            sheet.prescription, target_gy={k: gy for k, gy in targets.items() if k not in absent}
        ),
        normalizations=tuple(n for n in sheet.normalizations if n.structure not in absent),
        goals=tuple(goal for goal in sheet.goals if goal.structure not in absent),
        optional_targets=tuple(t for t in sheet.optional_targets if t not in absent),
    )


def _renamed(sheet: GoalSheet, case: Case) -> GoalSheet:
    """The sheet with every name of a structure as the case spells it."""
    prescribed: dict[str, float] = {}
    for name, gy in sheet.prescription.target_gy.items():
        meant = _name_in_case(name, case)
        if meant in prescribed:
            raise GoalError(
                f"goal sheet {sheet.name}: prescription_gy names {meant} twice, once as {name}; keep one"
            )
        prescribed[meant] = gy
    return replace(
        sheet,
        prescription=replace(sheet.prescription, target_gy=prescribed),
        normalizations=tuple(
            replace(n, structure=_name_in_case(n.structure, case)) for n in sheet.normalizations
        ),
        goals=tuple(replace(goal, structure=_name_in_case(goal.structure, case)) for goal in sheet.goals),
        optional_targets=tuple(_name_in_case(name, case) for name in sheet.optional_targets),
        unions={
            _name_in_case(name, case): tuple(_name_in_case(part, case) for part in parts)
            for name, parts in (sheet.unions or {}).items()
        },
    )


def _name_in_case(name: str, case: Case) -> str:
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


def missing_required(sheet: GoalSheet, case: Case) -> tuple[Goal, ...]:
    """The musts that cannot be evaluated, as their structure is absent or empty and they are not optional.

    For a sheet and a case that are fitted to each other.
    """
    present = {s.name for s in case.structures.values() if s.mask.any()}
    return tuple(g for g in sheet.goals if g.priority == 1 and not g.optional and g.structure not in present)


def normalization_gy(dose: Dose, case: Case, sheet: GoalSheet) -> float:
    """The metric that the sheet normalises, in Gy; GoalError if it is neither a mean nor a D%."""
    wish = sheet.normalization
    value = histogram_value(wish.metric, structure_dvh(dose, case.structures[wish.structure], case.grid))
    if wish.metric.kind not in ("mean", "D%") or value is None:
        raise GoalError(f"goal sheet {sheet.name}: normalisation {wish} must be a mean or a D% metric")
    return value


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


def add_unions(sheet: GoalSheet, case: Case) -> Case:
    """The case with the sheet's unions (Lungs = Lung_L + Lung_R) where all their parts are contoured.

    A structure that the case has already is kept; each one added is a named step of its source.
    """
    structures, steps = dict(case.structures), []
    for name, parts in (sheet.unions or {}).items():
        if name in structures or not all(part in structures for part in parts):
            continue
        mask = np.logical_or.reduce([structures[part].mask for part in parts])
        structures[name] = Structure(name, "organ", mask)
        steps.append(f"{name} made as the union of {' and '.join(parts)}")
    if not steps:
        return case
    return replace(
        case, structures=structures, source=replace(case.source, steps=(*case.source.steps, *steps))
    )


def evaluate(sheet: GoalSheet, case: Case, dose: Dose) -> tuple[GoalResult, ...]:
    """Every goal of the sheet judged on a dose, in the sheet's order.

    A goal on a structure that is absent or empty is "not evaluated".
    """
    histograms: dict[str, Dvh] = {}
    notes: dict[str, str] = {}
    results = []
    for goal in sheet.goals:
        structure = case.structures.get(goal.structure)
        if structure is None or not structure.mask.any():
            why = "not contoured" if structure is None else "contour is empty"
            results.append(GoalResult(goal, None, "not evaluated", why))
            continue
        if goal.structure not in histograms:
            histograms[goal.structure] = structure_dvh(dose, structure, case.grid)
            outside = outside_percent(dose, structure, case.grid)
            notes[goal.structure] = (
                f"{outside:.1f} % of the structure lies outside the dose grid and counts as 0 Gy"
                if outside
                else ""
            )
        value = _value(goal, histograms[goal.structure], sheet.prescription, case, dose)
        if math.isfinite(value):
            results.append(GoalResult(goal, value, goal.status(value), notes[goal.structure]))
        else:
            results.append(GoalResult(goal, None, "not evaluated", "no dose in the structure"))
    return tuple(results)


def _value(goal: Goal, dvh: Dvh, prescription: Prescription, case: Case, dose: Dose) -> float:
    metric = goal.metric
    level_gy = metric.level_gy(prescription.target_gy.get(goal.structure))
    if metric.kind == "conformity":
        assert level_gy is not None  # a sheet with conformity of a structure without prescription is refused
        return paddick(dvh, level_gy, isodose_volume_cc(dose, level_gy, case.body, case.grid))
    if metric.kind == "homogeneity":
        return homogeneity(dvh)
    value = histogram_value(metric, dvh, level_gy)
    assert value is not None  # every other kind has one
    return value


def goal_record(result: GoalResult) -> dict[str, Any]:
    """A goal's result as plain data; `value` is None where it could not be evaluated."""
    return {
        "goal": result.goal.statement,
        "structure": result.goal.structure,
        "value": None if result.value is None else round(result.value, 4),
        "limit": result.goal.limit,
        "unit": result.goal.unit,
        "status": result.status,
        "missed": result.missed,
    }
