"""Changes that are known by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vmat_diffusion.benchmark.openkbp.steering import steering_result, steering_table
from vmat_diffusion.benchmark.settings import SteeringRequest

SHAPE = (4, 5, 6)


def _structures() -> dict[str, tuple[bool, np.ndarray]]:
    masks = np.zeros((3, *SHAPE), bool)
    masks[0, 0], masks[1, 1], masks[2, 2:] = True, True, True
    return {"Parotid_L": (False, masks[0]), "Larynx": (False, masks[1]), "PTV_70": (True, masks[2])}


def _result(parotid: float, larynx: float, target: float, way: str = "told"):
    free = np.full(SHAPE, 30.0, np.float32)
    found = free.copy()
    found[0] += parotid
    found[1] += larynx
    found[2:] += target
    return steering_result(
        way, SteeringRequest("Parotid_L", -5.0), free=free, found=found, structures=_structures()
    )


def test_changes_are_against_the_free_prediction() -> None:
    found = _result(-4.0, 1.0, -0.5)
    assert found.free_gy == 30.0
    assert found.mean_gy == {"Parotid_L": -4.0, "Larynx": 1.0}
    assert found.d95_gy == {"PTV_70": -0.5}


def test_each_way_has_a_row() -> None:
    rows = steering_table([_result(-4, 1, -0.5), _result(-2, 0, 0.5), _result(-5, 0, 0, "pulled")])
    assert [row.way for row in rows] == ["told", "pulled"]
    assert rows[0].achieved_gy.value == pytest.approx(-3.0)
    assert (rows[0].achieved_gy.low, rows[0].achieved_gy.high) == (-4.0, -2.0)
    assert rows[0].other_organs_gy.value == pytest.approx(0.5)
    assert rows[0].d95_gy["PTV_70"].value == pytest.approx(0.0)
    assert rows[1].d95_gy["PTV_70"].patients == 1
