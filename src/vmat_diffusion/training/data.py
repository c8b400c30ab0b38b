"""Training cases as tensors: a torch data set over a folder of cases. Keys and units: `docs/loading.md`.

Everything stays in physical units; the encoder of the network is the one place that normalises.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

from vmat_diffusion.distance import FAR_MM
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.training.augment import (
    Augmentation,
    AugmentSettings,
    augment,
    centred,
    draw_augmentation,
    mirrored_name,
    water_hu,
)
from vmat_diffusion.training.cache import DecodedCase, cached_case
from vmat_diffusion.training.cases import Constraint, load_constraints
from vmat_diffusion.training.index import read_index
from vmat_diffusion.training.motion import Index

# The number of a goal behind its comparator.
_LIMIT = re.compile(r"([<>]?=)\s*[\d.]+(?=\s|$)")


@dataclass(frozen=True)
class DataSettings:
    """What an item holds.

    `crop` (z, y, x) is the shape of every item; None takes the volumes whole, which must then be of one
    shape. `structures` and `goals` give the order of channels and constraints; None takes all that the
    data set has. A goal is written without its number: "Parotid_L Dmean <= Gy".
    `far_mm` is the largest distance of the distance maps, None leaves them out. `need_dose` leaves out
    cases without a dose. `seed` decides all augmentations.
    """

    crop: Index | None = None
    structures: tuple[str, ...] | None = None
    goals: tuple[str, ...] | None = None
    far_mm: float | None = FAR_MM
    need_dose: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.crop is not None and (len(self.crop) != 3 or min(self.crop) < 1):
            raise InputError(f"loading: crop = {self.crop} must be three positive numbers of voxels")
        if self.far_mm is not None and not 0 < self.far_mm <= FAR_MM:
            raise InputError(f"loading: far_mm = {self.far_mm} must be above 0 and at most {FAR_MM:g} mm")
        if self.seed < 0:
            raise InputError(f"loading: seed = {self.seed} must not be negative")


@dataclass(frozen=True)
class Entry:
    """A case of a data set as its index has it."""

    id: str
    file: str
    sha256: str
    shape: Index
    targets: tuple[str, ...]
    organs: tuple[str, ...]
    has_dose: bool


def entries_of(folder: Path) -> tuple[Entry, ...]:
    """The cases of a data set folder, by id. Raises CaseError where the index is absent, damaged or empty."""
    entries = []
    for row in read_index(folder):
        z, y, x = row["shape"]
        entries.append(
            Entry(
                id=row["id"],
                file=row["file"],
                sha256=row["sha256"],
                shape=(z, y, x),
                targets=tuple(row["targets"]),
                organs=tuple(row["organs"]),
                has_dose=row["has_dose"],
            )
        )
    if not entries:
        raise CaseError(f"the index of {folder} names no case; see rejected.csv")
    return tuple(entries)


class CaseDataset(Dataset):
    """The cases of a data set folder as dictionaries of tensors.

    With `augment` an item is a random one that depends on the seed, the epoch and its index alone:
    ask for `dataset[epoch, index]`, as `EpochSampler` does; without, it is the case with the targets in
    the middle. `ids` selects cases; None takes all. `left_out` names those without the dose that is needed.
    Workers may copy it; every process maps the same files of the `cache` (None decodes each time).
    """

    def __init__(
        self,
        folder: Path,
        ids: Sequence[str] | None = None,
        *,
        settings: DataSettings | None = None,
        augment: AugmentSettings | None = None,
        cache: Path | None = None,
    ) -> None:
        self.folder, self.augment, self.cache = folder, augment, cache
        self.settings = settings = settings or DataSettings()
        index = entries_of(folder)
        entries = index if ids is None else _selected(index, ids)
        self.left_out = tuple(e.id for e in entries if settings.need_dose and not e.has_dose)
        self.entries = tuple(e for e in entries if e.id not in self.left_out)
        if not self.entries:
            raise CaseError(
                f"no case of {folder} is left to load; give cases with a dose or need_dose = false"
            )
        self.structures = settings.structures or _vocabulary(index)
        goals = _goals(folder, index) if settings.goals is None else settings.goals
        self.goals = goals
        if augment is not None and augment.flip_left_right:
            _check_sides(self.structures, goals)
        shapes = sorted({e.shape for e in index})
        if settings.crop is None and len(shapes) > 1:
            raise InputError(
                f"the cases have {len(shapes)} shapes, such as {shapes[0]} and {shapes[1]}; give a crop"
            )

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        decoded = self.decoded(index)
        if self.augment is None:
            change = centred(decoded.training, self.settings.crop)
        else:
            rng = np.random.default_rng([self.settings.seed, epoch, index])
            change = draw_augmentation(rng, self.augment, decoded.training, self.settings.crop)
        return as_tensors(augment(decoded, change), change, self.structures, self.goals)

    def decoded(self, index: int) -> DecodedCase:
        """A case as it was stored, by way of the cache."""
        entry = self.entries[index]
        path = self.folder / entry.file
        if not path.is_file():
            raise CaseError(f"{entry.file} of the index is not in {self.folder}; make the index again")
        return cached_case(path, entry.sha256, self.cache, far_mm=self.settings.far_mm)


class EpochSampler(DistributedSampler):
    """Shuffled `(epoch, index)` keys, the share of one of `replicas` processes.

    As a distributed sampler it is told the epoch by Lightning and left in place.
    """

    def __init__(self, dataset: CaseDataset, *, replicas: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, replicas, rank, shuffle=True, seed=dataset.settings.seed)

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        return ((self.epoch, index) for index in super().__iter__())


def as_tensors(
    decoded: DecodedCase, change: Augmentation, structures: Sequence[str], goals: Sequence[str]
) -> dict[str, Any]:
    """A case as a dictionary of tensors in physical units, by the table of `docs/loading.md`."""
    training, case = decoded.training, decoded.training.case
    shape, dose = case.grid.shape, case.reference_dose
    masks = np.zeros((len(structures), *shape), bool)
    present = np.zeros(len(structures), bool)
    levels = np.zeros(len(structures), np.float32)
    level_map = np.zeros(shape, np.float32)
    for i, name in enumerate(structures):
        if name in case.structures:
            masks[i], present[i] = case.structures[name].mask, True
            levels[i] = case.prescription.target_gy.get(name, 0) if case.prescription else 0
            np.maximum(level_map, levels[i], out=level_map, where=masks[i])
    hu = case.hu if training.has_ct else water_hu(case.body.mask)
    item: dict[str, Any] = {
        "id": case.id,
        "ct_hu": _channel(hu, np.float32),
        "has_ct": torch.tensor(training.has_ct),
        "body": _channel(case.body.mask, bool),
        "masks": torch.from_numpy(masks),
        "present": torch.from_numpy(present),
        "dose_gy": _channel(np.zeros(shape) if dose is None else dose.gy, np.float32),
        "has_dose": torch.tensor(dose is not None),
        "possible_dose": _channel(training.possible_dose, bool),
        "prescription_gy": torch.from_numpy(levels),
        "prescription_map_gy": _channel(level_map, np.float32),
        "spacing_mm": torch.tensor(case.grid.spacing_mm, dtype=torch.float32),
        "origin_mm": torch.tensor(case.grid.origin_mm, dtype=torch.float32),
        "padding": torch.tensor(training.padding),
        "flipped": torch.tensor([change.flip_left_right, change.flip_head_feet]),
        "rotation_deg": torch.tensor(change.rotation_deg, dtype=torch.float32),
    }
    if decoded.sdf_tenth_mm:
        item["sdf_mm"] = _distances_mm(decoded, structures)
    return item | _constraint_vectors(training.constraints, goals)


def goal_key(constraint: Constraint) -> str:
    """A constraint without its number, "Parotid_L Dmean <= Gy": what two cases have in common."""
    statement = constraint.goal.removeprefix(constraint.structure).strip()
    return " ".join([constraint.structure, _LIMIT.sub(r"\1", statement)])


def _channel(values: np.ndarray, kind: type) -> Tensor:
    """A copy of a volume as a tensor of one channel; cached arrays must not be written to."""
    return torch.from_numpy(np.array(values, kind)[None])


def _distances_mm(decoded: DecodedCase, structures: Sequence[str]) -> Tensor:
    out = np.full((len(structures), *decoded.training.case.grid.shape), decoded.far_mm, np.float32)
    for i, name in enumerate(structures):
        if name in decoded.sdf_tenth_mm:
            np.divide(decoded.sdf_tenth_mm[name], np.float32(10), out=out[i])
    return torch.from_numpy(out)


def _constraint_vectors(constraints: Sequence[Constraint], goals: Sequence[str]) -> dict[str, Tensor]:
    """Limits and results in the order of `goals`, with 0 and a False flag where there is none."""
    limit, achieved = (np.zeros(len(goals), np.float32) for _ in range(2))
    has_limit, has_achieved = (np.zeros(len(goals), bool) for _ in range(2))
    place = {key: i for i, key in enumerate(goals)}
    for constraint in constraints:
        i = place.get(goal_key(constraint))
        if i is None:
            continue
        limit[i], has_limit[i] = constraint.limit, True
        if constraint.achieved is not None:
            achieved[i], has_achieved[i] = constraint.achieved, True
    vectors = {
        "constraint_limit": limit,
        "constraint_achieved": achieved,
        "has_constraint": has_limit,
        "has_achieved": has_achieved,
    }
    return {name: torch.from_numpy(values) for name, values in vectors.items()}


def _selected(index: Sequence[Entry], ids: Sequence[str]) -> tuple[Entry, ...]:
    by_id = {e.id: e for e in index}
    if absent := [i for i in ids if i not in by_id]:
        raise CaseError(f"{absent[0]} is not in the index ({len(absent)} such cases); make the split again")
    return tuple(by_id[i] for i in sorted(set(ids)))


def _vocabulary(index: Sequence[Entry]) -> tuple[str, ...]:
    """All targets, then all organs of a data set by name, with the other side of each."""
    targets = _both_sides({name for e in index for name in e.targets})
    organs = _both_sides({name for e in index for name in e.organs}) - targets
    return (*sorted(targets), *sorted(organs))


def _goals(folder: Path, index: Sequence[Entry]) -> tuple[str, ...]:
    """All goals of a data set by name, with the other side of each."""
    keys = {goal_key(c) for e in index for c in load_constraints(folder / e.file)}
    return tuple(sorted(keys | {_other_side(key) for key in keys}))


def _both_sides(names: set[str]) -> set[str]:
    return names | {mirrored_name(name) for name in names}


def _other_side(goal: str) -> str:
    structure, _, rest = goal.partition(" ")
    return f"{mirrored_name(structure)} {rest}"


def _check_sides(structures: Sequence[str], goals: Sequence[str]) -> None:
    """Refuse an order of channels into which a mirrored case does not fit."""
    for what, names, other in (("structures", structures, mirrored_name), ("goals", goals, _other_side)):
        for name in names:
            if other(name) not in names:
                raise InputError(
                    f"loading: {what} holds {name} without {other(name)}, which left-right flips need; add it"
                )
