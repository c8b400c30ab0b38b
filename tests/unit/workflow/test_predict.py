"""The command that predicts: what is told to the model, what is written, what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import described, tiny_model
from training_cases import small_training

from vmat_diffusion import cli
from vmat_diffusion.case import Case, Dose
from vmat_diffusion.dataset.cases import TrainingCase, save_case
from vmat_diffusion.dicom import read_case, read_dose
from vmat_diffusion.diffusion.case_prediction import CasePrediction, exceeded_limits
from vmat_diffusion.diffusion.encode import Encoding
from vmat_diffusion.diffusion.grid import near_targets
from vmat_diffusion.diffusion.model import Calibration, save_model
from vmat_diffusion.errors import CaseError, GoalError, InputError, PlanError
from vmat_diffusion.evaluate.goals import fit_to_case, load_goals
from vmat_diffusion.geometry import Grid
from vmat_diffusion.workflow.predict import PredictionInput, predict_case, predict_input, read_input
from vmat_diffusion.workflow.settings import PredictSettings

SHEET = "head_neck_70_63_56"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("weights") / "tiny.safetensors", tiny_model())


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_case(tmp_path_factory.mktemp("npz") / "case_0001.npz", small_training())


def settings(weights: Path | str, **changes: object):
    first = {"goals": SHEET, "weights": str(weights), "samples": 2, "steps": 2, "device": "cpu"}
    return PredictSettings(**{**first, **changes})


def test_only_limits_that_are_exceeded_are_told() -> None:
    case = small_training().case
    sheet = fit_to_case(load_goals(SHEET), case)
    organs = ("Parotid_L", "Parotid_R", "Larynx")
    gy = np.full(case.grid.shape, 20.0, np.float32)
    gy[case.structures["Parotid_L"].mask] = 29.0
    goals = exceeded_limits(sheet, case, Dose(case.grid, gy), organs)
    assert (goals.mean_gy, goals.hot_gy) == ({"Parotid_L": 26.0}, {})
    assert not exceeded_limits(sheet, case, Dose(case.grid, gy), ("Parotid_R",)).mean_gy
    gy[case.structures["Parotid_R"].mask] = 50.0
    far = exceeded_limits(sheet, case, Dose(case.grid, gy), organs).mean_gy["Parotid_R"]
    assert far == pytest.approx(44.0)  # 26 Gy are out of reach: 6 Gy less are asked for


def test_limits_in_percent_are_told_as_gy() -> None:
    case = small_training().case
    sheet = fit_to_case(load_goals(SHEET), case)
    highest = max(sheet.prescription.target_gy.values())
    (mean,) = (g for g in sheet.goals if g.structure == "Parotid_L" and g.metric.kind == "mean")
    percent = replace(
        mean,
        metric=replace(mean.metric, result_unit="%"),
        unit="%",
        limit=100.0 * mean.limit / highest,
        variation=None,
    )
    gy = np.full(case.grid.shape, 29.0, np.float32)
    told = exceeded_limits(replace(sheet, goals=(percent,)), case, Dose(case.grid, gy), ("Parotid_L",))
    assert told.mean_gy == pytest.approx({"Parotid_L": mean.limit}) and not told.hot_gy


def test_a_training_case_gives_arrays_and_no_dicom(npz: Path, weights: Path, tmp_path: Path) -> None:
    run = predict_case(npz, tmp_path / "out", settings(weights))
    names = {f.name for f in (tmp_path / "out").iterdir()}
    assert names == {"prediction.npz", "prediction.json", "dvh.png"} == {f.name for f in run.files}
    with np.load(tmp_path / "out" / "prediction.npz") as file:
        arrays = dict(file)
    case = small_training().case
    gy = arrays["mean"] * float(arrays["dose_step_gy"])
    assert gy.max() > 10
    assert arrays["samples"].shape == (2, *gy.shape)
    assert run.prediction.chosen is None and arrays["chosen"] == -1
    np.testing.assert_allclose(arrays["samples"].mean(axis=0) / 100, gy, atol=0.0151)
    # The uncertainty is that of samples as the model learnt them; the samples stay nearer to the regression.
    spread = arrays["samples"].std(axis=0, ddof=1) / 100 / PredictSettings.temperature
    np.testing.assert_allclose(arrays["std"] / 100, spread, atol=0.0251)
    grid = Grid(gy.shape, tuple(map(float, arrays["spacing_mm"])), tuple(map(float, arrays["origin_mm"])))
    assert grid.spacing_mm == case.grid.spacing_mm
    assert not Dose(grid, gy.astype(np.float32)).on(case.grid)[~case.body.mask].any()


def test_a_dicom_case_gives_doses_linked_to_it(case_folder: Path, weights: Path, tmp_path: Path) -> None:
    asked = settings(weights, goals="tg119_cshape_easy")
    run = predict_case(case_folder, tmp_path / "out", asked)
    case = read_case(case_folder)
    for name, gy in (
        ("mean", run.prediction.mean.gy),
        ("std", run.prediction.mean.std_gy),
        ("sample_1", run.prediction.samples[1].gy),
    ):
        dose = read_dose(tmp_path / "out" / f"{name}.dcm")
        np.testing.assert_allclose(dose.gy, gy, atol=1e-4)
        assert dose.provenance["frame_of_reference_uid"] == case.source.frame_of_reference_uid
    assert not run.prediction.mean.on(case.grid)[~case.body.mask].any()
    record = json.loads((tmp_path / "out" / "prediction.json").read_text())
    assert record["settings"]["seed"] == 0 and record["model"]["card"]["name"] == "tiny"
    assert set(record["files"]) == {f.name for f in (tmp_path / "out").iterdir()}


def test_goals_pull_organs_that_the_model_does_not_know(weights: Path, tmp_path: Path) -> None:
    training = small_training()
    gland = replace(training.case.structures["Parotid_R"], name="Gland")
    structures = {**training.case.structures, "Gland": gland}
    npz = save_case(tmp_path / "c.npz", replace(training, case=replace(training.case, structures=structures)))
    sheet = tmp_path / "sheet.toml"
    sheet.write_text(
        'title = "One organ"\nsite = "head_neck"\nfractions = 35\nsource = "test"\n'
        "[prescription_gy]\nPTV_70 = 70.0\nPTV_56 = 56.0\n"
        '[normalization]\nPTV_70 = "D95% = 70 Gy"\n'
        '[[goals]]\nstructure = "Gland"\ngoal = "mean <= 5 Gy"\npriority = 2\nsource = "test"\n'
    )

    def mean_gy(pull: float) -> float:
        asked = settings(weights, goals=str(sheet), samples=1, pull=pull)
        dose = predict_input(read_input(npz, asked), tiny_model(), asked).samples[0]
        return float(dose.on(training.case.grid)[gland.mask].mean())

    assert mean_gy(1.0) < mean_gy(0.0) - 3


def test_a_training_case_is_predicted_on_voxels_that_the_model_was_trained_on(weights: Path) -> None:
    training = small_training()
    own = training.possible_dose.copy()
    own[:3] = False
    grid = replace(training.case.grid, spacing_mm=(4.0, 4.0, 2.0))
    case = replace(training.case, grid=grid, reference_dose=None)
    thin = replace(training, case=case, possible_dose=own)
    sheet = fit_to_case(load_goals(SHEET), thin.case)
    asked = settings(weights, samples=0)
    names = {"features": ["spacing_x_mm", "spacing_z_mm"], "low": [3.5, 2.0], "high": [4.5, 5.0]}
    statistics = {"mean": [4, 3], "precision": [[1, 0], [0, 1]], "limit": 9.0, "cases": 9}
    known = {**names, **statistics, "sites": ["head_neck"]}
    subject = PredictionInput(thin.case, sheet, thin)
    native = predict_input(subject, described(tiny_model(), known=known), asked)
    assert native.mean.grid.spacing_mm == thin.case.grid.spacing_mm
    assert native.mean.grid.shape[0] == 9 == np.count_nonzero(own.any(axis=(1, 2)))
    moved = predict_input(subject, described(tiny_model(), known={**known, "low": [3.5, 2.5]}), asked)
    assert moved.mean.grid.spacing_mm[2] == 4.0  # two slices in one of the model's 5 mm
    gy = moved.mean.on(thin.case.grid)
    assert gy[6:].max() > 10 and gy[:1].max() < 1  # no dose where its mask has none


def test_dicom_and_npz_with_more_empty_space_give_the_same_dose(case_folder: Path, tmp_path: Path) -> None:
    model = tiny_model(encoding=Encoding(organs=("Core",), voxel_mm=(5.0, 5.0, 6.0)))
    asked = settings("unused", goals="tg119_cshape_easy", samples=1)
    dicom = read_input(case_folder, asked)
    wide = _with_empty_space(dicom.case, 16)
    npz = read_input(save_case(tmp_path / "c.npz", TrainingCase(wide, near_targets(wide))), asked)
    assert npz.case.grid.shape != dicom.case.grid.shape
    one, other = (predict_input(subject, model, asked) for subject in (dicom, npz))
    for mine, theirs in ((one.regression, other.regression), (one.samples[0], other.samples[0])):
        gy = mine.on(dicom.case.grid)
        assert gy.max() > 10
        assert np.abs(gy - theirs.on(dicom.case.grid)).max() < 0.01


def _with_empty_space(case: Case, voxels: int) -> Case:
    """The case with so many voxels of air more on every side."""
    sides = [(voxels, voxels)] * 3
    grid = Grid(
        tuple(n + 2 * voxels for n in case.grid.shape),
        case.grid.spacing_mm,
        tuple(o - voxels * s for o, s in zip(case.grid.origin_mm, case.grid.spacing_mm, strict=True)),
    )
    structures = {n: replace(s, mask=np.pad(s.mask, sides)) for n, s in case.structures.items()}
    hu = np.pad(case.hu, sides, constant_values=-1000)
    return replace(case, grid=grid, hu=hu, structures=structures, reference_dose=None)


def test_one_sample_has_no_spread(case_folder: Path, weights: Path, tmp_path: Path) -> None:
    run = predict_case(case_folder, tmp_path / "o", settings(weights, goals="tg119_cshape_easy", samples=1))
    assert run.prediction.mean.std_gy is None
    assert {f.name for f in (tmp_path / "o").glob("*.dcm")} == {"mean.dcm", "sample_0.dcm"}
    with np.load(tmp_path / "o" / "prediction.npz") as file:
        assert "std" not in file and file["samples"].shape[0] == 1


def test_the_chosen_sample_is_the_best_by_the_sheet(npz: Path, weights: Path) -> None:
    asked = settings(weights, samples=4, pull=1.0)
    done = predict_input(read_input(npz, asked), tiny_model(), asked)
    assert done.chosen is not None  # half the prescription is pulled towards the target's goals
    assert done.scores[1 + done.chosen] == min(done.scores[1:]) < done.regression_score
    assert done.best is done.samples[done.chosen] is done.aims[0]
    assert done.aims[-1] is done.regression
    assert done.reason.startswith(f"Sample {done.chosen} ") and done.reason.endswith(".")
    none = predict_input(read_input(npz, asked), tiny_model(residual=False), settings(weights, samples=0))
    assert none.chosen is None and none.best is none.mean is none.regression
    assert none.aims == (none.regression,)
    assert "regression" in none.reason


def test_no_sample_is_chosen_where_the_regression_meets_the_goals_better(npz: Path, weights: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.residual.head[-1].bias.fill_(-8.0)  # every sample loses dose in the targets
        model.mean.head[-1].bias.fill_(0.95)
    asked = settings(weights, samples=3, temperature=2.0)
    done = predict_input(read_input(npz, asked), model, asked)
    assert done.regression_score < min(done.scores[1:])
    assert done.chosen is None and done.best is done.regression and done.aims == (done.regression,)
    assert done.reason.startswith("The regression is taken, as no sample meets the goals better: ")


def test_temperature_moves_samples_and_the_fitted_factor_the_uncertainty_alone(
    npz: Path, weights: Path
) -> None:
    read = read_input(npz, settings(weights))

    def drawn(spread: float | None, temperature: float) -> CasePrediction:
        fitted = None if spread is None else Calibration("dpm2", 2, spread=spread)
        asked = settings(weights, samples=2, temperature=temperature)
        return predict_input(read, described(tiny_model(), calibration=fitted), asked)

    cold, warm, wide = drawn(None, 0.1), drawn(None, 0.2), drawn(3.0, 0.1)
    base = cold.regression.gy
    # Where no dose was clipped at 0, samples move in proportion, and what is expected of the truth stays.
    inside = np.min([d.gy for p in (cold, warm) for d in (*p.samples, p.regression)], axis=0) > 0.5
    assert np.count_nonzero(inside) > 100
    for a, b, c in zip(cold.samples, warm.samples, wide.samples, strict=True):
        np.testing.assert_allclose((b.gy - base)[inside], 2 * (a.gy - base)[inside], atol=1e-3)
        assert np.array_equal(a.gy, c.gy)
    assert cold.mean.std_gy is not None and warm.mean.std_gy is not None and wide.mean.std_gy is not None
    np.testing.assert_allclose(cold.mean.std_gy[inside], warm.mean.std_gy[inside], atol=2e-3)
    np.testing.assert_allclose(wide.mean.std_gy, 3 * cold.mean.std_gy, rtol=1e-4)


def test_the_spread_of_samples_is_refused_for_other_steps(npz: Path, tmp_path: Path) -> None:
    model = described(tiny_model(), calibration=Calibration("dpm2", 8, spread=1.5))
    file = save_model(tmp_path / "w.safetensors", model)
    with pytest.raises(InputError, match="holds for 8 steps of dpm2, and 2 steps of dpm2 are asked for"):
        predict_case(npz, tmp_path / "out", settings(file))
    assert predict_case(npz, tmp_path / "out", settings(file, samples=0)).prediction.chosen is None


def test_what_is_unknown_of_the_spread_is_said(npz: Path, weights: Path) -> None:
    fitted = Calibration("dpm2", 2, spread=1.0)

    def said(calibration: Calibration | None) -> str:
        asked = settings(weights, samples=1)
        model = described(tiny_model(), calibration=calibration)
        return " ".join(predict_input(read_input(npz, asked), model, asked).warnings)

    assert "never compared with patients" in said(None)
    assert "was fitted on the weights that these began with" in said(replace(fitted, inherited=True))
    assert "spread" not in said(fitted)


def test_same_seed_same_doses_and_the_pull_counts(npz: Path, weights: Path) -> None:
    subject = read_input(npz, settings(weights))

    def drawn(**changes: object) -> Dose:
        return predict_input(subject, tiny_model(), settings(weights, samples=1, **changes)).samples[0]

    first = drawn()
    np.testing.assert_array_equal(first.gy, drawn().gy)
    assert np.abs(first.gy - drawn(seed=1).gy).max() > 0.01
    case = subject.case
    level, pulled = (d.on(case.grid)[case.structures["PTV_70"].mask].mean() for d in (first, drawn(pull=1.0)))
    assert pulled > level + 3  # half the prescription is pulled towards the target's goals


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"weights": "nowhere.safetensors"}, InputError, "do not exist"),
        ({"goals": "no_such_sheet"}, GoalError, "not known"),
        ({"goals": "prostate_78"}, GoalError, "PTV_78"),
    ],
)
def test_unfit_inputs_leave_nothing(
    npz: Path, weights: Path, tmp_path: Path, changes: dict, error: type, match: str
) -> None:
    with pytest.raises(error, match=match):
        predict_case(npz, tmp_path / "out", settings(**{"weights": weights, **changes}))
    assert not list(tmp_path.iterdir())


def test_samples_need_weights_with_diffusion(tmp_path: Path) -> None:
    mean_only = save_model(tmp_path / "mean.safetensors", tiny_model(residual=False))
    # Before the case is read, which is not even there.
    with pytest.raises(InputError, match="without diffusion; give --samples 0 or"):
        predict_case(tmp_path / "none.npz", tmp_path / "out", settings(mean_only))
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_unasked(npz: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict_case(npz, out, settings(weights))
    (out / "notes.txt").write_text("mine")
    with pytest.raises(PlanError, match="not empty"):
        predict_case(npz, out, settings(weights))
    (out / "sample_7.dcm").write_text("of somebody else")
    with pytest.raises(PlanError, match=r"holds sample_7.dcm, which no earlier run of ours lists"):
        predict_case(npz, out, settings(weights, samples=0), overwrite=True)
    (out / "sample_7.dcm").unlink()
    predict_case(npz, out, settings(weights, samples=0), overwrite=True)
    assert {f.name for f in out.iterdir()} == {"prediction.npz", "prediction.json", "dvh.png", "notes.txt"}


def test_a_missing_case_is_refused(weights: Path, tmp_path: Path) -> None:
    for name in ("case.npz", "folder"):
        with pytest.raises(CaseError, match="does not exist"):
            predict_case(tmp_path / name, tmp_path / "out", settings(weights))


@pytest.mark.parametrize("values", [{"samples": -1}, {"steps": 0}, {"pull": 2.0}, {"device": "toaster"}])
def test_a_wrong_setting_is_named(values: dict) -> None:
    with pytest.raises(InputError, match=next(iter(values))):
        PredictSettings(**{"goals": "x", **values})


def test_the_command_prints_one_object(
    npz: Path,
    weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*more: str) -> str:
        options = [
            "--goals",
            SHEET,
            "--weights",
            weights,
            "--samples",
            2,
            "--steps",
            1,
            "--out",
            tmp_path / "o",
        ]
        monkeypatch.setattr(sys, "argv", ["vmat-diffusion", "predict", str(npz), *map(str, options), *more])
        try:
            cli.main()
        except SystemExit as ended:
            assert not ended.code
        return capsys.readouterr().out

    summary = json.loads(run("--json"))
    assert set(summary) == {
        *("chosen", "reason", "unusual", "remarks", "told", "goals", "groups", "sheet"),
        *("regression", "samples", "seconds", "files"),
    }
    assert len(summary["samples"]) == 2
    text = run("--overwrite")
    assert summary["reason"] in text and "The model is conditioned on" in text
