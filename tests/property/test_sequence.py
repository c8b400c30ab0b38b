"""Sequences and projections: what must hold for any fluence and any leaf position."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vmat_diffusion.optimize.sequence import lipschitz, lower_envelope, project_leaves, sweep, upper_envelope

POSITIONS = hnp.arrays(
    np.float64, st.tuples(st.integers(2, 12), st.just(2), st.integers(1, 5)), elements=st.floats(-150, 150)
)


@given(POSITIONS, st.floats(0.1, 30))
def test_a_projected_leaf_never_moves_further_than_it_may(positions, reach):
    moved = lipschitz(positions, np.full(len(positions) - 1, reach))
    assert np.abs(np.diff(moved, axis=0)).max() <= reach + 1e-9


@given(POSITIONS)
def test_a_trajectory_within_the_limit_stays_where_it_is(positions):
    enough = np.abs(np.diff(positions, axis=0)).max() + 1e-6
    np.testing.assert_allclose(
        lipschitz(positions, np.full(len(positions) - 1, enough)), positions, atol=1e-9
    )


@given(POSITIONS, st.floats(0.5, 30))
def test_deliverable_leaves_keep_travel_gap_and_range_together(positions, reach):
    gap, low, high = 0.6, -70.0, 60.0
    leaves = project_leaves(positions, np.full(len(positions) - 1, reach), gap, low, high)
    assert np.abs(np.diff(leaves, axis=0)).max() <= reach + 1e-9
    assert (leaves[:, 1] - leaves[:, 0]).min() >= gap - 1e-9
    assert leaves.min() >= low - 1e-9 and leaves.max() <= high + 1e-9


@given(POSITIONS, st.floats(0.5, 30), st.integers(0, 2**32 - 1))
def test_deliverable_leaves_stay_in_a_range_that_moves_no_faster(positions, reach, seed):
    """As between jaws that follow the leaves."""
    gap, n = 0.6, len(positions)
    steps = np.full(n - 1, reach)
    wild = np.random.default_rng(seed).uniform(-80, 80, (2, n, 1))
    low, high = (
        lower_envelope(np.minimum(wild[0], -5.0), steps),
        upper_envelope(np.maximum(wild[1], 5.0), steps),
    )
    leaves = project_leaves(positions, steps, gap, low, high)
    assert np.abs(np.diff(leaves, axis=0)).max() <= reach + 1e-9
    assert (leaves[:, 1] - leaves[:, 0]).min() >= gap - 1e-9
    assert (leaves - low[:, None]).min() >= -1e-9 and (high[:, None] - leaves).min() >= -1e-9


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(3, 10)), elements=st.floats(0, 10)),
    st.booleans(),
)
def test_a_sweep_delivers_the_fluence_it_was_given(fluence, rightward):
    """Time open at each column's middle times the sector's MU is the column's fluence."""
    support = fluence > 0.02 * max(fluence.max(), 1e-12)
    fluence = np.where(_contiguous(support), np.maximum(fluence, 0.5), 0.0)
    if not fluence.any():
        return
    edges = 5.0 * np.arange(fluence.shape[1] + 1) - 20.0
    times = np.linspace(0, 1, 20001)
    leaves, mu = sweep(fluence, edges, times, rightward=rightward, travel_mm=200.0, mu_most=1e6)
    middle = (edges[1:] + edges[:-1]) / 2
    for row in range(len(fluence)):
        if not fluence[row].any():
            assert np.isnan(leaves[:, :, row]).all()
            continue
        left, right = leaves[:, 0, row, None], leaves[:, 1, row, None]
        seen = ((left < middle) & (middle < right)).mean(axis=0) * mu
        # 20 000 samples of time resolve the dwell to mu/20 000 at either end.
        np.testing.assert_allclose(seen, fluence[row], atol=3 * mu / 20000)


@given(hnp.arrays(np.float64, (3, 12), elements=st.floats(0, 50)), st.floats(20, 60))
def test_a_sweep_never_needs_more_mu_than_the_linac_can_give(fluence, most):
    edges = 5.0 * np.arange(13)
    _, mu = sweep(fluence, edges, np.linspace(0, 1, 10), rightward=True, travel_mm=150.0, mu_most=most)
    assert mu <= most * (1 + 1e-9)


def _contiguous(support):
    """Each row's support without holes: leaves cannot skip a column that they cross."""
    out = np.zeros_like(support)
    for row, lit in enumerate(support):
        at = np.flatnonzero(lit)
        if len(at):
            out[row, at[0] : at[-1] + 1] = True
    return out
