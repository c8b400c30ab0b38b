"""Errors of the jaws that the doses show, whichever way they stand wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_case import open_arc, small_case

from vmat_diffusion.dose.pencil_beam import PencilBeam
from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import Plan
from vmat_diffusion.qa import GateSettings
from vmat_diffusion.qa.collimation import JAWS_X, collimation_changes
from vmat_diffusion.qa.motion import fitted_motion


def with_jaws(x_mm: float) -> Plan:
    """The open arc with a field of leaves 4 cm wide and X jaws at +-x_mm."""
    (arc,) = open_arc().arcs
    return replace(open_arc(), arcs=(replace(arc, jaws_mm=np.tile([-x_mm, x_mm, -20.0, 20.0], (19, 1))),))


@pytest.mark.parametrize(("planned_mm", "delivered_mm"), [(19.0, 16.0), (16.0, 19.0), (22.0, 15.0)])
def test_jaws_that_stand_elsewhere_than_planned_are_measured(planned_mm: float, delivered_mm: float) -> None:
    """3 mm too close within the field, 3 mm too wide, and too close from behind the leaves: never less."""
    machine, case, plan = load_machine("generic_6mv"), small_case(), with_jaws(delivered_mm)
    engine = PencilBeam(machine, step_mm=4.0)
    planned, delivered = (engine(with_jaws(mm), case, case.grid) for mm in (planned_mm, delivered_mm))
    motion = fitted_motion(
        case.grid,
        planned.gy,
        delivered.gy,
        case.body.mask,
        plan.isocenter_mm,
        reference_gy=float(planned.gy.max()),
        least_percent=20.0,
        changes=collimation_changes(plan, case, machine, case.grid),
    )
    assert motion is not None
    value, *_ = motion.changes[JAWS_X]
    wrong = min(delivered_mm, 20.0) - min(planned_mm, 20.0)
    assert np.sign(value) == np.sign(wrong) and abs(value) > GateSettings().jaw_mm
