"""Strict for targets, the body and organs, tolerant for helper structures; references decide what belongs."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
from dicom_files import (
    FRAME,
    SERIES,
    beam,
    ct_series,
    header,
    rt_dose,
    rt_plan,
    set_pixels,
    square,
    structure_set,
    write_patient,
)
from pydicom.dataset import Dataset

from vmat_diffusion.dataset.dicom_tree import cases_in_tree
from vmat_diffusion.dicom import inspect, read_case, read_dose, refuse_density_overrides
from vmat_diffusion.dicom.folder import open_folder
from vmat_diffusion.errors import CaseError

Z = [2.5 * k for k in range(6)]
CLOSED = "CLOSED_PLANAR"
BODY = [(CLOSED, square(0, 0, 16, z)) for z in Z]
PTV = [(CLOSED, square(0, 0, 5, z)) for z in Z[1:4]]
SAGITTAL = [0.0, -5.0, 0.0, 0.0, 5.0, 0.0, 0.0, 5.0, 10.0, 0.0, -5.0, 10.0]


def says(steps: tuple[str, ...], start: str) -> bool:
    return any(s.startswith(start) for s in steps)


def _odd_count(roi: Dataset, region: Dataset) -> None:
    roi.ContourSequence[0].ContourData = roi.ContourSequence[0].ContourData[:-1]


def _one_number(roi: Dataset, region: Dataset) -> None:
    roi.ContourSequence[0].ContourData = [1.0]


def _no_number(roi: Dataset, region: Dataset) -> None:
    roi.ContourSequence[0].ContourData = None


def _text(roi: Dataset, region: Dataset) -> None:
    roi.ContourSequence[0].ContourGeometricType = "closed?"


def _no_type(roi: Dataset, region: Dataset) -> None:
    del roi.ContourSequence[0].ContourGeometricType


def _unknown_type(roi: Dataset, region: Dataset) -> None:
    roi.ContourSequence[0].ContourGeometricType = "CLOSED_CURVED"


def _sagittal(roi: Dataset, region: Dataset) -> None:
    roi.ContourSequence[0].ContourData = SAGITTAL


def _other_frame(roi: Dataset, region: Dataset) -> None:
    region.ReferencedFrameOfReferenceUID = "1.8"


def _beyond(roi: Dataset, region: Dataset) -> None:
    for contour in roi.ContourSequence:
        contour.ContourData = square(0, 0, 5, 90.0)


@pytest.mark.parametrize(
    "damage",
    [_no_type, _unknown_type, _odd_count, _one_number, _no_number, _text, _sagittal, _other_frame, _beyond],
)
@pytest.mark.parametrize("name", ["zz ring", "PTV60", "BODY", "Rectum"])
def test_one_bad_ring_costs_a_helper_but_no_patient(
    tmp_path: Path, damage: Callable[[Dataset, Dataset], None], name: str
) -> None:
    images = ct_series()
    structures = structure_set(images, {"BODY": BODY, "PTV60": PTV, "zz ring": PTV, "Rectum": PTV})
    place = ["BODY", "PTV60", "zz ring", "Rectum"].index(name)
    damage(structures.ROIContourSequence[place], structures.StructureSetROISequence[place])
    folder = write_patient(tmp_path, images, structures)
    if name != "zz ring":
        with pytest.raises(CaseError):
            read_case(folder)
        return
    case = read_case(folder)
    assert set(case.structures) == {"BODY", "PTV_60", "Rectum"}
    assert says(case.source.steps, "leave-out: 'zz ring': ")


def test_body_beyond_the_images_is_cut_with_a_step(tmp_path: Path) -> None:
    images = ct_series()
    longer = [(CLOSED, square(0, 0, 16, z)) for z in (-2.5, *Z, 15.0)]
    case = read_case(write_patient(tmp_path, images, structure_set(images, {"BODY": longer, "PTV60": PTV})))
    assert says(case.source.steps, "drop-contours: BODY: 2 of 8 contours, the first at -2.5 mm")


def test_a_region_without_contours_claims_no_name(tmp_path: Path) -> None:
    images = ct_series()
    rois = {"PTV_60": [], "BODY": BODY, "PTV60": PTV, "External": []}
    case = read_case(write_patient(tmp_path, images, structure_set(images, rois)))
    assert set(case.structures) == {"BODY", "PTV_60"} and case.structures["PTV_60"].alias == "PTV60"


def test_outlines_between_drawn_ones_are_closed_and_open_lines_in_a_target_are_refused(
    tmp_path: Path,
) -> None:
    images = ct_series()
    kinds = ["INTERPOLATED_PLANAR", CLOSED, "OPEN_PLANAR"]
    ring = [*square(0, 0, 5, Z[3]), *square(0, 0, 5, Z[3])[:3]]
    drawn = [(kind, square(0, 0, 5, z)) for kind, z in zip(kinds[:2], Z[1:], strict=False)]
    rois = {"BODY": BODY, "PTV60": [*drawn, ("OPEN_PLANAR", ring)]}
    case = read_case(write_patient(tmp_path / "a", images, structure_set(images, rois)))
    assert case.structures["PTV_60"].mask.any(axis=(1, 2)).tolist() == [False, True, True, True, False, False]
    assert says(case.source.steps, "close-contours: PTV_60: 1 contours INTERPOLATED_PLANAR taken as closed")
    rois["PTV60"][-1] = ("OPEN_PLANAR", square(0, 0, 5, Z[3]))
    with pytest.raises(CaseError, match="PTV_60: 1 contours are open lines"):
        read_case(write_patient(tmp_path / "b", images, structure_set(images, rois)))


def test_same_unknown_names_have_volumes_of_their_own(tmp_path: Path) -> None:
    images = ct_series()
    rois = {"BODY": BODY, "PTV60": PTV, "lesion": PTV, "Lesion": [(CLOSED, square(0, 0, 8, Z[1]))]}
    structures = structure_set(images, rois)
    for region in structures.StructureSetROISequence[2:]:
        region.ROIName = "lesion"
    found = inspect(write_patient(tmp_path, images, structures)).structures
    assert found[2].volume_cc == pytest.approx(3 * 16 * 0.0225) and found[3].volume_cc == pytest.approx(0.81)


def _named_by_contours(images: list[Dataset], structures: Dataset) -> Dataset:
    for roi in structures.ROIContourSequence:
        for contour in roi.ContourSequence:
            image = next(i for i in images if i.ImagePositionPatient[2] == contour.ContourData[2])
            item = Dataset()
            item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = (
                image.SOPClassUID,
                image.SOPInstanceUID,
            )
            contour.ContourImageSequence = [item]
    return structures


@pytest.mark.parametrize("header_names", ["nothing", "all", "another"])
def test_the_images_that_contours_name_decide(tmp_path: Path, header_names: str) -> None:
    phases = [ct_series(series=f"{SERIES}.{k}") for k in range(3)]
    structures = _named_by_contours(phases[1], structure_set(phases[0]))
    frame = structures.ReferencedFrameOfReferenceSequence[0]
    study = frame.RTReferencedStudySequence[0]
    if header_names == "nothing":
        del frame.RTReferencedStudySequence
    elif header_names == "all":
        study.RTReferencedSeriesSequence = [
            structure_set(images).ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0]
            .RTReferencedSeriesSequence[0]
            for images in phases
        ]  # fmt: skip
    folder = write_patient(tmp_path, [i for images in phases for i in images], structures)
    if header_names == "another":
        with pytest.raises(
            CaseError, match=r"the header names the CT series .*, the contours name images of"
        ):
            read_case(folder)
        return
    assert read_case(folder).source.series_uid == f"{SERIES}.1"
    (case,), _ = cases_in_tree(tmp_path)
    assert {image.series_uid for image in case.images} == {f"{SERIES}.1"}


def test_of_two_structure_sets_the_dose_decides_then_the_plan(tmp_path: Path) -> None:
    images = ct_series()
    other = structure_set(images, uid="1.2.3.44")
    for name, more in (("plan", [rt_plan()]), ("dose", [rt_dose(), rt_plan()])):
        folder = write_patient(tmp_path / name, images, structure_set(images), other, *more)
        case = read_case(folder)
        assert case.source.structure_set_uid == "1.2.3.4"
        assert says(case.source.steps, f"follow-references: the {name} belongs to structure set file006")
    with pytest.raises(CaseError, match="2 structure sets fit the CT"):
        read_case(write_patient(tmp_path / "none", images, structure_set(images), other))


def test_dose_without_a_frame_is_followed_to_the_ct_and_one_of_another_frame_is_named(tmp_path: Path) -> None:
    images = ct_series()
    dose = rt_dose()
    dose.FrameOfReferenceUID = ""
    case = read_case(write_patient(tmp_path / "a", images, structure_set(images), dose, rt_plan()))
    assert case.reference_dose is not None and says(case.source.steps, "follow-references: file007 states no")
    case = read_case(write_patient(tmp_path / "b", images, structure_set(images), dose))
    assert case.reference_dose is None and says(case.source.steps, "leave-out-dose: file007 states no frame")
    dose.FrameOfReferenceUID = FRAME + ".404"
    folder = write_patient(tmp_path / "c", images, structure_set(images), dose, rt_plan())
    found = inspect(folder)
    assert says(found.steps, "leave-out-dose: file007: the dose has another frame of reference than the CT")
    assert found.doses[0].endswith("not the dose of the case, see the steps")


def test_dose_of_the_plan_comes_before_those_of_its_beams(tmp_path: Path) -> None:
    images = ct_series()
    gy = np.linspace(0, 70, 4 * 6 * 7).reshape(4, 6, 7)
    for share, verdict in ((0.6, "agrees with it"), (0.5, "DIFFERS from it")):
        doses = [rt_dose(gy)]
        doses += [
            rt_dose(gy * f, summation="BEAM", beams=[k], uid=f"1.2.3.6{k}") for k, f in ((1, share), (2, 0.4))
        ]
        plan = rt_plan([beam(1), beam(2)])
        folder = write_patient(tmp_path / verdict[:3], images, structure_set(images), *doses, plan)
        case = read_case(folder)
        assert case.reference_dose is not None
        assert case.reference_dose.gy.max() == pytest.approx(70, rel=1e-3)
        assert any(s.startswith("choose-dose") and verdict in s for s in case.source.steps)


def test_two_prescriptions_of_one_region_are_named(tmp_path: Path) -> None:
    images, plan = ct_series(), rt_plan()
    second = deepcopy(plan.DoseReferenceSequence[0])
    second.DoseReferenceNumber, second.TargetPrescriptionDose = 2, 66
    plan.DoseReferenceSequence = [plan.DoseReferenceSequence[0], second]
    case = read_case(write_patient(tmp_path, images, structure_set(images), plan))
    assert case.prescription is None
    assert says(case.source.steps, "leave-out-prescription: the plan prescribes 60 Gy and 66 Gy to ROI 2")


@pytest.mark.parametrize("kind", ["RTSTRUCT", "RTDOSE"])
def test_files_of_two_patients_do_not_meet(tmp_path: Path, kind: str) -> None:
    images, structures, dose = ct_series(), structure_set(ct_series()), rt_dose()
    (structures if kind == "RTSTRUCT" else dose).PatientID = "ANOTHER"
    folder = write_patient(tmp_path, images, structures, dose)
    if kind == "RTSTRUCT":
        with pytest.raises(CaseError, match="has another patient ID") as refusal:
            read_case(folder)
        assert "ANOTHER" not in str(refusal.value)
    else:
        case = read_case(folder)
        assert case.reference_dose is None
        assert says(case.source.steps, "leave-out-dose: file007: the dose has another patient ID than the CT")


@pytest.mark.parametrize("lowest", [-0.1, -30.0])
def test_negative_dose_is_refused_or_set_to_zero_with_a_step(tmp_path: Path, lowest: float) -> None:
    gy = np.full((4, 6, 7), 60.0)
    gy[0, 0] = lowest
    dose = rt_dose(np.maximum(gy, 0))
    dose.DoseGridScaling = 0.001
    set_pixels(dose, np.round(gy / 0.001), np.dtype("<i4"))
    folder = write_patient(tmp_path, ct_series(), structure_set(ct_series()), dose)
    if lowest < -1:
        with pytest.raises(CaseError, match="7 voxels have a negative dose, down to -30 Gy"):
            read_dose(folder / "file007")
        return
    read = read_dose(folder / "file007")
    assert read.gy.min() == 0
    assert "floor-dose: 7 voxels with a negative dose, down to -0.1 Gy, set to 0" in read.provenance["steps"]


@pytest.mark.parametrize("stored", [12, 10, 16])
def test_pixels_at_the_upper_end_are_shifted_as_high_bit_says(tmp_path: Path, stored: int) -> None:
    plain = read_case(write_patient(tmp_path / "plain")).hu
    images = ct_series()
    for image in images:
        # 0 and 1000 fit into 10 bits; signed 10 bit numbers reach 511.
        values = np.frombuffer(image.PixelData, "<i2").reshape(16, 16) // (2 if stored == 10 else 1)
        image.RescaleSlope = 2 if stored == 10 else 1
        set_pixels(image, values.astype(np.int32) << (16 - stored), np.dtype("<i2"))
        image.BitsStored, image.HighBit = stored, 15
    case = read_case(write_patient(tmp_path / "left", images))
    np.testing.assert_array_equal(case.hu, plain)
    assert says(case.source.steps, "shift-pixels:") == (stored < 16)
    if stored < 16:
        set_pixels(images[0], np.full((16, 16), 1001), np.dtype("<i2"))
        images[0].BitsStored, images[0].HighBit = stored, 15
        with pytest.raises(CaseError, match=r"HighBit \(0028,0102\) is 15 with \d+ bits stored"):
            read_case(write_patient(tmp_path / "not", images))


def test_density_overrides_are_named_and_refused_for_doses(tmp_path: Path) -> None:
    images = ct_series()
    structures = structure_set(images)
    item = Dataset()
    item.ROIPhysicalProperty, item.ROIPhysicalPropertyValue = "REL_ELEC_DENSITY", 0.26
    structures.RTROIObservationsSequence[2].ROIPhysicalPropertiesSequence = [item]
    case = read_case(write_patient(tmp_path / "a", images, structures))
    assert "density-override: ROI 3 (organ): REL_ELEC_DENSITY 0.26" in case.source.steps
    with pytest.raises(CaseError, match=r"overrides the tissue of ROI 3 \(organ\): REL_ELEC_DENSITY 0\.26"):
        refuse_density_overrides(case)
    item.ROIPhysicalPropertyValue = None
    refuse_density_overrides(read_case(write_patient(tmp_path / "b", images, structures)))


def test_multi_frame_ct_and_a_file_for_a_folder_are_said_so(tmp_path: Path) -> None:
    enhanced = header("1.2.840.10008.5.1.4.1.1.2.1", "CT", "1.2.3.7")
    folder = write_patient(tmp_path / "a", [enhanced], structure_set(ct_series()))
    with pytest.raises(CaseError, match=r"file000: the CT is an enhanced multi-frame object.*convert it"):
        read_case(folder)
    with pytest.raises(CaseError, match="file000 is a file; give the folder"):
        open_folder(folder / "file000")


@pytest.mark.parametrize("by", ["dose", "plan"])
def test_what_a_dose_names_itself_decides_between_structure_sets(tmp_path: Path, by: str) -> None:
    """ReferencedStructureSetSequence of the dose, or else that of its plan."""
    images = ct_series()
    first, second = structure_set(images), structure_set(images, uid="1.2.3.44")
    dose, plan = rt_dose(), rt_plan()
    (dose if by == "dose" else plan).ReferencedStructureSetSequence = [Dataset()]
    named = (dose if by == "dose" else plan).ReferencedStructureSetSequence[0]
    named.ReferencedSOPClassUID, named.ReferencedSOPInstanceUID = second.SOPClassUID, "1.2.3.44"
    others = (dose,) if by == "dose" else (dose, plan)
    case = read_case(write_patient(tmp_path, images, first, second, *others))
    assert case.source.structure_set_uid == "1.2.3.44" and case.reference_dose is not None
    assert says(case.source.steps, "follow-references: the dose belongs to structure set")


def test_of_two_plans_the_dose_decides_what_is_prescribed(tmp_path: Path) -> None:
    images = ct_series()
    other = rt_plan()
    other.SOPInstanceUID, other.DoseReferenceSequence[0].TargetPrescriptionDose = "1.2.3.99", 66
    without = read_case(write_patient(tmp_path / "a", images, structure_set(images), rt_plan(), other))
    assert without.prescription is None
    assert says(without.source.steps, "leave-out-prescription: 2 plans are made on the structure set")
    dose = rt_dose()
    dose.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID = "1.2.3.99"
    case = read_case(write_patient(tmp_path / "b", images, structure_set(images), rt_plan(), other, dose))
    assert case.prescription is not None and dict(case.prescription.target_gy) == {"PTV_70": 66.0}


def test_only_targets_are_prescribed_to_and_only_by_a_plan_of_the_patient(tmp_path: Path) -> None:
    images = ct_series()
    plan = rt_plan()
    extra = deepcopy(plan.DoseReferenceSequence[0])
    extra.DoseReferenceNumber, extra.ReferencedROINumber, extra.TargetPrescriptionDose = 2, 3, 45
    plan.DoseReferenceSequence.append(extra)
    case = read_case(write_patient(tmp_path / "a", images, structure_set(images), plan))
    assert case.prescription is not None and dict(case.prescription.target_gy) == {"PTV_70": 60.0}
    assert says(case.source.steps, "leave-out-prescription: 45 Gy to SpinalCord, which is no target")
    plan.PatientID = "somebody else"
    case = read_case(write_patient(tmp_path / "b", images, structure_set(images), plan))
    assert case.prescription is None
    assert any("bears another patient's ID than the CT" in step for step in case.source.steps)
    assert not any("somebody" in step for step in case.source.steps)


def test_of_several_external_regions_the_one_named_so_is_the_body(tmp_path: Path) -> None:
    images = ct_series()
    rois = {"Couch": PTV, "BODY": BODY, "PTV60": PTV}
    structures = structure_set(images, rois, declared={"Couch": "EXTERNAL", "BODY": "EXTERNAL"})
    case = read_case(write_patient(tmp_path, images, structures))
    assert case.structures["BODY"].role == "body" and case.structures["Couch"].role == "other"
    assert says(case.source.steps, "prefer-name: 'BODY' is BODY, 'Couch' keeps its own name")


def test_a_target_made_for_evaluation_steps_back_behind_its_own(tmp_path: Path) -> None:
    images = ct_series()
    rois = {"PTV70_eval": PTV, "BODY": BODY, "PTV_7000": PTV}
    case = read_case(write_patient(tmp_path, images, structure_set(images, rois)))
    assert case.structures["PTV_70"].alias == "PTV_7000" and case.structures["PTV70_eval"].role == "other"


@pytest.mark.parametrize("slope", [0, -1])
def test_a_slope_that_is_no_factor_is_refused_on_any_slice(tmp_path: Path, slope: int) -> None:
    images = ct_series()
    images[4].RescaleSlope = slope
    with pytest.raises(CaseError, match=rf"RescaleSlope \(0028,1053\) is {slope}; a positive factor"):
        read_case(write_patient(tmp_path, images))


def test_one_image_of_another_patient_is_said_so(tmp_path: Path) -> None:
    images = ct_series()
    images[3].PatientID = "somebody else"
    with pytest.raises(CaseError, match="the CT bears the IDs of two patients"):
        read_case(write_patient(tmp_path, images))
