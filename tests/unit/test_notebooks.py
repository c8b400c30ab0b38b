"""The notebook runs from top to bottom and is stored without its results."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from training_cases import save_dataset, small_training

NOTEBOOK = Path(__file__).resolve().parents[2] / "notebooks" / "verify_npz.ipynb"


def _run(monkeypatch: pytest.MonkeyPatch, dataset: Path, folder: Path) -> tuple[str, int]:
    """All text that the notebook prints, and the number of its pictures."""
    monkeypatch.setenv("VMAT_DATASET", str(dataset))
    monkeypatch.setenv("TMPDIR", str(folder))
    source = Path(__file__).resolve().parents[2] / "src"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(source), os.environ.get("PYTHONPATH", "")]))
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    outputs = [o for cell in book.cells if cell.cell_type == "code" for o in cell.outputs]
    text = [o.get("text", "") or o.get("data", {}).get("text/html", "") for o in outputs]
    return "\n".join(text), sum("image/png" in o.get("data", {}) for o in outputs)


@pytest.mark.slow
def test_notebook_shows_a_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    training = replace(small_training(right=False), provenance={"steps": ["made for a test"]})
    text, pictures = _run(monkeypatch, save_dataset(tmp_path / "set", [training]), tmp_path)
    assert pictures == 4  # histograms, planes, DVH, distance maps
    assert "case_0001.npz, one of 1 cases" in text
    assert "<td>Parotid_R</td><td></td><td>absent</td>" in text
    assert "<td>Parotid_L</td><td>Dmean &lt;= 26 Gy</td><td>31.50</td>" in text
    assert "<td>z</td><td>1</td><td>2</td><td>12</td>" in text
    assert "steps: ['made for a test']" in text


@pytest.mark.slow
def test_notebook_shows_a_case_without_dose_and_ct(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    training = replace(small_training(dose=False), has_ct=False)
    text, pictures = _run(monkeypatch, save_dataset(tmp_path / "set", [training]), tmp_path)
    assert pictures == 2
    assert "no dose in this case: no overlay and no DVH" in text


def test_notebook_makes_a_case_where_there_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text, pictures = _run(monkeypatch, tmp_path / "empty", tmp_path)
    assert pictures == 4
    assert "synthetic.npz, one of 1 cases" in text


def test_notebook_is_stored_without_results() -> None:
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
