"""From leaves, jaws and MU to dose in a thorax: exact gradients in float64, the same on every device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from synthetic_plans import conformal_arc

from vmat_diffusion.dose import dose_grid
from vmat_diffusion.dose.delivery import exposures
from vmat_diffusion.dose.pencil_beam.fluence import (
    FluenceModel,
    convolved_fluence,
    fluence_model,
    jaw_parts,
    strips_in_torch,
)
from vmat_diffusion.dose.pencil_beam.openings import opening
from vmat_diffusion.dose.pencil_beam.sampled import SampledDose, gathered_in_torch, sampled_doses
from vmat_diffusion.dose.pencil_beam.strips import strips_times_mu
from vmat_diffusion.dose.tissue import density_of
from vmat_diffusion.machine import load_machine
from vmat_diffusion.phantom import phantom
from vmat_diffusion.plan import Plan

MACHINE = load_machine("generic_6mv")
BOX = (-60.0, 60.0, -50.0, 50.0)
Y_JAWS = (-45.0, 42.0)  # the first on a border of leaves, the second within one
MOTION_MM = np.array([0.0, 0.4, 3.0, 12.0])  # of the leaves, in each exposure

Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture(scope="module")
def sampled() -> tuple[SampledDose, FluenceModel]:
    """80 voxels of the thorax, lung and bone among them, seen from four directions, in float64."""
    case = phantom("thorax")
    grid = dose_grid(case, 6.0)
    density = density_of(case, grid)
    inside = np.flatnonzero(density.g_cm3.ravel() > 0)
    near = inside[np.abs(grid.points_mm(inside)).max(axis=1) < 90]
    chosen = np.random.default_rng(1).choice(near, 80, replace=False)
    assert (density.g_cm3.ravel()[chosen] < 0.5).sum() > 8 and (density.g_cm3.ravel()[chosen] > 1.1).any()
    arc = conformal_arc(case, MACHINE, np.array([0.0, 2.0, 4.0, 6.0, 8.0]), collimator_deg=30.0)
    exposed = exposures(Plan((arc,), (0.0, 0.0, 0.0), 1, MACHINE.name), MACHINE, max_travel_mm=1000.0)
    assert len(exposed.mu) == len(MOTION_MM)
    model = fluence_model(MACHINE, BOX, 2.0)
    points = grid.points_mm(chosen)
    (found,) = sampled_doses(
        MACHINE, density, points, exposed, [model], isocenter_mm=(0.0, 0.0, 0.0), dtype=np.float64
    )
    return found, model


def apertures(model: FluenceModel, *, at_borders: bool) -> Arrays:
    """Leaves, jaws and MU; at borders, leaf ends start at nodes or on an X jaw, and Y1 on a leaf's border."""
    rng = np.random.default_rng(7)
    n, rows = len(MOTION_MM), model.rows.stop - model.rows.start
    leaves = np.empty((n, 2, 2, rows))
    leaves[:, 0, 0] = rng.uniform(-40, -2, (n, rows))
    leaves[:, 0, 1] = leaves[:, 0, 0] + rng.uniform(4, 40, (n, rows))
    jaws = np.tile([-55.0, 52.0, *Y_JAWS], (n, 2, 1))
    if at_borders:
        shift = np.array([-1, 1])[:, None] * model.mlc.gap_offset_mm / 2
        nearest = np.abs(model.u.position_mm - (leaves[:, 0] + shift)[..., None]).argmin(axis=-1)
        leaves[:, 0] = model.u.position_mm[nearest] - shift
        leaves[:, 0, 0, ::5] = jaws[:, 0, :1] - shift[0]
    else:
        jaws += rng.uniform(0.1, 1, jaws.shape)
    leaves[:, 1] = leaves[:, 0] + MOTION_MM[:, None, None] * rng.uniform(-1, 1, (n, 2, rows))
    return tuple(torch.tensor(a) for a in (leaves, jaws, rng.uniform(0.5, 5, n)))  # type: ignore[return-value]


def scalar(sampled: SampledDose, model: FluenceModel) -> Callable[..., torch.Tensor]:
    """A weighted sum of the dose at all points and of its square, per MU of the whole."""
    weight = torch.tensor(np.random.default_rng(5).uniform(0.2, 1, sampled.index_u.shape[1]))

    def of(*arrays: torch.Tensor) -> torch.Tensor:
        dose = sampled.dose(convolved_fluence(model, *arrays))
        return (weight.to(dose) * (dose + dose.square() / 10)).sum()

    return of


def difference(function: Callable[..., torch.Tensor], arrays: Arrays, which: int, index: tuple) -> float:
    """Central difference, extrapolated from two steps; at a kink the mean of both slopes."""

    def central(step: float) -> float:
        values = []
        for sign in (1, -1):
            moved = [a.detach().clone() for a in arrays]
            moved[which][index] += sign * step
            values.append(float(function(*moved)))
        return (values[0] - values[1]) / (2 * step)

    return 2 * central(5e-4) - central(1e-3)


@pytest.mark.parametrize("at_borders", [False, True])
def test_dose_gradients_equal_central_differences(
    sampled: tuple[SampledDose, FluenceModel], at_borders: bool
) -> None:
    """In leaves, jaws and MU, each entry to 1e-5 of itself; the rest is rounding of the difference.

    Where neighbours start at one place, the difference itself is good to 5e-4: a leaf that moves by less than
    a hundredth of a mm passes the other within its steps.
    """
    influence, model = sampled
    leaves, jaws, mu = arrays = apertures(model, at_borders=at_borders)
    function = scalar(influence, model)
    found = torch.autograd.grad(function(*(a.requires_grad_() for a in arrays)), arrays)
    assert all(g.dtype == torch.float64 for g in found)
    rng = np.random.default_rng(11)
    on_jaw = [(s, 0, 0, row) for s in range(len(mu)) for row in (5, 15)]
    chosen = [np.unravel_index(p, leaves.shape) for p in rng.choice(leaves.numel(), 12, replace=False)]
    jaw = [(s, s % 2, k) for s in range(len(mu)) for k in range(jaws.shape[2])]
    places = [[*on_jaw, *chosen], jaw, list(np.ndindex(*mu.shape))]
    with torch.no_grad():
        for which, gradient in enumerate(found):
            largest = float(gradient.abs().max())
            assert largest > 0
            for index in places[which]:
                numeric = difference(function, arrays, which, index)
                assert float(gradient[index]) == pytest.approx(
                    numeric, rel=5e-4 if at_borders else 1e-5, abs=1e-7 * largest
                )


