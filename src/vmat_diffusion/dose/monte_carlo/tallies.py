"""What a run has counted so far: dose and sigma follow from it, and a file of it lets the run go on."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.files import written_whole

# Groups of batches whose doses are kept apart, so that what is computed from a dose can be computed from each
# of them too; also the batches of a round, fixed so that the result does not depend on the number of threads.
GROUPS = 16


@dataclass(frozen=True, eq=False)
class Tallies:
    """Sums over the batches of a run: every `GROUPS`-th batch belongs to the same group.

    `groups_mev[group, voxel]` is the energy that the batches of a group left in each voxel,
    `square_mev2[voxel]` the sum over all batches of its square. The next look at what is asked of the dose
    comes with batch `next_look`; the first was with batch `first_look`. `seconds` is the time that all parts
    of the run took.
    """

    groups_mev: NDArray[np.float32]
    square_mev2: NDArray[np.float64]
    batches: int = 0
    photons: int = 0
    first_look: int = 0
    next_look: int = 0
    seconds: float = 0.0

    @classmethod
    def empty(cls, voxels: int) -> Tallies:
        """The tallies of a run that has not begun."""
        return cls(np.zeros((GROUPS, voxels), np.float32), np.zeros(voxels))

    def total_mev(self) -> NDArray[np.float64]:
        """The energy left in each voxel by all batches."""
        return self.groups_mev.sum(axis=0, dtype=np.float64)


def run_key(*parts: object) -> str:
    """SHA-256 of all that a run's result depends on: arrays, named tuples of arrays, and plain values."""
    digest = hashlib.sha256()
    waiting = list(parts)[::-1]
    while waiting:
        part = waiting.pop()
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype} {part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        elif isinstance(part, tuple):
            waiting += [len(part), *part][::-1]
        else:
            digest.update(f"{part!r};".encode())
    return digest.hexdigest()


def write_tallies(file: Path, tallies: Tallies, key: str) -> None:
    """Write tallies with the key of their run; voxels that no energy reached are left out."""
    hit = np.flatnonzero(tallies.square_mev2)
    with written_whole(file) as part, part.open("wb") as stream:
        np.savez(
            stream,
            key=key,
            voxels=tallies.square_mev2.size,
            hit=hit.astype(np.uint32),
            groups_mev=tallies.groups_mev[:, hit],
            square_mev2=tallies.square_mev2[hit],
            counts=np.array([tallies.batches, tallies.photons, tallies.first_look, tallies.next_look]),
            seconds=tallies.seconds,
        )


def read_tallies(file: Path, key: str) -> Tallies | None:
    """The tallies in a file; None where there is none, or they are of another run or cannot be read."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            if str(kept["key"]) != key:
                return None
            out = Tallies.empty(int(kept["voxels"]))
            out.groups_mev[:, kept["hit"]] = kept["groups_mev"]
            out.square_mev2[kept["hit"]] = kept["square_mev2"]
            counts = [int(n) for n in kept["counts"]]
            seconds = float(kept["seconds"])
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    return Tallies(out.groups_mev, out.square_mev2, counts[0], counts[1], counts[2], counts[3], seconds)
