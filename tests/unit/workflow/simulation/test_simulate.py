from __future__ import annotations

import csv
import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_case import UNIFORM_GY, StandIn, open_arc, small_case

from vmat_diffusion.case import Dose
from vmat_diffusion.dataset.cases import TrainingCase, load_case, save_case
from vmat_diffusion.dataset.index import read_index
from vmat_diffusion.dataset.tables import case_record, write_index
from vmat_diffusion.dataset.variation import apply_variation
from vmat_diffusion.errors import CaseError, InputError, PlanError
from vmat_diffusion.jobs.batch import Cluster
from vmat_diffusion.machine import load_machine, machine_text
from vmat_diffusion.plan import violations
from vmat_diffusion.workflow.simulation.plans import (
    Simulation,
    SimulationRun,
    draw_plan_variation,
    patients_of,
    require_usable,
    simulate,
    synthetic_patients,
)

HERE = Cluster(kind="serial")
QUICK = Simulation(grid_mm=6.0, effort=0.02)
TABLES = {"index.jsonl", "dataset.json", "rejected.csv"}


@pytest.fixture
def optimiser(optimiser: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The stand-in in place of the optimiser, which `simulate` takes from its package."""
    monkeypatch.setattr("vmat_diffusion.optimize.optimize", optimiser.optimize)
    return optimiser


def _training(id: str = "case_1", **changes: object) -> TrainingCase:
    case = replace(small_case(), id=id, site="phantom")
    base = TrainingCase(case, case.body.mask, names=("BODY", "Core", "PTV"), provenance={"source": "test"})
    return replace(base, **changes)  # type: ignore[arg-type]


def _data_set(folder: Path, *trainings: TrainingCase) -> Path:
    """Training cases as a data set, each its own patient."""
    folder.mkdir()
    records = []
    for training in trainings:
        path = save_case(folder / f"{training.case.id}.npz", training)
        records.append(case_record(training, path, patient=f"person {training.case.id}"))
    write_index(folder, records)
    return folder


def _run(
    folder: Path, out: Path, settings: Simulation = QUICK, plans: int = 2, **options: object
) -> SimulationRun:
    return simulate(
        patients_of(folder),
        out,
        settings,
        plans_per_case=plans,
        cluster=HERE,
        **options,  # type: ignore[arg-type]
    )


def _contents(out: Path) -> dict[str, str]:
    files = (p for p in out.iterdir() if p.is_file() and not p.name.startswith("."))
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _rejected(out: Path) -> dict[str, dict[str, str]]:
    with (out / "rejected.csv").open(newline="") as stream:
        return {row["case"]: row for row in csv.DictReader(stream)}


def test_plans_become_training_cases(tmp_path: Path, optimiser: StandIn) -> None:
    calls = optimiser()
    folder = _data_set(tmp_path / "in", _training("case_1"), _training("case_2"))
    out = tmp_path / "out"
    done = _run(folder, out)
    ids = ["case_1_p01", "case_1_p02", "case_2_p01", "case_2_p02"]
    assert list(done.plans) == ids and done.made == 4 and not done.rejections
    assert set(_contents(out)) == TABLES | {f"{i}{end}" for i in ids for end in (".npz", ".png")}
    index = read_index(out)
    assert [r["id"] for r in index] == ids and {r["technique"] for r in index} == {"VMAT"}
    assert [r["patient"] for r in index] == ["person case_1"] * 2 + ["person case_2"] * 2
    assert all(r["sha256"] == _contents(out)[r["file"]] for r in index)
    about = json.loads((out / "dataset.json").read_text())
    assert (about["cases"], about["patients"], about["with_dose"]) == (4, 2, 4)
    assert str(tmp_path) not in (out / "dataset.json").read_text()
    read = load_case(out / "case_1_p02.npz")
    assert read.case.grid.matches(small_case().grid) and read.names == ("BODY", "Core", "PTV")
    assert read.plan is not None and np.array_equal(read.plan.arcs[0].leaves_mm, open_arc().arcs[0].leaves_mm)
    dose = read.case.reference_dose
    assert dose is not None and np.all(dose.gy[~read.case.body.mask] == 0)
    np.testing.assert_allclose(dose.gy[read.case.structures["PTV"].mask], UNIFORM_GY, atol=0.01)
    variation, asked = read.provenance["variation"], calls[1]["settings"]
    assert (asked.arcs, asked.arc_start_deg, asked.seed) == tuple(
        variation[key] for key in ("arcs", "arc_start_deg", "seed")
    )
    assert (asked.grid_mm, asked.effort, asked.max_minutes) == (6.0, 0.02, None)
    assert read.provenance["gate"] == "not asked" and read.provenance["optimiser"]["outcome"] == "CONVERGED"
    assert read.provenance["patient"] == "person case_1" and read.provenance["base"] == {"source": "test"}


def test_constraints_are_the_varied_goals_with_what_the_dose_achieves(
    tmp_path: Path, optimiser: StandIn
) -> None:
    optimiser()
    _run(_data_set(tmp_path / "in", _training()), tmp_path / "out", plans=1)
    read = load_case(tmp_path / "out" / "case_1_p01.npz")
    kept = read.provenance["variation"]
    variation = draw_plan_variation(_training().case, "case_1_p01", 0, load_machine("generic_6mv"))
    assert kept["factors"] == variation.factors and kept["factors"]["Core"] != 1.0
    _, sheet = apply_variation(variation, _training().case)
    limits = {(c.structure, c.goal): c.limit for c in read.constraints}
    assert limits == {(g.structure, g.statement): g.limit for g in sheet.goals}
    core = [c for c in read.constraints if c.structure == "Core"]
    assert core and all(c.achieved == pytest.approx(UNIFORM_GY, abs=0.01) for c in core if "D" in c.goal)
    assert read.case.prescription == sheet.prescription


def test_a_run_goes_on_where_it_was_and_takes_more_patients_and_plans(
    tmp_path: Path, optimiser: StandIn
) -> None:
    calls = optimiser()
    few, many = (
        _data_set(tmp_path / name, *(_training(f"case_{k}") for k in range(1, n + 1)))
        for name, n in (("few", 1), ("many", 2))
    )
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _run(many, whole, plans=3)
    calls.clear()
    _run(few, parts, plans=2)
    with pytest.raises(InputError, match="--resume"):
        _run(many, parts, plans=3)
    with pytest.raises(InputError, match="was made with seed = 0, now it is 1"):
        _run(many, parts, replace(QUICK, seed=1), plans=3, resume=True)
    (parts / "case_1_p01.npz").write_bytes(b"cut short")
    done = _run(many, parts, plans=3, resume=True)
    assert (done.made, len(calls)) == (5, 7)
    assert _contents(parts) == _contents(whole)
    assert _run(many, parts, plans=3, resume=True).made == 0


def test_what_cannot_be_planned_is_listed_and_stops_nothing(tmp_path: Path, optimiser: StandIn) -> None:
    optimiser()
    good, other = _training("case_1"), _training("case_4")
    cut = _training("case_2")
    body = cut.case.body
    wide = replace(body, mask=np.ones_like(body.mask))
    cut = replace(cut, case=replace(cut.case, structures={**cut.case.structures, body.name: wide}))
    blind = _training("case_3", has_ct=False)
    other = replace(other, case=replace(other.case, site="elbow"))
    folder = _data_set(tmp_path / "in", good, cut, blind, other)
    done = _run(folder, tmp_path / "out", plans=1)
    rows = _rejected(tmp_path / "out")
    assert list(done.plans) == ["case_1_p01"] and list(rows) == ["case_2_p01", "case_3_p01", "case_4_p01"]
    assert "cuts the body beside the targets over 100 %" in rows["case_2_p01"]["reason"]
    assert rows["case_2_p01"]["remedy"] == "prepare the case with a larger --shape"
    assert "has no CT" in rows["case_3_p01"]["reason"]
    assert "no goal sheet of the site 'elbow' fits" in rows["case_4_p01"]["reason"]
    assert not list((tmp_path / "out").glob("case_2*"))


def test_a_plan_that_the_machine_cannot_deliver_is_a_failure(tmp_path: Path, optimiser: StandIn) -> None:
    arc = open_arc().arcs[0]
    fast = arc.leaves_mm.copy()
    fast[5, :, 26:34] += 150.0
    optimiser(replace(open_arc(), arcs=(replace(arc, leaves_mm=fast),)))
    with pytest.raises(PlanError, match="none of 1 plans"):
        _run(_data_set(tmp_path / "in", _training()), tmp_path / "out", plans=1)
    row = _rejected(tmp_path / "out")["case_1_p01"]
    assert "violations of the machine's limits, the first: beam 1" in row["reason"] and row["remedy"]
    assert not list((tmp_path / "out").glob("*.npz"))


@pytest.mark.parametrize(
    ("factor", "hot", "sentence"),
    [
        (1.0, 1.0, ""),
        (0.82, 1.0, ""),
        (1.0, 1.2, ""),
        (0.78, 1.0, r"PTV D95% is 39\.0 Gy, the limit is 40\.0 Gy; give the search a higher --effort"),
        (1.0, 1.3, r"PTV D2% is 65\.0 Gy, the limit is 62\.5 Gy"),
    ],
)
def test_a_dose_far_from_the_prescription_is_no_plan(factor: float, hot: float, sentence: str) -> None:
    case = small_case()
    gy = np.full(case.grid.shape, 50.0 * factor, np.float32)
    gy[10:][:, case.structures["PTV"].mask[10]] = 50.0 * factor * hot
    assert case.prescription is not None
    with pytest.raises(PlanError, match=sentence) if sentence else nullcontext():
        require_usable(case.prescription, case, Dose(case.grid, gy))


def test_defects_are_tried_again_and_refusals_are_not(tmp_path: Path, optimiser: StandIn) -> None:
    folder = _data_set(tmp_path / "in", _training())
    for fault, tries in ((RuntimeError("numbers ran out"), 2), (PlanError("no way; leave it"), 0)):
        optimiser(failing=fault)
        out = tmp_path / type(fault).__name__
        with pytest.raises(PlanError, match="none of 1"):
            _run(folder, out, plans=1)
        calls = optimiser()
        if tries:
            assert _run(folder, out, plans=1, resume=True).made == 1
        else:
            with pytest.raises(PlanError):
                _run(folder, out, plans=1, resume=True)
        assert bool(calls) is bool(tries)


def test_an_interrupted_search_is_no_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vmat_diffusion.optimize as package

    made = type("Made", (), {"outcome": package.Outcome.INTERRUPTED})
    monkeypatch.setattr(package, "optimize", lambda *_, **__: made)
    with pytest.raises(KeyboardInterrupt):
        _run(_data_set(tmp_path / "in", _training()), tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.npz"))


def test_synthetic_patients_cycle_through_the_sites() -> None:
    patients = synthetic_patients(4, seed=7)
    assert [p.id for p in patients] == ["prostate_7", "head_neck_8", "lung_9", "prostate_10"]
    assert [p.id for p in synthetic_patients(2, seed=0, sites=("lung",))] == ["lung_0", "lung_1"]
    assert len({p.patient for p in patients}) == 4
    with pytest.raises(InputError, match="--sites elbow"):
        synthetic_patients(1, seed=0, sites=("elbow",))
    with pytest.raises(InputError, match="--synthetic 0"):
        synthetic_patients(0, seed=0)
    read = synthetic_patients(1, seed=3)[0].read((4.0, 4.0, 5.0))
    assert read.case.grid.spacing_mm == (4.0, 4.0, 5.0) and read.has_ct and "Rectum" in read.names
    assert read.provenance["seed"] == 3


def test_a_data_set_without_cases_of_the_sites_is_refused(tmp_path: Path) -> None:
    folder = _data_set(tmp_path / "in", _training())
    with pytest.raises(InputError, match="no case of the sites lung"):
        patients_of(folder, ("lung",))
    with pytest.raises(CaseError, match=r"no readable index\.jsonl"):
        patients_of(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"effort": 0.0}, "--effort 0 is outside"),
        ({"search_minutes": -1.0}, "--search-minutes -1 is outside"),
        ({"grid_mm": 20.0}, "--grid-mm 20 is outside"),
        ({"spacing_mm": (1.0, 1.0, 9.0)}, "--spacing-mm 9 is outside"),
        ({"seed": -1}, "--seed -1 is outside"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Simulation(**change)


def test_conditions_of_goal_sheets_are_recorded_and_unknown_ones_refused(
    tmp_path: Path, optimiser: StandIn
) -> None:
    optimiser()
    folder = _data_set(tmp_path / "in", _training())
    with pytest.raises(InputError, match="no goal sheet knows the condition 'chemo'"):
        _run(folder, tmp_path / "wrong", replace(QUICK, conditions=("chemo",)), plans=1)
    out = tmp_path / "out"
    _run(folder, out, replace(QUICK, conditions=("chemotherapy",)), plans=1)
    assert json.loads((out / "dataset.json").read_text())["settings"]["conditions"] == ["chemotherapy"]
    with pytest.raises(InputError, match="was made with conditions"):
        _run(folder, out, QUICK, plans=2, resume=True)


def _command(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "vmat_diffusion", "simulate", "--cases", str(folder), "--out", str(out)),
        *("--cluster", "serial", "--plans-per-case", "2", "--grid-mm", "6", "--effort", "0.02", *more),
    ]


@pytest.mark.slow
def test_kill_9_and_resume_give_the_same_bytes(tmp_path: Path) -> None:
    folder = _data_set(tmp_path / "in", _training())
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    shown = subprocess.run(_command(folder, whole), check=True, capture_output=True, text=True)
    assert "2 plans in" in shown.stdout and "OUT_OF_TIME" not in shown.stdout
    process = subprocess.Popen(_command(folder, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((killed / ".work").glob("*_p01.state")):
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "case_1_p02.npz" not in _contents(killed)
    subprocess.run(_command(folder, killed, "--resume"), check=True, capture_output=True)
    assert _contents(killed) == _contents(whole)


@pytest.mark.slow
def test_a_synthetic_prostate_is_planned(tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = Simulation(grid_mm=4.0, effort=0.3, spacing_mm=(3.0, 3.0, 3.0))
    done = simulate(synthetic_patients(1, seed=0), out, settings, plans_per_case=1, cluster=HERE)
    (name,) = done.plans
    read = load_case(out / f"{name}.npz")
    assert read.plan is not None and violations(read.plan, load_machine("generic_6mv")) == []
    assert done.plans[name]["control_points"] >= 90
    # The dose lies in the target: the normalisation holds on the training grid, and falls off outside.
    dose, prescription = read.case.reference_dose, read.case.prescription
    assert dose is not None and prescription is not None
    (target, gy), *_ = prescription.target_gy.items()
    inside = read.case.structures[target].mask
    assert dose.gy[inside].mean() == pytest.approx(1.02 * gy, rel=0.03)
    assert dose.gy[read.case.body.mask & ~inside].mean() < 0.2 * gy
    achieved = {(c.structure, c.goal): c.achieved for c in read.constraints}
    assert achieved[target, read.constraints[0].goal] == pytest.approx(gy, rel=0.1)


def test_the_name_of_a_clinic_s_machine_is_not_kept(tmp_path: Path, optimiser: StandIn) -> None:
    optimiser()
    text = re.sub(r"(?m)^(name|title) = .*$", r'\1 = "Nordklinik_TB7"', machine_text("generic_6mv"))
    own = tmp_path / "Nordklinik.toml"
    own.write_text(text)
    folder = _data_set(tmp_path / "in", _training())
    _run(folder, tmp_path / "out", replace(QUICK, machine=str(own)), plans=1)
    read = load_case(tmp_path / "out" / "case_1_p01.npz")
    assert read.plan is not None and read.plan.machine == read.provenance["machine"]
    assert re.fullmatch("machine [0-9a-f]{8}", read.plan.machine)
    texts = [json.dumps(read.provenance), (tmp_path / "out" / "dataset.json").read_text()]
    assert not [t for t in texts if "nordklinik" in t.lower()]