@pytest.mark.parametrize("tongue_mm", [0.0, 0.6])
@pytest.mark.parametrize("motion_mm", [0.0, 0.3, 4.0, 12.0])
def test_compiled_loops_make_strips_as_torch_operations_do(motion_mm: float, tongue_mm: float) -> None:
    """Values and gradients of the loops, in float32, against torch in float64: to a few units of float32."""
    rng = np.random.default_rng(3)
    at, sigma = np.linspace(-240, 240, 49), np.array([1.5, 5.0, 40.0])
    rows, mlc = 6, replace(MACHINE.mlc, tongue_mm=tongue_mm)
    seen = 2 * rows - 1 if tongue_mm else rows
    start = np.stack([rng.uniform(-40, 0, (2, seen)), rng.uniform(0, 40, (2, seen))], axis=1)
    start[:, :, :3] = np.round(start[:, :, :3] / 10) * 10  # edges that start at nodes
    start[:, :, 3] = 7.0  # a closed pair
    end = start + rng.uniform(-motion_mm, motion_mm, start.shape)
    arrays = (
        np.stack([start, end], axis=1),
        np.array([0.0, 3.0]),
        rng.uniform(0, 0.01, (2, 3, rows, 49)),
    )
    weight = torch.tensor(rng.normal(size=(2, 3, 2 * seen - rows, 49)))

    def strips(dtype: torch.dtype) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        edges, mu, leaked = (torch.tensor(a.astype(np.float32)).to(dtype) for a in arrays)
        edges.requires_grad_()
        mu.requires_grad_()
        if dtype == torch.float32:
            values = strips_times_mu(edges, mu, leaked, (at, sigma), mlc)
        else:
            values = strips_in_torch(mlc, opening(edges, at, sigma), mu, leaked)
        return values.detach(), torch.autograd.grad((weight.to(dtype) * values).sum(), (edges, mu))

    (found, by_found), (exact, by_exact) = strips(torch.float32), strips(torch.float64)
    assert found.dtype == torch.float32 and float((found - exact).abs().max()) < 5e-6
    for one, other in zip(by_found, by_exact, strict=True):
        assert float((one - other).abs().max()) < 2e-5 * max(1.0, float(other.abs().max()))


def test_torch_operations_open_in_float32_as_in_float64() -> None:
    """To a few units of float32 at 1, 24 cm away from the edges too."""
    at, sigma = np.linspace(-240, 240, 49), np.array([1.5, 5.0, 40.0])
    edges = torch.tensor([-30.0, 20, -27, 26]).reshape(1, 2, 2, 1)
    exact = opening(edges.double(), at, sigma)
    assert float((opening(edges, at, sigma) - exact).abs().max()) < 5e-7


def test_torch_operations_gather_as_the_compiled_loops_do(sampled: tuple[SampledDose, FluenceModel]) -> None:
    """The same sum in float64, to its rounding; two points are outside the nodes."""
    influence, model = sampled
    index_u = influence.index_u.clone()
    index_u[:, :2] = -1
    influence = SampledDose(index_u, influence.index_v, influence.weight)
    rng = np.random.default_rng(2)
    shape = (len(MOTION_MM), len(model.v.position_mm), len(model.u.position_mm), len(model.sigma_mm))
    field = torch.tensor(rng.normal(size=shape)).requires_grad_()
    weight = torch.tensor(rng.normal(size=80))
    both = [influence.dose(field), gathered_in_torch(field, influence).sum(0)]
    assert torch.allclose(*both, rtol=1e-12, atol=1e-12) and not both[1][:2].any()
    gradients = [torch.autograd.grad((weight * dose).sum(), field)[0] for dose in both]
    assert torch.allclose(*gradients, rtol=1e-12, atol=1e-12)
    assert torch.allclose(influence.by_exposure(field), gathered_in_torch(field, influence).T, rtol=1e-12)


@pytest.mark.parametrize(
    "device",
    [
        "meta",  # no values, but refuses what lies on two devices
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")),
    ],
)
def test_the_whole_way_stays_on_its_device(sampled: tuple[SampledDose, FluenceModel], device: str) -> None:
    """Value and gradients on another device; where there are values, those of the CPU."""
    influence, model = sampled
    here = apertures(model, at_borders=True)
    there: Arrays = tuple(a.to(device).requires_grad_() for a in here)  # type: ignore[assignment]
    value = scalar(influence.to(device), model)(*there)
    found = torch.autograd.grad(value, there)
    assert all(g.device.type == device and g.dtype == torch.float64 for g in (value, *found))
    field = convolved_fluence(model, *there, jaw_parts(model, there[1]))
    assert influence.to(device).by_exposure(field).shape == (80, len(MOTION_MM))
    if device != "meta":
        expected = scalar(influence, model)(*(a.requires_grad_() for a in here))
        assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-7)
        for a, b in zip(found, torch.autograd.grad(expected, here), strict=True):
            assert float((a.cpu() - b).abs().max()) < 1e-6 * float(b.abs().max())
