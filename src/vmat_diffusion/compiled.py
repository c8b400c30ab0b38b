"""Compiled loops that are compiled anew when any source that they may take something from has changed.

numba keeps compiled code beside the file of a function and looks at that file alone. Functions that it
compiles into a loop from other files, and constants that it freezes, it does not watch: such a loop would go
on with yesterday's physics.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

_Loop = TypeVar("_Loop")


@cache
def sources_digest(file: Path, root: Path) -> str:
    """SHA-256 of a source and of all that it imports below `root`, the packages' folder."""
    return hashlib.sha256(b"\0".join(source.read_bytes() for source in _sources(file, root))).hexdigest()


def _sources(file: Path, root: Path) -> list[Path]:
    seen, waiting = {file}, [file]
    while waiting:
        for found in _imported(waiting.pop(), root):
            if found not in seen:
                seen.add(found)
                waiting.append(found)
    return sorted(seen)


def _imported(file: Path, root: Path) -> Iterator[Path]:
    """The sources below `root` that a source names in an import, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    for name in names:
        place = root.joinpath(*name.split("."))
        for source in (place.with_suffix(".py"), place / "__init__.py"):
            if source.is_file():
                yield source


def watching(loop: _Loop, root: Path) -> _Loop:
    """A numba function with `cache=True`, whose kept code counts while no source it uses changes.

    The digest joins the stamp of the function's own file, which numba keeps with the compiled code. `root` is
    that of `sources_digest`.
    """
    kept = loop._cache._cache_file  # type: ignore[attr-defined]
    file = Path(loop.py_func.__code__.co_filename)  # type: ignore[attr-defined]
    kept._source_stamp = (kept._source_stamp, sources_digest(file, root))
    return loop
