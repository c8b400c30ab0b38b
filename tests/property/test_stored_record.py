"""Whatever a run's record or arrays hold, the room answers what is known of it, or one sentence.

Unknown is never met: no change of a record makes a goal met or a check passed that was not.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import mutants
import pytest
from fastapi.testclient import TestClient
from stand_in_worker import record as room_record
from viewed_run import arcs, made_run, record, shaped_case
from viewer_server import application

from vmat_diffusion.errors import PlanError
from vmat_diffusion.network.results import _lines
from vmat_diffusion.web.checklist import checklist, needed
from vmat_diffusion.web.runs import RunEntry
from vmat_diffusion.web.view import scorecard
from vmat_diffusion.workflow.planning.stored_record import known_record, read_record

_RUN = RunEntry("r", "c", 1, "u", "2026-12-01", "PASSED", {}, {"PTV_60": [3, 4]})
_ROUTES = ("view", "structures", "goals", "checks", "complexity", "arcs", "dose/planned/axial/5")


def _whole() -> dict[str, Any]:
    """A record with all parts that are read, for the mutations to find."""
    scenario = {"row": "gap", "scenario": "gaps 1 mm wider", "changes": [{"structure": "PTV_60"}]}
    scenario["changes"][0] |= {"metric": "D95%", "change_gy": -0.3, "change_percent": -0.5}  # type: ignore[index]
    group = {"group": "lungs", "at_least": 1, "of": ["a", "b"], "met": 1, "status": "pass", "missed": False}
    found = json.loads(json.dumps(record(shaped_case(), arcs())))
    found["verdict"]["gamma"] = {"dose_percent": 3.0, "distance_mm": 3.0, "pass_percent": 99.1, "points": 9}
    found["verdict"]["checks"].append({"name": "robustness: gap", "result": "pass", "why": "w"})
    return {
        **found,
        **room_record("PASSED"),
        "verdict": found["verdict"],
        "goals": found["goals"],
        "groups": [group],
        "delivery_goals": [{"goal": "MU <= 500", "value": 300.0, "status": "pass", "priority": 2}],
        "robustness": {"scenarios": [scenario]},
        "remarks": ["a"],
        "conflicts": ["b"],
        "violations": ["c"],
    }


def _sent(answer: object) -> None:
    """As the server sends it: numbers that JSON has, letters that UTF-8 has."""
    json.dumps(answer, allow_nan=False, ensure_ascii=False).encode("utf-8")


def _require_answers(fields: Any) -> None:
    for part in (scorecard.goals, scorecard.checks, scorecard.complexity):
        _sent(part(fields))
    for item in checklist():
        _sent(needed(item, _RUN, fields))
    _sent(list(_lines(fields, fields["verdict"]["outcome"])))


def _met(found: Any) -> Counter[str]:
    """What a record says is met or passed, as far as it can be read at all."""
    out: Counter[str] = Counter()
    for key, words in (("goals", ("pass", "acceptable")), ("checks", ("pass",))):
        held = found["verdict"] if key == "checks" else found
        items = held.get(key) if isinstance(held, dict) else None
        for item in items if isinstance(items, list) else []:
            said = item.get("result" if key == "checks" else "status") if isinstance(item, dict) else None
            out[key] += said in words
            out[key] += key == "checks" and said not in _RESULTS and item_passed(item)
    return out


_RESULTS = ("pass", "fail", "undecided", "warning", "reported")


def item_passed(item: Any) -> bool:
    return isinstance(item, dict) and item.get("passed") is True


def test_a_record_of_today_says_all() -> None:
    assert known_record(_whole()).missing == ()
    assert known_record(room_record("PASSED")).remark == ""


def test_changed_records_are_answered_and_nothing_becomes_met() -> None:
    tally: Counter[bool] = Counter()
    for seed in range(1500):
        draw = random.Random(seed)
        tree: Any = _whole()
        for _ in range(draw.choice([1, 1, 3, 10])):
            if isinstance(tree, dict) and isinstance(tree.get("verdict"), dict):
                tree = mutants.tree_changed(draw, tree)
        if not isinstance(tree, dict):
            continue
        stored = known_record(tree)
        _require_answers(stored.fields)
        assert "\n" not in stored.remark
        tally[bool(stored.remark)] += 1
        if isinstance(tree.get("verdict"), dict):
            met, said = _met(stored.fields), _met(tree)
            assert met["goals"] <= said["goals"] and met["checks"] <= said["checks"], seed
    assert tally[True] > 200 and tally[False] > 200, tally


@pytest.mark.parametrize(
    ("text", "words"),
    [("[]", "cannot be read"), ("[" * 100_000, "cannot be read"), ('{"mu": 1e999}', "cannot be read")],
)
def test_what_is_no_record_is_refused(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(PlanError, match=words):
        read_record(tmp_path)
    with pytest.raises(PlanError, match=r"run\.json of the run"):
        read_record(tmp_path / "nowhere")


def test_half_a_letter_and_a_place_beyond_all_numbers_are_not_sent() -> None:
    place = f"x, y, z = {'9' * 400}, 0, 0 mm"
    checks = [{"name": "dose", "result": "fail", "why": place}, {"name": "\ud800", "result": "pass"}]
    stored = known_record({**_whole(), "verdict": {"outcome": "FAILED", "checks": checks}, "site": "\udfff"})
    _require_answers(stored.fields)
    assert "verdict: checks 2: name" in stored.missing and "site" in stored.missing


@pytest.fixture(scope="module")
def viewed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TestClient]:
    root = tmp_path_factory.mktemp("viewed")
    folder, case = made_run(root)
    (folder / "run.json").write_text(json.dumps(_whole() | {"inputs": record_inputs(folder)}))
    client = TestClient(application({"run": (folder, case)}, root / "store"))
    assert all(client.get(f"/api/runs/run/{path}").status_code == 200 for path in _ROUTES)
    return folder, client


def record_inputs(folder: Path) -> Any:
    return json.loads((folder / "run.json").read_text())["inputs"]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("run.json", mutants.json_changed),
        ("fluence.npz", mutants.npz_changed),
        ("check_dose.npz", mutants.npz_changed),
    ],
)
def test_a_run_with_a_harmed_file_is_shown_or_refused(
    viewed: tuple[Path, TestClient], name: str, change: Any
) -> None:
    folder, client = viewed
    file, whole = folder / name, (folder / name).read_bytes()
    tally: Counter[str] = Counter()
    try:
        for seed in range(40):
            file.write_bytes(change(random.Random(f"{name} {seed}"), whole))
            os.utime(folder / "run.json", ns=(0, 10**9 * (seed + 1)))  # another run for the room
            answers = {path: client.get(f"/api/runs/run/{path}") for path in _ROUTES}
            for path, answer in answers.items():
                assert answer.status_code in (200, 400), (seed, path)
                if answer.status_code == 400:
                    assert ";" in answer.json()["error"], answer.json()
            facts = answers["view"]
            remarks = facts.json()["remarks"] if facts.status_code == 200 else ["refused"]
            tally["told" if remarks else "silent"] += 1
    finally:
        file.write_bytes(whole)
    assert tally["told"] > 5, tally
