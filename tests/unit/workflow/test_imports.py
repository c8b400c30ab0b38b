"""Public data to a data set or to raw folders, and the splits of a data set."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from openkbp_files import arrays, write_folder, write_npz
from raw_patients import raw_patient

import vmat_diffusion.workflow.imports as module
from vmat_diffusion import cli
from vmat_diffusion.dataset.cases import load_case
from vmat_diffusion.dataset.clinical_case import Preparation
from vmat_diffusion.dataset.index import read_index
from vmat_diffusion.dataset.openkbp import read_openkbp
from vmat_diffusion.dataset.splits import load_splits, split_dataset
from vmat_diffusion.dataset.tables import read_dataset
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.jobs.batch import Cluster
from vmat_diffusion.workflow.imports import import_dicom, import_openkbp, shared_ids
from vmat_diffusion.workflow.preprocess import preprocess

HERE = Cluster(kind="serial")


def _contents(out: Path) -> dict[str, str]:
    files = (p for p in out.iterdir() if p.is_file())
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients to train with, one to validate with, one without a dose, one twice."""
    root = tmp_path_factory.mktemp("openkbp")
    write_npz(root / "train-pats" / "pt_1.npz", arrays(1))
    without = arrays(2)
    del without["ct"]
    write_folder(root / "train-pats" / "pt_2", without)
    write_npz(root / "valid-pats" / "pt_10.npz", arrays(10))
    (write_folder(root / "valid-pats" / "pt_11", arrays(11)) / "dose.csv").unlink()
    write_npz(root / "valid-pats" / "pt_1.npz", arrays(1))
    return root


@pytest.fixture(scope="module")
def made(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, module.ImportRun]:
    out = tmp_path_factory.mktemp("out") / "set"
    return out, import_openkbp(source, out, split_folders=True, cluster=HERE)


def test_openkbp_becomes_a_data_set(made: tuple[Path, module.ImportRun]) -> None:
    out, done = made
    assert (done.cases, done.made, done.without_ct) == (3, 3, 1)
    assert done.splits == {"train": 2, "validation": 1, "test": 0}
    index = read_index(out)
    assert [row["id"] for row in index] == ["pt_1", "pt_10", "pt_2"]
    row = index[2]
    assert not row["has_ct"] and row["has_dose"]
    assert (row["technique"], row["patient"], row["site"]) == ("IMRT", "openkbp_pt_2", "head_neck")
    assert row["prescription_gy"] == {"PTV_70": 70.0, "PTV_56": 56.0} and row["fractions"] == 35
    assert load_case(out / "pt_10.npz").case.id == "pt_10" and (out / "pt_10.png").stat().st_size > 10_000
    assert read_dataset(out)["patients"] == 3
    with (out / "rejected.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(r["case"], r["remedy"]) for r in rows] == [
        ("pt_1 again", "remove one of them"),
        ("pt_11", "fetch it again or leave the patient out"),
    ]
    splits = load_splits(out / "splits.json", [row["id"] for row in index])
    assert splits.ids("validation") == ("pt_10",)


def test_an_import_goes_on_where_it_was_stopped(
    made: tuple[Path, module.ImportRun], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, calls = tmp_path / "set", []

    def stopped(path: Path) -> object:
        calls.append(path.stem)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read_openkbp(path)

    monkeypatch.setattr(module, "read_openkbp", stopped)
    with pytest.raises(KeyboardInterrupt):
        import_openkbp(source, out, split_folders=True, cluster=HERE)
    assert calls == ["pt_1", "pt_2"]
    with pytest.raises(InputError, match="pass --resume"):
        import_openkbp(source, out, cluster=HERE)
    import_openkbp(source, out, split_folders=True, cluster=HERE, resume=True)
    assert calls == ["pt_1", "pt_2", "pt_2", "pt_10", "pt_11"]
    assert _contents(out) == _contents(made[0])
    done = import_openkbp(source, out, split_folders=True, cluster=HERE, resume=True)
    assert done.made == 0 and len(calls) == 5
    assert _contents(out) == _contents(made[0])


def test_folders_that_name_no_split_are_refused_before_any_work(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pt_1 lies in no folder whose name starts with train"):
        import_openkbp(source / "train-pats", tmp_path / "set", split_folders=True, cluster=HERE)
    assert not (tmp_path / "set").exists()


def test_a_data_set_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "okbp" / "pt_3").mkdir(parents=True)
    with pytest.raises(InputError, match="none of 1 patients could be imported"):
        import_openkbp(tmp_path / "okbp", tmp_path / "set", cluster=HERE)
    assert "pt_3,pt_3: possible_dose_mask.csv is missing" in (tmp_path / "set" / "rejected.csv").read_text()


def test_a_data_set_inside_its_source_is_refused(source: Path) -> None:
    with pytest.raises(InputError, match="name a folder beside the input"):
        import_openkbp(source, source / "out", cluster=Cluster("serial"))


def test_a_tree_becomes_raw_folders_that_preprocess_takes(tmp_path: Path) -> None:
    tree, raw, key = tmp_path / "tree", tmp_path / "raw", tmp_path / "key.csv"
    for number in (1, 2):
        folder = raw_patient(tree / "collection" / f"Secret^Name {number}", number=number)
        _renumber(folder, number)
    done = import_dicom(tree, raw, key=key)
    assert len(done.made) == 2 and done.there == () and done.left_out == ()
    for name in done.made:
        files = sorted(p.name for p in (raw / name).iterdir())
        assert files == [*(f"CT_{k:04d}.dcm" for k in range(1, 9)), "RD.dcm", "RP.dcm", "RS.dcm"]
        assert (raw / name / "RS.dcm").stat().st_nlink == 2  # no second copy on the disk
    with key.open(newline="") as stream:
        assert {(r["case"], r["patient_id"]) for r in csv.DictReader(stream)} == {
            (name, patient) for name, patient in zip(done.made, _ids(raw, done.made), strict=True)
        }
    prepared = preprocess(raw, tmp_path / "set", Preparation(spacing_mm=(2.0, 2.0, 2.5)), cluster=HERE)
    assert [r["id"] for r in prepared.records] == sorted(done.made)
    again = import_dicom(tree, raw)
    assert again.made == () and again.there == done.made


def _renumber(folder: Path, number: int) -> None:
    """UIDs of the patient's own for structure set, plan and dose."""
    from pydicom import dcmread

    for path in folder.iterdir():
        dataset = dcmread(path)
        if dataset.Modality != "CT":
            dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID}.{number}"
        for keyword in ("ReferencedStructureSetSequence", "ReferencedRTPlanSequence"):
            for item in dataset.get(keyword, ()):
                item.ReferencedSOPInstanceUID = f"{item.ReferencedSOPInstanceUID}.{number}"
        dataset.save_as(path)


