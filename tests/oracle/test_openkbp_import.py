"""The published OpenKBP patients against what their files hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vmat_diffusion.dataset.cases import load_case, save_case
from vmat_diffusion.dataset.openkbp import NAMES, patient_paths, read_openkbp, to_openkbp

FEW = ("pt_1", "pt_100", "pt_201")


@pytest.mark.parametrize("name", [*FEW, pytest.param("all", marks=pytest.mark.slow)])
def test_imported_cases_hold_what_the_files_hold(shared_data: Path, tmp_path: Path, name: str) -> None:
    if not (shared_data / "openkbp").is_dir():
        pytest.skip("test data absent: openkbp")
    paths = [p for p in patient_paths(shared_data / "openkbp") if name in ("all", p.stem)]
    assert len(paths) == (236 if name == "all" else 1)
    for path in paths:
        _compare(path, tmp_path)


def _compare(path: Path, folder: Path) -> None:
    made = read_openkbp(path)
    stored = load_case(save_case(folder / "case.npz", made))
    case = stored.case
    with np.load(path) as source:
        bits, dose = source["structures"], source["dose_cGy"]
        assert stored.has_ct == ("ct" in source.files), path.stem
        if stored.has_ct:
            assert np.array_equal(to_openkbp(case.hu), np.minimum(source["ct"], 4095) - 1000), path.stem
        assert np.prod(case.grid.spacing_mm) == pytest.approx(np.prod(source["voxel_mm"]), rel=1e-4)
    counts = {n: int(np.count_nonzero(bits >> k & 1)) for k, n in enumerate(NAMES.values())}
    assert {n: s.voxels for n, s in case.structures.items() if s.role != "body"} == {
        n: count for n, count in counts.items() if count
    }, path.stem
    # The benchmark's own grid and order, after the case was written and read again.
    assert np.array_equal(np.rint(to_openkbp(case.reference_dose.gy) * 100), dose), path.stem
    assert np.array_equal(to_openkbp(stored.possible_dose), bits >> 15 & 1), path.stem
    assert not np.any(stored.possible_dose & ~case.body.mask), path.stem
    _anatomy_is_upright(case, path.stem)


def _anatomy_is_upright(case, label: str) -> None:  # type: ignore[no-untyped-def]
    middle = {n: case.grid.points_mm(np.flatnonzero(s.mask)).mean(axis=0) for n, s in case.structures.items()}
    if {"Parotid_L", "Parotid_R"} <= set(middle):
        assert middle["Parotid_L"][0] > middle["Parotid_R"][0] + 20, label
    for above, below in (("Brainstem", "Larynx"), ("Brainstem", "SpinalCord"), ("Larynx", "Esophagus")):
        if {above, below} <= set(middle):
            assert middle[above][2] > middle[below][2], label
    if {"SpinalCord", "Larynx"} <= set(middle):
        assert middle["SpinalCord"][1] > middle["Larynx"][1], label
