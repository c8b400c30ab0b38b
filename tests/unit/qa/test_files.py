"""No plan file without a passed verdict on this very plan and case: what `write_plan` refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.errors import InvalidDicomError
from scipy import ndimage
from small_case import open_arc, small_case

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dicom import read_case, read_plan, write_unjudged_plan
from vmat_diffusion.dicom.attributes import open_dataset
from vmat_diffusion.dicom.folder import open_file
from vmat_diffusion.dicom.sealed import sealed
from vmat_diffusion.errors import PlanError
from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import Plan
from vmat_diffusion.qa import Outcome, Verdict, judge, plan_differences, release_plan, write_plan
from vmat_diffusion.qa.dose_points import prescribed_doses
from vmat_diffusion.qa.files import plan_remarks

MACHINE = load_machine("generic_6mv")


@pytest.fixture(scope="module")
def case(case_folder: Path) -> Case:
    return replace(read_case(case_folder), prescription=small_case().prescription)


def verdict_on(plan: Plan, case: Case, factor: float = 1.0) -> Verdict:
    """What the gate says of 50 Gy everywhere where the second engine finds `factor` times as much."""
    grid = case.grid.around(*case.grid.bounds_mm, (3.0, 3.0, 3.0))
    dose, check = (Dose(grid, np.full(grid.shape, 50.0 * f, np.float32)) for f in (1.0, factor))
    return judge(case, None, plan, MACHINE, dose=dose, check=check)


def test_a_passed_verdict_lets_its_plan_out(case: Case, tmp_path: Path) -> None:
    plan = open_arc()
    verdict = verdict_on(plan, case)
    assert verdict.passed
    file = write_plan(tmp_path / "RP.dcm", plan, case, MACHINE, verdict)
    assert plan_differences(plan, read_plan(file, MACHINE)) == []


def test_without_a_verdict_nothing_is_written(case: Case, tmp_path: Path) -> None:
    for nothing in (None, True, {"passed": True}):
        with pytest.raises(PlanError, match="with the verdict of judge"):
            write_plan(tmp_path / "RP.dcm", open_arc(), case, MACHINE, nothing)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="another plan"):
        write_plan(tmp_path / "RP.dcm", open_arc(), case, MACHINE, Verdict(()))
    assert not list(tmp_path.iterdir())


def test_a_failed_verdict_keeps_its_plan_back(case: Case, tmp_path: Path) -> None:
    verdict = verdict_on(open_arc(), case, factor=1.3)
    assert not verdict.passed
    with pytest.raises(PlanError, match=r"did not pass the gate \(.*gamma"):
        write_plan(tmp_path / "RP.dcm", open_arc(), case, MACHINE, verdict)
    assert not list(tmp_path.iterdir())


def test_a_verdict_lets_no_other_plan_out(case: Case, tmp_path: Path) -> None:
    plan = open_arc()
    verdict, arc = verdict_on(plan, case), plan.arcs[0]
    moved = arc.leaves_mm.copy()
    moved[4, 0, 30] -= 0.01
    for other in (
        replace(plan, arcs=(replace(arc, leaves_mm=moved),)),
        replace(plan, arcs=(replace(arc, mu=arc.mu * 1.001),)),
        replace(plan, arcs=(replace(arc, couch_deg=1.0),)),
        replace(plan, fractions=24),
        replace(plan, isocenter_mm=(0.0, 0.0, 1.0)),
        replace(plan, patient_position="HFP"),
    ):
        with pytest.raises(PlanError, match="another plan or another case"):
            write_plan(tmp_path / "RP.dcm", other, case, MACHINE, verdict)
    assert not list(tmp_path.iterdir())


def test_a_verdict_on_one_patient_lets_no_plan_out_for_another(case: Case, tmp_path: Path) -> None:
    verdict = verdict_on(open_arc(), case)
    other = replace(case, source=replace(case.source, structure_set_uid="1.2.3"))
    with pytest.raises(PlanError, match="another plan or another case"):
        write_plan(tmp_path / "RP.dcm", open_arc(), other, MACHINE, verdict)


def test_a_judged_file_gets_its_name_with_a_passed_verdict_only(case: Case, tmp_path: Path) -> None:
    judged, dicom = tmp_path / "RP.unjudged", bytes(128) + b"DICM the plan"
    judged.write_bytes(sealed(dicom))
    with pytest.raises(PlanError, match="did not pass"):
        failed = verdict_on(open_arc(), case, factor=1.3)
        release_plan(judged, tmp_path / "RP.dcm", open_arc(), case, failed)
    assert [f.name for f in tmp_path.iterdir()] == ["RP.unjudged"]
    release_plan(judged, tmp_path / "RP.dcm", open_arc(), case, verdict_on(open_arc(), case))
    assert [f.name for f in tmp_path.iterdir()] == ["RP.dcm"]
    assert (tmp_path / "RP.dcm").read_bytes() == dicom


def test_an_unjudged_plan_is_no_dicom_for_anybody(case: Case, tmp_path: Path) -> None:
    """Not for pydicom, not even forced, and not for a search of a folder; the gate alone reads it."""
    file, plan = tmp_path / "RP.unjudged", open_arc()
    prescription = case.prescription
    assert prescription is not None
    write_unjudged_plan(file, plan, case, MACHINE, prescription=prescription)
    assert [f.name for f in tmp_path.iterdir()] == ["RP.unjudged"]
    content = file.read_bytes()
    assert b"DICM" not in content[:1024] and b"1.2.840.10008" not in content
    with pytest.raises(InvalidDicomError):
        pydicom.dcmread(file)
    assert open_dataset(file) is None and open_file(file, "file") is None
    assert plan_differences(plan, read_plan(file, MACHINE)) == []


def test_an_inconclusive_verdict_keeps_its_plan_back(case: Case, tmp_path: Path) -> None:
    grid = case.grid.around(*case.grid.bounds_mm, (3.0, 3.0, 3.0))
    gy = np.full(grid.shape, 50.0, np.float32)
    check = Dose(grid, gy, std_gy=0.05 * gy, provenance={"seconds": 60.0})
    verdict = judge(case, None, open_arc(), MACHINE, dose=Dose(grid, gy), check=check)
    assert verdict.outcome is Outcome.INCONCLUSIVE and not verdict.passed and not verdict.failed
    assert "--check-minutes 5" in verdict.undecided[0].why
    with pytest.raises(PlanError, match=r"could not decide on the plan \(statistical uncertainty\)"):
        write_plan(tmp_path / "RP.dcm", open_arc(), case, MACHINE, verdict)
    assert not list(tmp_path.iterdir())


def test_jaws_that_the_plan_does_not_list_are_said() -> None:
    for listed, axes in ((("ASYMX", "ASYMY"), ""), (("X", "Y"), ""), (("ASYMX",), "Y"), ((), "XY")):
        said = plan_remarks(replace(open_arc(), provenance={"jaws": listed}), MACHINE)
        assert said == [f"the plan lists no jaws along {a}, machine generic_6mv has them" for a in axes]
    agility = load_machine("generic_agility")
    assert not plan_remarks(replace(open_arc(), provenance={"jaws": ("ASYMY",)}), agility)


@pytest.mark.parametrize(
    ("stated", "gy", "warns"),
    [
        ({2: 50.0}, 50.0, False),
        ({2: 60.0}, 50.0, True),
        ({-1: 60.0}, 50.0, True),
        ({-1: 50.0, -2: 20.0}, 50.0, False),
        ({3: 60.0}, 50.0, True),
        ({2: 50.0}, 46.0, True),
        ({2: 50.0}, 70.0, False),
    ],
)
def test_the_planned_dose_is_held_against_the_prescription_in_the_plan(
    case: Case, stated: dict[int, float], gy: float, warns: bool
) -> None:
    """Without a goal sheet too; ROI 2 is the target, 3 an organ, negative numbers name no region."""
    grid = case.grid.around(*case.grid.bounds_mm, (6.0, 6.0, 6.0))
    dose = Dose(grid, np.full(grid.shape, gy, np.float32))
    plan = replace(open_arc(), provenance={"prescribed_gy": stated})
    check = prescribed_doses(case, plan, dose)
    assert check is not None and check.passed and check.warns == warns, check
    assert prescribed_doses(case, open_arc(), dose) is None


@pytest.mark.parametrize("seed", range(4))
def test_a_target_that_was_moved_after_planning_warns(seed: int) -> None:
    """Both engines agree on the dose of a target that lies elsewhere; the plan's prescription does not."""
    rng = np.random.default_rng(seed)
    small = small_case()
    planned = ndimage.gaussian_filter(small.structures["PTV"].mask.astype(np.float32), 0.4) * 50.0
    case = replace(small, source=replace(small.source, roi_numbers={"PTV": 2}))
    plan = replace(open_arc(), provenance={"prescribed_gy": {2: 30.0}})
    dose = Dose(case.grid, planned)
    sound = prescribed_doses(case, plan, dose)
    assert sound is not None and not sound.warns, sound.why
    shift = int(rng.choice([-1, 1])) * int(rng.integers(1, 4))
    moved = np.roll(small.structures["PTV"].mask, shift, axis=int(rng.integers(3)))
    structures = {**case.structures, "PTV": replace(case.structures["PTV"], mask=moved)}
    check = prescribed_doses(replace(case, structures=structures), plan, dose)
    assert check is not None and check.warns and "PTV: 30 Gy prescribed" in check.why
