"""A run's record (`run.json`) as it can be trusted, whichever version or program wrote it.

Each field that is shown or judged has a form; what has another one counts as unknown. Unknown is never met: a
goal without a known status is not evaluated, a check without a known result is undecided.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vmat_diffusion.errors import PlanError
from vmat_diffusion.files import parse_json, why_no_file
from vmat_diffusion.workflow.planning.open_check import RECORD

# Of a longer list nothing could be looked at; the goals and checks of a plan are tens.
_ITEMS_MAX = 2000
_NAMED_MAX = 5
_UNNAMED = "not stated"
_STATUSES = ("pass", "acceptable", "fail", "not evaluated")
_RESULTS = ("pass", "fail", "undecided", "warning", "reported")
_OUTCOMES = ("PASSED", "FAILED", "INCONCLUSIVE")
_FRACTIONS_MAX = 1000


@dataclass(frozen=True)
class StoredRecord:
    """The fields of a record that are known, each in its form, `None` or empty where it is not.

    `missing` names what a record of today holds and this one does not, or in a form that is not known.
    """

    fields: Mapping[str, Any]
    missing: tuple[str, ...]

    @property
    def remark(self) -> str:
        """A sentence on what is missing; empty where nothing is."""
        if not self.missing:
            return ""
        more = len(self.missing) - _NAMED_MAX
        named = ", ".join(self.missing[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
        return (
            f"{RECORD} of the plan does not say, or in no form that is known: {named}; the rest is shown, "
            "plan the case again for all of it"
        )


# A form takes a value, its place, and the list of what is missing; it returns what is known of the value.
_Form = Callable[[Any, str, list[str]], Any]


def read_record(folder: Path) -> StoredRecord:
    """The record of the run in a folder. Raises PlanError where there is none or it is no JSON object."""
    file = folder / RECORD
    if not file.is_file():
        raise PlanError(f"{RECORD} of the run {why_no_file(file)}; name a folder that `plan` has written")
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise PlanError(f"{RECORD} of the run cannot be read; plan the case again")
    return known_record(found)


def known_record(found: Mapping[str, Any]) -> StoredRecord:
    """What of a record is known."""
    missing: list[str] = []
    fields = _RECORD(found, "", missing)
    return StoredRecord(fields, tuple(dict.fromkeys(missing)))


def _scalar(kind: type | tuple[type, ...], holds: Callable[[Any], bool] = lambda _: True) -> _Form:
    """Values of a type (True and False are no numbers) for which `holds`; None is one that is not stated."""

    def form(value: Any, place: str, missing: list[str]) -> Any:
        if value is None:
            return None
        of_kind = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if of_kind and holds(value):
            return value
        missing.append(place)
        return None

    return form


def _is_text(value: str) -> bool:
    """Whether a text can be sent: JSON may hold halves of characters."""
    return not any("\ud800" <= letter <= "\udfff" for letter in value)


_TEXT = _scalar(str, _is_text)
_FLAG = _scalar(bool)
_COUNT = _scalar(int, lambda value: 0 <= value < 2**53)
_NUMBER = _scalar((int, float), math.isfinite)
_POSITIVE = _scalar((int, float), lambda value: 0 < value < math.inf)


def _word(known: tuple[str, ...]) -> _Form:
    return _scalar(str, lambda value: value in known)


def _listed(item: _Form, *, gaps: bool = False) -> _Form:
    """A list of items; those that are not known are left out, or None where their number counts (`gaps`)."""

    def form(value: Any, place: str, missing: list[str]) -> list[Any]:
        if value is None:
            return []
        if not isinstance(value, list | tuple) or len(value) > _ITEMS_MAX:
            missing.append(place)
            return []
        found = [item(one, f"{place} {k}", missing) for k, one in enumerate(value, start=1)]
        return found if gaps else [one for one in found if one is not None]

    return form


def _table(item: _Form, *, gaps: bool = False) -> _Form:
    """Values by names; what is not known is left out, or None (`gaps`)."""

    def form(value: Any, place: str, missing: list[str]) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, Mapping) or len(value) > _ITEMS_MAX:
            missing.append(place)
            return {}
        known = {name: item(one, place, missing) for name, one in value.items() if _is_text(str(name))}
        return {str(name): one for name, one in known.items() if gaps or one is not None}

    return form


def _part(forms: Mapping[str, _Form], required: tuple[str, ...] = ()) -> _Form:
    """Named fields; one that is required is missed where it is absent. None for what is no such part."""

    def form(value: Any, place: str, missing: list[str]) -> dict[str, Any] | None:
        if not isinstance(value, Mapping):
            if value is not None:
                missing.append(place)
            return None
        where = f"{place}: " if place else ""
        missing.extend(f"{where}{name}" for name in required if value.get(name) is None)
        return {name: known(value.get(name), f"{where}{name}", missing) for name, known in forms.items()}

    return form


def _always(form: _Form) -> _Form:
    """A part that is there, with nothing known of it, where the record holds none."""

    def whole(value: Any, place: str, missing: list[str]) -> Any:
        found = form(value, place, missing)
        return form({}, place, missing) if found is None else found

    return whole


def _goal(forms: Mapping[str, _Form], required: tuple[str, ...]) -> _Form:
    """A goal: one without a known status is not evaluated, and missed unless the record says otherwise."""
    part = _part(forms, required)

    def form(value: Any, place: str, missing: list[str]) -> dict[str, Any]:
        goal = part(value, place, missing)
        if goal is None:
            missing.append(place)
            goal = part({}, place, [])
        assert goal is not None
        for name in ("goal", "structure"):
            if name in goal:
                goal[name] = goal[name] or _UNNAMED
        goal["status"] = goal["status"] or "not evaluated"
        if goal["missed"] is None:
            goal["missed"] = goal["status"] not in ("pass", "acceptable")
        return goal

    return form


_CHECK_PART = _part(
    {
        **dict.fromkeys(("name", "group", "unit", "why"), _TEXT),
        **dict.fromkeys(("value", "limit"), _NUMBER),
        "result": _word(_RESULTS),
        "passed": _FLAG,
    },
    required=("name",),
)


def _check(value: Any, place: str, missing: list[str]) -> dict[str, Any]:
    """A check: earlier records say whether it passed, and not more; one that says neither is undecided."""
    check = _CHECK_PART(value, place, missing)
    if check is None:
        missing.append(place)
        check = _CHECK_PART({}, place, [])
    passed = check.pop("passed")
    if check["result"] is None and passed is None:
        missing.append(f"{place}: result")
    said = {True: "pass", False: "fail", None: "undecided"}[passed]
    return {**check, "name": check["name"] or _UNNAMED, "result": check["result"] or said}


_RESULT = {
    **dict.fromkeys(("goal", "unit", "note", "source", "seen"), _TEXT),
    **dict.fromkeys(("value", "limit", "variation"), _NUMBER),
    "priority": _COUNT,
    "status": _word(_STATUSES),
    "missed": _FLAG,
}
_GOAL = _goal(
    {**_RESULT, **dict.fromkeys(("structure", "group", "condition"), _TEXT), "excused": _FLAG},
    ("goal", "structure", "status"),
)
_GROUP = _goal(
    {
        **dict.fromkeys(("group", "source"), _TEXT),
        **dict.fromkeys(("at_least", "met", "priority"), _COUNT),
        "of": _listed(_TEXT),
        "status": _word(_STATUSES),
        "missed": _FLAG,
    },
    ("group", "status"),
)
_GAMMA = _part(
    dict.fromkeys(
        ("dose_percent", "distance_mm", "pass_percent", "points", "outside", "mean_gamma"), _NUMBER
    ),
    ("dose_percent", "distance_mm"),
)
_CHANGE = _part(
    {
        **dict.fromkeys(("structure", "metric"), _TEXT),
        **dict.fromkeys(("change_gy", "change_percent"), _NUMBER),
    },
    ("structure", "metric", "change_gy", "change_percent"),
)
_SCENARIO = _part({"row": _TEXT, "scenario": _TEXT, "changes": _listed(_CHANGE)})
_VERDICT = _part(
    {
        "outcome": _word(_OUTCOMES),
        "corrected": _FLAG,
        "checks": _listed(_check, gaps=True),
        "gamma": _GAMMA,
    },
    ("outcome", "checks"),
)


def _training(value: Any, place: str, missing: list[str]) -> bool:
    """Whether the run is an exercise; whatever the record says of it but no keeps the run in the room."""
    return value is not None and value is not False


_ENGINE = _always(_part({"engine": _TEXT}))
_RECORD = _part(
    {
        "created": _TEXT,
        "site": _TEXT,
        "training": _training,
        "fractions": _scalar(int, lambda value: 0 < value <= _FRACTIONS_MAX),
        "mu": _NUMBER,
        "delivery_s": _NUMBER,
        "arc_delivery_s": _listed(_NUMBER, gaps=True),
        "prescription_gy": _table(_POSITIVE),
        "complexity": _table(_NUMBER, gaps=True),
        "sheet": _always(_part({"title": _TEXT, "name": _TEXT})),
        "goals": _listed(_GOAL),
        "check_goals": _listed(_GOAL),
        "groups": _listed(_GROUP),
        "delivery_goals": _listed(_goal(_RESULT, ("goal", "status"))),
        "remarks": _listed(_TEXT),
        "conflicts": _listed(_TEXT),
        "violations": _listed(_TEXT),
        "verdict": _always(_VERDICT),
        "robustness": _always(_part({"scenarios": _listed(_SCENARIO)})),
        "inputs": _always(
            _part({"patient_position": _TEXT, "uid_hashes": _table(_TEXT)}, required=("uid_hashes",))
        ),
        "settings": _always(_part({"machine": _TEXT})),
        "dose": _ENGINE,
        "check": _ENGINE,
    },
    ("arc_delivery_s", "goals", "prescription_gy", "fractions"),
)
