"""The benchmark command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from openkbp_files import arrays, write_npz
from tiny_model import tiny_model

from vmat_diffusion import cli
from vmat_diffusion.cli.benchmark import _calibration
from vmat_diffusion.diffusion.model import save_model


def test_a_spread_without_voxels_is_a_sentence() -> None:
    assert _calibration({"coverage": None, "reliability": []}) == [
        "No voxel is predicted above 5 Gy: the spread of the samples cannot be judged."
    ]


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["vmat-diffusion", "benchmark", "openkbp", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_scores_are_shown_as_tables_and_as_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_npz(tmp_path / "data" / "pt_241.npz", arrays())
    weights = save_model(tmp_path / "w.safetensors", tiny_model())
    options = ["--data", tmp_path / "data", "--split", "test", "--weights", weights, "--no-gamma"]
    options += ["--out", tmp_path / "found.json", "--samples", 2, "--steps", 1, "--steer", "Parotid_L:-5"]
    assert _run(monkeypatch, *options) == 0
    shown = capsys.readouterr()
    assert "1 patients of split test, 1 with a reference dose" in shown.out
    assert "PTV_56" in shown.out and "benchmark ..." in shown.err
    for title in (
        "Subgroups: mean of samples",
        "Lower than the regression",
        "voxels above 5 Gy",
        "Reliability",
        "D95 PTV_70",
    ):
        assert title in shown.out
    # From what the first run has kept.
    assert _run(monkeypatch, *options, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"] == json.loads((tmp_path / "found.json").read_text())["scores"]
    assert set(found["scores"]["regression"]) == {"dose", "dvh", "mae"}
    assert f"{found['scores']['regression']['dose']['value']:.2f}" in shown.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--split", "valid"], "split valid is not known; choose train, validation or test"),
        (["--patients", "201-"], "patients '201-': '201-' is no number and no range"),
        (["--patients", "9-3"], "'9-3' is no number and no range"),
        (["--patients", "201-999999999"], "no range of the challenge's 1 to 340; write 201-210,215"),
        (["--patients", "0"], "'0' is no number and no range"),
        (["--out", "."], "--out is an input of the same command"),
        (["--steer", "Parotid_L"], "steer 'Parotid_L' is no organ with a change of its mean"),
        (["--steer", "Parotid_L:-5000"], "of -70 to 70 Gy; write Parotid_L:-5"),
        (["--data", "absent"], "folder absent does not exist"),
    ],
)
def test_what_is_wrong_with_an_option_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run(monkeypatch, "--data", tmp_path, *options) == 2
    assert said in capsys.readouterr().err
