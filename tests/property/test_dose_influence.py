"""The sampled influence matrix: the same dose as the engine, and a transpose that is its adjoint."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic_plans import conformal_arc

from vmat_diffusion.case import Case
from vmat_diffusion.dose import PencilBeam, dose_grid
from vmat_diffusion.dose.delivery import Exposures, exposures, jaw_box
from vmat_diffusion.dose.pencil_beam.fluence import (
    FluenceModel,
    convolved_fluence,
    fluence_model,
    split_models,
)
from vmat_diffusion.dose.pencil_beam.rays import same_beam_direction
from vmat_diffusion.dose.pencil_beam.sampled import ApertureDose, SampledDose, sampled_doses
from vmat_diffusion.dose.tissue import density_of
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import load_machine
from vmat_diffusion.phantom import phantom
from vmat_diffusion.plan import Plan

MACHINE = load_machine("generic_6mv")
STEP_MM = 2.0


@pytest.fixture(scope="module")
def case() -> Case:
    return phantom("thorax")


@pytest.fixture(scope="module")
def plan(case: Case) -> Plan:
    """Two short arcs in opposite directions over the same angles, the second with the couch turned."""
    angles = np.arange(20.0, 61.0, 2.0)
    arcs = (
        conformal_arc(case, MACHINE, angles, collimator_deg=30.0),
        conformal_arc(case, MACHINE, angles[::-1], collimator_deg=330.0, number=2),
        replace(conformal_arc(case, MACHINE, angles, collimator_deg=0.0, number=3), couch_deg=15.0),
    )
    return Plan(arcs, (0.0, 0.0, 0.0), 1, MACHINE.name)


@pytest.fixture(scope="module")
def grid(case: Case) -> Grid:
    return dose_grid(case, 5.0)


@pytest.fixture(scope="module")
def sampled(case: Case, plan: Plan, grid: Grid) -> tuple[SampledDose, FluenceModel, Exposures, np.ndarray]:
    """400 voxels of the body with the influence of all exposures on them."""
    density = density_of(case, grid)
    inside = np.flatnonzero(density.g_cm3.ravel() > 0)
    chosen = np.sort(np.random.default_rng(1).choice(inside, 400, replace=False))
    exposed = exposures(plan, MACHINE)
    model = fluence_model(MACHINE, jaw_box(exposed), STEP_MM)
    points = grid.points_mm(chosen)
    (found,) = sampled_doses(MACHINE, density, points, exposed, [model], isocenter_mm=plan.isocenter_mm)
    return found, model, exposed, chosen


def field(model: FluenceModel, exposed: Exposures) -> torch.Tensor:
    return convolved_fluence(
        model,
        torch.as_tensor(exposed.leaves_mm[..., model.rows], dtype=torch.float32),
        torch.as_tensor(exposed.jaws_mm, dtype=torch.float32),
        torch.as_tensor(exposed.mu, dtype=torch.float32),
    )


def test_sampled_dose_is_the_engine_s_dose(case: Case, plan: Plan, grid: Grid, sampled: tuple) -> None:
    """The same formula through two loops, to float32 rounding."""
    influence, model, exposed, chosen = sampled
    engine = PencilBeam(MACHINE, step_mm=STEP_MM)(plan, case, grid).gy.ravel()[chosen]
    found = influence.dose(field(model, exposed)).numpy() * MACHINE.require_beam().gy_per_mu
    assert engine.max() > 0.5
    assert np.allclose(found, engine, rtol=2e-5, atol=1e-6 * engine.max())


def test_narrow_and_wide_kernels_add_up_to_the_dose(case: Case, grid: Grid, sampled: tuple) -> None:
    """Wide kernels on their coarse nodes: the dose of random apertures to 0.3 % of its maximum."""
    whole, model, exposed, chosen = sampled
    models = split_models(MACHINE, jaw_box(exposed), STEP_MM)
    assert [m.kernels for m in models] == [slice(0, 2, 1), slice(2, 5, 1)]
    assert models[1].u.step_mm > 3 * STEP_MM and len(models[0].u.position_mm) < len(model.u.position_mm)
    density, points = density_of(case, grid), grid.points_mm(chosen)
    maps = sampled_doses(MACHINE, density, points, exposed, models, isocenter_mm=(0.0, 0.0, 0.0))
    jaws, mu = (torch.as_tensor(a, dtype=torch.float32) for a in (exposed.jaws_mm, exposed.mu))
    leaves = torch.as_tensor(exposed.leaves_mm[..., model.rows], dtype=torch.float32)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        moved = leaves + torch.as_tensor(rng.normal(0, 8, tuple(leaves.shape)), dtype=torch.float32)
        moved = torch.sort(moved, dim=2).values.requires_grad_()
        parts = ApertureDose.between(jaws, models, maps)
        found, expected = parts.dose(moved, mu), whole.dose(convolved_fluence(model, moved, jaws, mu))
        assert float((found - expected).detach().abs().max()) < 3e-3 * float(expected.max())
        assert torch.allclose(parts.by_exposure(moved, mu).sum(1), found, rtol=1e-5)
        (one,), (other,) = (torch.autograd.grad(d.square().sum(), moved) for d in (found, expected))
        assert float((one - other).norm()) < 0.02 * float(other.norm())


def test_doses_by_exposure_add_up(sampled: tuple) -> None:
    influence, model, exposed, _ = sampled
    fluence = field(model, exposed)
    parts = influence.by_exposure(fluence)
    assert parts.shape == (400, len(exposed.mu))
    assert np.allclose(parts.sum(axis=1), influence.dose(fluence).numpy(), rtol=1e-5)


def test_the_transpose_is_the_adjoint(sampled: tuple) -> None:
    """<A f, y> = <f, A' y> for random f and y."""
    influence, model, exposed, _ = sampled
    rng = np.random.default_rng(2)
    f = torch.tensor(
        rng.normal(size=tuple(field(model, exposed).shape)), dtype=torch.float32, requires_grad=True
    )
    y = torch.tensor(rng.normal(size=400), dtype=torch.float32)
    dose = influence.dose(f)
    (back,) = torch.autograd.grad(dose, f, y)
    left = float((dose.detach().double() * y.double()).sum())
    right = float((f.detach().double() * back.double()).sum())
    scale = float(dose.detach().double().norm() * y.double().norm())
    assert abs(left - right) < 1e-5 * scale


