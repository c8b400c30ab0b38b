"""Runs of the Monte Carlo engine that are looked at, interrupted, and go on."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_case import open_arc, small_case

from vmat_diffusion.case import Dose
from vmat_diffusion.dose.engines import deciding
from vmat_diffusion.dose.monte_carlo import MonteCarlo
from vmat_diffusion.dose.monte_carlo.tallies import GROUPS, Tallies, read_tallies, run_key, write_tallies
from vmat_diffusion.dose.pencil_beam import PencilBeam
from vmat_diffusion.dose.tissue import dose_grid
from vmat_diffusion.machine import load_machine

MACHINE = load_machine("generic_6mv")
CASE = small_case()
GRID = dose_grid(CASE, 8.0)
# Reached with some rounds on 8 mm.
ENGINE = MonteCarlo(MACHINE, uncertainty=0.03)


def dose_of(engine: object) -> Dose:
    return engine(open_arc(), CASE, GRID)  # type: ignore[operator, no-any-return]


def test_the_parts_of_a_dose_have_its_mean_and_its_noise() -> None:
    dose = dose_of(ENGINE)
    parts = dose.replicates_gy
    assert parts is not None and parts.shape == (GROUPS, *GRID.shape)
    np.testing.assert_allclose(parts.mean(axis=0), dose.gy, rtol=1e-4, atol=1e-4)
    assert dose.std_gy is not None
    high = dose.gy > 0.5 * dose.gy.max()
    spread = parts.std(axis=0, ddof=1)[high] / np.sqrt(GROUPS)
    # A standard deviation of 16 is 1.7 % low in the mean; 10 % are three sigma of some 100 voxels.
    assert spread.mean() == pytest.approx(0.983 * dose.std_gy[high].mean(), rel=0.1)


def test_a_run_goes_on_until_a_look_finds_the_dose_good_enough() -> None:
    looks: list[int] = []

    def enough(dose: Dose) -> float:
        looks.append(int(dose.provenance["histories"]))  # type: ignore[call-overload]
        return 3.0 if len(looks) < 3 else 1.0

    dose = dose_of(deciding(ENGINE, enough))
    assert dose.provenance["histories"] == looks[-1] and len(looks) == 3
    steps = np.diff(looks) / looks[:-1]
    assert (steps > 0).all() and (steps < 0.5 + 16 * 5000 / looks[0]).all()
    # A look does not change what is computed.
    assert dose_of(deciding(ENGINE, lambda dose: 0.0)).gy.tobytes() == dose_of(ENGINE).gy.tobytes()


def test_a_run_that_nothing_satisfies_gives_up_and_leaves_its_tallies(tmp_path: Path) -> None:
    kept, looks = tmp_path / "tallies.npz", []

    def never(dose: Dose) -> float:
        looks.append(int(dose.provenance["histories"]))  # type: ignore[call-overload]
        return 100.0

    dose_of(deciding(ENGINE, never, kept))
    assert 4 * looks[0] <= looks[-1] < 7 * looks[0] and kept.is_file()
    dose_of(deciding(ENGINE, lambda dose: 1.0, kept))
    assert not kept.is_file()


@pytest.mark.parametrize("how", ["time", "Ctrl-C"])
def test_interrupted_and_continued_is_uninterrupted_byte_for_byte(tmp_path: Path, how: str) -> None:
    kept, looked = tmp_path / "tallies.npz", []

    def third_look(dose: Dose) -> float:
        looked.append(dose)
        return 2.0 if len(looked) < 3 else 1.0

    whole = dose_of(deciding(ENGINE, third_look))
    first = MonteCarlo(MACHINE, uncertainty=0.03, max_seconds=1e-3 if how == "time" else None)

    def interrupt(stage: str, fraction: float, note: str) -> None:
        if how == "Ctrl-C":
            os.kill(os.getpid(), signal.SIGINT)

    looked.clear()
    part = deciding(first, third_look, kept)(open_arc(), CASE, GRID, progress=interrupt)
    assert part.provenance["histories"] < whole.provenance["histories"] and kept.is_file()  # type: ignore[operator]
    continued = dose_of(deciding(ENGINE, third_look, kept))
    assert len(looked) == 3 and not kept.is_file()
    assert continued.gy.tobytes() == whole.gy.tobytes()
    for name in ("std_gy", "replicates_gy"):
        assert getattr(continued, name).tobytes() == getattr(whole, name).tobytes()
    assert continued.provenance["histories"] == whole.provenance["histories"]


def test_tallies_of_another_run_are_not_gone_on_with(tmp_path: Path) -> None:
    file = tmp_path / "tallies.npz"
    rng = np.random.default_rng(0)
    tallies = replace(Tallies.empty(50), batches=32, photons=7, first_look=32, next_look=48, seconds=1.5)
    tallies.groups_mev[:, 10:] = rng.random((GROUPS, 40))
    tallies.square_mev2[10:] = rng.random(40)
    write_tallies(file, tallies, "a")
    back = read_tallies(file, "a")
    assert back is not None and back.seconds == 1.5
    assert (back.batches, back.photons, back.first_look, back.next_look) == (32, 7, 32, 48)
    np.testing.assert_array_equal(back.groups_mev, tallies.groups_mev)
    np.testing.assert_array_equal(back.square_mev2, tallies.square_mev2)
    assert read_tallies(file, "b") is None and read_tallies(tmp_path / "none.npz", "a") is None
    file.write_bytes(file.read_bytes()[:100])
    assert read_tallies(file, "a") is None


def test_the_key_of_a_run_tells_every_input_apart() -> None:
    one = np.arange(3.0)
    keys = {
        run_key(one, 1),
        run_key(one, 2),
        run_key(one.astype(np.float32), 1),
        run_key((one, one), 1),
        run_key(one, one, 1),
        run_key(one + 1e-9, 1),
    }
    assert len(keys) == 6 and run_key(one, 1) == run_key(np.arange(3.0), 1)


def test_an_engine_that_is_sure_is_not_asked() -> None:
    engine = PencilBeam(MACHINE)
    assert deciding(engine, lambda dose: 5.0) is engine
