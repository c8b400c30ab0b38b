"""The benchmark of prediction: what it times, and the text of the page."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import figures
import pytest
from openkbp_files import arrays, write_npz
from tiny_model import tiny_model

from vmat_diffusion.dataset.openkbp import read_openkbp


@pytest.fixture
def prediction() -> ModuleType:
    module = importlib.import_module("prediction")
    return module


def test_a_whole_volume_is_timed(prediction: ModuleType, tmp_path: Path) -> None:
    case = read_openkbp(write_npz(tmp_path / "pt_1.npz", arrays()))
    found = prediction.whole_volume(case, tiny_model(), 1, 1)
    assert set(found) == {"encode_s", "regression_s", "one_sample_s", "sample_s"}
    assert found["encode_s"] > 0 and found["one_sample_s"] > 0
    alone = prediction.whole_volume(case, tiny_model(residual=False), 1, 1)
    assert set(alone) == {"encode_s", "regression_s"}


def test_the_page_has_a_row_for_each_device(
    prediction: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "DOCS", tmp_path)
    assert list(prediction.section()) == []
    row = {
        "steps": 8,
        "encode_s": 2.04,
        "regression_s": 3.0,
        "start_s": 5.0,
        "others": 0.0,
        "date": "2026-01-02",
    }
    figures.save("prediction", {"2 cores": row})
    assert list(prediction.section())[-1] == "| 2 cores | 8 | 2.0 | 3.0 |  |  | 5.0 | 0.0 | 2026-01-02 |"
