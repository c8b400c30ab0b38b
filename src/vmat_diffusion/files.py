"""Files that appear whole or not at all, and the hash that tells them apart."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A temporary name beside `path` to write to; the file is renamed to `path` at the end.

    On any failure it is removed and `path` stays as it was. Raises FileExistsError where `path` exists and
    is not to be overwritten, even where another writer has just made it.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        if overwrite:
            part.replace(path)
        else:
            _publish(part, path)
    finally:
        part.unlink(missing_ok=True)


def _publish(part: Path, path: Path) -> None:
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(path) from None
        part.rename(path)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_hash(source: Path) -> str:
    """SHA-256 over the contents of a file, or of all files of a folder, whatever their names and order."""
    digests = []
    for file in [source] if source.is_file() else source.rglob("*"):
        if file.is_file():
            digests.append(hashlib.sha256(file.read_bytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()
