"""Structure sets to masks: contours as they come, names, the body."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_files import ct_series, cylinder_hu, square, structure_set, write_patient
from pydicom import config

from vmat_diffusion.case import Case
from vmat_diffusion.dicom import read_case
from vmat_diffusion.errors import CaseError

Z = [2.5 * k for k in range(6)]
CLOSED = "CLOSED_PLANAR"
BODY = [(CLOSED, square(0, 0, 16, z)) for z in Z]


def case_with(tmp_path: Path, rois: dict, *, declared: dict | None = None, images=None, **options) -> Case:
    images = images or ct_series()
    return read_case(
        write_patient(tmp_path, images, structure_set(images, rois, declared=declared)), **options
    )


def says(case: Case, start: str) -> bool:
    return any(s.startswith(start) for s in case.source.steps)


def test_contours_between_slices_go_to_the_nearest(tmp_path: Path) -> None:
    case = case_with(tmp_path, {"BODY": BODY, "Rectum": [(CLOSED, square(0, 0, 5, 5.0 + 1.1))]})
    assert np.flatnonzero(case.structures["Rectum"].mask.any(axis=(1, 2))).tolist() == [2]
    assert says(case, "snap-contours: Rectum: contours moved by up to 1.10 mm")


def test_colours_are_read_and_wrong_ones_left_out(tmp_path: Path) -> None:
    """A colour that is none harms no structure: a palette takes its place."""
    images = ct_series()
    names = ("BODY", "Rectum", "Bladder", "Heart", "Lung_L")
    rois = {name: BODY if name == "BODY" else [(CLOSED, square(0, 0, 5, 5.0))] for name in names}
    drawn = structure_set(images, rois)
    colours = ([0, 255, 16], [300, 0, 0], [1, 2], ["x", "y", "z"])
    for item, colour in zip(drawn.ROIContourSequence[1:], colours, strict=True):
        with config.disable_value_validation():
            item.add_new("ROIDisplayColor", "LO" if colour[0] == "x" else "IS", colour)
    case = read_case(write_patient(tmp_path, images, drawn))
    assert set(case.structures) == set(names)
    assert case.source.colours == {"Rectum": "#00ff10"}


def test_two_planes_at_one_slice_do_not_cancel(tmp_path: Path) -> None:
    planes = [(CLOSED, square(0, 0, 5, 5.0)), (CLOSED, square(0, 0, 5, 5.9))]
    case = case_with(tmp_path, {"BODY": BODY, "Rectum": planes})
    assert case.structures["Rectum"].voxels == 16
    assert says(case, "thin-contours: Rectum: 1 contours")


def test_contour_stored_twice_does_not_cancel(tmp_path: Path) -> None:
    case = case_with(tmp_path, {"BODY": BODY, "Rectum": [(CLOSED, square(0, 0, 5, 5.0))] * 2})
    assert case.structures["Rectum"].voxels == 16
    assert says(case, "drop-copies: Rectum")


def test_missing_slices_between_contours_are_filled_as_a_named_step(tmp_path: Path) -> None:
    drawn = [(CLOSED, square(0, 0, 8, Z[1])), (CLOSED, square(0, 0, 8, Z[4]))]
    case = case_with(tmp_path, {"BODY": BODY, "Rectum": drawn})
    assert np.flatnonzero(case.structures["Rectum"].mask.any(axis=(1, 2))).tolist() == [1, 2, 3, 4]
    assert says(case, "fill-slices: Rectum: 2 slices")


def test_points_open_contours_and_empty_regions_are_named(tmp_path: Path) -> None:
    rois = {
        "BODY": BODY,
        "Isocenter": [("POINT", [0.0, 0.0, 5.0])],
        "Rectum": [(CLOSED, square(0, 0, 5, 5.0)), ("OPEN_PLANAR", square(0, 0, 9, 5.0))],
        "Heart": [],
    }
    case = case_with(tmp_path, rois)
    assert set(case.structures) == {"BODY", "Rectum"}
    assert case.structures["Rectum"].voxels == 16
    assert says(case, "ignore-contours: Isocenter: 1 contours POINT")
    assert says(case, "ignore-contours: Rectum: 1 contours OPEN_PLANAR")
    assert says(case, "leave-out: 'Heart' has no closed contour")


def test_organ_contours_on_absent_images_are_dropped_but_targets_refused(tmp_path: Path) -> None:
    beyond = [(CLOSED, square(0, 0, 5, z)) for z in (10.0, 12.5, 15.0)]
    case = case_with(tmp_path / "a", {"BODY": BODY, "Rectum": beyond})
    assert case.structures["Rectum"].voxels == 2 * 16
    assert says(case, "drop-contours: Rectum: 1 of 3 contours, the first at 15.0 mm,")
    with pytest.raises(CaseError, match=r"PTV_60: 1 of 3 contours, the first at 15\.0 mm, lie on no image"):
        case_with(tmp_path / "b", {"BODY": BODY, "PTV60": beyond})


def test_contour_across_the_slices_is_refused(tmp_path: Path) -> None:
    slanted = [0.0, 0.0, 0.0, 5.0, 0.0, 5.0, 5.0, 5.0, 10.0]
    with pytest.raises(CaseError, match=r"spans 10\.0 mm across the slices"):
        case_with(tmp_path, {"BODY": BODY, "Rectum": [(CLOSED, slanted)]})


def test_target_that_holds_no_voxel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="PTV_60 encloses no voxel centre"):
        case_with(tmp_path, {"BODY": BODY, "PTV60": [(CLOSED, square(0.1, 0.1, 0.2, 5.0))]})


def test_better_name_wins_and_equal_claims_are_refused(tmp_path: Path) -> None:
    small, large = [(CLOSED, square(0, 0, 4, 5.0))], [(CLOSED, square(0, 0, 7, 5.0))]
    case = case_with(tmp_path / "a", {"BODY": BODY, "Cord": large, "SpinalCord": small})
    assert case.structures["SpinalCord"].alias == "SpinalCord"
    assert case.structures["Cord"].role == "other"
    assert says(case, "prefer-name: 'SpinalCord' is SpinalCord, 'Cord' keeps its own name")
    with pytest.raises(CaseError, match=r"'PTV70' \(ROI 2\) and 'PTV_7000' \(ROI 3\) both mean PTV_70"):
        case_with(tmp_path / "b", {"BODY": BODY, "PTV70": large, "PTV_7000": small})


def test_unknown_names_keep_a_cleaned_name_of_their_own(tmp_path: Path) -> None:
    drawn = [(CLOSED, square(0, 0, 4, 5.0))]
    case = case_with(tmp_path, {"BODY": BODY, "Ring <1>": drawn, "ring 1": drawn, "<>": drawn})
    assert list(case.structures) == ["BODY", "Ring_1", "ring_1_ROI3", "ROI4"]
    assert {s.role for s in case.structures.values()} == {"body", "other"}


def test_declared_external_is_the_body_whatever_its_name(tmp_path: Path) -> None:
    case = case_with(tmp_path, {"Kontur aussen": BODY}, declared={"Kontur aussen": "EXTERNAL"})
    assert case.body.name == "BODY" and case.body.alias == "Kontur aussen"


def test_holes_in_the_body_are_filled_as_a_named_step(tmp_path: Path) -> None:
    airway = [(CLOSED, square(0, 0, 2, z)) for z in Z]
    case = case_with(tmp_path, {"BODY": BODY + airway})
    assert case.body.mask[:, 7:9, 7:9].all()
    assert says(case, "fill-body: 0.5 cm3 of holes")


def test_body_is_made_from_the_ct_without_the_couch(tmp_path: Path) -> None:
    size, hu = 48, cylinder_hu(6, 48).copy()
    airway = (slice(None), slice(22, 25), slice(22, 25))
    hu[airway] = -1000
    hu[:, 44, 4:44] = 200  # couch top, one pixel thick, apart from the patient
    hu[:, 42:44, 23:25] = 0  # and a pad that links the two
    images = ct_series(hu, origins_mm=[(-72, -72, z) for z in Z])
    case = case_with(tmp_path, {"Rectum": [(CLOSED, square(0, 0, 10, 5.0))]}, images=images)
    assert says(case, "body-from-ct: no body is contoured; largest region above -400 HU")
    body = case.body.mask
    assert body[airway].all() and not body[:, 44].any()
    expected = np.count_nonzero(cylinder_hu(6, size) == 0)
    assert case.body.voxels == pytest.approx(expected, rel=0.02)


def test_empty_ct_has_no_body(tmp_path: Path) -> None:
    images = ct_series(np.full((6, 16, 16), -1000, np.int16))
    with pytest.raises(CaseError, match="contour the body"):
        case_with(tmp_path, {"Rectum": [(CLOSED, square(0, 0, 5, 5.0))]}, images=images)


def test_target_outside_the_body_is_refused_unless_allowed(tmp_path: Path) -> None:
    rois = {"BODY": BODY, "PTV70": [(CLOSED, square(12, 0, 13, 5.0))]}
    with pytest.raises(
        CaseError, match=r"PTV_70 reaches \d mm outside BODY at z = 5\.0 mm; .*--allow-outside-body"
    ):
        case_with(tmp_path / "a", rois)
    assert case_with(tmp_path / "b", rois, allow_outside_body=True).targets[0].name == "PTV_70"
    close = {"BODY": BODY, "PTV70": [(CLOSED, square(12, 0, 7, 5.0))]}
    assert case_with(tmp_path / "c", close).targets[0].voxels > 0


def test_structure_in_another_frame_of_reference_is_refused(tmp_path: Path) -> None:
    images = ct_series()
    structures = structure_set(images)
    structures.StructureSetROISequence[2].ReferencedFrameOfReferenceUID = "1.8"
    with pytest.raises(CaseError, match="cord is drawn in another frame of reference"):
        read_case(write_patient(tmp_path, images, structures))
