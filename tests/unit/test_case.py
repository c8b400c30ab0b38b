"""What a Case, its structures and its dose refuse, and the density of a voxel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_case import small_case

from vmat_diffusion.case import (
    SCHNEIDER,
    Case,
    Dose,
    Prescription,
    Structure,
    density_g_cm3,
    load_ct_table,
)
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid

GRID = Grid((2, 3, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))


def test_density_of_known_tissues() -> None:
    hu = np.array([-1024, -1000, -700, -98, 0, 50, 1000, 3071, 5000])
    expected = [0.00121, 0.00121, 0.3101, 0.93, 1.0, 1.0624, 1.6086, 2.8, 2.8]
    assert np.allclose(density_g_cm3(hu), expected, atol=2e-3)
    assert density_g_cm3(np.array([0]))[0] == 1.0


def test_a_case_names_its_body_and_targets() -> None:
    case = small_case()
    assert case.body.name == "BODY"
    assert [t.name for t in case.targets] == ["PTV"]
    assert case.structures["PTV"].voxels == 5 * 6 * 6


@pytest.mark.parametrize("bodies", [0, 2])
def test_a_case_needs_exactly_one_body(bodies: int) -> None:
    masks = {f"B{i}": Structure(f"B{i}", "body", np.ones(GRID.shape, bool)) for i in range(bodies)}
    with pytest.raises(CaseError, match="exactly one structure of role body"):
        Case("x", "", GRID, np.zeros(GRID.shape), masks)


def test_arrays_must_fit_the_grid() -> None:
    case = small_case()
    short = replace(case.structures["PTV"], mask=case.structures["PTV"].mask[:-1])
    with pytest.raises(CaseError, match="structure PTV"):
        replace(case, structures={**case.structures, "PTV": short})
    with pytest.raises(CaseError, match="CT of shape"):
        replace(case, hu=case.hu[:-1])
    with pytest.raises(CaseError, match="does not fit its grid"):
        Dose(GRID, np.zeros((2, 3, 5), np.float32))


def test_a_dose_must_be_finite() -> None:
    gy = np.zeros(GRID.shape, np.float32)
    gy[0, 0, 0] = np.nan
    with pytest.raises(CaseError, match="not finite"):
        Dose(GRID, gy)


def test_a_dose_on_another_grid_is_interpolated_and_0_outside() -> None:
    x = np.broadcast_to(np.arange(4.0), GRID.shape).astype(np.float32)
    other = Grid((1, 1, 3), (1.0, 1.0, 1.0), (1.5, 1.0, 0.5))
    assert Dose(GRID, x).on(other).ravel().tolist() == [1.5, 2.5, 3.0]
    assert Dose(GRID, x).on(Grid((1, 1, 1), (1.0, 1.0, 1.0), (9.0, 0.0, 0.0))).ravel().tolist() == [0.0]


def test_prescriptions_are_checked() -> None:
    with pytest.raises(CaseError, match="fractions"):
        Prescription(0, {"PTV": 50.0})
    for gy in (0.0, -2.0, 500.0, float("nan")):
        with pytest.raises(CaseError, match="PTV"):
            Prescription(25, {"PTV": gy})


def test_a_scanner_s_own_table(tmp_path: Path) -> None:
    file = tmp_path / "scanner.csv"
    file.write_text("# our CT, 120 kV\nhu, density_g_cm3\n-1000, 0.001\n0, 1.0\n3000, 2.5\n")
    table = load_ct_table(file)
    assert np.allclose(density_g_cm3(np.array([-2000, -500, 1500]), table), [0.001, 0.5005, 1.75])
    assert load_ct_table(None) is SCHNEIDER


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "does not start"),
        ("a,b\n0,1\n1,2\n", "does not start"),
        ("hu,density_g_cm3\n0,1\n", "at least two"),
        ("hu,density_g_cm3\n0,1\n-5,2\n", "ascend"),
        ("hu,density_g_cm3\n0,1\n5,-2\n", "0 to 25"),
        ("hu,density_g_cm3\n0,1\n5,water\n", "line 3"),
        ("hu,density_g_cm3\n0,1\n5,nan\n", "line 3"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "scanner.csv"
    file.write_text(text)
    with pytest.raises(CaseError, match=named):
        load_ct_table(file)


def test_a_table_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="does not exist"):
        load_ct_table(tmp_path / "none.csv")
