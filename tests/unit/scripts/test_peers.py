"""The benchmark beside other programs, without running any: case, ratios and the text of the page."""

from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import figures
import numpy as np
import pytest
from synthetic_plans import conformal_arc

from vmat_diffusion.machine import load_machine
from vmat_diffusion.phantom import phantom
from vmat_diffusion.plan import Plan


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    module = importlib.import_module("peers")
    return module


def seconds(wall: float, cpu: float) -> dict[str, float]:
    return {"wall_s": wall, "cpu_s": cpu}


def dose_row(threads: int, ours: float, peer: float) -> dict[str, Any]:
    def side(forward: float, **more: Any) -> dict[str, Any]:
        return {
            "version": "9.9",
            "torch": "2.6",
            "forward": seconds(forward, 2 * forward),
            "gradient": seconds(4 * forward, 5 * forward),
            "first_s": 7.0,
            "peak_gb": 1.5,
            "others_cores": 0.25,
            **more,
        }

    return {
        "date": "2030-01-02",
        "machine": "an abacus",
        "threads": threads,
        "repeats": 2,
        "grid": [75, 70, 65, 4.0],
        "differs_percent": 3.21,
        "ours": side(ours, exposures=354, tabulation=seconds(2.0, 3.0)),
        "peer": side(peer, segments=178),
    }


def matrix_row(threads: int, ours: float, peer: float) -> dict[str, Any]:
    def side(wall: float, beams: int) -> dict[str, Any]:
        return {
            "version": "0.5",
            "beams": beams,
            "seconds": seconds(wall, 2 * wall),
            "beamlets": 100 * beams,
            "voxels": 5000,
            "voxels_reached": 4000,
            "entries": 3e6 * beams,
            "gb": 0.5,
            "peak_gb": 1.0,
        }

    row = {"date": "2030-01-02", "machine": "an abacus", "threads": threads}
    return row | {"ours": side(ours, 3), "peer": side(peer, 6)}


def test_ratios_are_per_beam_and_take_the_best_of_each(peers: ModuleType) -> None:
    rows = [dose_row(1, 2.0, 20.0), dose_row(2, 1.5, 12.0)]
    assert peers.ratios(rows[0], "forward") == (10.0, 10.0)
    assert peers.best_ratio(rows, "forward") == pytest.approx(12.0 / 1.5)
    # Three beams in 3 s are one a second; six in 30 s are one in five.
    assert peers.ratios(matrix_row(1, 3.0, 30.0), "seconds") == (5.0, 5.0)
    assert peers.best_ratio([matrix_row(1, 3.0, 30.0), matrix_row(2, 6.0, 12.0)], "seconds") == 2.0


def test_difference_ignores_a_factor_and_low_doses(peers: ModuleType) -> None:
    ours = np.array([10.0, 5.0, 2.0, 0.5])
    assert peers.difference_percent(ours, 3 * ours + [0, 0, 0, 1.0]) == pytest.approx(0.0, abs=1e-9)
    # Two voxels of 10, the other program has 9 and 11: the fitted factor is 200 / 202.
    found = peers.difference_percent(np.array([10.0, 10.0]), np.array([9.0, 11.0]))
    factor = 200 / 202
    assert found == pytest.approx(10 * (abs(10 - 9 * factor) + abs(10 - 11 * factor)) / 2)


def test_cylinder_fills_the_grid_but_for_its_rim(peers: ModuleType) -> None:
    density = peers.cylinder((20, 31, 41))
    assert density.shape == (20, 31, 41) and set(np.unique(density)) == {0.0, 1.0}
    assert not density[[0, 1, -2, -1]].any() and density[2:-2].any(axis=(1, 2)).all()
    assert density[10].sum() == pytest.approx(np.pi * 14.5**2, rel=0.02)
    assert density[10, 15, 20] == 1.0 and not density[10, 0].any()


def test_segments_are_the_middles_with_mu_and_leaves_stop_at_the_x_jaws(peers: ModuleType) -> None:
    machine = load_machine("generic_6mv")
    arc = conformal_arc(phantom("thorax"), machine, np.arange(0.0, 11.0, 2.0))
    arc.mu[1] = 0.0
    arc.jaws_mm[:, :2] = [-5.0, 5.0]
    arc.leaves_mm[:, 0], arc.leaves_mm[:, 1] = -20.0, 3.0
    arc.jaws_mm[:, 3] = np.arange(60.0, 66.0)
    found = peers.segments(Plan((arc,), (0.0, 0.0, 0.0), 1, machine.name))
    assert found["gantry_deg"].tolist() == [1.0, 5.0, 7.0, 9.0]
    assert found["mu"].tolist() == arc.mu[[0, 2, 3, 4]].tolist()
    assert found["jaws_y_mm"][:, 1].tolist() == [60.5, 62.5, 63.5, 64.5]
    assert found["leaves_mm"].shape == (4, machine.mlc.pairs, 2)
    assert (found["leaves_mm"] == [-5.0, 3.0]).all()


def test_page_tells_what_was_measured(
    peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "DOCS", tmp_path)
    assert list(peers.section()) == []
    rows = [dose_row(1, 2.0, 20.0), dose_row(2, 1.5, 12.0)]
    figures.save("peers", {"pydosert": rows, "pyradplan": [matrix_row(1, 3.0, 30.0)]})
    assert json.loads(figures.file_of("peers").read_text())["pydosert"] == rows
    text = "\n".join(peers.section())
    assert (
        "| 65 x 70 x 75, 4 mm | 1 | VMAT Diffusion | 2.00 | 4.00 | 2.0 | 8.00 | 10.00 | 7.0 | 1.5 | 0.2 |"
        in text
    )
    # A single gradient: 80 s of theirs, 8 s and 2 s of tabulation of ours.
    assert "| 65 x 70 x 75, 4 mm | 1 | **ratio** | **10.0** | 10.0 | 8.0 | **10.0** | 10.0 | | | |" in text
    assert "forward 8.0 times" in text and "differ by 3.2 %" in text and "an abacus" in text
    assert "| 1 | pyRadPlan | 5.00 | 10.00 | 100 | 4,000 | 3.0 | 0.50 | 1.0 |  |" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {11, 12}


def test_a_peer_that_cannot_be_installed_is_left_out(
    peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> SimpleNamespace:
        return SimpleNamespace(returncode=1, stderr="noise\nERROR: no such wheel\n")

    monkeypatch.setattr(subprocess, "run", refuse)
    assert peers.environment("pydosert", tmp_path) is None
    assert "pydosert: left out, cannot be installed: ERROR: no such wheel" in capsys.readouterr().err


def test_an_environment_is_made_once_for_what_is_wanted(
    peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[object] = []

    def accept(command: object, **_: object) -> SimpleNamespace:
        ran.append(command)
        (tmp_path / "pydosert").mkdir(exist_ok=True)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", accept)
    python = peers.environment("pydosert", tmp_path)
    assert python == peers.environment("pydosert", tmp_path) and len(ran) == 2
    monkeypatch.setitem(peers.PEERS, "pydosert", ("pydosert==0.0",))
    peers.environment("pydosert", tmp_path)
    assert len(ran) == 4
