"""What a model knows of cases: its own kind passes, others are named with what is unusual."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_model import described, tiny_model

from vmat_diffusion.case import Case, Prescription, Structure
from vmat_diffusion.dataset.cases import TrainingCase
from vmat_diffusion.diffusion.domain import (
    domain_figures,
    domain_warnings,
    features,
    is_outside_sites,
    knows_spacing,
)
from vmat_diffusion.diffusion.encode import Encoding
from vmat_diffusion.diffusion.model import DoseModel, load_model, save_model
from vmat_diffusion.geometry import Grid, Mask
from vmat_diffusion.phantom import phantom

ENCODING = Encoding()


def ellipsoid(grid: Grid, middle: tuple[float, float, float], half: tuple[float, float, float]) -> Mask:
    x, y, z = grid.axes_mm
    a, b, c = ((v - m) / h for v, m, h in zip((x, y, z), middle, half, strict=True))
    return a[None, None, :] ** 2 + b[None, :, None] ** 2 + c[:, None, None] ** 2 <= 1


def head(seed: int) -> TrainingCase:
    """A head and neck like those of OpenKBP, drawn by seed."""
    rng = np.random.default_rng(seed)
    spacing = float(rng.normal(3.9, 0.1))
    grid = Grid((70, 64, 64), (spacing, spacing, 3.0), (-32 * spacing, -32 * spacing, -105.0))
    body = ellipsoid(grid, (0, 0, 0), (rng.normal(90, 6), rng.normal(95, 6), 150))
    at = rng.normal((5, -15, 0), (10, 8, 10))
    wide = rng.normal((50, 40, 55), (6, 5, 8))
    masks = {
        "BODY": body,
        "PTV_56": body & ellipsoid(grid, tuple(at), tuple(wide)),
        "PTV_70": body & ellipsoid(grid, tuple(at), tuple(wide * rng.normal(0.5, 0.05))),
        "Parotid_L": ellipsoid(grid, tuple(rng.normal((55, 0, 40), 5)), (14, 18, 25)),
        "Parotid_R": ellipsoid(grid, tuple(rng.normal((-55, 0, 40), 5)), (14, 18, 25)),
        "Brainstem": ellipsoid(grid, tuple(rng.normal((0, 25, 70), 5)), (14, 14, 25)),
    }
    if rng.random() < 0.5:
        masks["Larynx"] = ellipsoid(grid, tuple(rng.normal((0, -10, -40), 5)), (16, 16, 20))
    roles = {"BODY": "body", "PTV_70": "target", "PTV_56": "target"}
    structures = {n: Structure(n, roles.get(n, "organ"), m) for n, m in masks.items()}
    hu = np.where(body, rng.normal(20, 5), -1000)
    prescription = Prescription(35, {"PTV_70": 70.0, "PTV_56": 56.0})
    case = Case(f"head_{seed}", "head_neck", grid, hu, structures, prescription)
    return TrainingCase(case, body)


def with_case(seen: TrainingCase, **changes: object) -> TrainingCase:
    return replace(seen, case=replace(seen.case, **changes))


@pytest.fixture(scope="module")
def model() -> DoseModel:
    return described(tiny_model(), known=domain_figures((head(k) for k in range(60)), ENCODING))


def test_cases_of_the_same_kind_are_not_unusual(model: DoseModel) -> None:
    flagged = [k for k in range(1000, 1040) if domain_warnings(head(k), model)]
    assert len(flagged) <= 3  # 1 % by the distance, and some beyond the range of 60 cases


@pytest.mark.parametrize(
    ("name", "prescription"),
    [
        ("thorax", Prescription(30, {"PTV": 60.0})),
        ("tg119_prostate", Prescription(39, {"PTV": 78.0})),
    ],
)
def test_other_sites_are_flagged(model: DoseModel, name: str, prescription: Prescription) -> None:
    case = replace(phantom(name), site="other", prescription=prescription)
    case = replace(
        case, structures={s.name if s.role != "target" else "PTV": s for s in case.structures.values()}
    )
    seen = TrainingCase(case, case.body.mask)
    found = domain_warnings(seen, model)
    assert is_outside_sites(case, model)
    assert found[0] == "the site is other; the model was made for head_neck"
    # Not by its name alone: the figures say so too.
    assert any("as a whole" in s for s in domain_warnings(with_case(seen, site="head_neck"), model))


def test_the_sentence_names_what_is_unusual(model: DoseModel) -> None:
    seen = head(2000)
    halved = with_case(seen, prescription=Prescription(35, {"PTV_70": 50.0, "PTV_56": 40.0}))
    assert any(
        s == "the highest prescription is 50 Gy; in all training cases 70 Gy"
        for s in domain_warnings(halved, model)
    )
    low = with_case(seen, prescription=Prescription(35, {"PTV_70": 70.0, "PTV_56": 35.0}))
    assert "PTV_56 is prescribed 50 % of the highest dose; the model knows 100, 90, 80 %" in domain_warnings(
        low, model
    )
    bare = {n: s for n, s in seen.case.structures.items() if s.role != "organ"}
    assert "none of the organs that the model knows is contoured" in domain_warnings(
        with_case(seen, structures=bare), model
    )
    single = with_case(seen, prescription=Prescription(1, {"PTV_70": 70.0, "PTV_56": 56.0}))
    assert any("dose of a fraction is 70 Gy" in s for s in domain_warnings(single, model))


def test_patients_that_lie_otherwise_are_unusual(model: DoseModel) -> None:
    prone = with_case(head(2000), patient_position="HFP")
    expected = "the patient lies HFP; all training cases lie HFS"
    assert expected in domain_warnings(prone, model)
    silent = {k: v for k, v in model.description.known.items() if k != "positions"}
    assert expected in domain_warnings(prone, described(model, known=silent))
    both = described(model, known={**silent, "positions": ["HFP", "HFS"]})
    assert expected not in domain_warnings(prone, both)


def test_the_range_of_spacings_is_known(model: DoseModel) -> None:
    assert knows_spacing((3.9, 3.9, 3.0), model)
    assert not knows_spacing((3.9, 3.9, 1.5), model)
    assert not knows_spacing((3.9, 1.0, 3.0), model)
    assert not knows_spacing((3.9, 3.9, 3.0), tiny_model())


def test_a_scan_that_ends_in_the_targets_is_unusual(model: DoseModel) -> None:
    seen = head(2001)
    z = np.flatnonzero(seen.case.structures["PTV_56"].mask.any(axis=(1, 2)))
    inside = np.zeros(seen.case.grid.shape, bool)
    inside[z[0] : z[-1] + 1] = True
    structures = {n: replace(s, mask=s.mask & inside) for n, s in seen.case.structures.items()}
    cut = replace(with_case(seen, structures=structures), possible_dose=seen.possible_dose & inside)
    assert any("beyond the targets along z is 0 mm" in s for s in domain_warnings(cut, model))


def test_swapped_sides_are_far_from_what_is_known(model: DoseModel) -> None:
    seen = head(2002)
    s = seen.case.structures
    swapped = {**s, "Parotid_L": s["Parotid_R"], "Parotid_R": s["Parotid_L"]}
    assert any(
        "Parotid" in sentence for sentence in domain_warnings(with_case(seen, structures=swapped), model)
    )


def test_absent_organs_and_ct_are_no_figures_but_no_faults(model: DoseModel) -> None:
    seen = replace(head(2003), has_ct=False)
    found = features(seen, ENCODING)
    assert math.isnan(found["hu"]) and math.isnan(found["Esophagus_x_mm"])
    assert not domain_warnings(seen, model)


def test_what_is_known_travels_with_the_weights(model: DoseModel, tmp_path: Path) -> None:
    assert json.loads(json.dumps(dict(model.description.known)))["cases"] == 60
    back = load_model(save_model(tmp_path / "w.safetensors", model))
    foreign = with_case(head(2004), site="pelvis")
    assert domain_warnings(foreign, back) == domain_warnings(foreign, model) != ()


def test_weights_that_say_nothing_of_their_cases_warn() -> None:
    (sentence,) = domain_warnings(head(0), tiny_model())
    assert "nothing is known of their domain" in sentence
    assert not is_outside_sites(head(0).case, tiny_model())
