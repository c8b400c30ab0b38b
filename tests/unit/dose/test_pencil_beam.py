"""The pencil beam in water: calibration, inverse square, divergence, MU, leaves, jaws, heterogeneity."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from water import block, dose_along, edges_mm, field, line, tank, with_leaves

from vmat_diffusion.case import Case
from vmat_diffusion.dose import PencilBeam, dose_grid
from vmat_diffusion.errors import CaseError, PlanError
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import load_machine

MACHINE = load_machine("generic_6mv")
TEN = (-50.0, 50.0, -50.0, 50.0)


@pytest.fixture(scope="module")
def water() -> Case:
    """A tank with its surface through the isocentre: SSD 1000 mm."""
    return tank(depth_mm=240.0, half_mm=100.0)


def at_depth(case: Case, plan: object, depth_mm: float) -> float:
    return float(dose_along(MACHINE, plan, case, line((0.0, depth_mm, 0.0), 0, 1))[0])


# --- level


def test_one_centigray_per_monitor_unit_at_the_reference_point(water: Case) -> None:
    """10 x 10 cm2, SSD 1000 mm, depth 15 mm: 100 MU give 1 Gy; the rest is interpolation of the tables."""
    assert at_depth(water, field(MACHINE, TEN), 15.0) == pytest.approx(1.0, rel=0.005)


def test_dose_is_proportional_to_mu_and_fractions(water: Case) -> None:
    one = at_depth(water, field(MACHINE, TEN), 50.0)
    assert at_depth(water, field(MACHINE, TEN, mu=37.0), 50.0) == pytest.approx(0.37 * one, rel=1e-6)
    assert at_depth(water, field(MACHINE, TEN, fractions=25), 50.0) == pytest.approx(25 * one, rel=1e-6)


def test_beams_add_up(water: Case) -> None:
    where = Grid((5, 9, 9), (20.0, 20.0, 20.0), (-80.0, 20.0, -40.0))
    engine = PencilBeam(MACHINE)
    box = (-30.0, 50.0, -20.0, 40.0)
    plans = [
        field(MACHINE, box, gantry_deg=g, collimator_deg=c, couch_deg=t, mu=m)
        for g, c, t, m in ((0, 0, 0, 80), (40, 30, 0, 120), (40, 300, 0, 50), (320, 10, 20, 90))
    ]
    both = replace(plans[0], arcs=tuple(p.arcs[0] for p in plans))
    apart = sum(engine(p, water, where).gy.astype(float) for p in plans)
    assert np.allclose(engine(both, water, where).gy, apart, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("side", [40.0, 100.0])
def test_inverse_square_at_one_depth(side: float) -> None:
    """The tank 100 mm nearer and a field as wide there: only the distance squared changes.

    Of a point source: focal spot, head scatter and off-axis ratio do not scale with the field.
    """
    ideal = load_machine("point_source")
    for depth in (20.0, 100.0):
        doses = []
        for surface, half in ((0.0, side / 2), (-100.0, side / 2 * (1000 + depth) / (900 + depth))):
            water = tank(surface_mm=surface, depth_mm=240.0, half_mm=100.0)
            point = line((0.0, surface + depth, 0.0), 0, 1)
            doses.append(dose_along(ideal, field(ideal, (-half, half, -half, half)), water, point)[0])
        assert doses[1] / doses[0] == pytest.approx(((1000 + depth) / (900 + depth)) ** 2, rel=2e-3)


def test_the_field_diverges_from_the_source(water: Case) -> None:
    """Half the axis dose lies at 50 mm x (SSD + depth) / SAD; scatter and horns move it by 0.5 mm."""
    x = np.arange(-90.0, 91.0)
    for depth in (15.0, 100.0, 200.0):
        profile = dose_along(MACHINE, field(MACHINE, TEN), water, line((-90.0, depth, 0.0), 0, 181))
        low, high = edges_mm(x, profile, profile[90] / 2)
        assert high == pytest.approx(50 * (1000 + depth) / 1000, abs=0.6)
        assert low == pytest.approx(-high, abs=0.02)


def test_a_turned_beam_gives_the_same_depth_dose() -> None:
    """A cube around the isocentre looks the same from all four sides."""
    cube = block((-100.0, -100.0, -100.0), (100.0, 100.0, 100.0))
    starts = {0: (0.0, -99.0, 0.0), 90: (99.0, 0.0, 0.0), 180: (0.0, 99.0, 0.0), 270: (-99.0, 0.0, 0.0)}
    doses = []
    for gantry, start in starts.items():
        axis = 0 if gantry in (90, 270) else 1
        low = tuple(min(v, -v) if i == axis else v for i, v in enumerate(start))
        along = dose_along(MACHINE, field(MACHINE, TEN, gantry_deg=gantry), cube, line(low, axis, 199))
        doses.append(along if start[axis] < 0 else along[::-1])
    assert np.allclose(doses[1:], doses[0], rtol=2e-3)


# --- leaves and jaws


def test_closed_leaves_leak_the_transmission(water: Case) -> None:
    open_field = field(MACHINE, TEN)
    shut = with_leaves(open_field, np.full((2, 60), 150.0))  # closed behind the X2 jaw
    x = line((-40.0, 100.0, 0.0), 0, 9, 10.0)
    ratio = dose_along(MACHINE, shut, water, x) / dose_along(MACHINE, open_field, water, x)
    assert np.allclose(ratio, MACHINE.mlc.transmission, rtol=1e-4)


def test_nothing_passes_the_jaws() -> None:
    """Without transmission, closed leaves give no dose at all."""
    opaque = replace(MACHINE, mlc=replace(MACHINE.mlc, transmission=0.0))
    shut = with_leaves(field(opaque, TEN), np.full((2, 60), 150.0))
    assert (
        dose_along(opaque, shut, tank(depth_mm=80.0, half_mm=100.0), line((0.0, 40.0, 0.0), 0, 1))[0] < 1e-7
    )


def test_leaf_ends_open_by_the_gap_offset(water: Case) -> None:
    """Nominally 60 mm between leaves are 60 mm + 1.4 mm at the isocentre plane's distance."""
    leaves = np.tile([[-30.0], [30.0]], (1, 60))
    plan = with_leaves(field(MACHINE, (-100.0, 100.0, -50.0, 50.0)), leaves)
    sharp = replace(MACHINE, mlc=replace(MACHINE.mlc, gap_offset_mm=0.0, tongue_mm=0.0))
    x, depth = np.arange(-60.0, 60.5, 0.5), 50.0
    widths = []
    for machine in (MACHINE, sharp):
        profile = dose_along(machine, plan, water, line((-60.0, depth, 0.0), 0, 241, 0.5))
        low, high = edges_mm(x, profile, profile[120] / 2)
        widths.append((high - low) / 1.05)
    assert widths[0] - widths[1] == pytest.approx(MACHINE.mlc.gap_offset_mm, abs=0.05)


