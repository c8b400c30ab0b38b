"""Cases encoded once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from training_cases import save_dataset, small_training
from training_runs import small_dataset

from vmat_diffusion.diffusion.encode import Encoding
from vmat_diffusion.errors import CaseError
from vmat_diffusion.training.encoded import encode_cases, encoded_path, entries_with_dose, spacing_mm


def test_cases_are_encoded_once_and_shared(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path / "cases", train=3)
    entries, cache = entries_with_dose(folder, "train"), tmp_path / "cache"
    told: list[tuple[str, float, str]] = []
    paths = encode_cases(folder, entries, Encoding(), cache, progress=lambda *d: told.append(d))
    assert [p.stem for p in paths] == ["case_0000", "case_0001", "case_0002"]
    assert told == [("encode", n / 3, f"{n} of 3 cases") for n in (1, 2, 3)]
    times = [p.stat().st_mtime_ns for p in paths]
    paths[1].unlink()
    told.clear()
    # Another process begins elsewhere, and makes only what is missing.
    again = encode_cases(folder, entries, Encoding(), cache, first=2, progress=lambda *d: told.append(d))
    assert again == paths and told == [("encode", 1.0, "3 of 3 cases")]
    assert [p.stat().st_mtime_ns for p in paths][::2] == times[::2] and paths[1].exists()


def test_another_encoding_or_another_file_is_another_entry(tmp_path: Path) -> None:
    entry = entries_with_dose(small_dataset(tmp_path), "train")[0]
    path = encoded_path(tmp_path, entry, Encoding())
    assert encoded_path(tmp_path, entry, Encoding(reach_mm=30.0)) != path
    assert encoded_path(tmp_path, replace(entry, sha256="0"), Encoding()) != path


def test_cases_without_dose_and_of_other_sites_are_left_out(tmp_path: Path) -> None:
    cases = [small_training("case_a"), small_training("case_b", dose=False), small_training("case_c")]
    cases[2] = replace(cases[2], case=replace(cases[2].case, site="lung"))
    save_dataset(tmp_path, cases, {"case_a": "train", "case_b": "train", "case_c": "train"})
    assert [e.id for e in entries_with_dose(tmp_path, "train")] == ["case_a", "case_c"]
    assert [e.id for e in entries_with_dose(tmp_path, "train", "lung")] == ["case_c"]
    with pytest.raises(CaseError, match="no case of the site prostate of the split train"):
        entries_with_dose(tmp_path, "train", "prostate")
    with pytest.raises(CaseError, match="no case of the split validation"):
        entries_with_dose(tmp_path, "validation")


def test_a_case_that_cannot_be_encoded_is_named(tmp_path: Path) -> None:
    case = small_training("case_a")
    folder = save_dataset(
        tmp_path, [replace(case, case=replace(case.case, prescription=None))], {"case_a": "train"}
    )
    with pytest.raises(CaseError, match="case_a cannot be encoded: no contoured target has a prescription"):
        encode_cases(folder, entries_with_dose(folder, "train"), Encoding(), tmp_path / "cache")


def test_spacing_is_that_of_the_grid(tmp_path: Path) -> None:
    folder = small_dataset(tmp_path)
    assert np.allclose(spacing_mm(folder / "case_0000.npz"), (4.0, 4.0, 5.0))
