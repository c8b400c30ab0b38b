"""What a run's record says of goals, checks and complexity, arranged for the page.

`record` holds the fields of a `StoredRecord`: all of them are there, each in its form or unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from vmat_diffusion.evaluate.complexity.published import PUBLISHED, SOURCES, ranges_for


def goals(record: Mapping[str, Any]) -> dict[str, Any]:
    """Each goal with its value by both engines, by priority; groups and goals on the delivery beside them."""
    by_check = {(g["goal"], g["structure"]): g for g in record["check_goals"]}
    rows = []
    for goal in record["goals"]:
        other = by_check.get((goal["goal"], goal["structure"]), {})
        kept = ("goal", "structure", "value", "limit", "unit", "status", "missed", "excused", "group")
        more = ("variation", "priority", "note", "source", "seen", "condition")
        rows.append(
            {
                **{key: goal[key] for key in (*kept, *more)},
                "check_value": other.get("value"),
                "check_status": other.get("status"),
            }
        )
    rows.sort(key=lambda row: row["priority"] or 9)
    return {
        "goals": rows,
        **{key: record[key] for key in ("groups", "delivery_goals", "remarks", "conflicts", "sheet")},
    }


def checks(record: Mapping[str, Any]) -> dict[str, Any]:
    """The gate's checks in its order, each with its reason and the figures that belong to it.

    `key` names a check for the page and for what was seen of it; `evidence` are lines of text.
    """
    verdict = record["verdict"]
    used: dict[str, int] = {}
    out = []
    for check in verdict["checks"]:
        name = check["name"]
        used[name] = used.get(name, 0) + 1
        key = name if used[name] == 1 else f"{name} ({used[name]})"
        row = {part: check[part] for part in ("name", "group", "result", "value", "limit", "unit")}
        out.append({**row, "key": key, "evidence": _evidence(check, verdict, record), **_where(check)})
    return {
        "outcome": verdict["outcome"],
        "corrected": verdict["corrected"],
        "checks": out,
        "violations": record["violations"],
    }


def _evidence(check: Mapping[str, Any], verdict: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """The sentences of a check, and for gamma and robustness what was found in figures."""
    lines = [part.strip() for part in (check["why"] or "").split("; ") if part.strip()]
    name, found = check["name"], verdict["gamma"]
    if found and name == f"gamma {_short(found['dose_percent'])} %/{_short(found['distance_mm'])} mm":
        figures = ("pass_percent", "points", "outside", "mean_gamma")
        lines += [_figure(key, found[key]) for key in figures if found[key] is not None]
    if name.startswith(_ROBUSTNESS):
        lines += _scenarios(record["robustness"], name.removeprefix(_ROBUSTNESS))
    return lines


_ROBUSTNESS = "robustness: "


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _figure(key: str, value: object) -> str:
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{key.replace('_percent', ', %').replace('_', ' ')}: {shown}"


def _scenarios(found: Mapping[str, Any], row: str) -> list[str]:
    """What each error of the linac in a row of the robustness changes."""
    return [
        f"{one['scenario']}: {', '.join(map(_change, one['changes']))}"
        for one in found["scenarios"]
        if one["row"] == row
    ]


def _change(found: Mapping[str, Any]) -> str:
    gy, percent = (
        "unknown" if found[key] is None else f"{found[key]:+.2f}" for key in ("change_gy", "change_percent")
    )
    return f"{found['structure']} {found['metric']} {gy} Gy ({percent} %)"


_MM = r"(-?\d{1,5}(?:\.\d{1,6})?)"
_PLACE = re.compile(rf"x, y, z = {_MM}, {_MM}, {_MM} mm")
_DIFFERENCE = ("gamma", "dose of any", "mean dose", "D95%", "D2%", "factor")


def _where(check: Mapping[str, Any]) -> dict[str, Any]:
    """Where in the images to look at a check: a place in mm, and whether the difference map shows it."""
    place = _PLACE.search(check["why"] or "")
    return {
        "place_mm": [float(v) for v in place.groups()] if place else None,
        "difference": check["name"].startswith(_DIFFERENCE),
    }


def complexity(record: Mapping[str, Any]) -> dict[str, Any]:
    """Each metric of the plan with published values, and the range that it lies in or beyond."""
    known = {r.metric: r for r in ranges_for(record["site"] or "")}
    rows = []
    for name, value in record["complexity"].items():
        if name not in PUBLISHED:
            continue
        about, limit = PUBLISHED[name], known.get(name)
        rows.append(
            {
                "name": name,
                "title": about.title,
                "unit": about.unit,
                "value": value,
                "published": about.values,
                "least": limit.least if limit else None,
                "most": limit.most if limit else None,
                "range": limit.text if limit else "",
                "source": limit.source_text if limit else "",
                "outside": bool(limit and value is not None and limit.outside(float(value))),
            }
        )
    return {"metrics": rows, "sources": list(SOURCES)}