def test_leaf_pairs_lie_at_their_boundaries(water: Case) -> None:
    """Only pair 33 (10 to 15 mm, counting from 1) open: dose peaks at 12.5 mm towards the head."""
    leaves = np.zeros((2, 60))
    leaves[0, 32], leaves[1, 32] = -40.0, 40.0
    assert MACHINE.mlc.layers[0].boundaries_mm[32:34] == (10.0, 15.0)
    plan = with_leaves(field(MACHINE, TEN), leaves)
    z = np.arange(-30.0, 45.25, 0.25)
    profile = dose_along(MACHINE, plan, water, line((0.0, 15.0, -30.0), 2, 301, 0.25))
    low, high = edges_mm(z, profile, profile.max() / 2)
    assert (low + high) / 2 == pytest.approx(12.5 * 1.015, abs=0.1)


def test_both_layers_of_a_stacked_collimator_must_be_open(water: Case) -> None:
    """Layers open on opposite halves leave only their overlap, from -10 to 10 mm."""
    layer = MACHINE.mlc.layers[0]
    two = replace(
        MACHINE,
        mlc=replace(MACHINE.mlc, layers=(layer, layer), transmission=0.0, gap_offset_mm=0.0, tongue_mm=0.0),
    )
    leaves = np.empty((2, 120))
    leaves[:, :60], leaves[:, 60:] = [[-40.0], [10.0]], [[-10.0], [40.0]]
    plan = with_leaves(field(two, (-60.0, 60.0, -50.0, 50.0)), leaves)
    one = replace(two, mlc=replace(two.mlc, layers=(layer,)))
    alone = with_leaves(field(one, (-60.0, 60.0, -50.0, 50.0)), np.tile([[-10.0], [10.0]], (1, 60)))
    where = line((-40.0, 50.0, 0.0), 0, 81)
    assert np.allclose(dose_along(two, plan, water, where), dose_along(one, alone, water, where), rtol=1e-5)


