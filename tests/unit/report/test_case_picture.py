from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import matplotlib.image
import numpy as np
from small_case import open_arc, small_case

from vmat_diffusion.case import Case, Dose, Structure
from vmat_diffusion.dataset.cases import TrainingCase
from vmat_diffusion.report.case_picture import case_picture


def _drawn(tmp_path: Path, case: Case, **more: object) -> np.ndarray:
    path = case_picture(tmp_path / "a.png", TrainingCase(case, case.body.mask, **more))  # type: ignore[arg-type]
    assert path.stat().st_size < 250_000
    picture = matplotlib.image.imread(path)
    assert picture.shape[1] == 1200 and 350 <= picture.shape[0] <= 550
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    return picture[..., :3]


def _hues(picture: np.ndarray) -> float:
    """Share of pixels with a strong colour."""
    return float(np.mean(np.ptp(picture, axis=-1) > 0.25))


def test_dose_and_contours_are_drawn(tmp_path: Path) -> None:
    case = small_case()
    gy = np.where(case.structures["PTV"].mask, 50.0, 20.0).astype(np.float32)
    plain = _drawn(tmp_path, case)
    dosed = _drawn(tmp_path, replace(case, reference_dose=Dose(case.grid, gy)), plan=open_arc())
    assert 0.001 < _hues(plain) < 0.1 < _hues(dosed)


def test_the_same_case_makes_the_same_picture(tmp_path: Path) -> None:
    np.testing.assert_array_equal(_drawn(tmp_path, small_case()), _drawn(tmp_path, small_case()))


def test_no_prescription_no_ct_and_many_structures(tmp_path: Path) -> None:
    case = small_case()
    many = {f"Organ_{k}": Structure(f"Organ_{k}", "organ", case.structures["PTV"].mask) for k in range(40)}
    gy = np.full(case.grid.shape, 3.0, np.float32)
    case = replace(
        case, prescription=None, structures=case.structures | many, reference_dose=Dose(case.grid, gy)
    )
    assert _hues(_drawn(tmp_path, case, has_ct=False)) > 0.1
