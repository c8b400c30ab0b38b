"""Contours, masks and turned series against other libraries and closed formulae."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.path import Path as Outline
from scipy import ndimage
from scipy.spatial.transform import Rotation
from skimage.draw import polygon2mask
from skimage.measure import find_contours

from vmat_diffusion.dicom.lattice import lattice_of, placement_of
from vmat_diffusion.dicom.structure_set.contours import contours_from_mask, fill_even_odd
from vmat_diffusion.geometry import Grid

SIZE = 60


@pytest.mark.parametrize("seed", range(20))
def test_simple_outlines_agree_with_matplotlib_and_skimage(seed: int) -> None:
    """Star-shaped outlines at random places: all three use the centre of the pixel."""
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 40)))
    radius = rng.uniform(3, 25, len(angle))
    outline = rng.uniform(15, 45, 2) + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    ours = fill_even_odd([(0, outline)], (1, SIZE, SIZE))[0]
    j, i = np.mgrid[:SIZE, :SIZE]
    by_matplotlib = (
        Outline(outline).contains_points(np.stack([i.ravel(), j.ravel()], axis=1)).reshape(SIZE, SIZE)
    )
    differ = np.argwhere(ours != by_matplotlib)
    # A centre within our tolerance of 0.01 pixel of an edge counts as inside with us alone.
    assert all(_distance(outline, p[::-1].astype(float)) < 0.015 for p in differ)
    differ = np.argwhere(ours != polygon2mask((SIZE, SIZE), outline[:, ::-1]))
    assert all(_distance(outline, p[::-1].astype(float)) < 0.015 for p in differ)


def _distance(outline: np.ndarray, point: np.ndarray) -> float:
    start, end = outline, np.roll(outline, -1, axis=0)
    along = end - start
    t = np.clip(((point - start) * along).sum(axis=1) / (along**2).sum(axis=1), 0, 1)
    return float(np.hypot(*(start + t[:, None] * along - point).T).min())


def test_self_crossing_star_follows_the_even_odd_rule() -> None:
    turn = 2 * np.pi * 2 / 5 * np.arange(5)
    star = 30.2 + 25 * np.stack([np.cos(turn), np.sin(turn)], axis=1)
    mask = fill_even_odd([(0, star)], (1, SIZE, SIZE))[0]
    assert not mask[30, 30], "the middle of a pentagram is wound round twice: outside"
    assert mask.sum() > 100


@pytest.mark.parametrize("radius_mm", [8.0, 20.0])
def test_sphere_drawn_slice_by_slice_has_the_volume_of_a_sphere(radius_mm: float) -> None:
    """Finite voxels: within 1 % at eight voxels' radius or more, centre off the lattice."""
    spacing = 1.0
    n = int(2 * radius_mm) + 6
    centre = np.array([n / 2 + 0.31, n / 2 - 0.17])
    contours = []
    for k in range(n):
        r2 = radius_mm**2 - (k * spacing - n / 2 - 0.23) ** 2
        if r2 > 0:
            t = np.linspace(0, 2 * np.pi, 400, endpoint=False)
            contours.append((k, centre + np.sqrt(r2) * np.stack([np.cos(t), np.sin(t)], axis=1)))
    volume = fill_even_odd(contours, (n, n, n)).sum() * spacing**3
    assert volume == pytest.approx(4 / 3 * np.pi * radius_mm**3, rel=0.01)


def test_contours_of_a_disk_enclose_its_area() -> None:
    """Shoelace area of the written outline; its cut corners lose an eighth of a pixel each."""
    n, radius = 101, 40.0
    j, i = np.mgrid[:n, :n] - n // 2
    mask = (np.hypot(i, j) <= radius)[None]
    (points,) = contours_from_mask(mask, Grid((1, n, n), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0)))
    x, y = points[:, 0], points[:, 1]
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    assert area == pytest.approx(np.pi * radius**2, rel=0.01)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_contours_of_scattered_pixels_are_those_of_skimage(share: float) -> None:
    """Holes, single pixels and pixels that touch at a corner: the same vertices, joined the same way."""
    mask = np.random.default_rng(5).random((SIZE, SIZE)) < share
    ours = contours_from_mask(mask[None], Grid((1, SIZE, SIZE), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0)))
    theirs = [points[:-1, ::-1] - 1 for points in find_contours(np.pad(mask, 1).astype(float), 0.5)]
    assert sorted(_edges(points[:, :2]) for points in ours) == sorted(_edges(points) for points in theirs)


def _edges(points: np.ndarray) -> list[list[list[float]]]:
    """The edges of a closed outline, whatever its start and its sense."""
    return sorted(
        sorted([a, b]) for a, b in zip(points.tolist(), np.roll(points, -1, 0).tolist(), strict=True)
    )


@pytest.mark.parametrize("seed", range(3))
def test_a_turned_series_lies_on_the_grid_as_simpleitk_resamples_it(seed: int) -> None:
    """Both compute in 64 bits and store 32: a voxel differs by the last digit at most."""
    rng = np.random.default_rng(seed)
    row, column, normal = Rotation.from_rotvec(rng.uniform(-0.4, 0.4, 3)).as_matrix()
    origins = rng.uniform(-200, -100, 3) + np.outer(2.5 * np.arange(20), normal)
    lattice = lattice_of(origins, (*row, *column), (1.1, 0.95), (30, 40))
    placement = placement_of(lattice)
    hu = ndimage.gaussian_filter(rng.normal(0, 1000, lattice.shape), 1).astype(np.float32)
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((*lattice.spacing_mm, 2.5))
    image.SetOrigin(tuple(origins[0]))
    image.SetDirection(np.stack([row, column, normal], axis=1).ravel().tolist())
    grid = placement.grid
    theirs = sitk.Resample(
        image,
        grid.shape[::-1],
        sitk.Transform(),
        sitk.sitkLinear,
        grid.origin_mm,
        grid.spacing_mm,
        (1, 0, 0, 0, 1, 0, 0, 0, 1),
        -1000.0,
        sitk.sitkFloat32,
    )
    assert placement.steps[-1].startswith("turn-oblique")
    np.testing.assert_allclose(
        placement.values(hu, -1000.0), sitk.GetArrayFromImage(theirs), rtol=2**-22, atol=1e-5
    )
