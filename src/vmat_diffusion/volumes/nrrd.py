"""NRRD files of one volume. Source: the format's definition, teem.sourceforge.net/nrrd/format.html."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmat_diffusion.errors import CaseError
from vmat_diffusion.geometry import Grid

_TYPES = {"uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "float": "f4", "double": "f8"}
_ALSO = {
    **{"uchar": "u1", "unsigned char": "u1", "uint8_t": "u1", "short": "i2", "short int": "i2"},
    **{
        "int16_t": "i2",
        "ushort": "u2",
        "unsigned short": "u2",
        "uint16_t": "u2",
        "int": "i4",
        "int32_t": "i4",
    },
}
# The signs that bring x and y of a space to LPS.
_SPACES = {
    "left-posterior-superior": (1, 1),
    "lps": (1, 1),
    "right-anterior-superior": (-1, -1),
    "ras": (-1, -1),
}
_VOXELS_MAX = 2**29
_HEAD_MAX = 1 << 20


def write_nrrd(path: Path, values: NDArray, grid: Grid) -> None:
    """Values `[z, y, x]` as a compressed NRRD in LPS."""
    names = {code: name for name, code in _TYPES.items()}
    nz, ny, nx = values.shape
    directions = " ".join(
        f"({','.join(repr(s) if i == axis else '0' for i in range(3))})"
        for axis, s in enumerate(map(float, grid.spacing_mm))
    )
    origin = ",".join(repr(float(v)) for v in grid.origin_mm)
    head = (
        f"NRRD0004\ntype: {names[values.dtype.str[1:]]}\ndimension: 3\nspace: left-posterior-superior\n"
        f"sizes: {nx} {ny} {nz}\nspace directions: {directions}\nkinds: domain domain domain\n"
        f"endian: little\nencoding: gzip\nspace origin: ({origin})\n\n"
    )
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    content = packer.compress(values.astype(values.dtype.newbyteorder("<")).tobytes()) + packer.flush()
    path.write_bytes(head.encode("ascii") + content)


def read_nrrd(path: Path) -> tuple[NDArray, NDArray[np.float64]]:
    """Values `[i, j, k]` and the matrix from `ijk1` to LPS; CaseError for what is no volume in space."""
    raw = path.read_bytes()
    head, separator, content = raw[:_HEAD_MAX].partition(b"\n\n")
    if not raw.startswith(b"NRRD") or not separator:
        raise CaseError(f"{path.name} is no NRRD file with its data in it; write it again")
    content = raw[len(head) + 2 :]
    fields = dict(
        line.split(": ", 1) for line in head.decode("ascii", "replace").splitlines()[1:] if ": " in line
    )
    try:
        kind = fields["type"].strip()
        dtype = np.dtype({**_TYPES, **_ALSO}[kind]).newbyteorder(
            ">" if fields.get("endian", "little").strip() == "big" else "<"
        )
        sizes = tuple(int(v) for v in fields["sizes"].split())
        sign = _SPACES[fields["space"].strip().lower()]
        columns = [_vector(text) for text in re.findall(r"\([^)]*\)", fields["space directions"])]
        origin = _vector(fields["space origin"])
    except (KeyError, ValueError):
        raise CaseError(
            f"{path.name}: its NRRD head does not describe a volume in space; write it again"
        ) from None
    if len(sizes) != 3 or len(columns) != 3 or not 0 < int(np.prod(sizes, dtype=object)) <= _VOXELS_MAX:
        raise CaseError(
            f"{path.name} holds no volume of three axes and at most {_VOXELS_MAX} voxels; crop it"
        )
    size = int(np.prod(sizes)) * dtype.itemsize
    values = np.frombuffer(_unpacked(content, fields.get("encoding", "").strip(), size, path.name), dtype)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = np.array(columns).T, origin
    matrix[:2] *= np.array(sign)[:, None]
    return values.reshape(sizes, order="F").astype(dtype.newbyteorder("=")), matrix


def _vector(text: str) -> tuple[float, float, float]:
    x, y, z = (float(v) for v in text.strip().strip("()").split(","))
    return x, y, z


def _unpacked(content: bytes, encoding: str, size: int, name: str) -> bytes:
    if encoding in ("gzip", "gz"):
        unpacker = zlib.decompressobj(47)
        try:
            content = unpacker.decompress(content, size)
        except zlib.error:
            content = b""
    elif encoding != "raw":
        raise CaseError(f"{name}: NRRD encoding {encoding!r} is not known; write it with raw or gzip")
    if len(content) < size:
        raise CaseError(f"{name} holds fewer voxels than its head says; copy it again")
    return content[:size]
