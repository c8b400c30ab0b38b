"""A training that takes seconds: a tiny network on small synthetic cases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from training_cases import save_dataset, small_training

from vmat_diffusion.diffusion.network import Size
from vmat_diffusion.training.encoded import TrainingData, encode_cases, entries_with_dose
from vmat_diffusion.training.samples import NO_AUGMENTATION
from vmat_diffusion.training.settings import TrainingSettings, TrainingStage

TINY = Size(widths=(8, 8, 16, 16), blocks=1, heads=2, condition=16)


def tiny_settings(*stages: TrainingStage, changed: bool = True) -> TrainingSettings:
    """Stages on a tiny network in single precision."""
    settings = TrainingSettings(
        stages=stages,
        network=TINY,
        precision="32-true",
        seed=3,
        log_every=4,
        validate_every=8,
        gamma_every=0,
        validate_steps=2,
    )
    return settings if changed else replace(settings, changes=NO_AUGMENTATION)


def mean_stage(samples: int = 16, **values: object) -> TrainingStage:
    """A stage for the regression with all losses."""
    losses = {"l1": 1.0, "dvh": 0.25, "gradient": 0.1}
    given = {"learning_rate": 3e-3, "warm_up": 4, "losses": losses, **values}
    return TrainingStage(samples=samples, **given)  # type: ignore[arg-type]


def residual_stage(samples: int = 8) -> TrainingStage:
    """A stage for the residual."""
    return TrainingStage(
        role="residual",
        samples=samples,
        warm_up=4,
        losses={"residual": 1.0, "l1": 0.1},
    )


def small_dataset(folder: Path, *, train: int = 3, validation: int = 2, site: str = "head_neck") -> Path:
    """A data set of small cases whose targets lie at different places."""
    cases = [
        small_training(f"case_{k:04d}", target=(4 + k, 10 + k, 12 + k), left=k != 1)
        for k in range(train + validation)
    ]
    cases = [replace(c, case=replace(c.case, site=site)) for c in cases]
    splits = {c.case.id: "train" if k < train else "validation" for k, c in enumerate(cases)}
    return save_dataset(folder, cases, splits)


def encoded(folder: Path, cache: Path, settings: TrainingSettings) -> TrainingData:
    """The cases of a data set, encoded."""
    train, validation = (entries_with_dose(folder, split) for split in ("train", "validation"))
    files = encode_cases(folder, [*train, *validation], settings.encoding, cache)
    spacings = tuple((4.0, 4.0, 5.0) for _ in validation)
    return TrainingData(files[: len(train)], files[len(train) :], spacings)


def curve(records: Sequence[dict]) -> list[str]:
    """Records without what depends on the clock."""
    clocks = ("samples_per_s", "seconds")
    return [
        json.dumps({k: _without(v, clocks) for k, v in record.items() if k not in clocks})
        for record in records
    ]


def _without(value: object, names: Sequence[str]) -> object:
    return {k: v for k, v in value.items() if k not in names} if isinstance(value, dict) else value
