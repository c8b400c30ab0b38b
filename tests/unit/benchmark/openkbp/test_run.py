"""The OpenKBP benchmark on made-up patients and a network of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from openkbp_files import arrays, write_folder, write_npz
from tiny_model import tiny_model

from vmat_diffusion.benchmark.journal import Journal
from vmat_diffusion.benchmark.openkbp import run as benchmark
from vmat_diffusion.benchmark.openkbp.patient import PatientResult, PredictionTask, judge_patient
from vmat_diffusion.benchmark.openkbp.run import (
    BenchmarkSettings,
    _depends_on,
    benchmark_openkbp,
    sampling_of,
)
from vmat_diffusion.benchmark.settings import SteeringRequest
from vmat_diffusion.dataset.openkbp import read_patient
from vmat_diffusion.diffusion.model import save_model
from vmat_diffusion.diffusion.predict import Sampling
from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.openkbp import overall, score
from vmat_diffusion.files import sha256_of
from vmat_diffusion.workflow.predict import sampling_in
from vmat_diffusion.workflow.settings import PredictSettings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients with dose, one of them without CT, one without dose, one that cannot be read."""
    root = tmp_path_factory.mktemp("openkbp")
    whole, no_ct, no_dose = arrays(1), arrays(2), arrays(3)
    del no_ct["ct"], no_dose["dose_cGy"]
    write_npz(root / "validation" / "pt_201.npz", whole)
    write_folder(root / "validation" / "pt_202", no_ct)
    write_npz(root / "validation" / "pt_203.npz", no_dose)
    (root / "validation" / "pt_204.npz").write_bytes(b"no zip")
    write_npz(root / "train" / "pt_1.npz", whole)
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("weights") / "w.safetensors", tiny_model()))


def _csv_gy(file: Path) -> np.ndarray:
    index, gy = np.loadtxt(file, delimiter=",", skiprows=1, unpack=True)
    out = np.zeros(128**3)
    out[index.astype(int)] = gy
    return out.reshape(128, 128, 128)


def test_what_is_scored_by_default_is_what_predict_draws(data: Path, weights: str) -> None:
    scored, drawn = BenchmarkSettings(data=data), PredictSettings(goals="head_neck_70_63_56")
    for name in ("weights", "samples", "steps", "method", "seed", "device"):
        assert getattr(scored, name) == getattr(drawn, name)
    assert sampling_of(scored) == sampling_in(drawn)
    # The spread of the weights is on what is scored, and not on what it is fitted to.
    assert sampling_of(scored).calibrated
    assert not sampling_of(BenchmarkSettings(data=data, fit_spread=(201,))).calibrated


def test_scores_are_those_of_the_files_that_were_written(data: Path, weights: str, tmp_path: Path) -> None:
    settings = BenchmarkSettings(data=data, weights=weights, samples=0)
    done = benchmark_openkbp(settings, csv_out=tmp_path / "csv", out=tmp_path / "found.json")
    assert [p.scores.id for p in done.patients] == ["pt_201", "pt_202", "pt_203"]
    assert [(r.case, "readable" in r.reason) for r in done.left_out] == [("pt_204", True)]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["scored"] == 2 and found["scores_with_ct"]["regression"]["dose"]["patients"] == 1
    again = []
    for name in ("pt_201.npz", "pt_202"):
        patient = read_patient(data / "validation" / name)
        gy = _csv_gy(tmp_path / "csv" / f"{patient.id}.csv")
        assert not gy[~patient.possible_dose].any()
        again.append(score(gy, patient.dose_gy, patient.possible_dose, patient.structures, patient.voxel_cc))
    expected = overall(again)
    scores = found["scores"]["regression"]
    assert (scores["dose"]["value"], scores["dvh"]["value"]) == pytest.approx(expected, rel=1e-9)
    assert scores["dose"]["low"] <= expected[0] <= scores["dose"]["high"]
    assert 0 <= scores["gamma"]["value"] <= 100
    assert (tmp_path / "csv" / "pt_203.csv").is_file()
    assert found["structures"]["regression"]["PTV_70"]["D95"]["patients"] == 2


