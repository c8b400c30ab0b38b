"""Cases as a network sees them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from training_cases import small_training

from vmat_diffusion.case import Case, Prescription, Structure
from vmat_diffusion.diffusion.encode import Encoding, encode
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
