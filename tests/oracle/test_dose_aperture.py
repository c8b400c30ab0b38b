"""One 3 x 10 cm aperture off the axis, gantry 90, collimator 30: corners worked out by hand (IEC 61217)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from water import block, field, with_leaves

from vmat_diffusion.case import Case
from vmat_diffusion.dose import PencilBeam
from vmat_diffusion.geometry import Grid, Point
from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import Plan

# No transmission and no gap offset: the edges are the nominal ones.
GENERIC = load_machine("generic_6mv")
MACHINE = replace(GENERIC, mlc=replace(GENERIC.mlc, transmission=0.0, gap_offset_mm=0.0, tongue_mm=0.0))
ISOCENTER: Point = (12.0, -8.0, 20.0)

# The aperture in the device's axes at the isocentre plane: x 10 to 40 mm, y -20 to 80 mm.
X1, X2, Y1, Y2 = 10.0, 40.0, -20.0, 80.0

# Head-first supine, gantry 90: the source is at the patient's left (+x) and the beam runs to the right.
# With the collimator at 0 the device's x axis points down, to the patient's back (+y), its y axis to the
# head (+z). Collimator 30 turns both counter-clockwise as seen from the source, x towards y:
#   x_device = cos 30 (back) + sin 30 (head),  y_device = -sin 30 (back) + cos 30 (head),
# so the corner (x, y) lies at back = 0.8660254 x - 0.5 y and head = 0.5 x + 0.8660254 y from the isocentre.
CORNERS_BACK_HEAD = {
    (X1, Y1): (18.660254, -12.320508),
    (X1, Y2): (-31.339746, 74.282032),
    (X2, Y1): (44.641016, 2.679492),
    (X2, Y2): (-5.358984, 89.282032),
}
# The same for the plane 100 mm nearer the source is 0.9 times as large.


def aperture(*, banks_swapped: bool = False) -> Plan:
    """Leaves give x, jaws give y; pairs outside the field are closed at the far side."""
    edges = np.asarray(MACHINE.mlc.layers[0].boundaries_mm)
    leaves = np.zeros((2, MACHINE.mlc.pairs))
    used = (edges[1:] > Y1) & (edges[:-1] < Y2)
    leaves[:, used] = [[X1], [X2]] if not banks_swapped else [[-X2], [-X1]]
    plan = field(MACHINE, (-60.0, 60.0, Y1, Y2), gantry_deg=90.0, collimator_deg=30.0, isocenter_mm=ISOCENTER)
    return with_leaves(plan, leaves)


@pytest.fixture(scope="module")
def water() -> Case:
    """Water whose left face, towards the source, is 150 mm from the isocentre."""
    return block((-90.0, -158.0, -130.0), (162.0, 142.0, 170.0), 4.0)


def plane(case: Case, plan: Plan, towards_source_mm: float) -> tuple[NDArray, NDArray, NDArray]:
    """Dose in a plane across the beam, and how far back and towards the head of the isocentre it is."""
    x = ISOCENTER[0] + towards_source_mm
    where = Grid((281, 241, 1), (1.0, 0.5, 0.5), (x, ISOCENTER[1] - 60.0, ISOCENTER[2] - 40.0))
    dose = PencilBeam(MACHINE)(plan, case, where).gy[:, :, 0].astype(float)
    return dose, -60.0 + 0.5 * np.arange(241), -40.0 + 0.5 * np.arange(281)


def along(dose: NDArray, back: NDArray, head: NDArray, start: NDArray, end: NDArray, n: int = 801) -> NDArray:
    """Dose on the straight line from start to end (back, head), bilinear."""
    points = start + np.linspace(0, 1, n)[:, None] * (end - start)
    index = np.stack([(points[:, 1] - head[0]) / 0.5, (points[:, 0] - back[0]) / 0.5])
    return map_coordinates(dose, index, order=1, mode="nearest")


def half_value_mm(dose: NDArray, back: NDArray, head: NDArray, inside: NDArray, outside: NDArray) -> float:
    """Distance from `inside` at which dose falls to half of the dose at `inside`, towards `outside`."""
    profile = along(dose, back, head, inside, outside)
    k = int(np.argmax(profile < profile[0] / 2))
    assert k > 0, "the dose never falls to half"
    share = (profile[k - 1] - profile[0] / 2) / (profile[k - 1] - profile[k])
    return float((k - 1 + share) / 800 * np.linalg.norm(outside - inside))


@pytest.mark.parametrize(("towards_source_mm", "scale"), [(0.0, 1.0), (100.0, 0.9), (-60.0, 1.06)])
def test_the_edges_lie_where_the_hand_computed_corners_are(
    water: Case, towards_source_mm: float, scale: float
) -> None:
    """From the centre, half the dose lies on the middle of each side, within 1 mm at any depth."""
    corner = {k: scale * np.array(v) for k, v in CORNERS_BACK_HEAD.items()}
    dose, back, head = plane(water, aperture(), towards_source_mm)
    centre = sum(corner.values()) / 4
    for a, b in (((X1, Y1), (X1, Y2)), ((X2, Y1), (X2, Y2)), ((X1, Y1), (X2, Y1)), ((X1, Y2), (X2, Y2))):
        middle = (corner[a] + corner[b]) / 2
        # On the long axis the field is 100 mm: start 25 mm inside the short sides, in full dose.
        inside = centre if a[0] == b[0] else middle + (centre - middle) * 0.5
        outside = middle + (middle - inside) / np.linalg.norm(middle - inside) * 15.0
        expected = float(np.linalg.norm(middle - inside))
        assert half_value_mm(dose, back, head, inside, outside) == pytest.approx(expected, abs=1.0), (a, b)


def test_each_corner_is_lit_on_its_inner_side_only(water: Case) -> None:
    """6 mm inside and outside along the diagonal: four corners fix rotation, mirror images and order."""
    dose, back, head = plane(water, aperture(), 0.0)
    centre = np.mean(list(CORNERS_BACK_HEAD.values()), axis=0)
    full = along(dose, back, head, centre, centre, 2)[0]
    for place in CORNERS_BACK_HEAD.values():
        corner = np.array(place)
        inward = np.array([centre[0] - corner[0], centre[1] - corner[1]])
        inward /= np.linalg.norm(inward)
        lit, dark = along(dose, back, head, corner + 8 * inward, corner - 6 * inward, 2)
        assert lit > 0.45 * full and dark < 0.2 * full, place


def wrong_plans() -> dict[str, Plan]:
    plan = aperture()
    arc = plan.arcs[0]
    return {
        "banks swapped": aperture(banks_swapped=True),
        "collimator turned the other way": replace(plan, arcs=(replace(arc, collimator_deg=-30.0),)),
        "gantry from the other side": replace(plan, arcs=(replace(arc, gantry_deg=arc.gantry_deg + 180),)),
        "leaf pairs in reverse order, Y jaws swapped": with_leaves(
            plan, arc.leaves_mm[:, :, ::-1], arc.jaws_mm[0] * [1, 1, 0, 0] + [0, 0, -Y2, -Y1]
        ),
    }


@pytest.mark.parametrize("mistake", sorted(wrong_plans()))
def test_the_test_would_notice(water: Case, mistake: str) -> None:
    """Each of the usual mistakes takes the dose from at least one of the corners or puts it elsewhere."""
    right, back, head = plane(water, aperture(), 0.0)
    wrong, _, _ = plane(water, wrong_plans()[mistake], 0.0)
    moved = np.abs(wrong - right) > 0.5 * right.max()
    assert moved.sum() * 0.25 > 0.25 * 30 * 100  # mm2: a quarter of the aperture
    centre = np.mean(list(CORNERS_BACK_HEAD.values()), axis=0)
    lit = [
        along(wrong, back, head, np.array(c) + 8 * (centre - c) / np.linalg.norm(centre - c), centre, 2)[0]
        for c in CORNERS_BACK_HEAD.values()
    ]
    assert min(lit) < 0.2 * right.max()


def test_a_couch_turn_moves_the_field_over_the_patient(water: Case) -> None:
    """Gantry 0, couch 90: the head lies to the observer's left, so device x points to the feet (-z).

    A field from x = 10 to 40 mm and y = -20 to 80 mm then covers z from -40 to -10 and x from -20 to 80.
    """
    plan = field(MACHINE, (X1, X2, Y1, Y2), couch_deg=90.0)
    case = block((-60.0, -100.0, -100.0), (140.0, 100.0, 100.0), 4.0)
    where = Grid((161, 1, 281), (0.5, 1.0, 0.5), (-40.0, 0.0, -60.0))
    dose = PencilBeam(MACHINE)(plan, case, where).gy[:, 0].astype(float)
    x, z = -40.0 + 0.5 * np.arange(281), -60.0 + 0.5 * np.arange(161)
    full = dose[np.argmin(np.abs(z + 25)), np.argmin(np.abs(x - 30))]
    covered = dose > full / 2
    assert [x[covered.any(axis=0)][k] for k in (0, -1)] == pytest.approx([-20, 80], abs=1.0)
    assert [z[covered.any(axis=1)][k] for k in (0, -1)] == pytest.approx([-40, -10], abs=1.0)
