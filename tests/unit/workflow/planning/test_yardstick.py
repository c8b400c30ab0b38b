"""When a planning run measures its plan against ideal fluence, and what it says of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_case import StandIn

from vmat_diffusion.cli.display import run_text
from vmat_diffusion.optimize import Outcome
from vmat_diffusion.optimize.ideal import DELIVERED, IDEAL, MAPS, GoalReach, Loss, Yardstick
from vmat_diffusion.workflow import plan_case, plan_settings

SHEET = "tg119_cshape_easy"


class Measuring:
    """Stands in for the computation of ideal fluence, and counts how often it is asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, task, made, results, settings, progress) -> Yardstick:
        self.calls += 1
        core = results[-1]
        values = {IDEAL: 11.61, MAPS: 14.6, DELIVERED: core.value}
        reached = (
            *(GoalReach(r.goal, {IDEAL: 50.0}, None) for r in results[:-1]),
            GoalReach(core.goal, values, Loss.LEAVES),
        )
        return Yardstick(reached, {"Core": {IDEAL: 5.0, DELIVERED: 20.0}}, 36, 1200, 21.04)


def run_with(folder: Path, out: Path, optimiser: StandIn, measuring: Measuring, **settings: object):
    tools = replace(optimiser.tools, yardstick=measuring)
    return plan_case(folder, out, plan_settings(goals=SHEET, **settings), tools=tools)


def test_a_missed_goal_is_measured_and_told_in_record_report_and_text(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    optimiser()
    run = run_with(case_folder, tmp_path / "out", optimiser, Measuring())
    record = json.loads((tmp_path / "out" / "run.json").read_text())["yardstick"]
    assert record == run.summary()["yardstick"]
    assert record["directions"] == 36 and record["seconds"] == 21.0
    assert record["goals"][-1] == {
        "structure": "Core",
        "goal": "D10% <= 25 Gy",
        "unit": "Gy",
        "values": {"ideal": 11.61, "maps": 14.6, "delivered": 52.0},
        "loss": "LEAVES",
        "words": "lost by the leaves",
    }
    assert record["goals"][0]["loss"] is None
    page = (tmp_path / "out" / "report.html").read_text()
    assert "How far from ideal" in page and "11.61 Gy" in page and "lost by the leaves" in page
    words = (
        "Core D10% <= 25 Gy: lost by the leaves (free fluence 11.6 Gy, fluence maps 14.6 Gy, plan 52.0 Gy)"
    )
    assert words in run_text(run)
    assert "yardstick" in run.seconds


@pytest.mark.parametrize(
    ("asked", "calls"),
    [
        ("missed", 1),
        pytest.param("always", 1, marks=pytest.mark.slow),
        pytest.param("never", 0, marks=pytest.mark.slow),
    ],
)
def test_the_option_decides(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, asked: str, calls: int
) -> None:
    optimiser()
    measuring = Measuring()
    run = run_with(case_folder, tmp_path / "out", optimiser, measuring, yardstick=asked)
    assert measuring.calls == calls
    if not calls:
        assert run.summary()["yardstick"] is None
        assert "How far from ideal" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(("asked", "calls"), [("missed", 0), ("always", 1)])
def test_a_plan_that_meets_its_goals_is_measured_only_if_asked(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, asked: str, calls: int
) -> None:
    sheet = tmp_path / "easy.toml"
    sheet.write_text(
        'format = 2\ntitle = "easy"\nsite = "phantom"\nfractions = 25\nsource = "test"\nseen = "practice"\n'
        'current_to = "2026-11"\n[prescription_gy]\nPTV = 50.0\n[normalization]\nPTV = "D95% = 52 Gy"\n'
        '[[goals]]\nstructure = "PTV"\ngoal = "D95% >= 50 Gy"\npriority = 1\n'
        'source = "test"\nseen = "practice"\n'
    )
    optimiser()
    measuring = Measuring()
    tools = replace(optimiser.tools, yardstick=measuring)
    plan_case(case_folder, tmp_path / "out", plan_settings(goals=str(sheet), yardstick=asked), tools=tools)
    assert measuring.calls == calls


@pytest.mark.parametrize(("asked", "calls"), [("missed", 0), ("always", 1)])
def test_who_ends_a_search_does_not_wait_for_it(
    case_folder: Path, tmp_path: Path, optimiser: StandIn, asked: str, calls: int
) -> None:
    def interrupted(made: SimpleNamespace, call: int) -> None:
        made.outcome = Outcome.INTERRUPTED

    optimiser(change=interrupted)
    measuring = Measuring()
    run_with(case_folder, tmp_path / "out", optimiser, measuring, yardstick=asked)
    assert measuring.calls == calls
