"""`train-generator`: weights of the generator of fluence, from a folder of maps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vmat_diffusion.dataset.openkbp import SPLIT_NUMBERS
from vmat_diffusion.errors import InputError
from vmat_diffusion.generate.examples import FluenceExample, load_example
from vmat_diffusion.generate.model import save_fluence_model
from vmat_diffusion.progress import Progress, silent
from vmat_diffusion.training.fluence import (
    FluenceTraining,
    card_of,
    steps_done,
    train_fluence,
    validation_errors,
)
from vmat_diffusion.workflow.output import require_apart
from vmat_diffusion.workflow.simulation.maps import example_files


def train_generator(
    maps: Path,
    out: Path,
    *,
    iterations: int = 3000,
    seed: int = 0,
    minutes: float | None = None,
    plans: int | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train on the maps that are not kept out, write the weights, and return their card.

    `plans` is the most to learn from. The checkpoint lies beside `out`. Raises InputError for a folder with
    too few maps, or that `out` lies in.
    """
    require_apart(out, maps)
    learnt, held = split_examples(maps, plans)
    settings = FluenceTraining(steps=iterations, seed=seed)
    checkpoint = out.with_suffix(".checkpoint")
    model = train_fluence(learnt, settings, checkpoint, validation=held, minutes=minutes, progress=progress)
    errors = {name: round(value, 4) for name, value in validation_errors(model, held).items()}
    done = steps_done(checkpoint)
    card = card_of(learnt, settings, steps_done=done, validation={"plans": len(held), **errors})
    save_fluence_model(out, replace(model, description=replace(model.description, card=card)))
    return card


def split_examples(
    folder: Path, most: int | None = None
) -> tuple[list[FluenceExample], list[FluenceExample]]:
    """The plans to learn from, at most so many, and those kept out. Raises InputError for an empty folder."""
    learnt: list[FluenceExample] = []
    held: list[FluenceExample] = []
    for file, record in example_files(folder):
        (held if kept_out(record) else learnt).append(load_example(file))
    if not learnt:
        raise InputError(f"{folder} holds no maps to learn from; make them with simulate --maps")
    order = np.random.default_rng(0).permutation(len(learnt))
    return [learnt[k] for k in order[:most]], held


def kept_out(record: Mapping[str, Any]) -> bool:
    """Whether a plan is of a patient that the training never sees.

    Those are OpenKBP's patients outside its training split, and every tenth synthetic patient.
    """
    words = str(record["patient"]).split("_")
    kind, number = words[0], words[-1]
    if not number.isdecimal():
        return False
    if kind == "synthetic":
        return int(number) % 10 == 9
    return kind == "openkbp" and int(number) not in SPLIT_NUMBERS["train"]
