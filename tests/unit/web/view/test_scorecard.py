"""Goals, checks and complexity are arranged without losing or inventing any."""

from __future__ import annotations

from typing import Any

from viewed_run import arcs, record, shaped_case

from vmat_diffusion.web.view import scorecard
from vmat_diffusion.workflow.planning.stored_record import known_record

RECORD: dict[str, Any] = dict(record(shaped_case(), arcs()))


def goals_of(found: dict[str, Any]) -> dict[str, Any]:
    return scorecard.goals(known_record(found).fields)


def checks_of(found: dict[str, Any]) -> dict[str, Any]:
    return scorecard.checks(known_record(found).fields)


def complexity_of(found: dict[str, Any]) -> dict[str, Any]:
    return scorecard.complexity(known_record(found).fields)


def test_goals_hold_both_engines() -> None:
    found = goals_of(RECORD)["goals"]
    assert [(g["structure"], g["value"], g["check_value"], g["status"]) for g in found] == [
        ("PTV_60", 56.1, 56.300000000000004, "fail"),
        ("SpinalCord", 41.2, 41.400000000000006, "pass"),
    ]
    without = goals_of({**RECORD, "check_goals": None})["goals"]
    assert [g["check_value"] for g in without] == [None, None]


def test_goals_come_by_priority() -> None:
    second = {**RECORD["goals"][0], "goal": "a wish", "priority": 3}
    third = {**RECORD["goals"][0], "goal": "a should", "priority": 2}
    found = goals_of({**RECORD, "goals": [second, third, *RECORD["goals"]]})["goals"]
    assert [g["priority"] for g in found] == [1, 1, 2, 3]


def test_checks_keep_their_order_and_show_where_they_speak_of() -> None:
    found = checks_of(RECORD)["checks"]
    assert [c["key"] for c in found] == [c["name"] for c in RECORD["verdict"]["checks"]]
    region = found[1]
    assert region["place_mm"] == [4.0, -6.0, 8.0] and region["difference"]
    assert found[0]["place_mm"] is None
    assert found[0]["evidence"] == ["3 %/3 mm global", "100 % = 60.00 Gy"]


def test_a_name_that_comes_again_has_its_number_behind_it() -> None:
    twice = [*RECORD["verdict"]["checks"], RECORD["verdict"]["checks"][0]]
    found = checks_of({**RECORD, "verdict": {**RECORD["verdict"], "checks": twice}})["checks"]
    assert [c["key"] for c in found][-1] == "gamma 3 %/3 mm (2)"


def test_the_evidence_of_gamma_and_robustness_has_their_figures() -> None:
    gamma = {"dose_percent": 3.0, "distance_mm": 3.0, "pass_percent": 99.1234, "points": 4711, "outside": 0}
    changes = [{"structure": "PTV_60", "metric": "D95%", "change_gy": -0.31, "change_percent": -0.52}]
    scenarios = [{"row": "gap 1 mm", "scenario": "gaps 1 mm wider", "changes": changes}, {"row": "other"}]
    row = {"name": "robustness: gap 1 mm", "why": "w"}
    checks = [*RECORD["verdict"]["checks"], row]
    found = checks_of(
        {
            **RECORD,
            "verdict": {"checks": checks, "gamma": gamma},
            "robustness": {"scenarios": scenarios},
        }
    )["checks"]
    assert "points: 4711" in found[0]["evidence"] and "pass, %: 99.12" in found[0]["evidence"]
    assert found[-1]["evidence"] == ["w", "gaps 1 mm wider: PTV_60 D95% -0.31 Gy (-0.52 %)"]


def test_complexity_stands_beside_the_ranges_of_the_site() -> None:
    found = {m["name"]: m for m in complexity_of(RECORD)["metrics"]}
    assert found["mcs"]["outside"] and found["mcs"]["least"] == 0.14
    assert not found["mu_per_gy"]["outside"] and found["mu_per_gy"]["most"] == 275.0
    assert complexity_of({**RECORD, "site": "prostate"})["metrics"][1]["most"] == 400.0


def test_a_record_without_anything_is_shown_empty() -> None:
    assert checks_of({})["checks"] == []
    assert goals_of({})["goals"] == []
    assert complexity_of({})["metrics"] == []
