"""The gate in a planning run: what it writes, what it corrects, and what it keeps back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from small_case import UNIFORM_GY, StandIn, open_arc, small_case

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dicom import read_dose, read_plan, write_dose, write_unjudged_plan
from vmat_diffusion.dose.engines import dose_engine
from vmat_diffusion.errors import CaseError, GoalError, InputError, MachineError, PlanError
from vmat_diffusion.machine import load_machine
from vmat_diffusion.plan import Plan
from vmat_diffusion.workflow import (
    PlanningTools,
    check_references,
    compare_doses,
    compute_dose,
    plan_case,
    plan_settings,
    second_check,
)
from vmat_diffusion.workflow.influence import write_influence
from vmat_diffusion.workflow.recompute import QA_FILES
from vmat_diffusion.workflow.settings import DoseSettings, InfluenceSettings, QaSettings

SETTINGS = plan_settings(goals="tg119_cshape_easy")


def test_a_plan_that_passes_is_written_with_its_verdict(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    optimiser()
    run = plan_case(case_folder, tmp_path / "out", SETTINGS, tools=optimiser.tools)
    assert run.verdict.passed and not run.corrected
    assert {c.name for c in run.verdict.checks} >= {"deliverable", "files agree", "required goals"}
    plan = read_plan(tmp_path / "out" / "RP.dcm")
    dose = read_dose(tmp_path / "out" / "RD.dcm")
    assert dose.provenance["plan_uid"] == plan.provenance["sop_instance_uid"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Gate passed" in page and "Gamma map in axial" in page


def test_engines_that_disagree_lead_to_one_correction(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    calls = optimiser(engine=(1.025, 1.01))
    run = plan_case(case_folder, tmp_path / "out", SETTINGS, tools=optimiser.tools)
    first, second = calls
    assert "difference" not in first and second["start"].plan is not None
    assert second["settings"].max_minutes == pytest.approx(first["settings"].max_minutes / 3)
    np.testing.assert_allclose(second["difference"].gy, 0.025 * UNIFORM_GY, rtol=1e-4)
    assert run.corrected and run.verdict.passed and (tmp_path / "out" / "RP.dcm").exists()
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["verdict"]["corrected"] is True and "check again" in record["seconds"]
    assert "mean dose of PTV" in [c["name"] for c in record["first_verdict"]["checks"] if not c["passed"]]


def test_a_second_correction_knows_what_both_checks_found(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    calls = optimiser(engine=(0.975, 1.022, 1.0))
    run = plan_case(case_folder, tmp_path / "out", SETTINGS, tools=optimiser.tools)
    assert run.passed and run.corrected and len(calls) == 3
    found = [float(np.median(c["difference"].gy)) / UNIFORM_GY for c in calls[1:]]
    assert found == [pytest.approx(-0.025, abs=1e-4), pytest.approx(-0.003, abs=1e-4)]
    assert calls[2]["start"] is not calls[1]["start"]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "mean dose of PTV" in [c["name"] for c in record["first_verdict"]["checks"] if not c["passed"]]


def test_a_plan_is_corrected_twice_and_then_kept_back(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    calls = optimiser(engine=(1.025, 0.975, 1.025))
    run = plan_case(case_folder, tmp_path / "out", SETTINGS, tools=optimiser.tools)
    assert len(calls) == 3 and not run.verdict.passed
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert "RP.dcm" not in names and {"RD.dcm", "report.html", "run.json"} <= names
    assert not read_dose(tmp_path / "out" / "RD.dcm").provenance["plan_uid"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Gate not passed" in page and "mean dose of PTV" in page


def test_engines_too_far_apart_are_no_matter_of_correction(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    calls = optimiser(engine=(1.3,))
    assert not plan_case(case_folder, tmp_path / "out", SETTINGS, tools=optimiser.tools).verdict.passed
    assert len(calls) == 1 and not (tmp_path / "out" / "RP.dcm").exists()


def test_a_rerun_that_fails_does_not_keep_the_old_plan(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    optimiser()
    plan_case(case_folder, tmp_path / "out", SETTINGS, tools=optimiser.tools)
    optimiser(engine=(1.3,))
    plan_case(case_folder, tmp_path / "out", SETTINGS, overwrite=True, tools=optimiser.tools)
    assert not (tmp_path / "out" / "RP.dcm").exists()


def narrow_arc() -> Plan:
    """The open arc with a field 4 mm wide: a gap error of 1 mm changes its dose by a fifth."""
    (arc,) = open_arc().arcs
    leaves = arc.leaves_mm.copy()
    leaves[:, 0, 26:34], leaves[:, 1, 26:34] = -2.0, 2.0
    return replace(open_arc(), arcs=(replace(arc, leaves_mm=leaves),))


def test_a_plan_that_small_errors_change_too_much_warns_or_stops(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    optimiser(narrow_arc())
    run = plan_case(case_folder, tmp_path / "out", SETTINGS, tools=optimiser.tools)
    (row,) = [c for c in run.verdict.checks if c.name == "robustness: gap 1 mm"]
    assert row.warns and run.passed and row.value is not None and row.value > 10.0
    record = json.loads((tmp_path / "out" / "run.json").read_text())["robustness"]
    assert record["computed"] and len(record["scenarios"]) == 19
    assert record["mean_effective_gap_mm"] == pytest.approx(4.0, abs=2.0)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Robustness to the linac" in page and "PTV D95% [%]" in page and "above limit" in page
    assert row.why in page.replace("&#39;", "'")
    optimiser(narrow_arc())
    strict = replace(SETTINGS, robustness="stop")
    stopped = plan_case(case_folder, tmp_path / "strict", strict, tools=optimiser.tools)
    assert not stopped.passed and not (tmp_path / "strict" / "RP.dcm").exists()
    assert all(c.group == "robustness" for c in stopped.verdict.failed)


def test_a_gate_file_makes_robustness_stop(case_folder: Path, tmp_path: Path, optimiser: StandIn) -> None:
    file = tmp_path / "gate.toml"
    file.write_text('robustness = "stop"\n')
    optimiser(narrow_arc())
    by_file = replace(SETTINGS, gate=str(file))
    assert not plan_case(case_folder, tmp_path / "out", by_file, tools=optimiser.tools).passed
    file.write_text('robustness = "ignore"\n')
    with pytest.raises(InputError, match="robustness"):
        plan_case(case_folder, tmp_path / "other", by_file, tools=optimiser.tools)


@pytest.fixture
def noisy(tmp_path: Path) -> dict:
    """Settings with which Monte Carlo takes seconds: as noisy as the gate lets any file ask for."""
    file = tmp_path / "noisy.toml"
    file.write_text("uncertainty_percent = 3.0\n")
    return {"uncertainty": 0.029, "gate": str(file)}


def test_monte_carlo_itself_judges_a_plan_in_the_run(
    case_folder: Path,
    tmp_path: Path,
    optimiser: StandIn,
    noisy: dict,
) -> None:
    """The stand-in's plan is an open arc, its dose is not: the engine finds out."""
    tools = PlanningTools(optimizer=optimiser.optimize)
    run = plan_case(case_folder, tmp_path / "out", replace(SETTINGS, yardstick="never", **noisy), tools=tools)
    checks = {c.name: c for c in run.verdict.checks}
    assert checks["files agree"].passed and checks["statistical uncertainty"].passed
    assert not checks["gamma 3 %/3 mm"].passed and not checks["mean dose of PTV"].passed
    assert run.check.provenance["engine"] == "monte-carlo" and not (tmp_path / "out" / "RP.dcm").exists()


