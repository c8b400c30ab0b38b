"""Leaf ends and sides against closed forms: sweeping gaps, asynchronous gaps, abutted and closed pairs.

Uniform fluence, ratios to the open field; K = 1 - 2 t + T for tongues of transmission t and leaves of T.
The source of Monte Carlo is asked for the photons of its openings, the pencil beam for its convolved fluence.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import erf

from vmat_diffusion.dose.delivery import Exposures
from vmat_diffusion.dose.monte_carlo.source import plan_openings
from vmat_diffusion.dose.pencil_beam.fluence import convolved_fluence, fluence_model
from vmat_diffusion.machine import Machine, load_machine

MACHINE = load_machine("generic_6mv")
T, OFFSET = MACHINE.mlc.transmission, MACHINE.mlc.gap_offset_mm
TONGUE, K = MACHINE.mlc.tongue_mm, 1 - 2 * MACHINE.mlc.tongue_transmission + MACHINE.mlc.transmission
HALF_MM, TRAVEL_MM, LEAF_MM = 50.0, 200.0, 5.0
STEPS = 400


def sweep(machine: Machine, gap_mm: float, shift_mm: NDArray, travel_mm: float = TRAVEL_MM) -> Exposures:
    """A gap that crosses a 10 x 10 cm field from outside to outside; rows are shifted along it."""
    rows = machine.mlc.pairs
    at = np.linspace(-travel_mm / 2, travel_mm / 2, STEPS + 1)
    centre = np.stack([at[:-1], at[1:]], axis=1)[:, :, None] + np.broadcast_to(shift_mm, (rows,))
    leaves = np.stack([centre - gap_mm / 2, centre + gap_mm / 2], axis=2)
    still = np.zeros(STEPS)
    jaws = np.broadcast_to([-HALF_MM, HALF_MM, -HALF_MM, HALF_MM], (STEPS, 2, 4))
    return Exposures(still, still, still, leaves, np.array(jaws), np.full(STEPS, 1.0 / STEPS))


def photons(exposed: Exposures, machine: Machine = MACHINE) -> float:
    """Photons through the openings of Monte Carlo, as a share of those of the open 10 x 10 cm field."""
    openings = plan_openings(exposed, machine)
    return float((openings.area_cm2 * openings.fluence).sum() / 100.0)


def on_axis(exposed: Exposures, machine: Machine = MACHINE, kernel: int = 0) -> float:
    """Convolved fluence in the field's middle, averaged over two leaves, as a share of the open field's."""
    model = fluence_model(machine, (-HALF_MM, HALF_MM, -HALF_MM, HALF_MM), 1.0)

    def middle(leaves: NDArray, mu: NDArray) -> float:
        jaws = torch.as_tensor(np.broadcast_to(exposed.jaws_mm[0], (len(mu), 2, 4)).copy())
        inside = torch.as_tensor(leaves[..., model.rows].copy())
        field = convolved_fluence(model, inside, jaws, torch.as_tensor(mu.copy())).sum(0)
        v, u = np.abs(model.v.position_mm) < LEAF_MM - 0.01, np.abs(model.u.position_mm) < 0.01
        assert v.sum() == 9 and u.sum() == 1
        column = field[v][:, u, kernel].numpy().ravel()
        return float((column[:-1] + column[1:]).mean() / 2)

    wide = np.broadcast_to(np.array([-200.0, 200.0])[:, None], (1, 2, 2, machine.mlc.pairs))
    return middle(exposed.leaves_mm, exposed.mu) / middle(wide, np.ones(1))


def alternating(shift_mm: float) -> NDArray:
    """Every second row shifted."""
    return np.where(np.arange(MACHINE.mlc.pairs) % 2 == 0, shift_mm / 2, -shift_mm / 2)


@pytest.mark.parametrize("gap_mm", [0.0, 2.0, 4.0, 10.0, 20.0, 30.0])
def test_a_sweeping_gap_delivers_its_share_of_the_time(gap_mm: float) -> None:
    """D / D0 = T + (1 - T)(g + offset) / L, and a closed pair leaks like a slit of the offset."""
    exposed = sweep(MACHINE, gap_mm, np.zeros(60))
    expected = T + (1 - T) * (gap_mm + OFFSET) / TRAVEL_MM
    assert photons(exposed) == pytest.approx(expected, rel=2e-3)
    assert on_axis(exposed) == pytest.approx(expected, rel=2e-3)


@pytest.mark.slow
def test_the_gap_offset_is_read_off_where_the_line_crosses_zero() -> None:
    """D - T (1 - g / L) is a line that crosses zero at g = -offset (1 - T), near enough to -offset."""
    gaps = np.array([2.0, 4, 6, 10, 14, 16, 20])
    for engine in (photons, on_axis):
        dose = np.array([engine(sweep(MACHINE, g, np.zeros(60))) for g in gaps])
        slope, rest = np.polyfit(gaps, dose - T * (1 - gaps / TRAVEL_MM), 1)
        assert rest / slope == pytest.approx(OFFSET * (1 - T), abs=0.03)


@pytest.mark.parametrize(("gap_mm", "shift_mm"), [(5, 2), (5, 5), (10, 5), (10, 10), (20, 5), (20, 20)])
def test_an_asynchronous_gap_loses_what_tongues_cover(gap_mm: float, shift_mm: float) -> None:
    """dD / D = -(tongue / leaf) K s / (g + offset) of the dose that comes through the gap."""
    together, apart = sweep(MACHINE, gap_mm, np.zeros(60)), sweep(MACHINE, gap_mm, alternating(shift_mm))
    through = (1 - T) * (gap_mm + OFFSET) / TRAVEL_MM
    expected = -(TONGUE / LEAF_MM) * K * shift_mm / (gap_mm + OFFSET) / (1 - T)
    for engine in (photons, on_axis):
        assert (engine(apart) - engine(together)) / through == pytest.approx(expected, abs=2e-3), engine


def test_beyond_the_gap_the_loss_stays_as_it_is() -> None:
    """Gaps that no longer meet shade each other no more."""
    at, beyond = (photons(sweep(MACHINE, 5.0, alternating(s))) for s in (5.0 + OFFSET, 12.0))
    assert beyond == pytest.approx(at, rel=2e-3)
    assert on_axis(sweep(MACHINE, 5.0, alternating(12.0))) == pytest.approx(
        on_axis(sweep(MACHINE, 5.0, alternating(5.0 + OFFSET))), rel=2e-3
    )


def test_abutted_rows_dip_on_their_boundary() -> None:
    """Even rows, then odd rows: the sum dips by K erf(tongue / (2 sqrt 2 sigma)), of area K times tongue."""
    machine = replace(MACHINE, mlc=replace(MACHINE.mlc, gap_offset_mm=0.0))
    model = fluence_model(machine, (-HALF_MM, HALF_MM, -HALF_MM, HALF_MM), 0.5)
    jaws = torch.tensor([[[-HALF_MM, HALF_MM, -HALF_MM, HALF_MM]] * 2] * 2, dtype=torch.float64)
    rows = model.rows.stop - model.rows.start
    leaves = torch.full((2, 2, 2, rows), 45.0, dtype=torch.float64)
    for field in (0, 1):
        leaves[field, :, 0, field::2], leaves[field, :, 1, field::2] = -45.0, 45.0
    whole = leaves.clone()
    whole[:, :, 0], whole[:, :, 1] = -45.0, 45.0
    mu = torch.ones(2, dtype=torch.float64)
    narrow = int(np.argmin(model.sigma_mm))
    split, plain = (
        convolved_fluence(model, which, jaws, mu).sum(0)[:, :, narrow].numpy() for which in (leaves, whole)
    )
    middle = int(np.argmin(np.abs(model.u.position_mm)))
    v = model.v.position_mm
    # Each point is open in one field and closed in the other: 1 + T; the open field has 1 twice.
    loss = plain[:, middle] / 2 * (1 + T) - split[:, middle]
    wide = float(model.sigma_mm[narrow]) * math.sqrt(2)
    # The tails of the boundaries beside it, 5 mm apart, add up.
    at = 5.0 * np.arange(-8, 9)
    expected = K / 2 * (erf((at + TONGUE / 2) / wide) - erf((at - TONGUE / 2) / wide)).sum()
    assert loss[np.argmin(np.abs(v))] == pytest.approx(expected, rel=1e-3)
    inside = (v >= -20) & (v <= 20)
    assert np.trapezoid(loss[inside], v[inside]) == pytest.approx(8 * K * TONGUE, rel=1e-2)


def test_beside_a_closed_neighbour_a_field_is_narrower_by_half_a_tongue() -> None:
    """Across the leaves, K tongue / 2 on each side; not where the jaws end it."""
    exposed = sweep(MACHINE, 400.0, np.zeros(60))
    shut = exposed.leaves_mm.copy()
    shut[..., :26], shut[..., 34:] = 300.0, 300.0  # eight leaves of 5 mm remain
    found = photons(replace(exposed, leaves_mm=shut))
    # The gap offset of closed pairs lies behind the jaws here.
    assert found == pytest.approx(((1 - T) * (40 - K / (1 - T) * TONGUE) + T * 100) / 100, rel=1e-9)
    sharp = replace(MACHINE, mlc=replace(MACHINE.mlc, tongue_mm=0.0))
    assert photons(exposed) == pytest.approx(photons(exposed, sharp), rel=1e-12)


def test_a_gap_far_off_axis_may_be_wider() -> None:
    """HD120's table: at 100 mm each leaf stands back by half of 0.86 + 0.22 mm; both engines agree."""
    beam = MACHINE.beam
    machine = replace(load_machine("generic_hd120"), beam=beam)
    machine = replace(machine, mlc=replace(machine.mlc, tongue_mm=0.0, transmission=0.0))
    assert machine.mlc.gap_offset_of(np.array([-100.0, 0.0, 125.0])) == pytest.approx([1.08, 0.86, 1.34])
    leaves = np.full((1, 2, 2, machine.mlc.pairs), 100.0)
    leaves[:, :, 0] = 80.0
    jaws, still = np.array([[[60.0, 120.0, -20.0, 20.0]] * 2]), np.zeros(1)
    openings = plan_openings(Exposures(still, still, still, leaves, jaws, np.ones(1)), machine)
    width_mm = float((openings.area_cm2 * openings.fluence).sum()) / 4.0 * 10
    assert width_mm == pytest.approx(20 + (0.86 + 0.148) / 2 + (0.86 + 0.22) / 2, abs=1e-9)

    def along(machine: Machine) -> float:
        model = fluence_model(machine, (60.0, 120.0, -20.0, 20.0), 1.0)
        rows = torch.as_tensor(leaves[..., model.rows].copy())
        field = convolved_fluence(model, rows, torch.as_tensor(jaws), torch.ones(1, dtype=torch.float64))
        middle = field[0, np.argmin(np.abs(model.v.position_mm)), :, np.argmin(model.sigma_mm)]
        return float(np.trapezoid(middle.numpy(), model.u.position_mm))

    nominal = replace(
        machine, mlc=replace(machine.mlc, gap_offset_mm=0.0, gap_growth_at_mm=(), gap_growth_mm=())
    )
    assert along(machine) / along(nominal) == pytest.approx(width_mm / 20, rel=1e-3)
