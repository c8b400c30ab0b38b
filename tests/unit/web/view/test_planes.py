"""Doses on planes are what our own sampling finds at each pixel, whatever grid the dose came on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from dicom_files import rt_dose, save
from numpy.typing import NDArray

from vmat_diffusion.case import Structure
from vmat_diffusion.dicom import read_dose
from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid, sample_dose
from vmat_diffusion.web.view.masks import packed
from vmat_diffusion.web.view.planes import (
    PLANES,
    ct_plane,
    dose_plane,
    hottest_mm,
    in_steps,
    layer_grid,
    mask_outlines,
    step_gy,
)

CT = Grid((9, 22, 26), (1.9, 2.1, 3.7), (-24.3, -21.7, -2.1))
EVERY = [
    (plane, index)
    for plane, axis in PLANES.items()
    for index in (0, 3, CT.shape[axis] // 2, CT.shape[axis] - 1)
]


def rough(shape: tuple[int, int, int], seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).uniform(0, 70, shape)


def by_pixel(gy: NDArray, grid: Grid, plane: str, index: int) -> NDArray:
    layer = layer_grid(CT, plane, index)
    points = layer.points_mm(np.arange(np.prod(layer.shape)))
    return np.squeeze(sample_dose(gy, grid, points).reshape(layer.shape), PLANES[plane])


@pytest.mark.parametrize(("plane", "index"), EVERY)
def test_every_pixel_has_the_dose_that_our_sampling_finds_there(plane: str, index: int) -> None:
    grid = Grid((40, 9, 50), (1.3, 4.9, 0.8), (-27.25, -18.4, -3.3))
    gy = rough(grid.shape)
    np.testing.assert_allclose(
        dose_plane(gy, grid, CT, plane, index), by_pixel(gy, grid, plane, index), atol=2e-4
    )


@pytest.mark.parametrize(("plane", "index"), EVERY)
@pytest.mark.parametrize(
    ("offsets", "origin", "kind"),
    [
        ([2.54 * k for k in range(4)], (-20.37, -19.813, 1.296), "<u4"),  # as Pinnacle writes them
        ([2.54 * k for k in range(4)], (-20.37, -19.813, 1.296), "<u2"),
        ([-2.54 * k for k in range(4)], (-20.37, -19.813, 11.456), "<u4"),  # from the head down
    ],
    ids=["fractional", "16 bit", "descending"],
)
def test_a_dose_file_is_drawn_where_its_offsets_say(
    tmp_path: Path, plane: str, index: int, offsets: Sequence[float], origin: Sequence[float], kind: str
) -> None:
    stored = rough((4, 6, 7), seed=1)
    file = save(
        rt_dose(stored, kind=np.dtype(kind), offsets_mm=offsets, origin_mm=origin), tmp_path / "d.dcm"
    )
    dose = read_dose(file)
    # Where the points lie is written down here anew, not taken from what was read.
    low = min(origin[2], origin[2] + offsets[-1])
    grid = Grid((4, 6, 7), (4.0, 5.0, 2.54), (origin[0], origin[1], low))
    gy = stored if offsets[-1] > 0 else stored[::-1]
    half_a_step = float(stored.max()) / (2 ** (8 * np.dtype(kind).itemsize) - 2)
    np.testing.assert_allclose(
        dose_plane(dose.gy, dose.grid, CT, plane, index),
        by_pixel(gy, grid, plane, index),
        atol=2e-4 + half_a_step,
    )


def test_two_doses_on_different_grids_lie_on_the_same_pixels() -> None:
    def hill(grid: Grid) -> NDArray:
        x, y, z = grid.axes_mm
        return 60 * np.exp(-((x / 30) ** 2) - (y[:, None] / 25) ** 2 - ((z[:, None, None] - 10) / 20) ** 2)

    fine, coarse = (
        Grid((30, 40, 45), (1.5, 1.5, 1.5), (-33.1, -29.2, -8.0)),
        Grid((18, 24, 27), (2.5,) * 3, (-32, -30, -9)),
    )
    one, two = (dose_plane(hill(g), g, CT, "axial", 4) for g in (fine, coarse))
    # A smooth hill is known at every point: a shift by half a pixel would be 2 Gy.
    assert np.abs(one - two).max() < 0.1


def test_nothing_is_drawn_beyond_the_dose() -> None:
    grid = Grid((3, 4, 5), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0))
    gy = np.full(grid.shape, 5.0)
    found = dose_plane(gy, grid, CT, "axial", 1)
    x, y, _ = CT.axes_mm
    inside = ((x >= -1) & (x <= 9)) & ((y >= -1) & (y <= 7))[:, None]
    np.testing.assert_allclose(found, np.where(inside, 5.0, 0.0), atol=1e-5)
    assert not dose_plane(gy, grid, CT, "axial", 8).any()


def test_steps_keep_a_dose_to_half_a_step() -> None:
    gy = rough((1, 30, 30))[0]
    step = step_gy(gy)
    assert step == pytest.approx(gy.max() / 65535)
    assert np.abs(in_steps(gy, step) * step - gy).max() <= step / 2 + 1e-9
    assert in_steps(gy, step).dtype == np.dtype("<u2")


def test_a_ct_plane_is_the_layer_of_the_volume() -> None:
    hu = np.arange(np.prod(CT.shape), dtype=np.int16).reshape(CT.shape)
    np.testing.assert_array_equal(ct_plane(hu, "sagittal", 5), hu[:, :, 5])
    assert ct_plane(hu, "coronal", 2).tobytes() == hu[:, 2].astype("<i2").tobytes()


@pytest.mark.parametrize(("plane", "index"), [("axial", 9), ("axial", -1), ("oblique", 0)])
def test_a_layer_that_does_not_exist_is_refused(plane: str, index: int) -> None:
    with pytest.raises(CaseError):
        layer_grid(CT, plane, index)


def test_outlines_of_a_mask_run_half_way_between_voxels_and_keep_holes() -> None:
    mask = np.zeros(CT.shape, bool)
    mask[2:7, 5:15, 6:18] = True
    mask[3:6, 8:11, 10:13] = False
    structure = packed(Structure("PTV", "target", mask))
    assert structure is not None
    lines = sorted(mask_outlines(structure, CT, "coronal", 9), key=len)
    assert len(lines) == 2
    hole, outer = lines
    x, _, z = CT.axes_mm
    np.testing.assert_allclose(outer.min(axis=0), [(x[5] + x[6]) / 2, (z[1] + z[2]) / 2], atol=1e-4)
    np.testing.assert_allclose(outer.max(axis=0), [(x[17] + x[18]) / 2, (z[6] + z[7]) / 2], atol=1e-4)
    np.testing.assert_allclose(hole.min(axis=0), [(x[9] + x[10]) / 2, (z[2] + z[3]) / 2], atol=1e-4)
    assert mask_outlines(structure, CT, "coronal", 2) == []


def test_the_hottest_place_is_the_centre_of_the_hottest_voxel() -> None:
    from vmat_diffusion.case import Dose

    gy = rough(CT.shape).astype(np.float32)
    gy[4, 7, 11] = 99
    assert hottest_mm(Dose(CT, gy)) == pytest.approx(
        [axis[k] for axis, k in zip(CT.axes_mm, (11, 7, 4), strict=True)]
    )


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux says what is in memory")
def test_planes_of_a_mapped_volume_leave_nothing_of_it_in_memory(tmp_path: Path) -> None:
    whole = np.random.default_rng(0).integers(-1000, 2000, (64, 128, 128), np.int16)
    np.save(tmp_path / "hu.npy", whole)
    mapped = np.load(tmp_path / "hu.npy", mmap_mode="r")
    for plane, axis in PLANES.items():
        np.testing.assert_array_equal(ct_plane(mapped, plane, 50), np.take(whole, 50, axis))
    lines = Path("/proc/self/smaps").read_text().splitlines()
    (at,) = (k for k, line in enumerate(lines) if line.endswith("/hu.npy"))
    resident = next(line for line in lines[at:] if line.startswith("Rss:"))
    assert resident.split()[1] == "0"
