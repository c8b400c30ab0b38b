from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_files import save, structure_set
from pydicom import dcmread
from raw_patients import raw_patient
from training_cases import stored_sdf_mm

import vmat_diffusion.workflow.preprocess as module
from vmat_diffusion.dataset.cases import TrainingCase, load_case
from vmat_diffusion.dataset.clinical_case import Preparation, clinical_case
from vmat_diffusion.dataset.index import read_index
from vmat_diffusion.dataset.nameless import without_names
from vmat_diffusion.dataset.raw_cases import RawCase, scan
from vmat_diffusion.dicom import read_case
from vmat_diffusion.dicom.names import default_table
from vmat_diffusion.errors import CaseError, InputError, LimitError
from vmat_diffusion.jobs.batch import Cluster
from vmat_diffusion.workflow.preprocess import PreprocessRun, preparation_record, preprocess

HERE = Cluster(kind="serial")
SETTINGS = Preparation(spacing_mm=(2.0, 2.0, 2.5))


def _run(raw: Path, out: Path, settings: Preparation = SETTINGS, **options: object) -> PreprocessRun:
    return preprocess(raw, out, settings, cluster=HERE, **options)  # type: ignore[arg-type]


def _contents(out: Path) -> dict[str, str]:
    """Hashes of all files that belong to the data set."""
    files = (p for p in out.iterdir() if p.is_file() and not p.name.startswith("."))
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _raw(folder: Path, count: int = 3) -> Path:
    for k in range(1, count + 1):
        raw_patient(folder / f"case_{k:04d}", number=k)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, PreprocessRun]:
    """Three cases as raw folders and as a data set, to be read only."""
    raw = _raw(tmp_path_factory.mktemp("raw"))
    out = tmp_path_factory.mktemp("out") / "set"
    return raw, out, _run(raw, out)


def test_a_data_set_is_made_from_folders(made: tuple[Path, Path, PreprocessRun]) -> None:
    _, out, done = made
    names = {f"case_000{k}{end}" for k in (1, 2, 3) for end in (".npz", ".png")}
    assert set(_contents(out)) == {*names, "index.jsonl", "dataset.json", "rejected.csv"}
    assert (len(done.records), done.made, done.rejections) == (3, 3, ())
    first = read_index(out)[0]
    assert first["sha256"] == _contents(out)["case_0001.npz"]
    assert (first["prescription_gy"], first["fractions"], first["technique"]) == (
        {"PTV_60": 60.0},
        30,
        "VMAT",
    )
    assert first["shape"] == list(done.shape) and first["spacing_mm"] == [2.0, 2.0, 2.5]
    assert len({r["patient"] for r in done.records}) == 3
    case = load_case(out / "case_0001.npz")
    assert case.plan is not None and case.plan.fractions == 30 and case.plan.arcs[0].rotates
    assert case.case.reference_dose is not None
    assert case.case.reference_dose.gy[case.case.structures["PTV_60"].mask].mean() == pytest.approx(61, abs=3)
    assert case.provenance["beam"]["leaf_boundaries_mm"]["MLCX"] == [-20, -10, 0, 10, 20]
    about = json.loads((out / "dataset.json").read_text())
    assert (about["cases"], about["shape"]) == (3, list(done.shape))
    assert about["structures"]["SpinalCord"]["cases"] == 3


def test_nothing_names_the_patient_or_the_place(made: tuple[Path, Path, PreprocessRun]) -> None:
    raw, out, _ = made
    for path in sorted(out.rglob("*")):
        if path.is_file() and path.suffix != ".npz":
            data = path.read_bytes()
            assert b"SECRET" not in data and b"Secret" not in data and str(raw).encode() not in data
    for path in out.glob("*.npz"):
        with np.load(path) as file:
            texts = " ".join(str(file[n]) for n in file.files if file[n].dtype.kind == "U")
        assert "ecret" not in texts and str(raw) not in texts and "1.2.3" not in texts


