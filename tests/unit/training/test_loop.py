"""The training loop on small synthetic cases."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import (
    TINY,
    curve,
    encoded,
    mean_stage,
    residual_stage,
    small_dataset,
    tiny_settings,
)

from vmat_diffusion.errors import InputError, LimitError
from vmat_diffusion.training.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint, read_metrics
from vmat_diffusion.training.loop import Machinery, Trainer, requeue, train
from vmat_diffusion.training.settings import TrainingSettings
from vmat_diffusion.training.weights import start_fresh

HERE = Machinery(workers=0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small gain nothing from threads, and lose much where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("encoded")


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_one_case_is_learnt_by_heart(tmp_path: Path) -> None:
    stage = mean_stage(60, schedule="cosine", learning_rate=2e-2, warm_up=8, accumulate=1)
    settings = replace(tiny_settings(stage, changed=False), log_every=10, validate_every=1000)
    folder = small_dataset(tmp_path / "cases", train=1, validation=1)
    train(settings, start_fresh(settings), encoded(folder, tmp_path / "encoded", settings), tmp_path, HERE)
    losses = [r["loss"] for r in read_metrics(tmp_path) if "loss" in r]
    assert losses[-1] < losses[0] / 5


def _stopped_at(
    settings: TrainingSettings,
    start: Checkpoint,
    data_set: Path,
    cache: Path,
    out: Path,
    samples: int,
    number: int,
) -> Checkpoint:
    """Train until a signal comes at so many samples, and read what was left."""

    def at(stage: str, share: float, note: str) -> None:
        if note.startswith(f"{samples} of"):
            os.kill(os.getpid(), number)

    ended = train(settings, start, encoded(data_set, cache, settings), out, HERE, progress=at)
    assert ended.signal == number
    return load_checkpoint(out / CHECKPOINT)


def test_a_training_that_was_stopped_goes_on_to_the_same_curve(
    data_set: Path, cache: Path, tmp_path: Path
) -> None:
    settings = tiny_settings(mean_stage(16), residual_stage(8))
    data = encoded(data_set, cache, settings)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = train(settings, start_fresh(settings), data, whole, HERE).checkpoint
    # A step takes 2 samples, a record 4: both stops lie between two records.
    left = _stopped_at(settings, start_fresh(settings), data_set, cache, parts, 4, signal.SIGTERM)
    assert (left.stage, left.samples) == (0, 6)
    left = _stopped_at(settings, left, data_set, cache, parts, 12, signal.SIGINT)
    assert (left.stage, left.samples) == (0, 14)
    found = train(settings, left, data, parts, HERE).checkpoint
    assert _same(found.net, expected.net) and _same(found.ema, expected.ema)
    assert found.mean is not None and expected.mean is not None and _same(found.mean, expected.mean)
    assert curve(read_metrics(parts)) == curve(read_metrics(whole))
    assert len(read_metrics(whole)) == 9  # 6 records of losses, 3 validations


def test_records_after_the_checkpoint_are_written_anew(data_set: Path, cache: Path, tmp_path: Path) -> None:
    settings = tiny_settings(mean_stage(16))
    data = encoded(data_set, cache, settings)
    left = _stopped_at(settings, start_fresh(settings), data_set, cache, tmp_path, 6, signal.SIGTERM)
    train(settings, left, data, tmp_path, HERE)
    expected = curve(read_metrics(tmp_path))
    train(settings, left, data, tmp_path, HERE)
    assert curve(read_metrics(tmp_path)) == expected


def test_a_residual_changes_nothing_of_the_mean_it_is_learnt_on(
    data_set: Path, cache: Path, tmp_path: Path
) -> None:
    settings = tiny_settings(mean_stage(8), residual_stage(8))
    data = encoded(data_set, cache, settings)
    only = tiny_settings(mean_stage(8))
    expected = train(only, start_fresh(only), data, tmp_path, HERE).checkpoint.ema
    found = train(settings, start_fresh(settings), data, tmp_path, HERE).checkpoint
    assert found.mean is not None and _same(found.mean, expected)
    assert not _same(found.ema, expected)
    figures = read_metrics(tmp_path)[-1]["validation"]
    # The mean of two samples is not the first of them.
    assert figures["dose_score_gy"] != figures["sample_dose_score_gy"]


def test_loaders_change_nothing(data_set: Path, cache: Path, tmp_path: Path) -> None:
    settings = tiny_settings(mean_stage(8))
    data = encoded(data_set, cache, settings)
    a = train(settings, start_fresh(settings), data, tmp_path, HERE).checkpoint
    b = train(settings, start_fresh(settings), data, tmp_path, Machinery(workers=1)).checkpoint
    assert _same(a.net, b.net)


def test_a_loss_that_is_no_number_ends_the_training(data_set: Path, cache: Path, tmp_path: Path) -> None:
    settings = tiny_settings(mean_stage(16))
    start = start_fresh(settings)
    broken = {k: torch.full_like(v, torch.nan) for k, v in start.net.items()}
    with pytest.raises(InputError, match="no number after 2 samples"):
        train(
            settings,
            replace(start, net=broken),
            encoded(data_set, cache, settings),
            tmp_path,
            HERE,
        )


def test_a_residual_needs_a_mean(data_set: Path, cache: Path, tmp_path: Path) -> None:
    settings = tiny_settings(residual_stage())
    with pytest.raises(InputError, match="learnt on a mean"):
        train(settings, start_fresh(settings), encoded(data_set, cache, settings), tmp_path, HERE)


def test_processes_must_be_able_to_share_a_step(data_set: Path, cache: Path, tmp_path: Path) -> None:
    settings = tiny_settings(mean_stage())
    with pytest.raises(InputError, match="4 devices cannot share the 2 samples"):
        train(
            settings,
            start_fresh(settings),
            encoded(data_set, cache, settings),
            tmp_path,
            Machinery(devices=2, nodes=2),
        )


def test_a_job_goes_back_into_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert not requeue()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not requeue()  # no scontrol
    script = tmp_path / "scontrol"
    script.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/told\n')
    script.chmod(0o755)
    assert requeue()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "18")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert requeue()
    assert (tmp_path / "told").read_text() == "requeue 17\nrequeue 18_3\n"


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(InputError, match="no readable checkpoint"):
        load_checkpoint(tmp_path / CHECKPOINT)


def test_gamma_and_scores_are_those_of_a_perfect_prediction(data_set: Path, cache: Path) -> None:
    from vmat_diffusion.training.samples import EncodedCases
    from vmat_diffusion.training.validation import summary, validate

    settings = tiny_settings(mean_stage())
    data = encoded(data_set, cache, settings)
    cases = EncodedCases(data.validation, settings.encoding, multiple=2 ** len(TINY.widths))
    where = {"device": torch.device("cpu"), "gamma_cases": 1}
    right = summary(validate(lambda s: s.dose[None], cases, data.spacings_mm, **where))
    assert right["dose_score_gy"] == right["dvh_score_gy"] == right["mae_gy"] == 0
    assert right["gamma_percent"] == 100
    # 1 Gy too much everywhere, of which what lies outside the mask is cut away.
    wrong = summary(validate(lambda s: (s.dose + 1 / s.top_gy)[None], cases, data.spacings_mm, **where))
    for name in ("dose_score_gy", "dvh_score_gy", "mae_gy"):
        assert wrong[name] == pytest.approx(1, abs=1e-4)


def test_processes_that_lost_each_other_are_named_with_the_way_on(
    data_set: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another fault of torch stays what it is: a defect to be reported."""
    settings = tiny_settings(mean_stage(4))
    words = iter(["[gloo/transport/tcp/pair.cc:537] Connection closed by peer", "shape mismatch"])

    def lost(*_: object) -> None:
        raise RuntimeError(next(words))

    monkeypatch.setattr(Trainer, "fit", lost)
    data = encoded(data_set, cache, settings)
    with pytest.raises(LimitError, match=r"stopped answering.*--resume"):
        train(settings, start_fresh(settings), data, tmp_path, HERE)
    with pytest.raises(RuntimeError, match="shape"):
        train(settings, start_fresh(settings), data, tmp_path, HERE)
