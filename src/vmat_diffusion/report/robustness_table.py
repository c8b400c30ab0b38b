"""What small errors of the linac do to the dose, as a table of the report."""

from __future__ import annotations

from typing import Any

from vmat_diffusion.qa import Robustness
from vmat_diffusion.report.goals_table import pretty

_STATUS = {"green": "pass", "amber": "acceptable", "red": "fail", "": ""}
_WORDS = {"green": "within", "amber": "look", "red": "above limit", "": "reported"}


def robustness_table(found: Robustness) -> dict[str, Any]:
    """The scenarios as rows; the doses that change are columns, their units in the header."""
    first = found.results[0].changes if found.results else ()
    return {
        "reason": f"Not computed: {found.reason}",
        "gap": found.gap_text[:1].upper() + found.gap_text[1:],
        "columns": [f"{c.structure} {c.metric} [{'%' if c.of_target else 'Gy'}]" for c in first],
        "rows": [
            {
                "name": r.name,
                "status": _STATUS[r.colour],
                "word": _WORDS[r.colour],
                "note": pretty("; ".join(r.goals_lost)),
                "values": [_shown(c.percent if c.of_target else c.gy) for c in r.changes],
                "look": _limit(r.accepted_percent),
                "limit": _limit(r.limit_percent),
            }
            for r in found.results
        ],
        "sources": list(dict.fromkeys(f"{r.row}: {r.source}" for r in found.results)),
    }


def _shown(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _limit(percent: float | None) -> str:
    return "–" if percent is None else f"±{percent:g} %"