def test_monte_carlo_agrees_with_the_fast_engine_on_an_open_arc(
    case_folder: Path, tmp_path: Path, exported: tuple[Path, Path], noisy: dict
) -> None:
    rp, _ = exported
    done = second_check(rp, case_folder, tmp_path / "out", QaSettings(grid_mm=6.0, **noisy))
    # Quick to compute, and too coarse for a verdict: on voxels of 6 mm the fit sees 1.4 degrees, with either
    # seed and engine, where the limit is 1 and two sigma are 0.4.
    failed = {c.name: c.value for c in done.verdict.failed}
    turned = failed.pop("collimator angle by the doses", 0.0)
    assert turned < 2.5 and not failed
    assert [c.name for c in done.verdict.undecided] == ["dose grid"]
    assert done.verdict.outcome.value == ("FAILED" if turned else "INCONCLUSIVE")


def test_limits_come_from_a_file_and_are_recorded(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    file = tmp_path / "gate.toml"
    file.write_text("target_mean_percent = 0.5\n")
    optimiser(engine=(1.01, 1.01, 1.01))
    run = plan_case(case_folder, tmp_path / "out", replace(SETTINGS, gate=str(file)), tools=optimiser.tools)
    assert [c.name for c in run.verdict.failed] == ["mean dose of PTV"]
    assert run.provenance["gate"]["target_mean_percent"] == 0.5
    file.write_text("target_mean = 0.5\n")
    with pytest.raises(InputError, match="target_mean"):
        plan_case(case_folder, tmp_path / "other", replace(SETTINGS, gate=str(file)), tools=optimiser.tools)
    assert not (tmp_path / "other").exists()


def test_engines_by_name() -> None:
    from vmat_diffusion.dose.pencil_beam import PencilBeam

    machine = load_machine("generic_6mv")
    assert isinstance(dose_engine("pencil-beam", machine), PencilBeam)
    with pytest.raises(InputError, match="pencil-beam and monte-carlo"):
        dose_engine("acuros", machine)
    with pytest.raises(MachineError, match="no beam model"):
        dose_engine("monte-carlo", replace(machine, beam=None))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """Both engines replaced: the second finds 1 % more than the first."""
    import vmat_diffusion.workflow.recompute as module

    asked: list[dict] = []

    def choose(name: str, machine: object, **settings: object):  # type: ignore[no-untyped-def]
        asked.append({"name": name, **settings})
        gy = 50.0 if name == "pencil-beam" else 50.5

        def engine(plan: Plan, case: Case, grid: Grid | None = None, progress: object = None) -> Dose:
            assert grid is not None
            return Dose(grid, np.full(grid.shape, gy, np.float32), provenance={"engine": name})

        return engine

    monkeypatch.setattr(module, "dose_engine", choose)
    return asked


@pytest.fixture
def exported(tmp_path: Path, case_folder: Path) -> tuple[Path, Path]:
    """RP.dcm and RD.dcm of an open arc with 50 Gy everywhere."""
    from vmat_diffusion.dicom import read_case

    case, machine = read_case(case_folder), load_machine("generic_6mv")
    prescription = small_case().prescription
    assert prescription is not None
    rp = write_unjudged_plan(tmp_path / "RP.dcm", open_arc(), case, machine, prescription=prescription)
    grid = case.grid.around(*case.grid.bounds_mm, (3.0, 3.0, 3.0))
    dose = Dose(grid, np.full(grid.shape, 50.0, np.float32))
    return rp, write_dose(tmp_path / "RD.dcm", dose, case, plan_file=rp)


def test_a_plan_from_elsewhere_is_checked_a_second_time(
    case_folder: Path, tmp_path: Path, exported: tuple[Path, Path], stand_in: list[dict]
) -> None:
    rp, rd = exported
    done = second_check(rp, case_folder, tmp_path / "out", QaSettings(uncertainty=0.015), dose_file=rd)
    assert done.verdict.passed, done.verdict.failed
    assert [a["name"] for a in stand_in] == ["monte-carlo"] and stand_in[0]["uncertainty"] == 0.015
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == sorted(QA_FILES)
    record = json.loads((tmp_path / "out" / "qa.json").read_text())
    assert record["verdict"]["passed"] is True
    names = {c["name"] for c in record["verdict"]["checks"]}
    assert {"files agree", "one patient, one plan", "gamma 3 %/3 mm", "mean dose of PTV"} <= names
    assert "robustness: gap 1 mm" in names and record["robustness"]["computed"]
    again = read_dose(tmp_path / "out" / "RD_check.dcm")
    np.testing.assert_allclose(again.gy, 50.5, rtol=1e-6)


def test_without_a_dose_the_fast_engine_stands_in(
    case_folder: Path, tmp_path: Path, exported: tuple[Path, Path], stand_in: list[dict]
) -> None:
    done = second_check(exported[0], case_folder, tmp_path / "out", QaSettings(goals="tg119_cshape_easy"))
    assert {a["name"] for a in stand_in} == {"monte-carlo", "pencil-beam"}
    assert done.verdict.results and done.verdict.passed


def test_a_second_check_refuses_what_it_cannot_use(
    case_folder: Path, tmp_path: Path, exported: tuple[Path, Path], stand_in: list[dict]
) -> None:
    rp, _ = exported
    with pytest.raises(PlanError, match="does not exist"):
        second_check(tmp_path / "no.dcm", case_folder, tmp_path / "out")
    with pytest.raises(CaseError, match="does not exist"):
        second_check(rp, case_folder, tmp_path / "out", dose_file=tmp_path / "no.dcm")
    with pytest.raises(CaseError, match="case folder"):
        second_check(rp, tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="cannot check itself"):
        second_check(rp, case_folder, tmp_path / "out", QaSettings(engine="pencil-beam"))
    with pytest.raises((PlanError, GoalError)):
        second_check(rp, case_folder, tmp_path / "out", QaSettings(goals="prostate_60_20"))
    assert not (tmp_path / "out").exists()


def test_a_truncated_dose_file_fails_the_second_check(
    case_folder: Path, tmp_path: Path, exported: tuple[Path, Path], stand_in: list[dict]
) -> None:
    rp, rd = exported
    rd.write_bytes(rd.read_bytes()[:5000])
    done = second_check(rp, case_folder, tmp_path / "out", dose_file=rd)
    (failed,) = done.verdict.failed
    assert failed.name == "files agree" and "RD.dcm" in failed.why
    assert {a["name"] for a in stand_in} == {"monte-carlo", "pencil-beam"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Gate not passed" in page and failed.why in page
    with pytest.raises(CaseError, match=r"RD\.dcm"):  # nothing is left for the fast engine to check
        second_check(rp, case_folder, tmp_path / "other", QaSettings(engine="pencil-beam"), dose_file=rd)


@pytest.mark.parametrize(
    ("keyword", "words", "passes"),
    [
        ("PatientID", "another patient ID", False),
        ("FrameOfReferenceUID", "another frame of reference", False),
        ("", "the plan prescribes 60 Gy to PTV, the goal sheet 50 Gy", False),
        ("PatientID silent", "does not say its patient ID", True),
    ],
)
def test_the_second_check_asks_for_one_patient_and_one_plan(
    case_folder: Path,
    tmp_path: Path,
    exported: tuple[Path, Path],
    stand_in: list[dict],
    keyword: str,
    words: str,
    passes: bool,
) -> None:
    rp, rd = exported
    dataset = pydicom.dcmread(rp)
    if keyword:
        setattr(dataset, keyword.split()[0], "" if passes else "1.2.3")
    else:
        dataset.DoseReferenceSequence[0].TargetPrescriptionDose = 60
    dataset.save_as(rp)
    asked = QaSettings(goals=None if keyword else "tg119_cshape_easy")
    done = second_check(rp, case_folder, tmp_path / "out", asked, dose_file=rd)
    check = next(c for c in done.verdict.checks if c.name == "one patient, one plan")
    assert check.passed == passes and check.warns == passes and words in check.why
    page = (tmp_path / "out" / "report.html").read_text()
    assert words in page


def test_an_uncertainty_that_no_plan_could_pass_with_is_refused(
    case_folder: Path, tmp_path: Path, exported: tuple[Path, Path], optimiser: StandIn
) -> None:
    calls = optimiser()
    with pytest.raises(InputError, match=r"limit of 2\.5 %"):
        plan_case(case_folder, tmp_path / "out", replace(SETTINGS, uncertainty=0.025), tools=optimiser.tools)
    with pytest.raises(InputError, match=r"limit of 2\.5 %"):
        second_check(exported[0], case_folder, tmp_path / "out", QaSettings(uncertainty=0.03))
    file = tmp_path / "gate.toml"
    file.write_text("uncertainty_percent = 3.0\n")
    loose = replace(SETTINGS, uncertainty=0.029, gate=str(file))
    assert not calls and plan_case(case_folder, tmp_path / "out", loose, tools=optimiser.tools).passed


def test_a_machine_without_a_beam_is_refused_before_planning(
    case_folder: Path, tmp_path: Path, optimiser: StandIn
) -> None:
    calls = optimiser()
    import vmat_diffusion.machine as machines

    text = (Path(machines.__file__).parent / "machines" / "generic_6mv.toml").read_text()
    file = tmp_path / "beamless.toml"
    file.write_text(text[: text.index("[beam]")])
    with pytest.raises(MachineError, match="no beam model"):
        plan_case(case_folder, tmp_path / "out", replace(SETTINGS, machine=str(file)), tools=optimiser.tools)
    assert not calls and not (tmp_path / "out").exists()


def test_a_dose_is_computed_and_written(
    case_folder: Path, tmp_path: Path, exported: tuple[Path, Path]
) -> None:
    rp, _ = exported
    out = tmp_path / "new" / "RD.dcm"
    made = compute_dose(rp, case_folder, out, DoseSettings(engine="pencil-beam", grid_mm=6.0))
    back = read_dose(out)
    np.testing.assert_allclose(back.gy, made.gy, atol=1e-6)
    assert back.provenance["plan_uid"] == read_plan(rp).provenance["sop_instance_uid"]
    with pytest.raises(CaseError, match="exists"):
        compute_dose(rp, case_folder, out, DoseSettings(engine="pencil-beam"))
    result = compare_doses(out, out)
    assert result.pass_percent == 100.0 and result.mean < 1e-6
    with pytest.raises(CaseError, match="does not exist"):
        compare_doses(out, tmp_path / "none.dcm")


def test_reference_check_refuses_other_engines_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pencil-beam and monte-carlo"):
        check_references(tmp_path, engine="acuros")
    with pytest.raises(InputError, match="does not exist"):
        check_references(tmp_path / "none")
    with pytest.raises(InputError, match="no case"):
        check_references(tmp_path)


@pytest.fixture
def overridden(case_folder: Path, tmp_path: Path) -> Path:
    """The small case with densities prescribed for all of its regions, as XiO exports them."""
    folder = tmp_path / "overridden"
    shutil.copytree(case_folder, folder)
    for file in folder.rglob("*.dcm"):
        dataset = pydicom.dcmread(file)
        if dataset.Modality == "RTSTRUCT":
            for seen in dataset.RTROIObservationsSequence:
                item = pydicom.Dataset()
                item.ROIPhysicalProperty, item.ROIPhysicalPropertyValue = "REL_ELEC_DENSITY", "1.02"
                seen.ROIPhysicalPropertiesSequence = [item]
            dataset.save_as(file)
    return folder


def test_every_command_names_the_densities_that_it_ignored(
    overridden: Path, tmp_path: Path, exported: tuple[Path, Path], stand_in: list[dict], optimiser: StandIn
) -> None:
    rp, rd = exported
    asked = QaSettings(goals="tg119_cshape_easy")
    ignoring = replace(asked, ignore_density_overrides=True)
    influence = InfluenceSettings(spacing_deg=120.0, grid_mm=10.0, beamlet_mm=20.0, voxels_per_structure=5)
    runs = {
        "qa": lambda settings: second_check(rp, overridden, tmp_path / "qa", settings, dose_file=rd),
        "dose": lambda settings: compute_dose(rp, overridden, tmp_path / "dose.dcm", settings),
        "influence": lambda settings: write_influence(
            overridden,
            tmp_path / "d.npz",
            replace(influence, ignore_density_overrides=settings.ignore_density_overrides),
            announce=heard.append,
        ),
        "plan": lambda settings: plan_case(
            overridden,
            tmp_path / "plan",
            replace(SETTINGS, ignore_density_overrides=settings.ignore_density_overrides),
            tools=optimiser.tools,
        ),
    }
    heard: list[str] = []
    for run in runs.values():
        with pytest.raises(CaseError, match="or pass --ignore-density-overrides"):
            run(asked)
    done = {name: run(ignoring) for name, run in runs.items()}
    words = "the densities that the structure set prescribes were ignored"
    for verdict in (done["qa"].verdict, done["plan"].verdict):
        (row,) = (c for c in verdict.checks if c.name == "density overrides")
        assert row.warns and words in row.why and "REL_ELEC_DENSITY 1.02" in row.why
    for page in ("qa", "plan"):
        assert words in (tmp_path / page / "report.html").read_text()
    assert any(words in remark for remark in done["dose"].provenance["remarks"])
    assert any(words in sentence for sentence in heard)


def test_a_plan_of_another_patient_is_improved_by_force_alone_and_named(
    case_folder: Path, tmp_path: Path, exported: tuple[Path, Path], optimiser: StandIn
) -> None:
    rp, _ = exported
    dataset = pydicom.dcmread(rp)
    dataset.PatientID = "OTHER-1"
    dataset.PatientSetupSequence[0].PatientPosition = "FFS"
    del dataset.ReferencedStructureSetSequence
    dataset.save_as(rp)
    settings = replace(SETTINGS, improve=str(rp))
    calls = optimiser()
    with pytest.raises(CaseError, match=r"another patient ID.*or pass --force"):
        plan_case(case_folder, tmp_path / "out", settings, tools=optimiser.tools)
    assert not calls and not (tmp_path / "out").exists()
    run = plan_case(case_folder, tmp_path / "out", replace(settings, force=True), tools=optimiser.tools)
    assert calls[0]["improve"].patient_position == "HFS"
    (row,) = (c for c in run.verdict.checks if c.name == "plan to improve")
    assert row.warns and "forced in spite of: the plan has another patient ID" in row.why
    assert "another patient position" in row.why and "refers to no structure set" not in row.why
    for file in ("report.html", "run.json"):
        text = (tmp_path / "out" / file).read_text()
        assert "forced in spite of: the plan has another patient ID" in text and "OTHER-1" not in text
    with pytest.raises(InputError, match="--improve"):
        plan_settings(goals="tg119_cshape_easy", force=True)
