"""Random shifts and scales of CT against structures: the gate stops them, and neither masks nor couches."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy import ndimage

from vmat_diffusion.anatomy import synthetic_case
from vmat_diffusion.case import Case
from vmat_diffusion.dicom.structure_set.body import body_from_ct
from vmat_diffusion.geometry import subgrid
from vmat_diffusion.phantom import PHANTOMS, phantom
from vmat_diffusion.qa import GateSettings
from vmat_diffusion.qa.outline import outline_place
from vmat_diffusion.qa.outline_fit import Displacement, fitted_displacement
from vmat_diffusion.qa.verdict import Check

SITES = ("head_neck", "lung", "prostate")
RUNS = range(4)


@cache
def patient(site: str) -> Case:
    return synthetic_case(site, 5, spacing_mm=(2.5, 2.5, 6.0))


def ct_moved(case: Case, shift_mm: tuple[float, float, float], scale: tuple[float, float] = (1, 1)) -> Case:
    """The CT with another position, and with other pixel spacings about the corner of its images."""
    (sx, sy, sz), (dx, dy, dz), (kx, ky) = case.grid.spacing_mm, shift_mm, scale
    hu = ndimage.affine_transform(
        case.hu, [1.0, 1 / ky, 1 / kx], offset=[-dz / sz, -dy / sy / ky, -dx / sx / kx], order=1, cval=-1000.0
    )
    return replace(case, hu=hu)


def places(case: Case) -> list[Check]:
    return outline_place(case, GateSettings())


def fit_of(case: Case) -> Displacement:
    found = fitted_displacement(case)
    assert found is not None
    return found


def sheet_around(case: Case, thick_mm: float, *, front_only: bool, gap_mm: float = 0.0) -> Case:
    """A mask around the body, or on its front half."""
    spacing, body = case.grid.spacing_mm[1::-1], case.body.mask
    away = np.stack([ndimage.distance_transform_edt(~plane, sampling=spacing) for plane in body])
    sheet = (away > gap_mm) & (away <= gap_mm + thick_mm)
    if front_only:
        rows = np.flatnonzero(body.any(axis=(0, 2)))
        sheet[:, (rows[0] + rows[-1]) // 2 :] = False
    return replace(case, hu=np.where(sheet, 0.0, case.hu))


def on_a_couch(case: Case, thick_mm: float) -> Case:
    """A slab right under the patient's back."""
    hu, rows = case.hu.copy(), np.flatnonzero(case.body.mask.any(axis=(0, 2)))
    slab = np.zeros(case.grid.shape, bool)
    slab[:, rows[-1] - 3 : rows[-1] + 1 + int(thick_mm / case.grid.spacing_mm[1])] = True
    hu[slab & ~case.body.mask] = -200.0
    return replace(case, hu=hu)


@pytest.mark.parametrize("name", PHANTOMS)
def test_the_outlines_of_phantoms_lie_on_their_ct(name: str) -> None:
    assert all(check.passed and check.value == pytest.approx(0, abs=0.1) for check in places(phantom(name)))


@pytest.mark.parametrize("site", SITES)
def test_neither_masks_nor_couches_are_shifts(site: str) -> None:
    case = patient(site)
    checks = places(case)
    assert len(checks) == 2 and all(c.value is not None and c.value < 0.2 for c in checks)
    for front_only in (False, True):
        for gap_mm in (0.0, 4.0):
            worn = sheet_around(case, 3.2, front_only=front_only, gap_mm=gap_mm)
            assert all(c.passed for c in places(worn)), [c.why for c in places(worn)]
    for thick_mm in (5.0, 30.0):
        assert all(c.passed for c in places(on_a_couch(case, thick_mm)))


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("axis", [1, 2])
def test_a_body_that_the_scan_cuts_is_no_shift(site: str, axis: int) -> None:
    """20 mm of the patient lie outside the CT on both sides."""
    case = sheet_around(patient(site), 3.0, front_only=True)
    used = np.flatnonzero(case.body.mask.any(axis=tuple(a for a in range(3) if a != axis)))
    spans = [slice(0, n) for n in case.grid.shape]
    spans[axis] = slice(int(used[0]) + 8, int(used[-1]) - 7)
    box = spans[0], spans[1], spans[2]
    body = replace(case.body, mask=case.body.mask[box])
    cut = replace(
        case,
        grid=subgrid(case.grid, box),
        hu=case.hu[box],
        structures={body.name: body},
        prescription=None,
        reference_dose=None,
    )
    assert len(places(cut)) == 2 and all(c.passed for c in places(cut)), [c.why for c in places(cut)]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("seed", RUNS)
def test_a_random_shift_of_the_ct_fails(site: str, seed: int) -> None:
    """2.6 to 15 mm in any direction of the slices; the shift itself is found within half a millimetre."""
    rng = np.random.default_rng(seed)
    far, angle = rng.uniform(2.6, 15.0), rng.uniform(0, 2 * np.pi)
    shift = (far * np.cos(angle), far * np.sin(angle), 0.0)
    checks = places(ct_moved(patient(site), shift))
    assert any(c.fails for c in checks), [c.why for c in checks]
    found = fit_of(ct_moved(patient(site), shift))
    assert np.allclose(found.shift_mm[:2], shift[:2], atol=0.5 + 0.05 * far)
    small = places(ct_moved(patient(site), (0.1 * shift[0], 0.1 * shift[1], 0.0)))
    assert all(c.passed for c in small), [c.why for c in small]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("seed", RUNS)
def test_a_random_pixel_spacing_fails(site: str, seed: int) -> None:
    """Pixels 2.5 to 8 % larger or smaller than written, along x, y or both, about the corner of the image."""
    rng = np.random.default_rng(100 + seed)
    factor = 1.0 + rng.choice([-1, 1]) * rng.uniform(0.025, 0.08)
    scale = [(factor, factor), (factor, 1.0), (1.0, factor)][seed % 3]
    checks = places(ct_moved(patient(site), (0, 0, 0), scale))
    assert any(c.fails for c in checks), [c.why for c in checks]


def test_structures_that_lie_a_slice_off_are_said_where_the_body_shows_it() -> None:
    case = patient("head_neck")
    shift, _ = places(ct_moved(case, (0, 0, case.grid.spacing_mm[2])))
    assert shift.passed and shift.warns and "along z" in shift.why


@pytest.mark.parametrize("site", SITES)
def test_the_shift_is_that_of_the_centres_of_body_and_tissue(site: str) -> None:
    """Another way to the same number: the centre of what is tissue in the CT against that of the body."""
    case = patient(site)
    moved = ct_moved(case, (3.0, -4.0, 0.0))
    inner = slice(2, -2)
    centres = [ndimage.center_of_mass(m[inner]) for m in (case.body.mask, body_from_ct(moved.hu, case.grid))]
    by = [(b - a) * s for a, b, s in zip(*centres, case.grid.spacing_mm[::-1], strict=True)]
    assert np.allclose(fit_of(moved).shift_mm[:2], by[:0:-1], atol=0.6)


def test_a_body_made_from_the_ct_is_not_compared_with_it() -> None:
    case = patient("lung")
    made = replace(case, source=replace(case.source, steps=("body-from-ct: no body is contoured",)))
    assert places(made) == []
