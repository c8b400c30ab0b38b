"""The cases of a data set, encoded once and kept: a folder of files that several processes fill together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import torch

from vmat_diffusion.diffusion.encode import Encoding
from vmat_diffusion.errors import CaseError
from vmat_diffusion.training.cases import load_case, read_arrays
from vmat_diffusion.training.data import Entry, entries_of
from vmat_diffusion.training.datamodule import split_ids
from vmat_diffusion.training.encoded import save_encoded
from vmat_diffusion.training.index import read_index
from vmat_diffusion.training.splits import Split

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
