"""CT series and whole folders, on a patient made slice by slice with pydicom."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from dicom_files import (
    FRAME,
    ct_series,
    cylinder_hu,
    header,
    rt_dose,
    rt_plan,
    save,
    set_pixels,
    square,
    structure_set,
    write_patient,
)
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from vmat_diffusion.dicom import attributes, inspect, read_case
from vmat_diffusion.dicom.attributes import open_dataset, stored_values
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid


def steps(folder: Path, **options: object) -> str:
    return "\n".join(read_case(folder, **options).source.steps)  # type: ignore[arg-type]


def marked_hu(slices: int = 6, size: int = 16) -> np.ndarray:
    """A cylinder with a different value in every voxel of water, so that any mix-up shows."""
    hu = cylinder_hu(slices, size).copy()
    hu[hu == 0] = np.arange(np.count_nonzero(hu == 0)) % 500
    return hu


def test_whole_folder_becomes_a_case(tmp_path: Path) -> None:
    hu = marked_hu()
    images = ct_series(hu)
    case = read_case(
        write_patient(tmp_path / "p", images, structure_set(images), rt_dose(), rt_plan()), site="hn"
    )
    assert case.grid.matches(Grid((6, 16, 16), (3.0, 3.0, 2.5), (-22.5, -22.5, 0.0)))
    np.testing.assert_array_equal(case.hu, hu)
    assert {n: s.role for n, s in case.structures.items()} == {
        "BODY": "body",
        "PTV_70": "target",
        "SpinalCord": "organ",
    }
    assert case.structures["SpinalCord"].alias == "cord"
    assert case.structures["PTV_70"].voxels == 4 * 4 * 4
    assert case.prescription is not None
    assert dict(case.prescription.target_gy) == {"PTV_70": 60.0} and case.prescription.fractions == 30
    assert case.reference_dose is not None and case.reference_dose.gy.max() == pytest.approx(70, abs=1e-4)
    source = case.source
    assert source.frame_of_reference_uid == FRAME and source.structure_set_uid == "1.2.3.4"
    assert source.image_uids == tuple(f"1.2.3.3.{k + 1}" for k in range(6))
    assert dict(source.roi_numbers) == {"BODY": 1, "PTV_70": 2, "SpinalCord": 3}
    assert Path(source.image_path).is_file()
    assert case.site == "hn" and case.patient_position == "HFS"


def test_nothing_shown_carries_the_patients_name_or_number(tmp_path: Path) -> None:
    folder = write_patient(tmp_path / "p")
    case = read_case(folder)
    shown = "\n".join([case.id, *case.source.steps, *inspect(folder).lines()])
    assert "Secret" not in shown and "SECRET" not in shown
    assert case.id == read_case(folder).id and case.id.startswith("case-")


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_other_byte_orders(tmp_path: Path, syntax: str) -> None:
    hu = marked_hu()
    kind = np.dtype(">i2") if syntax == ExplicitVRBigEndian else np.dtype("<i2")
    images = ct_series(hu)
    for k, image in enumerate(images):
        set_pixels(image, hu[k].astype(np.int32) + 1000, kind)
        save(image, tmp_path / f"{k}", syntax)  # type: ignore[arg-type]
    save(structure_set(images), tmp_path / "rs", syntax)  # type: ignore[arg-type]
    np.testing.assert_array_equal(read_case(tmp_path).hu, hu)


def test_twelve_bits_unsigned_with_overlays_in_the_spare_bits(tmp_path: Path) -> None:
    hu = marked_hu()
    images = ct_series(hu)
    for k, image in enumerate(images):
        set_pixels(image, (hu[k].astype(np.int32) + 1000) | 0x9000, np.dtype("<u2"))
        image.BitsStored, image.HighBit = 12, 11
    np.testing.assert_array_equal(read_case(write_patient(tmp_path, images)).hu, hu)


def test_run_length_compressed_images(tmp_path: Path) -> None:
    hu = marked_hu()
    images = ct_series(hu)
    structures = structure_set(images)
    for k, image in enumerate(images):
        save(image, tmp_path / f"{k}")
        image.compress(RLELossless)
        image.save_as(tmp_path / f"{k}")
    save(structures, tmp_path / "rs")
    np.testing.assert_array_equal(read_case(tmp_path).hu, hu)


@pytest.mark.parametrize("name", ["MR_small_RLE", "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless"])
def test_lossless_compression_changes_no_pixel(name: str) -> None:
    """pydicom's example image, plain and compressed: 16 bits with a sign."""
    plain, compressed = (
        open_dataset(Path(str(get_testdata_file(f"{n}.dcm", download=False))), pixels=True)
        for n in ("MR_small", name)
    )
    assert plain is not None and compressed is not None
    np.testing.assert_array_equal(stored_values(compressed), stored_values(plain))


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLosslessSV1, JPEGLSLossless, JPEG2000, RLELossless])
def test_the_usual_compressions_have_a_decoder(syntax: UID) -> None:
    assert get_decoder(syntax).is_available


