"""The optional fields of RTPLAN and RTDOSE, and the rules of IHE-RO for them (docs/rtplan.md)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from synthetic_plans import as_study, two_arcs

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dicom import read_case, read_dose, write_case, write_dose, write_unjudged_plan
from vmat_diffusion.dicom.rtdose_write import Histogram
from vmat_diffusion.dicom.rtplan_parts.fields import BeamDoses, dose_rate_set_mu_min
from vmat_diffusion.errors import MachineError
from vmat_diffusion.evaluate.dvh import structure_dvh
from vmat_diffusion.evaluate.goals import load_goals
from vmat_diffusion.evaluate.task import Task
from vmat_diffusion.machine import Machine, load_machine, machine_text, parse_machine
from vmat_diffusion.phantom import phantom, squared
from vmat_diffusion.plan import Plan
from vmat_diffusion.workflow.planning.file_doses import beam_doses, histograms, middle_mm


@pytest.fixture(scope="module")
def machine() -> Machine:
    plain = load_machine("generic_6mv")
    return replace(plain, manufacturer="Linac Works", tolerance_table="1 Photon")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return as_study(tmp_path_factory.mktemp("study") / "cylinder", phantom("water_cylinder"))


@pytest.fixture(scope="module")
def plan(case: Case, machine: Machine) -> Plan:
    return two_arcs(case, machine, step_deg=4.0)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, case: Case, machine: Machine, plan: Plan) -> Dataset:
    file = tmp_path_factory.mktemp("plan") / "RP.dcm"
    doses = BeamDoses((1.0, 2.0, 3.0), {arc.number: 0.5 * arc.number for arc in plan.arcs})
    assert case.prescription is not None
    write_unjudged_plan(
        file, plan, case, machine, prescription=case.prescription, beam_doses=doses, overwrite=True
    )
    return pydicom.dcmread(file)


def test_a_plan_says_its_intent_and_stays_unapproved(written: Dataset) -> None:
    assert (written.PlanIntent, written.ApprovalStatus) == ("RESEARCH", "UNAPPROVED")


def test_each_beam_has_its_dose_at_the_point(written: Dataset, plan: Plan) -> None:
    beams = written.FractionGroupSequence[0].ReferencedBeamSequence
    assert [float(b.BeamDose) for b in beams] == [0.5 * arc.number for arc in plan.arcs]
    assert [list(b.BeamDoseSpecificationPoint) for b in beams] == [[1.0, 2.0, 3.0]] * len(plan.arcs)


def test_the_machines_maker_and_tolerance_table_are_named(written: Dataset) -> None:
    (table,) = written.ToleranceTableSequence
    assert table.ToleranceTableLabel == "1 Photon"
    for beam in written.BeamSequence:
        assert beam.Manufacturer == "Linac Works"
        assert beam.ReferencedToleranceTableNumber == table.ToleranceTableNumber


def test_a_machine_that_names_neither_writes_neither(
    tmp_path: Path, case: Case, plan: Plan, machine: Machine
) -> None:
    plain = replace(machine, manufacturer="", tolerance_table="")
    assert case.prescription is not None
    file = write_unjudged_plan(tmp_path / "RP.dcm", plan, case, plain, prescription=case.prescription)
    found = pydicom.dcmread(file)
    assert "ToleranceTableSequence" not in found
    assert all(
        "Manufacturer" not in b and "ReferencedToleranceTableNumber" not in b for b in found.BeamSequence
    )


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('tolerance_table = "a label of 17 ..."', "tolerance_table must be a text of at most 16 letters"),
        ("manufacturer = 7", "manufacturer"),
    ],
)
def test_a_label_that_no_file_can_hold_is_refused(line: str, sentence: str) -> None:
    text = machine_text("generic_6mv")
    assert parse_machine(f'tolerance_table = "1 Photon"\n{text}', "x").tolerance_table == "1 Photon"
    with pytest.raises(MachineError, match=sentence):
        parse_machine(f"{line}\n{text}", "x")


def test_the_dose_rate_is_one_that_the_machine_has(plan: Plan, machine: Machine) -> None:
    assert dose_rate_set_mu_min(plan, machine) == machine.limits.dose_rate_mu_min
    levels = (37.5, 75.0, 150.0, 300.0, 600.0)
    stepped = replace(
        machine, limits=replace(machine.limits, dose_rate_levels_mu_min=levels, gantry_speed_step_deg_s=None)
    )
    assert dose_rate_set_mu_min(plan, stepped) in levels
    few = replace(plan, arcs=tuple(replace(arc, mu=arc.mu * 1e-2) for arc in plan.arcs))
    assert dose_rate_set_mu_min(few, stepped) < dose_rate_set_mu_min(plan, stepped)


# --- the rules of IHE-RO (BRTO-II, MMRO-III and TPPC), as docs/rtplan.md lists them ----------------


def test_ihe_ro_rules_hold(written: Dataset, case: Case) -> None:
    numbers = [b.BeamNumber for b in written.BeamSequence]
    (group,) = written.FractionGroupSequence
    assert [b.ReferencedBeamNumber for b in group.ReferencedBeamSequence] == numbers
    assert group.NumberOfBeams == len(numbers)
    assert written.RTPlanGeometry == "PATIENT"
    assert written.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID == case.source.structure_set_uid
    for beam in written.BeamSequence:
        points = beam.ControlPointSequence
        assert beam.NumberOfControlPoints == len(points) <= 200
        assert [p.ControlPointIndex for p in points] == list(range(len(points)))
        assert points[0].CumulativeMetersetWeight == 0
        assert points[-1].CumulativeMetersetWeight == beam.FinalCumulativeMetersetWeight
        assert beam.PrimaryDosimeterUnit == "MU"
        assert (beam.NumberOfBlocks, beam.NumberOfWedges, beam.NumberOfBoli) == (0, 0, 0)
        assert all(p.BeamLimitingDevicePositionSequence for p in points)
        devices = [d.RTBeamLimitingDeviceType for d in beam.BeamLimitingDeviceSequence]
        first = [d.RTBeamLimitingDeviceType for d in points[0].BeamLimitingDevicePositionSequence]
        assert first == devices
        for keyword in ("GantryAngle", "BeamLimitingDeviceAngle", "PatientSupportAngle", "IsocenterPosition"):
            assert keyword in points[0]
        assert beam.TreatmentMachineName
        assert beam.ReferencedPatientSetupNumber == written.PatientSetupSequence[0].PatientSetupNumber


def test_coefficients_follow_the_meterset(written: Dataset) -> None:
    for beam in written.BeamSequence:
        for point in beam.ControlPointSequence:
            (item,) = point.ReferencedDoseReferenceSequence
            assert item.CumulativeDoseReferenceCoefficient == point.CumulativeMetersetWeight
            assert item.ReferencedDoseReferenceNumber == written.DoseReferenceSequence[0].DoseReferenceNumber


# --- doses -----------------------------------------------------------------------------------------


def a_dose(case: Case) -> Dose:
    gy = np.random.default_rng(1).random(case.grid.shape).astype(np.float32) * 70.0
    return Dose(case.grid, gy)


def test_16_bits_keep_the_dose_to_their_step(tmp_path: Path, case: Case) -> None:
    dose = a_dose(case)
    again = read_dose(write_dose(tmp_path / "RD.dcm", dose, case, plan_file=None, bits=16))
    assert pydicom.dcmread(tmp_path / "RD.dcm").BitsStored == 16
    assert float(np.abs(again.gy - dose.gy).max()) <= 0.51 * 70.0 / 65535


def test_histograms_in_the_dose_are_those_of_the_structures(tmp_path: Path, case: Case) -> None:
    dose = a_dose(case)
    file = write_dose(tmp_path / "RD.dcm", dose, case, plan_file=None, histograms=histograms(dose, case))
    found = pydicom.dcmread(file)
    by_number = {number: name for name, number in case.source.roi_numbers.items()}
    assert len(found.DVHSequence) == len(case.source.roi_numbers)
    for item in found.DVHSequence:
        name = by_number[item.DVHReferencedROISequence[0].ReferencedROINumber]
        dvh = structure_dvh(dose, case.structures[name], case.grid)
        data = np.reshape(np.asarray(item.DVHData, float), (-1, 2))
        assert len(data) == item.DVHNumberOfBins
        edges = np.concatenate([[0.0], np.cumsum(data[:-1, 0])])
        assert data[:, 1] == pytest.approx(dvh.volume_at_dose_cc(edges), rel=1e-5, abs=1e-5)
        assert data[0, 1] == pytest.approx(dvh.volume_cc, rel=1e-5)
        assert float(item.DVHMeanDose) == pytest.approx(dvh.mean_gy, rel=1e-6)
        assert data[-1, 1] == 0


def test_an_odd_number_of_16_bit_voxels_is_padded(tmp_path: Path, case: Case) -> None:
    whole = a_dose(case)
    small = Dose(replace(case.grid, shape=(3, 3, 3)), whole.gy[:3, :3, :3].copy())
    again = read_dose(write_dose(tmp_path / "RD.dcm", small, case, plan_file=None, bits=16))
    assert again.gy.shape == (3, 3, 3)


def test_a_histogram_names_its_bins() -> None:
    assert Histogram(1, 0.1, (2.0, 1.0, 0.0), 0.0, 0.15, 0.08).width_gy == 0.1


def test_beam_doses_add_up_to_the_dose_at_the_point(case: Case, plan: Plan) -> None:
    from vmat_diffusion.dose.engines import dose_engine

    assert case.prescription is not None
    machine = load_machine("generic_6mv")
    name = next(iter(case.prescription.target_gy))
    sheet = replace(load_goals("tg119_cshape_easy"), prescription=case.prescription)
    doses = beam_doses(plan, Task(case, sheet, machine))
    point = middle_mm(case, name)
    assert doses.point_mm == point
    whole = dose_engine("pencil-beam", machine)(plan, case, case.grid)
    index = tuple(round(v) for v in case.grid.index(np.array(point)))
    there = float(whole.gy[index[::-1]] if case.structures[name].mask[index[::-1]] else whole.gy[index])
    assert sum(doses.gy.values()) * plan.fractions == pytest.approx(there, rel=2e-3)


def test_a_squared_case_is_square_and_otherwise_the_same(tmp_path: Path) -> None:
    flat = phantom("tg119_cshape")
    nz, ny, nx = flat.grid.shape
    made = squared(
        replace(
            flat,
            hu=flat.hu[:, : ny - 4],
            grid=replace(flat.grid, shape=(nz, ny - 4, nx)),
            structures={name: replace(s, mask=s.mask[:, : ny - 4]) for name, s in flat.structures.items()},
        )
    )
    assert made.grid.shape[1] == made.grid.shape[2] == max(ny - 4, nx)
    assert made.hu[:, : ny - 4, :nx] == pytest.approx(flat.hu[:, : ny - 4])
    write_case(tmp_path / "case", made)
    image = pydicom.dcmread(tmp_path / "case" / "CT.001.dcm")
    assert image.Rows == image.Columns
    again = read_case(tmp_path / "case")
    assert again.structures.keys() == flat.structures.keys()
