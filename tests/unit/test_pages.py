"""The pages say what is there: files that exist, names that are public, spellings of the house."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import vmat_diffusion as vd

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
# Files of this repository, named with their folder.
_FILE = re.compile(r"`(?:python |pytest )?((?:tests|benchmarks|scripts|examples|src|notebooks|docs)/[\w./]+)")


def _ids(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_a_page_names_files_that_exist(page: Path) -> None:
    named = {name for name in _FILE.findall(page.read_text(encoding="utf-8")) if "*" not in name}
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def _public_names(code: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "vd":
            yield node.attr


@pytest.mark.parametrize("page", PAGES, ids=_ids)
def test_python_on_a_page_uses_public_names(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    used = {name for block in blocks for name in _public_names(block)}
    assert used <= set(vd.__all__)


def test_the_reference_has_every_public_name() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^::: vmat_diffusion\.(?:\w+\.)?(\w+)$", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(vd.__all__)


def test_the_lines_of_the_front_page_are_those_of_architecture() -> None:
    front, story = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/architecture.md")
    )
    (code,) = re.findall(r"```python\n(.*?)```", front, flags=re.DOTALL)
    assert f"```python\n{code}```" in story


def test_where_to_look_names_files_and_what_is_in_them() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split("## Where to look")[1].split("\n## ")[0]
    rows = re.findall(r"^\| .+? \| `([\w/.]+)` \| `(\w+)`", section, flags=re.MULTILINE)
    assert len(rows) == section.count("\n|") - 2  # without the table's head
    for file, name in rows:
        words = (ROOT / "src" / "vmat_diffusion" / file).read_text(encoding="utf-8")
        assert re.search(rf"^\s*(def |class |\[)?{name}\b", words, flags=re.MULTILINE), (file, name)
