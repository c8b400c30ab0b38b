"""Compiled loops that are compiled anew when any source that they may take something from has changed.

numba keeps compiled code beside the file of a function and looks at that file alone. Functions that it
compiles into a loop from other files, and constants that it freezes, it does not watch: such a loop would go
on with yesterday's physics.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

_Loop = TypeVar("_Loop")


@cache
def sources_digest(file: Path, folder: Path) -> str:
    """SHA-256 of a source and of all in `folder` that it imports, however indirectly.

    Modules must be loaded, as those of a module that runs are.
    """
    seen, waiting = {file.resolve()}, [file.resolve()]
    while waiting:
        for found in _imported(waiting.pop(), folder.resolve()):
            if found not in seen:
                seen.add(found)
                waiting.append(found)
    digest = hashlib.sha256()
    for source in sorted(seen):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    return digest.hexdigest()


def _imported(file: Path, folder: Path) -> Iterator[Path]:
    """The sources in a folder that a source imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    for name in names:
        source = getattr(sys.modules.get(name), "__file__", None)
        if source and (path := Path(source).resolve()).is_relative_to(folder) and path.suffix == ".py":
            yield path


def watching(loop: _Loop, folder: Path) -> _Loop:
    """A numba function with `cache=True`, whose kept code counts while no source it uses changes.

    The digest joins the stamp of the function's own file, which numba keeps with the compiled code.
    """
    kept = loop._cache._cache_file  # type: ignore[attr-defined]
    file = Path(loop.py_func.__code__.co_filename)  # type: ignore[attr-defined]
    kept._source_stamp = (kept._source_stamp, sources_digest(file, folder))
    return loop
