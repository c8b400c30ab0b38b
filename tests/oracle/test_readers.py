"""Other programs read our files and find in them what we wrote; those that are not installed are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
import readers


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return readers.small_files(tmp_path_factory.mktemp("read"))


@pytest.mark.parametrize("program", readers.PROGRAMS)
def test_what_a_program_reads_is_what_we_wrote(files: dict[str, Path], program: str) -> None:
    found = readers.read_by(program, files)
    if found is None:
        pytest.skip(f"{program} is not installed")
    assert found["read"] and readers.differences(found["read"], readers.written(files)) == []


def test_what_cannot_be_read_or_differs_is_told() -> None:
    ours = {"RTDOSE": {"max_gy": 2.0}, "PDF": {"bytes": 5}}
    found = {"RTDOSE": {"max_gy": 2.1}, "PDF": "ValueError: no"}
    assert readers.differences(found, ours) == ["RTDOSE: max_gy 2.1, ours 2", "PDF: ValueError: no"]
