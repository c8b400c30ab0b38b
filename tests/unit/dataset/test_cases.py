from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_case import open_arc, small_case
from training_cases import stored_sdf_mm

from vmat_diffusion.case import Dose
from vmat_diffusion.dataset.cases import (
    DOSE_STEP_GY,
    Constraint,
    TrainingCase,
    load_case,
    save_case,
)
from vmat_diffusion.distance import FAR_MM, signed_distance_mm
from vmat_diffusion.errors import CaseError
from vmat_diffusion.plan import Plan


def training_case(plan: Plan | None = None) -> TrainingCase:
    """The small case with a smooth dose, two goals and a history."""
    case = small_case()
    x, y, z = case.grid.axes_mm
    gy = 60 * np.exp(-(x[None, None] ** 2 + y[None, :, None] ** 2 + z[:, None, None] ** 2) / 40**2)
    gy = np.where(case.body.mask, gy, 0).astype(np.float32)
    return TrainingCase(
        replace(case, hu=case.hu.astype(np.int16), reference_dose=Dose(case.grid, gy)),
        possible_dose=case.body.mask,
        plan=plan,
        constraints=(
            Constraint("PTV", "D95% >= 50 Gy", 50.0, 49.5),
            Constraint("Larynx", "mean <= 44 Gy", 44.0),
        ),
        names=("Core", "Larynx"),
        padding=((0, 1), (2, 3), (4, 5)),
        provenance={"steps": ("crop",), "uid_hashes": {"study": "00ff"}},
    )


def test_a_case_comes_back_as_it_was(tmp_path: Path) -> None:
    before = training_case(open_arc())
    after = load_case(save_case(tmp_path / "a.npz", before))
    assert after.case.grid == before.case.grid and after.case.patient_position == "HFS"
    np.testing.assert_array_equal(after.case.hu, before.case.hu)
    assert list(after.case.structures) == list(before.case.structures)
    for name, structure in before.case.structures.items():
        np.testing.assert_array_equal(after.case.structures[name].mask, structure.mask)
        assert after.case.structures[name].role == structure.role
    np.testing.assert_array_equal(after.possible_dose, before.possible_dose)
    assert after.case.prescription == before.case.prescription
    assert after.constraints == before.constraints
    assert after.padding == before.padding and after.has_ct
    assert after.provenance == {"steps": ["crop"], "uid_hashes": {"study": "00ff"}}


def test_dose_is_kept_to_half_a_step(tmp_path: Path) -> None:
    before = training_case()
    after = load_case(save_case(tmp_path / "a.npz", before))
    assert before.case.reference_dose is not None and after.case.reference_dose is not None
    error = np.abs(after.case.reference_dose.gy - before.case.reference_dose.gy)
    assert 0 < error.max() <= DOSE_STEP_GY / 2 + 1e-5
    again = load_case(save_case(tmp_path / "b.npz", after))
    assert again.case.reference_dose is not None
    np.testing.assert_array_equal(again.case.reference_dose.gy, after.case.reference_dose.gy)


def test_control_points_come_back_exactly(tmp_path: Path) -> None:
    plan = open_arc((1.5, -2.25, 3.0))
    plan = replace(plan, arcs=(*plan.arcs, replace(plan.arcs[0], number=2, collimator_deg=350.0)))
    after = load_case(save_case(tmp_path / "a.npz", training_case(plan))).plan
    assert after is not None and after.isocenter_mm == plan.isocenter_mm
    assert (after.fractions, after.machine, len(after.arcs)) == (plan.fractions, plan.machine, 2)
    for mine, theirs in zip(after.arcs, plan.arcs, strict=True):
        for name in ("gantry_deg", "leaves_mm", "jaws_mm", "mu", "collimator_deg", "couch_deg", "number"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))


def test_the_same_case_makes_the_same_bytes(tmp_path: Path) -> None:
    first = save_case(tmp_path / "a.npz", training_case(open_arc()))
    second = save_case(tmp_path / "b.npz", training_case(open_arc()))
    assert first.read_bytes() == second.read_bytes()
    assert save_case(tmp_path / "c.npz", load_case(first)).read_bytes() == first.read_bytes()


