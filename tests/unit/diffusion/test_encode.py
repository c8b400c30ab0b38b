"""Cases as a network sees them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from training_cases import small_training

from vmat_diffusion.case import Case, Prescription, Structure
from vmat_diffusion.diffusion.encode import DoseGoals, Encoding, encode, with_goals
from vmat_diffusion.geometry import Mask

LEVELS_GY = {"PTV_56": 56.0, "PTV_63": 63.0, "PTV_70": 70.0}


def with_targets(masks: dict[str, Mask]) -> Case:
    case = small_training().case
    others = {n: s for n, s in case.structures.items() if s.role != "target"}
    targets = {n: Structure(n, "target", m) for n, m in masks.items()}
    return replace(case, structures={**others, **targets}, prescription=Prescription(35, LEVELS_GY))


@pytest.mark.parametrize("order", [("PTV_56", "PTV_63", "PTV_70"), ("PTV_70", "PTV_56", "PTV_63")])
def test_nested_targets_are_encoded_as_exclusive_ones(order: tuple[str, ...]) -> None:
    shape = small_training().case.grid.shape
    nested = {name: np.zeros(shape, bool) for name in order}
    for margin, name in enumerate(("PTV_70", "PTV_63", "PTV_56")):
        nested[name][5 - margin : 7 + margin, 12 - margin : 16 + margin, 14 - margin : 20 + margin] = True
    exclusive = {
        "PTV_56": nested["PTV_56"] & ~nested["PTV_63"],
        "PTV_63": nested["PTV_63"] & ~nested["PTV_70"],
        "PTV_70": nested["PTV_70"],
    }
    inside, apart = with_targets(nested), with_targets(exclusive)
    first, second = (encode(case, case.body.mask, Encoding()) for case in (inside, apart))
    np.testing.assert_array_equal(first.volume, second.volume)
    np.testing.assert_array_equal(first.vector, second.vector)


def test_every_number_of_the_vector_lies_where_its_name_says() -> None:
    training, encoding = small_training(right=False), Encoding()
    encoded = encode(training.case, training.possible_dose, encoding)
    asked = with_goals(encoded, DoseGoals({"Parotid_L": 20.0}, {"Larynx": 35.0}), encoding)
    names = encoding.vector_names
    assert len(names) == len(set(names)) == encoding.layout.size == len(encoded.vector)
    found = {name: float(value) for name, value in zip(names, asked.vector, strict=True) if value}
    expected = {"level 1": 1.0, "level 0.8": 0.8, "has Parotid_L": 1.0, "has ct": 1.0}
    expected |= {"spacing x": 1.0, "spacing y": 1.0, "spacing z": 1.25}
    expected |= {"mean Parotid_L": 20 / 70, "mean asked Parotid_L": 1.0}
    expected |= {"hot Larynx": 0.5, "hot asked Larynx": 1.0}
    assert found == pytest.approx(expected)
    np.testing.assert_array_equal(with_goals(asked, DoseGoals(), encoding).vector, encoded.vector)
