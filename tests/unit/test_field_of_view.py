"""Where the CT ends although the body goes on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cut_patients import patient, with_round_field

from vmat_diffusion.case import Case
from vmat_diffusion.field_of_view import FieldOfView, Sector, cut_sectors, near_ends, sectors_of
from vmat_diffusion.geometry import PATIENT_POSITIONS, Grid
from vmat_diffusion.phantom import PHANTOMS, phantom

ISOCENTER = (0.0, 0.0, 0.0)


def sectors(case: Case, couches: tuple[float, ...] = (0.0,)) -> tuple[Sector, ...]:
    return cut_sectors(case, ("PTV",), ISOCENTER, 1000.0, couches)


def turned(sector: Sector) -> tuple[float, float]:
    """The sector of the patient mirrored from left to right."""
    return (-sector.last_deg) % 360, (-sector.first_deg) % 360


def test_a_body_that_the_ct_holds_has_no_sector() -> None:
    assert sectors(patient()) == ()
    for name in PHANTOMS:
        case = phantom(name)
        assert cut_sectors(case, [t.name for t in case.targets], ISOCENTER, 1000.0) == ()


def test_a_body_cut_on_the_left_is_avoided_from_the_left() -> None:
    """The CT ends 140 mm left of the isocentre, where the ellipse is 2 x 69 mm high: +-26 degrees."""
    (sector,) = sectors(patient(left_mm=140.0))
    height = 110 * np.sqrt(1 - (140 / 180) ** 2)
    # Rays from the source, 1000 mm away, to a ball of 20 mm: some cross the cut from a few degrees further.
    half = np.degrees(np.arctan2(height, 140.0))
    assert sector.first_deg + sector.last_deg == 180
    assert half + 4 <= 90 - sector.first_deg <= half + 4 + np.degrees(20 / 140) + 2
    assert sector.share == 1 and sector.distance_mm == pytest.approx(140.0)
    assert str(sector) == f"gantry {sector.first_deg:g} to {sector.last_deg:g}"


def test_a_mirrored_patient_has_mirrored_sectors() -> None:
    (left,), (right,) = sectors(patient(left_mm=140.0)), sectors(patient(right_mm=140.0))
    assert turned(left) == (right.first_deg, right.last_deg)
    both = sectors(patient(left_mm=140.0, right_mm=140.0))
    assert [(s.first_deg, s.last_deg) for s in both] == [(s.first_deg, s.last_deg) for s in (left, right)]


@pytest.mark.parametrize("position", PATIENT_POSITIONS)
def test_sectors_follow_the_patient_position(position: str) -> None:
    """The patient's left is at gantry 90 supine with the head first; two turns bring it there again."""
    (sector,) = sectors(patient(left_mm=140.0, position=position))
    middle = (sector.first_deg + sector.last_deg) / 2 % 360
    assert middle == {"HFS": 90, "FFP": 90, "HFP": 270, "FFS": 270}[position]


def test_a_scanner_s_circle_cuts_like_a_border() -> None:
    """A square of 2 x 160 mm in whose circle the ellipse of 2 x 180 mm does not fit."""
    case = patient(left_mm=160.0, right_mm=160.0)
    x, y, z = case.grid.axes_mm
    rows = np.round((np.arange(len(x)) - (len(x) - 1) / 2) * case.grid.spacing_mm[1], 3)
    grid = Grid((len(z), len(rows), len(x)), case.grid.spacing_mm, (x[0], float(rows[0]), z[0]))

    def tall(values: np.ndarray, fill: float) -> np.ndarray:
        out = np.full(grid.shape, fill, values.dtype)
        first = round((y[0] - rows[0]) / case.grid.spacing_mm[1])
        out[:, first : first + len(y)] = values
        return out

    structures = {n: replace(s, mask=tall(s.mask, False)) for n, s in case.structures.items()}
    square = replace(case, grid=grid, hu=tall(case.hu, -1000.0), structures=structures)
    round_ = with_round_field(square, 160.0)
    assert FieldOfView.of(round_).radius_mm == pytest.approx(160.0)
    found = sectors(round_)
    assert len(found) == 2 and found[0].distance_mm == pytest.approx(160.0, abs=1)
    drawn = replace(round_, structures={**structures})  # the body is drawn beyond the circle as well
    assert sectors(drawn) == found


def test_a_body_drawn_short_of_the_border_is_cut_if_tissue_goes_on() -> None:
    case = patient(left_mm=140.0)
    mask = case.body.mask.copy()
    mask[:, :, -1] = False
    short = replace(case, structures={**case.structures, "BODY": replace(case.body, mask=mask)})
    assert len(sectors(short)) == 1
    hu = np.array(case.hu)
    hu[:, :, -2:] = -1000.0  # a body that ends in air is whole, wherever the CT ends
    assert sectors(replace(short, hu=hu)) == ()


def test_a_turned_couch_beams_through_the_last_slice() -> None:
    case = patient(right_mm=300.0, left_mm=300.0)
    assert sectors(case) == ()
    (near, far) = sectors(case, (90.0,))
    assert {round((s.first_deg + s.last_deg) / 2) for s in (near, far)} == {90, 270}


def test_targets_beside_the_last_slice_are_named() -> None:
    case = patient()
    assert near_ends(case, ("PTV",)) == ()
    ptv = case.structures["PTV"]
    moved = replace(ptv, mask=np.roll(ptv.mask, 18, axis=0))  # 72 of 80 mm
    up = replace(case, structures={**case.structures, "PTV": moved})
    ((name, end, away),) = near_ends(up, ("PTV",))
    assert (name, end) == ("PTV", "upper") and away == pytest.approx(8.0)
    body = case.body.mask.copy()
    body[-1] = False  # the vertex: the body ends before the CT
    ended = replace(up, structures={**up.structures, "BODY": replace(case.body, mask=body)})
    assert near_ends(ended, ("PTV",)) == ()


def test_sectors_wrap_around_the_circle() -> None:
    shares = np.zeros(180)
    shares[[179, 0, 1, 90]] = 1.0
    first, second = sectors_of(2.0 * np.arange(180), shares, np.full(180, 50.0), room_deg=2.0)
    assert (first.first_deg, first.last_deg) == (178, 182)
    assert (second.first_deg, second.last_deg) == (356, 4)
    (everywhere,) = sectors_of(2.0 * np.arange(180), np.ones(180), np.full(180, 50.0))
    assert (everywhere.first_deg, everywhere.last_deg) == (0, 360)
