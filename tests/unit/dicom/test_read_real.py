"""Real exports of several systems; skipped where the test data are absent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest

from vmat_diffusion.dicom import inspect, read_case, read_dose, read_plan
from vmat_diffusion.errors import CaseError, InputError, PlanError

_BITS = {
    "Brainstem": 0,
    "SpinalCord": 1,
    "Parotid_R": 2,
    "Parotid_L": 3,
    "Esophagus": 4,
    "Larynx": 5,
    "Bone_Mandible": 6,
    "PTV_56": 7,
    "PTV_63": 8,
    "PTV_70": 9,
}


@pytest.mark.parametrize("name", ["pt_3", "pt_22", "pt_201"])
def test_masks_and_dose_equal_the_original_arrays(
    patient: Callable[[str], Path], shared_data: Path, name: str
) -> None:
    """The same patients as arrays: every structure must come back voxel by voxel."""
    case = read_case(patient(name))
    files = [p for p in (shared_data / "openkbp").rglob(f"{name}.npz")]
    if not files:
        pytest.skip(f"{name}.npz is absent")
    arrays = np.load(files[0])
    # Axes there: anterior-posterior, right-left, head-feet; ours: feet-head, anterior-posterior, right-left.
    bits = arrays["structures"].transpose(2, 0, 1)[::-1]
    for structure, bit in _BITS.items():
        original = (bits >> bit) & 1 == 1
        if original.any():
            np.testing.assert_array_equal(case.structures[structure].mask, original, err_msg=structure)
    assert case.body.mask[case.structures["PTV_70"].mask].all()
    assert case.reference_dose is not None
    original_gy = arrays["dose_cGy"].transpose(2, 0, 1)[::-1] / 100.0
    np.testing.assert_allclose(case.reference_dose.gy, original_gy, atol=0.006)


def test_full_resolution_head_and_neck(patient: Callable[[str], Path]) -> None:
    folder = patient("hn_fullres")
    case = read_case(folder)
    assert case.grid.shape == (148, 512, 512) and case.patient_position == "HFS"
    names = {s.alias: (s.name, s.role) for s in case.structures.values()}
    assert len(names) == 27
    assert names["PTV_70cf"] == ("PTV_70", "target") and names["PTV_56cf"] == ("PTV_56", "target")
    assert names["Cord"] == ("SpinalCord", "organ") and names["External ROI_1"] == ("BODY", "body")
    assert names["SPTV 70"][1] == names["Cord +0.3cm"][1] == names["L PAROTID PRV"][1] == "other"
    assert any("RP.dcm refers to another structure set" in s for s in case.source.steps)
    plan = read_plan(folder / "RP.dcm")
    assert len(plan.arcs) == 9 and plan.total_mu == pytest.approx(642) and plan.fractions == 35


@pytest.mark.parametrize(
    ("file", "beams", "mu", "degrees", "pairs"),
    [
        ("eclipse_truebeam_tg119_cshape_2arc", 2, 602.05, 716, 60),
        ("eclipse_ethos_duallayer_2arc", 2, 600.07, 716, 57),
        ("monaco_versahd_multiturn", 1, 2115.06, 450, 80),
        ("pinnacle_versahd_2arc", 2, 527.0, 712, 80),
        ("brainlab_versahd", 2, 2292.0, 696, 80),
    ],
)
def test_vmat_plans_of_five_systems(
    shared_data: Path, file: str, beams: int, mu: float, degrees: float, pairs: int
) -> None:
    plan = read_plan(shared_data / "rtplans" / f"{file}.dcm")
    turned = sum(np.abs(np.diff(arc.gantry_deg)).sum() for arc in plan.arcs)
    assert len(plan.arcs) == beams and plan.total_mu == pytest.approx(mu, abs=0.01)
    assert turned == pytest.approx(degrees, abs=0.5)
    assert all(arc.leaves_mm.shape[2] == pairs for arc in plan.arcs)
    assert all((arc.leaves_mm[:, 0] <= arc.leaves_mm[:, 1] + 1e-6).all() for arc in plan.arcs)


def test_odd_folders_are_refused_with_a_sentence(shared_data: Path) -> None:
    for folder in sorted((shared_data / "odd_inputs").iterdir()):
        with pytest.raises(CaseError):
            read_case(folder)
        assert inspect(folder).refused
    lines = inspect(shared_data / "odd_inputs" / "compressed_ct").lines()
    assert any("implicit_vr_big_endian_sequence.dcm: the file is not valid DICOM" in line for line in lines)


def test_breast_boost_of_a_planning_system(patient: Callable[[str], Path]) -> None:
    folder = patient("dicompyler")
    assert read_dose(folder / "rtdose.dcm").gy.max() == pytest.approx(14.68, abs=0.01)
    with pytest.raises(PlanError, match="beams 1 and 2 differ in their energy"):
        read_plan(folder / "rtplan.dcm")
    with pytest.raises(CaseError, match="1 slice"):
        read_case(folder)


def test_every_file_that_pydicom_ships_is_read_or_refused() -> None:
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    assert len(files) > 50
    for file in files:
        for reader in (read_plan, read_dose):
            with pytest.raises(InputError) as refusal:
                reader(file)
            assert "\n" not in str(refusal.value)
    assert inspect(folder).lines()
