"""Monte Carlo against EGSnrc doses of the same phantom, beam and spectrum, without any fitted factor."""

import numpy as np
import pytest
from water import field, tank

from vmat_diffusion.dicom import read_plan
from vmat_diffusion.dose import PencilBeam, dose_grid
from vmat_diffusion.dose.monte_carlo import MonteCarlo
from vmat_diffusion.errors import InputError
from vmat_diffusion.machine import load_machine
from vmat_diffusion.qa.reference_doses import (
    central_axis,
    compare,
    monte_carlo_engine,
    read_reference_case,
    reference_check,
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["water_10x10", "water_5x5", "water_3x3", "lung_slab_10x10"])
def test_central_axis_agrees_with_egsnrc(shared_data, name):
    case = read_reference_case(shared_data / "reference_dose" / name)
    gy, sigma_gy = monte_carlo_engine(uncertainty=0.02, max_seconds=120)(case)
    top = float(np.sort(case.dose, axis=None)[-20:].mean())
    difference = 100 * (gy - case.dose) / top
    noise = 100 * np.hypot(sigma_gy, case.sigma) / top
    depth, axis, sigma = central_axis(case, difference, noise)
    beyond = depth > 15
    # 1 % is the requirement; 4 sigma for the largest of some fifty depths, 1.2 for correlated neighbours.
    assert np.all(np.abs(axis[beyond]) < 1.0 + 4 * 1.2 * sigma[beyond])
    # The reference's absolute level is good to 0.5 %.
    assert abs(np.average(axis[beyond], weights=sigma[beyond] ** -2)) < 0.7


@pytest.mark.slow
def test_plan_dose_agrees_with_egsnrc(shared_data):
    case = read_reference_case(shared_data / "reference_dose" / "vmat_cshape_cylinder", read_plan)
    gy, _ = monte_carlo_engine(uncertainty=0.02, max_seconds=60)(case)
    high = case.dose > 0.5 * case.dose.max()
    assert gy[high].sum() / case.dose[high].sum() == pytest.approx(1.0, abs=0.01)


def test_the_reference_compared_with_itself_has_no_difference(shared_data):
    case = read_reference_case(shared_data / "reference_dose" / "water_5x5")
    result = compare(case, case.dose, case.sigma, 0.0)
    assert (result.mean_diff_pct, result.max_diff_pct, result.cax_diff_pct) == (0.0, 0.0, 0.0)


def test_a_folder_without_cases_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no case"):
        reference_check(tmp_path, monte_carlo_engine())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "side_mm"), [("generic_6mv", 40), ("generic_6mv", 100), ("generic_6fff", 200)]
)
def test_both_engines_give_an_open_field_the_same_dose(name, side_mm):
    """The pencil beam is fitted to scans; Monte Carlo starts from the same head by other means."""
    machine, water = load_machine(name), tank(depth_mm=320.0, half_mm=160.0)
    half = side_mm / 2
    plan = field(machine, (-half, half, -half, half))
    grid = dose_grid(water, 8.0)
    fast = PencilBeam(machine)(plan, water, grid)
    slow = MonteCarlo(machine, uncertainty=0.01, max_seconds=60)(plan, water, grid)
    x, y, z = grid.axes_mm
    core = np.ix_(np.abs(z) < 0.3 * side_mm, (y > 20) & (y < 250), np.abs(x) < 0.3 * side_mm)
    sigma = np.sqrt((slow.std_gy[core] ** 2).sum()) / slow.gy[core].sum()
    assert sigma < 0.002
    # Output factors of the pencil beam are within 1 % of the scans; its five Gaussians within 0.6 %.
    assert slow.gy[core].sum() / fast.gy[core].sum() == pytest.approx(1.0, abs=0.012)
