"""What noise decides: standard errors from the parts of a dose, what is undecided, how much is needed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from small_case import open_arc

from vmat_diffusion.case import Case, Dose, Prescription, Structure
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import load_machine
from vmat_diffusion.qa import Decision, GateSettings, Outcome, judge, with_way_on
from vmat_diffusion.qa.agreement import Compared
from vmat_diffusion.qa.dose_points import dose_points, in_tissue, regions, target_means
from vmat_diffusion.qa.motion import fitted_motion
from vmat_diffusion.qa.verdict import bounded, computing_needed

GRID = Grid((24, 26, 28), (4.0, 4.0, 4.0), (-54.0, -50.0, -46.0))
MACHINE = replace(load_machine("generic_6mv"), beam=None)
SETTINGS = GateSettings(grid_mm=4.0)


def block() -> Case:
    """A target and an organ in a block of water."""
    x, y, z = (a.transpose(2, 1, 0) for a in np.meshgrid(*GRID.axes_mm, indexing="ij"))
    masks = {
        "BODY": np.ones(GRID.shape, bool),
        "PTV": (np.abs(x) < 20) & (np.abs(y) < 16) & (np.abs(z) < 18),
        "Cord": (np.abs(x) < 8) & (np.abs(y - 26) < 6),
    }
    roles = {"BODY": "body", "PTV": "target", "Cord": "organ"}
    structures = {n: Structure(n, roles[n], m) for n, m in masks.items()}  # type: ignore[arg-type]
    return Case("block", "test", GRID, np.zeros(GRID.shape), structures, Prescription(25, {"PTV": 50.0}))


CASE = block()
PTV = CASE.structures["PTV"].mask.astype(np.float32)
PLANNED = Dose(
    GRID,
    (40 * ndimage.gaussian_filter(PTV, 1.5) + 15 * ndimage.gaussian_filter(PTV, 5) + 1).astype(np.float32),
)


def noisy(seed: int, percent: float = 2.0, common_percent: float = 1.0, factor: float = 1.0) -> Dose:
    """The planned dose times a factor, with noise of voxels and noise that neighbours have in common."""
    rng, shape = np.random.default_rng(seed), (16, *GRID.shape)
    common = ndimage.gaussian_filter(rng.normal(0, 1, shape), (0, 3, 3, 3))
    noise = percent * rng.normal(0, 1, shape) + common_percent * common / common.std()
    parts = PLANNED.gy * (factor + 0.04 * noise)
    sigma = 0.01 * math.hypot(percent, common_percent) * PLANNED.gy
    return Dose(
        GRID,
        parts.mean(axis=0).astype(np.float32),
        std_gy=sigma.astype(np.float32),
        provenance={"seconds": 60.0},
        replicates_gy=parts.astype(np.float32),
    )


@pytest.mark.parametrize(
    ("value", "error", "least", "outcome"),
    [
        (1.9, 0.5, False, "pass"),
        (2.1, 0.1, False, "undecided"),
        (-2.1, 0.1, False, "undecided"),
        (2.3, 0.1, False, "fail"),
        (2.1, None, False, "fail"),
        (None, None, False, "fail"),
        (2.02, 0.03, False, "fail"),  # more computing would not be asked for
        (97.9, 0.1, True, "undecided"),
        (97.7, 0.1, True, "fail"),
        (98.1, 0.1, True, "pass"),
    ],
)
def test_a_value_beyond_its_limit_by_noise_is_undecided(
    value: float | None, error: float | None, least: bool, outcome: str
) -> None:
    limit = 98.0 if least else 2.0
    assert bounded("x", value, limit, "%", "because", error=error, least=least).word == outcome


def test_how_much_more_is_needed_grows_as_the_square() -> None:
    assert computing_needed(1.0, 0.4, 2.0) == 1.0  # far away
    assert computing_needed(0.0, 0.04, 2.0) == 1.0  # errors too small to matter
    assert computing_needed([1.0, np.nan], [0.1, 0.1], 2.0) == np.inf
    assert computing_needed([1.0, 1.0], [0.1, np.nan], 2.0) == np.inf
    assert computing_needed(0.4, 0.4, 2.0) == pytest.approx(4.0)
    assert computing_needed([1.0, 0.4, -0.4], [0.4, 0.4, 0.6], 2.0) == pytest.approx(9.0)
    assert bounded("x", 1.6, 2.0, "mm", "", error=0.4).needs == pytest.approx(4.0)


def test_errors_hold_what_neighbours_have_in_common() -> None:
    """Of a region by all its doses, without halving the grid; errors of independent voxels are far lower."""
    pair = Compared.of(CASE, PLANNED, noisy(1))
    (region,) = regions(pair, SETTINGS)
    assert pair.check.replicates_gy is not None
    each = [in_tissue(gy, pair, 12.0) for gy in pair.check.replicates_gy]
    errors = 100 * np.std(each, axis=0, ddof=1) / 4 / pair.reference_gy
    difference = in_tissue(pair.check.gy - pair.planned_gy, pair, 12.0)
    at = np.unravel_index(np.argmax(np.abs(difference)), GRID.shape)
    assert region.error == pytest.approx(errors[at], rel=0.15)
    alone = Compared.of(CASE, PLANNED, noisy(1, common_percent=0.0))
    assert regions(alone, SETTINGS)[0].error < 0.3 * region.error  # type: ignore[operator]


def test_errors_of_means_points_and_motion_are_their_spread() -> None:
    """Over 30 doses with other noise each; a spread of 30 is known to 13 %, an error of 16 parts to 18 %."""
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in range(30):
        pair = Compared.of(CASE, PLANNED, noisy(seed, factor=0.975))
        rows = [*target_means(CASE, None, pair, SETTINGS), *dose_points(CASE, pair, SETTINGS)]
        for check in rows:
            if check.error is not None and check.value is not None:
                found.setdefault(check.name, []).append((check.value, check.error))
        motion = fitted_motion(
            GRID, pair.planned_gy, pair.check.gy, pair.tissue, (0, 0, 0), reference_gy=pair.reference_gy,
            replicates_gy=pair.check.replicates_gy,
        )  # fmt: skip
        assert motion is not None and motion.length_error_mm is not None
        found.setdefault("shift", []).append((max(motion.shift_mm, key=abs), motion.shift_sigma_mm))
    assert {"mean dose of PTV", "D95%, D98%, D2% of targets", "shift"} <= set(found)
    for name in ("mean dose of PTV", "D95%, D98%, D2% of targets"):
        value, error = np.array(found[name]).T
        assert value.std(ddof=1) == pytest.approx(error.mean(), rel=0.5), name
    shift, error = np.array(found["shift"]).T
    assert 0.5 * error.mean() < np.sqrt(np.mean(shift**2)) < 2.5 * error.mean()


def test_a_decision_needs_what_its_most_uncertain_check_needs() -> None:
    def needs(check: Dose) -> float:
        return Decision(CASE, None, open_arc(), MACHINE, PLANNED, SETTINGS).needs(check)

    quiet = noisy(3, percent=1.0, common_percent=0.2)
    assert needs(quiet) == 1.0
    assert needs(noisy(3, percent=5.0, common_percent=0.2)) > 3.0
    # 2.05 % too much: on one side of the limit or the other, by less than two errors.
    near = noisy(3, percent=1.0, common_percent=2.0, factor=1.0205)
    assert needs(near) > 1.0
    # 6 % too much is decided, however noisy the rest.
    assert needs(noisy(3, percent=1.0, common_percent=2.0, factor=1.06)) == 1.0


def test_what_noise_leaves_open_is_no_verdict_and_says_what_to_do() -> None:
    for seed in range(20):
        check = noisy(seed, percent=1.0, common_percent=2.0, factor=1.022)
        verdict = judge(CASE, None, open_arc(), MACHINE, PLANNED, check=check, settings=SETTINGS)
        mean = next(c for c in verdict.checks if c.name == "mean dose of PTV")
        if mean.undecided:
            break
    assert mean.undecided and verdict.outcome is Outcome.INCONCLUSIVE and not verdict.passed
    assert "2 standard errors" in mean.why and "needed: begin again with --check-minutes" in mean.why
    kept = next(c for c in with_way_on(verdict, "go on with this").checks if c.name == mean.name)
    assert "needed: go on with this, or begin again with --check-minutes" in kept.why
    assert mean.record()["error"] == pytest.approx(mean.error, abs=1e-4)
    assert verdict.correctable  # the engines differ by about what a correction is for
