"""Solids of synthetic patients: volumes, margins and the algebra of cutting and joining."""

from __future__ import annotations

from math import pi

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmat_diffusion.anatomy.solids import (
    Solid,
    Space,
    bent_space,
    draw_waves,
    ellipsoid,
    half_space,
    rod,
    tube,
)

LENGTHS = st.floats(8.0, 25.0)
PLACES = st.tuples(*(st.floats(-10.0, 10.0) for _ in range(3)))


def space(spacing_mm: float = 2.0, *, bend_mm: float = 0.0, turn_deg: float = 0.0) -> Space:
    edge = 44.0
    return bent_space(
        (-edge,) * 3, (edge,) * 3, (spacing_mm,) * 3, 1, bend_mm=bend_mm, turn_deg=(turn_deg, 0.0, -turn_deg)
    )


def volume_mm3(solid: Solid, within: Space) -> float:
    return within.mask(solid).sum() * within.grid.voxel_cc * 1000


@settings(max_examples=20)
@given(center=PLACES, semi=st.tuples(LENGTHS, LENGTHS, LENGTHS), toward=PLACES)
def test_an_ellipsoid_has_its_volume_wherever_it_points(center, semi, toward) -> None:
    toward = toward if abs(toward[2]) > 1 else (0.0, 0.0, 1.0)
    solid = ellipsoid(center, semi, toward=toward)
    # 2 mm voxels on a surface of 8 mm semi-axes: 270 voxels, right to a few percent.
    assert volume_mm3(solid, space()) == pytest.approx(4 / 3 * pi * np.prod(semi), rel=0.06)


def test_rods_and_tubes_have_their_volumes() -> None:
    length, radius = 30.0, 9.0
    straight = rod([(0, 0, -length / 2), (0, 0, length / 2)], radius)
    capsule = pi * radius**2 * length + 4 / 3 * pi * radius**3
    assert volume_mm3(straight, space()) == pytest.approx(capsule, rel=0.06)
    column = tube([(-20.0, 0, 0, 10.0, 6.0), (20.0, 4.0, 0, 10.0, 6.0)])
    assert volume_mm3(column, space()) == pytest.approx(pi * 60.0 * 40.0, rel=0.03)


@settings(max_examples=20)
@given(center=PLACES, semi=LENGTHS, plane=PLACES)
def test_cut_and_rest_are_the_whole(center, semi, plane) -> None:
    here = space(3.0)
    ball, half = ellipsoid(center, (semi,) * 3), half_space((0.3, 0.5, 0.8), plane)
    inside, outside = here.mask(ball & half), here.mask(ball - half)
    whole = here.mask(ball)
    assert np.array_equal(inside | outside, whole)
    # Only voxels on the plane itself may be in both.
    assert np.all(np.abs(half.level(*here.xyz))[inside & outside] < 1e-3)
    assert np.array_equal(here.mask(ball | half), whole | here.mask(half))


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), amplitude=st.floats(0.5, 4.0))
def test_roughness_stays_within_its_amplitude(seed: int, amplitude: float) -> None:
    here = space(3.0)
    ball = ellipsoid((0, 0, 0), (20.0, 15.0, 18.0))
    rough = here.mask(ball.rough(draw_waves(np.random.default_rng(seed), 30.0), amplitude))
    smaller, larger = here.masks(ball, -amplitude, amplitude)
    assert not np.any(smaller & ~rough)
    assert not np.any(rough & ~larger)


@pytest.mark.parametrize("spacing_mm", [1.5, 3.0, 5.0])
def test_a_margin_of_a_mask_is_the_margin_of_its_solid(spacing_mm: float) -> None:
    here = space(spacing_mm)
    ball = ellipsoid((1.0, -2.0, 0.5), (20.0, 20.0, 20.0))
    grown_mm3 = here.grown(here.mask(ball), 8.0).sum() * here.grid.voxel_cc * 1000
    # Measured on random balls: off by less than 0.2 voxels on average, and by 0.1 from one to another.
    assert (grown_mm3 * 3 / 4 / pi) ** (1 / 3) == pytest.approx(28.0, abs=0.3 * spacing_mm)


def test_bending_and_turning_keep_boxes_valid() -> None:
    # A box too small would cut the solid: the mask in the box must be that of the whole grid.
    for bend_mm, turn_deg in ((6.0, 0.0), (0.0, 4.0), (6.0, 4.0)):
        here = space(2.0, bend_mm=bend_mm, turn_deg=turn_deg)
        solid = ellipsoid((12.0, -9.0, 14.0), (18.0, 10.0, 14.0), toward=(0.3, 0.2, 1))
        everywhere = solid.level(*here.xyz) <= 0
        assert np.array_equal(here.mask(solid), everywhere)
        assert everywhere.any()
