"""Bombs and arrays that would fill the memory are refused, and no dose is turned round.

For files that are changed at random see test_harmed_files.py.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from training_cases import save_dataset, small_training

from vmat_diffusion.dataset.cases import load_case
from vmat_diffusion.dataset.index import entries_of
from vmat_diffusion.dataset.splits import load_splits
from vmat_diffusion.errors import InputError
from vmat_diffusion.files import parse_toml


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 100_000, "1" * 10_000, '{"a": 1e999}', "NaN"])
def test_json_bombs(tmp_path: Path, text: str) -> None:
    (tmp_path / "index.jsonl").write_text(text)
    (tmp_path / "splits.json").write_text(text)
    for read in (lambda: entries_of(tmp_path), lambda: load_splits(tmp_path / "splits.json")):
        with pytest.raises(InputError):
            read()


def test_arrays_that_would_fill_the_memory_and_pickles_are_refused(tmp_path: Path) -> None:
    save_dataset(tmp_path, [small_training()])
    whole = next(tmp_path.glob("*.npz"))
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<i2", "fortran_order": False, "shape": (10_000, 10_000, 10_000)}
    )
    objects = io.BytesIO()
    np.lib.format.write_array(objects, np.array([{"a": 1}], object))
    for content, told in ((header.getvalue(), "GiB"), (objects.getvalue(), "objects")):
        path = tmp_path / "bomb.npz"
        with zipfile.ZipFile(whole) as source, zipfile.ZipFile(path, "w") as target:
            for name in source.namelist():
                target.writestr(name, content if name == "hu.npy" else source.read(name))
        with pytest.raises(InputError, match=told):
            load_case(path)


def test_a_negative_step_makes_no_negative_dose(tmp_path: Path) -> None:
    save_dataset(tmp_path, [small_training()])
    with np.load(next(tmp_path.glob("*.npz"))) as file:
        arrays = {name: file[name] for name in file.files}
    for step in (-0.1, 0.0, np.nan, 1e308):
        np.savez(tmp_path / "bad.npz", **{**arrays, "dose_step_gy": np.float64(step)})
        with pytest.raises(InputError, match="dose_step_gy"):
            load_case(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 50_000,
        "a = " + "{b = " * 20_000,
        "a = " + "9" * 10_000,
        "a = 1e999",
        "a = nan",
        "a = 0x" + "f" * 50,
    ],
)
def test_toml_bombs(text: str) -> None:
    with pytest.raises(ValueError):
        parse_toml(text)
