"""Doses of a plan and its variants at points: equal to those of the engine, plan by plan."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_case import open_arc, small_case
from water import field, tank

from vmat_diffusion.case import Case
from vmat_diffusion.dose.delivery import exposures, jaw_box
from vmat_diffusion.dose.pencil_beam import PencilBeam
from vmat_diffusion.dose.pencil_beam.fluence import convolved_fluence, fluence_model
from vmat_diffusion.dose.pencil_beam.sampled import sampled_doses
from vmat_diffusion.dose.pencil_beam.several_plans import doses_of_plans
from vmat_diffusion.dose.tissue import density_of
from vmat_diffusion.errors import PlanError
from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import Plan
from vmat_diffusion.qa.plan_errors import (
    with_collimator,
    with_gantry,
    with_gap,
    with_isocenter,
    with_leaf_shift,
    with_mu,
)

MACHINE = load_machine("generic_6mv")


def two_beams() -> Plan:
    """An arc whose leaves drift, and the same way back with another collimator angle."""
    arc = open_arc().arcs[0]
    drift = 0.4 * np.arange(len(arc.gantry_deg))[:, None, None]
    there = replace(arc, leaves_mm=arc.leaves_mm + drift)
    back = replace(
        there, gantry_deg=arc.gantry_deg[::-1], collimator_deg=340.0, leaves_mm=there.leaves_mm[::-1]
    )
    return replace(open_arc(), arcs=(there, replace(back, number=2)))


def at_voxels(case: Case, plans: list[Plan], step_mm: float = 1.5) -> np.ndarray:
    """The doses at the voxels of the body, as the engine has them, shape (plans, voxels)."""
    points = case.grid.points_mm(np.flatnonzero(case.body.mask))
    return doses_of_plans(MACHINE, plans, density_of(case, case.grid), points, step_mm=step_mm)


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan,
        lambda plan: with_gap(plan, 1.0),
        lambda plan: with_leaf_shift(plan, -2.0),
        lambda plan: with_collimator(plan, 3.0),
        lambda plan: with_gantry(plan, 0.5),
        lambda plan: with_mu(plan, 7.0),
    ],
)
def test_each_plan_has_the_dose_that_the_engine_gives_it(change) -> None:  # type: ignore[no-untyped-def]
    case, plan = small_case(), two_beams()
    both = at_voxels(case, [plan, change(plan)])
    for gy, one in zip(both, (plan, change(plan)), strict=True):
        expected = PencilBeam(MACHINE)(one, case, case.grid).gy[case.body.mask]
        # Sums of float32 in another order, and the narrower box of jaws of a plan by itself.
        np.testing.assert_allclose(gy, expected, atol=1e-4 * expected.max())


@pytest.mark.parametrize("by_mm", [(1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 1.0, -1.0)])
def test_depths_of_the_first_isocentre_serve_one_a_millimetre_off(by_mm: tuple[float, float, float]) -> None:
    """Within 0.2 % of the maximum for each mm, where the shift itself changes several percent."""
    case, plan = small_case(), two_beams()
    moved = with_isocenter(plan, by_mm)
    usual, shifted = at_voxels(case, [plan, moved])
    expected = PencilBeam(MACHINE)(moved, case, case.grid).gy[case.body.mask]
    top = expected.max()
    assert np.abs(shifted - usual).max() > 0.03 * top
    np.testing.assert_allclose(shifted, expected, atol=2e-3 * np.linalg.norm(by_mm) * top)
    assert np.sqrt(np.mean((shifted - expected) ** 2)) < 3e-4 * top


def test_in_a_wide_tank_a_moved_isocentre_moves_the_dose() -> None:
    """Water that is the same everywhere: the dose at a point is that of the point moved back."""
    case, plan = tank(), field(MACHINE, (-30, 30, -20, 20))
    points = np.array([[0.0, 100.0, 0.0], [28.0, 100.0, 5.0], [10.0, 60.0, -19.0], [40.0, 200.0, 0.0]])
    by = np.array([1.0, 0.0, -1.0])
    density = density_of(case, case.grid)
    moved = with_isocenter(plan, (1.0, 0.0, -1.0))
    _, there = doses_of_plans(MACHINE, [plan, moved], density, points + by)
    (here,) = doses_of_plans(MACHINE, [plan], density, points)
    np.testing.assert_allclose(there, here, rtol=2e-3)


def test_isocentres_too_far_apart_are_refused() -> None:
    case, plan = small_case(), open_arc()
    with pytest.raises(PlanError, match="4 mm"):
        at_voxels(case, [plan, with_isocenter(plan, (4.0, 0.0, 0.0))])
    with pytest.raises(PlanError, match="patient position"):
        at_voxels(case, [plan, replace(plan, patient_position="FFS")])


def test_a_small_gap_error_is_what_the_gradient_in_the_leaves_says() -> None:
    """The second exact way: the fluence is differentiable in every leaf."""
    case, plan, e = small_case(), two_beams(), 0.02
    density = density_of(case, case.grid)
    points = case.grid.points_mm(np.flatnonzero(case.structures["PTV"].mask))
    wider, narrower = doses_of_plans(
        MACHINE, [with_gap(plan, e), with_gap(plan, -e)], density, points
    ).astype(float)
    exposed = exposures(plan, MACHINE)
    model = fluence_model(MACHINE, jaw_box(exposed), 1.5)
    (sampled,) = sampled_doses(MACHINE, density, points, exposed, [model], isocenter_mm=plan.isocenter_mm)
    leaves = torch.tensor(exposed.leaves_mm[..., model.rows], dtype=torch.float32, requires_grad=True)
    jaws, mu = (torch.tensor(a, dtype=torch.float32) for a in (exposed.jaws_mm, exposed.mu))
    mean = sampled.dose(convolved_fluence(model, leaves, jaws, mu)).mean()
    (slope,) = torch.autograd.grad(mean, leaves)
    gained = float((slope[:, :, 1] - slope[:, :, 0]).sum()) / 2.0
    assert MACHINE.beam is not None
    expected = gained * plan.fractions * MACHINE.beam.gy_per_mu
    assert expected > 0
    assert (wider - narrower).mean() / (2 * e) == pytest.approx(expected, rel=0.01)
