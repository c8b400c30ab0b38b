"""Training cases encoded once and kept on disk, and drawn from there with changes."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from vmat_diffusion.dataset.cases import TrainingCase, load_case, read_arrays
from vmat_diffusion.dataset.index import Entry, entries_of, read_index
from vmat_diffusion.dataset.splits import Split, split_ids
from vmat_diffusion.diffusion.encode import (
    DoseGoals,
    Encoding,
    achieved,
    encode,
    goal_numbers,
    mirrored,
    other_side,
    outside,
    turned,
)
from vmat_diffusion.errors import CaseError
from vmat_diffusion.evaluate.openkbp import hot_voxels
from vmat_diffusion.files import written_whole
from vmat_diffusion.training.dvh import Region


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


# Part of each key: what `save_encoded` writes under another number is another file.
_LAYOUT = 1


def encoded_path(cache: Path, entry: Entry, encoding: Encoding) -> Path:
    """Where a case is kept: in a folder named by a hash of encoding and file; nothing stale is read."""
    record = json.dumps([_LAYOUT, asdict(encoding), entry.sha256], sort_keys=True)
    return cache / hashlib.sha256(record.encode()).hexdigest()[:16] / f"{entry.id}.npz"


def entries_with_dose(folder: Path, split: Split, site: str | None = None) -> tuple[Entry, ...]:
    """The cases of a split that have a dose, by id, of one site or all.

    Raises CaseError where there is none.
    """
    entries = {entry.id: entry for entry in entries_of(folder)}
    sites = {record["id"]: record["site"] for record in read_index(folder)}
    found = tuple(
        entries[name]
        for name in split_ids(folder, split)
        if entries[name].has_dose and site in (None, sites[name])
    )
    if not found:
        of = "" if site is None else f" of the site {site}"
        raise CaseError(f"no case{of} of the split {split} of {folder} has a dose; see vmat-diffusion split")
    return found


def encode_cases(
    folder: Path,
    entries: Sequence[Entry],
    encoding: Encoding,
    cache: Path,
    *,
    workers: int = 1,
    first: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Path, ...]:
    """Encode the cases that are not in the cache yet, and return the files of all, in the order of `entries`.

    Several processes may do so at the same time if each begins at another case, `first`: they share the
    work, and a file that two of them make appears whole. `progress(done, all)` counts the files.
    """
    paths = [encoded_path(cache, entry, encoding) for entry in entries]
    jobs = [
        (folder / entries[k % len(entries)].file, paths[k % len(entries)], encoding)
        for k in range(first, first + len(entries))
    ]
    missing = [job for job in jobs if not job[1].exists()]
    done = len(jobs) - len(missing)
    if workers > 1 and len(missing) > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for k, _ in enumerate(pool.map(_encode, missing), start=done + 1):
                if progress:
                    progress(k, len(jobs))
        return tuple(paths)
    threads = torch.get_num_threads()
    for k, job in enumerate(missing, start=done + 1):
        _encode(job)
        if progress:
            progress(k, len(jobs))
    torch.set_num_threads(threads)  # numba's parallel loops set those of torch to all cores
    return tuple(paths)


def _encode(job: tuple[Path, Path, Encoding]) -> None:
    source, path, encoding = job
    if path.exists():  # another process was faster
        return
    training = load_case(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_encoded(path, training, encoding)
    except CaseError as fault:
        raise CaseError(f"{training.case.id} cannot be encoded: {fault}") from None


def spacing_mm(path: Path) -> tuple[float, float, float]:
    """The spacing (x, y, z) of a training case, without the rest of it."""
    x, y, z = (float(v) for v in read_arrays(path, only=("schema", "meta", "spacing_mm"))["spacing_mm"])
    return x, y, z


class SampleStream(Dataset):
    """Sample `n` is a case of the order drawn for epoch `n // cases`, changed as is drawn for that epoch."""

    def __init__(
        self,
        files: Sequence[Path],
        encoding: Encoding,
        *,
        multiple: int,
        changes: Changes,
        seed: int,
        order_seed: int,
    ) -> None:
        self.cases = EncodedCases(tuple(files), encoding, multiple=multiple, changes=changes, seed=seed)
        self.order_seed = order_seed

    def __getitem__(self, n: int) -> tuple[int, Sample]:
        epoch, place = divmod(n, len(self.cases))
        order = np.random.default_rng([self.order_seed, epoch]).permutation(len(self.cases))
        self.cases.epoch = epoch
        return n, self.cases[int(order[place])]


def stream_loader(stream: SampleStream, numbers: range, *, workers: int) -> DataLoader:
    """Samples of these numbers one by one, read by `workers` processes (0: by this one)."""
    return DataLoader(
        stream,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_deaf,
    )


def _deaf(worker: int) -> None:
    """Leave signals to the process that trains: it still needs samples to finish its step."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
