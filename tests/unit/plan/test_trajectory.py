"""Expected positions: exact at control points, linear between, sampled like a trajectory log."""

from __future__ import annotations

import numpy as np

from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import SAMPLE_S, Arc, timing, trajectory

MACHINE = load_machine("generic_6mv")


def moving_arc(gantry_deg: np.ndarray) -> Arc:
    rng = np.random.default_rng(3)
    n = len(gantry_deg)
    leaves = np.stack([rng.uniform(-30, -20, (n, 60)), rng.uniform(20, 30, (n, 60))], axis=1)
    jaws = np.array([-40, 40, -50, 50]) + rng.uniform(-1, 1, (n, 4))
    return Arc(gantry_deg, 10.0, 0.0, leaves, jaws, rng.uniform(0.5, 12.0, n - 1))


def test_every_control_point_is_there_exactly() -> None:
    arc = moving_arc(np.arange(179.0, 141.0, -2.0))
    pace = timing(arc, MACHINE.limits)
    track = trajectory(arc, pace)
    whole = np.flatnonzero(track.control_point == np.round(track.control_point))
    assert np.array_equal(track.control_point[whole], np.arange(len(arc.gantry_deg)))
    assert np.array_equal(track.time_s[whole], np.concatenate([[0.0], np.cumsum(pace.time_s)]))
    assert np.array_equal(track.gantry_deg[whole], arc.gantry_deg)
    assert np.array_equal(track.leaves_mm[whole], arc.leaves_mm)
    assert np.array_equal(track.jaws_mm[whole], arc.jaws_mm)
    assert np.array_equal(track.mu[whole], np.concatenate([[0.0], np.cumsum(arc.mu)]))


def test_it_is_sampled_every_20_ms_and_no_limit_is_broken_on_the_way() -> None:
    arc = moving_arc(np.arange(0.0, 40.0, 2.0))
    track = trajectory(arc, timing(arc, MACHINE.limits))
    ticks = np.arange(0.0, track.time_s[-1], SAMPLE_S)
    assert SAMPLE_S == 0.02 and np.isin(ticks, track.time_s).all()
    assert len(track.time_s) <= len(ticks) + len(arc.gantry_deg)
    step = np.diff(track.time_s)
    assert np.all(step > 0) and step.max() <= SAMPLE_S * (1 + 1e-9)
    assert np.all(np.abs(np.diff(track.gantry_deg)) <= MACHINE.limits.gantry_speed_deg_s * step + 1e-9)
    assert np.all(np.diff(track.mu) <= MACHINE.limits.dose_rate_mu_min / 60 * step + 1e-9)


def test_halfway_in_time_everything_is_halfway() -> None:
    arc = moving_arc(np.array([10.0, 12.0]))
    pace = timing(arc, MACHINE.limits)
    track = trajectory(arc, pace, sample_s=pace.total_s / 2)
    assert track.control_point.tolist() == [0.0, 0.5, 1.0]
    assert track.gantry_deg[1] == 11.0 and np.isclose(track.mu[1], arc.total_mu / 2)
    assert np.allclose(track.leaves_mm[1], arc.leaves_mm.mean(axis=0))


def test_a_static_beam_without_motion_stays_where_it_is() -> None:
    arc = moving_arc(np.full(3, 40.0))
    still = Arc(
        arc.gantry_deg, 0.0, 0.0, arc.leaves_mm[[0, 0, 0]], arc.jaws_mm[[0, 0, 0]], np.array([0.0, 5.0])
    )
    track = trajectory(still, timing(still, MACHINE.limits))
    assert np.array_equal(track.leaves_mm, np.broadcast_to(arc.leaves_mm[0], track.leaves_mm.shape))
    assert track.mu[0] == 0.0 and track.mu[-1] == 5.0 and np.isclose(track.time_s[-1], 0.5)
