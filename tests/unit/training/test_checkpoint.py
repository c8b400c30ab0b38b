"""The files of a training that a crash or another hand has changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import mean_stage, residual_stage, tiny_settings

from vmat_diffusion.errors import InputError
from vmat_diffusion.training.checkpoint import (
    CHECKPOINT,
    METRICS,
    Checkpoint,
    load_checkpoint,
    read_metrics,
    save_checkpoint,
)
from vmat_diffusion.training.weights import start_fresh

LINE = '{"stage": 0, "role": "mean", "samples": %d, "loss": 0.5}\n'


@pytest.fixture(scope="module")
def start() -> Checkpoint:
    return start_fresh(tiny_settings(mean_stage(8), residual_stage(8)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: {"stage": 2}, "stage 3 of 2"),
        (lambda c: {"stage": -1}, "stage"),
        (lambda c: {"samples": 10}, "10 samples of a stage of 8"),
        (lambda c: {"samples": 3}, "3 samples of a stage of 8"),
        (lambda c: {"stage": 1}, "lacks the regression"),
        (lambda c: {"net": {}}, "net holds other weights"),
        (lambda c: {"ema": {k: v.double() for k, v in c.ema.items()}}, "ema holds a weight of another shape"),
        (lambda c: {"net": {k: v * float("nan") for k, v in c.net.items()}}, "not finite"),
        (lambda c: {"sums": {"loss": 1.0}}, "lack the loss or the number of samples"),
        (lambda c: {"optimizer": {"state": {}}}, "optimiser does not fit"),
        (lambda c: {"settings": {**c.settings, "network": {"widths": [2**30]}}}, "cannot be built"),
        (lambda c: {"settings": {**c.settings, "more": 1}}, "training setting more is unknown"),
    ],
)
def test_a_checkpoint_that_does_not_fit_together_is_refused(
    start: Checkpoint, tmp_path: Path, change: object, words: str
) -> None:
    file = save_checkpoint(tmp_path / CHECKPOINT, replace(start, **change(start)))  # type: ignore[operator]
    with pytest.raises(InputError, match="no checkpoint that a training can go on from") as caught:
        load_checkpoint(file)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_packed_files_and_code_are_refused(start: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / CHECKPOINT
    for content in (Path, {"format": 1, "net": Path()}):
        torch.save(content, file)
        with pytest.raises(InputError, match="no readable checkpoint"):
            load_checkpoint(file)
    torch.save({"format": 1}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="no readable checkpoint"):
        load_checkpoint(file)


def test_a_last_line_that_was_cut_off_is_left_out_and_a_damaged_one_is_not(tmp_path: Path) -> None:
    whole = LINE % 4 + LINE % 8
    (tmp_path / METRICS).write_text(whole + LINE[:20])
    assert [r["samples"] for r in read_metrics(tmp_path)] == [4, 8]
    for damaged in ("[]\n", "{}\n", "[" * 100_000 + "\n", '{"stage": 0, "samples": -1, "role": "mean"}\n'):
        (tmp_path / METRICS).write_text(LINE % 4 + damaged + LINE % 8)
        with pytest.raises(InputError, match=r"line 2 is no record.*move the file away"):
            read_metrics(tmp_path)
