"""What the package's benchmark commands found: kept case by case, shown on the page."""

from __future__ import annotations

from pathlib import Path

import commands
import figures
import page
import pytest

from vmat_diffusion.benchmark.tg119_cases import CASES


@pytest.fixture(autouse=True)
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(figures, "DOCS", tmp_path)
    return tmp_path


def test_without_figures_the_page_is_its_head() -> None:
    assert len(list(page.lines())) == 4


def test_the_page_shows_goals_beside_the_published_figures() -> None:
    case = CASES["cshape_easy"]
    values = {
        ("PTV", "D95% >= 50 Gy"): 50.1,
        ("PTV", "D10% <= 55 Gy"): 52.88,
        ("Core", "D10% <= 25 Gy"): 26.0,
    }
    found = {
        "name": case.name,
        "passed": False,
        "goals": [goal.record() for goal in case.scored(values)],
        "minutes": 1.73,
        "mu": 1114.2,
        "delivery_s": 119.4,
        "violations": [],
        "seconds": {"optimise": 80.0, "dose": 8.0, "check": 12.0},
        "gate": {"passed": True, "checks": [{"name": "deliverable", "passed": True}]},
    }
    commands.keep_tg119({"cases": [found | {"name": "cshape_hard", "passed": True}, found]})
    commands.keep_tg119({"cases": [found]})
    kept = figures.load("tg119")
    assert list(kept) == ["cshape_easy", "cshape_hard"] and kept["cshape_hard"]["passed"]
    for of_case in kept.values():
        of_case |= {"date": "2026-01-02", "machine": "a computer"}
    figures.save("tg119", kept)
    lines = list(commands.tg119_section())
    assert set(lines) <= set(page.lines())
    assert "## TG-119" in lines and "0 of 2 cases passed: every goal reached and the gate passed." in lines
    assert "| cshape_easy | **no** | **no** | 1.7 | 88 | 1114 | 119 | 0 | passed | 2026-01-02 |" in lines
    assert "| cshape_easy | Core | D10% <= 25 Gy | 26.00 | **no** | 22.00 ± 3.14 * | no |" in lines
    assert lines[-1] == "Measured on a computer."


def test_nothing_of_single_patients_is_kept() -> None:
    found = {"scores": {}, "by_patient": {"pt_1": 1.0}, "settings": {"data": "/home/name", "samples": 4}}
    commands.keep_openkbp(found)
    kept = figures.load("openkbp")
    assert set(kept) == {"scores", "settings", "date", "machine"} and kept["settings"] == {"samples": 4}
