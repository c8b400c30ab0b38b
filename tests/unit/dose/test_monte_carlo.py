"""Monte Carlo engine: media, sources, limits and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest

from vmat_diffusion.dose.delivery import Exposures
from vmat_diffusion.dose.monte_carlo.engine import Phantom, simulate
from vmat_diffusion.dose.monte_carlo.source import Openings, frames, photon_source, plan_openings
from vmat_diffusion.dose.tissue import MEDIA, attenuation, media, medium_of
from vmat_diffusion.errors import CaseError, MachineError
from vmat_diffusion.machine import load_machine


def static_openings(box_mm):
    zero = np.zeros(1)
    return Openings(
        np.array([box_mm], float), np.ones(1), np.zeros(1, np.int64), frames(zero, zero, zero, "HFS")
    )


def test_water_attenuation_is_that_of_xcom():
    # NIST XCOM, water, total with coherent: cm2/g at 0.1, 1, 6 and 10 MeV; interpolation adds 0.3 %.
    total = attenuation(media()[0], np.array([0.1, 1.0, 6.0, 10.0])).sum(axis=1)
    np.testing.assert_allclose(total, [0.1707, 0.07072, 0.02770, 0.02219], rtol=3e-3)


def test_water_stopping_power_and_range_are_those_of_estar():
    water = media()[0]
    for energy, total, reach in ((1.0, 1.862, 0.4367), (10.0, 2.149, 4.975)):
        loss = np.interp(energy, water.electron_mev, water.collision + water.radiative)
        assert loss == pytest.approx(total, rel=2e-3)
        assert np.interp(energy, water.electron_mev, water.range_g_cm2) == pytest.approx(reach, rel=3e-3)


def test_media_follow_the_density_bands():
    names = [MEDIA[i] for i in medium_of(np.array([0.0012, 0.3, 0.95, 1.0, 1.04, 1.2, 1.8, 4.5]))]
    assert names == [
        "air",
        "lung",
        "adipose",
        "water",
        "soft_tissue",
        "bone_soft",
        "bone_cortical",
        "titanium",
    ]


def test_phantom_of_wrong_shape_is_refused():
    with pytest.raises(CaseError, match="does not fit"):
        Phantom(
            np.arange(4.0), np.arange(4.0), np.arange(4.0), np.ones((3, 3, 2)), np.zeros((3, 3, 2), np.uint8)
        )


def exposure(leaf_gap_mm, jaws):
    rows = len(load_machine("generic_6mv").row_edges_mm()) - 1
    leaves = np.zeros((1, 2, 2, rows))
    leaves[:, :, 1] = leaf_gap_mm
    zero = np.zeros(1)
    return Exposures(zero, zero, zero, leaves, np.tile(np.array(jaws, float), (1, 2, 1)), np.array([100.0]))


def test_openings_hold_the_gap_offset_and_the_transmission():
    machine = load_machine("generic_6mv")
    openings = plan_openings(exposure(20.0, [-50, 50, -50, 50]), machine)
    photons = (openings.area_cm2 * openings.fluence).sum() / 100.0
    gap = 2.0 + machine.mlc.gap_offset_mm / 10
    assert photons == pytest.approx(10 * (gap + machine.mlc.transmission * (10 - gap)), rel=1e-9)


def test_a_plan_behind_closed_jaws_is_refused():
    with pytest.raises(MachineError, match="no photons"):
        plan_openings(exposure(20.0, [0, 0, 0, 0]), load_machine("generic_6mv"))


def test_dose_falls_with_the_square_of_distance_in_thin_air():
    # In air of 0.0012 g/cm3 nothing attenuates over 40 cm; a wide field gives dose in proportion to fluence.
    edges = np.array([-100.0, 100.0])
    along = np.array([-200.0, -190.0, 190.0, 200.0])
    medium = np.full((1, 3, 1), MEDIA.index("air"), np.uint8)
    phantom = Phantom(edges, along, edges, np.full((1, 3, 1), 0.0012), medium)
    source = load_machine("point_source").require_beam()
    # 0.1 MeV: electrons stay where they are set free, so there is no build-up in the box.
    source = replace(source, spectrum_low_mev=0.0999, spectrum_upper_mev=(0.1,), spectrum_number=(1.0,))
    beam = photon_source(static_openings([-300, 300, -300, 300, -300, 300]), source, (0.0, 0.0, 0.0), 1000.0)
    gy = simulate(phantom, beam, uncertainty=1e-9, max_histories=64000, split=2000).gy[0, :, 0]
    assert gy[2] / gy[0] == pytest.approx((805.0 / 1195.0) ** 2, rel=0.06)  # 3 sigma
