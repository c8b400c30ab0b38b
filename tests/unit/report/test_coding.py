"""What a run writes and says holds no name, number, UID, file name or machine name of the clinic."""

from __future__ import annotations

import json
import re
import traceback
import zipfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import UID_dictionary
from small_case import StandIn, open_arc, small_case
from tiny_model import tiny_model

from vmat_diffusion.case import Case, Dose
from vmat_diffusion.cli.display import progress_bar, run_text, show, verdict_text
from vmat_diffusion.dicom import read_case, write_case, write_dose, write_unjudged_plan
from vmat_diffusion.diffusion.model import save_model
from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.goals import GoalResult, goal_sheet_names, load_goals
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import Machine, load_machine, machine_text
from vmat_diffusion.origin import uid_code, without_uids
from vmat_diffusion.plan import Plan
from vmat_diffusion.report.coding import Coding, coding_of
from vmat_diffusion.workflow import plan_case, second_check
from vmat_diffusion.workflow.planning.request import plan_settings
from vmat_diffusion.workflow.predict import predict_case
from vmat_diffusion.workflow.settings import PredictSettings, QaSettings
from vmat_diffusion.workflow.trade_off import read_trade_off

NAME, NUMBER, BIRTH, STUDY = "Zachariasson", "PAT-7744119", "19310203", "20230415"
MACHINE, FOLDER = "Nordklinik_TB7", "Zachariasson_Philomena"
PATIENT = (NAME, "Philomena", NUMBER, "7744119", BIRTH, STUDY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A case in whose headers, file names and names of structures a patient is named."""
    place = tmp_path / "input" / FOLDER
    case = small_case()
    structures = dict(case.structures)
    extra = replace(structures["Core"], name=f"ring_{NAME}", role="other")
    write_case(place, replace(case, structures={**structures, extra.name: extra}))
    for k, file in enumerate(sorted(place.iterdir())):
        dataset = pydicom.dcmread(file)
        dataset.PatientName, dataset.PatientID = f"{NAME}^Philomena", NUMBER
        dataset.PatientBirthDate, dataset.StudyDate = BIRTH, STUDY
        dataset.save_as(place / f"{NAME}_{k:03d}.dcm")
        file.unlink()
    return place


@pytest.fixture
def own_files(tmp_path: Path) -> tuple[str, str]:
    """A machine and a goal sheet of the clinic's own."""
    place = tmp_path / "input"
    place.mkdir(exist_ok=True)
    text = re.sub(r"(?m)^(name|title) = .*$", rf'\1 = "{MACHINE}"', machine_text("generic_6mv"))
    machine, goals = place / f"{MACHINE}.toml", place / f"{NAME}_goals.toml"
    machine.write_text(text)
    assert "tg119_cshape_easy" in goal_sheet_names()
    import vmat_diffusion

    shipped = Path(vmat_diffusion.__file__).parent / "goals" / "tg119_cshape_easy.toml"
    if not shipped.is_file():
        shipped = next(Path(vmat_diffusion.__file__).parent.rglob("tg119_cshape_easy.toml"))
    goals.write_text(shipped.read_text())
    return str(machine), str(goals)


def uids_of(folder: Path) -> set[str]:
    found = set()
    for file in folder.iterdir():
        for element in pydicom.dcmread(file, stop_before_pixels=True).iterall():
            if element.VR == "UI" and element.value not in UID_dictionary:
                found.add(str(element.value))
    return found


def contents(out: Path) -> dict[str, bytes]:
    """What the files that are not DICOM hold, archives unpacked."""
    found = {}
    for file in sorted(f for f in out.rglob("*") if f.is_file() and f.suffix != ".dcm"):
        data = file.read_bytes()
        if file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                data = b"".join(archive.read(name) for name in archive.namelist())
            data += data.replace(b"\0", b"")  # texts in arrays are four bytes a letter
        found[file.name] = data
    return found


def met(words: Iterable[str], data: bytes) -> list[str]:
    lower = data.lower()
    return [w for w in words if any(w.lower().encode(e) in lower for e in ("utf-8", "utf-16-le"))]


@pytest.mark.parametrize("shareable", [False, True])
def test_a_plan_says_nothing_of_its_patient(
    folder: Path,
    own_files: tuple[str, str],
    tmp_path: Path,
    optimiser: StandIn,
    capsys: pytest.CaptureFixture[str],
    shareable: bool,
) -> None:
    machine, goals = own_files
    arc = open_arc()
    optimiser(replace(arc, machine=MACHINE, arcs=(replace(arc.arcs[0], name=f"arc {NAME}"),)))
    asked = plan_settings(goals=goals, machine=machine, shareable=shareable, trajectory="csv")
    with progress_bar(verbose=True) as progress:
        run = plan_case(folder, tmp_path / "out", asked, tools=optimiser.tools, progress=progress)
    show(run_text(run))
    show(json.dumps(run.summary()))
    out, err = capsys.readouterr()
    uids = uids_of(folder)
    files = [f.name for f in folder.iterdir()]
    everywhere = [NUMBER, "7744119", BIRTH, STUDY, FOLDER, "Philomena", f"{NAME}_goals", *files, *uids]
    assert not met([*everywhere, NAME], (out + err).encode())
    written = contents(tmp_path / "out")
    assert {"run.json", "report.html", "control_points.csv", "fluence.npz", "trajectory_1.csv"} <= set(
        written
    )
    for name, data in written.items():
        assert not met(everywhere, data), name
    assert not met([MACHINE], written["run.json"])
    record = json.loads(written["run.json"])
    assert record["settings"]["machine"].startswith("file ") and record["settings"]["goals"].startswith(
        "file "
    )
    assert record["inputs"]["uid_hashes"]["series"] == uid_code(read_case(folder).source.series_uid)
    if shareable:
        day = run.provenance["created"][:10]
        for name, data in written.items():
            assert not met([NAME, MACHINE, day], data), name
        assert len(record["created"]) == 4
    else:
        assert MACHINE.encode() in written["report.html"]  # a report within the clinic names its machine
    assert read_trade_off([tmp_path / "out"]).plans[0].complete


@pytest.mark.parametrize("shareable", [False, True])
def test_a_second_check_says_nothing_of_its_patient(
    folder: Path,
    own_files: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shareable: bool,
) -> None:
    import vmat_diffusion.workflow.recompute as module

    def choose(name: str, machine: Machine, **settings: object):  # type: ignore[no-untyped-def]
        def engine(plan: Plan, case: Case, grid: Grid | None = None, progress: object = None) -> Dose:
            assert grid is not None
            made = {"engine": name, "machine": machine.name}
            return Dose(grid, np.full(grid.shape, 50.0, np.float32), provenance=made)

        return engine

    monkeypatch.setattr(module, "dose_engine", choose)
    case, machine = read_case(folder), load_machine("generic_6mv")
    prescription = small_case().prescription
    assert prescription is not None
    arc = open_arc()
    plan = replace(arc, label=NAME[:12], arcs=(replace(arc.arcs[0], name=f"arc {NAME}"),))
    rp = write_unjudged_plan(tmp_path / f"{NAME} plan.dcm", plan, case, machine, prescription=prescription)
    dataset = pydicom.dcmread(rp)
    for beam in dataset.BeamSequence:
        beam.TreatmentMachineName = "Westhalle_9"
    dataset.save_as(rp)
    grid = case.grid.around(*case.grid.bounds_mm, (6.0, 6.0, 6.0))
    rd = write_dose(
        tmp_path / f"{NAME} dose.dcm", Dose(grid, np.full(grid.shape, 50.0, np.float32)), case, plan_file=rp
    )
    with progress_bar(verbose=True) as progress:
        done = second_check(
            rp,
            folder,
            tmp_path / "out",
            QaSettings(machine=own_files[0], goals=own_files[1], shareable=shareable),
            dose_file=rd,
            progress=progress,
        )
    show(verdict_text(done.verdict))
    out, err = capsys.readouterr()
    own = str(pydicom.dcmread(rp).SOPInstanceUID)
    uids = uids_of(folder) | {str(pydicom.dcmread(rd).SOPInstanceUID)}
    everywhere = [NUMBER, "7744119", BIRTH, STUDY, FOLDER, "Philomena", rp.name, rd.name, *uids]
    assert not met([*everywhere, NAME], (out + err).encode())
    written = contents(tmp_path / "out")
    for name, data in written.items():
        assert not met(everywhere, data), name
        # A signature is for one plan: its UID stands in the report, and nowhere in what is to be shared.
        assert bool(met([own], data)) == (name == "report.html" and not shareable), name
    assert not met([MACHINE, "Westhalle"], written["qa.json"])
    if shareable:
        for name, data in written.items():
            assert not met([NAME[:12], MACHINE, "Westhalle"], data), name


@pytest.mark.parametrize("shareable", [False, True])
def test_a_prediction_says_nothing_of_its_patient(folder: Path, tmp_path: Path, shareable: bool) -> None:
    weights = save_model(tmp_path / f"{NAME}.safetensors", tiny_model())
    asked = PredictSettings(
        goals="tg119_cshape_easy", weights=str(weights), samples=1, steps=1, device="cpu", shareable=shareable
    )
    predict_case(folder, tmp_path / "out", asked)
    everywhere = [*PATIENT, FOLDER, *(f.name for f in folder.iterdir()), *uids_of(folder)]
    for name, data in contents(tmp_path / "out").items():
        assert not met(everywhere, data), name


@pytest.mark.parametrize("damage", ["no structures", "two patients", "no goals", "cut off"])
def test_what_is_refused_names_no_patient(folder: Path, tmp_path: Path, damage: str) -> None:
    files = sorted(folder.iterdir())
    sheet = "tg119_cshape_easy"
    if damage == "no structures":
        files[-1].unlink()
    elif damage == "two patients":
        dataset = pydicom.dcmread(files[-1])
        dataset.PatientID = "PAT-5550123"
        dataset.save_as(files[-1])
    elif damage == "no goals":
        sheet = "prostate_60"
    else:
        files[0].write_bytes(files[0].read_bytes()[:-900])
    with pytest.raises(InputError) as caught:
        plan_case(folder, tmp_path / "out", plan_settings(goals=sheet))
    # The sentence may name the file or folder that the user gave, not what a header says.
    sentence = str(caught.value).replace(str(folder), "")
    assert not met(
        [NUMBER, "7744119", "5550123", BIRTH, STUDY, "Philomena", *uids_of(folder)], sentence.encode()
    )


def test_settings_and_names_are_decided_in_one_place(folder: Path, own_files: tuple[str, str]) -> None:
    case, machine = read_case(folder), load_machine(own_files[0])
    coding = coding_of(case, machine, machine_file=own_files[0], folder=folder, shareable=True)
    first = sorted(f.name for f in folder.iterdir())[0]
    told = coding.tree(
        {
            "steps": [f"take-image: from {first}, series {case.source.series_uid}"],
            f"ring_{NAME}": 3.0,
            "machine": f"{MACHINE} behind varian_truebeam",
        }
    )
    text = json.dumps(told)
    assert not met([NAME, MACHINE, case.source.series_uid], text.encode())
    assert "file 1" in text and "behind varian_truebeam" in text and "ROI_" in text
    assert not any(NAME in s for s in coding.case(case).structures)
    assert coding.case(case).body.mask is case.body.mask


def test_goals_that_are_shared_name_no_structure_as_written(folder: Path) -> None:
    case = read_case(folder)
    ring = next(s.name for s in case.structures.values() if NAME in s.name)
    sheet = load_goals("tg119_cshape_easy")
    goal = replace(sheet.goals[0], structure=ring)
    sheet = replace(sheet, left_out=(goal,), remarks=(f"{ring} lies in PTV, see CT.1.2.840.99.7.dcm",))
    result = GoalResult(goal, 1.0, "pass", note=f"{ring} was made of PTV")
    machine = load_machine("generic_6mv")
    shared = coding_of(case, machine, folder=folder, shareable=True)
    own = coding_of(case, machine, folder=folder)
    for coding in (shared, own):
        told, (found,) = coding.sheet(sheet), coding.results([result])
        assert told is not None and coding.sheet(None) is None
        said = f"{told.left_out[0].structure} {told.remarks} {found.goal.structure} {found.note}"
        assert met([NAME], said.encode()) == ([] if coding is shared else [NAME])
        assert "1.2.840.99.7" not in said and told.goals == sheet.goals
    code = shared.name(ring)
    assert code.startswith("ROI_") and shared.results([result])[0].goal.structure == code


@given(
    st.lists(st.integers(0, 10**12), min_size=3, max_size=9),
    st.sampled_from(["{}", "x {} y", "CT.{}.dcm", "({})."]),
)
def test_no_uid_survives_in_a_text(numbers: list[int], frame: str) -> None:
    uid = ".".join(map(str, (1 + numbers[0] % 2, *numbers)))
    found = without_uids(frame.format(uid))
    assert uid not in found and uid_code(uid) in found
    assert without_uids(f"2.25.{10**20 + numbers[0]}").isalnum()


@pytest.mark.parametrize(
    "text", ["0.1.0", "torch 2.6.0+cu124", "D95% >= 50.4 Gy", "10.1118/1.1844150", "2.25"]
)
def test_versions_and_numbers_stay(text: str) -> None:
    assert without_uids(text) == text


def test_words_of_structures_and_plain_file_names_are_no_secrets() -> None:
    coding = Coding({"PTV.dcm": "file 1"}, {"A": "machine"}, {})
    assert coding.text("A plan A") == "A plan A" and coding.text("A") == "machine"
    assert coding.text("PTV.dcm") == "PTV.dcm" and coding.text("from PTV.dcm") == "from file 1"


def test_what_a_library_says_of_a_value_is_not_repeated(folder: Path) -> None:
    from vmat_diffusion.dataset.nameless import nameless
    from vmat_diffusion.dicom.names import load_table

    message = r"^KeyError at line \d+ of test_coding.py$"
    with pytest.raises(RuntimeError, match=message) as caught, nameless(folder, load_table(None)):
        raise KeyError(NAME)
    assert NAME not in "".join(traceback.format_exception(caught.value))
