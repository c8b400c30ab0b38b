"""Cases made ready to look at: read once from DICOM, then mapped from a store on the disk.

Reading a large CT takes seconds and hundreds of megabytes. The store holds HU as 16-bit numbers that are
mapped into memory, outlines as drawn, and packed masks, so that many cases can be open at once. It is a
cache: it can be deleted at any time, and holds what the case's own folder holds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.dicom.structure_set.drawing import Drawing, Outline, Scan, read_scan
from vmat_diffusion.errors import CaseError, kind_and_place
from vmat_diffusion.files import read_json, written_whole
from vmat_diffusion.geometry import Grid
from vmat_diffusion.origin import Origin
from vmat_diffusion.web.view.masks import PackedStructure, packed

_LOG = logging.getLogger("vmat_diffusion.web")
_T = TypeVar("_T")
_FORMAT = 1
_KEPT = 40  # cases in the store; the ones not opened for longest go first
_TRIES = 3
# What reading a file of the store raises where a computer lost its power while it was written.
_DAMAGES = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True, eq=False)
class Outlines:
    """All outlines of a case in one array: `[start[k], start[k + 1])` of `points` is the k-th.

    `region` and `layer` say of which drawing and on which axial slice it lies.
    """

    points: NDArray[np.float32]
    start: NDArray[np.int64]
    region: NDArray[np.int32]
    layer: NDArray[np.int32]

    def on(self, layer: int) -> Iterator[tuple[int, Outline]]:
        """The drawing's number in the list and the contour, for each on a slice."""
        for k in np.flatnonzero(self.layer == layer):
            yield int(self.region[k]), self.points[self.start[k] : self.start[k + 1]]

    def layers_of(self, region: int) -> list[int]:
        """The slices that a drawing has outlines on, ascending."""
        return np.unique(self.layer[self.region == region]).tolist()


@dataclass(frozen=True, eq=False)
class Images:
    """The CT of a case and what is drawn on it. `hu` is mapped from the disk.

    `regions` are plain data of each drawing: number, name, alias, role, colour. `axial` says whether outlines
    are as drawn.
    """

    key: str
    folder: Path
    grid: Grid
    hu: NDArray[np.int16]
    regions: tuple[Mapping[str, Any], ...]
    outlines: Outlines
    origin: Origin
    series_uid: str
    axial: bool
    steps: tuple[str, ...]


def view_store(data: Path) -> CaseStore:
    """The store of a review room in its data folder."""
    return CaseStore(data / "views")


class CaseStore:
    """Cases ready to look at, in one folder. Safe for threads, and for several processes on one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def images(self, case_folder: Path) -> Images:
        """The CT and the outlines of the case in a DICOM folder; read there the first time.

        The masks are then made in the background, for `structures`. Raises CaseError as `read_scan`.
        """
        key = _key(case_folder)
        return _tried(lambda: self._images(key, case_folder))

    def _images(self, key: str, case_folder: Path) -> Images:
        place = self.folder / key
        with self._lock(key):
            if not (place / "images.json").is_file():
                scan = read_scan(case_folder)
                _publish(place, lambda part: _save_images(part, scan))
                self._trim(keep=place)
                threading.Thread(
                    target=self._masks_ahead, args=(key, case_folder, scan), name="masks", daemon=True
                ).start()
            return self._loaded(place, lambda: _load_images(place, key))

    def _loaded(self, place: Path, load: Callable[[], _T]) -> _T:
        """What a loader returns; a place that is damaged is let go, so that the next try makes it anew."""
        try:
            return load()
        except FileNotFoundError:
            raise
        except _DAMAGES:
            _throw_away(place)
            raise FileNotFoundError(place) from None

    def structures(self, case_folder: Path) -> tuple[PackedStructure, ...]:
        """The structures of the case with their masks; made the first time. Raises CaseError."""
        key = _key(case_folder)

        def found() -> tuple[PackedStructure, ...]:
            self._images(key, case_folder)
            return self._masks(key, case_folder, None)

        return _tried(found)

    def _masks_ahead(self, key: str, case_folder: Path, scan: Scan) -> None:
        """Make the masks before they are asked for; what fails is tried again and told then."""
        try:
            self._masks(key, case_folder, scan)
        except FileNotFoundError:  # the case was let go meanwhile
            pass
        except Exception as error:  # its own message may hold a name, and a thread's would be printed
            _LOG.error("%s in making masks", kind_and_place(error))

    def _masks(self, key: str, case_folder: Path, scan: Scan | None) -> tuple[PackedStructure, ...]:
        place = self.folder / key
        with self._lock(f"{key}.masks"):
            if not (place / "masks.npz").is_file():
                _save_masks(place, scan or read_scan(case_folder))
            return self._loaded(place, lambda: _load_masks(place))

    def _lock(self, key: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(key, threading.Lock())

    def _trim(self, *, keep: Path) -> None:
        ready = [
            p
            for p in self.folder.iterdir()
            if p != keep and p.name[0] != "." and (p / "images.json").is_file()
        ]
        ready.sort(key=lambda p: p.stat().st_atime, reverse=True)
        for old in ready[_KEPT - 1 :]:
            self._let_go(old)

    def _let_go(self, place: Path) -> None:
        """Remove a case from the store, unless it is being opened."""
        with ExitStack() as held:
            for name in (place.name, f"{place.name}.masks"):
                lock = self._lock(name)
                if not lock.acquire(blocking=False):
                    return
                held.callback(lock.release)
            _throw_away(place)


def _throw_away(place: Path) -> None:
    """At once under another name: nobody, of another process either, finds half of it."""
    gone = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.part")
    with suppress(OSError):
        place.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _tried(load: Callable[[], _T]) -> _T:
    """What a loader returns; again where another process let go of the case meanwhile."""
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            return load()
    raise CaseError("the case was removed from `views` or damaged there again and again; look at the disk")


def _key(case_folder: Path) -> str:
    """A name for a folder's contents that tells nothing of them, by names, sizes and times of its files."""
    if not case_folder.is_dir():
        raise CaseError("the case's folder is gone; restore it to look at the plan")
    digest = hashlib.sha256(f"{_FORMAT} {case_folder.resolve()}".encode())
    for base, folders, names in os.walk(case_folder):
        folders.sort()
        for name in sorted(names):
            stat = (Path(base) / name).stat()
            digest.update(
                f"{base}/{name} {stat.st_size} {stat.st_mtime_ns}\n".encode("utf-8", "surrogatepass")
            )
    return digest.hexdigest()[:32]


