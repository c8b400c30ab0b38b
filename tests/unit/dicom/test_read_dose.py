"""RTDOSE files to doses of the whole course."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dicom_files import beam, rt_dose, rt_plan, save
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

from vmat_diffusion.dicom import read_dose, read_plane_or_volume
from vmat_diffusion.dicom.attributes import compressed
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid

GY = np.random.default_rng(3).uniform(0, 70, (4, 6, 7))
GRID = Grid((4, 6, 7), (4.0, 5.0, 3.0), (-20.0, -20.0, 1.0))


@pytest.mark.parametrize(
    ("kind", "syntax"),
    [
        ("<u2", ExplicitVRLittleEndian),
        ("<u4", ExplicitVRLittleEndian),
        (">u2", ExplicitVRBigEndian),
        (">u4", ExplicitVRBigEndian),
    ],
)
def test_bits_and_byte_orders(tmp_path: Path, kind: str, syntax: str) -> None:
    dose = read_dose(save(rt_dose(GY, kind=np.dtype(kind)), tmp_path / "rd", syntax))  # type: ignore[arg-type]
    assert dose.grid.matches(GRID)
    step = 70 / 2 ** (8 * np.dtype(kind).itemsize)  # stored in whole steps, then as 32-bit float
    np.testing.assert_allclose(dose.gy, GY, rtol=2e-7, atol=step)


def test_absolute_and_relative_frame_offsets_are_told_apart(tmp_path: Path) -> None:
    relative = read_dose(save(rt_dose(GY), tmp_path / "a"))
    absolute = read_dose(save(rt_dose(GY, offsets_mm=[1.0, 4.0, 7.0, 10.0]), tmp_path / "b"))
    assert relative.grid == absolute.grid == GRID
    np.testing.assert_array_equal(relative.gy, absolute.gy)


def test_descending_frames_are_turned_round(tmp_path: Path) -> None:
    dose = read_dose(save(rt_dose(GY, offsets_mm=[0, -3, -6, -9]), tmp_path / "rd"))
    assert dose.grid.origin_mm == (-20.0, -20.0, -8.0)
    np.testing.assert_allclose(dose.gy, GY[::-1], atol=1e-5)


def test_feet_first_prone_orientation(tmp_path: Path) -> None:
    dose = read_dose(save(rt_dose(GY, orientation=(-1, 0, 0, 0, -1, 0)), tmp_path / "rd"))
    assert dose.grid.origin_mm == (-20.0 - 6 * 4.0, -20.0 - 5 * 5.0, 1.0)
    np.testing.assert_allclose(dose.gy, GY[:, ::-1, ::-1], atol=1e-5)


def test_beam_doses_are_added_as_a_named_step(tmp_path: Path) -> None:
    files = [
        save(rt_dose(GY / n, summation="BEAM", beams=[n], uid=f"1.2.3.6{n}"), tmp_path / f"rd{n}")
        for n in (1, 2)
    ]
    plan = save(rt_plan([beam(1), beam(2)]), tmp_path / "rp")
    dose = read_dose(files, plan=plan)
    np.testing.assert_allclose(dose.gy, 1.5 * GY, atol=1e-4)
    assert dose.provenance["steps"] == ("sum-beams: 2 beam doses added",)
    with pytest.raises(CaseError, match="dose of beam 2 is missing"):
        read_dose(files[:1], plan=plan)
    with pytest.raises(CaseError, match="that of a single beam"):
        read_dose(files[0])
    with pytest.raises(CaseError, match="beam's dose is there twice"):
        read_dose([files[0], files[0]], plan=plan)


def test_fraction_doses_need_the_plan(tmp_path: Path) -> None:
    group = save(rt_dose(GY, summation="FRACTION"), tmp_path / "group")
    session = save(rt_dose(GY, summation="FRACTION_SESSION"), tmp_path / "session")
    plan = save(rt_plan(), tmp_path / "rp")
    np.testing.assert_allclose(read_dose(group, plan=plan).gy, GY, atol=1e-4)
    with pytest.raises(CaseError, match="exactly one fraction group"):
        read_dose(group)
    with pytest.raises(CaseError, match="exactly one fraction group"):
        read_dose(session)


def test_dose_of_one_fraction_is_multiplied_by_their_number(tmp_path: Path) -> None:
    session = save(rt_dose(GY / 35, summation="FRACTION_SESSION"), tmp_path / "session")
    dose = read_dose(session, plan=save(rt_plan(), tmp_path / "rp"))
    np.testing.assert_allclose(dose.gy, GY * 30 / 35, atol=1e-4)
    assert dose.provenance["steps"] == ("scale-fractions: dose of one fraction multiplied by 30",)


def _set(keyword: str, value: object):
    def change(dataset: Dataset) -> None:
        setattr(dataset, keyword, value)

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_set("DoseUnits", "RELATIVE"), r"DoseUnits \(3004,0002\) is RELATIVE"),
        (_set("DoseType", "EFFECTIVE"), r"DoseType \(3004,0004\) is EFFECTIVE"),
        (_set("DoseSummationType", "MULTI_PLAN"), "MULTI_PLAN"),
        (_set("DoseSummationType", ""), "missing"),
        (_set("DoseGridScaling", 0), "DoseGridScaling"),
        (_set("GridFrameOffsetVector", [0, 3, 6]), "3 positions for 4 frames"),
        (_set("GridFrameOffsetVector", [0, 3, 6, 13]), "slice is missing"),
        (_set("GridFrameOffsetVector", [55, 58, 61, 64]), "must agree"),
        (_set("PixelData", b"\0" * 64), "cannot be decoded"),
        (_set("DoseGridScaling", 1e-3), "more than 1000 Gy"),
    ],
)
def test_unusable_doses_are_refused_by_name(tmp_path: Path, change, says: str) -> None:
    dataset = rt_dose(GY)
    change(dataset)
    with pytest.raises(CaseError, match=says):
        read_dose(save(dataset, tmp_path / "rd"))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="RTPLAN, an RTDOSE is needed"):
        read_dose(save(rt_plan(), tmp_path / "rp"))
    (tmp_path / "text").write_text("x")
    with pytest.raises(CaseError, match="not DICOM"):
        read_dose(tmp_path / "text")
    with pytest.raises(CaseError, match="does not exist"):
        read_dose(tmp_path / "absent")


PLANES = {
    "axial": ((1, 0, 0, 0, 1, 0), (0, None, None)),
    "coronal": ((1, 0, 0, 0, 0, -1), (None, 0, None)),
    "sagittal": ((0, 1, 0, 0, 0, -1), (None, None, 0)),
    "sagittal, seen from the other side": ((0, -1, 0, 0, 0, -1), (None, None, 0)),
}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("name", PLANES)
@pytest.mark.parametrize("summation", ["PLAN", "BEAM"])
def test_a_single_frame_is_a_plane_in_the_patient(
    tmp_path: Path, name: str, summation: str, syntax: str
) -> None:
    """Row j, column i lies at origin + 4 mm i row + 5 mm j column, whichever way the plane lies."""
    orientation, _ = PLANES[name]
    kind = np.dtype(">u4" if syntax == ExplicitVRBigEndian else "<u4")
    dataset = rt_dose(GY[:1], kind=kind, orientation=orientation, summation=summation, beams=[1])
    dose = read_plane_or_volume(save(dataset, tmp_path / "rd", syntax))  # type: ignore[arg-type]
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    assert dose.gy.size == GY[0].size and sorted(dose.gy.shape)[0] == 1
    for j, i in ((0, 0), (2, 5), (5, 6)):
        at = np.array([-20.0, -20.0, 1.0]) + 4 * i * row + 5 * j * column
        where = dose.grid.index(at)
        np.testing.assert_allclose(where, np.rint(where), atol=1e-6)
        assert dose.gy[tuple(np.rint(where).astype(int))] == pytest.approx(GY[0, j, i], abs=1e-4)


def test_planes_are_for_gamma_alone_and_never_oblique(tmp_path: Path) -> None:
    plane = save(rt_dose(GY[:1]), tmp_path / "plane.dcm")
    with pytest.raises(CaseError, match="at least 2"):
        read_dose(plane)
    assert read_plane_or_volume(save(rt_dose(GY), tmp_path / "volume.dcm")).grid == GRID
    tilted = rt_dose(GY[:1], orientation=(0.8, 0.6, 0, -0.6, 0.8, 0))
    with pytest.raises(CaseError, match="neither axial, coronal nor sagittal"):
        read_plane_or_volume(save(tilted, tmp_path / "tilted.dcm"))


def test_a_transfer_syntax_that_is_none_is_named() -> None:
    dataset = rt_dose(GY)
    assert not compressed(dataset)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.5.1.4"
    with pytest.raises(CaseError, match=r"^TransferSyntaxUID \(0002,0010\) is 1\.2\.840\.10008\.5"):
        compressed(dataset)


def test_planes_of_two_patients_or_frames_are_compared_and_said_so(tmp_path: Path) -> None:
    """A film or portal image is of a phantom or a device with IDs of its own; volumes are refused."""
    from vmat_diffusion.workflow import compare_doses

    other = rt_dose(GY[:1])
    other.PatientID, other.FrameOfReferenceUID = "film", "1.2.3.77"
    files = [save(rt_dose(GY[:1]), tmp_path / "a.dcm"), save(other, tmp_path / "b.dcm")]
    said: list[str] = []
    assert compare_doses(files[0], files[1], announce=said.append).pass_percent == 100
    assert [s.split(" than ")[0] for s in said[:2]] == [
        "the evaluated dose has another patient ID",
        "the evaluated dose has another frame of reference",
    ]
    volume = rt_dose(GY)
    volume.PatientID = "film"
    with pytest.raises(CaseError, match="another patient ID"):
        compare_doses(save(rt_dose(GY), tmp_path / "c.dcm"), save(volume, tmp_path / "d.dcm"))


def _set(keyword: str, value: object) -> Callable[[Dataset], None]:
    return lambda dataset: setattr(dataset, keyword, value)


def _second_plan(dataset: Dataset) -> None:
    dataset.ReferencedRTPlanSequence = [*dataset.ReferencedRTPlanSequence, Dataset()]


def _part(dataset: Dataset) -> None:
    group, item = Dataset(), Dataset()
    item.ReferencedBeamNumber = 1
    group.ReferencedFractionGroupNumber, group.ReferencedBeamSequence = 1, [item]
    dataset.ReferencedRTPlanSequence[0].ReferencedFractionGroupSequence = [group]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("TissueHeterogeneityCorrection", "IMAGE"), ""),
        (_set("TissueHeterogeneityCorrection", "WATER"), "TissueHeterogeneityCorrection .* is WATER"),
        (_set("TissueHeterogeneityCorrection", ["IMAGE", "ROI_OVERRIDE"]), "IMAGE and ROI_OVERRIDE"),
        (_set("SpatialTransformOfDose", "NON_RIGID"), "SpatialTransformOfDose .* is NON_RIGID"),
        (_set("DoseType", None), "DoseType .* is missing, PHYSICAL is assumed"),
        (_second_plan, "refers to 2 plans"),
        (_part, "is PLAN, but the dose refers to single beams"),
        (_set("GridFrameOffsetVector", [0.0, 3.0, 6.0, 10.0]), "even-slices: slice spacings of 3.00 to 4.00"),
    ],
)
def test_what_a_person_must_know_of_a_dose_is_said(
    tmp_path: Path, change: Callable[[Dataset], None], words: str
) -> None:
    dataset = rt_dose(GY)
    change(dataset)
    remarks = read_dose(save(dataset, tmp_path / "rd")).provenance["remarks"]
    assert isinstance(remarks, tuple) and len(remarks) == bool(words)
    assert not words or re.search(words, remarks[0])
