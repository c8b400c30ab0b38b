"""The settings of a training, from a TOML file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from vmat_diffusion.diffusion.encode import Encoding
from vmat_diffusion.diffusion.network import SIZES, Size
from vmat_diffusion.diffusion.process import STEPS, Process
from vmat_diffusion.errors import InputError
from vmat_diffusion.files import parse_toml
from vmat_diffusion.training.losses import LOSSES, RESIDUAL
from vmat_diffusion.training.samples import AugmentationSettings

# Several times the largest network that was ever trained here; beyond, no memory holds it.
_LEVELS_MAX, _WIDTH_MAX, _BLOCKS_MAX, _CONDITION_MAX, _ORGANS_MAX = 8, 2048, 32, 8192, 200
StageRole = Literal["mean", "residual"]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class Weight:
    """Weight of a loss: `weight` after `from_share` of the stage's samples, `before` until then."""

    weight: Annotated[float, Field(ge=0)]
    before: Annotated[float, Field(ge=0)] = 0.0
    from_share: Share = 0.0

    def at(self, sample: int, samples: int) -> float:
        """The weight for a sample of `samples`."""
        return self.before if self.from_share and sample <= self.from_share * samples else self.weight


@dataclass(frozen=True)
class TrainingStage:
    """One stage of a training; `warm_up` and `samples` count samples, not steps of the optimiser.

    `accumulate` samples make one step, over all processes together. The learning rate rises during
    `warm_up`; then `cosine` falls to `floor` times the rate at once, `trapezoid` linearly from the share
    `decay_from` of the samples on. `ema` is the largest decay of the average of the weights.
    `losses` gives the weight of each loss by name.
    """

    role: StageRole = "mean"
    samples: Annotated[int, Field(ge=1)] = 16000
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-3
    schedule: Literal["cosine", "trapezoid"] = "trapezoid"
    warm_up: Annotated[int, Field(ge=0)] = 300
    decay_from: Annotated[float, Field(ge=0, lt=1)] = 0.7
    floor: Share = 0.02
    accumulate: Annotated[int, Field(ge=1)] = 2
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.998
    clip: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    losses: Mapping[str, Weight | float] = field(default_factory=lambda: {"l1": 1.0})

    def rate(self, sample: int) -> float:
        """The learning rate for a sample, counted from 0."""
        share = sample / self.samples
        if self.schedule == "cosine":
            fall = self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * share))
        elif share < self.decay_from:
            fall = 1.0
        else:
            fall = self.floor + (1 - self.floor) * (1 - (share - self.decay_from) / (1 - self.decay_from))
        return self.learning_rate * (min(1, sample / self.warm_up) if self.warm_up else 1) * fall

    def weights(self, sample: int) -> dict[str, float]:
        """The weight of each loss for a sample, counted from 0."""
        return {
            name: w.at(sample, self.samples) if isinstance(w, Weight) else w
            for name, w in self.losses.items()
        }


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a training; the resolved copy lies beside its results.

    `network` is a key of SIZES or another size. `changes` is the augmentation. `seed` determines augmentation
    and noise, `order_seed` the order of cases. `precision` "auto" is bf16-mixed on a GPU and 32-true on a
    processor, where few are fast in bfloat16. `validate_every` and `log_every` count samples; gamma is
    computed at every `gamma_every`-th validation (0: never) on `gamma_cases` cases. A residual is validated
    by the mean of `validate_samples` samples of `validate_steps` steps each, and by the first of them alone.
    """

    # This holds for the fields that are dataclasses too.
    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    stages: Annotated[tuple[TrainingStage, ...], Field(min_length=1)] = (TrainingStage(),)
    encoding: Encoding = field(default_factory=Encoding)
    network: Literal["small", "base"] | Size = "small"
    process: Process = field(default_factory=Process)
    changes: AugmentationSettings = field(default_factory=AugmentationSettings)
    precision: Literal["auto", "bf16-mixed", "32-true"] = "auto"
    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    order_seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 0
    validate_every: Annotated[int, Field(ge=1)] = 600
    log_every: Annotated[int, Field(ge=1)] = 50
    checkpoint_minutes: Annotated[float, Field(gt=0)] = 5.0
    gamma_every: Annotated[int, Field(ge=0)] = 5
    gamma_cases: Annotated[int, Field(ge=1)] = 2
    validate_samples: Annotated[int, Field(ge=1)] = 2
    validate_steps: Annotated[int, Field(ge=1, le=STEPS)] = 4

    @property
    def size(self) -> Size:
        """The size of the network."""
        return SIZES[self.network] if isinstance(self.network, str) else self.network


_ADAPTER: TypeAdapter[TrainingSettings] = TypeAdapter(TrainingSettings)


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes shipped with the package."""
    files = (resources.files("vmat_diffusion.training") / "recipes").iterdir()
    return tuple(sorted(f.name.removesuffix(".toml") for f in files if f.name.endswith(".toml")))


