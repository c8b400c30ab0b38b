"""A file appears whole under its name, or the folder stays as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vmat_diffusion.files import (
    parse_json,
    parse_toml,
    read_json,
    remove_dead_parts,
    write_json,
    written_whole,
)


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


def test_text_that_anybody_may_have_written_is_read_or_refused(tmp_path: Path) -> None:
    assert parse_toml("\ufeffa = 1\n") == {"a": 1}  # as Windows saves it
    for text in ("a = ", "a = " + 5000 * "[" + 5000 * "]", "a = " + 9000 * "9"):
        with pytest.raises(ValueError, match=r"."):
            parse_toml(text)
    for text in ('{"a": NaN}', '{"a": 1e999}', 100_000 * "[", "{"):
        with pytest.raises(ValueError, match=r"."):
            parse_json(text)
        (tmp_path / "a.json").write_text(text)
        assert read_json(tmp_path / "a.json") is None
    assert read_json(tmp_path / "none.json") is None


def test_records_hold_no_number_that_readers_refuse(tmp_path: Path) -> None:
    record = {"value": float("nan"), "list": [np.float32("inf"), np.arange(2)], "fine": 1.5}
    read = read_json(write_json(tmp_path / "run.json", record))
    assert read == {"value": None, "list": [None, [0, 1]], "fine": 1.5}


def test_parts_of_killed_writers_are_removed_and_those_of_living_ones_stay(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from vmat_diffusion.files import written_whole\n"
        "with written_whole(Path(sys.argv[1])) as part:\n"
        "    part.write_text('x'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    (tmp_path / "below").mkdir()
    for file in (tmp_path / "a.txt", tmp_path / "below" / "b.txt"):
        subprocess.run([sys.executable, "-c", code, str(file)])
    foreign = tmp_path / ".c.txt.00000000-1-00000000.part"
    foreign.write_text("of another computer")
    assert len(list(tmp_path.rglob("*.part"))) == 3
    with written_whole(tmp_path / "d.txt") as part:
        part.write_text("x")
        remove_dead_parts(tmp_path)
        assert sorted(tmp_path.rglob("*.part")) == sorted([foreign, part])


@pytest.mark.parametrize("text", ["a = 1", "\ufeffa = 1", "[b]\na = 1.5"])
def test_toml_is_read_with_and_without_a_byte_order_mark(text: str) -> None:
    assert list(parse_toml(text))


@pytest.mark.parametrize("text", ["[b]\nc = [1.0, nan]", "[b]\nc = [1, 9223372036854775808]"])
def test_numbers_of_no_use_are_named_by_their_key(text: str) -> None:
    with pytest.raises(ValueError, match=r"b\.c\.2"):
        parse_toml(text)
