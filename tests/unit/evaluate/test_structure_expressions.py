"""Structures made of others: what a text means, and which voxels it has."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vmat_diffusion.errors import GoalError
from vmat_diffusion.evaluate.structure_expressions import (
    in_words,
    mask_of,
    names_in,
    parse_expression,
    renamed,
    without_names,
)

NAMES = {"Lungs", "GTV", "PTV", "Kidney_L", "Kidney_R", "SpinalCord", "BODY", "Heart", "PTV-70", "Brain - x"}


def _known(text: str) -> str | None:
    return text if text in NAMES else None


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("Lungs", "Lungs"),
        ("Lungs - GTV", "Lungs - GTV"),
        ("Lungs-GTV", "Lungs - GTV"),
        ("Kidney_L+Kidney_R", "Kidney_L + Kidney_R"),
        ("SpinalCord + 5 mm", "SpinalCord + 5 mm"),
        ("SpinalCord+5mm", "SpinalCord + 5 mm"),
        ("PTV-2.5 mm", "PTV - 2.5 mm"),
        ("(PTV + 20 mm) & BODY", "(PTV + 20 mm) & BODY"),
        ("PTV + 5 mm - Heart", "(PTV + 5 mm) - Heart"),
        ("BODY - PTV - Heart", "(BODY - PTV) - Heart"),
        ("BODY - (PTV + Heart)", "BODY - (PTV + Heart)"),
        ("(PTV + 10 mm) - (PTV + 5 mm)", "(PTV + 10 mm) - (PTV + 5 mm)"),
        ("Lungs + GTV + PTV", "Lungs + GTV + PTV"),
        # The longest name that is known is meant, with its hyphens and spaces.
        ("PTV-70 - Heart", "PTV-70 - Heart"),
        ("Heart + Brain - x", "Heart + Brain - x"),
        # A hyphen between names that nothing knows belongs to the name, and so does a parenthesis.
        ("Foo-Bar", "Foo-Bar"),
        ("Foo (left)", "Foo (left)"),
        ("Spinal Cord + 5 mm", "Spinal Cord + 5 mm"),
    ],
)
def test_what_a_text_means(text: str, meaning: str) -> None:
    expression = parse_expression(text, _known)
    assert str(expression) == meaning
    assert parse_expression(str(expression), _known) == expression


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Lungs - GTV + 5 mm", "put parentheses"),
        ("Lungs + GTV & PTV", "put parentheses"),
        ("Lungs +", "a name is missing at its end"),
        ("- Lungs", "a name is missing before '-'"),
        ("(Lungs + GTV", "not closed"),
        ("Lungs - GTV)", "has no place"),
        ("Lungs + 5", "write a margin in mm"),
        ("Lungs + 5 cm", "write a margin in mm"),
        ("5 mm + Lungs", "write a margin in mm"),
        ("Lungs & 5 mm", "write a margin in mm"),
        ("Lungs + 500 mm", "outside 0 to 100 mm"),
        ("Lungs + 0 mm", "outside 0 to 100 mm"),
        ("", "name a structure"),
    ],
)
def test_a_text_that_can_be_read_in_two_ways_or_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(GoalError) as caught:
        parse_expression(text, _known)
    assert why in str(caught.value) and "\n" not in str(caught.value)


def test_names_and_words() -> None:
    expression = parse_expression("BODY - (PTV + Heart)", _known)
    assert names_in(expression) == ("BODY", "PTV", "Heart")
    assert str(renamed(expression, str.lower)) == "body - (ptv + heart)"
    assert in_words(parse_expression("Kidney_L + Kidney_R")) == "the union of Kidney_L and Kidney_R"
    assert in_words(parse_expression("SpinalCord + 5 mm")) == "SpinalCord + 5 mm"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("BODY - PTV", "BODY"),
        ("BODY - (PTV + Heart)", "BODY - Heart"),
        ("PTV + Heart", "Heart"),
        ("Heart + PTV", "Heart"),
        ("PTV - Heart", None),
        ("PTV & Heart", None),
        ("PTV + 5 mm", None),
        ("BODY - (PTV + 5 mm)", "BODY"),
    ],
)
def test_targets_that_may_be_absent_count_as_empty(text: str, left: str | None) -> None:
    found = without_names(parse_expression(text), ["PTV"])
    assert (None if found is None else str(found)) == left


def _ball(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], radius_mm: float
) -> np.ndarray:
    z, y, x = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, reversed(spacing_mm), strict=True))
    return x**2 + y[:, None] ** 2 + z[:, None, None] ** 2 <= radius_mm**2


@pytest.mark.parametrize("margin_mm", [3.0, 5.0, 8.0])
@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.0, 1.5, 3.0)])
def test_a_sphere_grows_and_shrinks_to_spheres(
    margin_mm: float, spacing_mm: tuple[float, float, float]
) -> None:
    """Volumes of 4/3 pi r^3: the radius is right within half of the largest voxel side."""
    shape = tuple(int(60 / s) + 1 for s in reversed(spacing_mm))
    ball = {"A": _ball(shape, spacing_mm, 15.0)}  # type: ignore[arg-type]
    voxel = float(np.prod(spacing_mm))
    for sign, mm in (("+", margin_mm), ("-", -margin_mm)):
        made = mask_of(parse_expression(f"A {sign} {margin_mm:g} mm"), ball, spacing_mm)
        radius = (3 * made.sum() * voxel / (4 * np.pi)) ** (1 / 3)
        assert radius == pytest.approx(15.0 + mm, abs=0.5 * max(spacing_mm))


@pytest.mark.parametrize("margin_mm", [2.0, 4.0, 6.0, 7.5])
def test_a_box_with_a_margin_is_a_rounded_box(margin_mm: float) -> None:
    """Closed form: centres within the margin of a box of 10 x 8 x 12 mm on a grid of 1 x 2 x 3 mm."""
    spacing_mm, shape = (1.0, 2.0, 3.0), (15, 20, 40)
    box = np.zeros(shape, bool)
    box[5:9, 8:12, 15:25] = True
    low, high = np.array([5, 8, 15]), np.array([8, 11, 24])
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    away = np.maximum(np.maximum(low - index, index - high), 0) * np.array(spacing_mm[::-1])
    expected = np.linalg.norm(away, axis=-1) <= margin_mm + 1e-6
    assert np.array_equal(
        mask_of(parse_expression(f"A + {margin_mm:g} mm"), {"A": box}, spacing_mm), expected
    )


def test_a_box_shrinks_by_its_margin() -> None:
    box = np.zeros((20, 20, 20), bool)
    box[4:14, 4:14, 4:14] = True
    made = mask_of(parse_expression("A - 6 mm"), {"A": box}, (2.0, 3.0, 1.0))
    expected = np.zeros_like(box)
    assert np.array_equal(made, expected)  # 6 mm from both sides leave nothing of 10 slices of 1 mm
    made = mask_of(parse_expression("A - 6 mm"), {"A": box}, (2.0, 3.0, 2.0))
    expected[7:11, 6:12, 7:11] = True
    assert np.array_equal(made, expected)


def test_joining_without_and_common_part_a_structure() -> None:
    rng = np.random.default_rng(3)
    masks = {name: rng.random((6, 7, 8)) > 0.5 for name in "AB"}

    def of(text: str) -> np.ndarray:
        return mask_of(parse_expression(text), masks, (1.0, 1.0, 1.0))

    without, common = of("A - B"), of("A & B")
    assert not (without & common).any() and np.array_equal(without | common, masks["A"])
    assert np.array_equal(of("A + B"), of("(A - B) + (A & B) + (B - A)"))
    assert np.array_equal(of("A - (A & B)"), without)


def test_margins_are_monotone_and_stay_on_the_grid() -> None:
    rng = np.random.default_rng(4)
    seed = np.zeros((12, 14, 16), bool)
    seed[tuple(rng.integers(0, n, 6) for n in seed.shape)] = True
    sizes = [mask_of(parse_expression(f"A + {mm} mm"), {"A": seed}, (2.0, 2.0, 3.0)) for mm in (1, 4, 9, 60)]
    assert all(np.all(a <= b) for a, b in itertools.pairwise(sizes)) and sizes[-1].all()
    empty = mask_of(parse_expression("A + 5 mm"), {"A": np.zeros_like(seed)}, (2.0, 2.0, 3.0))
    assert not empty.any()
    whole = mask_of(parse_expression("A - 5 mm"), {"A": np.ones_like(seed)}, (2.0, 2.0, 3.0))
    assert whole.all()  # beyond the grid is neither in nor out
