"""RT Plan, RT Dose and cases as files: what is in them, and that they appear whole or not at all."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from synthetic_plans import as_study, two_arcs

from vmat_diffusion import __version__
from vmat_diffusion.case import Case, Dose, Prescription, Source
from vmat_diffusion.dicom import (
    as_written,
    files_of_case,
    write_case,
    write_dose,
    write_unjudged_plan,
)
from vmat_diffusion.dicom import dataset as dataset_module
from vmat_diffusion.errors import CaseError, LimitError, PlanError
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Layer, Machine, load_machine
from vmat_diffusion.phantom import phantom
from vmat_diffusion.plan import Arc, Plan, violations


@pytest.fixture(scope="module")
def machine() -> Machine:
    return load_machine("generic_6mv")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return as_study(tmp_path_factory.mktemp("study") / "cylinder", phantom("water_cylinder"))


@pytest.fixture(scope="module")
def plan(case: Case, machine: Machine) -> Plan:
    return two_arcs(case, machine, step_deg=4.0)


@pytest.fixture
def export(tmp_path: Path, case: Case, machine: Machine, plan: Plan) -> Callable[..., Path]:
    def write(changed: Plan = plan, on: Case = case, **options: object) -> Path:
        options = {"prescription": on.prescription, **options}
        return write_unjudged_plan(tmp_path / "RP.dcm", changed, on, machine, **options)  # type: ignore[arg-type]

    return write


@pytest.fixture(scope="module")
def written(
    tmp_path_factory: pytest.TempPathFactory, case: Case, machine: Machine, plan: Plan
) -> pydicom.Dataset:
    path = tmp_path_factory.mktemp("plan") / "RP.dcm"
    assert case.prescription is not None
    return pydicom.dcmread(write_unjudged_plan(path, plan, case, machine, prescription=case.prescription))


def dose_of(case: Case, *, seed: int = 0) -> Dose:
    rng = np.random.default_rng(seed)
    grid = Grid((6, 7, 8), (3.0, 3.0, 2.5), (-60.05, -40.0, -25.0))
    return Dose(grid, (60.0 * rng.random(grid.shape)).astype(np.float32))


# --- the numbers as written --------------------------------------------------------------------


def test_as_written_is_deliverable_and_changes_nothing_twice(plan: Plan, machine: Machine) -> None:
    once = as_written(plan)
    twice = as_written(once)
    assert violations(once, machine) == []
    for a, b in zip(once.arcs, twice.arcs, strict=True):
        assert np.array_equal(a.leaves_mm, b.leaves_mm)
        assert np.array_equal(a.gantry_deg, b.gantry_deg)
        assert a.mu == pytest.approx(b.mu, abs=1e-9)


def test_rounding_never_narrows_a_gap(plan: Plan) -> None:
    arc = plan.arcs[0]
    rng = np.random.default_rng(1)
    middle = rng.uniform(-50, 50, arc.leaves_mm[:, 0].shape)
    gap = rng.uniform(0, 0.6, middle.shape)
    narrow = replace(arc, leaves_mm=np.stack([middle, middle + gap], axis=1))
    after = as_written(replace(plan, arcs=(narrow,))).arcs[0].leaves_mm
    assert np.all(after[:, 1] - after[:, 0] >= gap - 1e-5)
    assert np.abs(after - narrow.leaves_mm).max() <= 0.01 + 1e-9


def test_rounding_keeps_positions_that_are_on_the_raster(plan: Plan) -> None:
    arc = plan.arcs[0]
    on_raster = np.round(arc.leaves_mm, 2)
    after = as_written(replace(plan, arcs=(replace(arc, leaves_mm=on_raster),))).arcs[0]
    assert np.array_equal(after.leaves_mm, on_raster)


# --- RT Plan -----------------------------------------------------------------------------------


def test_the_plan_refers_to_its_study(written: pydicom.Dataset, case: Case) -> None:
    source = case.source
    assert written.StudyInstanceUID == source.study_uid
    assert written.FrameOfReferenceUID == source.frame_of_reference_uid
    assert written.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID == source.structure_set_uid
    assert written.RTPlanGeometry == "PATIENT"
    original = pydicom.dcmread(source.image_path)
    for keyword in ("PatientName", "PatientID", "PatientSex", "StudyID", "StudyDate"):
        assert written[keyword].value == original[keyword].value
    assert written.SeriesInstanceUID != original.SeriesInstanceUID


def test_the_plan_says_who_made_it_and_that_nobody_approved_it(written: pydicom.Dataset) -> None:
    assert written.ApprovalStatus == "UNAPPROVED"
    assert written.Manufacturer == "VMAT Diffusion"
    assert written.SoftwareVersions == __version__
    assert "not for clinical use" in written.RTPlanDescription


def test_metersets_and_weights(written: pydicom.Dataset, plan: Plan) -> None:
    group = written.FractionGroupSequence[0]
    assert group.NumberOfFractionsPlanned == plan.fractions
    assert group.NumberOfBeams == len(plan.arcs)
    metersets = {b.ReferencedBeamNumber: float(b.BeamMeterset) for b in group.ReferencedBeamSequence}
    for beam, arc in zip(written.BeamSequence, plan.arcs, strict=True):
        weights = [p.CumulativeMetersetWeight for p in beam.ControlPointSequence]
        assert weights[0] == 0
        assert str(weights[-1]) in ("1", "1.0")
        assert beam.FinalCumulativeMetersetWeight == 1
        assert np.all(np.diff(weights) >= 0)
        assert metersets[beam.BeamNumber] == pytest.approx(arc.total_mu, abs=1e-6)
        assert np.diff(np.array(weights, float)) * arc.total_mu == pytest.approx(arc.mu, abs=1e-6)


def test_every_control_point_carries_jaws_and_leaves_in_order(
    written: pydicom.Dataset, plan: Plan, machine: Machine
) -> None:
    for beam, arc in zip(written.BeamSequence, plan.arcs, strict=True):
        devices = [d.RTBeamLimitingDeviceType for d in beam.BeamLimitingDeviceSequence]
        assert devices == ["ASYMX", "ASYMY", "MLCX"]
        assert tuple(beam.BeamLimitingDeviceSequence[2].LeafPositionBoundaries) == (
            machine.mlc.layers[0].boundaries_mm
        )
        assert len(beam.ControlPointSequence) == beam.NumberOfControlPoints == len(arc.gantry_deg)
        for k, point in enumerate(beam.ControlPointSequence):
            x, y, leaves = (d.LeafJawPositions for d in point.BeamLimitingDevicePositionSequence)
            assert [*x, *y] == pytest.approx(arc.jaws_mm[k], abs=0.0051)
            assert leaves[:60] == pytest.approx(arc.leaves_mm[k, 0], abs=0.0101)
            assert leaves[60:] == pytest.approx(arc.leaves_mm[k, 1], abs=0.0101)


def test_gantry_angles_and_directions(written: pydicom.Dataset) -> None:
    for beam, direction, ends in zip(
        written.BeamSequence, ("CW", "CC"), ((181, 177), (177, 181)), strict=True
    ):
        points = beam.ControlPointSequence
        angles = [float(p.GantryAngle) for p in points]
        assert (angles[0], angles[-1]) == ends
        assert all(0 <= a < 360 for a in angles)
        assert {p.GantryRotationDirection for p in points[:-1]} == {direction}
        assert points[-1].GantryRotationDirection == "NONE"
        assert beam.BeamType == "DYNAMIC"


def test_the_first_control_point_carries_everything(written: pydicom.Dataset, plan: Plan) -> None:
    for beam, arc in zip(written.BeamSequence, plan.arcs, strict=True):
        point = beam.ControlPointSequence[0]
        assert point.NominalBeamEnergy == 6
        assert point.DoseRateSet == 600
        assert point.BeamLimitingDeviceAngle == arc.collimator_deg
        assert point.PatientSupportAngle == 0
        assert list(point.IsocenterPosition) == [0, 0, 0]
        for keyword in ("BeamLimitingDevice", "PatientSupport", "TableTopEccentric"):
            assert point[f"{keyword}RotationDirection"].value == "NONE"
        for keyword in ("Vertical", "Longitudinal", "Lateral"):
            assert f"TableTop{keyword}Position" in point


def test_source_to_surface_distance_of_a_cylinder(written: pydicom.Dataset) -> None:
    # Radius 100 mm around the isocentre: 900 mm from everywhere, to the 2 mm raster of the mask.
    for beam in written.BeamSequence:
        ssd = [float(p.SourceToSurfaceDistance) for p in beam.ControlPointSequence]
        assert ssd == pytest.approx([900.0] * len(ssd), abs=1.5)


def test_dose_references_name_targets_and_their_contours(
    export: Callable[..., Path], case: Case, plan: Plan
) -> None:
    prescription = Prescription(plan.fractions, {"PTV": 50.0, "Boost": 60.0})
    boost, target = pydicom.dcmread(export(prescription=prescription)).DoseReferenceSequence
    assert (boost.DoseReferenceDescription, boost.DoseReferenceStructureType) == ("Boost", "SITE")
    assert boost.TargetPrescriptionDose == 60
    assert target.DoseReferenceStructureType == "VOLUME"
    assert target.ReferencedROINumber == case.source.roi_numbers["PTV"]


def test_a_machine_without_x_jaws_and_with_two_layers(
    tmp_path: Path, case: Case, machine: Machine, plan: Plan
) -> None:
    layers = (
        Layer("MLCX1", tuple(np.arange(-140.0, 141.0, 10.0))),
        Layer("MLCX2", tuple(np.arange(-145.0, 146.0, 10.0))),
    )
    stacked = replace(machine, jaws=("ASYMY",), mlc=replace(machine.mlc, layers=layers, tongue_mm=0.0))
    arc = plan.arcs[0]
    leaves = arc.leaves_mm[:, :, : stacked.mlc.pairs] + 0.01 * np.arange(stacked.mlc.pairs)
    changed = replace(plan, arcs=(replace(arc, leaves_mm=leaves),))
    assert case.prescription is not None
    path = write_unjudged_plan(tmp_path / "RP.dcm", changed, case, stacked, prescription=case.prescription)
    point = pydicom.dcmread(path).BeamSequence[0].ControlPointSequence[5]
    y, distal, proximal = point.BeamLimitingDevicePositionSequence
    assert list(y.LeafJawPositions) == [-60, 60]
    assert distal.LeafJawPositions == pytest.approx(leaves[5, :, :28].ravel(), abs=0.0101)
    assert proximal.LeafJawPositions == pytest.approx(leaves[5, :, 28:].ravel(), abs=0.0101)


@pytest.mark.parametrize(
    ("mode", "expected", "identifier"), [("STANDARD", "STANDARD", None), ("FFF", "NON_STANDARD", "FFF")]
)
def test_energy_and_fluence_mode(
    tmp_path: Path, case: Case, machine: Machine, plan: Plan, mode: str, expected: str, identifier: str | None
) -> None:
    beam = replace(machine.require_beam(), energy="10 MV", fluence_mode=mode)
    assert case.prescription is not None
    path = write_unjudged_plan(
        tmp_path / "RP.dcm", plan, case, replace(machine, beam=beam), prescription=case.prescription
    )
    first = pydicom.dcmread(path).BeamSequence[0]
    assert first.ControlPointSequence[0].NominalBeamEnergy == 10
    assert first.PrimaryFluenceModeSequence[0].FluenceMode == expected
    assert first.PrimaryFluenceModeSequence[0].get("FluenceModeID") == identifier


def test_a_static_beam(export: Callable[..., Path], plan: Plan) -> None:
    arc = plan.arcs[0]
    still = Arc(
        np.array([90.0, 90.0]),
        0.0,
        0.0,
        arc.leaves_mm[[0, 0]],
        arc.jaws_mm[[0, 0]],
        np.array([50.0]),
        number=3,
    )
    beam = pydicom.dcmread(export(replace(plan, arcs=(still,)))).BeamSequence[0]
    assert beam.BeamType == "STATIC"
    assert {p.GantryRotationDirection for p in beam.ControlPointSequence} == {"NONE"}
    assert beam.BeamName == "Arc 3"


def test_awkward_numbers_stay_within_16_characters(export: Callable[..., Path], plan: Plan) -> None:
    arc = plan.arcs[0]
    odd = replace(arc, gantry_deg=arc.gantry_deg + 1 / 3, collimator_deg=-1 / 7, mu=arc.mu * np.pi)
    path = export(replace(plan, arcs=(odd,), isocenter_mm=(-1e-9, 1 / 3, -123.456789)))
    written = pydicom.dcmread(path)
    dataset_module.check_decimal_lengths(written)
    point = written.BeamSequence[0].ControlPointSequence[0]
    assert point.BeamLimitingDeviceAngle == pytest.approx(359.8571)
    assert list(point.IsocenterPosition) == [0.0, 0.33, -123.46]


def test_angles_just_below_360_are_written_as_0(export: Callable[..., Path], plan: Plan) -> None:
    arc = plan.arcs[0]
    beam = pydicom.dcmread(
        export(replace(plan, arcs=(replace(arc, collimator_deg=359.99999),)))
    ).BeamSequence[0]
    assert beam.ControlPointSequence[0].BeamLimitingDeviceAngle == 0


def test_a_nonascii_patient_name_survives(tmp_path: Path, machine: Machine, plan: Plan) -> None:
    case = as_study(tmp_path / "study", phantom("water_cylinder"))
    image = pydicom.dcmread(case.source.image_path)
    image.SpecificCharacterSet = "ISO_IR 192"
    image.PatientName = "Größe^Ægir"
    image.save_as(case.source.image_path)
    assert case.prescription is not None
    path = write_unjudged_plan(tmp_path / "RP.dcm", plan, case, machine, prescription=case.prescription)
    assert str(pydicom.dcmread(path).PatientName) == "Größe^Ægir"


def test_invalid_dates_and_codes_of_the_ct_are_left_empty_and_named(
    tmp_path: Path, machine: Machine, plan: Plan
) -> None:
    case = as_study(tmp_path / "study", phantom("water_cylinder"))
    image = pydicom.dcmread(case.source.image_path)
    with pydicom.config.disable_value_validation():
        image.PatientBirthDate = "46e04faf-4826"
        image.PatientSex = "unknown"
        image.StudyDate = "20240229"
        image.save_as(case.source.image_path)
    assert case.prescription is not None
    path = write_unjudged_plan(tmp_path / "RP.dcm", plan, case, machine, prescription=case.prescription)
    written = pydicom.dcmread(path)
    assert (written.PatientBirthDate, written.PatientSex, written.StudyDate) == ("", "", "20240229")
    assert written.RTPlanDescription.endswith("PatientBirthDate, PatientSex")
    assert "46e04faf" not in str(written)
    dose = pydicom.dcmread(write_dose(tmp_path / "RD.dcm", dose_of(case), case, plan_file=path))
    assert dose.ImageComments.endswith("PatientBirthDate, PatientSex")


# --- refusals ----------------------------------------------------------------------------------


def test_a_case_that_never_was_dicom_is_refused_with_the_remedy(
    export: Callable[..., Path], case: Case
) -> None:
    with pytest.raises(PlanError, match="write_case"):
        export(on=replace(case, source=Source()))


def test_a_case_without_a_structure_set_is_refused(export: Callable[..., Path], case: Case) -> None:
    with pytest.raises(PlanError, match="structure set"):
        export(on=replace(case, source=replace(case.source, structure_set_uid="")))


def test_a_ct_that_is_gone_is_refused_without_its_path(
    export: Callable[..., Path], case: Case, tmp_path: Path
) -> None:
    gone = replace(case, source=replace(case.source, image_path=str(tmp_path / "Doe_John" / "1.dcm")))
    with pytest.raises(PlanError, match="read the case again") as refusal:
        export(on=gone)
    assert "Doe" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"machine": "other"}, "made for machine other"),
        ({"fractions": 3}, "3 fractions"),
        ({"label": "a label of 20 signs."}, "13"),
        ({"patient_position": "FFS"}, "patient position FFS"),
    ],
)
def test_plans_that_do_not_fit_are_refused(
    export: Callable[..., Path], plan: Plan, tmp_path: Path, change: dict, sentence: str
) -> None:
    with pytest.raises(PlanError, match=sentence):
        export(replace(plan, **change))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"name": "a name that is too long"}, "16"),
        ({"number": 2}, "different"),
        ({"gantry_deg": np.linspace(180.0, 536.0, 90)}, "use 181 or 179"),
        ({"gantry_deg": np.linspace(3.0, 180.0, 90)}, "use 181 or 179"),
    ],
)
def test_beams_that_do_not_fit_are_refused(
    export: Callable[..., Path], plan: Plan, change: dict, sentence: str
) -> None:
    n = len(plan.arcs[0].gantry_deg)
    assert n == 90
    arcs = (replace(plan.arcs[0], **change), plan.arcs[1])
    with pytest.raises(PlanError, match=sentence):
        export(replace(plan, arcs=arcs))


def test_a_plan_that_the_machine_cannot_deliver_is_refused(
    export: Callable[..., Path], plan: Plan, tmp_path: Path
) -> None:
    leaves = plan.arcs[0].leaves_mm.copy()
    leaves[3, :, 30] += 60.0
    with pytest.raises(PlanError, match="leaf speed"):
        export(replace(plan, arcs=(replace(plan.arcs[0], leaves_mm=leaves),)))
    assert list(tmp_path.iterdir()) == []


# --- whole files -------------------------------------------------------------------------------


def test_an_existing_file_is_kept_unless_told_otherwise(export: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "RP.dcm"
    path.write_bytes(b"precious")
    with pytest.raises(PlanError, match="exists already"):
        export()
    assert path.read_bytes() == b"precious"
    export(overwrite=True)
    assert pydicom.dcmread(path).Modality == "RTPLAN"
    assert [p.name for p in tmp_path.iterdir()] == ["RP.dcm"]


def test_a_file_that_appears_meanwhile_is_kept(
    export: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = dataset_module.check_decimal_lengths

    def meanwhile(dataset: pydicom.Dataset) -> None:
        (tmp_path / "RP.dcm").write_bytes(b"another writer")
        original(dataset)

    monkeypatch.setattr(dataset_module, "check_decimal_lengths", meanwhile)
    with pytest.raises(PlanError, match="exists already"):
        export()
    assert (tmp_path / "RP.dcm").read_bytes() == b"another writer"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failing_write_leaves_nothing_behind(
    export: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    def fail(_: int) -> None:
        raise fault

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(LimitError if isinstance(fault, OSError) else KeyboardInterrupt):
        export()
    assert list(tmp_path.iterdir()) == []


def test_a_written_plan_that_differs_is_never_published(
    export: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vmat_diffusion.dicom import rtplan_write

    monkeypatch.setattr(rtplan_write, "_angle_as_written", lambda degrees: 7.0)
    with pytest.raises(PlanError, match="gantry angles"):
        export()
    assert list(tmp_path.iterdir()) == []


def test_over_long_decimals_are_found_in_any_sequence(written: pydicom.Dataset, tmp_path: Path) -> None:
    over_long = copy.deepcopy(written)
    point = over_long.BeamSequence[1].ControlPointSequence[2]
    point.CumulativeMetersetWeight = 1 / 3e7  # pydicom writes all digits of a plain float
    with pytest.raises(PlanError, match="CumulativeMetersetWeight"):
        dataset_module.save_whole(tmp_path / "RP.dcm", over_long)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(case: Case, machine: Machine, plan: Plan, tmp_path: Path) -> None:
    assert case.prescription is not None
    with pytest.raises(PlanError, match="create it first"):
        write_unjudged_plan(tmp_path / "no" / "RP.dcm", plan, case, machine, prescription=case.prescription)


# --- RT Dose -----------------------------------------------------------------------------------


def test_dose_round_trip_in_gy_and_place(export: Callable[..., Path], case: Case, tmp_path: Path) -> None:
    plan_file, dose = export(), dose_of(case)
    written = pydicom.dcmread(write_dose(tmp_path / "RD.dcm", dose, case, plan_file=plan_file))
    gy = written.pixel_array * float(written.DoseGridScaling)
    # Half a unit of 31 bits, twice for the division and the rounding of the factor to 16 characters.
    assert np.abs(gy - dose.gy).max() <= dose.gy.max() * 2**-31
    assert list(written.ImagePositionPatient) == [-60.05, -40.0, -25.0]
    assert list(written.PixelSpacing) == [3.0, 3.0]
    assert list(written.GridFrameOffsetVector) == [0, 2.5, 5, 7.5, 10, 12.5]
    assert written.FrameIncrementPointer == pydicom.tag.Tag("GridFrameOffsetVector")
    plan = pydicom.dcmread(plan_file)
    assert written.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID == plan.SOPInstanceUID
    assert written.StudyInstanceUID == plan.StudyInstanceUID
    assert written.FrameOfReferenceUID == plan.FrameOfReferenceUID
    assert (written.DoseUnits, written.DoseType, written.DoseSummationType) == ("GY", "PHYSICAL", "PLAN")
    assert len(written["DoseGridScaling"].value.original_string) <= 16


def test_a_dose_on_uneven_voxels_keeps_rows_and_columns_apart(case: Case, tmp_path: Path) -> None:
    grid = Grid((2, 3, 4), (2.0, 3.0, 5.0), (0.0, 0.0, 0.0))
    gy = np.arange(24, dtype=np.float32).reshape(grid.shape)
    path = write_dose(tmp_path / "RD.dcm", Dose(grid, gy), case, plan_file=None)
    written = pydicom.dcmread(path)
    assert list(written.PixelSpacing) == [3.0, 2.0]  # between rows (y), then between columns (x)
    assert (written.NumberOfFrames, written.Rows, written.Columns) == (2, 3, 4)
    assert written.pixel_array * float(written.DoseGridScaling) == pytest.approx(gy, abs=1e-6)


def test_no_dose_at_all_can_be_written(case: Case, tmp_path: Path) -> None:
    grid = Grid((2, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    path = write_dose(tmp_path / "RD.dcm", Dose(grid, np.zeros(grid.shape)), case, plan_file=None)
    assert not pydicom.dcmread(path).pixel_array.any()


def test_a_negative_dose_is_refused(case: Case, tmp_path: Path) -> None:
    dose = dose_of(case)
    with pytest.raises(CaseError, match="below zero"):
        write_dose(tmp_path / "RD.dcm", replace(dose, gy=dose.gy - 1), case, plan_file=None)
    assert list(tmp_path.iterdir()) == []


def test_a_dose_never_refers_to_what_is_no_plan_of_its_patient(
    export: Callable[..., Path], case: Case, tmp_path: Path
) -> None:
    dose = dose_of(case)
    with pytest.raises(PlanError, match="no RT Plan"):
        write_dose(tmp_path / "RD.dcm", dose, case, plan_file=case.source.image_path)
    other = as_study(tmp_path / "other", phantom("water_cylinder"))
    with pytest.raises(PlanError, match="frame of reference"):
        write_dose(tmp_path / "RD.dcm", dose, other, plan_file=export())


# --- cases -------------------------------------------------------------------------------------


def test_a_case_is_written_whole_into_an_empty_folder_only(tmp_path: Path) -> None:
    case = phantom("tg119_multitarget")
    folder = tmp_path / "deep" / "case"
    files = write_case(folder, case)
    assert len(files) == case.grid.shape[0] + 1
    assert all(f.is_file() for f in files)
    assert [p.name for p in folder.parent.iterdir()] == ["case"]
    with pytest.raises(CaseError, match="not empty"):
        write_case(folder, case)


def test_a_case_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    case = phantom("water_cylinder")
    with pytest.raises(CaseError, match="16 bits"):
        write_case(tmp_path / "case", replace(case, hu=case.hu.astype(np.float32) + 40000))
    assert list(tmp_path.iterdir()) == []


def test_slices_carry_hu_and_place(tmp_path: Path) -> None:
    case = phantom("thorax")
    files = write_case(tmp_path / "case", case)
    image = pydicom.dcmread(files[10])
    hu = image.pixel_array * float(image.RescaleSlope) + float(image.RescaleIntercept)
    assert np.array_equal(hu, case.hu[10])
    x, y, z = case.grid.axes_mm
    assert list(image.ImagePositionPatient) == pytest.approx([x[0], y[0], z[10]])
    assert image.PatientPosition == "HFS"
    uids = {pydicom.dcmread(f, stop_before_pixels=True).SOPInstanceUID for f in files}
    assert len(uids) == len(files)


def test_the_files_of_a_case_are_known_again_and_no_others(tmp_path: Path) -> None:
    case = phantom("tg119_cshape")
    folder = tmp_path / "case"
    written = {path.name for path in write_case(folder, case)}
    (folder / "CT.999.dcm").write_text("somebody's")
    assert set(files_of_case(folder, case)) == written
    assert files_of_case(folder, replace(case, id="another")) == []
    assert files_of_case(tmp_path / "absent", case) == []
