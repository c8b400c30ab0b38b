"""The page about TG-119: made from what the command prints, and nothing without figures."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from vmat_diffusion.benchmark.tg119_cases import CASES


@pytest.fixture
def tg119(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module("tg119")
    monkeypatch.setattr(module, "FIGURES", tmp_path / "figures.json")
    return module


def test_the_page_shows_goals_beside_the_published_figures(tg119: ModuleType) -> None:
    assert list(tg119.section()) == []
    case = CASES["cshape_easy"]
    values = {
        ("PTV", "D95% >= 50 Gy"): 50.1,
        ("PTV", "D10% <= 55 Gy"): 52.88,
        ("Core", "D10% <= 25 Gy"): 26.0,
    }
    figures = {
        "passed": False,
        "goals": [goal.record() for goal in case.scored(values)],
        "minutes": 1.73,
        "mu": 1114.2,
        "delivery_s": 119.4,
        "violations": [],
        "seconds": {"optimise": 80.0, "dose": 8.0, "check": 12.0},
        "gate": {"passed": True, "checks": [{"name": "deliverable", "passed": True}]},
        "date": "2026-01-02",
        "machine": "a computer",
    }
    tg119.FIGURES.write_text(json.dumps({case.name: figures}))
    lines = list(tg119.section())
    assert "0 of 1 cases passed." in lines
    assert "| cshape_easy | **no** | 1.7 | 88 | 1114 | 119 | 0 | passed | 2026-01-02 |" in lines
    assert "| cshape_easy | Core | D10% <= 25 Gy | 26.00 | 22.00 ± 3.14 | 25 | **no** |" in lines
    assert lines[-1] == "Measured on a computer."
