"""The sparse influence matrix against the engine that needs no matrix, and its limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vmat_diffusion.dose.delivery import Exposures
from vmat_diffusion.dose.pencil_beam import point_dose
from vmat_diffusion.dose.pencil_beam.influence_matrix import InfluenceMatrix, influence_matrix
from vmat_diffusion.dose.tissue import Density, density_of, dose_grid, medium_at
from vmat_diffusion.errors import InputError
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.phantom import phantom

BOX = (-40.0, 40.0, -30.0, 30.0)
GANTRY = np.arange(0.0, 360.0, 15.0)


def opaque() -> Machine:
    """No transmission and no gap offset, so that an aperture is a set of beamlets."""
    machine = load_machine("generic_6mv")
    return replace(machine, mlc=replace(machine.mlc, transmission=0.0, gap_offset_mm=0.0, tongue_mm=0.0))


def apertures(machine: Machine) -> tuple[Exposures, np.ndarray]:
    """Random openings on beamlet borders for each angle, and the beamlets that they open times MU."""
    rng = np.random.default_rng(3)
    edges = machine.row_edges_mm()
    inside = (edges[:-1] >= BOX[2]) & (edges[1:] <= BOX[3])
    n, rows, columns = len(GANTRY), len(edges) - 1, 16
    first = rng.integers(0, 8, (n, rows))
    last = first + rng.integers(0, 9, (n, rows))
    leaves = BOX[0] + 5.0 * np.stack([first, last], axis=1)
    mu = rng.uniform(5.0, 20.0, n)
    open_ = (np.arange(columns) >= first[..., None]) & (np.arange(columns) < last[..., None])
    fluence = (open_[:, inside] * mu[:, None, None]).ravel()
    still = np.stack([leaves, leaves], axis=1)
    collimator = np.tile([0.0, 30.0, 330.0, 90.0], n // 4)
    jaws = np.tile(np.array(BOX), (n, 2, 1))
    return Exposures(GANTRY, collimator, np.zeros(n), still, jaws, mu), fluence


@pytest.fixture(scope="module")
def chosen() -> tuple[Density, np.ndarray]:
    case = phantom("thorax")
    density = density_of(case, dose_grid(case, 5.0))
    inside = np.flatnonzero(density.g_cm3.ravel() > 0)
    points = density.grid.points_mm(inside)
    near = points[np.abs(points).max(axis=1) < 90.0]
    return density, near[np.random.default_rng(5).choice(len(near), 1500, replace=False)]


@pytest.fixture(scope="module")
def built(chosen: tuple) -> InfluenceMatrix:
    exposed, _ = apertures(opaque())
    return influence_matrix(opaque(), *chosen, exposed, BOX, isocenter_mm=(0.0, 0.0, 0.0))


def test_matrix_times_fluence_is_the_engine_s_dose(chosen: tuple, built: InfluenceMatrix) -> None:
    """Within 0.5 % of the maximum: what is sampled below the cut, and nodes 1 mm apart in the engine."""
    density, points = chosen
    exposed, fluence = apertures(opaque())
    medium = medium_at(density, points)
    engine = point_dose(opaque(), exposed, density, points, (0.0, 0.0, 0.0), medium=medium, step_mm=1.0)
    found = built.matrix @ fluence
    assert engine.max() > 0.05
    assert np.abs(found - engine).max() < 0.005 * engine.max()
    assert found.sum() == pytest.approx(engine.sum(), rel=0.004)


def test_the_transpose_is_the_same_matrix(built: InfluenceMatrix) -> None:
    """Reciprocity: <y, D x> = <D' y, x>."""
    rng = np.random.default_rng(0)
    x, y = rng.random(built.matrix.shape[1]), rng.random(built.matrix.shape[0])
    assert y @ (built.matrix @ x) == pytest.approx((built.transpose @ y) @ x, rel=1e-6)
    assert (built.matrix.data >= 0).all()


def test_a_lower_cut_keeps_more_entries_and_the_same_sum(chosen: tuple, built: InfluenceMatrix) -> None:
    exposed, _ = apertures(opaque())
    fuller = influence_matrix(opaque(), *chosen, exposed, BOX, isocenter_mm=(0.0, 0.0, 0.0), cut=0.002)
    assert fuller.matrix.nnz > 1.5 * built.matrix.nnz
    ones = np.ones(built.matrix.shape[1])
    few, many = built.matrix @ ones, fuller.matrix @ ones
    assert np.abs(few - many).max() < 0.005 * many.max()
    assert few.sum() == pytest.approx(many.sum(), rel=1e-3)


def test_memory_is_announced_and_capped(chosen: tuple, built: InfluenceMatrix) -> None:
    exposed, _ = apertures(opaque())
    heard: list[str] = []
    with pytest.raises(InputError, match=r"above the limit of 0.01 GB.*--max-gb"):
        influence_matrix(
            opaque(), *chosen, exposed, BOX, isocenter_mm=(0.0, 0.0, 0.0), max_gb=0.01, announce=heard.append
        )
    assert heard and "1500 voxels x 4608 beamlets" in heard[0]
    expected = float(heard[0].split("about ")[1].split()[0])
    # An estimate from above: points outside the beam have few entries.
    assert 0.2 * expected < built.gigabytes < expected


def test_a_box_without_area_is_refused(chosen: tuple) -> None:
    exposed, _ = apertures(opaque())
    with pytest.raises(InputError, match="no area"):
        influence_matrix(opaque(), *chosen, exposed, (10.0, 10.0, -30.0, 30.0), isocenter_mm=(0.0, 0.0, 0.0))


def test_rows_longer_than_usual_are_kept_whole() -> None:
    """A deep voxel in a wide field of small beamlets collects from more of them than usual."""
    machine, n = opaque(), 30
    water = Density(
        Grid((n, n, n), (10.0, 10.0, 10.0), (-145.0, -145.0, -145.0)), np.ones((n, n, n), np.float32)
    )
    deep, box = np.array([[0.0, 120.0, 0.0], [20.0, 140.0, -20.0]]), (-100.0, 100.0, -100.0, 100.0)
    one, jaws = np.zeros(1), np.tile(np.array(box), (1, 2, 1))
    rows = len(machine.row_edges_mm()) - 1
    open_field = np.broadcast_to(np.array([[-100.0], [100.0]]), (1, 2, 2, rows)).copy()
    exposed = Exposures(one, one, one, open_field, jaws, np.ones(1))
    built = influence_matrix(machine, water, deep, exposed, box, isocenter_mm=(0.0, 0.0, 0.0), beamlet_mm=2.5)
    assert np.diff(built.matrix.indptr).max() > 384
    # The last beamlet of the row, in a far corner, stands for none but itself and some sampled ones.
    row = built.matrix[0]
    assert row.data[row.indices.argmax()] < 0.01 * row.sum()
    medium = medium_at(water, deep)
    engine = point_dose(machine, exposed, water, deep, (0.0, 0.0, 0.0), medium=medium, step_mm=1.0)
    np.testing.assert_allclose(built.matrix @ np.ones(built.matrix.shape[1]), engine, rtol=0.01)
