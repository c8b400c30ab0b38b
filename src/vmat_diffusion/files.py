"""Files that appear whole or not at all, and the hash that tells them apart."""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


def parse_json(text: str, *, characters: int = 64_000_000) -> Any:
    """JSON from a file that anybody may have written.

    Raises ValueError for text that is too long, no JSON, nested too deeply for the reader, or that holds a
    number which is not finite.
    """
    if len(text) > characters:
        raise ValueError(f"{len(text)} characters, more than {characters}")
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is not finite")
    return value


def csv_cell(value: object) -> object:
    """A value for a cell of a table: text that a spreadsheet would run as a formula gets an apostrophe.

    Numbers, negative ones too, stay as they are.
    """
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
