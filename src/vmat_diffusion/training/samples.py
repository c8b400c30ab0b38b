"""Training samples: encoded cases with random augmentation, ready for the network."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from vmat_diffusion.diffusion.encode import (
    DoseGoals,
    Encoding,
    background,
    goal_numbers,
    mirror_case,
    other_side,
    padded,
    turn_slices,
)
from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.openkbp import hot_voxels
from vmat_diffusion.training.encoded import read_encoded

# What ends a training after the current step; not every system has all of them.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


@dataclass(frozen=True)
class AugmentationSettings:
    """Probabilities of each change to a case when it is drawn, and of goals in its conditioning vector.

    `flip` left to right; `turn` about z by a multiple of `turn_deg`; `without_ct` and, for each organ,
    `without_organ` remove an input. With probability `goals` a case is conditioned on goals, then on each
    goal that its dose achieved with probability `goal`.
    """

    flip: float = 0.5
    turn: float = 0.3
    without_ct: float = 0.15
    without_organ: float = 0.05
    goals: float = 0.5
    goal: float = 0.5
    turn_deg: float = 40.0


NO_AUGMENTATION = AugmentationSettings(flip=0, turn=0, without_ct=0, without_organ=0, goals=0)


@dataclass(frozen=True, eq=False)
class Augmentation:
    """The changes to one case; drawn by `draw_augmentation`.

    `without_organs`, `mean_goals` and `hot_goals` have a flag for each organ of the encoding. `turn_deg` is 0
    where nothing is turned. `before` and `after` count the voxels of padding along x, y and z.
    """

    without_ct: bool
    without_organs: NDArray[np.bool_]
    mean_goals: NDArray[np.bool_]
    hot_goals: NDArray[np.bool_]
    turn_deg: float
    flip: bool
    before: tuple[int, ...]
    after: tuple[int, ...]


def draw_augmentation(
    rng: np.random.Generator,
    settings: AugmentationSettings,
    encoding: Encoding,
    shape: Sequence[int],
    multiple: int,
) -> Augmentation:
    """The changes to a case of a shape `(z, y, x)`, whose sides become multiples of `multiple`.

    The place within the padding is drawn too, unless nothing else may change.
    """
    organs = len(encoding.organs)
    without_ct = rng.random() < settings.without_ct
    without_organs = np.array([rng.random() < settings.without_organ for _ in range(organs)], bool)
    draws = rng.random(2 * organs)
    goals = draws < (settings.goal if rng.random() < settings.goals else 0.0)
    turn_deg = 0.0
    if rng.random() < settings.turn:
        turn_deg = int(rng.integers(1, round(360 / settings.turn_deg))) * settings.turn_deg
    flip = rng.random() < settings.flip
    padding = [-n % multiple for n in reversed(shape)]
    before = [int(rng.integers(0, n + 1)) if settings != NO_AUGMENTATION else 0 for n in padding]
    return Augmentation(
        without_ct=without_ct,
        without_organs=without_organs,
        mean_goals=goals[:organs],
        hot_goals=goals[organs:],
        turn_deg=turn_deg,
        flip=flip,
        before=tuple(before),
        after=tuple(n - b for n, b in zip(padding, before, strict=True)),
    )


@dataclass(frozen=True)
class StructureVoxels:
    """A structure by the flat indices of its voxels; `hot` voxels make 0.1 cm3."""

    name: str
    flat: Tensor
    target: bool
    hot: int


@dataclass(frozen=True, eq=False)
class Sample:
    """One case ready for the network: `volume[1, c, z, y, x]`, `vector[1, n]`, `dose` and `mask[z, y, x]`.

    The dose is in units of the highest prescription `top_gy`. The sides are multiples of the network's.
    """

    name: str
    volume: Tensor
    vector: Tensor
    dose: Tensor
    mask: Tensor
    structures: tuple[StructureVoxels, ...]
    top_gy: float
    voxel_cc: float


class EncodedCases(Dataset):
    """Encoded cases as samples; the augmentation of case `i` depends on the seed, the epoch and `i` alone."""

    def __init__(
        self,
        files: tuple[Path, ...],
        encoding: Encoding,
        *,
        multiple: int,
        settings: AugmentationSettings = NO_AUGMENTATION,
        seed: int = 0,
    ) -> None:
        self.files, self.encoding, self.multiple = files, encoding, multiple
        self.settings, self.seed, self.epoch = settings, seed, 0

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Sample:
        arrays = read_encoded(self.files[i], self.encoding)
        rng = np.random.default_rng([self.seed, self.epoch, i])
        shape = arrays["volume"].shape[1:]
        drawn = draw_augmentation(rng, self.settings, self.encoding, shape, self.multiple)
        return augmented(self.files[i].stem, arrays, self.encoding, drawn)


def augmented(name: str, arrays: Mapping[str, NDArray], encoding: Encoding, change: Augmentation) -> Sample:
    """The sample of an encoded case, from the arrays of `encoded.save_encoded`, with the changes."""
    # Half precision and bits until the end: loading shares the processor with the training.
    volume = torch.from_numpy(arrays["volume"].copy())
    shape = tuple(volume.shape[1:])
    top = float(arrays["top_gy"])
    dose = torch.from_numpy(arrays["dose"].astype(np.float32))[None] / (100 * top)
    masks = torch.stack([_unpacked(row, shape) for row in (arrays["mask"], *arrays["masks"])])
    names = [str(n) for n in arrays["names"]]
    volume, numbers = _with_changed_inputs(volume, arrays, encoding, change, top)
    vector = torch.from_numpy(numbers)
    if change.turn_deg:
        volume = turn_slices(volume.float(), change.turn_deg, background(encoding))
        masks = turn_slices(masks.float(), change.turn_deg, torch.zeros(len(masks)), "nearest") > 0
        dose = turn_slices(dose, change.turn_deg, torch.zeros(1)) * masks[:1]
    if change.flip:
        volume, vector = mirror_case(volume, vector, encoding)
        dose, masks = dose.flip(-1), masks.flip(-1)
        names = [other_side(n, (*names, *encoding.organs)) for n in names]
    sides = [n for pair in zip(change.before, change.after, strict=True) for n in pair]
    dose, masks = F.pad(dose, sides), F.pad(masks, sides)
    voxel_cc = float(arrays["voxel_cc"])
    structures = (
        StructureVoxels(n, m.flatten().nonzero()[:, 0], bool(t), hot_voxels(voxel_cc))
        for n, m, t in zip(names, masks[1:], arrays["targets"], strict=True)
    )
    return Sample(
        name,
        padded(volume, encoding, sides)[None],
        vector[None],
        dose[0],
        masks[0].float(),
        tuple(s for s in structures if len(s.flat)),
        top,
        voxel_cc,
    )


def _unpacked(bits: NDArray[np.uint8], shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy(np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).view(np.bool_))


def _with_changed_inputs(
    volume: Tensor, arrays: Mapping[str, NDArray], encoding: Encoding, change: Augmentation, top_gy: float
) -> tuple[Tensor, NDArray]:
    """Volume and vector without the inputs that the change removes, with its goals.

    A goal on an organ that is absent, or that the dose has no value for, is left out.
    """
    at, channels = encoding.layout, encoding.channels
    vector = arrays["vector"].copy()
    if change.without_ct:
        volume[channels.index("ct")] = 0.0
        vector[at.has_ct] = 0.0
    for organ, without in zip(encoding.organs, change.without_organs, strict=True):
        if without:
            volume[channels.index(f"distance_{organ}")] = 1.0
    vector[at.presence][change.without_organs] = 0.0
    present = vector[at.presence] > 0

    def goals(values: NDArray, chosen: NDArray) -> dict[str, float]:
        pairs = zip(encoding.organs, values, chosen & present & np.isfinite(values), strict=True)
        return {organ: float(value) for organ, value, condition in pairs if condition}

    conditions = DoseGoals(
        goals(arrays["mean_gy"], change.mean_goals), goals(arrays["hot_gy"], change.hot_goals)
    )
    vector[at.goals] = goal_numbers(conditions, encoding, top_gy)
    return volume, vector


class SampleStream(Dataset):
    """An endless sequence of samples: epoch after epoch, each in its own order with its own augmentation.

    Sample `n` belongs to epoch `n // number of cases`; the order depends on `order_seed` and the epoch.
    """

    def __init__(
        self,
        files: Sequence[Path],
        encoding: Encoding,
        *,
        multiple: int,
        settings: AugmentationSettings,
        seed: int,
        order_seed: int,
    ) -> None:
        self.cases = EncodedCases(tuple(files), encoding, multiple=multiple, settings=settings, seed=seed)
        self.order_seed = order_seed

    def __getitem__(self, n: int) -> tuple[int, Sample | InputError]:
        """The sample of that number, or an InputError: raised, a loading process would wrap its sentence."""
        epoch, place = divmod(n, len(self.cases))
        order = np.random.default_rng([self.order_seed, epoch]).permutation(len(self.cases))
        self.cases.epoch = epoch
        try:
            return n, self.cases[int(order[place])]
        except InputError as fault:
            return n, fault


def stream_loader(stream: SampleStream, numbers: range, *, workers: int) -> DataLoader:
    """The samples of these numbers one by one, read by `workers` processes (0: by this one)."""
    return DataLoader(
        stream,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_ignore_signals,
    )


def _ignore_signals(worker: int) -> None:
    """Leave signals to the process that trains: it still needs samples to finish its step."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
