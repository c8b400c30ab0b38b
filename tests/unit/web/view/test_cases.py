"""What is looked at is what the planner read: HU, masks, and the contours as they are in the file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from dicom_files import ct_series, cylinder_hu, square, structure_set, write_patient
from pydicom.dataset import Dataset

from vmat_diffusion.dicom import read_case
from vmat_diffusion.dicom.structure_set import drawing
from vmat_diffusion.errors import CaseError
from vmat_diffusion.web.view import cases
from vmat_diffusion.web.view.cases import CaseStore
from vmat_diffusion.web.view.masks import PackedStructure

TURNED = (0.9961947, 0.0871557, 0, -0.0871557, 0.9961947, 0)  # by 5 degrees about the long axis


def nested(images: list[Dataset]) -> Dataset:
    """A ring: a target with a hole and an island in the hole; a cord on every other slice; colours."""
    heights = [float(i.ImagePositionPatient[2]) for i in images]
    ring = [(7.4, "CLOSED_PLANAR"), (4.9, "CLOSED_PLANAR"), (2.2, "CLOSED_PLANAR")]
    rois = {
        "External": [("CLOSED_PLANAR", square(0, 0, 15.3, z)) for z in heights],
        "PTV70": [(kind, square(0, 0, half, z)) for z in heights[1:-1] for half, kind in ring],
        "cord": [("CLOSED_PLANAR", square(0, 10, 2.6, z)) for z in heights[::2]],
    }
    out = structure_set(images, rois)
    for item, colour in zip(out.ROIContourSequence, ([0, 200, 0], [255, 0, 17], None), strict=True):
        if colour:
            item.ROIDisplayColor = colour
    return out


def whole(structure: PackedStructure, shape: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[structure.box] = np.unpackbits(structure.bits, axis=-1, count=structure.shape[2])
    return mask


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    images = ct_series()
    return write_patient(tmp_path / "case", images, nested(images))


def test_hu_and_masks_are_those_of_the_planner(folder: Path, tmp_path: Path) -> None:
    store, case = CaseStore(tmp_path / "store"), read_case(folder)
    images = store.images(folder)
    assert images.grid == case.grid
    np.testing.assert_array_equal(images.hu, np.rint(case.hu))
    assert images.origin.frame == case.source.frame_of_reference_uid
    found = {s.name: s for s in store.structures(folder)}
    assert found.keys() == case.structures.keys()
    for name, structure in case.structures.items():
        np.testing.assert_array_equal(whole(found[name], case.grid.shape), structure.mask, err_msg=name)
        assert found[name].role == structure.role


def test_contours_are_those_of_the_file_with_their_colours_and_holes(folder: Path, tmp_path: Path) -> None:
    images = CaseStore(tmp_path / "store").images(folder)
    names = [region["name"] for region in images.regions]
    assert [region["colour"] for region in images.regions] == [[0, 200, 0], [255, 0, 17], None]
    target, z = names.index("PTV_70"), 2
    drawn = [points for region, points in images.outlines.on(z) if region == target]
    assert [np.abs(points).max() for points in drawn] == pytest.approx([7.4, 4.9, 2.2], abs=1e-3)
    assert images.outlines.layers_of(target) == [1, 2, 3, 4]
    cord = names.index("SpinalCord")
    assert images.outlines.layers_of(cord) == [0, 2, 4], "as drawn, not as filled"


def test_slices_that_descend_carry_their_contours_with_them(tmp_path: Path) -> None:
    origins = [(-22.5, -22.5, 40.0 - 2.5 * k) for k in range(6)]
    images = ct_series(origins_mm=origins)
    rois = {
        "External": [("CLOSED_PLANAR", square(0, 0, 15.3, 40.0 - 2.5 * k)) for k in range(6)],
        "PTV70": [("CLOSED_PLANAR", square(0, 0, 4 + k, 40.0 - 2.5 * k)) for k in (1, 2)],
    }
    folder = write_patient(tmp_path / "case", images, structure_set(images, rois))
    found = CaseStore(tmp_path / "store").images(folder)
    for index, half in ((4, 5.0), (3, 6.0)):
        (points,) = (p for region, p in found.outlines.on(index) if region == 1)
        assert found.grid.axes_mm[2][index] == pytest.approx(27.5 + 2.5 * index)
        assert np.abs(points).max() == pytest.approx(half, abs=1e-3)


def test_a_turned_ct_is_drawn_on_the_patients_axes_with_outlines_of_masks(tmp_path: Path) -> None:
    row, column = np.array(TURNED[:3]), np.array(TURNED[3:])
    origins = [tuple(-22.5 * row - 22.5 * column + [0, 0, 2.5 * k]) for k in range(6)]
    images = ct_series(cylinder_hu(6, 16), origins_mm=origins, orientation=TURNED)
    folder = write_patient(tmp_path / "case", images)
    found = CaseStore(tmp_path / "store").images(folder)
    assert not found.axial and found.outlines.layer.size == 0
    assert any(step.startswith("turn-oblique") for step in found.steps)
    np.testing.assert_array_equal(found.hu, np.rint(read_case(folder, allow_outside_body=True).hu))


def test_a_tilted_gantry_is_refused_by_a_sentence(tmp_path: Path) -> None:
    origins = [(-22.5, -22.5 + 1.5 * k, 2.5 * k) for k in range(6)]
    folder = write_patient(tmp_path / "case", ct_series(origins_mm=origins))
    with pytest.raises(CaseError, match="gantry tilt"):
        CaseStore(tmp_path / "store").images(folder)


def test_a_case_is_read_once_and_again_when_its_files_change(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings: list[Path] = []

    def counted(place: Path) -> drawing.Scan:
        readings.append(place)
        return drawing.read_scan(place)

    monkeypatch.setattr(cases, "read_scan", counted)
    store = CaseStore(tmp_path / "store")
    first = store.images(folder)
    store.structures(folder)
    assert store.images(folder).key == first.key
    CaseStore(tmp_path / "store").structures(folder)
    assert len(readings) == 1
    images = ct_series(cylinder_hu(6, 16) + np.int16(7))
    shutil.rmtree(folder)
    write_patient(folder, images, nested(images))
    changed = store.images(folder)
    assert len(readings) == 2 and changed.key != first.key
    assert changed.hu.max() == first.hu.max() + 7


def test_the_store_holds_no_more_cases_than_it_may(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "_KEPT", 2)
    store = CaseStore(tmp_path / "store")
    for k in range(4):
        shutil.copytree(folder, tmp_path / f"case{k}")
        store.structures(tmp_path / f"case{k}")
    assert len(list((tmp_path / "store").iterdir())) == 2


def test_a_case_that_is_being_opened_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "_KEPT", 1)
    store = CaseStore(tmp_path / "store")
    first = store.images(folder)
    store.structures(folder)
    shutil.copytree(folder, tmp_path / "second")
    with store._lock(first.key):
        store.images(tmp_path / "second")
        assert (first.folder / "images.json").is_file()
    shutil.copytree(folder, tmp_path / "third")
    store.images(tmp_path / "third")
    assert not first.folder.exists()


def test_a_case_that_another_process_let_go_meanwhile_is_read_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, load, taken = CaseStore(tmp_path / "store"), cases._load_images, []

    def load_later(place: Path, key: str) -> cases.Images:
        if not taken:
            taken.append(place)
            shutil.rmtree(place)
        return load(place, key)

    monkeypatch.setattr(cases, "_load_images", load_later)
    assert store.images(folder).grid.shape[0] == 6
    assert taken


@pytest.mark.parametrize("name", ["images.json", "outlines.npz", "hu.npy", "masks.npz"])
def test_a_store_that_lost_half_a_file_reads_the_case_again(folder: Path, tmp_path: Path, name: str) -> None:
    store = CaseStore(tmp_path / "store")
    images, masks = store.images(folder), store.structures(folder)
    hu, file = np.array(images.hu), images.folder / name
    del images  # nothing maps the file any more
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = CaseStore(tmp_path / "store")
    np.testing.assert_array_equal(again.images(folder).hu, hu)
    assert [s.name for s in again.structures(folder)] == [s.name for s in masks]


def test_what_fails_in_the_background_is_told_without_its_message(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Doe^John")

    monkeypatch.setattr(cases, "_save_masks", fail)
    store = CaseStore(tmp_path / "store")
    store._masks_ahead(store.images(folder).key, folder, cases.read_scan(folder))
    assert "RuntimeError at test_cases.py" in caplog.text and "Doe" not in caplog.text


def test_a_case_whose_folder_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="gone"):
        CaseStore(tmp_path / "store").images(tmp_path / "none")
