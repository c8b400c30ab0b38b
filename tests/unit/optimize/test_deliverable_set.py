"""What the search holds to be deliverable, against the check of plans."""

import numpy as np
import pytest

from vmat_diffusion.machine import load_machine
from vmat_diffusion.optimize.arcs import ArcFrame
from vmat_diffusion.optimize.deliverable_set import (
    Apertures,
    DeliverableSet,
    DeliveryRates,
    control_points,
)

MACHINE = load_machine("generic_6mv")
RATE_MU_MIN = 300.0
STEP_DEG, ROWS = 2.0, 4


@pytest.fixture()
def allowed() -> DeliverableSet:
    frame = ArcFrame(np.arange(0.0, 42.0, STEP_DEG), 10.0, (-60.0, 60.0, -10.0, 10.0))
    return DeliverableSet(control_points((frame,), 1), MACHINE, DeliveryRates(2.0, RATE_MU_MIN))


def test_leaves_travel_while_the_gantry_turns_or_the_mu_are_given(allowed: DeliverableSet) -> None:
    speed, turning_s = MACHINE.limits.leaf_speed_mm_s, STEP_DEG / MACHINE.limits.gantry_speed_deg_s
    few, many = 0.5, 3.0
    travel = allowed.travel_mm(np.array([few, many]).repeat(10))
    assert many / RATE_MU_MIN * 60 > turning_s > few / RATE_MU_MIN * 60
    np.testing.assert_allclose(travel[:10], 0.99 * speed * turning_s)
    np.testing.assert_allclose(travel[10:], 0.99 * speed * many / RATE_MU_MIN * 60)


def test_a_projected_state_keeps_the_travel_that_its_mu_allow(allowed: DeliverableSet) -> None:
    rng = np.random.default_rng(0)
    leaves = np.sort(rng.uniform(-60, 60, (21, 2, ROWS)), axis=1)
    state = allowed.project(Apertures(leaves, rng.uniform(0, 5, 20)))
    moved = np.abs(np.diff(state.leaves_mm, axis=0)).max(axis=(1, 2))
    assert np.all(moved <= allowed.travel_mm(state.mu) + 1e-9)
    assert moved.max() > 0.9 * allowed.travel_mm(state.mu).max()


def test_the_least_mu_still_give_the_leaves_their_time(allowed: DeliverableSet) -> None:
    rng = np.random.default_rng(1)
    leaves = np.sort(rng.uniform(-60, 60, (21, 2, ROWS)), axis=1)
    state = allowed.project(Apertures(leaves, rng.uniform(1, 5, 20)))
    least = allowed.least_mu(state)
    assert np.all(least <= state.mu) and np.any(least < 0.9 * state.mu)
    moved = np.abs(np.diff(state.leaves_mm, axis=0)).max(axis=(1, 2))
    assert np.all(moved <= allowed.travel_mm(least) + 1e-9)
