"""The penalty on modulation: zero for even fields at rest, exact gradients, what it pushes."""

import numpy as np
import pytest
import torch

from vmat_diffusion.optimize.objective_terms import ModulationPenalties, modulation_penalty

GAP = 0.5


def apertures(x1, x2, points=4):
    leaves = torch.empty(points, 2, len(x1), dtype=torch.float64)
    leaves[:, 0], leaves[:, 1] = torch.tensor(x1), torch.tensor(x2)
    first = torch.arange(points - 1)
    return leaves, torch.ones(points - 1, dtype=torch.float64), first, first + 1


def penalty(x1, x2, **weights):
    at = ModulationPenalties(**{"narrow": 0.0, "edges": 0.0, "travel": 0.0, **weights})
    return float(modulation_penalty(*apertures(x1, x2), at, least_gap_mm=GAP))


def test_a_wide_even_field_that_stands_still_costs_nothing():
    assert penalty([-30.0] * 6, [30.0] * 6, narrow=1.0, edges=1.0, travel=1.0) == pytest.approx(0, abs=1e-12)


def test_narrow_gaps_cost_and_closed_pairs_do_not():
    closed = penalty([0.0] * 4, [GAP] * 4, narrow=1.0)
    narrow = penalty([0.0] * 4, [4.0] * 4, narrow=1.0)
    wide = penalty([0.0] * 4, [12.0] * 4, narrow=1.0)
    assert closed == wide == 0
    assert narrow > 0.5


def test_ragged_neighbours_cost_by_their_step_and_closed_ones_do_not():
    small = penalty([-20.0, -25.0] * 3, [20.0] * 6, edges=1.0)
    large = penalty([-20.0, -30.0] * 3, [20.0] * 6, edges=1.0)
    parked = penalty([-20.0, 50.0] * 3, [20.0, 50.0 + GAP] * 3, edges=1.0)
    assert 0 < small < large
    assert parked == 0


def test_travel_costs_where_mu_are_given():
    leaves, mu, first, last = apertures([-20.0] * 5, [20.0] * 5)
    leaves[1:] += 8.0
    at = ModulationPenalties(0.0, 0.0, 1.0)
    moved = float(modulation_penalty(leaves, mu, first, last, at, least_gap_mm=GAP))
    mu[0] = 0.0
    assert moved > 0
    assert float(modulation_penalty(leaves, mu, first, last, at, least_gap_mm=GAP)) == pytest.approx(
        0, abs=1e-12
    )


def test_more_mu_alone_cost_nothing():
    leaves, mu, first, last = apertures([-20.0, -28.0, 0.0], [20.0, 25.0, 5.0])
    one, twice = (
        float(modulation_penalty(leaves, f * mu, first, last, ModulationPenalties(), least_gap_mm=GAP))
        for f in (1.0, 2.0)
    )
    assert one == pytest.approx(twice)


def test_the_gradient_is_that_of_the_function():
    rng = np.random.default_rng(0)
    middle, half = rng.uniform(-20, 20, (5, 8)), rng.uniform(1, 15, (5, 8))
    leaves = torch.tensor(np.stack([middle - half, middle + half], 1), requires_grad=True)
    mu, first = torch.tensor(rng.uniform(0.5, 2, 4)), torch.arange(4)
    at = ModulationPenalties(
        1.0, 0.0, 1.0
    )  # edges weigh neighbours by how far they are open, a weight that is held
    modulation_penalty(leaves, mu, first, first + 1, at, least_gap_mm=GAP).backward()
    direction = torch.tensor(rng.normal(size=leaves.shape))
    with torch.no_grad():
        ends = [
            float(
                modulation_penalty(leaves + s * 1e-6 * direction, mu, first, first + 1, at, least_gap_mm=GAP)
            )
            for s in (1, -1)
        ]
    assert float((leaves.grad * direction).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)
