"""The index of a data set names files in its folder and no others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmat_diffusion.dataset.index import INDEX, read_index
from vmat_diffusion.errors import CaseError

LINE = {
    "id": "case_1",
    "site": "lung",
    "file": "case_1.npz",
    "sha256": "0" * 64,
    "shape": [1, 1, 1],
    "targets": [],
    "organs": [],
    "has_dose": True,
    "patient": "case_1",
}


@pytest.mark.parametrize("key", ["id", "file"])
@pytest.mark.parametrize("name", ["../x.npz", "/etc/passwd", "a/b", "..", "", "a\\b", "C:x", "a\0b", "a\nb"])
def test_a_path_in_the_index_is_refused(tmp_path: Path, key: str, name: str) -> None:
    (tmp_path / INDEX).write_text(json.dumps(LINE) + "\n")
    assert read_index(tmp_path)[0]["file"] == "case_1.npz"
    (tmp_path / INDEX).write_text(json.dumps({**LINE, key: name}) + "\n")
    with pytest.raises(CaseError, match="line 1 names a file outside"):
        read_index(tmp_path)