def test_numpy_alone_reads_the_file(tmp_path: Path) -> None:
    """The recipe of docs/preprocess.md."""
    case = training_case()
    with np.load(save_case(tmp_path / "a.npz", case), allow_pickle=False) as file:
        hu, masks = file["hu"], file["masks"]
        masks = np.unpackbits(masks, axis=1, count=hu.size).reshape(-1, *hu.shape).astype(bool)
        ptv = masks[list(file["mask_names"]).index("PTV")]
        gy = file["dose"] * file["dose_step_gy"]
        present = dict(zip(file["vocabulary"], file["present"], strict=True))
        meta = json.loads(str(file["meta"]))
        corner = file["affine"] @ (0, 0, 0, 1)
    np.testing.assert_array_equal(ptv, case.case.structures["PTV"].mask)
    assert case.case.reference_dose is not None
    assert gy[ptv].mean() == pytest.approx(float(case.case.reference_dose.gy[ptv].mean()), abs=DOSE_STEP_GY)
    assert not present["Larynx"] and present["Core"]
    assert meta["prescription"] == {"fractions": 25, "target_gy": {"PTV": 50.0}}
    assert tuple(corner[:3]) == case.case.grid.origin_mm


def test_distance_maps_are_kept_in_tenths(tmp_path: Path) -> None:
    case = training_case()
    maps = {n: signed_distance_mm(s.mask, case.case.grid.spacing_mm) for n, s in case.case.structures.items()}
    path = save_case(tmp_path / "a.npz", case, sdf_mm=maps)
    after = stored_sdf_mm(path)
    assert after is not None and set(after) == set(maps)
    for name, mm in maps.items():
        assert np.abs(after[name] - mm).max() <= 0.05 + 1e-4
    assert stored_sdf_mm(save_case(tmp_path / "b.npz", case)) is None


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.97])
def test_a_cut_off_file_is_refused_in_a_sentence(tmp_path: Path, keep: float) -> None:
    whole = save_case(tmp_path / "a.npz", training_case()).read_bytes()
    (tmp_path / "b.npz").write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(CaseError, match=r"^b\.npz is no readable npz file .*; make it again$"):
        load_case(tmp_path / "b.npz")


def test_a_damaged_array_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = save_case(tmp_path / "a.npz", training_case())
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("hu.npy")
    data = bytearray(path.read_bytes())
    middle = entry.header_offset + entry.compress_size // 2 + 60
    data[middle : middle + 8] = bytes(8)
    path.write_bytes(bytes(data))
    with pytest.raises(CaseError, match="make it again"):
        load_case(path)


def test_another_npz_and_a_newer_schema_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", hu=np.zeros(3))
    with pytest.raises(CaseError, match=r"is no training case .* `vmat-diffusion import openkbp`"):
        load_case(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", schema=99, meta="{}")
    with pytest.raises(CaseError, match="has schema 99, this version reads 1"):
        load_case(tmp_path / "b.npz")


def test_nothing_is_left_of_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    case = training_case()
    assert case.case.reference_dose is not None
    hot = replace(case.case.reference_dose, gy=case.case.reference_dose.gy + 700)
    with pytest.raises(CaseError, match="outside 0 to 655 Gy"):
        save_case(tmp_path / "a.npz", replace(case, case=replace(case.case, reference_dose=hot)))
    assert not list(tmp_path.iterdir())


def test_names_of_the_source_do_not_reach_the_file(tmp_path: Path) -> None:
    case = training_case()
    structures = {n: replace(s, alias=f"DOE {n}") for n, s in case.case.structures.items()}
    path = save_case(tmp_path / "a.npz", replace(case, case=replace(case.case, structures=structures)))
    with np.load(path) as file:
        texts = " ".join(str(file[name]) for name in file.files if file[name].dtype.kind == "U")
    assert "DOE" not in texts


def test_absent_structures_are_far(tmp_path: Path) -> None:
    empty = signed_distance_mm(np.zeros((3, 4, 5), bool), (1.0, 1.0, 3.0))
    assert np.all(empty == FAR_MM)