def test_another_compression_is_refused_by_name(tmp_path: Path) -> None:
    images = ct_series()
    folder = write_patient(tmp_path, images)
    images[0].file_meta.TransferSyntaxUID = HTJ2KLossless
    images[0].PixelData = encapsulate([b"1234"])
    images[0].save_as(folder / "file000")
    with pytest.raises(CaseError, match=r"High-Throughput JPEG 2000.*export the images uncompressed"):
        read_case(folder)


@pytest.mark.parametrize(
    ("value", "vr", "kind", "stored"),
    [(-2000, "SS", "<i2", -2000), (63536, "US", "<i2", -2000), (63536, "US", "<u2", 63536)],
)
def test_padding_becomes_air_however_its_sign_is_written(
    tmp_path: Path, value: int, vr: str, kind: str, stored: int
) -> None:
    images = ct_series()
    for image in images:
        pixels = cylinder_hu(1, 16)[0].astype(np.int32) + 1000
        pixels[0] = stored
        set_pixels(image, pixels, np.dtype(kind))
        image.add_new("PixelPaddingValue", vr, value)
    case = read_case(write_patient(tmp_path, images))
    assert np.all(case.hu[:, 0] == -1000)
    assert any(s.startswith("fill-padding: 96 ") for s in case.source.steps)


def test_slices_are_ordered_by_position_not_by_name(tmp_path: Path) -> None:
    hu = marked_hu()
    images = ct_series(hu)
    structures = structure_set(images)
    shuffled = [images[k] for k in (3, 0, 5, 1, 4, 2)]
    case = read_case(write_patient(tmp_path, shuffled, structures))
    np.testing.assert_array_equal(case.hu, hu)


