"""Phantoms have the sizes that their sources state, lie where they should, and repeat exactly."""

from __future__ import annotations

from math import acos, pi, sqrt

import numpy as np
import pytest

from vmat_diffusion.case import density_g_cm3
from vmat_diffusion.errors import CaseError
from vmat_diffusion.phantom import PHANTOMS, phantom


def volume_cc(name: str, structure: str) -> float:
    case = phantom(name)
    return case.structures[structure].voxels * case.grid.voxel_cc


def center_mm(name: str, structure: str) -> np.ndarray:
    case = phantom(name)
    return case.grid.points_mm(np.flatnonzero(case.structures[structure].mask)).mean(axis=0)


def disc_above(radius: float, y: float) -> float:
    """Area of the disc around the origin on the side of smaller y."""
    return pi * radius**2 - (radius**2 * acos(y / radius) - y * sqrt(radius**2 - y**2))


@pytest.mark.parametrize("name", PHANTOMS)
def test_every_phantom_is_a_complete_case_within_its_body(name: str) -> None:
    case = phantom(name)
    assert case.prescription is not None
    assert {t.name for t in case.targets} == set(case.prescription.target_gy)
    for structure in case.structures.values():
        assert structure.voxels > 0
        assert not np.any(structure.mask & ~case.body.mask), structure.name
    assert np.all(case.hu[~case.body.mask] == -1000)


@pytest.mark.parametrize("name", PHANTOMS)
def test_a_phantom_repeats_exactly(name: str) -> None:
    first, second = phantom(name), phantom(name)
    assert np.array_equal(first.hu, second.hu)
    assert all(np.array_equal(first.structures[s].mask, second.structures[s].mask) for s in first.structures)


# 3 %: a circle of radius 7.5 to 37 mm on a raster of 2 mm holds its area to within that.
@pytest.mark.parametrize(
    ("name", "structure", "expected_cc"),
    [
        ("tg119_cshape", "PTV", (disc_above(37.0, 7.5) - disc_above(15.0, 7.5)) * 80.0 / 1000),
        ("tg119_cshape", "Core", pi * 10.0**2 * 100.0 / 1000),
        ("tg119_multitarget", "PTV_Center", pi * 20.0**2 * 40.0 / 1000),
        ("tg119_multitarget", "PTV_Superior", pi * 20.0**2 * 40.0 / 1000),
        ("tg119_prostate", "Rectum", pi * 7.5**2 * 80.0 / 1000),
        ("tg119_prostate", "Bladder", 4 / 3 * pi * 25.0 * 20.0 * 25.0 / 1000),
        ("tg119_headneck", "SpinalCord", pi * 7.5**2 * 180.0 / 1000),
        ("water_cylinder", "BODY", pi * 100.0**2 * 200.0 / 1000),
        ("thorax", "PTV_60", 4 / 3 * pi * 22.0**3 / 1000),
    ],
)
def test_volumes_are_those_of_the_solids(name: str, structure: str, expected_cc: float) -> None:
    assert volume_cc(name, structure) == pytest.approx(expected_cc, rel=0.03)


def test_the_c_opens_to_posterior_with_5_mm_to_the_core() -> None:
    case = phantom("tg119_cshape")
    target, core = case.structures["PTV"], case.structures["Core"]
    assert center_mm("tg119_cshape", "PTV")[1] < -5  # more target in front: -y is anterior
    x, y, _ = case.grid.points_mm(np.flatnonzero(target.mask)).T
    assert np.hypot(x, y).min() >= 15.0
    assert not np.any(target.mask & core.mask)


def test_a_third_of_the_rectum_is_in_the_prostate_target_at_mid_height() -> None:
    case = phantom("tg119_prostate")
    middle = case.grid.shape[0] // 2
    rectum = case.structures["Rectum"].mask[middle]
    shared = rectum & case.structures["PTV"].mask[middle]
    assert shared.sum() / rectum.sum() == pytest.approx(1 / 3, abs=0.05)


def test_the_head_and_neck_target_keeps_its_distances() -> None:
    case = phantom("tg119_headneck")
    x, y, _ = case.grid.points_mm(np.flatnonzero(case.structures["PTV"].mask)).T
    assert np.hypot(x, y - 30.0).min() - 7.5 >= 15.0
    outside = case.grid.points_mm(np.flatnonzero(~case.body.mask[0]))
    edge = np.stack([x, y], axis=-1)[::50]
    to_skin = np.hypot(edge[:, None, 0] - outside[:, 0], edge[:, None, 1] - outside[:, 1]).min()
    assert to_skin >= 6.0
    assert center_mm("tg119_headneck", "Parotid_L")[0] > 0  # +x is the patient's left


def test_superior_is_towards_the_head() -> None:
    assert center_mm("tg119_multitarget", "PTV_Superior")[2] == pytest.approx(40.0)
    assert center_mm("tg119_multitarget", "PTV_Inferior")[2] == pytest.approx(-40.0)


def test_thorax_densities() -> None:
    case = phantom("thorax")
    density = density_g_cm3(case.hu)
    assert density[case.structures["Lungs"].mask] == pytest.approx(0.26, abs=0.002)
    assert density[case.structures["Heart"].mask] == pytest.approx(1.0)
    assert density.max() > 1.3
    assert center_mm("thorax", "PTV_60")[0] < 0  # the right lung


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CaseError, match="water_cylinder"):
        phantom("cube")
