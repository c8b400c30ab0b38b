"""What the gate says of beams that pass what the CT does not hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cut_patients import patient
from small_case import open_arc

from vmat_diffusion.case import Structure
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.plan import Plan
from vmat_diffusion.qa.field_of_view import beams_beyond_ct, supports_in_beam


@pytest.fixture(scope="module")
def machine() -> Machine:
    return load_machine("generic_6mv")


def arc(first: float, last: float) -> Plan:
    plan = open_arc()
    one = replace(plan.arcs[0], gantry_deg=np.linspace(first, last, len(plan.arcs[0].gantry_deg)))
    return replace(plan, arcs=(one,))


def test_only_beams_through_the_cut_are_named(machine: Machine) -> None:
    cut, whole = patient(left_mm=140.0), patient()
    assert beams_beyond_ct(whole, arc(60, 120), machine) == []
    assert beams_beyond_ct(cut, arc(190, 330), machine) == []
    (said,) = beams_beyond_ct(cut, arc(1, 179), machine)
    assert "the CT ends 140 mm from the isocentre at gantry" in said and "up to 100 % of the beam" in said
    (still,) = beams_beyond_ct(cut, arc(90, 90), machine)
    assert "at gantry 90, where" in still and "100.0 % of the whole plan" in still


def test_coarse_control_points_make_one_sector(machine: Machine) -> None:
    (said,) = beams_beyond_ct(patient(left_mm=140.0), arc(2, 92), machine)
    first, last = (float(w) for w in said.split("gantry ")[1].split(",")[0].split(" to "))
    assert 55 < first < 70 and last >= 90


def test_prone_and_feet_first_beams_are_named_from_the_other_side(machine: Machine) -> None:
    for position, gantry in (("HFP", 270.0), ("FFS", 270.0), ("FFP", 90.0)):
        case = patient(left_mm=140.0, position=position)
        plan = replace(arc(gantry, gantry), patient_position=position)
        assert beams_beyond_ct(case, plan, machine)
        assert not beams_beyond_ct(
            case, replace(arc(gantry + 180, gantry + 180), patient_position=position), machine
        )


def test_a_target_at_the_last_slice_is_named(machine: Machine) -> None:
    case = patient()
    moved = replace(case.structures["PTV"], mask=np.roll(case.structures["PTV"].mask, -19, axis=0))
    low = replace(case, structures={**case.structures, "PTV": moved})
    (said,) = beams_beyond_ct(low, arc(60, 120), machine)
    assert said.startswith("PTV lies 4 mm from the lower end of the CT")
    assert beams_beyond_ct(low, arc(60, 120), machine, ["PTV_60"]) == []


def test_a_plan_with_other_leaves_is_no_error(machine: Machine) -> None:
    plan = arc(60, 120)
    one = replace(plan.arcs[0], leaves_mm=plan.arcs[0].leaves_mm[:, :, :40])
    assert beams_beyond_ct(patient(left_mm=140.0), replace(plan, arcs=(one,)), machine) == []


def test_a_couch_beside_the_body_is_named_where_beams_pass_it(machine: Machine) -> None:
    case = patient()
    assert supports_in_beam(case, arc(182, 178), machine) == []
    y = case.grid.axes_mm[1]
    mask = np.zeros(case.grid.shape, bool)
    mask[:, (y > 115) & (y < 130)] = True
    couch = replace(
        case, structures={**case.structures, "CouchSurface": Structure("CouchSurface", "other", mask)}
    )
    assert supports_in_beam(couch, arc(300, 420), machine) == []
    (said,) = supports_in_beam(couch, arc(182, 258), machine)
    assert "pass CouchSurface: no dose here" in said and said.split("gantry ")[1].startswith("182 to 2")
    organ = replace(
        couch, structures={**case.structures, "CouchSurface": Structure("CouchSurface", "organ", mask)}
    )
    assert supports_in_beam(organ, arc(182, 258), machine) == []
