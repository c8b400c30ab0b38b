"""Writing and reading are inverse: any deliverable plan, every phantom, any dose."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from synthetic_plans import as_study, two_arcs

from vmat_diffusion.case import Case, Dose, Prescription, Structure
from vmat_diffusion.dicom import (
    as_written,
    read_case,
    read_dose,
    read_plan,
    write_case,
    write_dose,
    write_unjudged_plan,
)
from vmat_diffusion.dose import PencilBeam
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.phantom import PHANTOMS, phantom
from vmat_diffusion.plan import Arc, Plan, violations


@pytest.fixture(scope="module")
def machine() -> Machine:
    return load_machine("generic_6mv")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    grid = Grid((4, 20, 20), (10.0, 10.0, 10.0), (-95.0, -95.0, -15.0))
    body = np.zeros(grid.shape, bool)
    body[:, 3:17, 3:17] = True
    target = np.zeros(grid.shape, bool)
    target[1:3, 8:12, 8:12] = True
    structures = {
        "BODY": Structure("BODY", "body", body),
        "PTV": Structure("PTV", "target", target),
    }
    small = Case("small", "", grid, np.where(body, 0, -1000), structures, Prescription(25, {"PTV": 50.0}))
    return as_study(tmp_path_factory.mktemp("study") / "small", small)


@st.composite
def arcs(draw: st.DrawFn, machine: Machine, number: int) -> Arc:
    limits = machine.limits
    n = draw(st.integers(2, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    steps = draw(st.sampled_from([1.0, -1.0])) * rng.uniform(0.5, 60.0, n - 1)
    gantry = draw(st.floats(-400.0, 400.0)) + np.concatenate([[0.0], np.cumsum(steps)])
    assume(all(abs(g % 360 - 180) > 0.1 for g in (gantry[0], gantry[-1])))
    mu = np.abs(steps) * rng.uniform(limits.mu_per_deg_min * 1.1, limits.mu_per_deg_max * 0.9, n - 1)
    mu[rng.random(n - 1) < 0.2] = 0.0  # beam-hold while the gantry moves
    mu[-1] = max(mu[-1], abs(steps[-1]))
    travel = 0.9 * limits.leaf_speed_mm_s * np.abs(steps) / limits.gantry_speed_deg_s
    walk = np.cumsum(
        rng.uniform(-1, 1, (n - 1, machine.mlc.pairs)) * np.minimum(travel, 5.0)[:, None], axis=0
    )
    middle = np.concatenate([np.zeros((1, machine.mlc.pairs)), walk]) + draw(st.floats(-20.0, 20.0))
    gap = rng.uniform(limits.leaf_gap_mm, 30.0, machine.mlc.pairs)
    jaw = rng.uniform(5.0, 100.0, 4) * [-1, 1, -1, 1]
    return Arc(
        gantry_deg=gantry,
        collimator_deg=draw(st.floats(-360.0, 360.0)),
        couch_deg=draw(st.floats(0.0, 360.0)),
        leaves_mm=np.stack([middle - gap / 2, middle + gap / 2], axis=1),
        jaws_mm=np.tile(jaw, (n, 1)),
        mu=mu,
        name=f"Arc {number}",
        number=number,
    )


@st.composite
def plans(draw: st.DrawFn, machine: Machine) -> Plan:
    isocenter = tuple(draw(st.floats(-50.0, 50.0)) for _ in range(3))
    beams = tuple(draw(arcs(machine, number)) for number in range(1, draw(st.integers(1, 2)) + 1))
    # The reader returns one couch position and rate for what is one plan.
    beams = tuple(replace(b, couch_deg=beams[0].couch_deg) for b in beams)
    rate = draw(st.floats(100.0, machine.limits.dose_rate_mu_min))
    return Plan(beams, isocenter, 25, machine.name, label="Round trip", dose_rate_mu_min=rate)  # type: ignore[arg-type]


def same_angle(a: float, b: float) -> bool:
    return abs((a - b + 180.0) % 360.0 - 180.0) < 1e-6


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_plan_reads_back_as_written(data: st.DataObject, case: Case, machine: Machine) -> None:
    plan = data.draw(plans(machine))
    expected = as_written(plan)
    assume(violations(expected, machine) == [])
    assert case.prescription is not None
    with tempfile.TemporaryDirectory() as folder:
        path = write_unjudged_plan(
            Path(folder) / "RP.dcm", plan, case, machine, prescription=case.prescription
        )
        found = read_plan(path, machine)
    assert violations(found, machine) == []
    assert found.isocenter_mm == pytest.approx(expected.isocenter_mm, abs=1e-9)
    assert (found.fractions, found.label, found.machine) == (25, "Round trip", machine.name)
    assert found.patient_position == "HFS"
    assert found.dose_rate_mu_min == expected.dose_rate_mu_min
    for read, arc in zip(found.arcs, expected.arcs, strict=True):
        assert (read.name, read.number) == (arc.name, arc.number)
        assert np.array_equal(read.leaves_mm, arc.leaves_mm)
        assert np.array_equal(read.jaws_mm, arc.jaws_mm)
        # Weights have 10 decimals of up to about 5000 MU.
        assert read.mu == pytest.approx(arc.mu, abs=1e-6)
        assert same_angle(read.gantry_deg[0], arc.gantry_deg[0])
        assert np.diff(read.gantry_deg) == pytest.approx(np.diff(arc.gantry_deg), abs=1e-6)
        assert same_angle(read.collimator_deg, arc.collimator_deg)
        assert same_angle(read.couch_deg, arc.couch_deg)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rounding_leaves_what_is_deliverable_deliverable(data: st.DataObject, machine: Machine) -> None:
    plan = data.draw(plans(machine))
    assume(violations(plan, machine) == [])
    assert violations(as_written(plan), machine) == []


def test_recomputing_the_written_plan_gives_the_written_dose(tmp_path: Path, machine: Machine) -> None:
    write_case(tmp_path / "case", phantom("tg119_cshape"))
    case = replace(read_case(tmp_path / "case"), prescription=Prescription(25, {"PTV": 50.0}))
    assert case.prescription is not None
    plan = as_written(two_arcs(case, machine, step_deg=15.0))
    plan_file = write_unjudged_plan(tmp_path / "RP.dcm", plan, case, machine, prescription=case.prescription)
    engine, grid = PencilBeam(machine), case.grid.around((-60, -60, -60), (60, 60, 60), (4.0, 4.0, 4.0))
    write_dose(tmp_path / "RD.dcm", engine(plan, case, grid), case, plan_file=plan_file)
    stored = read_dose(tmp_path / "RD.dcm")
    again = engine(read_plan(plan_file, machine), read_case(tmp_path / "case"), stored.grid)
    # Shown far below the 0.1 % that a user may rely on: only weights of 10 decimals differ.
    assert stored.gy.max() > 1.0
    assert np.abs(again.gy - stored.gy).max() < 1e-5 * stored.gy.max()


@pytest.mark.parametrize("name", PHANTOMS)
def test_a_phantom_reads_back_as_itself(name: str, tmp_path: Path) -> None:
    original = phantom(name)
    write_case(tmp_path / "case", original)
    found = read_case(tmp_path / "case")
    assert found.grid.matches(original.grid)
    assert found.patient_position == original.patient_position
    assert np.array_equal(found.hu, original.hu)
    assert set(found.structures) == set(original.structures)
    for structure in original.structures.values():
        back = found.structures[structure.name]
        dice = 2 * np.count_nonzero(back.mask & structure.mask) / (back.voxels + structure.voxels)
        assert back.role == structure.role
        assert dice > 0.99, structure.name
        assert back.voxels == pytest.approx(structure.voxels, rel=0.005), structure.name


@pytest.mark.parametrize("position", ["HFP", "FFS", "FFP"])
def test_other_patient_positions_read_back(position: str, case: Case, tmp_path: Path) -> None:
    write_case(tmp_path / "case", replace(case, patient_position=position))
    found = read_case(tmp_path / "case")
    assert found.patient_position == position
    assert found.grid.matches(case.grid)
    assert np.array_equal(found.structures["PTV"].mask, case.structures["PTV"].mask)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(st.integers(2, 5), st.integers(1, 6), st.integers(1, 6)),
    spacing=st.tuples(*[st.floats(0.5, 10.0)] * 3),
    origin=st.tuples(*[st.floats(-500.0, 500.0)] * 3),
    peak_gy=st.floats(1e-3, 150.0),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_dose_reads_back(
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    origin: tuple[float, float, float],
    peak_gy: float,
    seed: int,
    case: Case,
) -> None:
    gy = (peak_gy * np.random.default_rng(seed).random(shape)).astype(np.float32)
    dose = Dose(Grid(shape, spacing, origin), gy)
    with tempfile.TemporaryDirectory() as folder:
        found = read_dose(write_dose(Path(folder) / "RD.dcm", dose, case, plan_file=None))
    assert found.grid.matches(dose.grid)
    # Stored to 31 bits; single precision has 24.
    assert np.abs(found.gy - gy).max() <= 2**-22 * peak_gy
