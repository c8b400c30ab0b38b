"""Curves of the page are the histograms of the report."""

from __future__ import annotations

import numpy as np
import pytest
from viewed_run import noisy, shaped_case, shaped_dose

from vmat_diffusion.case import Dose
from vmat_diffusion.evaluate.dvh import structure_dvh
from vmat_diffusion.web.view import masks
from vmat_diffusion.web.view.histograms import AXIS_STEP_GY, curves
from vmat_diffusion.web.view.masks import packed

CASE = shaped_case()
DOSE = shaped_dose(CASE)


@pytest.mark.parametrize("name", ["PTV_60", "SpinalCord", "BODY"])
def test_a_curve_is_the_histogram_of_the_whole_mask(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "_SLAB_VOXELS", 3000)  # several parts
    structure = CASE.structures[name]
    small = packed(structure)
    assert small is not None
    found, dvh = curves(small, CASE.grid, DOSE), structure_dvh(DOSE, structure, CASE.grid)
    axis = AXIS_STEP_GY * np.arange(len(found["percent"]))
    np.testing.assert_allclose(found["percent"], dvh.volume_at_dose_percent(axis), atol=6e-4)
    assert found["percent"][0] == 100 and found["percent"][-1] == 0
    for key, value in {
        "min_gy": dvh.min_gy,
        "mean_gy": dvh.mean_gy,
        "max_gy": dvh.max_gy,
        "d95_gy": dvh.dose_at_percent_gy(95),
        "volume_cc": dvh.volume_cc,
    }.items():
        assert found[key] == pytest.approx(value, abs=1e-3)


def test_parts_counted_one_after_the_other_make_the_curves_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small, dose = packed(CASE.structures["BODY"]), noisy(DOSE)
    assert small is not None
    whole = curves(small, CASE.grid, dose)
    monkeypatch.setattr(masks, "_SLAB_VOXELS", 3000)
    assert len(list(small.slabs(CASE.grid))) > 5
    parts = curves(small, CASE.grid, dose)
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, atol=0.02, err_msg=name)
        assert np.shape(parts[name]) == np.shape(value)


def test_the_band_is_one_standard_error_to_both_sides() -> None:
    small = packed(CASE.structures["PTV_60"])
    assert small is not None
    std = np.full(DOSE.gy.shape, 0.5, np.float32)
    found = curves(small, CASE.grid, Dose(DOSE.grid, DOSE.gy, std))
    middle, shift = found["percent"], round(0.5 / AXIS_STEP_GY)
    # The dose falls to nowhere near 0 in the target, so that every voxel moves by the whole half Gy.
    np.testing.assert_allclose(
        found["low"][100 : len(found["low"]) - 1], middle[100 + shift :][: len(found["low"]) - 101], atol=0.6
    )
    np.testing.assert_allclose(
        found["high"][100 + shift : len(middle)], middle[100 : len(middle) - shift], atol=0.6
    )
    assert "low" not in curves(small, CASE.grid, DOSE)
    assert "low" in curves(small, CASE.grid, noisy(DOSE))
