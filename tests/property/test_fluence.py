"""Fluence: gradients against finite differences, moving edges against many still ones, blur against scipy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter, map_coordinates

from vmat_diffusion.dose.delivery import exposures
from vmat_diffusion.dose.pencil_beam.fluence import (
    FluenceModel,
    convolved_fluence,
    fluence_model,
    jaw_parts,
    nodes,
)
from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import Arc, Plan

MACHINE = load_machine("generic_6mv")
BOX = (-40.0, 40.0, -30.0, 30.0)
MODEL = fluence_model(MACHINE, BOX, 2.5)
ROWS = MODEL.rows.stop - MODEL.rows.start

Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def apertures(seed: int, motion_mm: float, *, on_nodes: bool = False, n: int = 2) -> Arrays:
    """Leaves, jaws and MU of n exposures, in float64; leaves clear of the jaws."""
    rng = np.random.default_rng(seed)
    leaves = np.empty((n, 2, 2, ROWS))
    leaves[:, 0, 0] = rng.uniform(-30, -2, (n, ROWS))
    leaves[:, 0, 1] = leaves[:, 0, 0] + rng.uniform(1, 30, (n, ROWS))
    if on_nodes:  # leaf ends, after the gap offset, stand exactly at nodes
        at = MODEL.u.position_mm
        shift = np.array([-1, 1])[:, None] * MODEL.mlc.gap_offset_mm / 2
        nearest = np.abs(at - (leaves[:, 0] + shift)[..., None]).argmin(axis=-1)
        nearest += (nearest + np.arange(ROWS)) % 2  # neighbours apart: where they tie, tongues have a kink
        leaves[:, 0] = at[nearest] - shift
    leaves[:, 1] = leaves[:, 0] + rng.uniform(-motion_mm, motion_mm, (n, 2, ROWS))
    jaws = np.tile([-37.0, 36.0, -27.0, 23.0], (n, 2, 1)) + rng.uniform(-1, 1, (n, 2, 4))
    mu = rng.uniform(0.5, 5, n)
    return tuple(torch.tensor(a, dtype=torch.float64) for a in (leaves, jaws, mu))  # type: ignore[return-value]


def scalar(model: FluenceModel, seed: int) -> Callable[..., torch.Tensor]:
    """A weighted sum over all nodes and kernels, whose gradient exercises all of them."""

    def of(leaves: torch.Tensor, jaws: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
        field = convolved_fluence(model, leaves, jaws, mu)
        weight = torch.tensor(np.random.default_rng(seed).normal(size=tuple(field.shape)))
        return (weight * field).sum()

    return of


@pytest.mark.parametrize("motion_mm", [0.0, 0.3, 4.0, 12.0])
@pytest.mark.parametrize("on_nodes", [False, True])
def test_gradients_equal_central_differences(motion_mm: float, on_nodes: bool) -> None:
    """In leaves, jaws and MU, to 1e-5 of the largest gradient."""
    arrays = [a.requires_grad_() for a in apertures(3, motion_mm, on_nodes=on_nodes)]
    function = scalar(MODEL, 5)
    found = torch.autograd.grad(function(*arrays), arrays)
    rng = np.random.default_rng(11)
    with torch.no_grad():
        for which, gradient in enumerate(found):
            largest = float(gradient.abs().max())
            assert largest > 0
            places = rng.choice(gradient.numel(), min(gradient.numel(), 12), replace=False)
            for place in places:
                index = np.unravel_index(place, tuple(gradient.shape))
                values = []
                for step in (1e-4, -1e-4):
                    moved = [a.detach().clone() for a in arrays]
                    moved[which][index] += step
                    values.append(float(function(*moved)))
                numeric = (values[0] - values[1]) / 2e-4
                assert float(gradient[index]) == pytest.approx(numeric, abs=1e-5 * largest)


def test_gradients_keep_with_fixed_jaws_worked_out_beforehand() -> None:
    leaves, jaws, mu = apertures(1, 3.0)
    plain = convolved_fluence(MODEL, leaves, jaws, mu)
    saved = convolved_fluence(MODEL, leaves, jaws, mu, jaw_parts(MODEL, jaws))
    assert torch.equal(plain, saved)


def test_fluence_is_proportional_to_mu() -> None:
    leaves, jaws, mu = apertures(2, 5.0)
    field = convolved_fluence(MODEL, leaves, jaws, mu)
    assert torch.allclose(convolved_fluence(MODEL, leaves, jaws, 3 * mu), 3 * field, rtol=1e-12)


@pytest.mark.parametrize("motion_mm", [0.5, 2.0, 10.0])
@pytest.mark.parametrize("tongues", [False, True])
def test_moving_leaves_equal_the_mean_of_many_still_ones(motion_mm: float, tongues: bool) -> None:
    """400 still apertures at the middles of equal parts of the motion.

    Where edges of neighbours pass each other, what both leave open has the right mean, not the right shape,
    and is too small where both are apart for a part of the time: here, where all edges move at random, up to
    3 % of the fluence at a node beside a boundary, 0.1 % in the mean.
    """
    leaves, jaws, mu = apertures(4, motion_mm, n=1)
    jaws = jaws[:, :1].expand(-1, 2, -1)
    model = MODEL if tongues else replace(MODEL, mlc=replace(MODEL.mlc, tongue_mm=0.0))
    moving = convolved_fluence(model, leaves, jaws, mu)
    t = (torch.arange(400, dtype=torch.float64)[:, None, None, None] + 0.5) / 400
    still = leaves[:, :1] + (leaves[:, 1:] - leaves[:, :1]) * t
    brute = convolved_fluence(
        model, still.expand(-1, 2, -1, -1), jaws.expand(400, -1, -1), mu.expand(400)
    ).mean(0)
    apart = (moving[0] - brute).abs() / mu
    assert float(apart.max()) < (4e-2 if tongues else 5e-5) and float(apart.mean()) < 1e-3


def test_blurred_aperture_equals_a_blurred_raster() -> None:
    """0.5 mm pixels blurred by scipy, at the nodes between the jaws, for each kernel."""
    model = replace(MODEL, mlc=replace(MODEL.mlc, gap_offset_mm=0.0, tongue_mm=0.0))
    leaves, jaws, mu = apertures(6, 0.0, n=1)
    leaves, jaws = (leaves * 2).round() / 2, (jaws * 2).round() / 2
    jaws = jaws[:, :1].expand(-1, 2, -1)
    field = convolved_fluence(model, leaves, jaws, mu).numpy()[0] / float(mu)
    pixel, half = 0.5, 200.0
    centre = np.arange(-half + pixel / 2, half, pixel)
    raster = np.zeros((len(centre), len(centre)), np.float32)
    x1, x2, y1, y2 = jaws[0, 0].numpy()
    for k in range(ROWS):
        low, high = max(model.row_edges_mm[k], y1), min(model.row_edges_mm[k + 1], y2)
        row = ((centre > low) & (centre < high))[:, None]
        a, b = leaves[0, 0, :, k].numpy()
        between, seen = (centre > x1) & (centre < x2), (centre > a) & (centre < b)
        raster += row * np.where(between, np.where(seen, 1.0, model.mlc.transmission), 0.0).astype(np.float32)
    inside_u = np.abs(model.u.position_mm) < 45
    inside_v = np.abs(model.v.position_mm) < 35
    for kernel, sigma in enumerate(model.sigma_mm):
        if sigma > 60:
            continue  # the raster would need to be metres wide
        blurred = gaussian_filter(raster, sigma / pixel, truncate=4.0)
        iu = np.interp(model.u.position_mm[inside_u], centre, np.arange(len(centre)))
        iv = np.interp(model.v.position_mm[inside_v], centre, np.arange(len(centre)))
        expected = map_coordinates(blurred, np.meshgrid(iv, iu, indexing="ij"), order=3)
        assert np.abs(field[inside_v][:, inside_u, kernel] - expected).max() < 2e-3


@given(st.floats(-50, 0), st.floats(1, 60), st.floats(1.0, 4.0))
def test_nodes_cover_the_field_and_look_up_their_own_positions(low: float, width: float, step: float) -> None:
    found = nodes(low, low + width, step)
    position = found.position_mm
    assert position[0] <= low - 240 and position[-1] >= low + width + 240
    inside = (position > low - 1e-9) & (position < low + width)
    assert np.all(np.diff(position) > 0) and np.all(np.diff(position[inside]) <= step + 1e-9)
    index, first = found.lookup
    at = np.interp(position, first + 0.5 * np.arange(len(index)), index)
    assert np.abs(at - np.arange(len(position))).max() < 0.3  # half-millimetre table, exact between bends


@settings(max_examples=30)
@given(
    st.integers(2, 6),
    st.floats(0.0, 30.0),
    st.floats(0.0, 60.0),
    st.floats(0.0, 20.0),
    st.integers(0, 10_000),
)
def test_exposures_keep_mu_and_path(n: int, turn: float, travel: float, jaw: float, seed: int) -> None:
    """Cutting a segment changes neither its MU nor where leaves, jaws and gantry start and end."""
    rng = np.random.default_rng(seed)
    leaves = np.zeros((n, 2, 60))
    leaves[:, 0] = rng.uniform(-travel, travel, (n, 60))
    leaves[:, 1] = leaves[:, 0] + rng.uniform(0, 40, (n, 60))
    jaws = np.tile([-50.0, 50.0, -50.0, 50.0], (n, 1)) + rng.uniform(-jaw, jaw, (n, 4))
    gantry = np.cumsum(np.full(n, turn))
    arc = Arc(gantry, 30.0, 5.0, leaves, jaws, rng.uniform(0.1, 9, n - 1))
    found = exposures(Plan((arc,), (0.0, 0.0, 0.0), 1, "generic_6mv"), MACHINE)
    assert found.mu.sum() == pytest.approx(arc.total_mu)
    assert np.allclose(found.leaves_mm[0, 0], leaves[0]) and np.allclose(found.leaves_mm[-1, 1], leaves[-1])
    assert np.allclose(found.leaves_mm[1:, 0], found.leaves_mm[:-1, 1])
    assert np.allclose(found.jaws_mm[1:, 0], found.jaws_mm[:-1, 1])
    assert np.abs(found.leaves_mm[:, 1] - found.leaves_mm[:, 0]).max() <= 12 + 1e-9
    assert np.abs(found.jaws_mm[:, 1, 2:] - found.jaws_mm[:, 0, 2:]).max() <= 5 + 1e-9
    assert np.all(np.diff(found.gantry_deg) <= 2.2 + 1e-9)
    assert np.average(found.gantry_deg, weights=found.mu) == pytest.approx(
        np.average((gantry[1:] + gantry[:-1]) / 2, weights=arc.mu)
    )
