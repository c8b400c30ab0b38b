"""Several plans of one case side by side: target coverage against organ doses, from their run folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, StrictBool, StrictFloat, StrictStr, TypeAdapter

from vmat_diffusion.errors import InputError, PlanError
from vmat_diffusion.files import is_plain_name, parse_json, written_whole
from vmat_diffusion.origin import uid_code
from vmat_diffusion.workflow.planning.run_files import PLAN_FILE, RECORD

# Inputs of a run that are the same for plans of one case: the images and the contours.
_SAME_CASE = ("frame_of_reference", "series", "structure_set")


def _plain_name(name: str) -> str:
    if not is_plain_name(name):
        raise ValueError("a file outside the folder of the run")
    return name


@dataclass(frozen=True)
class AskedGoal:
    """A goal of the runs' sheet; `coverage` where it asks a target for at least a dose or volume."""

    structure: str
    statement: str
    limit: float
    unit: str
    target: bool

    @property
    def coverage(self) -> bool:
        """Whether a target is asked for at least so much."""
        return self.target and ">=" in self.statement

    @property
    def label(self) -> str:
        """Structure and statement."""
        return f"{self.structure} {self.statement}"


@dataclass(frozen=True)
class PlanPoint:
    """One plan. `values` are by goal label, None where a goal could not be evaluated.

    `coverage_percent` is the least that any goal on a target's coverage reaches, in percent of its limit.
    `failed_checks` keep it from having passed the gate; `missing` are files of the run that are gone.
    """

    name: str
    coverage_percent: float | None
    values: Mapping[str, float | None]
    failed_checks: tuple[str, ...]
    missing: tuple[str, ...]
    mu: float
    delivery_s: float
    outcome: str

    @property
    def complete(self) -> bool:
        """Whether it went through the gate and all its files are there."""
        return not self.failed_checks and not self.missing

    @property
    def state(self) -> str:
        """Gate and files in words."""
        if self.failed_checks:
            return f"not passed: {', '.join(self.failed_checks)}"
        return f"passed, but without {', '.join(self.missing)}" if self.missing else "passed"


@dataclass(frozen=True)
class TradeOff:
    """Plans of one case by one goal sheet. `remarks` are sentences on what is not complete."""

    goals: tuple[AskedGoal, ...]
    plans: tuple[PlanPoint, ...]
    remarks: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "goals": [{**asdict(g), "coverage": g.coverage} for g in self.goals],
            "plans": [{**asdict(p), "complete": p.complete} for p in self.plans],
            "remarks": list(self.remarks),
        }


def read_trade_off(folders: Sequence[Path]) -> TradeOff:
    """The plans of run folders of `plan`, each with the candidates in it that were not chosen.

    Raises InputError for a folder without a run, and for runs of different cases or goals.
    """
    folders = [one for folder in folders for one in (folder, *sorted(folder.glob(f"candidate_*/{RECORD}")))]
    folders = [one.parent if one.name == RECORD else one for one in folders]
    records = [_record(folder) for folder in folders]
    for folder, record in zip(folders[1:], records[1:], strict=True):
        _refuse_different(folders[0], records[0], folder, record)
    goals = tuple(_asked(goal, records[0]) for goal in records[0]["goals"])
    names = _names(folders)
    plans = [_point(*one, goals) for one in zip(names, folders, records, strict=True)]
    if all(p.coverage_percent is None for p in plans):
        raise InputError(
            "no goal of these runs asks a target for a least dose, so there is no coverage to show; plan "
            "with a goal such as D95% >= 66.5 Gy"
        )
    remarks = [f"{p.name} is not complete: {p.state}." for p in plans if not p.complete]
    return TradeOff(goals, tuple(plans), tuple(remarks))


