"""Pairs closed or wide: deliverable before, deliverable after, nothing narrow in between."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vmat_diffusion.evaluate.complexity import OPEN_GAP_MM
from vmat_diffusion.machine import load_machine
from vmat_diffusion.optimize.arcs import ArcFrame
from vmat_diffusion.optimize.deliverable_set import Apertures, DeliverableSet, DeliveryRates, control_points
from vmat_diffusion.optimize.open_gaps import closed_or_wide

MACHINE = load_machine("generic_6mv")
ROWS = 6


def deliverable(seed: int, step_deg: float, leaf_mm_per_deg: float) -> tuple[DeliverableSet, Apertures]:
    frame = ArcFrame(step_deg * np.arange(25), 10.0, (-60.0, 60.0, -15.0, 15.0))
    allowed = DeliverableSet(control_points((frame,), 1), MACHINE, DeliveryRates(2.0, 600.0, leaf_mm_per_deg))
    rng = np.random.default_rng(seed)
    middle = np.cumsum(rng.normal(0, 3, (25, ROWS)), axis=0)
    half = np.abs(np.cumsum(rng.normal(0, 2.5, (25, ROWS)), axis=0))
    leaves = np.stack([middle - half, middle + half], axis=1)
    return allowed, allowed.project(Apertures(leaves, rng.uniform(0.5, 4.0, 24)))


@settings(deadline=None)
@given(st.integers(0, 10_000), st.floats(2.0, 14.0), st.sampled_from([2.0, 4.0]))
def test_pairs_are_closed_or_wide_and_the_leaves_keep_up(seed: int, wide_mm: float, step_deg: float) -> None:
    allowed, before = deliverable(seed, step_deg, 3.75)
    after = allowed.closed_or_wide(before, wide_mm)
    moved = np.abs(np.diff(after.leaves_mm, axis=0)).max(axis=(1, 2))
    assert (moved <= allowed.travel_mm(after.mu) + 1e-9).all()
    gap = np.diff(after.leaves_mm, axis=1)[:, 0]
    assert gap.min() >= MACHINE.limits.leaf_gap_mm
    assert after.leaves_mm.min() >= -60 - 1e-9 and after.leaves_mm.max() <= 60 + 1e-9
    # Rows that run into the jaws may stay as they were; all others have nothing narrow.
    changed = (after.leaves_mm != before.leaves_mm).any(axis=(0, 1))
    narrow = ((gap > OPEN_GAP_MM) & (gap < wide_mm)).any(axis=0)
    near = (np.abs(before.leaves_mm) > 60 - wide_mm - 7.5 * step_deg).any(axis=(0, 1))
    assert not (narrow & ~near).any()
    assert not (narrow & changed).any()
    # It is a projection: what it made stays, and the search's own projection leaves it alone.
    again = allowed.closed_or_wide(after, wide_mm)
    np.testing.assert_allclose(again.leaves_mm[:, :, ~narrow], after.leaves_mm[:, :, ~narrow], atol=1e-9)
    np.testing.assert_allclose(allowed.project(after).leaves_mm, after.leaves_mm, atol=1e-9)


def test_pairs_that_are_wide_already_stay() -> None:
    allowed, _ = deliverable(0, 2.0, 3.75)
    leaves = np.tile([[-10.0], [10.0]], (25, 1, ROWS))
    same = allowed.closed_or_wide(Apertures(leaves, np.full(24, 2.0)), 15.0)
    np.testing.assert_array_equal(same.leaves_mm, leaves)


def test_a_pair_that_has_no_time_to_close_stays_open() -> None:
    """Gaps 20, 2, 20 mm: with 1 mm of travel a segment the pair cannot close between, so it opens."""
    half = np.array([10.0, 10.0, 10.0, 9.0, 10.0])[:, None]
    leaves = np.stack([-half, half], axis=1)
    out = closed_or_wide(
        leaves,
        np.full(4, 1.0),
        closed_mm=0.55,
        wide_mm=19.0,
        low_mm=np.full((5, 1), -60.0),
        high_mm=np.full((5, 1), 60.0),
    )
    gap = np.diff(out, axis=1)[:, 0, 0]
    np.testing.assert_allclose(gap, [20.0, 20.0, 20.0, 19.0, 20.0])


def test_machines_whose_closed_pairs_stand_open_are_left_alone() -> None:
    agility = load_machine("generic_agility")
    assert agility.limits.leaf_gap_mm > OPEN_GAP_MM
    allowed, before = deliverable(1, 2.0, 3.75)
    other = DeliverableSet(allowed.points, agility, allowed.rates)
    assert other.closed_or_wide(before, 10.0) is before