def test_dose_gradient_in_leaves_equals_finite_differences(sampled: tuple) -> None:
    """Through fluence and influence together, in float32 with steps of 0.1 mm."""
    influence, model, exposed, _ = sampled
    leaves = torch.as_tensor(exposed.leaves_mm[..., model.rows], dtype=torch.float32).requires_grad_()
    jaws, mu = (torch.as_tensor(a, dtype=torch.float32) for a in (exposed.jaws_mm, exposed.mu))

    def total(positions: torch.Tensor) -> torch.Tensor:
        return influence.dose(convolved_fluence(model, positions, jaws, mu)).double().square().sum()

    (gradient,) = torch.autograd.grad(total(leaves), leaves)
    direction = torch.tensor(np.random.default_rng(3).normal(size=tuple(leaves.shape)), dtype=torch.float32)
    with torch.no_grad():
        numeric = float(total(leaves + 0.01 * direction) - total(leaves - 0.01 * direction)) / 0.02
    assert float((gradient.double() * direction.double()).sum()) == pytest.approx(numeric, rel=2e-2)


def test_rays_are_traced_once_for_each_direction(sampled: tuple) -> None:
    """Both arcs at couch 0 pass the same angles; the third comes from elsewhere."""
    _, _, exposed, _ = sampled
    groups = same_beam_direction(exposed)
    assert len(groups) == 40 and sorted(np.concatenate(groups)) == list(range(60))
    for members in groups:
        assert len(set(exposed.gantry_deg[members].round(3))) == 1
        assert len(set(exposed.couch_deg[members])) == 1
