"""What a wrong rescale slope or scanner does to the peaks of a CT, and a body that is drawn elsewhere."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_case import small_case

from vmat_diffusion.anatomy import synthetic_case
from vmat_diffusion.case import Case, Structure
from vmat_diffusion.geometry import Grid
from vmat_diffusion.phantom import PHANTOMS, phantom
from vmat_diffusion.qa.ct_numbers import body_outline, ct_numbers


def patient() -> Case:
    """The water block with tissue of 40 HU and noise."""
    case = small_case()
    noise = np.random.default_rng(0).normal(0, 15, case.hu.shape)
    return replace(case, hu=np.where(case.body.mask, 40.0, -1000.0) + noise)


@pytest.mark.parametrize("name", PHANTOMS)
def test_the_phantoms_have_plausible_numbers(name: str) -> None:
    check = ct_numbers(phantom(name))
    assert check is not None and check.passed and not check.warns


@pytest.mark.parametrize("site", ["head_neck", "lung", "prostate"])
def test_synthetic_patients_have_plausible_numbers(site: str) -> None:
    check = ct_numbers(synthetic_case(site, 4, spacing_mm=(5.0, 5.0, 6.0)))
    assert check is not None and not check.warns, check.why


@pytest.mark.parametrize(
    ("slope", "offset"),
    [
        *((1.0, offset) for offset in (1024.0, -1024.0, 200.0, -250.0)),
        *((slope, 0.0) for slope in (1.15, 0.8, 0.1)),
    ],
)
def test_a_wrong_slope_or_intercept_is_a_warning(slope: float, offset: float) -> None:
    """Stored values count from -1024 HU, as scanners write them."""
    case = patient()
    wrong = replace(case, hu=(case.hu + 1024.0) * slope - 1024.0 + offset)
    check = ct_numbers(wrong)
    assert check is not None and check.passed and check.warns
    assert "check rescale slope, intercept and calibration" in check.why


def test_sound_numbers_are_said() -> None:
    check = ct_numbers(patient())
    assert check is not None and not check.warns
    assert check.why == "soft tissue peaks at 40 HU"  # its air is but a rim


@pytest.mark.parametrize(("slope", "offset"), [(1.1, 0.0), (0.85, 0.0), (1.0, 1000.0), (1.0, -60.0)])
def test_air_that_is_not_at_minus_1000_is_a_warning(slope: float, offset: float) -> None:
    """Even where soft tissue is water, at 0 HU, which no slope changes."""
    case = phantom("tg119_cshape")
    check = ct_numbers(replace(case, hu=case.hu * slope + offset * (case.hu < -500)))
    assert check is not None and check.warns and "air outside" in check.why


def body_moved(case: Case, by_mm: tuple[float, float], scale: float = 1.0) -> Case:
    """The body drawn elsewhere: moved along x and y, and scaled about the middle of the grid."""
    grid = Grid(case.grid.shape, case.grid.spacing_mm, case.grid.origin_mm)
    points = grid.points_mm(np.arange(case.hu.size))
    middle = points.mean(axis=0)
    points = (points - middle - np.array([*by_mm, 0.0])) / np.array([scale, scale, 1.0]) + middle
    at = np.round(grid.index(points)).astype(int)
    inside = np.all((at >= 0) & (at < np.array(grid.shape)), axis=1)
    mask = np.zeros(case.hu.size, bool)
    mask[inside] = case.body.mask[tuple(at[inside].T)]
    body = Structure(case.body.name, "body", mask.reshape(grid.shape))
    return replace(case, structures={**case.structures, body.name: body})


@pytest.mark.parametrize("name", PHANTOMS)
def test_the_bodies_of_phantoms_are_drawn_on_their_ct(name: str) -> None:
    check = body_outline(phantom(name))
    assert check is None or not check.warns, check.why


@pytest.mark.parametrize("site", ["head_neck", "lung", "prostate"])
def test_the_bodies_of_synthetic_patients_are_drawn_on_their_ct(site: str) -> None:
    case = synthetic_case(site, 4, spacing_mm=(3.0, 3.0, 6.0))
    check = body_outline(case)
    assert check is not None and check.passed and not check.warns, check.why


@pytest.mark.parametrize("seed", range(6))
def test_a_body_that_is_drawn_elsewhere_is_a_warning(seed: int) -> None:
    """Moved by 8 to 20 mm, or 8 to 20 % smaller or larger."""
    rng = np.random.default_rng(seed)
    case = synthetic_case("head_neck", 4, spacing_mm=(3.0, 3.0, 6.0))
    far, angle, sign = rng.uniform(8, 20), rng.uniform(0, 2 * np.pi), rng.choice([-1, 1])
    moved = body_moved(case, (far * np.cos(angle), far * np.sin(angle)))
    scaled = body_moved(case, (0.0, 0.0), 1.0 + sign * rng.uniform(0.08, 0.2))
    for wrong in (moved, scaled):
        check = body_outline(wrong)
        assert check is not None and check.warns and "not drawn on this CT" in check.why, check.why
