"""Compiled loops notice changes of the files that they take something from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from vmat_diffusion.compiled import sources_digest

_INNER = """
import numba
STEP = {step}
@numba.njit(inline="always")
def more(x):
    return x + STEP
"""
_OUTER = """
import sys
from pathlib import Path
import numba
from inner import more
from vmat_diffusion.compiled import watching
@numba.njit(cache=True)
def twice(x):
    return 2 * more(x)
if {watched}:
    watching(twice, Path(__file__).parent)
print(twice(1), sum(twice.stats.cache_hits.values()))
"""


def printed(folder: Path, step: int, *, watched: bool = True) -> str:
    """What the outer module prints once the inner one has a step: the value, and hits of the cache."""
    (folder / "inner.py").write_text(_INNER.format(step=step))
    outer = folder / "outer.py"
    text = _OUTER.format(watched=watched)
    if not outer.is_file() or outer.read_text() != text:
        outer.write_text(text)
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "outer.py"], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_code_compiled_with_an_older_file_is_not_used_again(tmp_path: Path) -> None:
    assert printed(tmp_path, 1) == "4 0"
    assert printed(tmp_path, 1) == "4 1"
    assert printed(tmp_path, 5) == "12 0"
    # Without the watch numba itself would go on with the older one: what the watch is for.
    printed(tmp_path, 1, watched=False)
    assert printed(tmp_path, 5, watched=False) == "4 1"


def test_the_digest_follows_imports_and_nothing_else(tmp_path: Path) -> None:
    for name, text in (
        ("first", "import second"),
        ("second", "from third import X"),
        ("third", "X = 1"),
        ("other", ""),
    ):
        (tmp_path / f"{name}.py").write_text(text + "\n")

    def digest() -> str:
        sources_digest.cache_clear()
        return sources_digest(tmp_path / "first.py", tmp_path)

    before = digest()
    (tmp_path / "other.py").write_text("Y = 2\n")
    assert digest() == before
    (tmp_path / "third.py").write_text("X = 2\n")
    assert digest() != before


_LOOPS = """
import numpy as np
from vmat_diffusion.dose.pencil_beam.products import loops_for
gather, gather_each, scatter = loops_for(2)
field, at, weight = np.zeros((1, 3, 3, 2), "f4"), np.ones((1, 4), "f4"), np.ones((1, 4, 2), "f4")
gather(field, at, at, weight, np.zeros(4, "f4"))
gather_each(field, at, at, weight, np.zeros((4, 1), "f4"))
scatter(np.ones(4, "f4"), at, at, weight, field)
print([sum(loop.stats.cache_hits.values()) for loop in (gather, gather_each, scatter)])
"""


def test_loops_made_for_a_number_of_kernels_are_compiled_once_for_all_processes() -> None:
    run = [sys.executable, "-c", _LOOPS]
    subprocess.run(run, check=True, capture_output=True)
    assert subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip() == "[1, 1, 1]"
