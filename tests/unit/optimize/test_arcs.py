"""Arc frames: angles, directions and jaws."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from vmat_diffusion.errors import PlanError
from vmat_diffusion.geometry import beam_axes, project
from vmat_diffusion.machine import load_machine
from vmat_diffusion.optimize.arcs import arc_frames, isocenter_of, partial_span, target_points
from vmat_diffusion.phantom import phantom


@pytest.fixture(scope="module")
def case():
    return phantom("tg119_cshape")


def frames_of(case, arcs=2, collimators=None, start=182.0, stop=178.0, avoid=(), couches=None):
    return arc_frames(
        case, ("PTV",), isocenter_of(case, ("PTV",)), load_machine("generic_6mv"),
        arcs=arcs, start_deg=start, stop_deg=stop, spacing_deg=2.0, collimators_deg=collimators,
        avoid_deg=avoid, couches_deg=couches,
    )  # fmt: skip


def test_two_arcs_turn_both_ways_over_the_same_angles(case):
    first, second = frames_of(case)
    assert np.allclose(np.diff(first.gantry_deg), 2.0) and np.allclose(np.diff(second.gantry_deg), -2.0)
    assert first.gantry_deg[0] % 360 == 182 and first.gantry_deg[-1] % 360 == 178
    np.testing.assert_allclose(first.gantry_deg, second.gantry_deg[::-1])


def test_a_beam_has_no_more_control_points_than_the_machine_takes(case):
    full = load_machine("generic_6mv")
    few = replace(full, limits=replace(full.limits, control_points_max=91))
    frames = arc_frames(
        case, ("PTV",), isocenter_of(case, ("PTV",)), few,
        arcs=2, start_deg=182.0, stop_deg=178.0, spacing_deg=2.0, collimators_deg=None,
    )  # fmt: skip
    assert [len(frame.gantry_deg) for frame in frames] == [91, 91]
    assert frames[0].gantry_deg[0] == 182 and frames[0].gantry_deg[-1] % 360 == 178


def test_collimators_are_crossed_where_the_fields_fit_and_mirrored_elsewhere(case):
    """The C-shape is 80 mm long and 74 mm wide."""
    assert [frame.collimator_deg for frame in frames_of(case)] == [5, 95]
    assert [frame.collimator_deg for frame in frames_of(case, arcs=4)] == [5, 95, 27.5, 117.5]
    (single,) = frames_of(case, arcs=1)
    assert single.collimator_deg == 30
    full = load_machine("generic_6mv")
    narrow = replace(full, limits=replace(full.limits, leaf_span_mm=96.0))
    one, two = arc_frames(
        case, ("PTV",), isocenter_of(case, ("PTV",)), narrow,
        arcs=2, start_deg=182.0, stop_deg=178.0, spacing_deg=2.0, collimators_deg=None,
    )  # fmt: skip
    assert one.collimator_deg < 30 and one.collimator_deg + two.collimator_deg == 360


def test_jaws_enclose_the_target_as_seen_with_the_couch_turned(case):
    machine, isocenter = load_machine("generic_6mv"), isocenter_of(case, ("PTV",))
    straight, turned = frames_of(case, couches=(0.0, 60.0), collimators=(0.0, 0.0))
    assert (straight.couch_deg, turned.couch_deg) == (0.0, 60.0) and straight.jaws_mm != turned.jaws_mm
    for angle in turned.gantry_deg[::9]:
        axes = beam_axes(angle, 0.0, 60.0, "HFS")
        u, v, _ = project(target_points(case, ("PTV",)), axes, isocenter, machine.sad_mm).T
        x1, x2, y1, y2 = turned.jaws_mm
        assert x1 < u.min() and u.max() < x2 and y1 < v.min() and v.max() < y2
    with pytest.raises(PlanError, match="1 couch angles for 2 arcs"):
        frames_of(case, couches=(10.0,))
    with pytest.raises(PlanError, match="a couch at 120 deg"):
        frames_of(case, couches=(0.0, 120.0))


@pytest.mark.parametrize(("side", "span"), [(1, (330.0, 178.0)), (-1, (182.0, 30.0))])
def test_partial_arcs_go_round_the_side_of_the_target(case, side, span):
    x = case.grid.points_mm(np.arange(case.hu.size))[:, 0].reshape(case.grid.shape)
    ptv = case.structures["PTV"]
    lateral = replace(ptv, mask=ptv.mask & (side * x > 15.0))
    aside = replace(case, structures={**case.structures, "PTV": lateral})
    assert partial_span(aside, ("PTV",)) == span
    feet_first = replace(aside, patient_position="FFS")
    other = partial_span(feet_first, ("PTV",))
    assert other == {(330.0, 178.0): (182.0, 30.0), (182.0, 30.0): (330.0, 178.0)}[span]


def test_targets_in_the_middle_have_no_side(case):
    with pytest.raises(PlanError, match="no side"):
        partial_span(case, ("PTV",))


def test_a_partial_arc_covers_what_was_asked(case):
    (arc,) = frames_of(case, arcs=1, start=300.0, stop=60.0)
    assert arc.gantry_deg[0] == 300 and arc.gantry_deg[-1] == 420 and len(arc.gantry_deg) == 61


def test_jaws_enclose_the_target_from_every_angle(case):
    machine, isocenter = load_machine("generic_6mv"), isocenter_of(case, ("PTV",))
    points = target_points(case, ("PTV",))
    for frame in frames_of(case):
        x1, x2, y1, y2 = frame.jaws_mm
        for gantry in frame.gantry_deg[::7]:
            uv = project(points, beam_axes(gantry, frame.collimator_deg), isocenter, machine.sad_mm)
            assert uv[:, 0].min() > x1 + 4 and uv[:, 0].max() < x2 - 4
            assert uv[:, 1].min() > y1 + 4 and uv[:, 1].max() < y2 - 4


def test_a_field_wider_than_the_span_is_shared_by_the_arcs(case):
    """The leaves of one bank reach 150 mm at most, so each arc takes a side; together they cover all."""
    full = load_machine("generic_6mv")
    machine = replace(full, limits=replace(full.limits, leaf_span_mm=100.0))
    wide = arc_frames(
        case, ("PTV",), isocenter_of(case, ("PTV",)), machine,
        arcs=2, start_deg=182.0, stop_deg=178.0, spacing_deg=2.0, collimators_deg=(30.0, 330.0),
    )  # fmt: skip
    for frame in wide:
        assert frame.jaws_mm[1] - frame.jaws_mm[0] <= machine.limits.leaf_span_mm
    assert wide[0].jaws_mm[0] < wide[1].jaws_mm[0] <= wide[0].jaws_mm[1] < wide[1].jaws_mm[1]


@pytest.mark.parametrize(("arcs", "collimators"), [(0, None), (7, None), (2, (10.0,))])
def test_impossible_requests_are_refused(case, arcs, collimators):
    with pytest.raises(PlanError):
        frames_of(case, arcs=arcs, collimators=collimators)


@pytest.mark.parametrize(("start", "stop"), [(90.0, 270.0), (170.0, 190.0), (180.0, 60.0)])
def test_an_arc_through_the_gantry_stop_is_refused(case, start, stop):
    with pytest.raises(PlanError, match="180 deg"):
        frames_of(case, start=start, stop=stop)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"jaws": ("ASYMY",)}, "X and Y jaws"),
        ({"mlc": "no interdigitation"}, "interdigitate"),
        ({"limits": {"jaw_position_mm": 20.0}}, "largest field"),
        ({"limits": {"leaf_span_mm": 60.0}}, "isocentres"),
    ],
)
def test_a_machine_that_cannot_take_the_plan_is_refused_before_any_work(case, change, words):
    full = load_machine("generic_6mv")
    if "limits" in change:
        change = {"limits": replace(full.limits, **change["limits"])}
    if change.get("mlc"):
        change = {"mlc": replace(full.mlc, interdigitation=False)}
    with pytest.raises(PlanError, match=words):
        arc_frames(
            case, ("PTV",), isocenter_of(case, ("PTV",)), replace(full, **change),
            arcs=2, start_deg=182.0, stop_deg=178.0, spacing_deg=2.0, collimators_deg=(30.0, 330.0),
        )  # fmt: skip


def test_no_beam_comes_from_a_sector_to_avoid_and_all_others_stay(case):
    whole, parts = frames_of(case), frames_of(case, avoid=((350.0, 10.0), (80.0, 100.0)))
    assert len(parts) == 6
    angles = np.concatenate([p.gantry_deg for p in parts]) % 360
    assert not np.any((angles >= 350) | (angles <= 10)) and not np.any((angles >= 80) & (angles <= 100))
    kept = np.concatenate([f.gantry_deg for f in whole]) % 360
    avoided = (kept >= 350) | (kept <= 10) | ((kept >= 80) & (kept <= 100))
    np.testing.assert_allclose(np.sort(angles), np.sort(kept[~avoided]))
    # The gantry goes on from part to part, forth in the first arc and back in the second.
    ends = [(p.gantry_deg[0], p.gantry_deg[-1]) for p in parts]
    assert all(a[1] < b[0] for a, b in pairwise(ends[:3]))
    assert all(a[1] > b[0] for a, b in pairwise(ends[3:]))


def test_sectors_that_leave_too_little_are_refused(case):
    with pytest.raises(PlanError, match=r"190 to 170 deg, leave an arc of less than 20 deg"):
        frames_of(case, avoid=((190.0, 170.0),))
