"""The simulate command."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small_case import StandIn, small_case

from vmat_diffusion import cli
from vmat_diffusion.dataset.cases import TrainingCase, save_case
from vmat_diffusion.dataset.tables import case_record, write_index


@pytest.fixture
def optimiser(optimiser: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The stand-in in place of the optimiser, which `simulate` takes from its package."""
    monkeypatch.setattr("vmat_diffusion.optimize.optimize", optimiser.optimize)
    return optimiser


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """One case that can be planned and one that cannot."""
    folder = tmp_path / "cases"
    folder.mkdir()
    records = []
    for name, has_ct in (("case_1", True), ("case_2", False)):
        case = replace(small_case(), id=name, site="phantom")
        training = TrainingCase(case, case.body.mask, has_ct=has_ct)
        records.append(case_record(training, save_case(folder / f"{name}.npz", training)))
    write_index(folder, records)
    return folder


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    command = ["vmat-diffusion", "simulate", *map(str, arguments), "--cluster", "serial"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_plans_are_shown_as_a_table_and_as_json(
    tmp_path: Path,
    data_set: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    optimiser: StandIn,
) -> None:
    calls = optimiser(noise="words of a library")
    options = ("--data", data_set, "--out", tmp_path / "out", "--search-minutes", 2, "--grid-mm", 5)
    assert _run(monkeypatch, *options) == 0
    shown = capsys.readouterr().out
    assert "case_1_p01  phantom  tg119_cshape" in shown and "2 plans in" in shown
    assert "words of a library" not in shown
    assert "2 left out" in shown and "the case has no CT" in shown
    assert (calls[0]["settings"].max_minutes, calls[0]["settings"].grid_mm) == (2.0, 5.0)
    assert _run(monkeypatch, *options, "--resume", "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert [p["id"] for p in summary["plans"]] == ["case_1_p01", "case_1_p02"] and summary["made"] == 0
    assert {"outcome": "CONVERGED", "violations": 0, "control_points": 19}.items() <= summary["plans"][
        0
    ].items()
    assert [r["case"] for r in summary["rejected"]] == ["case_2_p01", "case_2_p02"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "give exactly one"),
        (("--data", "nowhere", "--synthetic", "2"), "give exactly one"),
        (("--data", "nowhere"), "holds no readable index.jsonl"),
        (("--data", "nowhere", "--spacing-mm", "2", "2", "2"), "--spacing-mm is for synthetic patients"),
        (("--synthetic", "2", "--sites", "elbow"), "--sites elbow"),
        (("--synthetic", "2", "--machine", "generic_hd120"), "no beam model"),
        (("--synthetic", "2", "--plans-per-case", "0"), "--plans-per-case 0 is outside 1 to 99"),
        (("--synthetic", "2", "--grid-mm", "0"), "--grid-mm 0 is outside"),
    ],
)
def test_wrong_options_end_with_2_and_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    sentence: str,
) -> None:
    assert _run(monkeypatch, *options, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
