"""The challenge's scores on doses whose scores are known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vmat_diffusion.errors import CaseError
from vmat_diffusion.evaluate.openkbp import Scores, dvh_points, overall, score


def test_dose_score_counts_the_whole_grid_per_voxel_of_the_mask():
    reference = np.zeros((4, 4, 4))
    predicted = reference.copy()
    mask = np.zeros(reference.shape, bool)
    mask[:2] = True
    predicted[0, 0, 0], predicted[3, 3, 3] = 8.0, 8.0  # the second lies outside the mask
    assert score(predicted, reference, mask, {}, 0.04).dose == pytest.approx(16 / 32)


def test_dvh_points_are_those_of_the_challenge():
    gy = np.arange(101.0)
    assert dvh_points(gy, target=True, voxel_cc=0.04) == {"D99": 1.0, "D95": 5.0, "D1": 99.0}
    # 0.1 cm3 are two voxels of 0.04 cm3 (rounded), of 101: the percentile is 100 - 200 / 101.
    found = dvh_points(gy, target=False, voxel_cc=0.04)
    assert found["D0.1cc"] == pytest.approx(np.percentile(gy, 100 - 200 / 101))
    assert found["mean"] == 50.0
    assert dvh_points(gy, target=False, voxel_cc=5.0)["D0.1cc"] == pytest.approx(
        np.percentile(gy, 100 - 100 / 101)
    )


def test_empty_structures_are_left_out_and_every_dvh_point_counts_alike():
    reference = np.full((3, 3, 3), 10.0)
    everywhere, nowhere = np.ones(reference.shape, bool), np.zeros(reference.shape, bool)
    structures = {"PTV70": (True, everywhere), "Larynx": (False, everywhere), "Esophagus": (False, nowhere)}
    one = score(reference + 2.0, reference, everywhere, structures, 0.04)
    assert len(one.dvh) == 5 and set(one.dvh.values()) == {2.0}
    other = Scores(4.0, {("Larynx", "mean"): 8.0})
    assert overall([one, other]) == (3.0, pytest.approx((5 * 2.0 + 8.0) / 6))


def test_an_empty_mask_is_refused():
    with pytest.raises(CaseError, match="possible-dose mask is empty"):
        score(np.zeros((2, 2, 2)), np.zeros((2, 2, 2)), np.zeros((2, 2, 2), bool), {}, 0.04)
