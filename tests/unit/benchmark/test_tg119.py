"""The TG-119 benchmark with a stand-in for the optimiser: what is kept, planned again and refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_case import StandIn, small_case

from vmat_diffusion.benchmark import tg119 as workflow
from vmat_diffusion.benchmark.tg119 import CaseResult, Tg119Settings, benchmark_tg119
from vmat_diffusion.benchmark.tg119_cases import CASES
from vmat_diffusion.errors import InputError, PlanError
from vmat_diffusion.optimize import Outcome

BOTH = Tg119Settings(cases=("cshape_hard", "cshape_easy"))
EASY = Tg119Settings(cases=("cshape_easy",))
HARD = Tg119Settings(cases=("cshape_hard",))


@pytest.fixture(autouse=True)
def small_phantom(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small case, which has the C-shape's structures, in place of every phantom."""
    monkeypatch.setattr("vmat_diffusion.phantom.phantom", lambda name: small_case())


def _interrupt(made: SimpleNamespace, call: int) -> None:
    """Ctrl-C in the second search: the optimiser hands over the best plan that it has."""
    if call == 1:
        made.outcome = Outcome.INTERRUPTED


def test_a_case_is_planned_on_the_common_road_and_scored(tmp_path: Path, optimiser: StandIn) -> None:
    calls = optimiser()
    done = benchmark_tg119(
        replace(EASY, search_minutes=2.0, grid_mm=4.0), out=tmp_path / "out", tools=optimiser.tools
    )
    (asked,) = calls
    assert (asked["settings"].max_minutes, asked["settings"].grid_mm) == (2.0, 4.0)
    summary = json.loads(json.dumps(done.summary()))
    (found,) = summary["cases"]
    assert set(found) >= {"name", "passed", "goals", "minutes", "mu", "gate"}
    # The stand-in gives 52 Gy everywhere.
    assert [(g["structure"], g["value"], g["reaches_goal"]) for g in found["goals"]] == [
        ("PTV", pytest.approx(52.0), True),
        ("PTV", pytest.approx(52.0), True),
        ("Core", pytest.approx(52.0), False),
    ]
    assert found["goals"][2]["published_mean"] == 22.0 and not found["goals"][2]["published_verified"]
    assert not found["goals"][2]["reaches_published_mean"] and found["sizes"][0]["verified"]
    assert summary["published_verified"] is False and summary["passed_by_published_mean"] == 0
    assert found["name"] == "cshape_easy" and found["passed"] is False and summary["passed"] == 0
    assert found["gate"]["passed"] is True and found["mu"] == pytest.approx(72.0)
    assert found["minutes"] == pytest.approx(sum(found["seconds"].values()) / 60, abs=1e-3)
    folder = tmp_path / "out" / "cshape_easy"
    assert (folder / "plan" / "RP.dcm").is_file() and (folder / "case" / "RS.dcm").is_file()


def test_a_case_passes_by_its_goals_and_the_gate(tmp_path: Path, optimiser: StandIn) -> None:
    optimiser()
    (found,) = benchmark_tg119(EASY, tools=optimiser.tools).cases
    good = found.case.scored({("PTV", "D95% >= 50 Gy"): 50.1, ("PTV", "D10% <= 55 Gy"): 54.0,
                              ("Core", "D10% <= 25 Gy"): 24.0})  # fmt: skip
    assert replace(found, goals=good).passed
    (hard,) = benchmark_tg119(HARD, tools=optimiser.tools).cases
    like_theirs = hard.case.scored({("PTV", "D95% >= 50 Gy"): 50.1, ("PTV", "D10% <= 55 Gy"): 57.0,
                                    ("Core", "D10% <= 10 Gy"): 16.0})  # fmt: skip
    like_theirs = replace(hard, goals=like_theirs)
    assert like_theirs.passed_by_published_mean and not like_theirs.passed
    gate = {**found.run["verdict"], "passed": False}
    assert not CaseResult(found.case, good, {**found.run, "verdict": gate}).passed


def test_a_finished_case_is_not_planned_again(
    tmp_path: Path, optimiser: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = optimiser(change=_interrupt)
    with pytest.raises(KeyboardInterrupt):
        benchmark_tg119(BOTH, out=tmp_path, tools=optimiser.tools)
    assert len(calls) == 2
    assert (tmp_path / "cshape_easy" / "plan" / "run.json").is_file()
    assert not (tmp_path / "cshape_hard" / "plan").exists()
    seen: list[tuple[str, float, str]] = []
    done = benchmark_tg119(
        BOTH, out=tmp_path, progress=lambda *told: seen.append(told), tools=optimiser.tools
    )
    assert len(calls) == 3
    assert [case.case.name for case in done.cases] == ["cshape_easy", "cshape_hard"]
    assert {stage.partition(": ")[0] for stage, _, _ in seen} == {"cshape_hard", "benchmark"}
    assert seen[-1] == ("benchmark", 1.0, "2 of 2, 0 passed")
    again = benchmark_tg119(BOTH, out=tmp_path, tools=optimiser.tools)
    assert len(calls) == 3
    assert again.summary()["cases"] == done.summary()["cases"]


@pytest.mark.slow
def test_plans_of_other_settings_are_not_mixed_in(
    tmp_path: Path, optimiser: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = optimiser()
    benchmark_tg119(EASY, out=tmp_path, tools=optimiser.tools)
    other = replace(BOTH, search_minutes=1.0)
    with pytest.raises(InputError, match="holds a plan of another search_minutes; pass --overwrite"):
        benchmark_tg119(other, out=tmp_path, tools=optimiser.tools)
    assert len(calls) == 1 and not (tmp_path / "cshape_hard").exists()
    with monkeypatch.context() as patch:
        patch.setattr(workflow, "__version__", "0.0.0")
        with pytest.raises(InputError, match="another version"):
            benchmark_tg119(EASY, out=tmp_path, tools=optimiser.tools)
    benchmark_tg119(replace(EASY, search_minutes=1.0), out=tmp_path, overwrite=True, tools=optimiser.tools)
    assert len(calls) == 2
    (tmp_path / "cshape_easy" / "case" / "RS.dcm").write_bytes(b"another")
    with pytest.raises(InputError, match="another phantom"):
        benchmark_tg119(replace(EASY, search_minutes=1.0), out=tmp_path, tools=optimiser.tools)


def test_what_is_no_plan_of_this_program_is_not_replaced(tmp_path: Path, optimiser: StandIn) -> None:
    calls = optimiser()
    plan = tmp_path / "cshape_easy" / "plan"
    plan.mkdir(parents=True)
    (plan / "notes.txt").write_text("mine")
    with pytest.raises(PlanError, match="not empty"):
        benchmark_tg119(EASY, out=tmp_path, tools=optimiser.tools)
    (plan / "run.json").write_text("{}")
    with pytest.raises(InputError, match="is no record of a plan"):
        benchmark_tg119(EASY, out=tmp_path, tools=optimiser.tools)
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(InputError, match="is no folder and none can be made there"):
        benchmark_tg119(EASY, out=file / "out", tools=optimiser.tools)
    assert not calls and file.read_text() == "mine"


def test_an_unknown_case_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match="case 'tg119' is not known; known are multitarget, prostate"):
        Tg119Settings(cases=("prostate", "tg119"))


def test_every_case_has_settings_for_its_own_goals() -> None:
    settings = Tg119Settings(seed=3)
    assert [settings.of_plan(case).goals for case in CASES.values()] == [c.goals for c in CASES.values()]
    assert {settings.of_plan(case).seed for case in CASES.values()} == {3}
