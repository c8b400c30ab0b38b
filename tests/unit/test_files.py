"""A file appears whole under its name, or the folder stays as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmat_diffusion.files import written_whole


def test_the_file_appears_under_its_name_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    for text in ("old", "new"):
        with written_whole(path) as part:
            part.write_text(text)
            assert not path.exists() or path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["report.html"]


def test_a_failure_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(RuntimeError), written_whole(path) as part:
        part.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["report.html"]


@pytest.mark.parametrize("links", [True, False])
def test_a_file_made_meanwhile_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """On file systems with and without hard links."""

    def refuse(*_: object) -> None:
        raise OSError("no hard links")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "RP.dcm"
    with written_whole(path, overwrite=False) as part:
        part.write_text("mine")
    assert path.read_text() == "mine"
    with pytest.raises(FileExistsError), written_whole(path, overwrite=False) as part:
        part.write_text("another")
    assert path.read_text() == "mine"
    assert os.listdir(tmp_path) == ["RP.dcm"]
