"""The preprocess command and the script of the same task."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from raw_patients import raw_patient

from vmat_diffusion import cli

_SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "preprocess_dicom_rt.py"
_SMALL = ("--spacing-mm", "2", "2", "2.5", "--cluster", "serial")


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["vmat-diffusion", "preprocess", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.mark.slow
def test_the_script_works_where_it_is_called_with_its_defaults(tmp_path: Path) -> None:
    """As in a fresh clone: data/raw and an empty data/processed_npz with its .gitkeep."""
    raw_patient(tmp_path / "data" / "raw" / "case_0001", leave_out=("RTDOSE",))
    raw_patient(tmp_path / "data" / "raw" / "case_0002", number=2)
    (tmp_path / "data" / "raw" / ".gitkeep").touch()
    (tmp_path / "data" / "processed_npz").mkdir()
    (tmp_path / "data" / "processed_npz" / ".gitkeep").touch()
    command = [sys.executable, _SCRIPT, "--relax_filter", *_SMALL]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 cases of" in done.stdout and "60 Gy in 30" in done.stdout
    assert len(list((tmp_path / "data" / "processed_npz").glob("*.npz"))) == 2


@pytest.mark.parametrize("spelling", ["--relax-filter", "--relax_filter"])
def test_both_spellings_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], spelling: str
) -> None:
    raw_patient(tmp_path / "raw" / "case_1", leave_out=("RTPLAN",))
    raw_patient(tmp_path / "raw" / "case_2", leave_out=("CT",))
    options = ("--raw", tmp_path / "raw", "--out", tmp_path / "out", spelling, "--json", *_SMALL)
    assert _run(monkeypatch, *options) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["cases"], summary["made"]) == (1, 1)
    assert [r["case"] for r in summary["rejected"]] == ["case_2"] and summary["rejected"][0]["remedy"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--shape", "96,x"), "--shape 96,x is neither auto nor three numbers"),
        (("--spacing-mm", "0", "1", "3"), "must be three numbers from 0.2 to 20"),
        (("--cluster", "cloud"), "cloud"),
        (("--mapping", "nowhere.json"), "nowhere.json"),
        (("--goals", "nowhere"), "nowhere"),
    ],
)
def test_what_cannot_be_used_ends_with_2_and_a_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    sentence: str,
) -> None:
    raw_patient(tmp_path / "raw" / "case_1")
    base = ("--raw", tmp_path / "raw", "--out", tmp_path / "out", "--cluster", "serial")
    assert _run(monkeypatch, *base, *options) == 2
    said = capsys.readouterr()
    assert not said.out and sentence in said.err and said.err.count("Error:") == 1
    assert not list((tmp_path / "out").glob("*.npz"))
