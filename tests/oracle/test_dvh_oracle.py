"""DVH against shapes that can be solved by hand, and against independent calculations.

The shapes go the real way: contours -> mask on a CT grid -> dose interpolated from its own grid.
Tolerance throughout: 1 % of volume and dose, as the project demands of its DVH.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray
from scipy.optimize import brentq

from vmat_diffusion.case import Case, Dose, Structure
from vmat_diffusion.dataset.prepare import on_spacing
from vmat_diffusion.dicom import read_case, read_dose
from vmat_diffusion.dicom.structure_set.contours import fill_even_odd
from vmat_diffusion.evaluate.dvh import structure_dvh
from vmat_diffusion.geometry import Grid, Point

# Pixel, slice and dose grid in mm: fine head-and-neck CT, common CT, coarse research data.
_GRIDS = {
    "fine": ((0.977, 0.977, 2.0), 2.5),
    "common": ((1.17, 1.17, 3.0), 3.0),
    "coarse": ((3.9, 3.9, 2.5), 3.9),
}


@dataclass(frozen=True)
class _Shape:
    """A body of revolution along z: its radius at height z from its middle, and its length."""

    radius_mm: Callable[[float], float]
    half_length_mm: float
    volume_mm3: float


def _sphere(radius: float) -> _Shape:
    return _Shape(lambda z: math.sqrt(max(radius**2 - z**2, 0.0)), radius, 4 / 3 * math.pi * radius**3)


def _cylinder(radius: float, length: float) -> _Shape:
    return _Shape(lambda z: radius, length / 2, math.pi * radius**2 * length)


def _mask(shape: _Shape, center: Point, grid: Grid) -> NDArray[np.bool_]:
    """The mask of the shape's contours, one circle of 180 points in each slice that cuts it."""
    angle = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    contours = []
    for k, z in enumerate(grid.axes_mm[2]):
        if abs(z - center[2]) >= shape.half_length_mm:
            continue
        r = shape.radius_mm(z - center[2])
        xy = np.stack([center[0] + r * np.cos(angle), center[1] + r * np.sin(angle)], axis=1)
        contours.append((k, (xy - grid.origin_mm[:2]) / grid.spacing_mm[:2]))
    return fill_even_odd(contours, grid.shape)


def _linear_dose(grid: Grid, center: Point, gradient_gy_mm: Point, center_gy: float) -> Dose:
    x, y, z = (axis - c for axis, c in zip(grid.axes_mm, center, strict=True))
    gx, gy, gz = gradient_gy_mm
    values = center_gy + gx * x[None, None, :] + gy * y[None, :, None] + gz * z[:, None, None]
    return Dose(grid, np.broadcast_to(values, grid.shape).astype(np.float32))


def _setup(spacing: Point, dose_mm: float, size_mm: float = 110.0) -> tuple[Grid, Grid]:
    shape = tuple(math.ceil(size_mm / s) for s in spacing[::-1])
    ct = Grid(shape, spacing, (-53.1, -214.7, -870.3))  # type: ignore[arg-type]
    n = math.ceil(size_mm / dose_mm) + 4
    return ct, Grid((n, n, n), (dose_mm,) * 3, tuple(o - 1.3 * dose_mm for o in ct.origin_mm))  # type: ignore[arg-type]


