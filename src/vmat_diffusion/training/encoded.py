"""Training cases encoded once and kept on disk, and drawn from there with changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from vmat_diffusion.diffusion.dvh import Region
from vmat_diffusion.diffusion.encode import DoseGoals, Encoding, achieved, encode, goal_numbers
from vmat_diffusion.diffusion.views import mirrored, other_side, outside, turned
from vmat_diffusion.evaluate.openkbp import hot_voxels
from vmat_diffusion.files import written_whole
from vmat_diffusion.training.cases import TrainingCase


def save_encoded(path: Path, training: TrainingCase, encoding: Encoding) -> Path:
    """Encode a case with its dose and keep it as npz: half precision for the volume, 0.01 Gy for the dose."""
    case, dose = training.case, training.case.reference_dose
    if dose is None:
        raise ValueError(f"{case.id}: a case without dose teaches nothing")
    done = encode(case, training.possible_dose, encoding, has_ct=training.has_ct)
    goals = achieved(case, dose, encoding)
    named = [s for s in case.structures.values() if s.role in ("target", "organ") and s.voxels]
    arrays: dict[str, Any] = {
        "volume": done.volume.astype(np.float16),
        "vector": done.vector,
        "mask": np.packbits(done.mask),
        "dose": np.rint(dose.gy[done.box] * 100).astype(np.uint16),
        "top_gy": np.float64(done.top_gy),
        "voxel_cc": np.float64(case.grid.voxel_cc),
        "names": np.array([s.name for s in named]),
        "targets": np.array([s.role == "target" for s in named]),
        "masks": np.stack([np.packbits(s.mask[done.box]) for s in named]),
        "mean_gy": np.array([goals.mean_gy.get(o, np.nan) for o in encoding.organs]),
        "hot_gy": np.array([goals.hot_gy.get(o, np.nan) for o in encoding.organs]),
    }
    with written_whole(path) as part, part.open("wb") as stream:
        np.savez(stream, **arrays)
    return path


@dataclass(frozen=True)
class Changes:
    """Probabilities of what is changed in a case each time it is drawn, and of goals that are told."""

    flip: float = 0.5
    turn: float = 0.3
    without_ct: float = 0.15
    without_organ: float = 0.05
    goals: float = 0.5
    goal: float = 0.5
    turn_deg: float = 40.0


NO_CHANGES = Changes(flip=0, turn=0, without_ct=0, without_organ=0, goals=0)


@dataclass(frozen=True, eq=False)
class Sample:
    """One case ready for the network: `volume[1, c, z, y, x]`, `vector[1, n]`, `dose` and `mask[z, y, x]`.

    Dose in units of the highest prescription `top_gy`; sides padded to the network's multiple.
    """

    name: str
    volume: Tensor
    vector: Tensor
    dose: Tensor
    mask: Tensor
    regions: tuple[Region, ...]
    region_names: tuple[str, ...]
    top_gy: float
    voxel_cc: float


class EncodedCases(Dataset):
    """Encoded cases as samples; what changes in case `i` depends on the seed, the epoch and `i` alone."""

    def __init__(
        self,
        files: tuple[Path, ...],
        encoding: Encoding,
        *,
        multiple: int,
        changes: Changes = NO_CHANGES,
        seed: int = 0,
    ) -> None:
        self.files, self.encoding, self.multiple = files, encoding, multiple
        self.changes, self.seed, self.epoch = changes, seed, 0

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Sample:
        with np.load(self.files[i]) as file:
            arrays = {name: file[name] for name in file.files}
        rng = np.random.default_rng([self.seed, self.epoch, i])
        return _sample(self.files[i].stem, arrays, self.encoding, self.multiple, self.changes, rng)


def _sample(
    name: str,
    arrays: Mapping[str, NDArray],
    encoding: Encoding,
    multiple: int,
    changes: Changes,
    rng: np.random.Generator,
) -> Sample:
    volume = torch.from_numpy(arrays["volume"].astype(np.float32))
    shape = tuple(volume.shape[1:])
    top = float(arrays["top_gy"])
    dose = torch.from_numpy(arrays["dose"].astype(np.float32)) / (100 * top)
    mask, *masks = (
        torch.from_numpy(np.unpackbits(row, count=int(np.prod(shape))).reshape(shape).astype(np.float32))
        for row in (arrays["mask"], *arrays["masks"])
    )
    vector = arrays["vector"].copy()
    names = [str(n) for n in arrays["names"]]
    volume = _without(volume, vector, encoding, changes, rng)
    vector[-4 * len(encoding.organs) :] = goal_numbers(
        _told(encoding, arrays, vector, changes, rng), encoding, top
    )
    numbers = torch.from_numpy(vector)
    stack = torch.stack([dose, mask, *masks])
    if rng.random() < changes.turn:
        steps = int(rng.integers(1, round(360 / changes.turn_deg)))
        angle, nothing = steps * changes.turn_deg, torch.zeros(len(stack))
        volume = turned(volume, angle, outside(encoding))
        stack = torch.cat(
            [turned(stack[:1], angle, nothing[:1]), turned(stack[1:], angle, nothing[1:], "nearest")]
        )
        stack[0] *= stack[1]
    if rng.random() < changes.flip:
        volume, numbers = mirrored(volume, numbers, encoding)
        stack = stack.flip(-1)
        names = [other_side(n, (*names, *encoding.organs)) for n in names]
    volume, stack = _placed(volume, stack, encoding, multiple, changes, rng)
    voxel_cc = float(arrays["voxel_cc"])
    regions = tuple(
        Region(m.flatten().nonzero()[:, 0], bool(t), hot_voxels(voxel_cc))
        for m, t in zip(stack[2:], arrays["targets"], strict=True)
    )
    kept = [k for k, r in enumerate(regions) if len(r.flat)]
    return Sample(
        name,
        volume[None].contiguous(memory_format=torch.channels_last_3d),
        numbers[None],
        stack[0],
        stack[1],
        tuple(regions[k] for k in kept),
        tuple(names[k] for k in kept),
        top,
        voxel_cc,
    )


def _without(
    volume: Tensor,
    vector: NDArray,
    encoding: Encoding,
    changes: Changes,
    rng: np.random.Generator,
) -> Tensor:
    """Leave out the CT or an organ now and then, as some cases have none; `vector` follows."""
    first, channels = len(encoding.levels), encoding.channels
    if rng.random() < changes.without_ct:
        volume[channels.index("ct")] = 0.0
        vector[first + len(encoding.organs)] = 0.0
    for k, organ in enumerate(encoding.organs):
        if rng.random() < changes.without_organ:
            volume[channels.index(f"distance_{organ}")] = 1.0
            vector[first + k] = 0.0
    return volume


def _told(
    encoding: Encoding,
    arrays: Mapping[str, NDArray],
    vector: NDArray,
    changes: Changes,
    rng: np.random.Generator,
) -> DoseGoals:
    """The goals that are told: some of those that the reference dose achieved, in some of the draws.

    None of an organ that `vector` says is absent.
    """
    told = rng.random(2 * len(encoding.organs)) < (changes.goal if rng.random() < changes.goals else 0.0)
    k, first = len(encoding.organs), len(encoding.levels)
    there = vector[first : first + k] > 0

    def among(values: NDArray, chosen: NDArray) -> dict[str, float]:
        pairs = zip(encoding.organs, values, chosen & there & np.isfinite(values), strict=True)
        return {organ: float(value) for organ, value, tell in pairs if tell}

    return DoseGoals(among(arrays["mean_gy"], told[:k]), among(arrays["hot_gy"], told[k:]))


def _placed(
    volume: Tensor,
    stack: Tensor,
    encoding: Encoding,
    multiple: int,
    changes: Changes,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Both padded to a shape of multiples, at a place that is drawn if anything else is."""
    sides: list[int] = []
    for have in volume.shape[:0:-1]:
        want = have + -have % multiple
        before = int(rng.integers(0, want - have + 1)) if changes != NO_CHANGES else 0
        sides += [before, want - have - before]
    level = outside(encoding)[:, None, None, None]
    return F.pad(volume - level, sides) + level, F.pad(stack, sides)
