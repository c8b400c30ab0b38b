"""CT numbers: what a wrong rescale slope, intercept or scanner does to the peaks of tissue and air."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_case import small_case

from vmat_diffusion.anatomy import synthetic_case
from vmat_diffusion.case import Case
from vmat_diffusion.phantom import PHANTOMS, phantom
from vmat_diffusion.qa.ct_numbers import ct_numbers


def patient() -> Case:
    """The water block with tissue of 40 HU and noise."""
    case = small_case()
    noise = np.random.default_rng(0).normal(0, 15, case.hu.shape)
    return replace(case, hu=np.where(case.body.mask, 40.0, -1000.0) + noise)


@pytest.mark.parametrize("name", PHANTOMS)
def test_the_phantoms_have_plausible_numbers(name: str) -> None:
    check = ct_numbers(phantom(name))
    assert check is not None and check.passed and not check.warns


@pytest.mark.parametrize("site", ["head_neck", "lung", "prostate"])
def test_synthetic_patients_have_plausible_numbers(site: str) -> None:
    check = ct_numbers(synthetic_case(site, 4, spacing_mm=(5.0, 5.0, 6.0)))
    assert check is not None and not check.warns, check.why


@pytest.mark.parametrize(
    ("slope", "offset"),
    [
        *((1.0, offset) for offset in (1024.0, -1024.0, 200.0, -250.0)),
        *((slope, 0.0) for slope in (1.15, 0.8, 0.1)),
    ],
)
def test_a_wrong_slope_or_intercept_is_a_warning(slope: float, offset: float) -> None:
    """Stored values count from -1024 HU, as scanners write them."""
    case = patient()
    wrong = replace(case, hu=(case.hu + 1024.0) * slope - 1024.0 + offset)
    check = ct_numbers(wrong)
    assert check is not None and check.passed and check.warns
    assert "check rescale slope, intercept and calibration" in check.why


def test_sound_numbers_are_said() -> None:
    check = ct_numbers(patient())
    assert check is not None and not check.warns
    assert check.why == "soft tissue peaks at 40 HU"  # its air is but a rim


@pytest.mark.parametrize(("slope", "offset"), [(1.1, 0.0), (0.9, 0.0), (1.0, 1000.0), (1.0, -60.0)])
def test_air_that_is_not_at_minus_1000_is_a_warning(slope: float, offset: float) -> None:
    """Even where soft tissue is water, at 0 HU, which no slope changes."""
    case = phantom("tg119_cshape")
    check = ct_numbers(replace(case, hu=case.hu * slope + offset * (case.hu < -500)))
    assert check is not None and check.warns and "air outside" in check.why
