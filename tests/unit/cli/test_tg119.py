"""The command of the TG-119 benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from small_case import StandIn, small_case

from vmat_diffusion import cli
from vmat_diffusion.benchmark.tg119 import benchmark_tg119


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["vmat-diffusion", "benchmark", "tg119", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_scores_are_shown_as_tables_and_as_json(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    optimiser: StandIn,
) -> None:
    monkeypatch.setattr("vmat_diffusion.phantom.phantom", lambda name: small_case())
    calls = optimiser(noise="chatter of a library")
    handed_in = partial(benchmark_tg119, tools=optimiser.tools)
    monkeypatch.setattr("vmat_diffusion.benchmark.tg119.benchmark_tg119", handed_in)
    options = ["cshape_easy", "cshape_hard", "--out", tmp_path / "out"]
    assert _run(monkeypatch, *options) == 0
    shown = capsys.readouterr()
    assert "cshape_easy: NOT PASSED; " in shown.out and "72 MU, gate passed" in shown.out
    assert "0 of 2 cases passed: every goal reached" in shown.out and "they were not compared" in shown.out
    rows = [line.split() for line in shown.out.splitlines()]
    assert ["Core", "D10%", "<=", "25", "Gy", "52.00", "NO", "22.00", "+-", "3.14", "*", "no"] in rows
    assert ["PTV", "D10%", "<=", "55", "Gy", "52.00", "yes", "57.02", "+-", "2.20", "*", "yes"] in rows
    assert "chatter" in shown.err and "cshape_hard: optimise ..." in shown.err
    assert _run(monkeypatch, *options, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(calls) == 2  # from what the first run has kept
    assert [case["name"] for case in found["cases"]] == ["cshape_easy", "cshape_hard"]
    for case in found["cases"]:
        assert {"name", "passed", "goals", "minutes", "mu"} <= set(case)
        assert all(
            {"value", "published_mean", "published_sd", "reaches_goal", "published_verified"} <= set(g)
            for g in case["goals"]
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["liver"], "case 'liver' is not known; known are multitarget"),
        (["--search-minutes", "0"], "search-minutes"),
        (["--machine", "none_such"], "none_such"),
    ],
)
def test_what_cannot_be_used_is_a_sentence_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert _run(monkeypatch, *options) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_short_search_plans_the_c_shape(tmp_path: Path) -> None:
    (tmp_path / "gate.toml").write_text("uncertainty_percent = 3.0\n")
    command = [sys.executable, "-m", "vmat_diffusion", "benchmark", "tg119", "cshape_easy"]
    command += ["--search-minutes", "0.5", "--grid-mm", "5", "--uncertainty", "0.029"]
    command += ["--gate", str(tmp_path / "gate.toml"), "--out", str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (found,) = json.loads(done.stdout)["cases"]
    assert found["violations"] == []
    covered = next(goal for goal in found["goals"] if goal["goal"] == "D95% >= 50 Gy")
    assert covered["value"] == pytest.approx(50.2, abs=0.01) and covered["reached"]
