"""Encoded cases on disk: a data set is encoded once, and each training reads the files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vmat_diffusion.dataset.cases import UNREADABLE, TrainingCase, load_case, read_arrays
from vmat_diffusion.dataset.index import Entry, entries_of
from vmat_diffusion.dataset.schema import check_sizes
from vmat_diffusion.dataset.splits import Split, split_ids
from vmat_diffusion.diffusion.encode import Encoding, achieved_goals, encode
from vmat_diffusion.errors import CaseError
from vmat_diffusion.files import written_whole
from vmat_diffusion.progress import Progress, silent

# As in training cases: prescriptions up to 200 Gy, voxels of up to 5 cm on each side.
_TOP_GY_MAX, _VOXEL_CC_MAX = 200.0, 125.0
# Part of each key: another layout of the file is another file.
_LAYOUT = 1


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Files of encoded cases; of those for validation also the spacing (x, y, z) of the case in mm."""

    train: tuple[Path, ...]
    validation: tuple[Path, ...]
    spacings_mm: tuple[tuple[float, float, float], ...]


def entries_with_dose(folder: Path, split: Split, site: str | None = None) -> tuple[Entry, ...]:
    """The cases of a split that have a dose, by id, of one site or all.

    Raises CaseError where there is none.
    """
    entries = {entry.id: entry for entry in entries_of(folder)}
    found = tuple(
        entries[name]
        for name in split_ids(folder, split)
        if entries[name].has_dose and site in (None, entries[name].site)
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
    progress: Progress = silent,
) -> tuple[Path, ...]:
    """Encode the cases that are not in the cache yet; return the files of all, in the order of `entries`.

    Several processes may encode at the same time if each begins at another case, `first`: they share the
    work, and a file that two of them make appears whole. Progress is in files, of the stage `encode`.
    """
    paths = [encoded_path(cache, entry, encoding) for entry in entries]
    jobs = [
        (folder / entries[k % len(entries)].file, paths[k % len(entries)], encoding)
        for k in range(first, first + len(entries))
    ]
    missing = [job for job in jobs if not job[1].exists()]

    def report(made: int) -> None:
        done = len(jobs) - len(missing) + made
        progress("encode", done / len(jobs), f"{done} of {len(jobs)} cases")

    if workers > 1 and len(missing) > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for made, _ in enumerate(pool.map(_encode, missing), start=1):
                report(made)
        return tuple(paths)
    threads = torch.get_num_threads()
    for made, job in enumerate(missing, start=1):
        _encode(job)
        report(made)
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


def encoded_path(cache: Path, entry: Entry, encoding: Encoding) -> Path:
    """The file of an encoded case, in a folder named by a hash of the encoding and of the case's file."""
    record = json.dumps([_LAYOUT, asdict(encoding), entry.sha256], sort_keys=True)
    return cache / hashlib.sha256(record.encode()).hexdigest()[:16] / f"{entry.id}.npz"


def save_encoded(path: Path, training: TrainingCase, encoding: Encoding) -> Path:
    """Encode a case with its dose and write it as npz.

    The volume is in half precision and the dose in steps of 0.01 Gy, both cut to the box of possible dose.
    `mean_gy` and `hot_gy` are the goals that the dose achieved, NaN for absent organs.
    """
    case, dose = training.case, training.case.reference_dose
    if dose is None:
        raise ValueError(f"{case.id}: a case without dose teaches nothing")
    done = encode(case, training.possible_dose, encoding, has_ct=training.has_ct)
    goals = achieved_goals(case, dose, encoding)
    structures = [s for s in case.structures.values() if s.role in ("target", "organ") and s.voxels]
    arrays: dict[str, Any] = {
        "volume": done.volume.astype(np.float16),
        "vector": done.vector,
        "mask": np.packbits(done.mask),
        "dose": np.rint(dose.gy[done.box] * 100).astype(np.uint16),
        "top_gy": np.float64(done.top_gy),
        "voxel_cc": np.float64(case.grid.voxel_cc),
        "names": np.array([s.name for s in structures]),
        "targets": np.array([s.role == "target" for s in structures]),
        "masks": np.stack([np.packbits(s.mask[done.box]) for s in structures]),
        "mean_gy": np.array([goals.mean_gy.get(o, np.nan) for o in encoding.organs]),
        "hot_gy": np.array([goals.hot_gy.get(o, np.nan) for o in encoding.organs]),
    }
    with written_whole(path) as part, part.open("wb") as stream:
        np.savez(stream, **arrays)
    return path


def read_encoded(path: Path, encoding: Encoding) -> dict[str, NDArray]:
    """The arrays of `save_encoded`. Raises CaseError for a file that is damaged or of another encoding."""
    try:
        check_sizes(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        fits = _fits(arrays, encoding)
    except UNREADABLE:
        fits = False
    if not fits:
        raise CaseError(
            f"the encoded case {path.parent.name}/{path.name} is damaged; remove it and go on with --resume"
        )
    return arrays


def _fits(arrays: dict[str, NDArray], encoding: Encoding) -> bool:
    """Whether the arrays have the types, shapes and ranges of `save_encoded`. KeyError for a missing one."""
    if arrays["names"].ndim != 1:
        return False
    channels, *shape = arrays["volume"].shape
    bits, count = -(-math.prod(shape) // 8), len(arrays["names"])
    organs = (len(encoding.organs),)
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {
        "volume": ("f2", (len(encoding.channels), *shape)),
        "vector": ("f4", (encoding.layout.size,)),
        "mask": ("u1", (bits,)),
        "dose": ("u2", tuple(shape)),
        "top_gy": ("f8", ()),
        "voxel_cc": ("f8", ()),
        "targets": ("b1", (count,)),
        "masks": ("u1", (count, bits)),
        "mean_gy": ("f8", organs),
        "hot_gy": ("f8", organs),
    }
    return (
        len(shape) == 3
        and channels > 0
        and math.prod(shape) > 0
        and arrays["names"].dtype.kind == "U"
        and arrays["names"].shape == (count,)
        and all(arrays[n].dtype == np.dtype(kind) and arrays[n].shape == s for n, (kind, s) in wanted.items())
        and bool(np.isfinite(arrays["volume"]).all() and np.isfinite(arrays["vector"]).all())
        and 0 < float(arrays["top_gy"]) <= _TOP_GY_MAX
        and 0 < float(arrays["voxel_cc"]) <= _VOXEL_CC_MAX
    )


def spacing_mm(path: Path) -> tuple[float, float, float]:
    """The spacing (x, y, z) of a training case, without the rest of it."""
    x, y, z = (float(v) for v in read_arrays(path, only=("schema", "meta", "spacing_mm"))["spacing_mm"])
    return x, y, z
