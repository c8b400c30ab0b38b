"""No import circle: a module that is read needs only modules that can be read without it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("folder", ["src", "benchmarks"])
def test_no_import_circle(folder: str) -> None:
    """Imports within functions count, those for types alone do not. A circle raises CycleError."""
    files = {_name(path.relative_to(ROOT / folder)): path for path in (ROOT / folder).rglob("*.py")}
    assert len(files) > 5
    graph = {name: set(_imported(path, files)) - {name} for name, path in files.items()}
    list(TopologicalSorter(graph).static_order())


def _name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _imported(path: Path, known: dict[str, Path]) -> Iterator[str]:
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if whole in known:
                    yield whole
                elif node.module in known:
                    yield node.module
