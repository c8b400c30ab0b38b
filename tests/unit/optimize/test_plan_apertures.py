"""A plan that exists as the start of a search: nothing is lost that the frames can hold."""

from dataclasses import replace

import numpy as np
import pytest

from vmat_diffusion.errors import PlanError
from vmat_diffusion.machine import load_machine
from vmat_diffusion.optimize.plan_apertures import apertures_of, frames_of
from vmat_diffusion.plan import Arc, Plan

MACHINE = load_machine("generic_6mv")
PAIRS = np.arange(MACHINE.mlc.pairs)


def arc(gantry, **changes):
    n, pairs = len(gantry), MACHINE.mlc.pairs
    rng = np.random.default_rng(0)
    middle = np.linspace(-20, 20, n)[:, None] + rng.uniform(-5, 5, (1, pairs))
    leaves = np.stack([middle - 15, middle + 15], axis=1)
    jaws = np.tile([-50.0, 50.0, -60.0, 60.0], (n, 1))
    jaws[n // 2 :, 0] = -70.0
    return replace(Arc(gantry, 30.0, 0.0, leaves, jaws, rng.uniform(1, 3, n - 1), "A", 1), **changes)


def plan(*arcs):
    return Plan(arcs, (0.0, 0.0, 0.0), 30, MACHINE.name)


def test_a_plan_of_the_wanted_spacing_is_kept_point_by_point():
    existing = plan(arc(np.arange(182.0, 530.0, 2.0)), arc(np.arange(178.0, -170.0, -2.0)))
    frames = frames_of(existing, MACHINE, 2.0)
    state = apertures_of(existing, frames, PAIRS)
    for one, frame in zip(existing.arcs, frames, strict=True):
        np.testing.assert_array_equal(frame.gantry_deg, one.gantry_deg)
        assert frame.jaws_mm == (-70.0, 50.0, -60.0, 60.0)
    np.testing.assert_allclose(state.leaves_mm, np.concatenate([a.leaves_mm for a in existing.arcs]))
    np.testing.assert_allclose(state.mu, np.concatenate([a.mu for a in existing.arcs]))


@pytest.mark.parametrize("gantry", [np.linspace(181, 539, 60), np.array([181.0, 183, 190, 196, 197, 230])])
def test_sparse_or_uneven_control_points_are_filled_in_on_the_same_motion(gantry):
    existing = plan(arc(gantry))
    frames = frames_of(existing, MACHINE, 2.0)
    assert np.diff(frames[0].gantry_deg) == pytest.approx(2.0, abs=0.06)
    state = apertures_of(existing, frames, PAIRS)
    assert state.mu.sum() == pytest.approx(existing.total_mu)
    for pair in (0, 17):
        wanted = np.interp(frames[0].gantry_deg, gantry, existing.arcs[0].leaves_mm[:, 1, pair])
        np.testing.assert_allclose(state.leaves_mm[:, 1, pair], wanted)


def test_a_turned_couch_is_kept():
    frames = frames_of(plan(arc(np.arange(182.0, 300.0, 2.0), couch_deg=20.0)), MACHINE, 2.0)
    assert [frame.couch_deg for frame in frames] == [20.0]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (arc(np.full(3, 90.0)), "rotates over 0 deg"),
        (arc(np.array([10.0, 40.0, 30.0, 80.0])), "one way all the time"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name(wrong, words):
    with pytest.raises(PlanError, match=rf"beam 1 \(A\).*{words}"):
        frames_of(plan(wrong), MACHINE, 2.0)


def test_a_beam_with_more_control_points_than_the_machine_takes_is_described_by_fewer():
    few = replace(MACHINE, limits=replace(MACHINE.limits, control_points_max=60))
    existing = plan(arc(np.arange(182.0, 530.0, 2.0)))
    (frame,) = frames_of(existing, few, 2.0)
    assert len(frame.gantry_deg) == 60 and frame.gantry_deg[[0, -1]].tolist() == [182.0, 528.0]
    assert apertures_of(existing, (frame,), PAIRS).mu.sum() == pytest.approx(existing.total_mu)
