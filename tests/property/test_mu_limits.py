"""What holds for limits of MU and leaf motion: lower never costs more, and one that is not active is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from small_case import small_case

from vmat_diffusion.case import Case
from vmat_diffusion.evaluate.goals import GoalSheet, fit_to_case, load_goals
from vmat_diffusion.machine import load_machine
from vmat_diffusion.optimize import Optimized, Settings, optimize
from vmat_diffusion.workflow.planning.request import plan_settings, with_asked_delivery
from vmat_diffusion.workflow.planning.search import optimizer_settings

SHEET = "tg119_cshape_easy"
# One coarse arc and a tenth of the search: some three seconds for each plan.
QUICK = Settings(effort=0.1, arcs=1, spacing_deg=6.0, grid_mm=6.0, max_minutes=None)
# The same search ends this far off itself where it takes another way.
NOISE = 0.02
FAR_MU_PER_GY, FAR_MM_PER_DEG = 1e5, 1e4


@pytest.fixture(scope="module")
def case() -> Case:
    return small_case()


@pytest.fixture(scope="module")
def sheet(case: Case) -> GoalSheet:
    """The goals on dose alone."""
    return replace(fit_to_case(load_goals(SHEET), case), delivery=())


@pytest.fixture(scope="module")
def searched(case: Case, sheet: GoalSheet) -> Callable[..., Optimized]:
    """Searches a plan with changed settings, each only once."""
    machine, made = load_machine("generic_6mv"), {}

    def search(**changes: float | None) -> Optimized:
        key = tuple(sorted(changes.items()))
        if key not in made:
            made[key] = optimize(case, sheet, machine, settings=replace(QUICK, **changes))
        return made[key]

    return search


def assert_same(found: Optimized, other: Optimized) -> None:
    """Bit by bit."""
    for a, b in zip(found.plan.arcs, other.plan.arcs, strict=True):
        for name in ("leaves_mm", "jaws_mm", "mu", "gantry_deg"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    np.testing.assert_array_equal(found.dose.gy, other.dose.gy)


@pytest.mark.slow
def test_a_lower_limit_never_gives_more_mu(searched: Callable[..., Optimized]) -> None:
    mu = [searched(mu_per_gy=limit).plan.total_mu for limit in (None, 250.0, 180.0, 140.0)]
    for looser, stricter in pairwise(mu):
        assert stricter <= (1 + NOISE) * looser, mu
    # The limits are felt, so that this was worth a test.
    assert mu[-1] < 0.8 * mu[0]


@pytest.mark.slow
def test_a_limit_that_is_not_active_changes_nothing(searched: Callable[..., Optimized]) -> None:
    assert_same(searched(mu_per_gy=FAR_MU_PER_GY), searched(mu_per_gy=None))
    assert_same(searched(leaf_mm_per_deg=FAR_MM_PER_DEG), searched(leaf_mm_per_deg=None))


def test_a_plan_with_the_caps_off_is_that_of_no_caps(
    case: Case, sheet: GoalSheet, searched: Callable[..., Optimized]
) -> None:
    """Through the options of `plan`, for a sheet that has limits of its own."""
    machine = load_machine("generic_6mv")
    off = plan_settings(
        goals=SHEET,
        mu_per_gy="off",
        leaf_mm_per_deg="off",
        open_gap_mm="off",
        edge_per_mm="off",
        beam_on_s="off",
    )
    asked = with_asked_delivery(fit_to_case(load_goals(SHEET), case), off)
    assert asked.delivery == ()
    own = optimizer_settings(off, asked, machine)
    assert (own.mu_per_gy, own.leaf_mm_per_deg) == (None, None)
    assert own.seconds_per_turn == Settings().seconds_per_turn
    quick = replace(QUICK, mu_per_gy=own.mu_per_gy, leaf_mm_per_deg=own.leaf_mm_per_deg)
    assert_same(optimize(case, asked, machine, settings=quick), searched(mu_per_gy=None))
