"""Decoded training cases on local disk, so that an epoch reads arrays instead of unpacking npz files."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.distance import FAR_MM, signed_distance_mm
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.files import sha256_of
from vmat_diffusion.geometry import Mask, Point
from vmat_diffusion.training.cases import (
    UNREADABLE,
    TrainingCase,
    case_from_arrays,
    load_case,
    load_sdf_mm,
    read_arrays,
)

# Part of the name of a cached case: another layout of its folder is another number.
_LAYOUT = 2
# Arrays with a file of their own, read only where they are needed; the rest is small.
_LARGE = ("hu", "dose", "masks", "possible_dose", "sdf_tenth_mm")


@dataclass(frozen=True, eq=False)
class DecodedCase:
    """A training case and the distance maps of its targets and organs.

    `sdf_tenth_mm` holds signed distances in tenths of a millimetre by structure, inside negative, on
    the grid of the case; it is empty where none were asked for. `far_mm` is the largest they can be.
    """

    training: TrainingCase
    sdf_tenth_mm: Mapping[str, NDArray[np.int16]]
    far_mm: float = FAR_MM


def default_cache() -> Path:
    """The cache of this user in the folder for temporary files, which TMPDIR moves to a node's own disk.

    Only the user can read it. Raises InputError if somebody else owns the folder.
    """
    user = str(os.getuid()) if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"vmat-diffusion-cache-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise InputError(f"the cache folder {folder} belongs to somebody else; give another with --cache")
    return folder


def decoded_case(path: Path, *, far_mm: float | None = FAR_MM) -> DecodedCase:
    """A case from its npz file with distance maps up to `far_mm`, or without them for None.

    Maps that are stored with the case are taken; others are computed, which is most of the time.
    """
    training = load_case(path)
    if far_mm is None:
        return DecodedCase(training, {})
    return DecodedCase(training, _distances(path, training, far_mm), far_mm)


def cached_case(path: Path, sha256: str, cache: Path | None, *, far_mm: float | None = FAR_MM) -> DecodedCase:
    """The same as `decoded_case`, by way of the cache; its arrays are mapped from disk, not to be written.

    `sha256` is that of the npz file, as the index of the data set has it. Several processes may ask for
    one case at a time: each entry appears whole or not at all. Without a `cache` the file is decoded.
    Raises CaseError for a file that is not the one of that hash or a cache that cannot be written.
    """
    if cache is None:
        return decoded_case(path, far_mm=far_mm)
    distances = "none" if far_mm is None else f"{far_mm:g}mm"
    entry = cache / sha256[:2] / f"{sha256}-v{_LAYOUT}-{distances}"
    found = _read(entry, far_mm)
    if found is not None:
        return found
    if sha256_of(path) != sha256:
        raise CaseError(f"{path.name} is not the file that the index names; make the index again")
    try:
        _write(entry, path, far_mm)
    except OSError as fault:
        raise CaseError(
            f"the cache {cache} cannot be written ({fault.strerror}); free space or give another with --cache"
        ) from None
    written = _read(entry, far_mm)
    if written is None:
        raise CaseError(f"the cache {cache} cannot be read back; delete it or give another with --cache")
    return written


def _read(entry: Path, far_mm: float | None) -> DecodedCase | None:
    """The case of an entry; None where there is none or it is damaged."""
    try:
        with np.load(entry / "small.npz", allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        for name in arrays.pop("large"):
            arrays[str(name)] = np.load(entry / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        names = [str(n) for n in arrays.pop("sdf_names")]
        maps = dict(zip(names, arrays.pop("sdf_tenth_mm", ()), strict=True))
        training = case_from_arrays(arrays)
    except UNREADABLE:
        return None
    return DecodedCase(training, maps, FAR_MM if far_mm is None else far_mm)


def _write(entry: Path, path: Path, far_mm: float | None) -> None:
    """Decode a file into an entry. Where another process was first, its entry stands."""
    arrays = read_arrays(path)
    maps = {} if far_mm is None else _distances(path, case_from_arrays(arrays), far_mm)
    arrays["sdf_names"] = np.array(list(maps), str)
    if maps:
        arrays["sdf_tenth_mm"] = np.stack(list(maps.values()))
    entry.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{entry.name[:8]}.", dir=entry.parent))
    try:
        large = [name for name in _LARGE if name in arrays]
        for name in large:
            np.save(part / f"{name}.npy", arrays.pop(name))
        arrays["large"] = np.array(large)  # so that one that is deleted later is missed
        np.savez(part / "small.npz", **arrays)  # type: ignore[arg-type]
        if entry.exists() and _read(entry, far_mm) is None:
            shutil.rmtree(entry, ignore_errors=True)
        try:
            part.rename(entry)
        except OSError:
            if not entry.is_dir():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _distances(path: Path, training: TrainingCase, far_mm: float) -> dict[str, NDArray[np.int16]]:
    """The distance maps of targets and organs in tenths of a millimetre, stored or computed."""
    stored = load_sdf_mm(path)
    case = training.case

    def distance_mm(name: str, mask: Mask, spacing_mm: Point) -> NDArray[np.float32]:
        if stored is not None:
            return np.clip(stored[name], -far_mm, far_mm)
        return signed_distance_mm(mask, spacing_mm, far_mm)

    return {
        name: np.rint(distance_mm(name, s.mask, case.grid.spacing_mm) * 10).astype(np.int16)
        for name, s in case.structures.items()
        if s.role in ("target", "organ")
    }