def _ids(raw: Path, names: tuple[str, ...]) -> list[str]:
    from pydicom import dcmread

    return [dcmread(raw / name / "RS.dcm").PatientID for name in names]


def test_copies_are_made_where_links_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    raw_patient(tmp_path / "tree", number=1)
    (name,) = import_dicom(tmp_path / "tree", tmp_path / "raw").made
    assert (tmp_path / "raw" / name / "RS.dcm").stat().st_nlink == 1


def test_places_that_would_harm_are_refused(tmp_path: Path) -> None:
    raw_patient(tmp_path / "tree", number=1)
    with pytest.raises(InputError, match="name a folder beside the input"):
        import_dicom(tmp_path / "tree", tmp_path / "tree" / "raw")
    with pytest.raises(InputError, match="name a file elsewhere"):
        import_dicom(tmp_path / "tree", tmp_path / "raw", key=tmp_path / "raw" / "key.csv")


def _index(folder: Path, count: int) -> Path:
    folder.mkdir(exist_ok=True)
    rows = [
        {
            "id": f"case_{k:04d}",
            "file": f"c{k}.npz",
            "sha256": "0" * 64,
            "shape": [8, 16, 16],
            "targets": ["PTV"],
            "organs": [],
            "has_dose": True,
            "site": ("pelvis", "lung")[k % 2],
            "patient": f"p{k // 2 * 2 + k % 2}",
            "prescription_gy": {"PTV": 60.0 + 18 * (k % 2)},
        }
        for k in range(count)
    ]
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_splits_of_a_data_set_stay_when_cases_come(tmp_path: Path) -> None:
    before = split_dataset(_index(tmp_path, 40))
    written = (tmp_path / "splits.json").read_bytes()
    assert split_dataset(tmp_path) == before
    assert (tmp_path / "splits.json").read_bytes() == written
    after = split_dataset(_index(tmp_path, 60))
    assert all(after.placed[name][1] == split for name, (_, split) in before.placed.items())
    assert len(after.ids("train")) == 48 and len(after.ids("test")) == 6
    assert {m.stratum for m, _ in after.placed.values()} == {"pelvis, 60 Gy", "lung, 78 Gy"}
    with pytest.raises(InputError, match=r"fractions 0\.8 0\.1 0\.1 and the seed 0, which stay"):
        split_dataset(tmp_path, seed=1)
    (tmp_path / "splits.json").write_text(written.decode().replace('"train"', '"test"', 1))
    with pytest.raises(CaseError, match="was changed"):
        split_dataset(tmp_path)


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["vmat-diffusion", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "okbp", tmp_path / "set"
    write_npz(source / "pt_1.npz", arrays(1))
    (source / "pt_11").mkdir()
    assert _run(monkeypatch, "import", "openkbp", source, out, "--cluster", "serial") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"1 cases in {out}, 0 of them without CT; 1 made now")
    assert "pt_11" in shown and "possible_dose_mask.csv is missing" in shown
    assert _run(monkeypatch, "split", out) == 0
    assert "head_neck, 70 Gy" in capsys.readouterr().out
    assert _run(monkeypatch, "split", out, "--fractions", "0.5", "0.5", "0") == 2
    assert "which stay" in capsys.readouterr().err
    raw_patient(tmp_path / "tree", number=1)
    assert _run(monkeypatch, "import", "dicom", tmp_path / "tree", tmp_path / "raw", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["made"]) == 1
    assert _run(monkeypatch, "import", "openkbp", tmp_path / "tree", out) == 2
    assert "holds no pt_N.npz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("studies", "frames", "said"), [(2, 2, False), (3, 3, False), (5, 1, False), (5, 5, True)]
)
def test_one_id_for_many_studies_is_said(studies: int, frames: int, said: bool) -> None:
    cases = [
        SimpleNamespace(
            id=f"case_{k}",
            patient_id="SECRET",
            structure_set=SimpleNamespace(study_uid=f"study {k % studies}"),
            images=(SimpleNamespace(frames=frozenset({f"frame {k % frames}"})),),
        )
        for k in range(6)
    ]
    found = shared_ids(cases)  # type: ignore[arg-type]
    assert bool(found) == said and "SECRET" not in "".join(found)
    if said:
        assert "one patient ID covers 6 cases of 5 studies and 5 frames of reference" in found[0]