def test_a_sliding_window_gives_the_dose_of_its_many_parts(water: Case) -> None:
    """A window moving 80 mm in one segment against 160 static windows along the way."""
    low, high = np.linspace(-60.0, 20.0, 161), np.linspace(-40.0, 40.0, 161)
    ends = np.stack([np.tile([[low[k]], [high[k]]], (1, 60)) for k in (0, -1)])
    box = (-70.0, 70.0, -50.0, 50.0)
    moving = with_leaves(field(MACHINE, box), ends)
    steps = []
    for k in range(160):
        middle = np.array([[(low[k] + low[k + 1]) / 2], [(high[k] + high[k + 1]) / 2]])
        steps.append(with_leaves(field(MACHINE, box, mu=100 / 160), np.tile(middle, (1, 60))).arcs[0])
    where = line((-90.0, 50.0, 0.0), 0, 181)
    brute = dose_along(MACHINE, replace(moving, arcs=tuple(steps)), water, where)
    assert np.allclose(dose_along(MACHINE, moving, water, where), brute, atol=1e-3 * brute.max())


def test_moving_y_jaws_give_a_wedge_not_a_step(water: Case) -> None:
    """A jaw crossing the field in one segment, as for an enhanced dynamic wedge."""
    plan = field(MACHINE, TEN)
    jaws = np.array([[-50.0, 50.0, -50.0, 50.0], [-50.0, 50.0, 40.0, 50.0]])
    wedge = with_leaves(plan, plan.arcs[0].leaves_mm, jaws)
    y1 = np.linspace(-50.0, 40.0, 91)
    parts = [
        with_leaves(
            field(MACHINE, TEN, mu=100 / 90), plan.arcs[0].leaves_mm, np.array([-50, 50, y, 50.0])
        ).arcs[0]
        for y in (y1[1:] + y1[:-1]) / 2
    ]
    where = line((0.0, 50.0, -70.0), 2, 141)
    brute = dose_along(MACHINE, replace(plan, arcs=tuple(parts)), water, where)
    assert np.allclose(dose_along(MACHINE, wedge, water, where), brute, atol=0.01 * brute.max())


def test_gantry_motion_within_a_segment_is_followed() -> None:
    """One segment of 60 degrees equals thirty of 2 degrees."""
    cube = block((-100.0, -100.0, -100.0), (100.0, 100.0, 100.0))
    plan = field(MACHINE, (-30.0, 30.0, -30.0, 30.0))
    arc = plan.arcs[0]
    coarse = replace(plan, arcs=(replace(arc, gantry_deg=np.array([20.0, 80.0])),))
    fine = replace(
        arc,
        gantry_deg=np.linspace(20.0, 80.0, 31),
        leaves_mm=np.repeat(arc.leaves_mm[:1], 31, axis=0),
        jaws_mm=np.repeat(arc.jaws_mm[:1], 31, axis=0),
        mu=np.full(30, 100 / 30),
    )
    where = Grid((3, 9, 9), (20.0, 20.0, 20.0), (-80.0, -80.0, -20.0))
    engine = PencilBeam(MACHINE)
    a, b = engine(coarse, cube, where).gy, engine(replace(plan, arcs=(fine,)), cube, where).gy
    assert np.allclose(a, b, atol=2e-3 * b.max())


# --- grids and tissue


def test_tissue_outside_the_dose_grid_attenuates(water: Case) -> None:
    """A small grid at 150 mm depth holds the dose that the whole tank's grid holds there."""
    plan = field(MACHINE, TEN)
    small = Grid((3, 3, 3), (4.0, 4.0, 4.0), (-4.0, 146.0, -4.0))
    whole = PencilBeam(MACHINE)(plan, water, dose_grid(water, 4.0))
    part = PencilBeam(MACHINE)(plan, water, small)
    assert np.allclose(part.gy, whole.on(small), rtol=2e-3)
    assert part.gy.max() < 0.6 * whole.gy.max()


