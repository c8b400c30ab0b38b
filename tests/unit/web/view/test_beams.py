"""Control points as the plan has them, and projections as the geometry says."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from viewed_run import arcs, made_run

from vmat_diffusion.case import Structure
from vmat_diffusion.errors import PlanError
from vmat_diffusion.geometry import Grid, beam_axes, project
from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import timing
from vmat_diffusion.web.view.beams import control_points, projection, surface_mm
from vmat_diffusion.web.view.cases import CaseStore
from vmat_diffusion.web.view.masks import packed
from vmat_diffusion.web.view.runs import Run, open_run

MACHINE = load_machine("generic_6mv")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("beams")
    return open_run(*made_run(root), CaseStore(root / "store"))


def test_all_control_points_with_the_pace_of_the_machine(run: Run) -> None:
    found, plan = json.loads(json.dumps(control_points(run))), arcs()
    assert found["limits"]["leaf_speed_mm_s"] == MACHINE.limits.leaf_speed_mm_s
    assert found["layers"][0]["boundaries_mm"] == list(MACHINE.mlc.layers[0].boundaries_mm)
    for arc, own in zip(found["arcs"], plan.arcs, strict=True):
        pace = timing(own, MACHINE.limits)
        np.testing.assert_allclose(arc["leaves_mm"], own.leaves_mm, atol=0.006)
        np.testing.assert_allclose(arc["gantry_deg"], own.gantry_deg % 360, atol=0.006)
        np.testing.assert_allclose(arc["cumulative_mu"][-1], own.total_mu, atol=1e-3)
        np.testing.assert_allclose(arc["time_s"], pace.time_s, atol=1e-4)
        np.testing.assert_allclose(arc["dose_rate_mu_min"], pace.dose_rate_mu_min, atol=0.06)
        np.testing.assert_allclose(arc["gantry_speed_deg_s"], pace.gantry_speed_deg_s, atol=6e-4)
        np.testing.assert_allclose(arc["leaf_speed_mm_s"], pace.leaf_speed_mm_s, atol=6e-3)
        np.testing.assert_allclose(arc["mu_per_deg"], own.mu / np.abs(np.diff(own.gantry_deg)), atol=6e-4)


def test_of_an_unknown_machine_the_stored_times_are_shown_and_no_limits(run: Run) -> None:
    found, known = control_points(replace(run, machine=None)), control_points(run)
    assert found["limits"] is None and found["layers"] == []
    for arc, with_machine in zip(found["arcs"], known["arcs"], strict=True):
        assert arc["time_s"] == with_machine["time_s"]


def test_without_a_plan_there_is_a_sentence(run: Run) -> None:
    with pytest.raises(PlanError, match="control points"):
        control_points(replace(run, plan=None))


def ball(centre: tuple[float, float, float], radius: float, spacing: tuple[float, float, float]) -> tuple:
    shape = tuple(int(2 * (radius + 6) / s) for s in spacing[::-1])
    origin = tuple(c - s * (n - 1) / 2 for c, s, n in zip(centre, spacing, shape[::-1], strict=True))
    grid = Grid(shape, spacing, origin)  # type: ignore[arg-type]
    x, y, z = grid.axes_mm
    far = (x - centre[0]) ** 2 + (y[:, None] - centre[1]) ** 2 + (z[:, None, None] - centre[2]) ** 2
    return Structure("PTV", "target", far <= radius**2), grid


@pytest.mark.parametrize("gantry", [0.0, 37.0, 90.0, 250.0])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 3.0), (3.0, 3.0, 3.0)])
@pytest.mark.parametrize("position", ["HFS", "FFP"])
def test_a_ball_is_seen_as_a_disk_where_the_geometry_projects_it(
    gantry: float, spacing: tuple[float, float, float], position: str
) -> None:
    centre, radius = (18.0, -25.0, 30.0), 22.0
    structure, grid = ball(centre, radius, spacing)
    plan = replace(arcs((5.0, -4.0, 10.0)), patient_position=position)
    arc = plan.arcs[1]
    small = packed(structure)
    assert small is not None
    (line,) = projection(surface_mm(small, grid), plan, arc, gantry, 1000.0)
    axes = beam_axes(gantry, arc.collimator_deg, arc.couch_deg, position)
    u, v, distance = project(np.array([centre]), axes, plan.isocenter_mm, 1000.0)[0]
    seen = np.hypot(line[:, 0] - u, line[:, 1] - v)
    # Half a voxel of the mask, and a cell of the projection.
    assert np.abs(seen - radius * 1000 / distance).max() < 0.5 * max(spacing) + 1.5


def test_a_ring_seen_along_its_axis_keeps_its_hole() -> None:
    grid = Grid((10, 60, 60), (1.0, 1.0, 2.0), (-29.5, -29.5, -9.0))
    x, y, _ = grid.axes_mm
    r = np.hypot(x, y[:, None])
    mask = np.broadcast_to((r <= 25) & (r >= 12), grid.shape).copy()
    small = packed(Structure("PTV", "target", mask))
    assert small is not None
    plan = arcs((0.0, 0.0, 0.0))
    # With the couch at 90 degrees and the gantry at 90 the source lies along the patient's long axis.
    along = replace(plan.arcs[0], couch_deg=90.0)
    lines = sorted(projection(surface_mm(small, grid), plan, along, 90.0, 1000.0), key=len)
    assert len(lines) == 2
    for line, radius in zip(lines, (12.0, 25.0), strict=True):
        assert np.hypot(*line.T).mean() == pytest.approx(radius, abs=1.5)
