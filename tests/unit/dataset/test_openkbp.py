"""OpenKBP patients of both layouts become training cases, and what is wrong with one is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openkbp_files import VOXEL_MM, arrays, write_folder, write_npz

from vmat_diffusion.dataset.cases import TrainingCase, load_case, save_case
from vmat_diffusion.dataset.openkbp import NAMES, from_openkbp, patient_paths, read_openkbp, to_openkbp
from vmat_diffusion.dicom.names import default_table
from vmat_diffusion.errors import CaseError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> TrainingCase:
    return read_openkbp(write_npz(tmp_path_factory.mktemp("okbp") / "pt_7.npz", arrays()))


@given(st.tuples(*[st.integers(1, 5)] * 3), st.integers(0, 2**31))
def test_axes_there_and_back_are_exact(shape: tuple[int, int, int], seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1000, shape)
    assert np.array_equal(to_openkbp(from_openkbp(values)), values)
    ours = from_openkbp(values)
    assert np.array_equal(from_openkbp(to_openkbp(ours)), ours)
    ap, lr, si = (n - 1 for n in shape)
    # head, front, right of the patient -> highest z, lowest y, lowest x
    assert ours[si, 0, 0] == values[0, 0, 0]
    assert ours[0, ap, lr] == values[ap, lr, si]


def test_head_is_up_and_left_is_plus_x(made: TrainingCase) -> None:
    case = made.case

    def middle_mm(name: str) -> np.ndarray:
        return case.grid.points_mm(np.flatnonzero(case.structures[name].mask)).mean(axis=0)

    assert middle_mm("Parotid_L")[0] > middle_mm("Parotid_R")[0]
    assert middle_mm("Brainstem")[2] > middle_mm("Larynx")[2]
    assert middle_mm("SpinalCord")[1] > middle_mm("Larynx")[1]
    assert case.grid.spacing_mm == (VOXEL_MM[1], VOXEL_MM[0], VOXEL_MM[2])


def test_nothing_but_the_order_of_voxels_changes(made: TrainingCase, tmp_path: Path) -> None:
    source = arrays()
    case = load_case(save_case(tmp_path / "pt_7.npz", made)).case
    bits = source["structures"]
    for k, name in enumerate(NAMES.values()):
        mask = bits >> k & 1
        if mask.any():
            assert np.array_equal(to_openkbp(case.structures[name].mask), mask)
        else:
            assert name not in case.structures
    assert np.array_equal(to_openkbp(made.possible_dose), bits >> 15 & 1)
    assert np.array_equal(np.rint(to_openkbp(case.reference_dose.gy) * 100), source["dose_cGy"])
    hu = to_openkbp(case.hu)
    assert hu.min() == -1000 and hu[60, 60, 60] == 3095
    below = source["ct"] <= 4095
    assert np.array_equal(hu[below], source["ct"][below] - 1000)
    assert any("clip-ct: 1 voxels" in step for step in made.provenance["steps"])


def test_both_layouts_make_the_same_bytes(tmp_path: Path) -> None:
    parts = arrays(3)
    one = save_case(tmp_path / "a", read_openkbp(write_npz(tmp_path / "npz" / "pt_3.npz", parts)))
    two = save_case(tmp_path / "b", read_openkbp(write_folder(tmp_path / "csv" / "pt_3", parts)))
    assert one.read_bytes() == two.read_bytes()


def test_prescription_body_and_constraints(made: TrainingCase) -> None:
    case = made.case
    assert case.prescription.target_gy == {"PTV_70": 70.0, "PTV_56": 56.0}
    assert case.prescription.fractions == 35
    assert case.site == "head_neck"
    everything = made.possible_dose | np.logical_or.reduce([s.mask for s in case.structures.values()])
    assert not np.any(everything & ~case.body.mask)
    assert {c.structure for c in made.constraints if c.achieved is not None} <= set(case.structures)
    assert "PTV_63" not in {c.structure for c in made.constraints}
    mean = next(c for c in made.constraints if c.structure == "Parotid_L")
    inside = case.reference_dose.gy[case.structures["Parotid_L"].mask]
    assert mean.goal == "mean <= 26 Gy"
    assert mean.achieved == pytest.approx(float(inside.mean()), abs=1e-3)


def test_names_are_those_of_the_mapping() -> None:
    for written, name in NAMES.items():
        match = default_table().match(written)
        assert match.name == name
        assert match.role == ("target" if name.startswith("PTV") else "organ")


def test_missing_ct_gets_a_stand_in(tmp_path: Path) -> None:
    parts = arrays()
    del parts["ct"]
    made = read_openkbp(write_folder(tmp_path / "pt_9", parts))
    assert not made.has_ct
    assert np.array_equal(np.unique(made.case.hu), [-1000, 0])
    assert np.array_equal(made.case.hu == 0, made.case.body.mask)
    assert not np.any(made.possible_dose & ~made.case.body.mask)
    assert any(step.startswith("stand-in-ct") for step in made.provenance["steps"])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("dose", None, "the dose is missing"),
        ("possible_dose_mask", None, "possible_dose_mask.csv is missing"),
        ("possible_dose_mask", ",data\n", "possible-dose mask is empty"),
        ("voxel_dimensions", "4\n4\n", "are not three"),
        ("voxel_dimensions", "4\n4\nnan\n", "are not three"),
        ("voxel_dimensions", "four", "holds no numbers"),
        ("dose", "index,dose\n1,2\n", "no sparse volume"),
        ("dose", ",data\n1,many\n", "no sparse volume"),
        ("dose", ",data\n1,inf\n", "not finite"),
        ("dose", ",data\n0,2.0\n", "outside the possible-dose mask"),
        ("Larynx", ",data\n2097152,\n", "index outside 0 to 2097151"),
        ("Larynx", ",data\n1.5,\n", "index outside"),
        ("ct", ",data\n-1,3\n", "index outside"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path, name: str, text: str | None, said: str) -> None:
    folder = write_folder(tmp_path / "pt_1", arrays())
    file = folder / f"{name}.csv"
    file.unlink()
    if text is not None:
        file.write_text(text)
    with pytest.raises(CaseError, match=said) as error:
        read_openkbp(folder)
    assert "pt_1" in str(error.value)


def test_a_patient_without_targets_is_refused(tmp_path: Path) -> None:
    parts = arrays()
    parts["structures"] &= ~np.uint16(0b1110000000)
    with pytest.raises(CaseError, match="no PTV56, PTV63 or PTV70"):
        read_openkbp(write_npz(tmp_path / "pt_1.npz", parts))


@pytest.mark.parametrize("fault", ["cut", "empty", "shape", "key", "type"])
def test_damaged_npz_is_refused(tmp_path: Path, fault: str) -> None:
    parts = arrays()
    if fault == "shape":
        parts["dose_cGy"] = parts["dose_cGy"][:-1]
    if fault == "key":
        del parts["structures"]
    if fault == "type":
        parts["structures"] = parts["structures"].astype(float)
    file = write_npz(tmp_path / "pt_1.npz", parts)
    if fault in ("cut", "empty"):
        file.write_bytes(file.read_bytes()[: 20_000 if fault == "cut" else 0])
    with pytest.raises(CaseError, match=r"pt_1\.npz"):
        read_openkbp(file)


def test_patients_are_found_at_any_depth_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("train-pats/pt_10", "validation/pt_2"):
        (tmp_path / name).mkdir(parents=True)
    write_npz(tmp_path / "train" / "pt_1.npz", {"a": np.zeros(1)})
    (tmp_path / "pt_notes").mkdir()
    found = [p.relative_to(tmp_path).as_posix() for p in patient_paths(tmp_path)]
    assert found == ["train/pt_1.npz", "validation/pt_2", "train-pats/pt_10"]
    with pytest.raises(CaseError, match="no pt_N"):
        patient_paths(tmp_path / "pt_notes")
    with pytest.raises(CaseError, match="does not exist"):
        patient_paths(tmp_path / "nowhere")


def test_patients_behind_links_are_found_and_circles_of_links_end(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "pt_5").mkdir(parents=True)
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    root = tmp_path / "data"
    root.mkdir()
    (root / "validation").symlink_to(tmp_path / "elsewhere")
    write_npz(root / "pt_1.npz", {"a": np.zeros(1)})
    found = [p.relative_to(root).as_posix() for p in patient_paths(root)]
    assert found == ["pt_1.npz", "validation/pt_5"]
