"""Which arcs are chosen where nobody says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cut_patients import patient

from vmat_diffusion.case import Case, Prescription, Structure
from vmat_diffusion.machine import Machine, load_machine
from vmat_diffusion.optimize.arcs import arc_frames, isocenter_of, partial_span
from vmat_diffusion.optimize.arrangement import Arrangement, Asked, arrange


@pytest.fixture(scope="module")
def machine() -> Machine:
    return load_machine("generic_6mv")


def chosen(
    case: Case, machine: Machine, site: str = "", rx: tuple[int, float] = (25, 50.0), **asked: object
) -> Arrangement:
    prescription = Prescription(rx[0], {"PTV": rx[1]})
    return arrange(case, prescription, machine, site=site, asked=Asked(**asked))  # type: ignore[arg-type]


def frames(case: Case, machine: Machine, found: Arrangement) -> np.ndarray:
    """All gantry angles of the arcs that were chosen."""
    start, stop = partial_span(case, ("PTV",)) if found.span == "partial" else (182.0, 178.0)
    made = arc_frames(
        case, ("PTV",), isocenter_of(case, ("PTV",)), machine, arcs=found.arcs, start_deg=start,
        stop_deg=stop, spacing_deg=2.0, collimators_deg=None, avoid_deg=found.avoid_deg,
    )  # fmt: skip
    return np.concatenate([f.gantry_deg for f in made]) % 360


@pytest.mark.parametrize("site", ["prostate", "head_neck", "brain", ""])
@pytest.mark.parametrize("x", [0.0, 80.0])
def test_pelvis_and_neck_get_two_full_arcs(site: str, x: float, machine: Machine) -> None:
    found = chosen(patient(target_x_mm=x), machine, site)
    assert (found.arcs, found.span, found.avoid_deg) == (2, "full", ())
    assert str(found).startswith("2 full arcs: the targets lie ")


@pytest.mark.parametrize("site", ["lung", "breast"])
def test_lateral_targets_of_lung_and_breast_get_partial_arcs(site: str, machine: Machine) -> None:
    left, right = (chosen(patient(target_x_mm=x), machine, site) for x in (80.0, -80.0))
    assert left.span == right.span == "partial" and (left.arcs, right.arcs) == (2, 2)
    assert "2 partial arcs: the targets lie 80 mm left of the body's middle" in str(left)
    assert "80 mm right" in str(right)
    assert (
        chosen(patient(target_x_mm=20.0), machine, site).span == {"lung": "full", "breast": "partial"}[site]
    )
    assert chosen(patient(), machine, site).span == "full"
    feet = chosen(patient(target_x_mm=80.0, position="FFS"), machine, site)
    assert feet.reasons == left.reasons


def test_a_target_beside_lungs_is_a_chest_whatever_the_site(machine: Machine) -> None:
    case = patient(target_x_mm=80.0)
    lungs = Structure("Lungs", "organ", case.structures["PTV"].mask)
    chest = replace(case, structures={**case.structures, "Lungs": lungs})
    assert chosen(chest, machine).span == "partial"
    abdomen = replace(lungs, mask=np.roll(lungs.mask, 20, axis=0))
    assert chosen(replace(chest, structures={**chest.structures, "Lungs": abdomen}), machine).span == "full"


def test_targets_wider_than_the_leaf_span_get_twice_the_arcs(machine: Machine) -> None:
    narrow = replace(machine, limits=replace(machine.limits, leaf_span_mm=45.0))
    found = chosen(patient(), narrow)
    assert found.arcs == 4 and "which span 44 mm" in str(found)


def test_large_fractions_get_more_arcs_and_fast_machines_fewer_of_them(machine: Machine) -> None:
    case = patient()
    assert chosen(case, machine, rx=(5, 30.0)).arcs == 2  # 6 Gy is not above 6 Gy
    assert chosen(case, machine, rx=(5, 31.0)).arcs == 3
    assert chosen(case, machine, rx=(3, 54.0)).arcs == 4
    fast = replace(machine, limits=replace(machine.limits, dose_rate_mu_min=1400.0))
    assert chosen(case, fast, rx=(5, 50.0)).arcs == 3
    assert "10 Gy a fraction are above 6 Gy" in str(chosen(case, machine, rx=(5, 50.0)))


def test_what_is_asked_stays(machine: Machine) -> None:
    case = patient(target_x_mm=80.0, left_mm=140.0)
    asked = {"arcs": 1, "span": "full", "avoid_deg": ((10.0, 20.0),)}
    found = chosen(case, machine, "lung", (3, 54.0), **asked)
    assert (found.arcs, found.span, found.avoid_deg) == (1, "full", ((10.0, 20.0),))
    assert found.cautions == () and found.sectors
    explicit = chosen(case, machine, "lung", start_deg=200.0, stop_deg=20.0)
    assert (explicit.span, explicit.avoid_deg) == ("full", ())


def test_no_beam_comes_from_where_the_ct_ends(machine: Machine) -> None:
    case = patient(left_mm=140.0)
    found = chosen(case, machine)
    (sector,) = found.sectors
    assert found.avoid_deg == ((sector.first_deg, sector.last_deg),)
    assert "the CT ends 140 mm from the isocentre at gantry" in found.cautions[0]
    assert found.cautions[0].endswith("no beam comes from there")
    angles = frames(case, machine, found)
    assert not np.any((angles >= sector.first_deg) & (angles <= sector.last_deg))
    mirrored = chosen(patient(right_mm=140.0), machine)
    assert mirrored.avoid_deg == (((-sector.last_deg) % 360, (-sector.first_deg) % 360),)


def test_partial_arcs_become_full_where_their_side_is_cut(machine: Machine) -> None:
    """40 mm of the body are left beside the target, so that most of that side is lost."""
    case = patient(left_mm=120.0, target_x_mm=80.0)
    found = chosen(case, machine, "lung")
    assert found.span == "full" and "leave too little of that side" in str(found)
    assert len(frames(case, machine, found)) > 150
    told = chosen(case, machine, "lung", span="partial")
    assert told.span == "partial" and told.avoid_deg == ()
    assert "degrees would be left, so beams come from there" in told.cautions[0]


def test_short_rests_between_sectors_and_ends_are_left_out(machine: Machine) -> None:
    """Cut on both sides: the angles between a sector and the back are kept only if an arc fits."""
    case = patient(left_mm=100.0, right_mm=100.0)
    found = chosen(case, machine)
    if found.avoid_deg:
        assert len(frames(case, machine, found)) > 0
    else:
        assert "would be left" in found.cautions[0]
