from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_case import small_case

from vmat_diffusion.dataset.cases import TrainingCase, load_case, save_case
from vmat_diffusion.dataset.index import entries_of, read_index
from vmat_diffusion.dataset.splits import split_dataset
from vmat_diffusion.dataset.tables import case_record, write_index
from vmat_diffusion.diffusion.encode import Encoding
from vmat_diffusion.dose.pencil_beam.field_dose import field_dose
from vmat_diffusion.dose.tissue import density_of, dose_grid
from vmat_diffusion.errors import InputError
from vmat_diffusion.jobs.batch import Cluster
from vmat_diffusion.machine import load_machine
from vmat_diffusion.training.encoded import encode_cases, read_encoded
from vmat_diffusion.workflow.settings import Simulation
from vmat_diffusion.workflow.simulation.doses import shared, simulate_doses
from vmat_diffusion.workflow.simulation.plans import SimulationRun, patients_of, simulate, synthetic_patients

HERE = Cluster(kind="serial")
QUICK = Simulation(grid_mm=6.0, effort=0.05)


def _data_set(folder: Path, *names: str) -> Path:
    folder.mkdir()
    records = []
    for name in names:
        case = replace(small_case(), id=name, site="phantom")
        training = TrainingCase(case, case.body.mask, names=("BODY", "Core", "PTV"))
        record = case_record(training, save_case(folder / f"{name}.npz", training))
        records.append({**record, "patient": f"person {name}"})
    write_index(folder, records)
    return folder


def _run(
    source: Path, out: Path, settings: Simulation = QUICK, *, doses: int, resume: bool = False
) -> SimulationRun:
    return simulate_doses(
        patients_of(source), out, settings, doses_per_case=doses, cluster=HERE, resume=resume
    )


def _files(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set of two patients and its doses."""
    folder = tmp_path_factory.mktemp("doses")
    source = _data_set(folder / "in", "case_1", "case_2")
    _run(source, folder / "out", doses=2)
    return source, folder / "out"


def test_each_dose_is_a_training_case_with_beams_goals_and_what_it_achieved(made: tuple[Path, Path]) -> None:
    out = made[1]
    index = read_index(out)
    assert len(index) == 4
    assert {r["patient"] for r in index} == {"person case_1", "person case_2"}
    cases = [load_case(out / r["file"]) for r in index]
    first = [c for c in cases if c.case.id.startswith("case_1")]
    beams = [json.dumps(c.provenance["beams"]) for c in first]
    assert len(set(beams)) == 1
    assert len({json.dumps(c.provenance["wish"]) for c in first}) == len(first)
    for case in cases:
        dose, fields = case.case.reference_dose, case.fields
        assert dose is not None and fields is not None and case.plan is None
        assert tuple(fields.gantry_deg) == tuple(case.provenance["beams"]["gantry_deg"])
        nine = case.provenance["beams"]["kind"] == "nine fields"
        assert case.provenance["technique"] == ("IMRT" if nine else "VMAT")
        assert np.all(dose.gy[~case.possible_dose] == 0)
        asked = {c.structure: c for c in case.constraints if c.goal.startswith("mean")}
        for name, constraint in asked.items():
            mean = dose.gy[case.case.structures[name].mask].mean()
            assert constraint.achieved == pytest.approx(mean, abs=0.02)


def test_the_dose_is_that_of_the_stored_fluence(made: tuple[Path, Path]) -> None:
    out, machine = made[1], load_machine("generic_6mv")
    for name in ("case_1_d01", "case_2_d02"):
        read = load_case(out / f"{name}.npz")
        assert read.fields is not None and read.case.reference_dose is not None
        density = density_of(read.case, dose_grid(read.case, QUICK.grid_mm))
        inside = np.flatnonzero(read.possible_dose)
        gy = field_dose(machine, read.fields, density, read.case.grid.points_mm(inside))
        # Doses are stored in steps of 0.01 Gy.
        np.testing.assert_allclose(read.case.reference_dose.gy.ravel()[inside], gy, atol=0.006, rtol=1e-5)


@pytest.mark.slow
def test_a_run_goes_on_where_it_was_with_the_same_bytes(made: tuple[Path, Path], tmp_path: Path) -> None:
    source, whole = made
    parts = tmp_path / "parts"
    _run(source, parts, doses=1)
    with pytest.raises(InputError, match="--resume"):
        _run(source, parts, doses=2)
    with pytest.raises(InputError, match="was made with beams = drawn"):
        simulate(patients_of(source), parts, QUICK, plans_per_case=2, cluster=HERE, resume=True)
    (parts / "case_1_d01.npz").write_bytes(b"cut short")
    done = _run(source, parts, doses=2, resume=True)
    assert done.made == 3
    assert _files(parts) == _files(whole)
    assert _run(source, parts, doses=2, resume=True).made == 0


def test_another_seed_is_another_dose(made: tuple[Path, Path]) -> None:
    patient = patients_of(made[0])[0]
    one, same, other = (shared(patient, 0, replace(QUICK, seed=seed)).setting for seed in (0, 0, 1))
    assert one == same != other
    assert shared(patient, 1, QUICK).setting != one


def test_beams_of_one_kind(made: tuple[Path, Path], tmp_path: Path) -> None:
    patient = patients_of(made[0])[0]
    for beams, kind in (("full-arc", "full arc"), ("nine-fields", "nine fields")):
        assert shared(patient, 0, replace(QUICK, beams=beams)).setting.beams.kind == kind
    with pytest.raises(InputError, match="--beams full-arc is for doses"):
        simulate(patients_of(made[0]), tmp_path / "out", replace(QUICK, beams="full-arc"), plans_per_case=1)


def test_training_reads_the_doses(made: tuple[Path, Path], tmp_path: Path) -> None:
    entries = entries_of(made[1])[:2]
    encoding = Encoding(organs=("Core",))
    for path in encode_cases(made[1], entries, encoding, tmp_path):
        arrays = read_encoded(path, encoding)
        assert 40 < arrays["dose"].max() / 100 < 70 and arrays["mean_gy"][0] > 0


def test_cases_of_one_split_alone(made: tuple[Path, Path]) -> None:
    source = made[0]
    splits = split_dataset(source, given={"case_1": "train", "case_2": "validation"})
    assert splits.ids("train") == ("case_1",)
    assert [p.id for p in patients_of(source, split="train")] == ["case_1"]
    with pytest.raises(InputError, match="holds no case of the split test"):
        patients_of(source, split="test")


def test_what_has_no_effect_is_refused(tmp_path: Path) -> None:
    patients = synthetic_patients(1, seed=0, sites=("prostate",))
    with pytest.raises(InputError, match="--search-minutes is for plans"):
        simulate_doses(patients, tmp_path / "out", replace(QUICK, search_minutes=1.0), doses_per_case=1)
    with pytest.raises(InputError, match="--plans-per-case 100 is outside 1 to 99"):
        simulate_doses(patients, tmp_path / "out", QUICK, doses_per_case=100)
    assert not (tmp_path / "out").exists()
