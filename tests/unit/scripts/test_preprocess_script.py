"""The two commands that the README prints for training data, one after the other, as they are printed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from raw_patients import raw_patient

ROOT = Path(__file__).resolve().parents[3]


def printed() -> list[list[str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\$ (python scripts/preprocess_dicom_rt\.py[^#\n]*)", text, re.MULTILINE)
    return [shlex.split(line) for line in lines]


def run(command: list[str], place: Path) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, str(ROOT / command[1]), *command[2:], "--cluster", "serial", "--quiet"]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        arguments, cwd=place, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "complete",
    [pytest.param(True, marks=pytest.mark.slow), False],
    ids=["a case for both", "cases for the second alone"],
)
def test_the_readme_s_commands_work_one_after_the_other(tmp_path: Path, complete: bool) -> None:
    strict, relaxed = printed()
    assert "--relax_filter" in relaxed and "--relax_filter" not in strict
    raw = tmp_path / "data" / "raw"
    if complete:
        raw_patient(raw / "case_0001", number=1)
    raw_patient(raw / "case_0002", number=2, leave_out=("RTDOSE",))
    first = run(strict, tmp_path)
    assert first.returncode == (0 if complete else 2), first.stderr
    made = tmp_path / "data" / "processed_npz"
    before = {file.name: file.read_bytes() for file in made.glob("*.npz")}
    assert len(before) == complete
    second = run(relaxed, tmp_path)
    assert second.returncode == 0, second.stderr
    after = {file.name: file.read_bytes() for file in made.glob("*.npz")}
    assert len(after) == 1 + complete
    assert before.items() <= after.items()
