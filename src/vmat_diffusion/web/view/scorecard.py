"""What a run's record says of goals, checks and complexity, arranged for the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vmat_diffusion.evaluate.complexity.published import PUBLISHED, SOURCES, ranges_for


def goals(record: Mapping[str, Any]) -> dict[str, Any]:
    """Each goal with its value by both engines, by priority; groups and goals on the delivery beside them."""
    by_check = {(g["goal"], g["structure"]): g for g in _items(record, "check_goals")}
    rows = []
    for goal in _items(record, "goals"):
        other = by_check.get((goal["goal"], goal["structure"]), {})
        kept = ("goal", "structure", "value", "limit", "unit", "status", "missed", "excused", "group")
        more = ("variation", "priority", "note", "source", "seen", "condition")
        rows.append(
            {
                **{key: goal.get(key) for key in (*kept, *more)},
                "check_value": other.get("value"),
                "check_status": other.get("status"),
            }
        )
    rows.sort(key=lambda row: row["priority"] or 9)
    return {
        "goals": rows,
        "groups": _items(record, "groups"),
        "delivery_goals": _items(record, "delivery_goals"),
        "remarks": list(record.get("remarks") or ()),
        "conflicts": list(record.get("conflicts") or ()),
        "sheet": record.get("sheet") or {},
    }


def checks(record: Mapping[str, Any]) -> dict[str, Any]:
    """The gate's checks in its order, each with its reason and the figures that belong to it.

    `key` names a check for the page and for what was seen of it; `evidence` are lines of text.
    """
    verdict = record.get("verdict") or {}
    used: dict[str, int] = {}
    out = []
    for check in _items(verdict, "checks"):
        name = str(check.get("name", ""))
        used[name] = used.get(name, 0) + 1
        key = name if used[name] == 1 else f"{name} ({used[name]})"
        row = {part: check.get(part) for part in ("name", "group", "result", "value", "limit", "unit")}
        out.append({**row, "key": key, "evidence": _evidence(check, verdict, record), **_where(check)})
    return {
        "outcome": verdict.get("outcome"),
        "corrected": verdict.get("corrected"),
        "checks": out,
        "gate": record.get("gate") or {},
        "violations": list(record.get("violations") or ()),
    }


def _evidence(check: Mapping[str, Any], verdict: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """The sentences of a check, and for gamma and robustness what was found in figures."""
    lines = [part.strip() for part in str(check.get("why") or "").split("; ") if part.strip()]
    name = str(check.get("name", ""))
    if name.startswith("gamma") and isinstance(verdict.get("gamma"), Mapping):
        found = verdict["gamma"]
        mine = f"gamma {found.get('dose_percent'):g} %/{found.get('distance_mm'):g} mm"
        if name == mine:
            figures = ("pass_percent", "points", "outside", "mean_gamma")
            lines += [_figure(key, found[key]) for key in figures if key in found]
    if name.startswith(_ROBUSTNESS) and isinstance(record.get("robustness"), Mapping):
        lines += _scenarios(record["robustness"], name.removeprefix(_ROBUSTNESS))
    return lines


_ROBUSTNESS = "robustness: "


def _figure(key: str, value: object) -> str:
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{key.replace('_percent', ', %').replace('_', ' ')}: {shown}"


def _scenarios(found: Mapping[str, Any], row: str) -> list[str]:
    """What each error of the linac in a row of the robustness changes."""
    out = []
    for one in _items(found, "scenarios"):
        if one.get("row") == row:
            changes = (
                f"{c['structure']} {c['metric']} {c['change_gy']:+.2f} Gy ({c['change_percent']:+.2f} %)"
                for c in _items(one, "changes")
            )
            out.append(f"{one.get('scenario')}: {', '.join(changes)}")
    return out


_PLACE = re.compile(r"x, y, z = (-?\d+(?:\.\d+)?), (-?\d+(?:\.\d+)?), (-?\d+(?:\.\d+)?) mm")
_DIFFERENCE = ("gamma", "dose of any", "mean dose", "D95%", "D2%", "factor")


def _where(check: Mapping[str, Any]) -> dict[str, Any]:
    """Where in the images to look at a check: a place in mm, and whether the difference map shows it."""
    place = _PLACE.search(str(check.get("why") or ""))
    return {
        "place_mm": [float(v) for v in place.groups()] if place else None,
        "difference": str(check.get("name", "")).startswith(_DIFFERENCE),
    }


def complexity(record: Mapping[str, Any]) -> dict[str, Any]:
    """Each metric of the plan with published values, and the range that it lies in or beyond."""
    found = record.get("complexity") or {}
    known = {r.metric: r for r in ranges_for(str(record.get("site") or ""))}
    rows = []
    for name, value in found.items():
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


def _items(record: Mapping[str, Any], key: str) -> Sequence[Mapping[str, Any]]:
    found = record.get(key)
    return [item for item in found if isinstance(item, Mapping)] if isinstance(found, list) else []
