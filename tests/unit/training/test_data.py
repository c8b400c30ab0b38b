"""The data set of tensors and its loaders."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from training_cases import save_dataset, small_training

from vmat_diffusion.distance import signed_distance_mm
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.training.augment import AugmentSettings
from vmat_diffusion.training.cases import Constraint, load_case
from vmat_diffusion.training.data import CaseDataset, DataSettings, EpochSampler, entries_of, goal_key

CROP = (8, 16, 20)
BUSY = AugmentSettings(rotation_deg=20.0, reach_voxels=(2, 2, 2), drop_organ=0.3, drop_ct=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cases = [
        small_training("case_0001"),
        small_training("case_0002", right=False, target=(5, 10, 9)),
        small_training("case_0003", left=False, shape=(14, 26, 36)),
        small_training("case_0004", dose=False),
    ]
    return save_dataset(tmp_path_factory.mktemp("set"), cases)


def test_item_is_the_case_in_physical_units(folder: Path) -> None:
    dataset = CaseDataset(folder, ["case_0002"], settings=DataSettings(crop=(12, 28, 32)))
    item, case = dataset[0], load_case(folder / "case_0002.npz").case
    assert dataset.structures == ("PTV_56", "PTV_70", "Parotid_L", "Parotid_R")
    assert item["id"] == "case_0002"
    assert torch.equal(item["ct_hu"], torch.tensor(np.array(case.hu, np.float32))[None])
    assert torch.equal(item["dose_gy"], torch.tensor(case.reference_dose.gy)[None])
    assert item["present"].tolist() == [True, True, True, False]
    assert not item["masks"][3].any()
    assert (item["sdf_mm"][3] == 200).all()
    for i, name in enumerate(dataset.structures[:3]):
        assert np.array_equal(item["masks"][i], case.structures[name].mask)
        wanted = signed_distance_mm(case.structures[name].mask, case.grid.spacing_mm)
        assert np.abs(item["sdf_mm"][i].numpy() - wanted).max() <= 0.051
    assert item["prescription_gy"].tolist() == [56, 70, 0, 0]
    level = np.where(case.structures["PTV_70"].mask, 70, np.where(case.structures["PTV_56"].mask, 56, 0))
    assert np.array_equal(item["prescription_map_gy"][0], level)
    assert item["spacing_mm"].tolist() == [4, 4, 5]
    assert item["origin_mm"].tolist() == [-61, 40, 7]
    assert item["padding"].tolist() == [[1, 2], [0, 0], [3, 0]]
    assert (bool(item["has_ct"]), bool(item["has_dose"])) == (True, True)


def test_kinds_and_shapes_of_an_item(folder: Path) -> None:
    item = CaseDataset(folder, settings=DataSettings(crop=CROP))[0]
    shapes = {
        name: (str(v.dtype).removeprefix("torch."), tuple(v.shape))
        for name, v in item.items()
        if name != "id"
    }
    volume, each = (1, *CROP), (4, *CROP)
    assert shapes == {
        "ct_hu": ("float32", volume),
        "has_ct": ("bool", ()),
        "body": ("bool", volume),
        "masks": ("bool", each),
        "present": ("bool", (4,)),
        "sdf_mm": ("float32", each),
        "dose_gy": ("float32", volume),
        "has_dose": ("bool", ()),
        "possible_dose": ("bool", volume),
        "prescription_gy": ("float32", (4,)),
        "prescription_map_gy": ("float32", volume),
        "constraint_limit": ("float32", (3,)),
        "constraint_achieved": ("float32", (3,)),
        "has_constraint": ("bool", (3,)),
        "has_achieved": ("bool", (3,)),
        "spacing_mm": ("float32", (3,)),
        "origin_mm": ("float32", (3,)),
        "padding": ("int64", (3, 2)),
        "flipped": ("bool", (2,)),
        "rotation_deg": ("float32", ()),
    }


def test_constraints_have_one_order_for_all_cases(folder: Path) -> None:
    dataset = CaseDataset(folder, settings=DataSettings(crop=CROP))
    assert dataset.goals == ("PTV_70 D95% >= Gy", "Parotid_L Dmean <= Gy", "Parotid_R Dmean <= Gy")
    first, third = dataset[0], dataset[2]
    assert first["constraint_limit"].tolist() == [66.5, 26, 0]
    assert first["constraint_achieved"].tolist() == [67.25, 31.5, 0]
    assert first["has_constraint"].tolist() == [True, True, False]
    assert third["has_constraint"].tolist() == [True, False, False]
    flipped = CaseDataset(
        folder,
        settings=DataSettings(crop=CROP),
        augment=AugmentSettings(flip_left_right=1.0, drop_organ=0.0),
    )[0]
    assert flipped["constraint_limit"].tolist() == [66.5, 0, 26]
    assert flipped["flipped"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("goal", "key"),
    [
        ("D95% >= 66.5 Gy", "PTV D95% >= Gy"),
        ("PTV D95% >= 66.5 Gy", "PTV D95% >= Gy"),
        ("V20Gy <= 30 %", "PTV V20Gy <= %"),
        ("HI <= 0.1", "PTV HI <="),
    ],
)
def test_goal_key_has_no_number(goal: str, key: str) -> None:
    assert goal_key(Constraint("PTV", goal, 1.0)) == key


def test_case_without_dose_is_left_out_or_flagged(folder: Path) -> None:
    dataset = CaseDataset(folder, settings=DataSettings(crop=CROP))
    assert (len(dataset), dataset.left_out) == (3, ("case_0004",))
    item = CaseDataset(folder, ["case_0004"], settings=DataSettings(crop=CROP, need_dose=False))[0]
    assert not item["has_dose"]
    assert not item["dose_gy"].any()
    assert item["has_constraint"][0]
    assert not item["has_achieved"].any()


def test_absent_ct_is_water_in_the_body(tmp_path: Path) -> None:
    training = replace(small_training(), has_ct=False)
    item = CaseDataset(save_dataset(tmp_path, [training]))[0]
    assert not item["has_ct"]
    assert torch.equal(item["ct_hu"] == 0, item["body"])
    assert torch.equal(item["ct_hu"] == -1000, ~item["body"])


def _batches(dataset: CaseDataset, workers: int, epoch: int) -> dict[str, dict]:
    sampler = EpochSampler(dataset)
    sampler.set_epoch(epoch)
    loader = DataLoader(dataset, batch_size=1, sampler=sampler, num_workers=workers)
    return {batch["id"][0]: batch for batch in loader}


def test_items_do_not_depend_on_the_number_of_workers(folder: Path, tmp_path: Path) -> None:
    dataset = CaseDataset(folder, settings=DataSettings(crop=CROP), augment=BUSY, cache=tmp_path)
    alone, two = _batches(dataset, 0, 3), _batches(dataset, 2, 3)
    assert alone.keys() == two.keys() == {"case_0001", "case_0002", "case_0003"}
    for name, batch in alone.items():
        for key, value in batch.items():
            if key != "id":
                assert torch.equal(value, two[name][key]), (name, key)
    next_epoch = _batches(dataset, 0, 4)
    assert any(not torch.equal(alone[n]["ct_hu"], next_epoch[n]["ct_hu"]) for n in alone)


def test_persistent_workers_follow_the_epoch(folder: Path, tmp_path: Path) -> None:
    dataset = CaseDataset(
        folder, ["case_0001"], settings=DataSettings(crop=CROP), augment=BUSY, cache=tmp_path
    )
    sampler = EpochSampler(dataset)
    loader = DataLoader(dataset, batch_size=1, sampler=sampler, num_workers=1, persistent_workers=True)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        (batch,) = loader
        assert torch.equal(batch["ct_hu"][0], dataset[epoch, 0]["ct_hu"])


def test_sampler_shares_cases_among_processes(folder: Path) -> None:
    dataset = CaseDataset(folder, settings=DataSettings(crop=CROP, need_dose=False))
    shares = [list(EpochSampler(dataset, replicas=2, rank=rank)) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == [(0, i) for i in range(4)]


def test_dataset_can_be_pickled(folder: Path) -> None:
    dataset = CaseDataset(folder, settings=DataSettings(crop=CROP), augment=BUSY)
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[2, 1]["dose_gy"], dataset[2, 1]["dose_gy"])


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CaseError, match=r"holds no readable index.jsonl; make the data set with preprocess"):
        CaseDataset(tmp_path)
    with pytest.raises(InputError, match=r"the cases have 2 shapes, such as .*; give a crop"):
        CaseDataset(folder)
    with pytest.raises(CaseError, match="case_0009 is not in the index"):
        CaseDataset(folder, ["case_0009"])
    with pytest.raises(CaseError, match=r"no case of .* is left"):
        CaseDataset(folder, ["case_0004"], settings=DataSettings(crop=CROP))
    one_side = DataSettings(crop=CROP, structures=("PTV_70", "Parotid_L"))
    with pytest.raises(InputError, match="structures holds Parotid_L without Parotid_R"):
        CaseDataset(folder, settings=one_side, augment=AugmentSettings())
    assert CaseDataset(folder, settings=one_side)[0]["masks"].shape[0] == 2
    with pytest.raises(InputError, match="crop = "):
        DataSettings(crop=(1, 2))  # type: ignore[arg-type]


def test_damaged_index_names_its_line(tmp_path: Path) -> None:
    save_dataset(tmp_path, [small_training()])
    index = tmp_path / "index.jsonl"
    index.write_text(index.read_text() + json.dumps({"id": "x"}) + "\n")
    with pytest.raises(CaseError, match=r"index.jsonl, line 2 is no case"):
        entries_of(tmp_path)