@pytest.mark.parametrize(
    ("orientation", "flips", "axes"),
    [
        ((-1, 0, 0, 0, -1, 0), (1, 2), (0, 1, 2)),  # turned round within the plane
        ((1, 0, 0, 0, -1, 0), (0, 1), (0, 1, 2)),  # mirrored: slices ascend towards the feet
        ((0, 1, 0, 1, 0, 0), (0,), (0, 2, 1)),  # rows and columns swapped
        ((1, 0, 0, 0, 0, -1), (1,), (1, 0, 2)),  # coronal
        ((0, 1, 0, 0, 0, -1), (1,), (1, 2, 0)),  # sagittal
    ],
)
def test_orientations_along_the_axes_are_exact(
    tmp_path: Path, orientation: tuple[int, ...], flips: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    """The value at a patient position is the one that the pixel's own coordinates say."""
    rng = np.random.default_rng(1)
    stored = rng.integers(-900, 900, (5, 16, 12)).astype(np.int16)
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    normal = np.cross(row, column)
    start = np.array([10.0, 20.0, 30.0])
    images = ct_series(
        stored,
        spacing_mm=(3.0, 2.0),
        origins_mm=[start + 4.0 * k * normal for k in range(5)],
        orientation=orientation,
    )
    centre = start + 7 * 3.0 * column + 6 * 2.0 * row
    planes = [centre + 4.0 * k * normal for k in range(5)]
    corners = ((-3, -3), (3, -3), (3, 3), (-3, 3))
    drawn = [
        ("CLOSED_PLANAR", [float(v) for a, b in corners for v in p + a * 2.0 * row + b * 3.0 * column])
        for p in planes
    ]
    folder = write_patient(tmp_path, images, structure_set(images, {"External": drawn}))
    case = read_case(folder)
    assert "turn-oblique" not in "".join(case.source.steps)
    for k, j, i in [(0, 0, 0), (4, 15, 11), (2, 3, 7)]:
        point = start + 4.0 * k * normal + j * 3.0 * column + i * 2.0 * row
        z, y, x = np.round(case.grid.index(point)).astype(int)
        np.testing.assert_allclose(case.grid.index(point), (z, y, x), atol=1e-6)
        assert case.hu[z, y, x] == stored[k, j, i]
    inside = start + 4.0 * 2 * normal + 7 * 3.0 * column + 6 * 2.0 * row
    z, y, x = np.round(case.grid.index(inside)).astype(int)
    assert case.body.mask[z, y, x] and case.body.voxels == 5 * 7 * 7


def test_oblique_series_is_resampled_and_says_so(tmp_path: Path) -> None:
    turn = np.radians(20)
    row, column = np.array([np.cos(turn), np.sin(turn), 0]), np.array([-np.sin(turn), np.cos(turn), 0])
    j, i = np.mgrid[:32, :32]
    start = -15.5 * 2.0 * (row + column)
    x = (start + 2.0 * (j[..., None] * column + i[..., None] * row))[..., 0]
    hu = np.broadcast_to(np.round(10 * x), (6, 32, 32)).astype(np.int16)  # 10 HU per mm along patient x
    images = ct_series(
        hu,
        spacing_mm=(2.0, 2.0),
        origins_mm=[start + np.array([0, 0, 3.0 * k]) for k in range(6)],
        orientation=(*row, *column),
    )
    drawn = [("CLOSED_PLANAR", square(0, 0, 14.9, 3.0 * k)) for k in range(6)]
    case = read_case(write_patient(tmp_path, images, structure_set(images, {"BODY": drawn})))
    assert any(s.startswith("turn-oblique: series turned by 20.0 degrees") for s in case.source.steps)
    inside = case.body.mask
    expected = np.broadcast_to(10 * case.grid.axes_mm[0], case.grid.shape)
    assert np.max(np.abs(case.hu - expected)[inside]) < 1.0  # pixels are rounded to 1 HU
    assert case.body.voxels * case.grid.voxel_cc == pytest.approx(29.8**2 * 18 / 1000, rel=0.03)


def test_uneven_slices_are_interpolated_and_say_so(tmp_path: Path) -> None:
    heights = [0, 2, 4, 6, 10, 14, 18]
    hu = np.stack([np.full((16, 16), 10 * z) for z in heights]).astype(np.int16)
    images = ct_series(hu, origins_mm=[(-22.5, -22.5, z) for z in heights])
    case = read_case(write_patient(tmp_path, images))
    assert case.grid.shape[0] == 10 and case.grid.spacing_mm[2] == pytest.approx(2)
    np.testing.assert_allclose(case.hu[:, 8, 8], 20 * np.arange(10), atol=1e-3)
    assert any(s.startswith("even-slices:") for s in case.source.steps)


def test_rounded_slice_positions_are_uniform(tmp_path: Path) -> None:
    heights = [round(0.625 * k, 1) for k in range(12)]
    images = ct_series(cylinder_hu(12, 16), origins_mm=[(-22.5, -22.5, z) for z in heights])
    case = read_case(write_patient(tmp_path, images))
    assert case.grid.shape[0] == 12 and "even-slices" not in "".join(case.source.steps)


def test_missing_slice_is_refused(tmp_path: Path) -> None:
    images = ct_series(cylinder_hu(8, 16))
    del images[4]
    with pytest.raises(CaseError, match=r"slice is missing between 7\.5 and 12\.5 mm"):
        read_case(write_patient(tmp_path, images))


def test_file_stored_twice_is_left_out_and_named(tmp_path: Path) -> None:
    folder = write_patient(tmp_path / "p")
    shutil.copy(folder / "file002", folder / "again.dcm")
    assert "drop-copies: 1 files" in steps(folder)


def test_two_different_images_of_one_slice_are_refused(tmp_path: Path) -> None:
    images = ct_series()
    other = ct_series()[2]
    other.SOPInstanceUID = "1.2.3.99"
    with pytest.raises(CaseError, match="different images of the same slice"):
        read_case(write_patient(tmp_path, [*images, other], structure_set(images)))


def _wrong_size(images: list[Dataset]) -> None:
    set_pixels(images[2], np.zeros((8, 16)), np.dtype("<i2"))


def _no_rescale(images: list[Dataset]) -> None:
    del images[1].RescaleIntercept


def _truncated(images: list[Dataset]) -> None:
    images[3].PixelData = images[3].PixelData[:100]


def _tilted(images: list[Dataset]) -> None:
    for k, image in enumerate(images):
        image.ImagePositionPatient = [-22.5, -22.5 + 1.0 * k, 2.5 * k]


def _other_frame(images: list[Dataset]) -> None:
    images[3].FrameOfReferenceUID = "1.9"


def _decubitus(images: list[Dataset]) -> None:
    for image in images:
        image.PatientPosition = "HFDR"


def _no_position(images: list[Dataset]) -> None:
    for image in images:
        del image.PatientPosition


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_wrong_size, r"file002: the image is not 16 x 16 pixels"),
        (_no_rescale, r"file001: RescaleIntercept \(0028,1052\) is missing"),
        (_truncated, r"file003: the pixel data cannot be decoded"),
        (_tilted, r"gantry tilt"),
        (_other_frame, r"FrameOfReferenceUID differs"),
        (_decubitus, r"patient position 'HFDR' is not supported"),
        (_no_position, r"does not state PatientPosition"),
    ],
)
def test_unusable_series_are_refused_by_name(tmp_path: Path, change, says: str) -> None:
    images = ct_series()
    structures = structure_set(images)
    change(images)
    with pytest.raises(CaseError, match=says):
        read_case(write_patient(tmp_path, images, structures))


