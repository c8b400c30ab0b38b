"""The dose of fluence fields against the influence matrix, which goes another way from bixel to voxel."""

from __future__ import annotations

import numpy as np

from vmat_diffusion.dose.delivery import Exposures
from vmat_diffusion.dose.pencil_beam.field_dose import field_dose
from vmat_diffusion.dose.pencil_beam.influence_matrix import influence_matrix
from vmat_diffusion.dose.tissue import density_of, dose_grid
from vmat_diffusion.machine import load_machine
from vmat_diffusion.phantom import phantom
from vmat_diffusion.plan import FluenceFields


def test_dose_is_that_of_the_influence_matrix() -> None:
    machine, case = load_machine("generic_6mv"), phantom("thorax")
    rng = np.random.default_rng(0)
    edges = machine.row_edges_mm()
    rows = edges[(edges > -31) & (edges < 31)]
    columns = np.arange(-30.0, 31.0, 5.0)
    angles = np.array([0.0, 75.0, 200.0])
    mu = rng.uniform(0, 100, (3, len(rows) - 1, len(columns) - 1)).astype(np.float32)
    mu[rng.random(mu.shape) < 0.3] = 0.0
    fields = FluenceFields(angles, np.array([0.0, 20.0, 0.0]), mu, rows, columns, (0.0, 0.0, 0.0), 2)
    density = density_of(case, dose_grid(case, 5.0))
    inside = np.flatnonzero(density.g_cm3.ravel() > 0)
    points = density.grid.points_mm(np.sort(rng.choice(inside, 600, replace=False)))
    gy = field_dose(machine, fields, density, points)
    exposed = Exposures(
        angles, fields.collimator_deg, np.zeros(3), np.zeros((3, 2, 2, 1)), np.zeros((3, 2, 4)), np.ones(3)
    )
    built = influence_matrix(
        machine, density, points, exposed, fields.box_mm, isocenter_mm=(0.0, 0.0, 0.0), cut=1e-5
    )
    np.testing.assert_allclose(built.row_edges_mm, rows)
    np.testing.assert_allclose(built.column_edges_mm, columns)
    expected = fields.fractions * (built.matrix @ mu.ravel())
    assert expected.max() > 10 * np.median(expected)  # in the fields and out of them
    # Fluence between nodes 1.5 mm apart is linear; the matrix integrates each bixel exactly.
    np.testing.assert_allclose(gy, expected, rtol=0, atol=0.01 * expected.max())
