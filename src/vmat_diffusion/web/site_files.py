"""What a plan can be asked for with: the shipped goal sheets and machines, and the site's own.

A site's own lie as TOML files in `goals/` and `machines/` of the data folder. Browsers choose by name: a path
would let them read files of the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vmat_diffusion.errors import InputError
from vmat_diffusion.evaluate.goal_sheets import goal_sheet_names, load_goals
from vmat_diffusion.machine import machine_names
from vmat_diffusion.web.room import Room

# No linac: a source without a collimator, for tests of the engines.
_NO_LINAC = "point_source"


@dataclass(frozen=True)
class Sheet:
    """A goal sheet of the list; `where` is what `plan --goals` takes."""

    name: str
    where: str
    title: str
    site: str


def sheets(room: Room) -> list[Sheet]:
    """The site's sheets, then the shipped ones; a file that is no sheet is left out."""
    own = [_sheet(stem, str(path), path.stat().st_mtime_ns) for stem, path in _own(room, "goals")]
    return [sheet for sheet in own if sheet] + [
        sheet for name in goal_sheet_names() if (sheet := _sheet(name, name, 0))
    ]


@lru_cache(maxsize=500)
def _sheet(name: str, where: str, changed: int) -> Sheet | None:
    """`changed` is when a file was written: one that is corrected is read again."""
    try:
        read = load_goals(where)
    except InputError:
        return None
    return Sheet(name, where, read.title, read.site)


def machines(room: Room) -> dict[str, str]:
    """Names of the site's machines and the shipped ones, with what `plan --machine` takes."""
    own = {stem: str(path) for stem, path in _own(room, "machines")}
    return own | {name: name for name in machine_names() if name != _NO_LINAC}


def _own(room: Room, kind: str) -> list[tuple[str, Path]]:
    folder = room.store.folder / kind
    return [(path.stem, path) for path in sorted(folder.glob("*.toml"))] if folder.is_dir() else []
