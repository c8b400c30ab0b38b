"""Tables of scores whose entries are known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vmat_diffusion.benchmark.openkbp.tables import (
    DoseScores,
    PatientScores,
    dose_scores,
    gain,
    headline,
    structure_table,
    subgroups,
)
from vmat_diffusion.evaluate.openkbp import score


def _scores(dose: float, **dvh: float) -> DoseScores:
    points = {name: {"D95": value} for name, value in dvh.items()}
    zeros = dict.fromkeys(points, 0.0)
    return DoseScores(dose, points, 1.0, zeros, zeros)


def _patient(name: str, way: DoseScores, **features: object) -> PatientScores:
    about = {"has_ct": True, "target_cc": 100.0, "target_levels": 3, "missing_organs": 0} | features
    return PatientScores(name, ways={"regression": way}, **about)  # type: ignore[arg-type]


def test_differences_by_structure_are_signed_and_absolute():
    reference = np.zeros((3, 3, 3))
    predicted = reference.copy()
    inside = np.zeros(reference.shape, bool)
    inside[0] = True
    predicted[0], predicted[0, 0], predicted[2] = 6.0, -12.0, 3.0
    structures = {"PTV_70": (True, inside), "Larynx": (False, ~inside)}
    everywhere = np.ones(reference.shape, bool)
    found = dose_scores(
        score(predicted, reference, everywhere, structures, 0.1), predicted, reference, structures
    )
    assert found.structure_mae == {"PTV_70": pytest.approx(8.0), "Larynx": pytest.approx(1.5)}
    assert found.structure_bias == {"PTV_70": pytest.approx(0.0), "Larynx": pytest.approx(1.5)}
    assert found.mae == pytest.approx(6.0)  # only six voxels have more than 5 Gy
    assert set(found.dvh) == {"PTV_70", "Larynx"}


def test_every_dvh_point_counts_alike_however_few_a_patient_has():
    patients = [
        _patient("a", _scores(2.0, PTV_70=1.0, Larynx=2.0, Brainstem=3.0)),
        _patient("b", _scores(4.0, PTV_70=9.0)),
    ]
    found = headline(patients, "regression")
    assert found["dose"].value == 3.0
    assert found["dvh"].value == pytest.approx(15 / 4)
    assert "gamma" not in found
    assert structure_table(patients, "regression")["PTV_70"]["D95"].value == 5.0
    assert structure_table(patients, "regression")["Larynx"]["D95"].patients == 1


def test_gain_is_positive_where_the_scores_are_lower():
    one = PatientScores(
        "a",
        True,
        1.0,
        1,
        0,
        {"regression": _scores(3.0, PTV_70=2.0), "mean": _scores(2.5, PTV_70=3.0)},
    )
    found = gain([one], "mean", "regression")
    assert (found["dose"].value, found["dvh"].value) == (0.5, -1.0)


def test_subgroups_hold_each_patient_once_per_division():
    rng = np.random.default_rng(0)
    patients = [
        _patient(
            str(k),
            _scores(1.0, PTV_70=1.0),
            has_ct=k % 4 > 0,
            target_cc=float(rng.uniform(50, 900)),
            missing_organs=k % 5,
            target_levels=1 + k % 3,
        )
        for k in range(30)
    ]
    sizes = {name: len(members) for name, members in subgroups(patients).items()}
    assert sizes["with CT"] == 22 and sizes["without CT"] == 8
    assert [n for name, n in sizes.items() if "cm3" in name] == [10, 10, 10]
    assert sum(n for name, n in sizes.items() if "missing" in name) == 30
    assert [n for name, n in sizes.items() if "level" in name] == [10, 10, 10]
