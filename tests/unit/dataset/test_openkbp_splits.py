"""Patients of a split are found in every layout that OpenKBP is kept in."""

from __future__ import annotations

from pathlib import Path

import pytest
from openkbp_files import arrays, write_npz

from vmat_diffusion.dataset.openkbp import patients_of_split
from vmat_diffusion.errors import CaseError


def _empty(root: Path, *names: str) -> Path:
    """Folders of patients with nothing in them."""
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def _found(root: Path, split: str) -> list[str]:
    return [path.relative_to(root).as_posix() for path in patients_of_split(root, split)]  # type: ignore[arg-type]


def test_folders_tell_the_split_whatever_the_numbers(tmp_path: Path) -> None:
    root = _empty(tmp_path / "data", "train/pt_300", "validation/pt_20", "test/pt_9", "test/pt_1")
    assert _found(root, "train") == ["train/pt_300"]
    assert _found(root, "validation") == ["validation/pt_20"]
    assert _found(root, "test") == ["test/pt_1", "test/pt_9"]


def test_the_challenges_own_folders(tmp_path: Path) -> None:
    root = _empty(
        tmp_path / "provided-data", "train-pats/pt_1", "valid-pats-no-dose/pt_201", "test-pats/pt_241"
    )
    assert _found(root, "validation") == ["valid-pats-no-dose/pt_201"]
    assert _found(root, "test") == ["test-pats/pt_241"]


def test_numbers_tell_the_split_in_one_folder(tmp_path: Path) -> None:
    root = _empty(tmp_path / "all", "pt_200", "pt_201", "pt_240", "pt_241", "pt_340", "pt_341")
    assert _found(root, "train") == ["pt_200"]
    assert _found(root, "validation") == ["pt_201", "pt_240"]
    assert _found(root, "test") == ["pt_241", "pt_340"]


def test_the_folder_itself_may_be_the_split(tmp_path: Path) -> None:
    root = _empty(tmp_path / "test", "pt_1", "pt_2")
    assert _found(root, "test") == ["pt_1", "pt_2"]
    # A name that merely begins alike says nothing.
    with pytest.raises(CaseError, match="none of the 1 patients below test_of_mine is of split test"):
        patients_of_split(_empty(tmp_path / "test_of_mine", "pt_1"), "test")


def test_a_patient_that_is_there_twice_is_taken_with_its_dose(tmp_path: Path) -> None:
    parts = arrays()
    without = {name: values for name, values in parts.items() if name != "dose_cGy"}
    root = tmp_path / "data"
    write_npz(root / "test-pats-no-dose" / "pt_241.npz", without)
    write_npz(root / "test-pats-with-dose" / "pt_241.npz", parts)
    assert _found(root, "test") == ["test-pats-with-dose/pt_241.npz"]


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"holds no pt_N\.npz file"):
        patients_of_split(tmp_path, "test")
    with pytest.raises(CaseError, match=r"none of the 1 patients .* is of split test; put them in"):
        patients_of_split(_empty(tmp_path / "data", "train/pt_250"), "test")
