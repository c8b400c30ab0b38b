from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_case import small_case

from vmat_diffusion.case import Case, Structure
from vmat_diffusion.dataset.variation import fitting_sheets
from vmat_diffusion.dataset.wishes import (
    OrganWish,
    Setting,
    Wish,
    apply_setting,
    apply_wish,
    draw_beams,
    draw_setting,
    draw_wish,
    wished_organs,
)


def _neck() -> Case:
    """The small case with two levels and an organ that the head and neck sheet names."""
    case = small_case()
    masks = {n: case.structures[n].mask for n in ("PTV", "Core")}
    lower = np.zeros_like(masks["PTV"])
    lower[13:15, 9:15, 9:15] = True
    structures = {
        "BODY": case.body,
        "PTV_70": Structure("PTV_70", "target", masks["PTV"]),
        "PTV_56": Structure("PTV_56", "target", lower),
        "Parotid_L": Structure("Parotid_L", "organ", masks["Core"]),
    }
    return replace(case, site="head_neck", structures=structures, prescription=None)


def _wish(**organ: float | None) -> Wish:
    asked = OrganWish(**{"sheet": None, "mean": None, "hot": None, "sparing": 0.1, **organ})  # type: ignore[arg-type]
    return Wish(
        {"Parotid_L": asked}, goals=1.0, coverage=1.0, hot=1.0, tissue=1.0, roughness=1.0, normalized=0.98
    )


def test_draws_repeat_and_differ() -> None:
    sheets = fitting_sheets(_neck())
    settings = [draw_setting(np.random.default_rng(k), sheets, _neck()) for k in (0, 0, *range(1, 60))]
    assert settings[0] == settings[1]
    kinds = {s.beams.kind for s in settings}
    assert kinds == {"nine fields", "full arc", "partial arc"}
    lower = [s.levels_gy.get("PTV_56") for s in settings if s.goals == "head_neck_70_63_56"]
    assert None in lower and 56.0 in lower and len(set(lower)) > 4
    assert all("PTV_70" in s.levels_gy for s in settings if s.goals == "head_neck_70_63_56")
    wishes = [draw_wish(np.random.default_rng(k), ["Parotid_L", "Larynx"]) for k in (0, 0, 1)]
    assert wishes[0] == wishes[1] != wishes[2]


def test_beams_are_those_of_their_kind() -> None:
    case = _neck()
    for seed in range(40):
        beams = draw_beams(np.random.default_rng(seed), case)
        gaps = np.diff(np.unwrap(np.deg2rad(beams.gantry_deg)))
        if beams.kind == "nine fields":
            assert beams.gantry_deg == tuple(range(0, 360, 40))
        else:
            np.testing.assert_allclose(np.rad2deg(gaps), 10.0)
            count = len(beams.gantry_deg)
            assert count == 36 if beams.kind == "full arc" else 18 <= count <= 32
            # The front of a patient without a side is among the directions.
            assert min(min(a, 360 - a) for a in beams.gantry_deg) <= 5.0


def test_a_level_that_is_lower_or_left_out_takes_its_goals_along() -> None:
    case = _neck()
    beams = draw_beams(np.random.default_rng(0), case)
    both, sheet = apply_setting(
        Setting("head_neck_70_63_56", {"PTV_70": 70.0, "PTV_56": 54.0}, beams, 0), case
    )
    assert both.prescription is not None and both.prescription.target_gy == {"PTV_70": 70.0, "PTV_56": 54.0}
    goal = next(g for g in sheet.goals if str(g).startswith("PTV_56 D95%"))
    assert goal.limit == pytest.approx(54.0) and goal.variation == pytest.approx(50.4 * 54 / 56, abs=0.01)
    one, sheet = apply_setting(Setting("head_neck_70_63_56", {"PTV_70": 70.0}, beams, 0), case)
    assert one.prescription is not None and one.prescription.target_gy == {"PTV_70": 70.0}
    assert not [g for g in sheet.goals if g.structure == "PTV_56"]
    _, sheet = apply_setting(Setting("head_neck_70_63_56", {"PTV_56": 56.0}, beams, 0), case)
    assert str(sheet.normalization) == "PTV_56 D95% = 56 Gy"


def test_an_organ_is_asked_for_by_the_sheet_by_its_dose_or_not_at_all() -> None:
    beams = draw_beams(np.random.default_rng(0), _neck())
    setting = Setting("head_neck_70_63_56", {"PTV_70": 70.0, "PTV_56": 56.0}, beams, 0)
    case, sheet = apply_setting(setting, _neck())
    assert wished_organs(sheet, case) == ("Parotid_L",)
    without = {("Parotid_L", "mean"): 40.0, ("Parotid_L", "D0.1cc"): 60.0}

    def asked(wish: Wish) -> dict[str, float]:
        made, pairs = apply_wish(wish, sheet, without)
        assert [str(now) for _, now in pairs] == [str(g) for g in made.goals]
        assert "BODY-PTVs" in {g.structure for g in made.goals}
        assert made.normalization.gy == pytest.approx(0.98 * 70)
        return {g.statement: g.limit for g in made.goals if g.structure == "Parotid_L"}

    assert asked(_wish()) == {}
    assert asked(_wish(sheet=0.5)) == {"mean <= 13 Gy": 13.0}
    assert asked(_wish(mean=0.5, hot=0.8)) == {"mean <= 20 Gy": 20.0, "D0.1cc <= 48 Gy": 48.0}
