"""The examples run, on phantoms, and do what they say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from vmat_diffusion.dicom import read_plan

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def example(name: str) -> Any:
    """The names of an example's module, by attribute."""
    return type(name, (), {k: staticmethod(v) if callable(v) else v
                           for k, v in runpy.run_path(str(FOLDER / f"{name}.py")).items()})  # fmt: skip


def test_every_example_is_tested() -> None:
    tested = Path(__file__).read_text(encoding="utf-8")
    assert len(list(FOLDER.glob("*.py"))) >= 6
    for file in FOLDER.glob("*.py"):
        assert f'example("{file.stem}")' in tested, file.name


@pytest.mark.timeout(600)
def test_a_phantom_is_planned_checked_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict = example("plan_a_phantom").main(tmp_path)
    assert verdict.passed, verdict.failed
    assert "PTV D95% >= 75.6 Gy" in capsys.readouterr().out
    assert len(read_plan(tmp_path / "RP.dcm").arcs) == 1
    assert (tmp_path / "RD.dcm").is_file()
    assert "Gate passed" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_dose_of_ones_own_is_aimed_at() -> None:
    means = example("own_aim").main()
    assert means["own aim"] < means["goals alone"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_goals_of_ones_own_are_planned_and_judged() -> None:
    results = example("own_goals").main()
    assert str(results[0].goal) == "PTV D95% >= 57 Gy"
    assert all(r.value is not None for r in results)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_objective_of_ones_own_lowers_what_it_asks_for() -> None:
    found = example("own_objective").main()
    assert found["own term"] < found["goals alone"] - 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_engine_of_ones_own_is_asked_by_the_gate(tmp_path: Path) -> None:
    own = example("own_engine")
    own.main(tmp_path)
    report = (tmp_path / "plan" / "run.json").read_text(encoding="utf-8")
    assert "pencil beam with measured output" in report and "monte-carlo" not in report


@pytest.mark.timeout(300)
def test_a_machine_of_ones_own_is_fitted_to_scans(tmp_path: Path) -> None:
    machine = example("own_machine").main(tmp_path)
    assert machine.name == "my_linac"
    assert machine.require_beam().focal_sigma_mm == pytest.approx(1.2, abs=0.4)