def write_trade_off(path: Path, found: TradeOff, *, overwrite: bool = False) -> Path:
    """Write the plot as PNG. Raises PlanError where the file is there and not to be overwritten."""
    from vmat_diffusion.report.comparison import Panel, trade_off_png

    if path.is_dir() or (path.exists() and not overwrite):
        raise PlanError(f"{path} is there already; name another file with --out or pass --overwrite")
    if not path.absolute().parent.is_dir():
        raise PlanError(f"folder {path.parent} does not exist; make it or name another file with --out")
    panels = [
        Panel(f"{g.structure} {g.statement}", g.unit, g.limit, tuple(p.values[g.label] for p in found.plans))
        for g in found.goals
        if not g.target and "<=" in g.statement and any(p.values[g.label] is not None for p in found.plans)
    ]
    data = trade_off_png(
        [p.name for p in found.plans],
        [p.coverage_percent for p in found.plans],
        [p.complete for p in found.plans],
        panels,
    )
    with written_whole(path) as part:
        part.write_bytes(data)
    return path.resolve()


@dataclass(frozen=True)
class _GoalOfRun:
    structure: StrictStr
    goal: StrictStr
    value: StrictFloat | None
    limit: StrictFloat
    unit: StrictStr


@dataclass(frozen=True)
class _CheckOfRun:
    name: StrictStr
    passed: StrictBool


@dataclass(frozen=True)
class _VerdictOfRun:
    checks: list[_CheckOfRun]


@dataclass(frozen=True)
class _Run:
    """What is used of the record of a run; it holds more."""

    goals: list[_GoalOfRun]
    inputs: dict[StrictStr, Any]
    verdict: _VerdictOfRun
    prescription_gy: dict[StrictStr, StrictFloat]
    files: list[Annotated[StrictStr, AfterValidator(_plain_name)]]
    mu: StrictFloat
    delivery_s: StrictFloat
    outcome: StrictStr


_RUN = TypeAdapter(_Run)


def _record(folder: Path) -> dict[str, Any]:
    file = folder / RECORD
    if not file.is_file():
        raise InputError(f"{folder} holds no {RECORD}; name a folder that plan has written")
    try:
        record = parse_json(file.read_text(encoding="utf-8"))
        _RUN.validate_python(record)
    except ValueError:  # of pydantic too
        raise InputError(f"{file} is no record of a planning run; plan the case again") from None
    return dict(record)


def _refuse_different(first: Path, a: Mapping[str, Any], second: Path, b: Mapping[str, Any]) -> None:
    if _of_case(a) != _of_case(b):
        raise InputError(
            f"{first} and {second} are plans of different images or contours; name plans of one case"
        )
    asked = [[(g["structure"], g["goal"]) for g in record["goals"]] for record in (a, b)]
    if asked[0] != asked[1]:
        raise InputError(f"{first} and {second} were planned by different goals; plan both by one sheet")


def _of_case(record: Mapping[str, Any]) -> list[Any]:
    """The codes of the images and contours; records of earlier versions hold the UIDs themselves."""
    inputs = record["inputs"]
    codes = inputs.get("uid_hashes")
    if not codes or not isinstance(codes, Mapping):
        codes = {name: uid_code(inputs.get(f"{name}_uid")) for name in _SAME_CASE}
    return [codes.get(name) for name in _SAME_CASE]


def _asked(goal: Mapping[str, Any], record: Mapping[str, Any]) -> AskedGoal:
    structure = goal["structure"]
    return AskedGoal(
        structure, goal["goal"], goal["limit"], goal["unit"], structure in record["prescription_gy"]
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, or their paths where two are called the same."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _point(name: str, folder: Path, record: Mapping[str, Any], goals: Sequence[AskedGoal]) -> PlanPoint:
    values = {f"{g['structure']} {g['goal']}": g["value"] for g in record["goals"]}
    covered = [
        100 * values[g.label] / g.limit
        for g in goals
        if g.coverage and g.limit > 0 and values[g.label] is not None
    ]
    checks = [c["name"] for c in record["verdict"]["checks"] if not c["passed"]]
    files = {*record["files"], *([] if checks else [PLAN_FILE])}
    return PlanPoint(
        name=name,
        coverage_percent=min(covered) if covered else None,
        values=values,
        failed_checks=tuple(checks),
        missing=tuple(sorted(f for f in files if not (folder / f).exists())),
        mu=record["mu"],
        delivery_s=record["delivery_s"],
        outcome=record["outcome"],
    )
