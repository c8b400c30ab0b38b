"""A de-identified study against its original and against two readings of the standard.

Everything that could be linked before is linked afterwards, each object holds what its class asks
for, and the images are the same numbers.
"""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import UID_dictionary
from synthetic_plans import as_study, two_arcs

from vmat_diffusion.case import Dose
from vmat_diffusion.dicom import read_case, read_dose, read_plan, write_dose, write_unjudged_plan
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import load_machine
from vmat_diffusion.phantom import phantom
from vmat_diffusion.workflow.deidentify import deidentify_folder

NAME = "Zacharias^Philomena"
WORDS = ("zacharias", "philomena", "774411", "weissenberg")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The C-shape as a study full of an invented name, and what de-identification makes of it."""
    root = tmp_path_factory.mktemp("links")
    case = as_study(root / "case", phantom("tg119_cshape"))
    machine = load_machine("generic_6mv")
    assert case.prescription is not None
    folder = root / "case"
    plan = write_unjudged_plan(
        folder / "RP.dcm", two_arcs(case, machine), case, machine, prescription=case.prescription
    )
    grid = Grid((12, 20, 24), (3.0, 3.0, 2.5), (-36.1, -30.2, -15.3))
    gy = (50.0 * np.random.default_rng(0).random(grid.shape)).astype(np.float32)
    write_dose(folder / "RD.dcm", Dose(grid, gy), case, plan_file=plan)
    for file in folder.iterdir():
        dataset = pydicom.dcmread(file)
        name_everywhere(dataset)
        dataset.save_as(file)
    done = deidentify_folder(folder, root / "out", key="a key for this test alone")
    assert not done.left_out
    (name,) = done.cases
    return folder, root / "out" / name


def name_everywhere(dataset: Dataset) -> None:
    """The invented name in every free text, in labels, in items and in private attributes."""
    for element in list(dataset):
        if element.VR == "SQ":
            for item in element.value:
                name_everywhere(item)
        elif element.VR in ("LO", "SH", "ST", "LT", "UT", "PN") and element.keyword not in (
            "ROIName",
            "FluenceModeID",
            "RescaleType",
        ):
            element.value = "Zacharias 774411"[:16]
        elif element.keyword == "ROIName" and element.value not in ("BODY", "OuterTarget", "Core", "PTV"):
            element.value = f"{element.value} Zacharias"
    if "SOPClassUID" in dataset:
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = NAME, "774411", "19310203"
        dataset.InstitutionName, dataset.ReferringPhysicianName = "Weissenberg", "Philomena^Dr"
        dataset.private_block(0x0011, "Zacharias", create=True).add_new(1, "LO", "Philomena")


def by_kind(folder: Path) -> dict[str, list[Dataset]]:
    out: dict[str, list[Dataset]] = {}
    for file in sorted(folder.iterdir()):
        dataset = pydicom.dcmread(file)
        out.setdefault(dataset.Modality, []).append(dataset)
    return out


def uids(datasets: list[Dataset]) -> Counter[str]:
    return Counter(
        str(e.value) for d in datasets for e in d.iterall() if e.VR == "UI" and e.value not in UID_dictionary
    )


def test_every_link_is_kept_and_no_uid_is(folders: tuple[Path, Path]) -> None:
    before, after = (by_kind(folder) for folder in folders)
    assert {k: len(v) for k, v in before.items()} == {k: len(v) for k, v in after.items()}
    old, new = (uids([d for group in kinds.values() for d in group]) for kinds in (before, after))
    assert not set(old) & set(new)
    # As many different UIDs, each as often, so none were merged or torn apart.
    assert sorted(old.values()) == sorted(new.values())
    images = {d.SOPInstanceUID for d in after["CT"]}
    (structures,), (plan,), (dose,) = after["RTSTRUCT"], after["RTPLAN"], after["RTDOSE"]
    frame = structures.ReferencedFrameOfReferenceSequence[0]
    drawn_on = frame.RTReferencedStudySequence[0].RTReferencedSeriesSequence[0]
    assert {i.ReferencedSOPInstanceUID for i in drawn_on.ContourImageSequence} == images
    assert plan.ReferencedStructureSetSequence[0].ReferencedSOPInstanceUID == structures.SOPInstanceUID
    assert dose.ReferencedRTPlanSequence[0].ReferencedSOPInstanceUID == plan.SOPInstanceUID
    assert len({d.FrameOfReferenceUID for d in (*after["CT"], plan, dose, frame)}) == 1
    assert len({d.StudyInstanceUID for d in (*after["CT"], structures, plan, dose)}) == 1


def test_case_plan_and_dose_are_the_same(folders: tuple[Path, Path]) -> None:
    before, after = (read_case(folder) for folder in folders)
    assert np.array_equal(before.hu, after.hu)
    masks = [
        {case.source.roi_numbers[n]: s.mask for n, s in case.structures.items()} for case in (before, after)
    ]
    assert masks[0].keys() == masks[1].keys()
    assert all(np.array_equal(masks[0][number], masks[1][number]) for number in masks[0])
    plans = [
        read_plan(next(folder.glob(f"{name}*")))
        for folder, name in zip(folders, ("RP", "RTPLAN"), strict=True)
    ]
    for a, b in zip(plans[0].arcs, plans[1].arcs, strict=True):
        assert np.array_equal(a.leaves_mm, b.leaves_mm) and np.array_equal(a.mu, b.mu)
    doses = [
        read_dose(next(folder.glob(f"{name}*")))
        for folder, name in zip(folders, ("RD", "RTDOSE"), strict=True)
    ]
    assert np.array_equal(doses[0].gy, doses[1].gy) and doses[0].grid == doses[1].grid


def test_no_word_is_left_in_any_text_or_byte(folders: tuple[Path, Path]) -> None:
    for file in folders[1].iterdir():
        texts = " ".join(
            str(e.value) for e in pydicom.dcmread(file).iterall() if e.VR not in ("SQ", "OW", "UI", "DS")
        )
        content = file.read_bytes().lower()
        assert not [word for word in WORDS if word in texts.lower() or word.encode() in content]


@pytest.mark.parametrize("kind", ["CT", "RTSTRUCT", "RTPLAN"])
def test_dciodvfy_finds_no_error(folders: tuple[Path, Path], kind: str) -> None:
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    file = next(folders[1].glob(f"{kind}*"))
    result = subprocess.run([program, "-new", str(file)], capture_output=True, text=True, timeout=60)
    lines = (result.stdout + result.stderr).splitlines()
    assert {"CT": "CTImage", "RTSTRUCT": "RTStructureSet", "RTPLAN": "RTPlan"}[kind] in lines
    assert [line for line in lines if line.startswith("Error")] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pt_3", "pt_201", "hn_fullres"])
def test_real_patients_read_as_before(name: str, patient: Callable[[str], Path], tmp_path: Path) -> None:
    done = deidentify_folder(patient(name), tmp_path / "out")
    assert not done.left_out and len(done.cases) == 1
    before = read_case(patient(name), allow_outside_body=True)
    after = read_case(tmp_path / "out" / next(iter(done.cases)), allow_outside_body=True)
    assert np.array_equal(before.hu, after.hu)
    assert list(before.structures) == list(after.structures)
    for name_, structure in before.structures.items():
        assert np.array_equal(structure.mask, after.structures[name_].mask)
