"""However a dose is stored, what a structure receives is what the closed form says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dicom_files import ct_series, rt_dose, save, structure_set, write_patient
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vmat_diffusion.case import Structure
from vmat_diffusion.dicom import read_case, read_dose
from vmat_diffusion.errors import CaseError
from vmat_diffusion.evaluate.dvh import structure_dvh
from vmat_diffusion.geometry import Grid

# Row and column directions along the patient's axes, of every handedness.
AXES = [(a, b) for a in range(3) for b in range(3) if a != b]
GRID = Grid((24, 24, 24), (1.0, 1.0, 1.0), (-11.5, -11.5, -11.5))
SLOPE = np.array([0.9, -0.6, 0.45])  # Gy/mm


def dose_gy(points_mm: NDArray) -> NDArray:
    return 40.0 + points_mm @ SLOPE


def stored(rng: np.random.Generator, rotation: NDArray | None = None) -> tuple[object, str]:
    """A dose that is linear in space, stored along random axes with random frames and bits."""
    (a, b), signs = AXES[int(rng.integers(6))], rng.choice([-1.0, 1.0], 2)
    row, column = np.eye(3)[a] * signs[0], np.eye(3)[b] * signs[1]
    if rotation is not None:
        row, column = rotation @ row, rotation @ column
    normal = np.cross(row, column)
    # Frames in any order, their first one anywhere; some with twice the gap of the others.
    heights = (
        np.cumsum([0.0, *rng.choice([2.0, 4.0], 9).repeat(2)]) if rng.random() < 0.3 else 2.5 * np.arange(16)
    )
    heights = heights - heights.mean()
    order = {0: slice(None), 1: slice(None, None, -1)}.get(
        int(rng.integers(3)), rng.permutation(len(heights))
    )
    heights = heights[order]
    shape, spacing = (12, 14), (5.0, 4.0)
    corner = -row * (shape[1] - 1) / 2 * spacing[1] - column * (shape[0] - 1) / 2 * spacing[0]
    j, i = np.mgrid[: shape[0], : shape[1]][..., None].astype(float)
    plane = corner + i * spacing[1] * row + j * spacing[0] * column
    points = plane + heights[:, None, None, None] * normal
    origin = corner + heights[0] * normal
    offsets = heights - heights[0]
    told = "relative"
    if rotation is None and abs(normal[2]) == 1 and abs(origin[2]) > 0.1 and rng.random() < 0.5:
        offsets, told = origin[2] + normal[2] * offsets, "absolute"
    data = rt_dose(
        np.maximum(dose_gy(points), 0.0),
        kind=np.dtype(rng.choice(["<u2", "<u4"])),
        offsets_mm=[round(float(o), 4) for o in offsets],
        origin_mm=[round(float(o), 4) for o in origin],
        orientation=[round(float(v), 6) for v in (*row, *column)],
    )
    return data, told


def box(half_mm: tuple[int, int, int]) -> Structure:
    mask = np.zeros(GRID.shape, bool)
    x, y, z = (slice(12 - h, 12 + h) for h in half_mm)
    mask[z, y, x] = True
    return Structure("PTV", "target", mask)


@pytest.mark.parametrize("seed", range(80))
def test_a_linear_dose_has_its_dvh_in_closed_form_however_it_is_stored(seed: int, tmp_path: Path) -> None:
    """In a thin box along x the dose falls by a known slope: mean, D_v and V_d are straight lines."""
    rng = np.random.default_rng(seed)
    data, told = stored(rng)
    dose = read_dose(save(data, tmp_path / "rd"))  # type: ignore[arg-type]
    half = tuple(int(n) for n in rng.integers(3, 9, 3))
    full = structure_dvh(dose, box(half), GRID)  # type: ignore[arg-type]
    assert full.mean_gy == pytest.approx(40.0, abs=0.01), told
    reach = float(np.abs(SLOPE) @ (np.array(half) - 0.5))
    assert (full.max_gy, full.min_gy) == pytest.approx((40 + reach, 40 - reach), abs=0.01)
    line = structure_dvh(dose, box((half[0], 1, 1)), GRID)
    # 2 x 2 rows of voxels 1 mm apart: each share of the volume is a share of the way along x.
    for share in (0.25, 0.5, 0.75):
        level = 40.0 + SLOPE[0] * half[0] * (1 - 2 * share)
        tolerance = float(np.abs(SLOPE) @ (0.5, 1.0, 1.0))  # half a voxel along x, the rows across
        assert line.dose_at_percent_gy(100 * share) == pytest.approx(level, abs=tolerance)
        assert line.volume_at_dose_percent(level) == pytest.approx(100 * share, abs=100 * 1.6 / half[0])


@pytest.mark.parametrize("seed", range(20))
def test_a_turned_dose_keeps_its_values(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    turn = Rotation.from_rotvec(rng.normal(0, 0.12, 3)).as_matrix()
    data, _ = stored(rng, turn)
    dose = read_dose(save(data, tmp_path / "rd"))  # type: ignore[arg-type]
    dvh = structure_dvh(dose, box((4, 4, 4)), GRID)
    reach = float(np.abs(SLOPE) @ (3.5, 3.5, 3.5))
    assert dvh.mean_gy == pytest.approx(40.0, abs=0.02)
    assert (dvh.max_gy, dvh.min_gy) == pytest.approx((40 + reach, 40 - reach), abs=0.05)


@pytest.mark.parametrize("seed", range(30))
def test_negative_numbers_under_either_label_make_no_hot_spot(seed: int, tmp_path: Path) -> None:
    """Slightly negative numbers called unsigned are refused, as such; called signed they are set to zero."""
    rng = np.random.default_rng(seed)
    bits, signed = int(rng.choice([16, 32])), bool(rng.random() < 0.5)
    gy = rng.uniform(0, 60, (4, 6, 7))
    few = rng.random(gy.shape) < 0.05
    few[0, 0, 0] = True
    gy[few] = -float(rng.choice([0.02, 0.1, 5.0] if signed else [0.02, 0.1]))
    data, scaling = rt_dose(np.abs(gy)), 60 / 2 ** (bits - 2)
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit, data.PixelRepresentation, data.DoseGridScaling = bits - 1, int(signed), scaling
    data.PixelData = np.round(gy / scaling).astype(f"<i{bits // 8}").tobytes()
    file = save(data, tmp_path / "rd")
    if not signed or gy.min() < -0.3:  # 0.5 % of the maximum
        with pytest.raises(
            CaseError, match=f"{few.sum()} voxels (hold negative numbers|have a negative dose)"
        ):
            read_dose(file)
        return
    dose = read_dose(file)
    assert dose.gy.min() == 0 and dose.gy.max() <= 60.01
    assert any(str(s).startswith(f"floor-dose: {few.sum()} voxels") for s in dose.provenance["steps"])  # type: ignore[attr-defined]


def test_a_dose_of_two_levels_at_the_full_range_is_no_hidden_sign(tmp_path: Path) -> None:
    gy = np.full((4, 6, 7), 20.0)
    gy[1:3, 2:4, 2:5] = 60.0
    assert read_dose(save(rt_dose(gy, kind=np.dtype("<u2")), tmp_path / "rd")).gy.max() == pytest.approx(60)


@pytest.mark.parametrize("offsets", [(0, 0, 3, 6), (0, 3, 3, 6), (0, 3, 6, 6.0001)])
def test_frames_on_one_place_are_refused(offsets: tuple[float, ...], tmp_path: Path) -> None:
    with pytest.raises(CaseError, match="uneven"):
        read_dose(save(rt_dose(offsets_mm=offsets), tmp_path / "rd"))


def test_a_dose_of_zeros_is_no_dose_of_the_case(tmp_path: Path) -> None:
    images, data = ct_series(), rt_dose()
    data.PixelData = bytes(len(data.PixelData))
    case = read_case(write_patient(tmp_path, images, structure_set(images), data))
    assert case.reference_dose is None
    assert any("the dose is zero everywhere" in step for step in case.source.steps)
