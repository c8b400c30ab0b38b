"""What exported weights keep: their record, their domain, their calibration."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from training_runs import mean_stage, residual_stage, tiny_settings

from vmat_diffusion.diffusion.model import Calibration, DoseModel, load_model, save_model
from vmat_diffusion.errors import InputError
from vmat_diffusion.training.checkpoint import CHECKPOINT, save_checkpoint
from vmat_diffusion.training.settings import TrainingStage
from vmat_diffusion.training.weights import description, initial_network, start_from
from vmat_diffusion.workflow.export import KNOWN, export_weights, origin_of

FITTED = Calibration("dpm2", 8, spread=1.7, points=2.2, patients=("pt_201", "pt_202"))


def figures(mean: float, cases: int, low: float, high: float) -> dict:
    return {
        "cases": cases,
        "sites": ["head_neck"],
        "positions": ["HFS"],
        "features": ["top_gy", "levels"],
        "mean": [mean, 3.0],
        "precision": [[0.25, 0.0], [0.0, 1.0]],
        "low": [low, 1.0],
        "high": [high, 3.0],
        "limit": 4.0,
    }


def model(*, residual: bool = True) -> DoseModel:
    settings = tiny_settings(mean_stage())
    described = replace(
        description(settings),
        card={"name": "first"},
        known=figures(70.0, 196, 60.0, 72.0),
        calibration=FITTED,
    )
    nets = [initial_network(replace(settings, seed=k)) for k in (1, 2)]
    return DoseModel(described, nets[0], nets[1] if residual else None)


def begun(folder: Path, begin: DoseModel, *stages: TrainingStage) -> Path:
    """The folder of a training that has just begun with a model."""
    folder.mkdir()
    start = start_from(begin, tiny_settings(*stages))
    save_checkpoint(folder / CHECKPOINT, replace(start, origin=origin_of(begin)))
    return folder


def test_record_domain_and_calibration_of_the_first_weights_are_kept(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", model(), mean_stage())
    (run / KNOWN).write_text(json.dumps(figures(50.0, 4, 48.0, 52.0)))
    kept = load_model(export_weights(run))
    described = kept.description
    assert described.card["name"] == "run" and described.card["begun_from"] == {"name": "first"}
    assert described.calibration == replace(FITTED, inherited=True)
    assert described.known["cases"] == 200
    assert (described.known["low"], described.known["high"]) == ([48.0, 1.0], [72.0, 3.0])
    assert described.known["mean"][0] == pytest.approx(69.6)
    # The same residual goes on beside a mean that was trained further.
    assert kept.residual is not None
    assert torch.equal(kept.residual.stem.weight, model().residual.stem.weight.half().float())
    again = begun(tmp_path / "again", kept, mean_stage(), residual_stage())
    assert load_model(export_weights(again)).description.card["begun_from"]["begun_from"]["name"] == "first"


def test_weights_without_diffusion_have_no_spread(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", model(residual=False), mean_stage())
    assert load_model(export_weights(run)).description.calibration is None


def test_a_fitted_spread_is_taken_from_its_file_and_refused_for_other_weights(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", model(), mean_stage())
    fit = {"factor": 1.25, "points_factor": None, "fitted_on": ["pt_203"]}
    record = {
        "weights": {"networks_sha256": load_model(export_weights(run)).networks_sha256()},
        "settings": {"method": "ddim", "steps": 4},
        "calibration": {"fit": fit},
    }
    file = tmp_path / "fit.json"
    file.write_text(json.dumps(record))
    found = load_model(export_weights(run, tmp_path / "w.safetensors", file)).description.calibration
    assert found == Calibration("ddim", 4, spread=1.25, patients=("pt_203",))
    record["weights"]["networks_sha256"] = "0" * 64
    file.write_text(json.dumps(record))
    with pytest.raises(InputError, match="was fitted on other weights"):
        export_weights(run, None, file)
    file.write_text(json.dumps({**record, "calibration": None}))
    with pytest.raises(InputError, match="holds no fitted spread"):
        export_weights(run, None, file)


def test_a_fitted_spread_is_added_to_a_file_of_weights(tmp_path: Path) -> None:
    bare = replace(model(), description=replace(model().description, calibration=None))
    weights, out = save_model(tmp_path / "w.safetensors", bare), tmp_path / "out.safetensors"
    record = {
        "weights": {"networks_sha256": bare.networks_sha256()},
        "settings": {"method": "dpm2", "steps": 8},
        "calibration": {"fit": {"factor": 2.5, "points_factor": 3.0, "fitted_on": ["pt_201"]}},
    }
    file = tmp_path / "fit.json"
    file.write_text(json.dumps(record))
    found = load_model(export_weights(weights, out, file))
    assert found.description.calibration == Calibration(
        "dpm2", 8, spread=2.5, points=3.0, patients=("pt_201",)
    )
    assert found.networks_sha256() == bare.networks_sha256()
    with pytest.raises(InputError, match="give --calibration FIT and --out FILE"):
        export_weights(weights, out)


def test_a_spread_holds_for_its_sampler_alone(tmp_path: Path) -> None:
    held = load_model(save_model(tmp_path / "w.safetensors", model()))
    assert asdict(held.description.calibration) == asdict(FITTED)
    assert held.spread("dpm2", 8) == 1.7
    for other in (("ddim", 8), ("dpm2", 4)):
        with pytest.raises(InputError, match="holds for 8 steps of dpm2"):
            held.spread(*other)
    free = replace(held, description=replace(held.description, calibration=None))
    assert free.spread("ddim", 4) == 1.0
    # What the description says changes no weight.
    assert free.networks_sha256() == held.networks_sha256()
