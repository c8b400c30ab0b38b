"""The train, fine-tune and export-weights commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training_runs import curve, small_dataset

from vmat_diffusion import cli
from vmat_diffusion.diffusion.model import load_model
from vmat_diffusion.training.checkpoint import CHECKPOINT, load_checkpoint, read_metrics
from vmat_diffusion.training.stage import StageModule

RECIPE = """
network = { widths = [8, 8, 16, 16], blocks = 1, heads = 2, condition = 16 }
precision = "32-true"
seed = 3
log_every = 4
validate_every = 8
gamma_every = 0

[[stages]]
samples = 8
learning_rate = 1e-3
warm_up = 2
losses = { l1 = 1.0, dvh = 0.1 }
"""


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("cases"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["vmat-diffusion", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "vmat_diffusion", *map(str, arguments)]


def test_training_writes_weights_and_goes_on_where_it_was(
    tmp_path: Path,
    data_set: Path,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, cache = tmp_path / "run", tmp_path / "cache"
    options = ("--config", recipe, "--data", data_set, "--out", out, "--cache", cache, "--loaders", 0)
    assert _run(monkeypatch, "train", *options, "--resume", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["finished"] and told["samples"] == 8 and told["validation"]["dose_score_gy"] > 0
    model = load_model(out / "weights.safetensors")
    assert model.description.card["samples"] == 8
    assert model.description.known["sites"] == ["head_neck"]  # what `predict` finds cases unusual by
    ema = load_checkpoint(out / CHECKPOINT).ema
    assert torch.equal(model.mean.state_dict()["stem.weight"], ema["stem.weight"].half().float())
    assert list((out / "tensorboard").glob("events*"))
    # A second stage is taken up, the first is not trained again.
    recipe.write_text(RECIPE + '[[stages]]\nrole = "residual"\nsamples = 4\nlosses = { residual = 1.0 }\n')
    assert _run(monkeypatch, "train", *options, "--resume") == 0
    assert "Trained: stage 2 of 2, 4 of 4 samples" in capsys.readouterr().out
    assert [r["stage"] for r in read_metrics(out)] == [0, 0, 0, 1, 1]
    assert load_model(out / "weights.safetensors").residual is not None


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no SIGUSR1 on this system")
def test_notice_before_the_first_step_puts_the_job_into_the_queue_again(
    tmp_path: Path,
    data_set: Path,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from vmat_diffusion.training import encoded

    script = tmp_path / "scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    whole = encoded.encode_cases

    def noticed(*arguments: object, **options: object) -> object:
        signal.raise_signal(signal.SIGUSR1)
        return whole(*arguments, **options)

    monkeypatch.setattr(encoded, "encode_cases", noticed)
    out = tmp_path / "run"
    options = ("--config", recipe, "--data", data_set, "--out", out, "--loaders", 0, "--resume", "--json")
    assert _run(monkeypatch, "train", *options) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["requeued"] and told["samples"] == 0 and not told["finished"]
    assert (tmp_path / "told").read_text() == "requeue 17\n"
    monkeypatch.undo()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert _run(monkeypatch, "train", *options) == 0
    assert json.loads(capsys.readouterr().out)["finished"]


def test_another_training_is_not_gone_on_with(
    tmp_path: Path,
    data_set: Path,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("--config", recipe, "--data", data_set, "--out", tmp_path / "run", "--loaders", 0)
    assert _run(monkeypatch, "train", *options) == 0
    assert (tmp_path / "run" / "encoded").is_dir()
    assert _run(monkeypatch, "train", *options) == 2
    assert "holds a training already; pass --resume" in capsys.readouterr().err
    weights, cases = tmp_path / "run" / "weights.safetensors", tmp_path / "run" / "cases.sha256"
    written = weights.stat().st_mtime_ns
    assert _run(monkeypatch, "train", *options, "--resume") == 0
    assert weights.stat().st_mtime_ns == written  # nothing was left to train
    begun = cases.read_text()
    cases.write_text("of other cases")
    assert _run(monkeypatch, "train", *options, "--resume") == 2
    assert "was begun on other training or validation cases" in capsys.readouterr().err
    cases.write_text(begun)
    recipe.write_text(RECIPE.replace("seed = 3", "seed = 4"))
    assert _run(monkeypatch, "train", *options, "--resume") == 2
    assert "was begun with another setting seed" in capsys.readouterr().err


def test_fine_tuning_changes_the_weights_it_begins_with(
    tmp_path: Path,
    data_set: Path,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, tuned, cache = tmp_path / "first", tmp_path / "tuned", tmp_path / "cache"
    where = ("--data", data_set, "--cache", cache, "--loaders", 0)
    assert _run(monkeypatch, "train", "--config", recipe, *where, "--out", first) == 0
    recipe.write_text(RECIPE.replace("learning_rate = 1e-3", "learning_rate = 1e-6"))
    begin = ("fine-tune", "--weights", first / "weights.safetensors", *where, "--out", tuned)
    assert _run(monkeypatch, *begin, "--config", recipe, "--site", "lung") == 2
    assert "no case of the site lung" in capsys.readouterr().err
    assert _run(monkeypatch, *begin, "--config", recipe, "--site", "head_neck") == 0
    before, after = (load_model(run / "weights.safetensors").mean.state_dict() for run in (first, tuned))
    # Four steps of 1e-6 lead nowhere else than to where they began.
    assert all(torch.allclose(before[k], after[k], atol=1e-4) for k in before)
    card = load_model(tuned / "weights.safetensors").description.card
    assert card["begun_from"]["name"] == "first"
    moved = load_checkpoint(tuned / CHECKPOINT).net
    assert any(not torch.equal(before[k], moved[k]) for k in before)


def test_weights_are_exported_from_a_checkpoint(
    tmp_path: Path,
    data_set: Path,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    options = ("--config", recipe, "--data", data_set, "--out", out, "--loaders", 0)
    assert _run(monkeypatch, "train", *options) == 0
    assert _run(monkeypatch, "export-weights", out, "--out", tmp_path / "w.safetensors") == 0
    exported, whole = (load_model(f) for f in (tmp_path / "w.safetensors", out / "weights.safetensors"))
    assert torch.equal(exported.mean.stem.weight, whole.mean.stem.weight)
    assert exported.description.known["cases"] == whole.description.known["cases"] > 1
    assert exported.description.calibration is None
    assert _run(monkeypatch, "export-weights", tmp_path) == 2
    assert "holds no last.ckpt" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["lightning", "tensorboard"])
def test_without_the_extra_there_is_a_sentence(
    missing: str,
    tmp_path: Path,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert _run(monkeypatch, "train", "--config", recipe, "--data", tmp_path, "--out", tmp_path) == 2
    assert f"training needs {missing}, which is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--devices", 0), "--devices 0 is not at least 1"),
        (("--loaders", -1), "--loaders -1 is not at least 0"),
        (("--devices", 3), "3 devices cannot share the 2 samples"),
        (("--config", "absent.toml"), "absent.toml cannot be read"),
        (("--weights", "absent.safetensors"), "weights absent.safetensors do not exist"),
    ],
)
def test_wrong_options_are_refused(
    options: tuple,
    sentence: str,
    tmp_path: Path,
    data_set: Path,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ("--config", recipe, "--data", data_set, "--out", tmp_path / "run", *options)
    assert _run(monkeypatch, "train", *given) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_are_as_good_as_one(tmp_path: Path, data_set: Path, recipe: Path) -> None:
    text = RECIPE + '[[stages]]\nrole = "residual"\nsamples = 4\nlosses = { residual = 1.0, l1 = 0.1 }\n'
    recipe.write_text(text)
    one, two = tmp_path / "one", tmp_path / "two"
    options = ("--config", recipe, "--data", data_set, "--cache", tmp_path / "cache", "--loaders", 0)
    subprocess.run(_command("train", *options, "--out", one), check=True, timeout=300)
    done = subprocess.run(
        _command("train", *options, "--out", two, "--devices", 2, "--json"),
        check=True,
        timeout=300,
        stdout=subprocess.PIPE,
    )
    assert json.loads(done.stdout)["finished"]  # one object: the second process is silent
    a, b = (load_checkpoint(run / CHECKPOINT) for run in (one, two))
    for k in a.net:
        # Gradients are summed in another order.
        assert torch.allclose(a.net[k], b.net[k], atol=1e-5), k
    mine, theirs = (_figures(run) for run in (one, two))
    assert len(mine) == len(theirs) == 5
    for x, y in zip(mine, theirs, strict=True):
        assert x == pytest.approx(y, rel=1e-4)


def _figures(run: Path) -> list[dict]:
    """The numbers of each record that do not depend on the clock."""
    records = [json.loads(line) for line in curve(read_metrics(run))]
    flat = [{**r, **r.pop("validation", {})} for r in records]
    return [{k: v for k, v in r.items() if not isinstance(v, (str, dict))} for r in flat]


@pytest.mark.slow
def test_sigterm_leaves_a_checkpoint_that_goes_on(tmp_path: Path, data_set: Path, recipe: Path) -> None:
    recipe.write_text(RECIPE.replace("samples = 8", "samples = 100000"))
    out = tmp_path / "run"
    options = ("--config", recipe, "--data", data_set, "--out", out, "--loaders", 1)
    process = subprocess.Popen(
        _command("train", *options), stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 200
    while not read_metrics(out) and time.monotonic() < until:
        time.sleep(0.5)
    os.killpg(process.pid, signal.SIGTERM)  # as a queue does it: to the loading process as well
    shown, _ = process.communicate(timeout=100)
    assert process.returncode == 143
    left = load_checkpoint(out / CHECKPOINT)
    assert f"Stopped at stage 1 of 1, {left.samples} of 100000 samples" in shown
    assert left.samples >= 4


def test_the_fall_of_a_trapezoid_may_be_begun_by_hand(
    tmp_path: Path,
    data_set: Path,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A training whose end is moved while its rate is level is that which was begun with this end."""

    def run(name: str, samples: int, decay_from: float, stop_at: int | None = None) -> int:
        text = RECIPE.replace("samples = 8", f"samples = {samples}\ndecay_from = {decay_from}")
        recipe.write_text(text)
        after = StageModule.after_step
        if stop_at is not None:

            def noticed(module: StageModule) -> None:
                after(module)
                if module.samples == stop_at:
                    signal.raise_signal(signal.SIGTERM)

            monkeypatch.setattr(StageModule, "after_step", noticed)
        options = ("--config", recipe, "--data", data_set, "--out", tmp_path / name, "--loaders", 0)
        code = _run(monkeypatch, "train", *options, "--resume")
        monkeypatch.setattr(StageModule, "after_step", after)
        return code

    assert run("moved", 40, 0.9, stop_at=4) == 143
    assert run("moved", 8, 0.25) == 2  # the fall would have begun already
    assert "was begun with another setting stages" in capsys.readouterr().err
    assert run("moved", 8, 0.5) == 0
    assert run("whole", 8, 0.5) == 0
    moved, whole = (load_model(tmp_path / n / "weights.safetensors") for n in ("moved", "whole"))
    assert moved.networks_sha256() == whole.networks_sha256()
