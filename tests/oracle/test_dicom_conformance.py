"""Everything written holds against two independent readings of the DICOM standard.

`dciodvfy` (Debian package dicom3tools) checks values, lengths and conditions; the module tables
that highdicom carries say which attributes an object must have. Each test skips where its oracle
is not installed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from synthetic_plans import as_study, two_arcs

from vmat_diffusion.case import Dose
from vmat_diffusion.dicom import write_dose, write_unjudged_plan
from vmat_diffusion.geometry import Grid
from vmat_diffusion.machine import load_machine
from vmat_diffusion.phantom import phantom

KINDS = ("CT", "RS", "RP", "RD")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One file of each kind for the C-shape: CT slice, structure set, plan and dose."""
    folder = tmp_path_factory.mktemp("conformance")
    case = as_study(folder / "case", phantom("tg119_cshape"))
    machine = load_machine("generic_6mv")
    assert case.prescription is not None
    plan = write_unjudged_plan(
        folder / "RP.dcm", two_arcs(case, machine), case, machine, prescription=case.prescription
    )
    rng = np.random.default_rng(0)
    grid = Grid((12, 20, 24), (3.0, 3.0, 2.5), (-36.1, -30.2, -15.3))
    dose = Dose(grid, (50.0 * rng.random(grid.shape)).astype(np.float32))
    return {
        "CT": folder / "case" / "CT.040.dcm",
        "RS": folder / "case" / "RS.dcm",
        "RP": plan,
        "RD": write_dose(folder / "RD.dcm", dose, case, plan_file=plan),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_dciodvfy_finds_no_error(study: dict[str, Path], kind: str, tmp_path: Path) -> None:
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    file = _sixteen_bit(study[kind], tmp_path) if kind == "RD" else study[kind]
    result = subprocess.run([program, "-new", str(file)], capture_output=True, text=True, timeout=60)
    lines = (result.stdout + result.stderr).splitlines()
    # The name of the object's class at the end says that the program came through.
    assert {"CT": "CTImage", "RS": "RTStructureSet", "RP": "RTPlan", "RD": "RTDose"}[kind] in lines
    assert [line for line in lines if line.startswith("Error")] == []


def _sixteen_bit(file: Path, folder: Path) -> Path:
    """A copy with 16-bit pixels: dciodvfy aborts on the 32 bits that RT Dose allows."""
    dataset = pydicom.dcmread(file)
    pixels = (dataset.pixel_array >> 16).astype("<u2")
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    copy = folder / "RD16.dcm"
    dataset.save_as(copy)
    return copy


def test_dciodvfy_would_find_an_error(study: dict[str, Path], tmp_path: Path) -> None:
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy is not installed (Debian package dicom3tools)")
    broken = pydicom.dcmread(study["RP"])
    del broken.RTPlanGeometry
    broken.save_as(tmp_path / "broken.dcm")
    result = subprocess.run(
        [program, "-new", str(tmp_path / "broken.dcm")], capture_output=True, text=True, timeout=60
    )
    assert "Error" in result.stdout + result.stderr


# --- module tables -----------------------------------------------------------------------------

# Modules that an object has when it is used as here, beyond those that its class always has.
USED_MODULES = {
    "CT": ("general-acquisition",),
    "RS": (),
    "RP": (
        "frame-of-reference",
        "rt-prescription",
        "rt-patient-setup",
        "rt-fraction-scheme",
        "rt-beams",
        "approval",
    ),
    "RD": ("general-image", "image-plane", "image-pixel", "multi-frame"),
}


@pytest.fixture(scope="module")
def tables() -> dict[str, dict]:
    highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed (a development extra)")
    folder = Path(highdicom.__file__).parent / "_standard"
    names = ("sop_class_iod_map", "iod_module_map", "module_attribute_map")
    return {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names}


def modules(tables: dict[str, dict], dataset: Dataset, kind: str) -> Iterator[str]:
    iod = tables["iod_module_map"][tables["sop_class_iod_map"][dataset.SOPClassUID]]
    known = {module["key"] for module in iod}
    assert set(USED_MODULES[kind]) <= known
    for module in iod:
        if module["usage"] == "M" or module["key"] in USED_MODULES[kind]:
            yield module["key"]


def missing(dataset: Dataset, attributes: list[dict]) -> list[str]:
    """Type 1 attributes that are absent or empty and type 2 attributes that are absent."""
    found = []
    for attribute in attributes:
        if attribute["type"] not in ("1", "2"):
            continue
        for item in items_at(dataset, attribute["path"]):
            keyword = attribute["keyword"]
            where = ".".join([*attribute["path"], keyword])
            if keyword not in item:
                found.append(f"{where} (type {attribute['type']}) is absent")
            elif attribute["type"] == "1" and item[keyword].is_empty:
                found.append(f"{where} (type 1) is empty")
    return sorted(set(found))


def items_at(dataset: Dataset, path: list[str]) -> Iterator[Dataset]:
    """All items at a path of nested sequences; none where a sequence is absent."""
    if not path:
        yield dataset
        return
    for item in dataset.get(path[0]) or ():
        yield from items_at(item, path[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_no_required_attribute_is_missing(study: dict[str, Path], tables: dict[str, dict], kind: str) -> None:
    dataset = pydicom.dcmread(study[kind])
    walked = list(modules(tables, dataset, kind))
    assert len(walked) >= 5
    faults = {key: missing(dataset, tables["module_attribute_map"][key]) for key in walked}
    assert {key: fault for key, fault in faults.items() if fault} == {}


@pytest.mark.parametrize(
    ("path", "keyword"),
    [
        ((), "RTPlanGeometry"),
        ((), "StudyID"),
        (("BeamSequence",), "BeamType"),
        (("BeamSequence", "ControlPointSequence"), "CumulativeMetersetWeight"),
        (("FractionGroupSequence", "ReferencedBeamSequence"), "ReferencedBeamNumber"),
    ],
)
def test_the_walk_would_find_a_missing_attribute(
    study: dict[str, Path], tables: dict[str, dict], path: tuple[str, ...], keyword: str
) -> None:
    dataset = pydicom.dcmread(study["RP"])
    del next(items_at(dataset, list(path)))[keyword]
    faults = [
        fault
        for key in modules(tables, dataset, "RP")
        for fault in missing(dataset, tables["module_attribute_map"][key])
    ]
    assert any(keyword in fault for fault in faults)


def test_no_patient_data_is_invented(study: dict[str, Path]) -> None:
    image, plan = pydicom.dcmread(study["CT"]), pydicom.dcmread(study["RP"])
    assert plan.PatientName == image.PatientName
    assert plan.PatientBirthDate == image.PatientBirthDate == ""
