"""What must hold of the times of any arc: no limit is broken, and none is missed by more than needed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import Arc, Plan, timing, violations

MACHINE = load_machine("generic_6mv")
LIMITS = MACHINE.limits

STEPS = st.lists(st.floats(0.5, 6.0), min_size=2, max_size=30)


def arc_of(steps: list[float], seed: int, direction: int) -> Arc:
    """MU between 0.1 and 20 per degree over the given steps; a still 2 x 2 cm field."""
    rotation = np.array(steps)
    n = len(rotation) + 1
    leaves = np.zeros((n, 2, 60))
    leaves[:, 0, 28:32], leaves[:, 1, 28:32] = -10.0, 10.0
    mu = rotation * np.exp(np.random.default_rng(seed).uniform(np.log(0.11), np.log(19.0), n - 1))
    gantry = direction * np.concatenate([[0.0], np.cumsum(rotation)])
    return Arc(gantry, 0.0, 0.0, leaves, np.tile([-15.0, 15.0, -15.0, 15.0], (n, 1)), mu)


@given(STEPS, st.integers(0, 10_000), st.sampled_from([1, -1]))
def test_no_limit_is_broken(steps: list[float], seed: int, direction: int) -> None:
    arc = arc_of(steps, seed, direction)
    pace = timing(arc, LIMITS)
    speed = pace.gantry_speed_deg_s
    assert np.all(speed <= LIMITS.gantry_speed_deg_s * (1 + 1e-9))
    assert np.all(pace.dose_rate_mu_min <= LIMITS.dose_rate_mu_min * (1 + 1e-9))
    assert np.allclose(speed * pace.time_s, steps)
    room = LIMITS.gantry_acceleration_deg_s2 * (np.array(steps)[1:] + np.array(steps)[:-1])
    assert np.all(np.abs(np.diff(speed**2)) <= room * (1 + 1e-9))
    assert violations(Plan((arc,), (0.0, 0.0, 0.0), 1, MACHINE.name), MACHINE) == []


@given(STEPS, st.integers(0, 10_000))
def test_no_segment_could_be_faster(steps: list[float], seed: int) -> None:
    """Each segment is at full gantry speed, at full dose rate, or as fast as its neighbours allow."""
    arc = arc_of(steps, seed, 1)
    pace = timing(arc, LIMITS)
    squared = pace.gantry_speed_deg_s**2
    bound = np.isclose(pace.gantry_speed_deg_s, LIMITS.gantry_speed_deg_s)
    bound |= np.isclose(pace.dose_rate_mu_min, LIMITS.dose_rate_mu_min)
    room = LIMITS.gantry_acceleration_deg_s2 * (np.array(steps)[1:] + np.array(steps)[:-1])
    at_room = np.isclose(np.abs(np.diff(squared)), room)
    rising, falling = at_room & (np.diff(squared) > 0), at_room & (np.diff(squared) < 0)
    bound[1:] |= rising
    bound[:-1] |= falling
    for end in (0, -1):
        bound[end] |= np.isclose(squared[end], LIMITS.gantry_acceleration_deg_s2 * steps[end] / 2)
    assert np.all(bound)


@given(STEPS, st.integers(0, 10_000), st.sampled_from(["levels", "steps", "neither"]))
def test_all_optional_limits_together_are_kept(steps: list[float], seed: int, kind: str) -> None:
    """Random leaves and jaws: no change of speed exceeds a limit, and no segment is faster than without."""
    rng = np.random.default_rng(seed)
    arc = arc_of(steps, seed, 1)
    leaves, jaws = arc.leaves_mm.copy(), arc.jaws_mm.copy()
    leaves[:, :, 28:32] += rng.uniform(-1, 1, (len(leaves), 1, 4))
    jaws += rng.uniform(-0.5, 0.5, jaws.shape)
    arc = replace(arc, leaves_mm=leaves, jaws_mm=jaws)
    limits = replace(
        LIMITS,
        leaf_acceleration_mm_s2=20.0,
        jaw_acceleration_mm_s2=5.0,
        dose_rate_change_mu_min_s=60.0,
        dose_rate_levels_mu_min=(75.0, 150.0, 300.0, 600.0) if kind == "levels" else None,
        gantry_speed_step_deg_s=0.25 if kind == "steps" else None,
    )
    machine = replace(MACHINE, limits=limits)
    pace = timing(arc, limits)
    assert violations(Plan((arc,), (0.0, 0.0, 0.0), 1, MACHINE.name), machine) == []
    assert np.all(pace.time_s >= timing(arc, LIMITS).time_s * (1 - 1e-9))
    between = (pace.time_s[1:] + pace.time_s[:-1]) / 2
    velocity = np.diff(leaves, axis=0) / pace.time_s[:, None, None]
    assert np.all(np.abs(np.diff(velocity, axis=0)).max(axis=(1, 2)) <= 20.0 * between * (1 + 1e-6))
    assert np.all(np.abs(np.diff(pace.dose_rate_mu_min)) <= 60.0 * between * (1 + 1e-6))
    squared = pace.gantry_speed_deg_s**2
    room = LIMITS.gantry_acceleration_deg_s2 * (np.array(steps)[1:] + np.array(steps)[:-1])
    assert np.all(np.abs(np.diff(squared)) <= room * (1 + 1e-6))


@given(STEPS, st.integers(0, 10_000), st.floats(1.0, 5.0))
def test_more_mu_never_take_less_time_and_direction_does_not_matter(
    steps: list[float], seed: int, factor: float
) -> None:
    arc = arc_of(steps, seed, 1)
    time = timing(arc, LIMITS).time_s
    assert np.all(timing(replace(arc, mu=arc.mu * factor), LIMITS).time_s >= time - 1e-12)
    assert np.allclose(timing(replace(arc, gantry_deg=-arc.gantry_deg), LIMITS).time_s, time)
    backwards = replace(arc, gantry_deg=arc.gantry_deg[::-1], mu=arc.mu[::-1])
    assert np.allclose(timing(backwards, LIMITS).time_s[::-1], time)
