"""Trees on single voxels learn what single voxels tell, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from openkbp_files import arrays, write_npz

from vmat_diffusion.benchmark.openkbp.boosting import fit_voxels, predict_voxels
from vmat_diffusion.case import Dose
from vmat_diffusion.dataset.cases import TrainingCase
from vmat_diffusion.dataset.openkbp import read_openkbp
from vmat_diffusion.diffusion.encode import Encoding, encode
from vmat_diffusion.errors import InputError

pytest.importorskip("sklearn", reason="needs the extra [train]")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> TrainingCase:
    """A patient whose dose falls off with the distance from the target of 70 Gy."""
    made = read_openkbp(write_npz(tmp_path_factory.mktemp("pt") / "pt_1.npz", arrays()))
    distance = encode(made.case, made.possible_dose, Encoding()).volume[4]
    gy = np.zeros(made.case.grid.shape, np.float32)
    box = encode(made.case, made.possible_dose, Encoding()).box
    gy[box] = np.where(made.possible_dose[box], 70 * np.exp(-2 * np.maximum(distance, 0)), 0)
    return replace(made, case=replace(made.case, reference_dose=Dose(made.case.grid, gy)))


def test_a_dose_that_distance_tells_is_learnt_the_same_each_time(case: TrainingCase) -> None:
    encoded = encode(case.case, case.possible_dose, Encoding())
    model, again = (fit_voxels([case], Encoding(), voxels=2000, trees=30, seed=4) for _ in range(2))
    found = predict_voxels(model, encoded)
    assert np.array_equal(found.gy, predict_voxels(again, encoded).gy)
    assert not found.gy[~case.possible_dose].any()
    error = np.abs(found.gy - case.case.reference_dose.gy)[case.possible_dose]
    # Shrunk by 0.1 at each of 30 trees, 4 % of the dose's own spread of 20 Gy remain.
    assert error.mean() < 1.5


def test_no_case_with_dose_is_said(case: TrainingCase) -> None:
    without = replace(case, case=replace(case.case, reference_dose=None))
    with pytest.raises(InputError, match="no case with dose to learn from"):
        fit_voxels([without], Encoding())
