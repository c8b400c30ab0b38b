"""Compiled loops that are compiled anew when any source that they may take something from has changed.

numba keeps compiled code beside the file of a function and looks at that file alone. Functions that it
compiles into a loop from other files, and constants that it freezes, it does not watch: such a loop would go
on with yesterday's physics.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TypeVar

_Loop = TypeVar("_Loop")


@cache
def sources_digest(folder: Path) -> str:
    """SHA-256 of all Python sources in a folder and the folders in it, by name and content."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def watching(loop: _Loop, folder: Path) -> _Loop:
    """A numba function with `cache=True`, whose kept code counts while no source in `folder` changes.

    The digest joins the stamp of the function's own file, which numba keeps with the compiled code.
    """
    kept = loop._cache._cache_file  # type: ignore[attr-defined]
    kept._source_stamp = (kept._source_stamp, sources_digest(folder))
    return loop
