"""Whether the body is drawn on the tissue of the CT."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_case import small_case

from vmat_diffusion.anatomy import synthetic_case
from vmat_diffusion.case import Case, Structure
from vmat_diffusion.phantom import PHANTOMS, phantom
from vmat_diffusion.qa.outline import body_outline, contours_left_out


def body_moved(case: Case, by_mm: tuple[float, float], scale: float = 1.0) -> Case:
    """The body drawn elsewhere: moved along x and y, and scaled about the middle of the grid."""
    grid = case.grid
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


def test_contours_that_lie_on_no_image_are_said() -> None:
    case, lost = (
        small_case(),
        "drop-contours: BODY: 10 of 80 contours, the first at -98.8 mm, lie on no image",
    )
    assert contours_left_out(case) == []
    steps = ("choose-series: 1 of 2 CT series", lost)
    assert contours_left_out(replace(case, source=replace(case.source, steps=steps))) == [lost]


def everywhere(case: Case) -> Structure:
    """A body that reaches to the edge of the CT."""
    return replace(case.body, mask=np.ones(case.grid.shape, bool))


def test_a_body_that_nobody_drew_is_said() -> None:
    case = phantom("tg119_cshape")
    made = replace(case, source=replace(case.source, steps=("body-from-ct: no body is contoured",)))
    check = body_outline(made)
    assert check is not None and check.warns and "made from the CT" in check.why
    ends = replace(case, structures={**case.structures, "BODY": everywhere(case)})
    assert body_outline(ends) is None
