"""Phantoms have the sizes that their sources state, lie where they should, and repeat exactly."""

from __future__ import annotations

from math import acos, asin, pi, sqrt

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


def headneck_target_cc() -> float:
    """Below, the ellipse in front of y = 45 mm; above, its middle 64 mm; less the room of the cord."""
    behind = acos(45 / 69) - 45 / 69 * sqrt(1 - (45 / 69) ** 2)
    below = 59 * 69 * (pi - behind)
    front = 69 * (32 * sqrt(1 - (32 / 59) ** 2) + 59 * asin(32 / 59))
    above = front + 64 * 45
    room = pi * 22.5**2 / 2 + 45 * 15
    return (below + above - 2 * room) * 50 / 1000


def block_cc(width: float, depth: float, corner: float, length: float) -> float:
    return (width * depth - (4 - pi) * corner**2) * length / 1000


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
        ("tg119_cshape", "BODY", block_cc(300.0, 150.0, 15.0, 200.0)),
        ("tg119_multitarget", "PTV_Inferior", pi * 20.0**2 * 40.0 / 1000),
        ("tg119_multitarget", "BODY", block_cc(300.0, 150.0, 15.0, 220.0)),
        ("tg119_prostate", "BODY", block_cc(300.0, 200.0, 70.0, 200.0)),
        ("tg119_headneck", "PTV", headneck_target_cc()),
        ("tg119_headneck", "Parotid_L", 4 / 3 * pi * 11.0 * 20.0 * 22.0 / 1000),
        ("tg119_headneck", "Parotid_R", 4 / 3 * pi * 11.0 * 20.0 * 22.0 / 1000),
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


def test_the_prostate_target_is_its_ctv_of_40_26_65_mm_with_6_mm_and_a_hollow_behind() -> None:
    case = phantom("tg119_prostate")
    target = case.structures["PTV"].mask
    reach = np.array([np.ptp(p) for p in case.grid.points_mm(np.flatnonzero(target)).T])
    reach += case.grid.spacing_mm
    # One voxel is the raster's.
    assert reach[[0, 2]] == pytest.approx([40.0 + 12.0, 65.0 + 12.0], abs=2.5)
    x, y, _ = case.grid.points_mm(np.flatnonzero(target)).T
    assert y.min() - 1.0 == pytest.approx(-(13.0 + 6.0), abs=1.0)
    assert y[abs(x) < 2].max() + 1.0 == pytest.approx(24.0 - 9.0, abs=1.0)


def test_the_rectum_leaves_the_bladder_and_abuts_the_prostate() -> None:
    case = phantom("tg119_prostate")
    rectum, bladder = case.structures["Rectum"].mask, case.structures["Bladder"].mask
    assert not np.any(rectum & bladder)
    _, y, _ = case.grid.points_mm(np.flatnonzero(rectum)).T
    assert y.min() - 1.0 == pytest.approx(
        13.0 - 2.5, abs=2.0
    )  # 13 mm to the ellipsoid's back, less the hollow


def test_the_parotids_are_at_the_upper_end_of_the_target() -> None:
    case = phantom("tg119_headneck")
    target = case.structures["PTV"].mask
    for name in ("Parotid_L", "Parotid_R"):
        assert not np.any(case.structures[name].mask & target)
        assert center_mm("tg119_headneck", name)[2] > center_mm("tg119_headneck", "PTV")[2]


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