def test_stated_position_stands_in_for_a_missing_one(tmp_path: Path) -> None:
    images = ct_series()
    _no_position(images)
    assert read_case(write_patient(tmp_path, images), patient_position="HFS").patient_position == "HFS"


def test_series_that_the_structure_set_refers_to_is_chosen(tmp_path: Path) -> None:
    hu = marked_hu()
    images, others = ct_series(hu), ct_series(series="1.2.3.30")
    case = read_case(write_patient(tmp_path, [*others, *images], structure_set(images)))
    np.testing.assert_array_equal(case.hu, hu)
    assert any(s.startswith("choose-series: 1 of 2") for s in case.source.steps)


def test_ambiguous_folders_are_refused(tmp_path: Path) -> None:
    images = ct_series()
    second = structure_set(images, uid="1.2.3.44")
    with pytest.raises(CaseError, match="2 structure sets fit the CT"):
        read_case(write_patient(tmp_path / "a", images, structure_set(images), second))
    adrift = structure_set(images)
    series = (
        adrift.ReferencedFrameOfReferenceSequence[0]
        .RTReferencedStudySequence[0]
        .RTReferencedSeriesSequence[0]
    )
    series.SeriesInstanceUID, series.ContourImageSequence = "1.7", []
    with pytest.raises(CaseError, match="2 CT series equally well"):
        read_case(write_patient(tmp_path / "b", [*images, *ct_series(series="1.2.3.30")], adrift))
    assert "match-frame" in steps(write_patient(tmp_path / "c", images, adrift))


def test_structure_set_of_other_images_is_refused(tmp_path: Path) -> None:
    elsewhere = ct_series(series="1.5")
    structures = structure_set(elsewhere)
    structures.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID = "1.8"
    for roi in structures.StructureSetROISequence:
        roi.ReferencedFrameOfReferenceUID = "1.8"
    structures.FrameOfReferenceUID = "1.8"
    with pytest.raises(CaseError, match="images that are absent"):
        read_case(write_patient(tmp_path, ct_series(), structures))


def test_folders_without_the_needed_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="does not exist"):
        read_case(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("no DICOM")
    with pytest.raises(CaseError, match="no DICOM file and no CT"):
        read_case(tmp_path)
    for k, image in enumerate(ct_series()):
        save(image, tmp_path / f"{k}")
    with pytest.raises(CaseError, match="no RTSTRUCT"):
        read_case(tmp_path)


def test_other_objects_and_files_are_set_aside(tmp_path: Path) -> None:
    folder = write_patient(tmp_path / "p")
    (folder / "readme").write_text("hello")
    save(header("1.2.840.10008.5.1.4.1.1.4", "MR", "1.2.3.70"), folder / "sub")
    assert read_case(folder).grid.shape == (6, 16, 16)
    assert set(inspect(folder).others) == {"1 x MR image or object, not used", "1 files that are not DICOM"}


def test_file_without_preamble_is_read(tmp_path: Path) -> None:
    folder = write_patient(tmp_path / "p")
    image = ct_series()[0]
    image.save_as(folder / "file000", implicit_vr=True, little_endian=True)
    assert (folder / "file000").read_bytes()[128:132] != b"DICM"
    assert read_case(folder).grid.shape[0] == 6


def test_dose_that_cannot_be_used_is_left_out_with_its_reason(tmp_path: Path) -> None:
    images, dose = ct_series(), rt_dose()
    dose.DoseUnits = "RELATIVE"
    case = read_case(write_patient(tmp_path, images, structure_set(images), dose))
    assert case.reference_dose is None
    assert any("leave-out-dose" in s and "DoseUnits" in s for s in case.source.steps)


def test_plan_of_another_structure_set_is_named(tmp_path: Path) -> None:
    images, plan = ct_series(), rt_plan()
    plan.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID = "1.77.88"
    case = read_case(write_patient(tmp_path, images, structure_set(images), plan))
    assert case.prescription is None
    assert any(s.startswith("leave-out-plan") for s in case.source.steps)


def test_a_small_file_that_inflates_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(ct_series(np.zeros((1, 512, 512), dtype=np.int16))[0], tmp_path / "plain.dcm")
    image = dcmread(tmp_path / "plain.dcm")
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.save_as(tmp_path / "deflated.dcm", enforce_file_format=True)
    whole = open_dataset(tmp_path / "deflated.dcm", pixels=True)
    assert whole is not None and len(whole.PixelData) == 2 * 512 * 512
    monkeypatch.setattr(attributes, "_FILE_BYTES_MAX", 200_000)
    assert (tmp_path / "deflated.dcm").stat().st_size < 200_000
    with pytest.raises(CaseError, match="when it is inflated"):
        open_dataset(tmp_path / "deflated.dcm")
