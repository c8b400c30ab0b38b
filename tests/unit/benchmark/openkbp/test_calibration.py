"""Calibration of samples whose law is known."""

from __future__ import annotations

import numpy as np
import pytest

from vmat_diffusion.benchmark.openkbp.calibration import FACTORS, coverage, fit_spread, reliability, spread_of

SHAPE = (20, 40, 40)
EVERYWHERE = np.ones(SHAPE, bool)


def _spread(rng: np.random.Generator, *, claimed: float = 1.0, samples: int = 8, std_gy: float = 2.0):
    """Truth and samples are draws around one regression; the samples' law is `claimed` times as wide."""
    base = np.full(SHAPE, 40.0)
    base[:, :, :4] = 1.0  # not in doubt
    truth = base + rng.normal(0, std_gy, SHAPE)
    drawn = [base + claimed * rng.normal(0, std_gy, SHAPE) for _ in range(samples)]
    target = np.zeros(SHAPE, bool)
    target[5:8, 10:20, 10:20] = True
    structures = {"PTV_70": (True, target), "Larynx": (False, np.roll(target, 10, axis=2))}
    return spread_of(truth, base, drawn, possible_dose=EVERYWHERE, structures=structures, voxel_cc=0.04)


@pytest.mark.parametrize("samples", [3, 8])
def test_bands_of_the_true_law_hold_what_they_say(samples: int) -> None:
    found = coverage([_spread(np.random.default_rng(0), samples=samples)])
    for level, expected in (("50%", 0.5), ("80%", 0.8), ("90%", 0.9)):
        # 28,800 voxels: a standard error of 0.3 % at most.
        assert found[level]["voxels"].value == pytest.approx(expected, abs=0.01)


def test_the_factor_that_widens_a_narrow_law_is_found() -> None:
    rng = np.random.default_rng(1)
    spreads = [_spread(rng, claimed=0.4) for _ in range(3)]
    assert coverage(spreads)["90%"]["voxels"].value < 0.6
    factor = fit_spread(spreads)
    # The mean of 8 samples has a noise of its own, which the band's root of 1 + 1/8 takes for a wider one.
    assert factor == pytest.approx(np.sqrt((1 + 0.4**2 / 8) / (0.4**2 * (1 + 1 / 8))), rel=0.02)
    others = [_spread(rng, claimed=0.4) for _ in range(3)]
    for level, expected in (("50%", 0.5), ("90%", 0.9)):
        assert coverage(others, factor)[level]["voxels"].value == pytest.approx(expected, abs=0.02)
    assert fit_spread([_spread(rng, claimed=0.01)]) is None


def test_a_width_that_is_known_counts_as_a_factor() -> None:
    rng = np.random.default_rng(2)
    base = np.full(SHAPE, 40.0)
    truth = base + rng.normal(0, 2, SHAPE)
    drawn = [base + rng.normal(0.5, 1, SHAPE) for _ in range(5)]
    factor = FACTORS[20]
    one, wide = (
        spread_of(
            truth,
            base,
            drawn,
            possible_dose=EVERYWHERE,
            structures={"a": (True, EVERYWHERE)},
            voxel_cc=0.04,
            widened=(f, 1.0),
        )
        for f in (1.0, factor)
    )
    for level in ("50%", "80%", "90%"):
        assert coverage([one], factor)[level]["voxels"].value == coverage([wide])[level]["voxels"].value
        assert coverage([one])[level]["dvh"].value == coverage([wide])[level]["dvh"].value
    assert coverage([wide])["90%"]["voxels"].value > coverage([one])["90%"]["voxels"].value + 0.1


def test_reliability_puts_error_beside_spread_bin_by_bin() -> None:
    rng = np.random.default_rng(3)
    bins = reliability([_spread(rng, samples=30, std_gy=0.7), _spread(rng, samples=30, std_gy=2.5)])
    assert sum(b["voxels"] for b in bins) == 2 * 20 * 40 * 36
    for narrow, wide in ((0.5, 1.0), (2.0, 3.0)):
        found = next(b for b in bins if (b["from"], b["to"]) == (narrow, wide))
        true = 0.7 if wide == 1.0 else 2.5
        assert found["rms"] == pytest.approx(true * np.sqrt(1 + 1 / 30), rel=0.03)
        assert found["mae"] == pytest.approx(found["rms"] * np.sqrt(2 / np.pi), rel=0.03)


def test_one_sample_has_no_spread() -> None:
    with pytest.raises(ValueError, match="at least 2 are needed"):
        spread_of(
            np.zeros(SHAPE),
            np.zeros(SHAPE),
            [np.zeros(SHAPE)],
            possible_dose=EVERYWHERE,
            structures={},
            voxel_cc=0.04,
        )


def test_where_no_voxel_is_in_doubt_nothing_is_said() -> None:
    low = np.ones(SHAPE)
    none = spread_of(
        low,
        low,
        [low, low + 1],
        possible_dose=EVERYWHERE,
        structures={"a": (True, EVERYWHERE)},
        voxel_cc=0.04,
    )
    assert none.voxels == 0
    assert coverage([none]) is None and fit_spread([none]) is None and reliability([none]) == []
