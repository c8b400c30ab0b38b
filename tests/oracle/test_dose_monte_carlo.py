"""The pencil beam against EGSnrc doses of the same phantom, beam and spectrum, no factor fitted."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from vmat_diffusion.case import Dose
from vmat_diffusion.dicom import read_plan
from vmat_diffusion.evaluate.gamma import gamma
from vmat_diffusion.plan import Arc
from vmat_diffusion.qa.reference_doses import (
    ReferenceCase,
    central_axis,
    compare,
    pencil_beam_engine,
    read_reference_case,
)

WATER = ("water_3x3", "water_5x5", "water_10x10", "water_10x10_ssd100", "water_20x20")
EXIT_MM = 20.0


def read(shared_data: Path, name: str) -> ReferenceCase:
    folder = shared_data / "reference_dose" / name
    if not (folder / "case.json").is_file():
        pytest.skip(f"test data absent: reference_dose/{name}")
    return _read(folder)


@lru_cache(maxsize=3)
def _read(folder: Path) -> ReferenceCase:
    return read_reference_case(folder, read_plan)


def rate(reference: Dose, evaluated: Dose, percent: float, mm: float) -> float:
    """Global gamma above 10 % of the maximum, no allowance for noise, in percent."""
    found = gamma(reference, evaluated, dose_percent=percent, distance_mm=mm, max_gamma=1.1, sigmas=0.0)
    assert found.points > 1000
    return found.pass_percent


def rates(case: ReferenceCase) -> tuple[float, float]:
    """3 %/3 mm and 2 %/2 mm."""
    result = compare(case, *pencil_beam_engine()(case), 0.0, rate)
    assert result.gamma_3_3 is not None and result.gamma_2_2 is not None
    return result.gamma_3_3, result.gamma_2_2


@pytest.mark.parametrize("name", [*WATER, "static_oblique_cylinder"])
def test_water_passes_gamma(shared_data: Path, name: str) -> None:
    """Measured: 99.5 % and more at both criteria."""
    at_3, at_2 = rates(read(shared_data, name))
    assert at_3 >= 99 and at_2 >= 98


@pytest.mark.slow
def test_two_clinical_arcs(shared_data: Path) -> None:
    """Measured: 100.0 % and 99.9 %."""
    at_3, at_2 = rates(read(shared_data, "vmat_cshape_cylinder"))
    assert at_3 >= 99 and at_2 >= 98


def test_lung_slab_passes_gamma(shared_data: Path) -> None:
    """Measured: 99.2 % at 3 %/3 mm, 92.2 % at 2 %/2 mm."""
    at_3, at_2 = rates(read(shared_data, "lung_slab_10x10"))
    assert at_3 >= 95 and at_2 >= 90


def axis_percent(case: ReferenceCase) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Depth, difference on the axis in percent of the maximum, and its sigma."""
    gy, _ = pencil_beam_engine()(case)
    top = float(np.sort(case.dose, axis=None)[-20:].mean())
    return central_axis(case, 100 * (gy - case.dose) / top, 100 * case.sigma / top)


@pytest.mark.parametrize("name", WATER)
def test_axis_in_water_within_1_5_percent(shared_data: Path, name: str) -> None:
    """Beyond build-up and up to 20 mm before the exit, where the reference misses backscatter.

    The reference's own noise is allowed for with two sigma, 1.2 for neighbours that are correlated.
    """
    depth, difference, sigma = axis_percent(read(shared_data, name))
    judged = (depth > 15) & (depth < depth[-1] - EXIT_MM)
    assert judged.sum() > 40
    assert np.all(np.abs(difference[judged]) < 1.5 + 2 * 1.2 * sigma[judged])
    # Noise averages out: the level, absolute as it is, has no such allowance.
    assert abs(np.average(difference[judged], weights=sigma[judged] ** -2)) < 0.6


def test_axis_through_a_lung_slab(shared_data: Path) -> None:
    """Lung from 50 to 130 mm: 1.3 % of the maximum too high within, right behind it."""
    case = read(shared_data, "lung_slab_10x10")
    depth, difference, sigma = axis_percent(case)
    lung = (depth > 60) & (depth < 135)
    behind = (depth > 145) & (depth < depth[-1] - EXIT_MM)
    assert 0 < difference[lung].mean() < 2.0
    assert abs(difference[behind].mean()) < 0.5
    assert np.all(np.abs(difference[depth > 15]) < 2.0 + 2 * 1.2 * sigma[depth > 15])


# --- mistakes of geometry


def mirrored(arc: Arc) -> Arc:
    """Banks mistaken for one another: X1 read as X2."""
    return replace(arc, leaves_mm=np.sort(-arc.leaves_mm, axis=1))


MISTAKES = {
    "collimator sign": lambda arc: replace(arc, collimator_deg=-arc.collimator_deg),
    "gantry sign": lambda arc: replace(arc, gantry_deg=-arc.gantry_deg),
    "banks": mirrored,
    "leaf order": lambda arc: replace(arc, leaves_mm=arc.leaves_mm[:, :, ::-1]),
    "head to feet": lambda arc: replace(
        arc, gantry_deg=-arc.gantry_deg, collimator_deg=arc.collimator_deg + 180
    ),
}


def mistaken(case: ReferenceCase, mistake: str) -> float:
    wrong = replace(case.plan, arcs=tuple(MISTAKES[mistake](arc) for arc in case.plan.arcs))
    return rates(replace(case, plan=wrong))[0]


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_each_mistake_in_the_static_field_is_seen(shared_data: Path, mistake: str) -> None:
    assert mistaken(read(shared_data, "static_oblique_cylinder"), mistake) < 70


@pytest.mark.slow
@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_each_mistake_in_the_arcs_is_seen(shared_data: Path, mistake: str) -> None:
    assert mistaken(read(shared_data, "vmat_cshape_cylinder"), mistake) < 70
