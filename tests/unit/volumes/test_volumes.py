"""NIfTI and NRRD: exact round trips, other libraries as judges, and what is refused."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from small_case import small_case

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.cli.program import main
from vmat_diffusion.dicom import read_case, read_dose, write_case
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid
from vmat_diffusion.volumes import read_volume, write_volume
from vmat_diffusion.workflow.exchange import export_case, import_volumes, read_exchanged

GRID = Grid((3, 4, 5), (1.5, 2.0, 2.5), (-10.0, 20.0, -30.0))


def a_case() -> Case:
    """With an origin and voxels that tell the axes apart."""
    return replace(small_case(), grid=replace(small_case().grid, origin_mm=(-50.0, 12.5, 7.0)))


def a_dose(case: Case) -> Dose:
    rng = np.random.default_rng(3)
    grid = Grid((9, 8, 7), (4.0, 5.0, 6.0), (-20.0, 20.0, 10.0))
    return Dose(grid, (70.0 * rng.random(grid.shape)).astype(np.float32))


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd"])
@pytest.mark.parametrize("kind", ["u1", "i2", "u2", "i4", "f4"])
def test_values_and_grid_come_back_exactly(tmp_path: Path, ending: str, kind: str) -> None:
    values = np.arange(60).reshape(GRID.shape).astype(kind)
    again = read_volume(write_volume(tmp_path / f"a{ending}", values, GRID))
    assert again.values.dtype == values.dtype
    assert np.array_equal(again.values, values)
    assert again.grid == GRID


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_simpleitk_sees_the_same_voxels_at_the_same_points(tmp_path: Path, ending: str) -> None:
    values = np.arange(60).reshape(GRID.shape).astype(np.int16)
    image = SimpleITK.ReadImage(str(write_volume(tmp_path / f"a{ending}", values, GRID)))
    assert np.array_equal(SimpleITK.GetArrayFromImage(image), values)
    assert image.GetOrigin() == pytest.approx(GRID.origin_mm, abs=1e-5)
    assert image.GetSpacing() == pytest.approx(GRID.spacing_mm, abs=1e-6)
    assert image.GetDirection() == pytest.approx(np.eye(3).ravel())


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("orientation", ["LPS", "RAS", "LAS", "PIR", "SRP"])
def test_any_order_and_direction_of_axes_is_read(tmp_path: Path, ending: str, orientation: str) -> None:
    values = np.arange(60).reshape(GRID.shape).astype(np.int16)
    image = SimpleITK.GetImageFromArray(values)
    image.SetOrigin(GRID.origin_mm)
    image.SetSpacing(GRID.spacing_mm)
    SimpleITK.WriteImage(SimpleITK.DICOMOrient(image, orientation), str(tmp_path / f"a{ending}"))
    again = read_volume(tmp_path / f"a{ending}")
    assert np.array_equal(again.values, values)
    assert again.grid.matches(GRID, tolerance_mm=1e-4)


def test_askew_axes_are_refused(tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.1
    nibabel.Nifti1Image(np.zeros((2, 2, 2), np.uint8), affine).to_filename(tmp_path / "a.nii")
    with pytest.raises(CaseError, match=r"a.nii: its axes lie askew to the patient's; resample it"):
        read_volume(tmp_path / "a.nii")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.nii", b"nothing", "is no valid NIfTI file"),
        ("a.nii.gz", gzip.compress(b"x" * 400, mtime=0), "is no valid NIfTI file"),
        ("a.nrrd", b"NRRD0004\ntype: uint8\n\n", "does not describe a volume in space"),
        ("a.nrrd", b"NRRD0004 without an end", "is no NRRD file"),
        ("a.mha", b"", "is neither NIfTI"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CaseError, match=sentence):
        read_volume(tmp_path / name)


def test_a_shortened_nrrd_is_refused(tmp_path: Path) -> None:
    file = write_volume(tmp_path / "a.nrrd", np.zeros(GRID.shape, np.uint8), GRID)
    file.write_bytes(file.read_bytes()[:-15])
    with pytest.raises(CaseError, match="holds fewer voxels than its head says"):
        read_volume(file)


@pytest.mark.parametrize("kind", ["nifti", "nrrd"])
def test_a_case_comes_back_exactly(tmp_path: Path, kind: str) -> None:
    case = a_case()
    dose = a_dose(case)
    export_case(case, tmp_path / "out", kind=kind, dose=dose)  # type: ignore[arg-type]
    again, dose_again = read_exchanged(tmp_path / "out")
    assert again.grid == case.grid
    assert np.array_equal(again.hu, case.hu)
    assert again.structures.keys() == case.structures.keys()
    for name, structure in case.structures.items():
        assert np.array_equal(again.structures[name].mask, structure.mask)
        assert again.structures[name].role == structure.role
    assert again.prescription == case.prescription
    assert dose_again is not None
    assert dose_again.grid.matches(dose.grid, tolerance_mm=1e-5)
    assert np.array_equal(dose_again.gy, dose.gy)


def test_nnunet_folders_are_written_and_read(tmp_path: Path) -> None:
    case = a_case()
    export_case(case, tmp_path / "out", layout="nnunet")
    record = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert record["channel_names"] == {"0": "CT"}
    assert record["labels"] == {"background": 0, "BODY": 1, "PTV": 2, "Core": 3}
    again, _ = read_exchanged(tmp_path / "out")
    for name in ("PTV", "Core"):  # the body lacks what lies in them: one voxel has one label
        assert np.array_equal(again.structures[name].mask, case.structures[name].mask)


def test_masks_of_totalsegmentator_become_organs(tmp_path: Path) -> None:
    case = a_case()
    write_volume(tmp_path / "ct.nii.gz", case.hu.astype(np.int16), case.grid)
    (tmp_path / "segmentations").mkdir()
    upper, lower = np.zeros((2, *case.grid.shape), np.uint8)
    upper[5:8, 8:12, 8:12] = lower[8:11, 8:12, 8:12] = 1
    for name, mask in (
        ("lung_upper_lobe_left", upper),
        ("lung_lower_lobe_left", lower),
        ("heart", upper),
        ("spinal_cord", lower),
    ):
        write_volume(tmp_path / "segmentations" / f"{name}.nii.gz", mask, case.grid)
    found, dose = read_exchanged(tmp_path)
    assert dose is None
    roles = {name: structure.role for name, structure in found.structures.items()}
    assert roles == {"BODY": "body", "Lung_L": "organ", "Heart": "organ", "SpinalCord": "organ"}
    assert np.array_equal(found.structures["Lung_L"].mask, (upper | lower).astype(bool))


def test_a_mask_on_another_grid_is_refused(tmp_path: Path) -> None:
    case = a_case()
    write_volume(tmp_path / "ct.nii.gz", case.hu.astype(np.int16), case.grid)
    write_volume(tmp_path / "heart.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
    with pytest.raises(CaseError, match=r"mask heart has \(3, 4, 5\) voxels, the CT"):
        read_exchanged(tmp_path)


def test_volumes_become_a_dicom_case_with_its_dose(tmp_path: Path) -> None:
    case = a_case()
    dose = a_dose(case)
    export_case(case, tmp_path / "volumes", dose=dose)
    import_volumes(tmp_path / "volumes", tmp_path / "dicom")
    again = read_case(tmp_path / "dicom")
    assert np.array_equal(np.rint(again.hu), np.rint(case.hu))
    assert again.structures.keys() == case.structures.keys()
    assert float(np.abs(read_dose(tmp_path / "dicom" / "RD.dcm").gy - dose.gy).max()) < 0.01


def test_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(tmp_path / "case", small_case())
    words = ["vmat", "export", "nifti", str(tmp_path / "case"), "--out", str(tmp_path / "out"), "--json"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit, match="0"):
        main()
    names = [Path(f).name for f in json.loads(capsys.readouterr().out)["files"]]
    assert names == ["case.json", "ct.nii.gz", "BODY.nii.gz", "Core.nii.gz", "PTV.nii.gz"]
    monkeypatch.setattr(
        sys, "argv", ["vmat", "import", "nifti", str(tmp_path / "out"), "--out", str(tmp_path / "back")]
    )
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "RS.dcm" in capsys.readouterr().out