def _middle(ct: Grid) -> Point:
    """A point off the voxel centres, near the middle of the grid."""
    x, y, z = (axis[len(axis) // 2] for axis in ct.axes_mm)
    return float(x) + 0.31, float(y) - 0.22, float(z) + 0.4


@pytest.mark.parametrize("which", _GRIDS)
def test_sphere_in_a_gradient(which: str) -> None:
    """Dose rises linearly, so that the volume above a dose is a spherical cap."""
    ct, coarse = _setup(*_GRIDS[which])
    center, radius, slope = _middle(ct), 35.0, 0.4
    direction = np.array([1.0, -2.0, 2.0]) / 3
    dose = _linear_dose(coarse, center, tuple(slope * direction), 50.0)  # type: ignore[arg-type]
    shape = _sphere(radius)
    dvh = structure_dvh(dose, Structure("PTV", "target", _mask(shape, center, ct)), ct)

    def above(u: float) -> float:
        """Share of the sphere beyond u radii along the gradient."""
        return (2 - 3 * u + u**3) / 4

    assert dvh.volume_cc == pytest.approx(shape.volume_mm3 / 1000, rel=0.01)
    assert dvh.mean_gy == pytest.approx(50.0, rel=0.01)
    for percent in (98, 95, 50, 5, 2):
        u = brentq(lambda u, p=percent: above(u) - p / 100, -1, 1)
        assert dvh.dose_at_percent_gy(percent) == pytest.approx(50 + slope * radius * u, rel=0.01)
    for gy in (42.0, 50.0, 58.0):
        expected = 100 * above((gy - 50) / (slope * radius))
        assert float(dvh.volume_at_dose_percent(gy)) == pytest.approx(expected, abs=1.0)
    assert dvh.std_gy == pytest.approx(slope * radius / math.sqrt(5), rel=0.01)


# Not on the coarse grid: every slice repeats the same circle there, and with it the same 1.02 % of
# pixels lost, while the slices of a sphere average such errors out.
@pytest.mark.parametrize("which", ["fine", "common"])
@pytest.mark.parametrize("along", ["x", "z"])
def test_cylinder_in_a_gradient(which: str, along: str) -> None:
    """Along the axis dose is uniform in volume; across it the volume above is a circle's segment."""
    ct, coarse = _setup(*_GRIDS[which])
    center, radius, slope = _middle(ct), 30.0, 0.5
    slices = ct.spacing_mm[2]
    # Whole slices around a slice centre: a shape's ends are known no better than the slices.
    length = slices * (2 * round(30 / slices) + 1)
    center = (center[0], center[1], float(ct.axes_mm[2][ct.shape[0] // 2]))
    shape = _cylinder(radius, length)
    gradient = (slope, 0.0, 0.0) if along == "x" else (0.0, 0.0, slope)
    dose = _linear_dose(coarse, center, gradient, 45.0)
    dvh = structure_dvh(dose, Structure("SpinalCord", "organ", _mask(shape, center, ct)), ct)
    half = radius if along == "x" else length / 2

    def above(u: float) -> float:
        if along == "z":
            return (1 - u) / 2
        return (math.acos(u) - u * math.sqrt(1 - u**2)) / math.pi

    assert dvh.volume_cc == pytest.approx(shape.volume_mm3 / 1000, rel=0.01)
    assert dvh.mean_gy == pytest.approx(45.0, rel=0.01)
    for percent in (95, 50, 5):
        u = brentq(lambda u, p=percent: above(u) - p / 100, -1, 1)
        # Slices are steps of dose along z; D at a volume is known to half a step there.
        step = 0.5 * slope * slices if along == "z" else 0.0
        assert dvh.dose_at_percent_gy(percent) == pytest.approx(45 + slope * half * u, rel=0.01, abs=step)


def test_a_target_edge_off_by_a_slice_would_be_seen() -> None:
    """The tolerance bites: one slice too many moves volume and mean by more than 1 %."""
    ct, coarse = _setup(*_GRIDS["common"])
    center = _middle(ct)
    mask = _mask(_cylinder(30.0, 60.0), center, ct)
    last = int(np.flatnonzero(mask.any(axis=(1, 2)))[-1])
    longer = mask.copy()
    longer[last + 1] = mask[last]
    dose = _linear_dose(coarse, center, (0.0, 0.0, 0.5), 45.0)
    a, b = (structure_dvh(dose, Structure("PTV", "target", m), ct) for m in (mask, longer))
    assert b.volume_cc > 1.01 * a.volume_cc and b.mean_gy > 1.01 * a.mean_gy


def _round_dose(spacing: Point, offset: float, *, edge_mm: float = 37.4, width_mm: float = 3.0) -> Dose:
    """75 Gy with a round fall-off of 74 / (4 x 3 mm) = 6 Gy/mm at most, as values at points."""
    counts = tuple(int(146 / s) + 1 for s in spacing[::-1])
    grid = Grid(counts, spacing, (offset - 71.3,) * 3)  # type: ignore[arg-type]
    x, y, z = grid.axes_mm
    r = np.sqrt(x[None, None] ** 2 + y[None, :, None] ** 2 + z[:, None, None] ** 2)
    return Dose(grid, (74 / (1 + np.exp((r - edge_mm) / width_mm)) + 1).astype(np.float32))


def _closed_form() -> tuple[float, float, float]:
    """V70Gy in %, D95% and mean in Gy of a sphere of 30 mm in that dose."""
    r = 37.4 + 3.0 * math.log(74 / 69 - 1)
    inside = np.linspace(0, 30, 30001)
    gy = 74 / (1 + np.exp((inside - 37.4) / 3)) + 1
    mean = np.trapezoid(gy * 3 * inside**2 / 30**3, inside)
    edge = 30 * 0.95 ** (1 / 3)
    return 100 * (r / 30) ** 3, 74 / (1 + math.exp((edge - 37.4) / 3)) + 1, float(mean)


@pytest.mark.parametrize("offset", [0.0, 0.9, 2.1])
@pytest.mark.parametrize("spacing", [(4.0, 4.0, 4.0), (3.0, 3.0, 5.0), (2.5, 2.5, 2.5)])
def test_a_coarse_dose_keeps_its_convex_edge(spacing: Point, offset: float) -> None:
    """The DVH and the training case of one dose agree with the closed form: 1 % of volume, 0.5 Gy.

    V70Gy is 95.33 %, D95% 70.05 Gy, mean 73.52 Gy. Straight lines between the points of 4 mm give 91.2 %
    and 69.3 Gy; values taken for voxel means give 97.3 % and 70.4 Gy.
    """
    ct = Grid((41, 160, 160), (1.0, 1.0, 3.0), (-79.5, -79.5, -60.0))
    middle = (0.0, 0.0, 0.0)
    ptv, body = _mask(_sphere(30.0), middle, ct), _mask(_cylinder(70.0, 200.0), middle, ct)
    structures = {
        "BODY": Structure("BODY", "body", body),
        "PTV_70": Structure("PTV_70", "target", ptv),
    }
    dose = _round_dose(spacing, offset)
    case = Case("round", "head_neck", ct, np.zeros(ct.shape), structures, reference_dose=dose)
    prepared = on_spacing(case, (1.0, 1.0, 3.0)).case
    assert prepared.reference_dose is not None
    v70, d95, mean = _closed_form()
    assert (v70, d95, mean) == pytest.approx((95.33, 70.05, 73.52), abs=0.01)
    for held, given in ((case, dose), (prepared, prepared.reference_dose)):
        dvh = structure_dvh(given, held.structures["PTV_70"], held.grid)
        assert float(dvh.volume_at_dose_percent(70.0)) == pytest.approx(v70, abs=1.0)
        assert dvh.dose_at_percent_gy(95) == pytest.approx(d95, abs=0.5)
        assert dvh.mean_gy == pytest.approx(mean, abs=0.05)
        assert dvh.max_gy <= dose.gy.max()


def test_a_cliff_of_dose_makes_no_dose_that_is_nowhere_near() -> None:
    """Where a system writes 0 outside the body a spline alone would ring by 4 Gy on either side."""
    grid = Grid((12, 12, 20), (3.0, 3.0, 3.0), (0.0, 0.0, 0.0))
    gy = np.zeros(grid.shape, np.float32)
    gy[:, :, 10:] = 50.0
    fine = Grid((34, 34, 58), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    there = Dose(grid, gy).on(fine)
    assert there.min() == 0.0 and there.max() == 50.0
    assert not there[:, :, :28].any() and (there[:, :, 30:] > 49.99).all()


def _around(dose: Dose, grid: Grid, either: Callable[[NDArray, NDArray], NDArray]) -> NDArray:
    """The least or the highest of the eight points of the dose around each voxel of a grid."""
    out = dose.gy
    for axis in range(3):
        k = 2 - axis
        at = (grid.axes_mm[k] - dose.grid.origin_mm[k]) / dose.grid.spacing_mm[k]
        at = np.clip(at, 0, dose.grid.shape[axis] - 1)
        sides = (np.floor(at + 1e-9), np.ceil(at - 1e-9))
        out = either(*(np.take(out, side.astype(int), axis) for side in sides))
    return out


@pytest.mark.parametrize("name", ["pt_3", "pt_22"])
def test_real_patient_against_simpleitk(patient: Callable[[str], Path], name: str) -> None:
    """Another library's interpolation and statistics on a patient's own dose and contours."""
    case = read_case(patient(name))
    dose = case.reference_dose
    assert dose is not None
    # A dose grid of its own, shifted and coarser, so that interpolation matters.
    own = Grid(tuple(max(n * 3 // 4, 2) for n in dose.grid.shape), (5.1, 4.7, 3.3), dose.grid.origin_mm)  # type: ignore[arg-type]
    dose = Dose(own, dose.on(own))
    image = sitk.GetImageFromArray(dose.gy)
    image.SetSpacing(own.spacing_mm)
    image.SetOrigin(own.origin_mm)
    target = sitk.Image([*case.grid.shape[::-1]], sitk.sitkFloat32)
    target.SetSpacing(case.grid.spacing_mm)
    target.SetOrigin(case.grid.origin_mm)
    on_ct = sitk.Resample(image, target, sitk.Transform(), sitk.sitkBSpline, 0.0)
    # Theirs is not held between the points around: beside a cliff it falls below 0 Gy and peaks up to 5.6 Gy
    # above every point. Held so, it must agree in every figure.
    low, high = (_around(dose, case.grid, either) for either in (np.minimum, np.maximum))
    held = np.clip(sitk.GetArrayFromImage(on_ct), low, high)
    on_ct = sitk.GetImageFromArray(held)
    on_ct.CopyInformation(target)
    compared = 0
    for structure in case.structures.values():
        if structure.role not in ("target", "organ") or structure.voxels < 50:
            continue
        label = sitk.GetImageFromArray(structure.mask.astype(np.uint8))
        label.CopyInformation(target)
        filter_ = sitk.LabelIntensityStatisticsImageFilter()
        filter_.Execute(label, on_ct)
        dvh = structure_dvh(dose, structure, case.grid)
        assert dvh.volume_cc == pytest.approx(filter_.GetPhysicalSize(1) / 1000, rel=1e-6)
        # Both are float32; 0.001 Gy is ten times their rounding.
        assert dvh.mean_gy == pytest.approx(filter_.GetMean(1), abs=0.001)
        assert dvh.max_gy == pytest.approx(filter_.GetMaximum(1), abs=0.001)
        coldest = np.percentile(held[structure.mask], 5, method="hazen")
        assert dvh.dose_at_percent_gy(95) == pytest.approx(coldest, abs=0.001)
        compared += 1
    assert compared >= 6


# Volume tolerance: systems treat the first and last slice and the contour's pixels each in their own
# way, which shows in small structures (Tumor Bed: 13 cc in 18 slices).
_TPS_VOLUME = {"Heart": 0.01, "Lt Lung": 0.01, "Breast": 0.015, "Tumor Bed Block": 0.02, "Tumor Bed": 0.035}
_TPS_PRESCRIBED_GY = 14.0


@pytest.mark.parametrize("name", _TPS_VOLUME)
def test_against_the_dvh_of_a_treatment_planning_system(patient: Callable[[str], Path], name: str) -> None:
    """A clinical system's own DVH, embedded in its RTDOSE, from the same contours and dose."""
    folder = patient("dicompyler")
    written = pydicom.dcmread(folder / "rtdose.dcm", stop_before_pixels=True)
    structures = pydicom.dcmread(folder / "rtss.dcm")
    number = next(r.ROINumber for r in structures.StructureSetROISequence if r.ROIName == name)
    theirs = next(
        d for d in written.DVHSequence if d.DVHReferencedROISequence[0].ReferencedROINumber == number
    )
    roi = next(r for r in structures.ROIContourSequence if r.ReferencedROINumber == number)
    contours = [np.array(c.ContourData, float).reshape(-1, 3) for c in roi.ContourSequence]
    low, high = np.concatenate(contours).min(axis=0), np.concatenate(contours).max(axis=0)
    # The CT of these contours is not at hand; 1 mm pixels, off the vertices, on the contours' slices.
    counts = [round((high[2] - low[2]) / 3) + 1, *(int(high[k] - low[k]) + 3 for k in (1, 0))]
    grid = Grid(tuple(counts), (1.0, 1.0, 3.0), (low[0] - 0.87, low[1] - 0.63, low[2]))  # type: ignore[arg-type]
    planar = [(round((c[0, 2] - low[2]) / 3), c[:, :2] - grid.origin_mm[:2]) for c in contours]
    mask = fill_even_odd(planar, grid.shape)
    dvh = structure_dvh(read_dose(folder / "rtdose.dcm"), Structure(name, "organ", mask), grid)

    bins = np.array(theirs.DVHData, float).reshape(-1, 2)
    gy, percent = np.cumsum(bins[:, 0]) - bins[0, 0], 100 * bins[:, 1] / bins[0, 1]
    assert dvh.volume_cc == pytest.approx(bins[0, 1], rel=_TPS_VOLUME[name])
    one_percent = 0.01 * _TPS_PRESCRIBED_GY
    # Their statistics are percent of the prescription, although labelled Gy.
    assert dvh.mean_gy == pytest.approx(theirs.DVHMeanDose / 100 * _TPS_PRESCRIBED_GY, abs=one_percent / 2)
    assert dvh.max_gy == pytest.approx(theirs.DVHMaximumDose / 100 * _TPS_PRESCRIBED_GY, abs=one_percent)
    for volume in (95, 5):
        expected = np.interp(-volume, -percent, gy)
        assert dvh.dose_at_percent_gy(volume) == pytest.approx(expected, abs=one_percent)
