"""Pencils in water, tissue against water, and the off-axis ratio as kernels see it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from vmat_diffusion.dose.pencil_beam.beam_tables import (
    blurred_ratio,
    by_depth,
    kerma_ratios,
    kernel_sigma_mm,
    mixtures,
    off_axis,
)
from vmat_diffusion.dose.pencil_beam.kernels import electron_pencil, photon_pencil, water_attenuation_mm
from vmat_diffusion.dose.tissue import MEDIA, electron_density
from vmat_diffusion.machine import BeamModel, load_machine

GRAY_CM2_PER_MEV_CM2_PER_G = 1.602176634e-10
# NIST (Hubbell and Seltzer), water: attenuation without coherent scatter and energy absorption in cm2/g.
NIST_WATER = {1.0: (0.0707, 0.03103), 2.0: (0.0494, 0.02608), 4.0: (0.0340, 0.02066), 6.0: (0.0277, 0.01806)}
# Half the range of the mean electron set free, in cm.
CARRIED_CM = {1.0: 0.06, 2.0: 0.2, 4.0: 0.5, 6.0: 0.9}


def one_energy(energy_mev: float) -> tuple[NDArray, NDArray, NDArray]:
    """Depth, primary and scatter dose integrated over the plane, in MeV/g per photon per cm2."""
    pencil = photon_pencil(np.array([energy_mev]), np.array([1.0]))
    total = (part.sum(axis=1) / GRAY_CM2_PER_MEV_CM2_PER_G for part in (pencil.primary, pencil.scatter))
    return (pencil.depth_mm, *total)


# --- pencils


def test_a_spectrum_is_the_sum_of_its_energies() -> None:
    energy, number = np.array([0.4, 1.7, 5.0]), np.array([3.0, 2.0, 1.0])
    mixed = photon_pencil(energy, number)
    alone = [photon_pencil(np.array([e]), np.array([7.0])) for e in energy]
    for name in ("primary", "scatter"):
        summed = sum(n / 6 * getattr(p, name) for n, p in zip(number, alone, strict=True))
        assert np.allclose(getattr(mixed, name), summed, rtol=1e-12, atol=0)


def test_energies_between_those_of_the_data_lie_between_them() -> None:
    """At 3.2 MeV, whose neighbours are 3 and 4: dose between theirs, and near the mean in ln E."""
    at = [one_energy(e)[1][10:] for e in (3.0, 3.2, 4.0)]
    assert np.all((at[0] < at[1]) & (at[1] < at[2]))


@pytest.mark.parametrize("energy_mev", sorted(NIST_WATER))
def test_attenuation_of_water_is_nist_s(energy_mev: float) -> None:
    found = 10 * water_attenuation_mm(np.array([energy_mev]))[0]
    assert found == pytest.approx(NIST_WATER[energy_mev][0], rel=0.005)


@pytest.mark.parametrize("energy_mev", sorted(NIST_WATER))
def test_primary_dose_is_collision_kerma_beyond_the_build_up(energy_mev: float) -> None:
    """Electrons carry the dose of a place x further on, so that it is exp(mu x) above the kerma there."""
    depth, primary, _ = one_energy(energy_mev)
    attenuation, absorption = NIST_WATER[energy_mev]
    carried = np.exp(attenuation * CARRIED_CM[energy_mev])
    expected = energy_mev * absorption * np.exp(-attenuation * depth / 10) * carried
    deep = (depth > 40) & (depth < 300)
    assert np.allclose(primary[deep], expected[deep], rtol=0.01)


@pytest.mark.parametrize("energy_mev", [0.5, 1.0, 2.0, 4.0, 6.0])
def test_scatter_s_share_grows_with_depth_and_falls_with_energy(energy_mev: float) -> None:
    depth, primary, scatter = one_energy(energy_mev)
    share = scatter / (primary + scatter)
    at = np.interp([15.0, 50.0, 100.0, 200.0, 300.0], depth, share)
    assert np.all(np.diff(at) > 0)
    harder = np.divide(*np.array(one_energy(1.5 * energy_mev))[[2, 1]])
    assert np.interp(100.0, depth, harder) < np.interp(100.0, depth, scatter / primary)


def test_scatter_is_wider_than_primary_dose() -> None:
    pencil = photon_pencil(np.array([2.0]), np.array([1.0]))
    variance = [np.interp(100.0, pencil.depth_mm, part @ pencil.sigma_mm**2 / part.sum(axis=1))
                for part in (pencil.primary, pencil.scatter)]  # fmt: skip
    assert variance[1] > 100 * variance[0]


def test_contaminant_electrons_end_within_their_range() -> None:
    """Electrons of 2 MeV reach 10 mm of water (ESTAR: CSDA range 9.8 mm); bremsstrahlung is left."""
    depth = photon_pencil(np.array([1.0]), np.array([1.0])).depth_mm
    dose = electron_pencil(np.array([2.0]), np.array([1.0])).sum(axis=1)
    assert np.interp(14.0, depth, dose) < 0.02 * dose.max()
    given = np.trapezoid(dose, depth / 10) / GRAY_CM2_PER_MEV_CM2_PER_G
    assert given == pytest.approx(2.0, rel=0.1)


def test_beyond_the_data_dose_falls_on_and_before_them_it_does_not_turn_negative() -> None:
    nodes, primary, _ = mixtures(load_machine("generic_6mv").require_beam())
    depth = np.array([0.0, nodes[-2], nodes[-1], nodes[-1] + 100])
    total = by_depth(depth, nodes, primary.weight).sum(axis=1)
    assert total[0] > 0
    slope = np.log(total[1] / total[2]) / (depth[2] - depth[1])
    assert np.log(total[2] / total[3]) / 100 == pytest.approx(slope, rel=0.05)


@pytest.mark.parametrize("name", ["generic_6mv", "generic_6fff", "point_source"])
def test_widths_ascend_and_the_narrowest_holds_the_focal_spot(name: str) -> None:
    beam = load_machine(name).require_beam()
    sigma = kernel_sigma_mm(beam)
    assert np.all(np.diff(np.log(sigma)) > np.log(2))
    assert sigma[0] > beam.focal_sigma_mm * (beam.sad_mm / beam.collimator_mm - 1)


# --- tissue


# Z / A in mol/g: water 0.5551; the others by their composition in data/media.csv (ICRU 44).
ELECTRONS_PER_GRAM = {"lung": 0.5496, "adipose": 0.5585, "bone_cortical": 0.5213, "air": 0.4992}
DENSITY = {"lung": 0.26, "adipose": 0.95, "bone_cortical": 1.85, "air": 0.0012}


@pytest.mark.parametrize("name", sorted(ELECTRONS_PER_GRAM))
def test_electron_density_is_that_of_the_composition(name: str) -> None:
    found = electron_density(np.array([1.0, DENSITY[name]]))
    assert found[0] == 1
    assert found[1] == pytest.approx(DENSITY[name] * ELECTRONS_PER_GRAM[name] / 0.5551, rel=5e-4)


@pytest.mark.parametrize("name", ["lung", "adipose"])
def test_dose_to_tissue_follows_its_electrons_where_compton_scattering_rules(name: str) -> None:
    """At 2 MeV kerma goes with electrons per gram, but for pair production: within 0.5 %."""
    ratio = kerma_ratios(np.array([2.0]), np.array([1.0]))
    assert ratio[MEDIA.index("water")] == 1
    assert ratio[MEDIA.index(name)] == pytest.approx(ELECTRONS_PER_GRAM[name] / 0.5551, rel=0.005)


def test_bone_takes_more_dose_from_soft_photons_and_less_from_hard_ones() -> None:
    """Calcium absorbs soft photons; at 2 MeV bone has fewer electrons per gram than water: 0.939."""
    soft, hard = (kerma_ratios(np.array([e]), np.ones(1))[MEDIA.index("bone_cortical")] for e in (0.1, 2.0))
    assert soft > 1.5
    assert hard == pytest.approx(ELECTRONS_PER_GRAM["bone_cortical"] / 0.5551, rel=0.006)


# --- off the axis


def plain(**changed: object) -> BeamModel:
    """A source even in the plane and without softening, but for `changed`."""
    radius = np.arange(0.0, 501.0, 5.0)
    even = {"angular": "uniform_in_plane", "horn_radius_mm": tuple(radius)}
    cosine = 1 / np.sqrt(1 + (radius / 1000.0) ** 2)
    return replace(load_machine("point_source").require_beam(), **even, horn=tuple(cosine), **changed)


def test_a_constant_ratio_stays_constant_under_every_kernel() -> None:
    beam = plain()
    radius = np.array([0.0, 40, 120, 200])[:, None]
    assert np.allclose(off_axis(beam, radius)[0], 1, atol=1e-4)
    assert np.allclose(blurred_ratio(beam, radius, np.array([1.0, 10, 40, 100]), 200.0), 1, atol=2e-3)


def test_a_narrow_kernel_sees_the_ratio_of_its_place() -> None:
    beam, radius = load_machine("generic_6mv").require_beam(), np.arange(0.0, 200.0, 8.0)
    found = blurred_ratio(beam, radius, np.array(0.1), 200.0)
    assert np.allclose(found, off_axis(beam, radius)[0], rtol=2e-3)


def test_a_quadratic_ratio_rises_by_twice_the_variance() -> None:
    """The mean of 1 + a r^2 over a Gaussian at radius R is 1 + a (R^2 + 2 sigma^2)."""
    beam, a = plain(), 4e-6
    square = np.asarray(beam.horn_radius_mm) ** 2
    beam = replace(beam, horn=tuple(np.asarray(beam.horn) * (1 + a * square)))
    for sigma in (8.0, 23.0, 52.0):
        radius = np.array([0.0, 40.0, 100.0])
        found = blurred_ratio(beam, radius, np.array(sigma), 1e6)
        assert np.allclose(found, 1 + a * (radius**2 + 2 * sigma**2), atol=1e-3)


def test_a_kernel_sees_no_further_than_the_field() -> None:
    """On the axis of a small field a wide kernel collects only the ratio around the middle."""
    beam = load_machine("generic_6mv").require_beam()
    narrow, wide = (float(blurred_ratio(beam, np.zeros(1), np.array(80.0), r)[0]) for r in (10.0, 200.0))
    assert abs(narrow - 1) < 0.005 < abs(wide - 1)


def test_softening_lowers_dose_and_makes_depth_count_more() -> None:
    beam = plain(softening_per_mm2=6e-6)
    ratio, hardness = off_axis(beam, np.array([0.0, 100.0, 200.0]))
    assert ratio[0] == pytest.approx(1) and hardness[0] == pytest.approx(1)
    assert np.all(np.diff(ratio) < 0) and np.all(np.diff(hardness) > 0)
