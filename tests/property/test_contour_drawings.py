"""However a shape is stored on its slices, its volume is that of the closed form."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vmat_diffusion.dicom.lattice import Lattice
from vmat_diffusion.dicom.structure_set.outlines import fill_outlines
from vmat_diffusion.dicom.structure_set.rasterize import Contour, native_mask
from vmat_diffusion.errors import CaseError

PIXELS = 96
CASES = 60


def lattice(spacing_mm: float = 1.0, heights: NDArray | None = None) -> Lattice:
    z = 3.0 * np.arange(12) if heights is None else heights
    low = -(PIXELS - 1) / 2 * spacing_mm
    origins = np.column_stack([np.full(len(z), low), np.full(len(z), low), z])
    x, y = np.eye(3)[:2]
    return Lattice(origins, x, y, (spacing_mm, spacing_mm), (len(z), PIXELS, PIXELS))


def ellipse(rng: np.random.Generator, center: tuple[float, float], radius: tuple[float, float]) -> NDArray:
    angle = np.linspace(0, 2 * np.pi, int(rng.integers(24, 200)), endpoint=False) + rng.uniform(0, 1)
    return np.column_stack([center[0] + radius[0] * np.cos(angle), center[1] + radius[1] * np.sin(angle)])


def area(outline: NDArray) -> float:
    x, y = outline.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def stored_again(rng: np.random.Generator, outline: NDArray) -> NDArray:
    """The outline from another start, some with vertices less or more, rounded, or in the other direction."""
    out = np.roll(outline, int(rng.integers(len(outline))), axis=0)
    if rng.random() < 0.5:
        out = out[::-1]
    if rng.random() < 0.5:
        out = np.delete(out, rng.integers(len(out)), axis=0)
    if rng.random() < 0.5:
        k = int(rng.integers(1, len(out)))
        out = np.insert(out, k, (out[k - 1] + out[k]) / 2, axis=0)
    if rng.random() < 0.5:
        out = np.round(out, int(rng.integers(1, 4)))
    return np.vstack([out, out[:1]]) if rng.random() < 0.3 else out


def twice_round(rng: np.random.Generator, outline: NDArray) -> NDArray:
    """One line that runs round twice, or on beyond its start, perhaps the second time backwards."""
    if (kind := rng.random()) < 0.4:
        return np.vstack([outline, outline])
    if kind < 0.6:
        return np.vstack([outline, outline[:1], outline[::-1]])
    if kind < 0.8:
        return np.vstack([outline, outline + rng.normal(0, 0.02, outline.shape)])
    return np.vstack([outline, outline[: int(rng.integers(2, len(outline) // 2))]])


def volume_of(contours: list[Contour], grid: Lattice) -> float:
    mask, _ = native_mask(contours, grid, strict=True, within=True)
    drawn = {int(np.argmin(np.abs(grid.heights_mm - np.median(c.points[:, 2])))) for c in contours}
    assert set(np.flatnonzero(mask.any(axis=(1, 2)))) >= drawn
    return float(mask.sum()) * grid.spacing_mm[0] ** 2


def at(outline: NDArray, z: float) -> Contour:
    return Contour(np.column_stack([outline, np.full(len(outline), z)]))


@pytest.mark.parametrize("seed", range(CASES))
def test_repeats_laps_and_heights_do_not_change_the_volume(seed: int) -> None:
    """Two separate ellipses with a hole in one; the tolerance is half a pixel along 5 % of the outline."""
    rng = np.random.default_rng(seed)
    grid = lattice()
    contours: list[Contour] = []
    exact = 0.0
    for z in grid.heights_mm[2:9]:
        one = ellipse(rng, (-22, 2), tuple(rng.uniform(10, 18, 2)))
        other = ellipse(rng, (24, -3), tuple(rng.uniform(7, 14, 2)))
        hole = ellipse(rng, (-22, 2), tuple(rng.uniform(3, 6, 2)))
        exact += area(one) + area(other) - area(hole)
        for outline in (one, other, hole):
            drawn = twice_round(rng, outline) if rng.random() < 0.3 else outline
            again = [stored_again(rng, outline) for _ in range(int(rng.integers(3)))]
            contours += [at(o, z + rng.uniform(-0.15, 0.15)) for o in (drawn, *again)]
    rng.shuffle(contours)  # type: ignore[arg-type]
    assert volume_of(contours, grid) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("seed", range(CASES))
def test_partial_overlap_is_a_union_and_with_xor_its_difference(seed: int) -> None:
    """Boxes that overlap in a known rectangle, with a hole that lies in one of them alone."""
    rng = np.random.default_rng(seed)
    grid = lattice(0.5)
    half, step = rng.uniform(7, 10, 2), rng.uniform(3, 6, 2)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    one, other = corners * half - step, corners * half + step
    shared = float(np.prod(2 * half - 2 * step))
    hole = corners * 1.2 - half + 0.2 - step + 1.6
    for exclusive, exact in ((False, 8 * np.prod(half) - shared), (True, 8 * np.prod(half) - 2 * shared)):
        index = [(o + (PIXELS - 1) / 4) / 0.5 for o in (one, other, hole)]
        filled = fill_outlines([index[k] for k in rng.permutation(3)], (PIXELS, PIXELS), exclusive=exclusive)
        assert filled.plane.sum() * 0.25 == pytest.approx(exact - area(hole), rel=0.05)
        assert filled.joined == (0 if exclusive else 1) and filled.lost == 0
    assert grid.shape[1] == PIXELS


def test_two_planes_of_one_slice_are_told_from_noise_by_the_slice_spacing() -> None:
    """A piece at another height that touches nothing is kept; a second plane over the first is not."""
    rng = np.random.default_rng(0)
    grid = lattice()
    left, right = ellipse(rng, (-20, 0), (10, 10)), ellipse(rng, (20, 0), (10, 10))
    for off in (0.03, 0.134, 0.4, 1.2):
        mask, _ = native_mask([at(left, 9.0), at(right, 9.0 + off)], grid, strict=True)
        assert mask[3].sum() == pytest.approx(area(left) + area(right), rel=0.02), off
    mask, steps = native_mask([at(left, 9.0), at(0.7 * left - (6, 0), 10.2)], grid, strict=True)
    assert mask[3].sum() == pytest.approx(area(left), rel=0.02)
    assert any(step.startswith("thin-contours: 1 ") for step in steps)


def test_uneven_gaps_leave_no_contour_beyond_the_images() -> None:
    grid = lattice(heights=np.array([0.0, 2, 4, 9, 14, 16, 18]))
    outline = ellipse(np.random.default_rng(0), (0, 0), (10, 10))
    mask, _ = native_mask([at(outline, 6.4), at(outline, 11.0)], grid, strict=True, within=True)
    assert np.flatnonzero(mask.any(axis=(1, 2))).tolist() == [2, 3]
    with pytest.raises(CaseError, match=r"1 of 1 contours, the first at 19\.2 mm"):
        native_mask([at(outline, 19.2)], grid, strict=True, within=True)


@pytest.mark.parametrize("seed", range(20))
def test_uneven_slices_keep_the_volume_of_their_slabs(seed: int) -> None:
    """Each slice reaches half way to its neighbours: right to half a voxel at each end, and without bias."""
    from vmat_diffusion.dicom.lattice import placement_of

    rng = np.random.default_rng(seed)
    gaps = rng.choice([2.0, 3.0, 4.0], 30)
    # No single wide gap: that would be a missing slice.
    gaps = np.repeat(np.sort(gaps), 2)
    heights = np.concatenate([[0.0], np.cumsum(gaps)])
    placement = placement_of(lattice(heights=heights))
    native = np.zeros(placement.lattice.shape, bool)
    native[20:40, 30:50, 30:50] = True
    half_way = (heights[1:] + heights[:-1]) / 2
    mask = placement.mask(native)
    exact = half_way[39] - half_way[19]
    got = mask[:, 40, 40].sum() * placement.grid.spacing_mm[2]
    assert abs(got - exact) <= placement.grid.spacing_mm[2] + 1e-6


@pytest.mark.parametrize("seed", range(20))
def test_contours_half_way_between_slices_keep_their_number_of_slices(seed: int) -> None:
    """Files round to 0.1 mm: a structure half way throughout must not fall to both sides."""
    rng = np.random.default_rng(seed)
    grid = lattice()
    outline = ellipse(rng, (0, 0), (14, 9))
    first, last = 2, int(rng.integers(6, 10))
    contours = [at(outline, 3.0 * k + 1.5 + rng.uniform(-0.1, 0.1)) for k in range(first, last)]
    mask, _ = native_mask(contours, grid, strict=True, within=True)
    assert mask.sum() == pytest.approx((last - first) * area(outline), rel=0.03)


@pytest.mark.parametrize("seed", range(20))
def test_gaps_are_filled_or_named_and_refused_where_single_slices_stand_alone(seed: int) -> None:
    """Contours every n slices: up to 10 mm they are filled in; wider, nobody knows the outline between."""
    rng = np.random.default_rng(seed)
    step = int(rng.integers(2, 6))
    thick = int(rng.integers(1, 3))
    grid = lattice(heights=3.0 * np.arange(24))
    outline = ellipse(rng, (0, 0), (14, 9))
    drawn = sorted({k + n for k in range(2, 20 - thick, step + thick - 1) for n in range(thick)})
    contours = [at(outline, 3.0 * k) for k in drawn]
    wide = 3.0 * step > 10
    if wide and thick == 1:
        with pytest.raises(CaseError, match=f"the {step - 1} slices between its contours at 6"):
            native_mask(contours, grid, strict=True)
    mask, steps = native_mask(contours, grid, strict=not wide or thick > 1)
    assert any(note.startswith("open-gap: no contour between" if wide else "fill-slices: ") for note in steps)
    slices = len(drawn) if wide else drawn[-1] - drawn[0] + 1
    assert mask.sum() == pytest.approx(slices * area(outline), rel=0.03)
    assert np.count_nonzero(mask.any(axis=(1, 2))) == slices


def test_pieces_on_distant_slices_that_lie_elsewhere_are_no_gap() -> None:
    rng = np.random.default_rng(1)
    contours = [at(ellipse(rng, (-20, 0), (9, 9)), 3.0), at(ellipse(rng, (20, 0), (9, 9)), 27.0)]
    mask, steps = native_mask(contours, lattice(), strict=True)
    assert np.flatnonzero(mask.any(axis=(1, 2))).tolist() == [1, 9] and steps == ()


@pytest.mark.parametrize("seed", range(40))
def test_keyholes_and_nested_islands_in_any_order(seed: int) -> None:
    """Rings within rings, some as keyholes, shuffled, turned round and stored again: areas alternate."""
    rng = np.random.default_rng(seed)
    grid = lattice()
    contours: list[Contour] = []
    exact = 0.0
    for z in grid.heights_mm[2:8]:
        # Radii at least 3 mm apart, between which the pixels tell in and out.
        radii = 40.0 - np.cumsum(rng.uniform(3, 8, int(rng.integers(1, 6))))
        rings = [ellipse(rng, (0, 0), (r, r)) for r in radii]
        exact += sum((-1) ** k * area(ring) for k, ring in enumerate(rings))
        while rings:
            outline = rings.pop(0)
            if rings and rng.random() < 0.4:  # a channel to the next ring and back
                inner = rings.pop(0)[::-1]
                outline = np.vstack([outline, outline[:1], inner, inner[:1]])
            contours.append(at(outline, z))
            if rng.random() < 0.4:
                contours.append(at(np.roll(outline, int(rng.integers(len(outline))), axis=0), z))
    rng.shuffle(contours)  # type: ignore[arg-type]
    assert volume_of(contours, grid) == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize("seed", range(40))
def test_a_hole_that_touches_its_outline_is_a_hole(seed: int) -> None:
    """A hole with a side on the outer outline, but for 0.1 mm of rounding, is cut out and not joined."""
    rng = np.random.default_rng(seed)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    outer = corners * rng.uniform(18, 30, 2) + 0.13
    width, height = rng.uniform(6, 12, 2)
    hole = corners * (width, height) / 2
    hole[:, 0] += outer[:, 0].max() - hole[:, 0].max()
    hole = (hole + rng.normal(0, 0.05, hole.shape)).round(2)
    grid = lattice()
    turned = [at(np.roll(o, int(rng.integers(4)), axis=0), 6.0) for o in (hole, outer)]
    cut = volume_of(turned[1:], grid) - volume_of(turned, grid)
    # One pixel more or less along each side; those on the line itself stay with the structure.
    assert (width - 2) * (height - 2) <= cut <= (width + 1.2) * (height + 1.2)
