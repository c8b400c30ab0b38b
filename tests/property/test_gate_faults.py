"""Random faults that the gate must see without any goal: raised regions, hot voxels, motions of the dose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage
from small_case import open_arc

from vmat_diffusion.case import Case, Dose, Prescription, Structure
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import load_machine
from vmat_diffusion.qa import GateSettings, Outcome, Verdict, judge
from vmat_diffusion.qa.agreement import Compared, gammas
from vmat_diffusion.qa.dose_points import scale_factor, target_means, voxels
from vmat_diffusion.qa.motion import fitted_motion

GRID = Grid((36, 40, 44), (4.0, 4.0, 4.0), (-86.0, -78.0, -70.0))
MACHINE = replace(load_machine("generic_6mv"), beam=None)
RUNS = range(6)


def phantom() -> Case:
    """A block of tissue in air with a target that no turn maps onto itself, and an organ."""
    x, y, z = np.meshgrid(*GRID.axes_mm, indexing="ij")
    x, y, z = (a.transpose(2, 1, 0) for a in (x, y, z))
    masks = {
        "BODY": (np.abs(x) < 76) & (np.abs(y) < 70) & (np.abs(z) < 62),
        "PTV": (np.abs(x) < 26) & (np.abs(y + 4) < 18) & (np.abs(z) < 22) & ~((x > 4) & (y > 2)),
        "Cord": (np.abs(x - 14) < 7) & (np.abs(y - 14) < 7) & (np.abs(z) < 40),
    }
    roles = {"BODY": "body", "PTV": "target", "Cord": "organ"}
    structures = {name: Structure(name, roles[name], mask) for name, mask in masks.items()}  # type: ignore[arg-type]
    hu = np.where(masks["BODY"], 0.0, -1000.0)
    return Case("block", "test", GRID, hu, structures, Prescription(25, {"PTV": 50.0}))


CASE = phantom()


def planned() -> Dose:
    """50 Gy in the target with a penumbra and a bath around it."""
    ptv = CASE.structures["PTV"].mask.astype(np.float32)
    gy = 42.0 * ndimage.gaussian_filter(ptv, 1.3) + 14.0 * ndimage.gaussian_filter(ptv, 5.0)
    return Dose(GRID, np.where(CASE.body.mask, gy + 1.0, 0.0).astype(np.float32))


def noisy(dose: Dose, rng: np.random.Generator, percent: float = 2.0, common_percent: float = 0.0) -> Dose:
    """The dose as Monte Carlo would find it: the mean of 16 independent doses.

    `common_percent` is noise that voxels within some 4 cm have in common, as the points of one photon do.
    """
    sigma = percent / 100 * np.sqrt(np.maximum(dose.gy, 0.5) * dose.gy.max())
    shape = (16, *GRID.shape)
    common = ndimage.gaussian_filter(rng.normal(0, 1, shape), (0, 4, 4, 4))
    common *= common_percent / 100 / common.std()
    groups = dose.gy + 4.0 * (rng.normal(0, 1, shape) * sigma + common * dose.gy)
    return replace(dose, gy=groups.mean(axis=0).astype(np.float32), std_gy=sigma.astype(np.float32),
                   replicates_gy=groups.astype(np.float32))  # fmt: skip


def verdict_on(dose: Dose, check: Dose) -> Verdict:
    return judge(CASE, None, open_arc(), MACHINE, dose, check=check, settings=GateSettings(grid_mm=4.0))


def moved(dose: Dose, shift_mm: np.ndarray, turn_deg: float, axis: int) -> Dose:
    """The dose after a turn about the x, y or z axis through the origin and a shift."""
    points = GRID.points_mm(np.arange(dose.gy.size)) - shift_mm
    a, b = [(1, 2), (2, 0), (0, 1)][axis]
    c, s = np.cos(np.radians(-turn_deg)), np.sin(np.radians(-turn_deg))
    back = points.copy()
    back[:, a], back[:, b] = c * points[:, a] - s * points[:, b], s * points[:, a] + c * points[:, b]
    gy = ndimage.map_coordinates(dose.gy, GRID.index(back).T, order=3, mode="nearest")
    return replace(dose, gy=gy.reshape(GRID.shape).astype(np.float32).clip(0))


@pytest.mark.parametrize("seed", RUNS)
def test_noise_alone_fails_nothing(seed: int) -> None:
    verdict = verdict_on(planned(), noisy(planned(), np.random.default_rng(seed)))
    assert verdict.passed, [(c.name, c.value, c.why) for c in verdict.checks if not c.passed]


@pytest.mark.parametrize("seed", RUNS)
def test_noise_that_voxels_have_in_common_fails_nothing(seed: int) -> None:
    """3 % of it, which moves regions, means and fits by more than their limits: open, not decided."""
    verdict = verdict_on(planned(), noisy(planned(), np.random.default_rng(500 + seed), 1.5, 3.0))
    assert not verdict.failed, [(c.name, c.value, c.error, c.why) for c in verdict.failed]


@pytest.mark.parametrize("seed", RUNS)
def test_errors_are_those_of_doses_drawn_anew(seed: int) -> None:
    """Of the factor and the mean of the target: the spread over 24 doses, within what 15 degrees allow."""
    rng = np.random.default_rng(600 + seed)
    values: dict[str, list[tuple[float, float]]] = {}
    for _ in range(24):
        pair = Compared.of(CASE, planned(), noisy(planned(), rng, 2.0, 1.0))
        found = scale_factor(pair, GateSettings()) + target_means(CASE, None, pair, GateSettings())
        for check in found:
            assert check.value is not None and check.error is not None
            values.setdefault(check.name, []).append((check.value, check.error))
    for name, rows in values.items():
        value, error = np.array(rows).T
        assert value.std(ddof=1) == pytest.approx(float(np.sqrt(np.mean(error**2))), rel=0.45), name


@pytest.mark.parametrize("seed", RUNS)
def test_wrong_mu_fail_even_where_the_noise_leaves_the_rest_open(seed: int) -> None:
    """5 to 15 % of MU too many or too few, with 3.5 to 6 % of noise; right MU stay inconclusive."""
    rng = np.random.default_rng(seed)
    percent = rng.uniform(3.5, 6.0)
    factor = 1.0 + rng.choice([-1, 1]) * rng.uniform(0.05, 0.15)
    wrong = replace(planned(), gy=planned().gy * np.float32(factor))
    assert "factor between the doses" in {
        c.name for c in verdict_on(planned(), noisy(wrong, rng, percent)).failed
    }
    right = verdict_on(planned(), noisy(planned(), rng, percent))
    (found,) = (c for c in right.checks if c.name == "factor between the doses")
    assert found.passed and found.value is not None and abs(found.value) < 1.0
    assert right.outcome is Outcome.INCONCLUSIVE, [(c.name, c.value) for c in right.checks if not c.passed]


@pytest.mark.parametrize("seed", RUNS)
def test_a_random_region_of_tissue_that_is_raised_fails(seed: int) -> None:
    """Half of the prescription in a box of 5 to 10 cm anywhere in tissue, in either dose."""
    rng = np.random.default_rng(100 + seed)
    box = np.zeros(GRID.shape, bool)
    size = rng.integers(12, 25, 3)
    start = [int(rng.integers(2, n - s - 1)) for n, s in zip(GRID.shape, size, strict=True)]
    box[tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))] = True
    raised = replace(
        planned(), gy=np.where(box & CASE.body.mask, np.maximum(planned().gy, 25.0), planned().gy)
    )
    check = noisy(planned(), rng)
    for verdict in (verdict_on(raised, check), verdict_on(planned(), noisy(raised, rng))):
        assert verdict.failed, "a raised region passes"


@pytest.mark.parametrize("seed", RUNS)
def test_a_hot_voxel_never_raises_the_pass_rate(seed: int) -> None:
    """Whatever is wrong with the plan: a lone voxel, in or out of the body, hides none of it."""
    rng = np.random.default_rng(200 + seed)
    faulty = moved(planned(), rng.uniform(-8, 8, 3), float(rng.uniform(-10, 10)), int(rng.integers(3)))
    check = noisy(planned(), rng)
    settings = GateSettings()
    before = [c.value for c in gammas(Compared.of(CASE, faulty, check), settings)[1]]
    for _ in range(4):
        at = tuple(int(rng.integers(n)) for n in GRID.shape)
        hot = faulty.gy.copy()
        hot[at] = float(rng.uniform(1.3, 10.0)) * float(faulty.gy.max())
        pair = Compared.of(CASE, replace(faulty, gy=hot), check)
        after = [c.value for c in gammas(pair, settings)[1]]
        assert all(a <= b for a, b in zip(after, before, strict=True)), (at, before, after)  # type: ignore[operator]
        assert "highest planned dose" in {c.name for c in verdict_on(replace(faulty, gy=hot), check).failed}


@pytest.mark.parametrize("seed", RUNS)
def test_a_random_motion_of_the_dose_is_found(seed: int) -> None:
    """To 0.3 mm and 0.3 degrees under 2 % noise; from 1.5 mm or 1.5 degrees on it fails the plan."""
    rng = np.random.default_rng(300 + seed)
    shift, axis, turn = rng.uniform(-3, 3, 3), int(rng.integers(3)), float(rng.uniform(-3, 3))
    check = noisy(moved(planned(), shift, turn, axis), rng)
    pair = Compared.of(CASE, planned(), check)
    motion = fitted_motion(
        GRID, pair.planned_gy, check.gy, pair.tissue, (0.0, 0.0, 0.0), reference_gy=pair.reference_gy
    )
    assert motion is not None
    np.testing.assert_allclose(motion.shift_mm, shift, atol=0.3)
    np.testing.assert_allclose(motion.turn_deg, np.eye(3)[axis] * turn, atol=0.3)
    if np.linalg.norm(shift) > 1.5 or abs(turn) > 1.5:
        assert {c.name for c in verdict_on(planned(), check).failed} & {
            "shift between the doses",
            "turn between the doses",
        }


@pytest.mark.parametrize("seed", RUNS)
def test_a_few_damaged_voxels_of_tissue_fail(seed: int) -> None:
    """A voxel, a pair, a line or part of a slice beyond its surroundings, and never above the target."""
    rng = np.random.default_rng(400 + seed)
    check, top = noisy(planned(), rng), float(planned().gy.max())
    highest, lowest = (f(planned().gy, size=7) for f in (ndimage.maximum_filter, ndimage.minimum_filter))
    assert voxels(CASE, Compared.of(CASE, planned(), check), GateSettings())[0].passed
    seen = 0
    while seen < 4:
        size = rng.choice([(1, 1, 1), (1, 1, 2), (12, 1, 1), (1, 1, 15), (1, 9, 9)])
        start = [int(rng.integers(6, n - s - 6)) for n, s in zip(GRID.shape, size, strict=True)]
        box = tuple(slice(a, a + s) for a, s in zip(start, size, strict=True))
        up, down = float(highest[box].min()) + 0.3 * top, float(lowest[box].max()) - 0.3 * top
        if up > 1.1 * top and down < 0:
            continue
        gy = planned().gy.copy()
        gy[box] = up if up <= 1.1 * top else down
        (found,) = voxels(CASE, Compared.of(CASE, replace(planned(), gy=gy), check), GateSettings())
        assert found.fails, (size, start, found)
        seen += 1
