"""Jaws that follow the leaves: around every opening, within their speed, range and least distance."""

from dataclasses import replace

import numpy as np
import pytest

from vmat_diffusion.errors import PlanError
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.optimize.arcs import ArcFrame
from vmat_diffusion.optimize.deliverable_set import Apertures, ControlPoints, control_points
from vmat_diffusion.optimize.jaws import jaws_track, with_tracking_jaws

MACHINE = load_machine("generic_6mv")
BOX = (-90.0, 90.0, -80.0, 80.0)
ROWS_MM = np.arange(-80.0, 80.1, 10.0)
POINTS, ROWS = 41, len(ROWS_MM) - 1
SPEED = MACHINE.limits.jaw_speed_mm_s / MACHINE.limits.gantry_speed_deg_s


@pytest.fixture()
def points() -> ControlPoints:
    return control_points((ArcFrame(np.arange(POINTS) * 2.0, 10.0, BOX),), 1)


def closed() -> np.ndarray:
    leaves = np.zeros((POINTS, 2, ROWS))
    leaves[:, 0], leaves[:, 1] = -0.275, 0.275
    return leaves


def jaws_around(
    points: ControlPoints, leaves: np.ndarray, room_mm: float, machine: Machine = MACHINE
) -> np.ndarray:
    return with_tracking_jaws(
        points, Apertures(leaves, np.ones(POINTS - 1)), machine, ROWS_MM, room_mm
    ).jaws_mm


def test_jaws_stand_around_an_aperture_that_rests(points: ControlPoints) -> None:
    leaves = closed()
    leaves[:, 0, 4:9], leaves[:, 1, 4:9] = -30.0, 25.0
    np.testing.assert_allclose(jaws_around(points, leaves, 2.0), [[-32.0, 27.0, -42.0, 12.0]] * POINTS)


def test_every_opening_is_inside_and_no_jaw_is_too_fast(points: ControlPoints) -> None:
    rng = np.random.default_rng(3)
    leaves = closed()
    middle, width = rng.uniform(-50, 50, (POINTS, ROWS)), rng.uniform(0, 60, (POINTS, ROWS))
    wide = rng.uniform(size=(POINTS, ROWS)) < 0.3
    leaves[:, 0][wide], leaves[:, 1][wide] = (middle - width / 2)[wide], (middle + width / 2)[wide]
    x1, x2, y1, y2 = jaws_around(points, leaves, 2.0).T
    wide = leaves[:, 1] - leaves[:, 0] > 1.0
    for k in range(POINTS):
        near = wide[max(k - 1, 0) : k + 2].any(axis=0)
        assert x1[k] <= max(leaves[k, 0, near].min() - 2.0, BOX[0]) + 1e-9
        assert x2[k] >= min(leaves[k, 1, near].max() + 2.0, BOX[1]) - 1e-9
        assert y1[k] <= max(ROWS_MM[:-1][near].min() - 2.0, BOX[2]) + 1e-9
        assert y2[k] >= min(ROWS_MM[1:][near].max() + 2.0, BOX[3]) - 1e-9
    for side, outermost in zip((x1, x2, y1, y2), BOX, strict=True):
        assert np.abs(np.diff(side)).max() <= 2.0 * SPEED
        assert np.abs(side).max() <= abs(outermost)


def test_a_small_opening_beside_the_axis_keeps_the_least_field_and_the_range(points: ControlPoints) -> None:
    leaves = closed()
    leaves[:, 0, 0], leaves[:, 1, 0] = 60.0, 66.0
    x1, x2, y1, y2 = jaws_around(points, leaves, 2.0).T
    # X jaws pass the axis by 20 mm at most.
    np.testing.assert_allclose(x1, MACHINE.limits.jaw_overtravel_x_mm)
    np.testing.assert_allclose(x2, 78.0)
    # The opening's 14 mm become 30, to the one side where the frame leaves room.
    np.testing.assert_allclose(y1, BOX[2])
    np.testing.assert_allclose(y2, BOX[2] + 30.0)


def test_pairs_beyond_the_frame_of_their_arc_do_not_count(points: ControlPoints) -> None:
    leaves = closed()
    leaves[:, 0, 4:9], leaves[:, 1, 4:9] = -30.0, 25.0
    leaves[:, 0, 15], leaves[:, 1, 15] = -70.0, 70.0
    low = control_points((ArcFrame(np.arange(POINTS) * 2.0, 10.0, (-90.0, 90.0, -80.0, 60.0)),), 1)
    np.testing.assert_allclose(jaws_around(low, leaves, 2.0), [[-32.0, 27.0, -42.0, 12.0]] * POINTS)


def test_jaws_of_closed_leaves_go_from_one_opening_to_the_next(points: ControlPoints) -> None:
    leaves = closed()
    leaves[:10, 0, 6:9], leaves[:10, 1, 6:9] = -60.0, -10.0
    leaves[30:, 0, 6:9], leaves[30:, 1, 6:9] = 10.0, 60.0
    x1, x2, _, _ = jaws_around(points, leaves, 0.0).T
    assert x1[0] == -60.0 and x2[-1] == 60.0 and -60.0 < x1[20] <= -10.0
    whole = jaws_around(points, closed(), 0.0)
    assert np.all(whole[:, 1] - whole[:, 0] >= 30.0)


def test_jaws_are_fixed_unless_the_machine_can_track() -> None:
    older = replace(MACHINE, limits=replace(MACHINE.limits, jaw_tracking=False))
    assert jaws_track(MACHINE, None) and not jaws_track(older, None) and not jaws_track(MACHINE, False)
    with pytest.raises(PlanError, match="no jaw tracking"):
        jaws_track(older, True)
