"""The whole road as a user takes it: from DICOM files through the command line to checked DICOM files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmat_diffusion.dicom.write import write_case
from vmat_diffusion.phantom import phantom

PROGRAM = (sys.executable, "-m", "vmat_diffusion")
# What the project promises on two CPU cores.
MINUTES_MAX, MEMORY_MAX_GB = 6.0, 8.0


def plan(case: Path, goals: str, out: Path, *options: str) -> dict[str, Any]:
    done = subprocess.run(
        [*PROGRAM, "plan", case, "--goals", goals, "--out", out, "--json", *options],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def doses_gy(case: Path, out: Path) -> dict[str, dict[str, float]]:
    """Doses of every structure, measured on the written RD.dcm."""
    command = [*PROGRAM, "dvh", "--case", case, "--dose", out / "RD.dcm", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {row["structure"]: row for row in json.loads(done.stdout)["structures"]}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["pt_3", "pt_22", "pt_201", "hn_fullres"])
def test_real_head_and_neck_patients(patient: Callable[[str], Path], tmp_path: Path, name: str) -> None:
    case, out = patient(name), tmp_path / "out"
    start = time.perf_counter()
    summary = plan(case, "head_neck_70_63_56", out)
    minutes = (time.perf_counter() - start) / 60
    assert summary["violations"] == []
    assert subprocess.run([*PROGRAM, "check", out / "RP.dcm", "--machine", "generic_6mv"]).returncode == 0
    found = doses_gy(case, out)
    assert found["PTV_70"]["d95_gy"] >= 66.5 - 1e-3
    assert found["PTV_70"]["d2_gy"] <= 77.0
    at_most = {"SpinalCord": 48.0, "Brainstem": 56.0}
    values = {g["structure"]: g["value"] for g in summary["goals"] if g["goal"].startswith("D0.03cc")}
    for organ, limit_gy in at_most.items():
        if values.get(organ) is not None:
            assert values[organ] < limit_gy, organ
    assert summary["peak_gb"] <= MEMORY_MAX_GB
    assert minutes <= MINUTES_MAX


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_same_seed_same_plan(tmp_path: Path) -> None:
    write_case(tmp_path / "case", phantom("tg119_cshape"))
    options = ("--grid-mm", "5", "--arcs", "1")
    first, second = (
        plan(tmp_path / "case", "tg119_cshape_easy", tmp_path / name, *options) for name in ("a", "b")
    )
    assert first["goals"] == second["goals"]
    tables = [(tmp_path / name / "control_points.csv").read_text() for name in ("a", "b")]
    assert tables[0] == tables[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_keeps_the_best_plan_so_far(tmp_path: Path) -> None:
    write_case(tmp_path / "case", phantom("tg119_cshape"))
    out = tmp_path / "out"
    command = [*PROGRAM, "plan", tmp_path / "case", "--goals", "tg119_cshape_easy", "--out", out, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("apertures"):
                break
        time.sleep(5)
        running.send_signal(signal.SIGINT)
        printed, complaints = running.communicate(timeout=300)
    assert running.returncode == 0, complaints
    assert json.loads(printed)["outcome"] == "INTERRUPTED"
    assert json.loads(printed)["violations"] == []
    assert (out / "RP.dcm").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_time_limit_is_kept_and_said(tmp_path: Path) -> None:
    write_case(tmp_path / "case", phantom("tg119_cshape"))
    start = time.perf_counter()
    summary = plan(tmp_path / "case", "tg119_cshape_easy", tmp_path / "out", "--max-minutes", "0.7")
    assert summary["outcome"] == "OUT_OF_TIME"
    assert summary["violations"] == []
    # Start of Python, reading, the final dose and the report come on top.
    assert time.perf_counter() - start < 42 + 60