def test_volumes_and_doses_are_those_of_the_folder(made: tuple[Path, Path, PreprocessRun]) -> None:

    raw, out, _ = made
    before, after = read_case(raw / "case_0002"), load_case(out / "case_0002.npz").case
    for name, structure in before.structures.items():
        volume = structure.voxels * before.grid.voxel_cc
        if structure.role == "body":  # the data set's shape cuts it beside targets, organs and dose
            assert 0 < after.structures[name].voxels * after.grid.voxel_cc <= 1.01 * volume
            continue
        assert after.structures[name].voxels * after.grid.voxel_cc == pytest.approx(
            volume, rel=0.01, abs=0.011
        )


def test_a_second_run_makes_the_same_bytes(made: tuple[Path, Path, PreprocessRun], tmp_path: Path) -> None:
    raw, out, _ = made
    shutil.copytree(raw, tmp_path / "elsewhere")
    _run(tmp_path / "elsewhere", tmp_path / "set")
    assert _contents(tmp_path / "set") == _contents(out)


def test_resume_does_nothing_twice(
    made: tuple[Path, Path, PreprocessRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, out, _ = made
    before = _contents(out)
    monkeypatch.setattr(module, "clinical_case", lambda *_: pytest.fail("a case was read again"))
    assert _run(raw, out, resume=True).made == 0
    assert _contents(out) == before


def test_a_filled_folder_and_other_settings_are_refused(
    made: tuple[Path, Path, PreprocessRun], tmp_path: Path
) -> None:
    raw, out, _ = made
    with pytest.raises(InputError, match="is not empty; pass --resume"):
        _run(raw, out)
    with pytest.raises(InputError, match=r"was made with store_sdf = False, now it is True"):
        _run(raw, out, replace(SETTINGS, store_sdf=True), resume=True)
    with pytest.raises(InputError, match=r"was made with shape = auto"):
        _run(raw, out, shape=(16, 32, 32), resume=True)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds other files and no data set"):
        _run(raw, tmp_path, resume=True)


def test_more_may_be_admitted_on_resume_but_not_less(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw_patient(raw / "case_0001", leave_out=("RTPLAN",))
    with pytest.raises(CaseError, match="none of 1 cases"):
        _run(raw, out)
    raw_patient(raw / "case_0002", number=2)
    _run(raw, out, resume=True)
    finished = _contents(out)["case_0002.npz"]
    more = replace(SETTINGS, relax=True, allow_outside_body=True)
    with pytest.raises(InputError, match=r"was made with store_sdf = False, now it is True"):
        _run(raw, out, replace(more, store_sdf=True), resume=True)
    done = _run(raw, out, more, resume=True)
    assert (done.made, len(done.records), done.rejections) == (1, 2, ())
    assert _contents(out)["case_0002.npz"] == finished
    assert json.loads((out / "dataset.json").read_text())["settings"]["relax"] is True
    with pytest.raises(InputError, match=r"was made with relax = True, now it is False"):
        _run(raw, out, resume=True)


def test_cases_are_added_in_the_shape_that_is_there(tmp_path: Path) -> None:
    raw, out = _raw(tmp_path / "raw", 2), tmp_path / "set"
    before = _run(raw, out)
    old = _contents(out)
    raw_patient(raw / "case_0009", number=9)
    after = _run(raw, out, resume=True)
    assert (after.shape, after.made, len(after.records)) == (before.shape, 1, 3)
    assert all(_contents(out)[name] == digest for name, digest in old.items() if name.startswith("case_"))


def test_a_case_that_changed_is_made_again(tmp_path: Path) -> None:
    raw, out = _raw(tmp_path / "raw", 2), tmp_path / "set"
    _run(raw, out)
    old = _contents(out)
    raw_patient(raw / "case_0001", number=7)
    assert _run(raw, out, resume=True).made == 1
    new = _contents(out)
    assert new["case_0001.npz"] != old["case_0001.npz"] and new["case_0002.npz"] == old["case_0002.npz"]
    for file in (raw / "case_0001").iterdir():
        file.unlink()
    assert [r.case for r in _run(raw, out, resume=True).rejections] == ["case_0001"]
    assert not list(out.glob("case_0001.*"))


@pytest.mark.parametrize("after", range(0, 12, 2))
def test_a_crash_at_any_write_is_made_good(
    made: tuple[Path, Path, PreprocessRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Dies when the n-th file would get its name: the file is there in part, under its hidden name."""
    raw, out, _ = made
    real, count = os.replace, 0

    class Died(BaseException):
        pass

    def dying(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count > after:
            shutil.copy(self, self.with_name(f".{target.name}.0.part"))  # survives the clearing up
            raise Died
        real(self, target)
        return Path(target)

    monkeypatch.setattr(Path, "replace", dying)
    with pytest.raises(Died):
        _run(raw, tmp_path / "set")
    monkeypatch.undo()
    _run(raw, tmp_path / "set", resume=True)
    assert _contents(tmp_path / "set") == _contents(out)
    assert not list((tmp_path / "set").rglob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize("count", [int(os.environ.get("VMAT_MANY_CASES", "24"))])
def test_kill_9_and_resume_give_the_same_bytes(tmp_path: Path, count: int) -> None:
    raw = _raw(tmp_path / "raw", count)
    undisturbed, killed = tmp_path / "a", tmp_path / "b"
    command = [sys.executable, "-m", "vmat_diffusion", "preprocess", "--raw", raw, "--cluster", "serial"]
    command += ["--spacing-mm", "2", "2", "2.5", "--out"]
    subprocess.run([*command, undisturbed], check=True, capture_output=True)
    for pattern in ("*.state", "../*.npz"):  # in the first and in the second pass
        process = subprocess.Popen(
            [*command, killed, "--resume"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while len(list((killed / ".work").glob(pattern))) < count // 3:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, killed, "--resume"], check=True, capture_output=True)
    assert _contents(killed) == _contents(undisturbed)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"leave_out": ("RTDOSE",)}, "the folder holds no dose on this CT"),
        ({"leave_out": ("RTPLAN",)}, "the folder holds no RTPLAN"),
        ({"static": True}, "the plan is sliding window, not VMAT"),
        ({"names": {"cord": "thing"}}, "no organ is contoured"),
    ],
)
def test_the_relaxed_filter_admits_what_the_strict_one_refuses(
    tmp_path: Path, change: dict, reason: str
) -> None:
    raw_patient(tmp_path / "raw" / "case_1", **change)
    with pytest.raises(CaseError, match="none of 1 cases could be prepared"):
        _run(tmp_path / "raw", tmp_path / "strict")
    with (tmp_path / "strict" / "rejected.csv").open(newline="") as stream:
        row = next(csv.DictReader(stream))
    assert row["case"] == "case_1" and row["reason"].startswith(reason) and "--relax-filter" in row["remedy"]
    done = _run(tmp_path / "raw", tmp_path / "relaxed", replace(SETTINGS, relax=True))
    assert len(done.records) == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"leave_out": ("CT",)}, "no CT series"),
        ({"leave_out": ("RTSTRUCT",)}, "no RTSTRUCT"),
        ({"names": {"PTV60": "thing"}}, "no structure is a target by the name mapping"),
    ],
)
def test_without_ct_or_target_no_filter_helps(tmp_path: Path, change: dict, reason: str) -> None:
    raw_patient(tmp_path / "raw" / "case_1", **change)
    raw_patient(tmp_path / "raw" / "case_2")
    done = _run(tmp_path / "raw", tmp_path / "out", replace(SETTINGS, relax=True))
    assert [r["id"] for r in done.records] == ["case_2"]
    assert reason in done.rejections[0].reason and done.rejections[0].remedy


def test_required_organs(tmp_path: Path) -> None:
    raw = _raw(tmp_path / "raw", 1)
    with pytest.raises(CaseError, match="none of 1"):
        _run(raw, tmp_path / "a", replace(SETTINGS, require=("SpinalCord", "Larynx")))
    assert "Larynx is not contoured" in (tmp_path / "a" / "rejected.csv").read_text()
    assert _run(raw, tmp_path / "b", replace(SETTINGS, require=("SpinalCord",))).made == 1


def test_names_of_folders_files_and_regions_stay_out(tmp_path: Path) -> None:
    folder = raw_patient(tmp_path / "raw" / "Doe John", leave_out=("RTSTRUCT",))
    images = [dcmread(p) for p in sorted(folder.iterdir()) if dcmread(p).Modality == "CT"]
    rois = {"External Doe": [("CLOSED_PLANAR", [0.0, 0.0, 0.0])]}
    save(structure_set(images, rois), folder / "RS.1234567.Doe.dcm")
    done = None
    with pytest.raises(CaseError):
        done = _run(tmp_path / "raw", tmp_path / "out", key=tmp_path / "key.csv")
    assert done is None
    rejected = (tmp_path / "out" / "rejected.csv").read_text()
    assert "Doe" not in rejected and "1234567" not in rejected and "case_" in rejected
    assert "Doe John" in (tmp_path / "key.csv").read_text()
    table = default_table()
    said = without_names("RS.1234567.Doe.dcm: structure External Doe: empty; draw it", folder, table)
    assert said == "file 1: structure region 1: empty; draw it"


def test_a_damaged_contour_does_not_bring_its_regions_name_along(tmp_path: Path) -> None:
    folder = raw_patient(tmp_path / "raw" / "case_1", leave_out=("RTSTRUCT",))
    images = [dcmread(p) for p in sorted(folder.iterdir()) if dcmread(p).Modality == "CT"]
    rois = {"Smith John boost": [("CLOSED_PLANAR", [0.0, 0.0, 0.0, 1.0])]}
    structures = structure_set(images, rois)
    structures.PatientID = images[0].PatientID
    save(structures, folder / "rs.dcm")
    with pytest.raises(CaseError, match="none of 1 cases"):
        _run(tmp_path / "raw", tmp_path / "out")
    rejected = (tmp_path / "out" / "rejected.csv").read_text()
    assert "Smith" not in rejected and "no structure is a target" in rejected


def test_the_key_does_not_go_into_the_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="within the data set"):
        _run(_raw(tmp_path / "raw", 1), tmp_path / "out", key=tmp_path / "out" / "key.csv")


def test_ids_come_from_plain_folder_names_only(tmp_path: Path) -> None:
    for name in ("case_0001", "PT7", "Doe_John", "Smith 1950"):
        raw_patient(tmp_path / name, number=len(name))
    shutil.copytree(tmp_path / "Doe_John", tmp_path / "Doe_John_again")
    cases, again = scan(tmp_path)
    assert {c.id for c in cases} >= {"case_0001", "PT7"} and len(cases) == 4
    assert all(
        c.id.startswith("case_") and len(c.id) == 17 for c in cases if c.id not in ("case_0001", "PT7")
    )
    assert len(again) == 1 and "very files of another" in again[0].reason


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        *((n, True) for n in ("case_0001", "PT7", "pt-22", "HN_3", "lung_7", "head_neck_4", "tg119_cshape")),
        *((n, True) for n in ("case-0a1b2c3d", "case_0123456789ab")),
        *((n, False) for n in ("Smith_482913", "Doe1", "Doe", "pt_1234567", "case_Doe", "pt_\u0663", "Pt 7")),
    ],
)
def test_a_word_that_may_be_a_name_is_no_id(tmp_path: Path, name: str, plain: bool) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "a.dcm").write_bytes(b"a")
    assert (scan(tmp_path)[0][0].id == name) == plain


def test_different_cases_of_equal_ends_and_sizes_are_two(tmp_path: Path) -> None:
    for name, middle in (("Doe", b"1"), ("Roe", b"2"), ("Roe again", b"2")):
        (tmp_path / name).mkdir()
        for file, data in (("a", b"first"), ("b", middle), ("c", b"last")):
            (tmp_path / name / file).write_bytes(data)
    cases, no_case = scan(tmp_path)
    assert [c.folder.name for c in cases if c.id.startswith("case_")] and len({c.id for c in cases}) == 2
    assert {c.folder.name for c in cases} == {"Doe", "Roe"} and len(no_case) == 1


def test_an_empty_folder_gets_no_id_from_its_name(tmp_path: Path) -> None:
    raw = _raw(tmp_path / "raw", 1)
    (raw / "Doe John").mkdir()
    cases, no_case = scan(raw)
    assert [c.id for c in cases] == ["case_0001"]
    assert [(r.case, r.reason) for r in no_case] == [("empty folders", "1 folders hold no file")]


def test_a_stray_file_does_not_make_one_case_of_all(tmp_path: Path) -> None:
    raw = _raw(tmp_path / "raw", 2)
    (raw / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(8))
    cases, no_case = scan(raw)
    assert [c.id for c in cases] == ["case_0001", "case_0002"]
    assert [r.case for r in no_case] == ["loose files"] and no_case[0].remedy


def test_a_case_that_changed_its_id_is_told(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    folder = raw_patient(raw / "Doe John", number=1)
    first = _run(raw, tmp_path / "out")
    assert first.without_raw == ()
    (folder / "added.txt").write_text("one more file")
    done = _run(raw, tmp_path / "out", resume=True)
    assert done.without_raw == (first.records[0]["id"],) == tuple(done.summary()["without_raw"])


def test_links_to_nowhere_and_strange_files_do_not_stop_the_others(tmp_path: Path) -> None:
    raw = _raw(tmp_path / "raw", 1)
    broken = raw_patient(raw / "Doe John", number=5)
    (broken / "zz").symlink_to(tmp_path / "nowhere")
    (broken / "notes.txt").write_text("not DICOM")
    (raw / "case_0002").mkdir()
    (raw / "case_0002" / "x.dcm").write_bytes(bytes(128) + b"DICM" + bytes(range(200)))
    done = _run(raw, tmp_path / "out")
    assert len(done.records) == 2 and [r.case for r in done.rejections] == ["case_0002"]
    assert "no DICOM file" in done.rejections[0].reason and done.rejections[0].remedy


def test_a_defect_costs_its_case_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, real = _raw(tmp_path / "raw", 2), module.clinical_case

    def failing(case: RawCase, settings: Preparation) -> TrainingCase:
        if case.id == "case_0001":
            raise ZeroDivisionError("by design")
        return real(case, settings)

    monkeypatch.setattr(module, "clinical_case", failing)
    done = _run(raw, tmp_path / "out")
    assert [r["id"] for r in done.records] == ["case_0002"]
    assert [r.case for r in done.rejections] == ["case_0001"] and done.rejections[0].remedy
    state = json.loads((tmp_path / "out" / ".work" / "case_0001.state").read_text())
    assert "ZeroDivisionError" in state["trace"]
    monkeypatch.undo()
    again = _run(raw, tmp_path / "out", resume=True)
    assert (again.made, len(again.records), again.rejections) == (1, 2, ())


@pytest.mark.parametrize(
    ("place", "fault", "reason"),
    [
        ("open", PermissionError(13, "Permission denied"), "file 1: the file cannot be opened"),
        ("is_file", OSError(5, "Input/output error"), "a file cannot be read"),
    ],
)
def test_what_is_not_the_cases_fault_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, fault: Exception, reason: str
) -> None:
    raw = _raw(tmp_path / "raw", 1)
    (raw / "case_0001" / "file000").rename(raw / "case_0001" / "Doe")
    real = getattr(Path, place)

    def failing(path: Path, *options: object, **more: object) -> object:
        if path.name == "Doe":
            raise fault
        return real(path, *options, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Path, place, failing)
        with pytest.raises(CaseError, match="none of 1 cases"):
            _run(raw, tmp_path / "out")
    rejected = (tmp_path / "out" / "rejected.csv").read_text()
    assert reason in rejected and "Doe" not in rejected
    assert _run(raw, tmp_path / "out", resume=True).made == 1


def test_too_little_memory_for_a_case_stops_the_run_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = _raw(tmp_path / "raw", 2)
    (raw / "case_0001" / "file000").rename(raw / "case_0001" / "large")
    real = Path.open

    def failing(path: Path, *options: object, **more: object) -> object:
        if path.name == "large":
            raise MemoryError
        return real(path, *options, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", failing)
        with pytest.raises(LimitError, match=r"case_0001: the memory .*or leave the case out"):
            _run(raw, tmp_path / "out")
    assert (tmp_path / "out" / ".work" / "case_0002.state").is_file()
    again = _run(raw, tmp_path / "out", resume=True)
    assert (len(again.records), again.rejections) == (2, ())


def test_a_raw_folder_may_be_a_case_itself(tmp_path: Path) -> None:
    cases, _ = scan(raw_patient(tmp_path / "case_7"))
    assert [c.id for c in cases] == ["case_7"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no case"):
        scan(tmp_path / "empty")
    with pytest.raises(InputError, match="does not exist"):
        scan(tmp_path / "nowhere")


def test_sites_are_told_by_a_csv(tmp_path: Path) -> None:
    raw = _raw(tmp_path / "raw", 2)
    (raw / "sites.csv").write_text("case,site,fractions\ncase_0001,Head Neck,30\n")
    done = _run(raw, tmp_path / "out")
    assert [r["site"] for r in done.records] == ["head_neck", "unknown"]
    (raw / "sites.csv").write_text("case,site,fractions\ncase_0001,lung,\nDoe,lung,\n")
    line = scan(raw)[1][0]
    assert (line.case, line.reason) == ("sites.csv", "line 3: there is no folder of that name")
    (raw / "sites.csv").write_text("case,site,fractions\ncase_0001,lung,\u00b2\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 2: fractions must be a whole number"):
        scan(raw)
    (raw / "sites.csv").write_text("patient,where\n")
    with pytest.raises(InputError, match="lacks the columns case,site"):
        scan(raw)


def test_the_site_of_all_cases_goes_before_the_csv(tmp_path: Path) -> None:
    raw = RawCase("case_1", raw_patient(tmp_path / "a"), "", site="head_neck")
    assert clinical_case(raw, replace(SETTINGS, site="lung")).case.site == "lung"
    assert clinical_case(raw, SETTINGS).case.site == "head_neck"


@pytest.mark.parametrize("place", [".", "x"])
def test_a_data_set_within_the_raw_folder_is_refused(tmp_path: Path, place: str) -> None:
    raw = _raw(tmp_path / "raw", 1)
    with pytest.raises(
        InputError,
        match=r"--out (is an input|lies in a folder that the command).*; name a folder beside the input",
    ):
        _run(raw, raw / place, resume=True)
    assert [p.name for p in raw.iterdir()] == ["case_0001"]


def _prepared(folder: Path, settings: Preparation = SETTINGS) -> TrainingCase:
    return clinical_case(RawCase("case_1", folder, ""), settings)


def test_prescription_from_names_needs_fractions_and_a_dose_that_agrees(tmp_path: Path) -> None:
    relaxed = replace(SETTINGS, relax=True)
    folder = raw_patient(tmp_path / "a", leave_out=("RTPLAN",), names={"PTV60": "PTV61"})
    assert _prepared(folder, relaxed).case.prescription is None
    told = clinical_case(RawCase("case_1", folder, "", fractions=30), relaxed)
    assert told.case.prescription is not None and told.case.prescription.target_gy == {"PTV_61": 61.0}
    assert "prescription-from-names" in told.provenance["steps"]
    boost = raw_patient(tmp_path / "b", leave_out=("RTPLAN",), names={"PTV60": "PTV30"})
    assert clinical_case(RawCase("c", boost, "", fractions=15), relaxed).case.prescription is None


def test_goals_give_constraints_with_what_the_dose_achieves(tmp_path: Path) -> None:
    folder = raw_patient(tmp_path / "a", leave_out=("RTPLAN",))
    training = _prepared(folder, replace(SETTINGS, relax=True, goals="lung_60"))
    assert training.case.prescription is not None and training.case.prescription.fractions == 30
    first = training.constraints[0]
    assert first.structure == "PTV_60" and first.achieved == pytest.approx(60, abs=8)
    absent = next(c for c in training.constraints if c.structure == "Heart")
    assert absent.achieved is None
    with pytest.raises(InputError, match="is not in the case"):
        _prepared(folder, replace(SETTINGS, relax=True, goals="prostate_78"))


SHEET = """format = 2
title = "t"
site = "lung"
source = "s"
fractions = 30
conditions = { single = "one lung alone" }
[prescription_gy]
PTV_60 = 60.0
[normalization]
PTV_60 = "D95% = 60 Gy"
[[goals]]
structure = "PTV_60"
goal = "D2% <= 66 Gy"
priority = 1
source = "s"
seen = "practice"
[[goals]]
structure = "SpinalCord"
goal = "max <= 45 Gy"
priority = 1
source = "s"
seen = "practice"
if = "single"
"""


def test_conditional_goals_count_where_their_condition_is_said_to_hold(tmp_path: Path) -> None:
    folder, sheet = raw_patient(tmp_path / "a", leave_out=("RTPLAN",)), tmp_path / "own.toml"
    sheet.write_text(SHEET)
    relaxed = replace(SETTINGS, relax=True, goals=str(sheet))
    on = _prepared(folder, replace(relaxed, conditions=("single",)))
    assert [c.structure for c in _prepared(folder, relaxed).constraints] == ["PTV_60"]
    assert [c.structure for c in on.constraints] == ["PTV_60", "SpinalCord"]
    assert "goals-with: single" in on.provenance["steps"]


def test_a_condition_that_no_sheet_knows_is_refused_before_any_case(tmp_path: Path) -> None:
    sheet = tmp_path / "own.toml"
    sheet.write_text(SHEET)
    own = replace(SETTINGS, goals=str(sheet), conditions=("single",))
    assert preparation_record(own, None)["conditions"] == ["single"]
    for wrong in (replace(own, conditions=("double",)), replace(SETTINGS, conditions=("single",))):
        with pytest.raises(InputError, match="condition"):
            preparation_record(wrong, None)
    assert preparation_record(replace(SETTINGS, conditions=("chemotherapy",)), None)


def test_the_fractions_are_the_plans_and_not_the_goals(tmp_path: Path) -> None:
    """lung_60 is for 30 fractions; a case of 15 gets neither them nor, unless asked for, its limits."""
    folder = raw_patient(tmp_path / "a", leave_out=("RTPLAN",))
    relaxed = replace(SETTINGS, relax=True, site="lung")
    fitting = clinical_case(RawCase("c", folder, "", fractions=30), relaxed)
    assert "goals-from-structures: lung_60" in fitting.provenance["steps"] and fitting.constraints
    alone = clinical_case(RawCase("c", folder, ""), relaxed)
    assert alone.case.prescription is not None and alone.case.prescription.fractions == 30
    other = clinical_case(RawCase("c", folder, "", fractions=15), relaxed)
    assert other.case.prescription is not None and other.case.prescription.fractions == 15
    assert not other.constraints and "goals-unknown" in other.provenance["steps"]
    named = clinical_case(RawCase("c", folder, "", fractions=15), replace(relaxed, goals="lung_60"))
    assert named.case.prescription is not None and named.case.prescription.fractions == 15
    assert named.constraints and "goals-of-other-fractions: lung_60" in named.provenance["steps"]


def test_stored_distances_are_there_when_asked_for(tmp_path: Path) -> None:
    _run(_raw(tmp_path / "raw", 1), tmp_path / "out", replace(SETTINGS, store_sdf=True))
    maps = stored_sdf_mm(tmp_path / "out" / "case_0001.npz")
    case = load_case(tmp_path / "out" / "case_0001.npz").case
    assert maps is not None
    for name, structure in case.structures.items():
        np.testing.assert_array_equal(maps[name] < 0, structure.mask)


def test_a_shape_too_small_for_a_target_leaves_the_case_out(tmp_path: Path) -> None:
    done = _run(
        _raw(tmp_path / "raw", 1), tmp_path / "out", replace(SETTINGS, spacing_mm=(1, 1, 2)), shape=(8, 8, 8)
    )
    assert not done.records and "PTV_60 would lose" in done.rejections[0].reason
    assert done.rejections[0].remedy == "give a larger --shape"


def test_structures_that_are_cut_are_told(tmp_path: Path) -> None:
    done = _run(_raw(tmp_path / "raw", 1), tmp_path / "out", shape=(8, 8, 8 + 8))
    assert set(done.cut_percent["case_0001"]) == {"SpinalCord"}
    assert (
        load_case(tmp_path / "out" / "case_0001.npz").provenance["cut_percent"]
        == done.cut_percent["case_0001"]
    )
