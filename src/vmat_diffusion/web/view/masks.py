"""Structures as packed masks: a bit for each voxel of their box, and planes without unpacking all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.case import Role, Structure
from vmat_diffusion.geometry import Grid, bounding_box, subgrid

# Voxels that are unpacked at a time where all of a structure is gone through.
_SLAB_VOXELS = 4_000_000


@dataclass(frozen=True, eq=False)
class PackedStructure:
    """A structure whose mask lies in the box from `first` (z, y, x) of `shape` voxels.

    `bits[z, y, x // 8]` holds the rows packed, the first voxel of eight in the highest bit.
    """

    name: str
    role: Role
    alias: str
    first: tuple[int, int, int]
    shape: tuple[int, int, int]
    bits: NDArray[np.uint8]

    @property
    def box(self) -> tuple[slice, slice, slice]:
        """Where the mask lies in its grid, as slices `(z, y, x)`."""
        z, y, x = (slice(a, a + n) for a, n in zip(self.first, self.shape, strict=True))
        return z, y, x

    def part(self, grid: Grid) -> tuple[Structure, Grid]:
        """The structure on the part of the grid that its box covers, and that part."""
        mask = np.unpackbits(self.bits, axis=-1, count=self.shape[2]).astype(bool)
        return Structure(self.name, self.role, mask, self.alias), subgrid(grid, self.box)

    @property
    def voxels(self) -> int:
        """How many voxels the structure has."""
        return int(np.bitwise_count(self.bits).sum(dtype=np.int64))

    def slabs(self, grid: Grid) -> Iterator[tuple[Structure, Grid]]:
        """The structure part by part, each of some axial slices that it has voxels on, as from `part`."""
        z, y, x = self.box
        step = max(1, _SLAB_VOXELS // (self.shape[1] * self.shape[2]))
        for first in range(0, self.shape[0], step):
            bits = self.bits[first : first + step]
            mask = np.unpackbits(bits, axis=-1, count=self.shape[2]).astype(bool)
            if mask.any():
                at = slice(z.start + first, z.start + first + len(mask))
                yield Structure(self.name, self.role, mask, self.alias), subgrid(grid, (at, y, x))

    def plane(self, axis: int, index: int) -> NDArray[np.bool_] | None:
        """The mask in a layer across an array axis (0 = z), within its box; None where it has no voxel."""
        at = index - self.first[axis]
        if not 0 <= at < self.shape[axis]:
            return None
        if axis == 2:
            mask = (self.bits[:, :, at // 8] >> (7 - at % 8)) & np.uint8(1)
        else:
            mask = np.unpackbits(
                self.bits[at] if axis == 0 else self.bits[:, at], axis=-1, count=self.shape[2]
            )
        return mask.astype(bool) if mask.any() else None

    def layers(self) -> list[int]:
        """The axial slices of the grid that it has voxels on."""
        return [int(k) + self.first[0] for k in np.flatnonzero(self.bits.any(axis=(1, 2)))]


def packed(structure: Structure) -> PackedStructure | None:
    """A structure with its mask packed; None for one without voxels."""
    box = bounding_box(structure.mask)
    if box is None:
        return None
    part = structure.mask[box]
    first = (box[0].start, box[1].start, box[2].start)
    shape = (part.shape[0], part.shape[1], part.shape[2])
    bits = np.packbits(part, axis=-1)
    return PackedStructure(structure.name, structure.role, structure.alias, first, shape, bits)
