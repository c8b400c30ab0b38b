"""The influence matrix as a file: what is in it, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from vmat_diffusion.errors import InputError
from vmat_diffusion.workflow.influence import write_influence
from vmat_diffusion.workflow.settings import InfluenceSettings

COARSE = InfluenceSettings(spacing_deg=60.0, grid_mm=8.0, beamlet_mm=10.0, voxels_per_structure=60)


def test_the_file_holds_the_matrix_and_what_its_numbers_mean(case_folder: Path, tmp_path: Path) -> None:
    heard: list[str] = []
    done = write_influence(case_folder, tmp_path / "d.npz", COARSE, announce=heard.append)
    with np.load(done.path) as file:
        parts = {name: file[name] for name in file.files}
    matrix = sparse.csr_matrix((parts["data"], parts["indices"], parts["indptr"]), parts["shape"])
    per_exposure = (len(parts["row_edges_mm"]) - 1) * (len(parts["column_edges_mm"]) - 1)
    assert matrix.shape == (len(parts["voxel"]), len(parts["gantry_deg"]) * per_exposure)
    assert (done.voxels, done.beamlets, done.entries) == (*matrix.shape, matrix.nnz)
    assert parts["voxel"].max() < parts["grid_shape"].prod() and len(np.unique(parts["voxel"])) == done.voxels
    # All beamlets open with 1 MU each: about the dose of the open field per MU, 0.5 to 1 cGy at depth.
    open_field = matrix @ np.ones(matrix.shape[1]) / len(parts["gantry_deg"])
    assert 0.003 < open_field.max() < 0.015
    assert heard and "GB" in heard[0]
    assert not list(tmp_path.glob(".*"))


def test_nothing_is_overwritten_or_built_beyond_the_limit(case_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "d.npz"
    with pytest.raises(InputError, match="--max-gb"):
        write_influence(case_folder, out, replace(COARSE, max_gb=1e-6))
    assert not out.exists()
    out.write_bytes(b"mine")
    with pytest.raises(InputError, match="--overwrite"):
        write_influence(case_folder, out, COARSE)
    assert out.read_bytes() == b"mine"
    with pytest.raises(InputError, match=r"\.npz"):
        write_influence(case_folder, tmp_path / "d.mat", COARSE)
