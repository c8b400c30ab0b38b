"""Plans of one case side by side, from run folders made by a stand-in for the optimiser."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_case import UNIFORM_GY, StandIn

from vmat_diffusion import cli
from vmat_diffusion.errors import InputError, PlanError
from vmat_diffusion.workflow import plan_case, plan_settings
from vmat_diffusion.workflow.trade_off import read_trade_off, write_trade_off

EASY = plan_settings(goals="tg119_cshape_easy")


@pytest.fixture(scope="module")
def made(case_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one case, the second one not through the gate; the core's D10% is set to 20 and 10 Gy."""
    root = tmp_path_factory.mktemp("runs")
    optimiser = StandIn()
    for name, engine, core in (("a", 1.0, 20.0), ("b", 1.5, 10.0)):
        optimiser(engine=(engine,) * 3)
        plan_case(case_folder, root / name, EASY, tools=optimiser.tools)
        change(root / name, lambda r, core=core: r["goals"][2].update(value=core))
    return root


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> list[Path]:
    """Copies of the two runs, to be changed."""
    return [shutil.copytree(made / name, tmp_path / name) for name in ("a", "b")]


def change(folder: Path, edit: Callable[[dict], object]) -> None:
    record = json.loads((folder / "run.json").read_text())
    edit(record)
    (folder / "run.json").write_text(json.dumps(record))


def test_each_plan_is_a_point_and_says_whether_it_is_complete(runs: list[Path], tmp_path: Path) -> None:
    found = read_trade_off(runs)
    assert [g.label for g in found.goals if g.coverage] == ["PTV D95% >= 50 Gy"]
    a, b = found.plans
    assert a.coverage_percent == b.coverage_percent == pytest.approx(100 * UNIFORM_GY / 50)
    assert (a.values["Core D10% <= 25 Gy"], b.values["Core D10% <= 25 Gy"]) == (20.0, 10.0)
    assert a.complete and not b.complete and b.failed_checks
    assert found.remarks == (f"b is not complete: {b.state}.",) and "gamma" in b.state
    file = write_trade_off(tmp_path / "plot.png", found)
    assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(PlanError, match="is there already; name another file with --out"):
        write_trade_off(tmp_path / "plot.png", found)


def test_the_least_covered_target_counts(runs: list[Path]) -> None:
    def second_target(record: dict) -> None:
        record["prescription_gy"]["PTV_low"] = 40.0
        record["goals"].append(
            {"structure": "PTV_low", "goal": "D98% >= 40 Gy", "value": 38.0, "limit": 40.0, "unit": "Gy"}
        )

    change(runs[0], second_target)
    assert read_trade_off(runs[:1]).plans[0].coverage_percent == pytest.approx(95.0)


def test_a_plan_whose_files_are_gone_is_not_complete(runs: list[Path]) -> None:
    (runs[0] / "RP.dcm").unlink()
    (point,) = read_trade_off(runs[:1]).plans
    assert point.missing == ("RP.dcm",) and not point.complete
    assert point.state == "passed, but without RP.dcm"


def test_the_candidates_of_a_run_are_plans_of_their_own(runs: list[Path]) -> None:
    shutil.copytree(runs[1], runs[0] / "candidate_2")
    found = read_trade_off(runs[:1])
    assert [p.name for p in found.plans] == ["a", "candidate_2"]
    assert found.plans[1].values == read_trade_off(runs[1:2]).plans[0].values


def test_different_cases_goals_and_folders_are_refused(runs: list[Path], tmp_path: Path) -> None:
    same = (runs[1] / "run.json").read_text()
    change(runs[1], lambda r: r["inputs"]["uid_hashes"].update(structure_set="0"))
    with pytest.raises(InputError, match="are plans of different images or contours; name plans of one"):
        read_trade_off(runs)
    (runs[1] / "run.json").write_text(same)
    change(runs[1], lambda r: r["goals"][2].update(goal="D10% <= 10 Gy"))
    with pytest.raises(InputError, match="were planned by different goals; plan both by one sheet"):
        read_trade_off(runs)
    with pytest.raises(InputError, match=r"holds no run\.json; name a folder that plan has written"):
        read_trade_off([tmp_path])
    (runs[1] / "run.json").write_text("{}")
    with pytest.raises(InputError, match="is no record of a planning run"):
        read_trade_off(runs)


def test_the_command_shows_a_table_and_writes_the_plot(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(runs[0], tmp_path / "more" / "a")

    def run(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["vmat-diffusion", "trade-off", *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().out

    text = run("a", "b")
    assert "NOT PASSED" in text and "Core D10% <= 25 Gy" in text and "20.00" in text
    assert (tmp_path / "trade_off.png").is_file()
    # Two folders of the same name go by their paths.
    found = json.loads(run("a", "more/a", "--json", "--overwrite"))
    assert [p["name"] for p in found["plans"]] == ["a", "more/a"]
    assert found["plans"][0]["complete"] and found["file"] == str(tmp_path / "trade_off.png")
