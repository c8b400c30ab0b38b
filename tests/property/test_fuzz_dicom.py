"""Counts in DICOM files that no memory could hold are refused before anything is made of them.

For files that are changed at random see test_harmed_files.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from dicom_files import ct_series, rt_dose, save, structure_set

from vmat_diffusion.dicom import read_case, read_dose
from vmat_diffusion.errors import InputError


def test_pixel_counts_beyond_all_memory_are_refused(tmp_path: Path) -> None:
    images = ct_series()
    for image in images:
        image.Rows = image.Columns = 65535
    for k, dataset in enumerate([*images, structure_set(images)]):
        save(dataset, tmp_path / f"{k}")
    with pytest.raises(InputError, match=r"voxels|pixels"):
        read_case(tmp_path)


def test_frame_counts_beyond_all_memory_are_refused(tmp_path: Path) -> None:
    dataset = rt_dose()
    dataset.NumberOfFrames = 2**31 - 1
    with pytest.raises(InputError, match="frames"):
        read_dose(save(dataset, tmp_path / "rd"))
