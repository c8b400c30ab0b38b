"""RTPLANs of five planning systems, read and delivered on a water cylinder; pydicom is the second reader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from vmat_diffusion.case import Case, Structure
from vmat_diffusion.dicom import read_plan
from vmat_diffusion.dose import PencilBeam
from vmat_diffusion.dose.collimator import machine_for
from vmat_diffusion.evaluate.complexity import complexity
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.plan import Plan, violations

PLANS = {
    "eclipse_truebeam_tg119_cshape_2arc": "generic_hd120",
    "eclipse_ethos_duallayer_2arc": "generic_halcyon",
    "monaco_versahd_multiturn": "generic_agility",
    "pinnacle_versahd_2arc": "generic_agility",
    "brainlab_versahd": "generic_agility",
}


def unflattened(machine: Machine) -> Machine:
    """The same beam called unflattened: plans of such beams are delivered, their doses not judged."""
    return replace(machine, beam=replace(machine.require_beam(), fluence_mode="FFF"))


def cylinder(plan: Plan, step_mm: float = 10.0) -> Case:
    """Water 200 mm wide and 160 mm long along z, centred on the plan's isocentre."""
    low = [c - 105.0 for c in plan.isocenter_mm[:2]] + [plan.isocenter_mm[2] - 80.0]
    shape = (17, 22, 22)
    grid = Grid(shape, (step_mm,) * 3, tuple(low))  # type: ignore[arg-type]
    x, y, _ = (axis - c for axis, c in zip(grid.axes_mm, plan.isocenter_mm, strict=True))
    inside = np.broadcast_to(x[None, None] ** 2 + y[None, :, None] ** 2 <= 100.0**2, shape)
    body = Structure("BODY", "body", inside.copy())
    return Case("cylinder", "", grid, np.where(inside, 0, -1000).astype(np.float32), {"BODY": body})


def treatment_beams(file: Path) -> tuple[dict[int, int], dict[int, float], float]:
    """Control points and MU by number of the beams with MU, and their sum, straight from the file."""
    data = pydicom.dcmread(file)
    mu = {
        int(item.ReferencedBeamNumber): float(item.BeamMeterset)
        for item in data.FractionGroupSequence[0].ReferencedBeamSequence
        if item.get("BeamMeterset") is not None
    }
    points = {int(beam.BeamNumber): len(beam.ControlPointSequence) for beam in data.BeamSequence}
    return {n: points[n] for n in mu}, mu, sum(mu.values())


@pytest.mark.parametrize(("name", "collimator"), PLANS.items())
def test_real_plans_are_read_and_delivered(shared_data: Path, name: str, collimator: str) -> None:
    """All control points and MU of the file arrive; dose lies around the isocentre and scales with MU."""
    file = shared_data / "rtplans" / f"{name}.dcm"
    plan = read_plan(file)
    points, mu, total = treatment_beams(file)
    assert {arc.number: len(arc.gantry_deg) for arc in plan.arcs} == points
    assert {arc.number: arc.total_mu for arc in plan.arcs} == pytest.approx(mu, rel=1e-9)
    assert plan.total_mu == pytest.approx(total, rel=1e-9)

    base = load_machine("generic_6mv")
    machine = machine_for(plan, unflattened(base) if plan.provenance["fluence_mode"] == "FFF" else base)
    assert machine.mlc == load_machine(collimator).mlc
    case = cylinder(plan)
    dose = PencilBeam(machine, step_mm=5.0)(plan, case, case.grid).gy / plan.fractions
    inside = case.body.mask
    assert np.isfinite(dose).all() and (dose >= 0).all() and not dose[~inside].any()
    # 0.01 Gy per MU at 15 mm depth in an open 10 x 10 cm field; 100 mm of water and modulation only lower it.
    assert 0.15 < dose.max() / (0.01 * total) < 0.95


@pytest.mark.parametrize(("name", "collimator"), PLANS.items())
def test_real_plans_keep_the_limits_of_their_collimator_s_machine(
    shared_data: Path, name: str, collimator: str
) -> None:
    """Brainlab's exporter closes pairs to 0 mm while they move, below what this machine file allows."""
    machine = load_machine(collimator)
    found = violations(read_plan(shared_data / "rtplans" / f"{name}.dcm", machine), machine)
    if name == "brainlab_versahd":
        assert len(found) == 2 and all("gap 0.00 mm is below the minimum 3 mm" in v for v in found)
    else:
        assert found == []


@pytest.mark.parametrize(("name", "collimator"), PLANS.items())
def test_real_plans_are_as_complex_as_published_ones(shared_data: Path, name: str, collimator: str) -> None:
    """Ranges of docs/complexity.md, wider by what small and large targets add to them."""
    machine = load_machine(collimator)
    found = complexity(read_plan(shared_data / "rtplans" / f"{name}.dcm", machine), machine)
    assert 0.1 < found.mcs < 0.4 and 5 < found.mean_area_cm2 < 70
    assert 0.05 < found.edge_per_mm < 0.15 and found.small_5mm < found.small_10mm < 0.4
    assert 150 < found.leaf_travel_mm < 700 and 0.4 < found.leaf_travel_mm_deg < 2.0


@pytest.mark.parametrize("name", PLANS)
def test_mu_of_real_plans_are_exchanged_where_their_doses_say_so(
    shared_data: Path, tmp_path: Path, name: str
) -> None:
    """Eclipse, Ethos and Brainlab state BeamDose in proportion to the MU; Pinnacle and Monaco do not."""

    def said(file: Path) -> list[str]:
        remarks = read_plan(file).provenance["remarks"]
        assert isinstance(remarks, tuple)
        return [remark for remark in remarks if "exchanged" in remark]

    file = shared_data / "rtplans" / f"{name}.dcm"
    assert not said(file)
    data = pydicom.dcmread(file)
    group = data.FractionGroupSequence[0].ReferencedBeamSequence
    stated = [item for item in group if item.get("BeamMeterset") and item.get("BeamDose")]
    for item, mu in zip(stated, [i.BeamMeterset for i in stated][::-1], strict=True):
        item.BeamMeterset = mu
    data.save_as(tmp_path / "exchanged.dcm")
    assert bool(said(tmp_path / "exchanged.dcm")) == name.startswith(("eclipse", "brainlab"))