def load_settings(name_or_path: str | Path) -> TrainingSettings:
    """A shipped recipe by name, or one's own by the path of its TOML file.

    Raises InputError with one sentence for what is wrong in it.
    """
    try:
        raw = parse_toml(_text_of(str(name_or_path)))
    except OSError as fault:
        raise InputError(
            f"training settings {name_or_path} cannot be read ({fault.strerror}); give a shipped recipe "
            f"({', '.join(recipe_names())}) or the path of a .toml file"
        ) from None
    except ValueError as fault:
        raise InputError(
            f"training settings {name_or_path} are no TOML ({fault}); correct the file"
        ) from None
    return training_settings(raw)


def _text_of(name_or_path: str) -> str:
    if name_or_path in recipe_names():
        file = resources.files("vmat_diffusion.training") / "recipes" / f"{name_or_path}.toml"
        return file.read_text(encoding="utf-8")
    return Path(name_or_path).read_text(encoding="utf-8")


def training_settings(values: Mapping[str, Any]) -> TrainingSettings:
    """Checked settings from plain values; raises InputError with one sentence for a wrong one."""
    try:
        settings = _ADAPTER.validate_python(dict(values))
    except ValidationError as error:
        # A union reports each of its members; the error with the longest path is the most specific.
        first = max(error.errors(), key=lambda e: len(e["loc"]))
        where = ".".join(str(p) for p in first["loc"])
        if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
            raise InputError(
                f"training setting {where} is unknown; see docs/training.md for the names"
            ) from None
        raise InputError(
            f"training setting {where}: {first['msg']} (given: {first['input']!r}); correct it"
        ) from None
    _check_network(settings.size)
    _check_numbers(settings)
    for number, stage in enumerate(settings.stages, start=1):
        _check_stage(number, stage)
    roles = [s.role for s in settings.stages]
    if roles != sorted(roles):  # "mean" before "residual", as the alphabet has it
        raise InputError(
            f"training stages {', '.join(roles)}: a residual is learnt on the last mean; put the means first"
        )
    return settings


def _check_network(size: Size) -> None:
    if (
        not 1 <= len(size.widths) <= _LEVELS_MAX
        or any(not 8 <= w <= _WIDTH_MAX or w % 8 for w in size.widths)
        or size.heads < 1
        or size.widths[-1] % size.heads
    ):
        raise InputError(
            f"network widths {list(size.widths)} with {size.heads} heads cannot be built; give 1 to "
            f"{_LEVELS_MAX} multiples of 8 up to {_WIDTH_MAX}, the last of them also one of the heads"
        )
    if not (1 <= size.blocks <= _BLOCKS_MAX and 1 <= size.condition <= _CONDITION_MAX):
        raise InputError(
            f"a network of {size.blocks} blocks with a condition of {size.condition} cannot be built; give 1 "
            f"to {_BLOCKS_MAX} blocks and a condition of 1 to {_CONDITION_MAX}"
        )


def _check_numbers(settings: TrainingSettings) -> None:
    """Raises InputError for values at which the training would fail only later."""
    changes, process, encoding = settings.changes, settings.process, settings.encoding
    levels, voxel = encoding.levels, encoding.voxel_mm
    shares = ("flip", "turn", "without_ct", "without_organ", "goals", "goal")
    angle = changes.turn_deg
    for name, value, right, remedy in (
        *((f"changes.{n}", s, 0 <= s <= 1, "a share") for n, s in ((n, getattr(changes, n)) for n in shares)),
        ("changes.turn_deg", angle, 0 < angle <= 180 and 360 % angle == 0, "a divisor of 360 up to 180"),
        ("process.scale", process.scale, 0 < process.scale <= 1, "above 0 and up to 1"),
        ("process.largest", process.largest, process.largest > 0, "above 0"),
        ("process.smooth_voxels", process.smooth_voxels, process.smooth_voxels >= 0, "0 or more"),
        (
            "encoding.organs",
            encoding.organs,
            0 < len(set(encoding.organs)) == len(encoding.organs) <= _ORGANS_MAX,
            f"1 to {_ORGANS_MAX} organs, each once",
        ),
        (
            "encoding.levels",
            levels,
            0 < len(set(levels)) == len(levels) <= _ORGANS_MAX and all(0 < v <= 1 for v in levels),
            "shares of the highest prescription, each once",
        ),
        ("encoding.reach_mm", encoding.reach_mm, 0 < encoding.reach_mm <= 1000, "above 0 and up to 1000"),
        ("encoding.voxel_mm", voxel, all(0.1 <= v <= 20 for v in voxel), "three of 0.1 to 20"),
    ):
        if not right:
            raise InputError(f"training setting {name} is {value}; give {remedy}")


def _check_stage(number: int, stage: TrainingStage) -> None:
    known = [*LOSSES, RESIDUAL] if stage.role == "residual" else list(LOSSES)
    for name in stage.losses:
        if name not in known:
            raise InputError(
                f"training stage {number}: loss {name} is unknown for the role {stage.role}; "
                f"known are {', '.join(known)}"
            )
    if stage.samples % stage.accumulate:
        raise InputError(
            f"training stage {number}: {stage.samples} samples are no multiple of accumulate = "
            f"{stage.accumulate}; give e.g. {-(-stage.samples // stage.accumulate) * stage.accumulate}"
        )


def settings_record(settings: TrainingSettings) -> dict[str, Any]:
    """The settings as plain data, from which `training_settings` makes the same again."""
    return _ADAPTER.dump_python(settings, mode="json")