def test_a_run_goes_on_where_it_was_stopped(
    data: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged = []

    def stops_at_the_second(path: Path, task: PredictionTask, asked: object):  # type: ignore[no-untyped-def]
        judged.append(path.stem)
        if len(judged) == 2:
            raise KeyboardInterrupt
        return judge_patient(path, task)

    monkeypatch.setattr(benchmark, "judge_patient", stops_at_the_second)
    settings = BenchmarkSettings(data=data, weights=weights, samples=0, gamma=False, patients=(201, 202, 203))
    out = tmp_path / "found.json"
    with pytest.raises(KeyboardInterrupt):
        benchmark_openkbp(settings, out=out)
    journal = tmp_path / "found.patients.jsonl"
    with journal.open("a") as stream:
        stream.write('{"key": "cut o')
    resumed = benchmark_openkbp(settings, out=out)
    assert judged == ["pt_201", "pt_202", "pt_202", "pt_203"]
    fresh = benchmark_openkbp(settings)
    assert [p.scores for p in resumed.patients] == [p.scores for p in fresh.patients]
    judged.clear()
    benchmark_openkbp(settings, out=out)
    assert judged == []


def test_results_of_other_settings_are_not_mixed_in(data: Path, weights: str, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    settings = BenchmarkSettings(data=data, weights=weights, samples=0, gamma=False, patients=(203,))
    benchmark_openkbp(settings, out=out)
    other = BenchmarkSettings(data=data, weights=weights, samples=0, gamma=False, patients=(203,), seed=1)
    with pytest.raises(InputError, match="holds results of another seed; pass --overwrite"):
        benchmark_openkbp(other, out=out)
    benchmark_openkbp(other, out=out, overwrite=True)


def test_a_file_that_is_no_result_of_this_run_is_not_replaced(
    data: Path, weights: str, tmp_path: Path
) -> None:
    settings = BenchmarkSettings(data=data, weights=weights, samples=0, gamma=False, patients=(203,))
    out = tmp_path / "mine.json"
    out.write_text("mine")
    with pytest.raises(InputError, match=r"--out mine\.json is there, but no results by patient"):
        benchmark_openkbp(settings, out=out)
    assert out.read_text() == "mine" and list(tmp_path.iterdir()) == [out]
    with pytest.raises(InputError, match="is a folder; name a file in it"):
        benchmark_openkbp(settings, out=tmp_path)
    with pytest.raises(InputError, match="is no folder and none can be made there"):
        benchmark_openkbp(settings, csv_out=out / "csv")
    benchmark_openkbp(settings, out=out, overwrite=True)
    assert json.loads(out.read_text())["patients"] == 1


def test_doses_in_the_folder_are_those_of_the_results(data: Path, weights: str, tmp_path: Path) -> None:
    settings = BenchmarkSettings(data=data, weights=weights, samples=0, gamma=False, patients=(203,))
    folder, out = tmp_path / "csv", tmp_path / "found.json"
    done = benchmark_openkbp(settings, csv_out=folder, out=out)
    file = folder / "pt_203.csv"
    written = file.read_bytes()
    assert done.patients[0].csv_sha256 == sha256_of(file) and list(folder.iterdir()) == [file]
    file.write_text(",data\n0,1.000\n")  # by another program
    benchmark_openkbp(settings, csv_out=folder, out=out)
    assert file.read_bytes() == written
    other = tmp_path / "other.json"
    with pytest.raises(InputError, match=r"holds 1 doses that are not of this run, such as pt_203\.csv"):
        benchmark_openkbp(settings, csv_out=folder, out=other)
    assert not other.exists()
    (folder / "pt_300.csv").write_text(",data\n")
    benchmark_openkbp(settings, csv_out=folder, out=other, overwrite=True)
    assert list(folder.iterdir()) == [file]


def test_a_stop_between_dose_and_result_leaves_no_dose_that_is_not_kept(
    data: Path, weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    settings = BenchmarkSettings(data=data, weights=weights, samples=0, gamma=False, patients=(203,))
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "keep", stopped)
        with pytest.raises(KeyboardInterrupt):
            benchmark_openkbp(settings, csv_out=tmp_path)
    assert not (tmp_path / "pt_203.csv").exists()
    benchmark_openkbp(settings, csv_out=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"pt_203.csv", "patients.jsonl"}


def test_a_journal_without_results_binds_to_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"version": "0", "weights": "w", "seed": 1}\n{"key": "cut o')
    assert len(Journal.opened(path, {"weights": "w", "seed": 2}, PatientResult, overwrite=False)) == 0
    assert not path.exists()
    path.write_text('{"colour": "red"}\n')  # something else
    with pytest.raises(InputError, match="is no file of benchmark results"):
        Journal.opened(path, {"weights": "w"}, PatientResult, overwrite=False)
    assert path.exists()


def test_samples_of_weights_without_diffusion_are_refused_first(data: Path, tmp_path: Path) -> None:
    plain = str(save_model(tmp_path / "w.safetensors", tiny_model(residual=False)))
    with pytest.raises(InputError, match="2 samples are asked of weights without diffusion"):
        benchmark_openkbp(BenchmarkSettings(data=data, weights=plain, samples=2), csv_out=tmp_path / "csv")
    assert not (tmp_path / "csv").exists()


def test_what_the_trees_learnt_from_is_part_of_the_settings(data: Path, tmp_path: Path) -> None:
    def head(**changed: object) -> dict:
        return _depends_on(BenchmarkSettings(data=data, **changed), {"sha256": "0"})  # type: ignore[arg-type]

    assert head(baseline="boosting") != head(baseline="boosting", train_data=tmp_path)
    assert head(baseline="boosting") == head(baseline="boosting", train_data=data)
    assert head() == head(train_data=tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"split": "test"}, "is of split test"),
        ({"patients": (201, 299)}, "pt_299 is not among these 4 patients"),
        ({"samples": 2, "fit_spread": (301,)}, "pt_301 is not among these 4"),
        ({"samples": 2, "patients": (201,), "fit_spread": (201,)}, "leave some to judge it on"),
        ({"patients": (204,)}, "none of 1 patients could be predicted; pt_204"),
        ({"device": "tpu"}, "device tpu is not known"),
        ({"weights": "absent"}, "weights absent do not exist"),
        ({"steer": (SteeringRequest("Cochlea", -5.0),)}, "knows no goals for Cochlea; known are Brainstem"),
        ({"samples": -1}, "samples -1 is outside 0 to 64"),
        ({"samples": 0, "fit_spread": (201,)}, "0 samples have no spread"),
    ],
)
def test_what_cannot_be_used_is_said(data: Path, weights: str, changed: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        benchmark_openkbp(BenchmarkSettings(**{"data": data, "weights": weights, "samples": 0, **changed}))


def test_samples_are_scored_beside_the_regression_and_their_spread_is_fitted(
    data: Path, weights: str, tmp_path: Path
) -> None:
    settings = BenchmarkSettings(
        data=data, weights=weights, gamma=False, patients=(201, 202), samples=3, steps=2, fit_spread=(201,)
    )
    done = benchmark_openkbp(settings, csv_out=tmp_path)
    found = json.loads(json.dumps(done.summary()))
    assert list(found["scores"]) == ["regression", "one sample", "mean of samples"]
    assert set(found["gain_over_regression"]) == {"one sample", "mean of samples"}
    assert found["calibration"]["fit"]["judged_on"] == ["pt_202"]
    assert set(found["calibration"]["fit"]) >= {"factor", "points_factor", "fitted_on"}
    assert found["calibration"]["coverage"]["90%"]["voxels"]["patients"] == 2
    patient = read_patient(data / "validation" / "pt_201.npz")
    written = score(
        _csv_gy(tmp_path / "pt_201.csv"),
        patient.dose_gy,
        patient.possible_dose,
        patient.structures,
        patient.voxel_cc,
    )
    assert written.dose == pytest.approx(done.scored[0].ways["mean of samples"].dose, rel=1e-9)
    again = benchmark_openkbp(settings, csv_out=tmp_path)
    assert again.calibration() == done.calibration()


def test_an_organ_is_asked_for_less_in_every_way(data: Path, weights: str) -> None:
    settings = BenchmarkSettings(
        data=data,
        weights=weights,
        samples=0,
        gamma=False,
        patients=(201, 203),
        steer=(SteeringRequest("Parotid_L", -5.0), SteeringRequest("Larynx", -69.0)),
        steer_cases=1,
    )
    done = benchmark_openkbp(settings)
    # Nothing can be 69 Gy less; one patient is enough.
    assert [(p.scores.id, len(p.steered)) for p in done.patients] == [("pt_201", 2), ("pt_203", 0)]
    rows = json.loads(json.dumps(done.summary()))["steering"]
    assert [(r["organ"], r["way"]) for r in rows] == [
        ("Parotid_L", "told"),
        ("Parotid_L", "told, guidance 3"),
    ]
    assert set(rows[0]["d95_gy"]) == {"PTV_70", "PTV_56"}
    told, guided = (r["achieved_gy"]["value"] for r in rows)
    # Guidance of 3 takes the linear part of the answer three times as far.
    assert told != 0 and guided / told == pytest.approx(3, rel=0.3)


def test_a_pull_takes_the_organ_to_the_wanted_mean_and_leaves_others(data: Path) -> None:
    task = PredictionTask(tiny_model(), Sampling(samples=2, steps=2), gamma=False)
    done = judge_patient(data / "validation" / "pt_203.npz", task, [SteeringRequest("Larynx", -5.0)])
    pulled = next(s for s in done.steered if s.way == "pulled")
    # The last step of the sampler ends with the pull; samples that were below are left there.
    assert pulled.mean_gy["Larynx"] == pytest.approx(-5.0, abs=0.7)
    assert abs(pulled.mean_gy["Parotid_L"]) < 0.5


def test_trees_on_voxels_are_scored_beside_and_not_written(weights: str, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs the extra [train]")
    parts = arrays()
    bits = parts["structures"]
    level = np.select([(bits >> k & 1) > 0 for k in (9, 7, 15)], [7000, 5600, 2000])
    # Doses that are all the same have no median to either side of which there are others.
    noise = np.random.default_rng(0).integers(-50, 51, level.shape)
    parts["dose_cGy"] = np.where(level, level + noise, 0).astype(np.uint16)
    for name in ("train/pt_1", "validation/pt_201"):
        write_npz(tmp_path / "data" / f"{name}.npz", parts)
    settings = BenchmarkSettings(
        data=tmp_path / "data", weights=weights, samples=0, gamma=False, baseline="boosting"
    )
    done = benchmark_openkbp(settings, csv_out=tmp_path / "csv")
    assert done.ways == ["boosting", "regression"]
    ways = done.scored[0].ways
    # A voxel's target level tells its dose, and random weights do not know it.
    assert ways["boosting"].dose < 1 < 5 < ways["regression"].dose
    patient = read_patient(tmp_path / "data" / "validation" / "pt_201.npz")
    error = (
        np.abs(_csv_gy(tmp_path / "csv" / "pt_201.csv") - patient.dose_gy).sum() / patient.possible_dose.sum()
    )
    assert ways["regression"].dose == pytest.approx(error, rel=1e-9)


def test_trees_need_cases_to_learn_from(data: Path, weights: str, tmp_path: Path) -> None:
    write_npz(tmp_path / "test" / "pt_241.npz", arrays())
    settings = BenchmarkSettings(
        data=tmp_path, split="test", weights=weights, samples=0, gamma=False, baseline="boosting"
    )
    with pytest.raises(InputError, match=r"^none of the 1 patients .* is of split train"):
        benchmark_openkbp(settings)