def test_no_dose_outside_the_body_and_none_from_what_lies_there(water: Case) -> None:
    """A slab of bone outside the body contour neither absorbs nor shows dose."""
    case = tank(surface_mm=-40.0, depth_mm=240.0, half_mm=60.0)
    hu, mask = case.hu.copy(), case.body.mask.copy()
    mask[:, :10] = False  # the uppermost 40 mm are couch, not patient
    hu[:, :10] = 1000.0
    clothed = replace(case, hu=hu, structures={"BODY": replace(case.body, mask=mask)})
    plain = tank(surface_mm=0.0, depth_mm=200.0, half_mm=60.0)
    where = line((0.0, -30.0, 0.0), 1, 12, 10.0)
    found = dose_along(MACHINE, field(MACHINE, TEN), clothed, where)
    expected = dose_along(MACHINE, field(MACHINE, TEN), plain, where)
    assert np.all(found[:3] == 0)
    assert np.allclose(found[4:], expected[4:], rtol=3e-3)


def test_behind_a_slab_of_lung_depth_counts_by_mass_and_scatter_is_less(water: Case) -> None:
    """60 mm of density 0.31 count as 18.4 mm of water; the inverse square stays geometric.

    Less scatter arrives than from as much water in one piece: 2.3 % less dose, and the less so the deeper.
    """
    hu = water.hu.copy()
    hu[:, 10:25] = -700.0  # 40 to 100 mm
    lung, plan, lost = replace(water, hu=hu), field(MACHINE, TEN), 60 * (1 - 0.307)
    missing = []
    for depth in (120.0, 140.0, 180.0, 220.0):
        alike = at_depth(water, plan, depth - lost) * ((1000 + depth - lost) / (1000 + depth)) ** 2
        missing.append(1 - at_depth(lung, plan, depth) / alike)
    assert 0.015 < missing[0] < 0.035
    assert np.all(np.diff(missing) < 0) and missing[-1] > 0


def test_grid_of_doses_covers_the_body_with_a_margin() -> None:
    case = block((-40.0, -40.0, -40.0), (40.0, 40.0, 40.0))
    mask = np.zeros(case.grid.shape, bool)
    mask[5:15, 6:14, 7:13] = True
    inner = replace(case, structures={"BODY": replace(case.body, mask=mask)})
    low, high = dose_grid(inner, 3.0).bounds_mm
    assert np.all(np.array(low) <= [-12 - 3, -16 - 3, -20 - 3]) and np.all(np.array(low) > [-19, -23, -27])
    assert np.all(np.array(high) >= [12 + 3, 16 + 3, 20 + 3]) and np.all(np.array(high) < [19, 23, 27])


def test_input_that_has_no_dose_is_refused(water: Case) -> None:
    engine = PencilBeam(MACHINE)
    plan = field(MACHINE, TEN)
    with pytest.raises(PlanError, match="no beam with monitor units"):
        engine(field(MACHINE, TEN, mu=0.0), water)
    with pytest.raises(PlanError, match="leaf pairs"):
        engine(with_80_pairs(plan), water)
    with pytest.raises(CaseError, match="1 to 10 mm"):
        dose_grid(water, 0.2)
    empty = replace(water, structures={"BODY": replace(water.body, mask=np.zeros(water.grid.shape, bool))})
    with pytest.raises(CaseError, match="empty"):
        engine(plan, empty)


def with_80_pairs(plan: object) -> object:
    arc = plan.arcs[0]  # type: ignore[attr-defined]
    return replace(plan, arcs=(replace(arc, leaves_mm=np.zeros((2, 2, 80))),))  # type: ignore[type-var]


def test_progress_runs_from_0_towards_1(water: Case) -> None:
    seen: list[float] = []
    arcs = tuple(field(MACHINE, TEN, gantry_deg=g).arcs[0] for g in range(0, 360, 10))
    plan = replace(field(MACHINE, TEN), arcs=arcs)
    where = line((0.0, 50.0, 0.0), 0, 1)
    PencilBeam(MACHINE)(plan, water, where, progress=lambda stage, share, note: seen.append(share))
    assert seen == sorted(seen) and seen[0] == 0 and seen[-1] < 1 and len(seen) == 5