def _publish(place: Path, write: Any) -> None:
    """Make a folder that appears whole; where another process was quicker, its folder stays."""
    part = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.part")
    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        part.mkdir(mode=0o700)
        write(part)
        try:
            part.rename(place)
        except OSError:
            if not (place / "images.json").is_file():
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _save_images(place: Path, scan: Scan) -> None:
    np.save(place / "hu.npy", scan.hu)
    found = _outlines(scan.drawings)
    np.savez(place / "outlines.npz", **{name: getattr(found, name) for name in _OUTLINES})
    facts = {
        "grid": asdict(scan.grid),
        "regions": [
            {"number": d.number, "name": d.name, "alias": d.alias, "role": d.role, "colour": d.colour}
            for d in scan.drawings
        ],
        "origin": asdict(scan.origin),
        "series_uid": scan.series_uid,
        "axial": scan.axial,
        "steps": scan.steps,
    }
    (place / "images.json").write_text(json.dumps(facts), encoding="utf-8")


_OUTLINES = ("points", "start", "region", "layer")


def _outlines(drawings: Sequence[Drawing]) -> Outlines:
    points, region, layer = [], [], []
    for k, drawing in enumerate(drawings):
        for index in sorted(drawing.outlines):
            for outline in drawing.outlines[index]:
                points.append(outline)
                region.append(k)
                layer.append(index)
    start = np.concatenate([[0], np.cumsum([len(p) for p in points])]).astype(np.int64)
    joined = np.concatenate(points) if points else np.zeros((0, 2), np.float32)
    return Outlines(joined, start, np.array(region, np.int32), np.array(layer, np.int32))


def _load_images(place: Path, key: str) -> Images:
    os.utime(place)
    facts: Any = read_json(place / "images.json")
    with np.load(place / "outlines.npz") as arrays:
        outlines = Outlines(*(arrays[name] for name in _OUTLINES))
    shape, spacing, origin = (tuple(facts["grid"][k]) for k in ("shape", "spacing_mm", "origin_mm"))
    hu = np.load(place / "hu.npy", mmap_mode="r")
    if hu.shape != shape or hu.dtype != np.int16:
        raise ValueError("the store holds another CT than its facts say")
    facts["origin"]["doses"] = tuple(facts["origin"]["doses"])
    return Images(
        key,
        place,
        Grid(shape, spacing, origin),
        hu,
        tuple(facts["regions"]),
        outlines,
        Origin(**facts["origin"]),
        facts["series_uid"],
        facts["axial"],
        tuple(facts["steps"]),
    )


def _save_masks(place: Path, scan: Scan) -> None:
    arrays: dict[str, NDArray] = {}
    listed: list[list[Any]] = []
    for structure in scan.masks():
        if (found := packed(structure)) is not None:
            arrays[f"bits_{len(listed)}"] = found.bits
            listed.append([found.name, found.role, found.alias, found.first, found.shape])
    arrays["listed"] = np.frombuffer(json.dumps(listed).encode(), np.uint8)
    with written_whole(place / "masks.npz") as part, part.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]


def _load_masks(place: Path) -> tuple[PackedStructure, ...]:
    with np.load(place / "masks.npz") as arrays:
        listed = json.loads(arrays["listed"].tobytes())
        return tuple(
            PackedStructure(name, role, alias, tuple(first), tuple(shape), arrays[f"bits_{k}"])
            for k, (name, role, alias, first, shape) in enumerate(listed)
        )
