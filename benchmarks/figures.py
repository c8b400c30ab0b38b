"""The figures that the benchmarks have measured: kept as docs/benchmarks_NAME.json, one file for each script.

`page.py` makes docs/benchmarks.md from them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from computer import stamp

from vmat_diffusion.files import written_whole

DOCS = Path(__file__).resolve().parents[1] / "docs"


def file_of(name: str) -> Path:
    """The file of a script's figures."""
    return DOCS / f"benchmarks_{name}.json"


def load(name: str) -> dict[str, Any]:
    """The figures measured so far; empty where there are none."""
    return load_file(file_of(name))


def load_file(file: Path) -> dict[str, Any]:
    """Figures in a file of one's own; empty where it is absent."""
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def save(name: str, figures: dict[str, Any]) -> None:
    """Replace the figures of a script."""
    save_file(file_of(name), figures)


def keep_row(name: str, table: str, key: str, row: object) -> None:
    """Put one row into a table of a script's figures, with the day and the computer.

    To be called as soon as a row is measured: a stopped run has its part. A remark on earlier figures goes.
    """
    kept = {key: value for key, value in load(name).items() if key != "remark"}
    save(name, {**kept, **stamp(), table: {**kept.get(table, {}), key: row}})


def save_file(file: Path, figures: dict[str, Any]) -> None:
    """Replace the figures in a file of one's own; numpy's numbers are written as plain ones."""
    with written_whole(file) as part:
        text = json.dumps(figures, indent=1, default=lambda number: number.item())
        part.write_text(text + "\n", encoding="utf-8")
