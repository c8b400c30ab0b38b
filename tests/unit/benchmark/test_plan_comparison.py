"""A plan against the clinical dose: matching by scaling, criteria, tables over patients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from openkbp_files import BOXES, VOXEL_MM, arrays

from vmat_diffusion.benchmark.plan_comparison import (
    CHALLENGE_LIMITS_GY,
    Criterion,
    JudgedDose,
    PlanComparison,
    compare_plan,
    criteria_shares,
    criteria_table,
    d95_difference,
    metric_table,
    organ_change,
    organ_changes_percent,
)
from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dataset.openkbp import GOALS, NAMES, OpenKbpPatient, training_case
from vmat_diffusion.errors import PlanError
from vmat_diffusion.evaluate.goals import GoalSheet, fit_to_case, load_goals


@pytest.fixture(scope="module")
def case() -> Case:
    """A patient with all ten structures, in a tenth of the volume's voxels."""
    parts = arrays()
    masks = {NAMES[n]: (parts["structures"] >> k & 1).astype(bool) for k, n in enumerate(NAMES)}
    masks["PTV_63"][54:62, 62:68, 66:74] = True
    masks["Esophagus"][64:70, 60:66, 80:90] = True
    masks["Bone_Mandible"][48:52, 56:72, 44:50] = True
    possible = np.ones_like(masks["PTV_70"])
    patient = OpenKbpPatient("pt_1", parts["ct"], None, masks, possible, VOXEL_MM)
    return training_case(patient).case


@pytest.fixture(scope="module")
def sheet(case: Case) -> GoalSheet:
    return fit_to_case(load_goals(GOALS), case)


def uniform(case: Case, **gy: float) -> Dose:
    """A dose of so many Gy in each structure, 0 elsewhere."""
    values = np.zeros(case.grid.shape, np.float32)
    for name, level in gy.items():
        values[case.structures[name].mask] = level
    return Dose(case.grid, values)


CLINICAL = {"PTV_70": 70.0, "PTV_63": 63.0, "PTV_56": 57.0, "Parotid_L": 30.0, "Parotid_R": 20.0}
CLINICAL |= {"Brainstem": 52.0, "SpinalCord": 44.0, "Larynx": 40.0, "Esophagus": 30.0, "Bone_Mandible": 60.0}
assert "PTV70" in BOXES


def test_the_plan_is_scaled_until_its_coverage_is_the_clinical_one(case: Case, sheet: GoalSheet) -> None:
    planned = {name: 0.8 * gy for name, gy in CLINICAL.items()} | {"Parotid_L": 16.0}
    found = compare_plan(uniform(case, **planned), uniform(case, **CLINICAL), case, sheet)
    assert found.target == "PTV_70"
    assert found.factor == pytest.approx(1.25) and found.d95_percent == pytest.approx(-20.0)
    assert found.planned.points["PTV_70"]["D95"] == pytest.approx(56.0)
    assert found.matched.points["PTV_70"]["D95"] == pytest.approx(70.0)
    assert found.matched.points["Parotid_L"]["mean"] == pytest.approx(20.0)
    assert found.clinical.points["Parotid_L"] == pytest.approx({"mean": 30.0, "D0.1cc": 30.0})
    assert organ_changes_percent(found)["Parotid_L"] == pytest.approx(-100 / 3)
    assert organ_changes_percent(found)["Larynx"] == pytest.approx(0.0, abs=1e-4)


def test_an_organ_of_almost_no_clinical_dose_is_no_share(case: Case, sheet: GoalSheet) -> None:
    low = CLINICAL | {"Esophagus": 0.9, "Larynx": 1.1}
    changes = organ_changes_percent(
        compare_plan(uniform(case, **CLINICAL), uniform(case, **low), case, sheet)
    )
    assert "Esophagus" not in changes and changes["Larynx"] > 3000


def test_criteria_are_those_of_the_challenge_and_of_the_sheet(case: Case, sheet: GoalSheet) -> None:
    planned = CLINICAL | {"Parotid_L": 25.0, "Brainstem": 49.0, "SpinalCord": 46.0}
    found = compare_plan(uniform(case, **planned), uniform(case, **CLINICAL), case, sheet)
    labels = set(found.matched.criteria)
    # Ten of the challenge, nineteen of the sheet; both name the targets' D99. The parotids are a group.
    assert len(labels) == 26 and set(found.clinical.criteria) == labels
    assert len(CHALLENGE_LIMITS_GY) == 10
    changed = {
        label
        for label in labels
        if found.matched.criteria[label].met is not found.clinical.criteria[label].met
    }
    assert changed == {
        "Parotid_L mean <= 26 Gy",
        "Brainstem D0.1cc <= 50 Gy",
        "SpinalCord D0.1cc <= 45 Gy",
        "SpinalCord D0.03cc <= 45 Gy",
    }
    assert found.clinical.criteria["Parotid_L mean <= 26 Gy"] == Criterion(pytest.approx(30.0), False)
    # 46 Gy are within the sheet's variation of 48 Gy, which does not meet the goal.
    assert not found.matched.criteria["SpinalCord D0.03cc <= 45 Gy"].met


def test_a_target_without_dose_cannot_be_matched(case: Case, sheet: GoalSheet) -> None:
    with pytest.raises(PlanError, match=r"PTV_70 D95 is 0\.00 Gy in the plan and 70\.00 Gy"):
        compare_plan(uniform(case, Larynx=3.0), uniform(case, **CLINICAL), case, sheet)


def made_up(parotid: float, *, met: tuple[bool, bool, bool] = (True, False, True)) -> PlanComparison:
    """A comparison with one target and one organ."""

    def judged(mean: float, keeps: bool) -> JudgedDose:
        points = {"PTV_70": {"D95": 66.0}, "Parotid_L": {"mean": mean, "D0.1cc": 50.0}}
        return JudgedDose(points, {"Parotid_L mean <= 26 Gy": Criterion(mean, keeps)})

    return PlanComparison(
        "PTV_70", 1.0, parotid, judged(parotid, met[1]), judged(parotid, met[0]), judged(20.0, met[2])
    )


def test_tables_over_patients() -> None:
    compared = [made_up(16.0), made_up(18.0), made_up(25.0, met=(False, False, True))]
    pair = metric_table(compared)["Parotid_L"]["mean"]
    assert (pair.a, pair.b, pair.difference.value) == (18.0, 20.0, -2.0)
    # Ranks of -4, -2, 5 are 2, 1, 3.
    assert pair.effect == pytest.approx(0.0)
    assert metric_table(compared)["PTV_70"]["D95"].p is None
    change = organ_change(compared)
    assert change is not None and change.value == pytest.approx(-10.0)
    assert d95_difference(compared).value == 18.0
    count = criteria_table(compared)["Parotid_L mean <= 26 Gy"]
    assert (count.patients, count.matched, count.planned, count.clinical) == (3, 2, 0, 3)
    shares = criteria_shares(compared)
    assert shares["matched"].value == pytest.approx(200 / 3)
    assert (shares["planned"].value, shares["clinical"].value) == (0.0, 100.0)


def test_an_organ_without_clinical_dose_has_no_change() -> None:
    one = made_up(16.0)
    bare = replace(one.clinical, points={**one.clinical.points, "Parotid_L": {"mean": 0.0, "D0.1cc": 0.0}})
    assert organ_change([replace(one, clinical=bare)]) is None
    assert organ_change([replace(one, clinical=bare), one]).patients == 1  # type: ignore[union-attr]
