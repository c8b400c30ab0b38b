"""Which OpenKBP patients belong to a split: by the folders they lie in, or by their numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vmat_diffusion.errors import CaseError
from vmat_diffusion.training.cases import UNREADABLE
from vmat_diffusion.training.openkbp import patient_paths
from vmat_diffusion.training.splits import SPLITS, Split

# As the challenge numbers its patients.
NUMBERS: Mapping[Split, range] = {
    "train": range(1, 201),
    "validation": range(201, 241),
    "test": range(241, 341),
}
# A folder that is a split and no folder that merely begins alike: test, valid-pats, test-pats-no-dose.
_OWN_NAME = re.compile(r"(train|valid|test)[a-z]*([-_]pats.*)?")


def named_split(path: Path, source: Path) -> Split | None:
    """The split that the innermost folder between `source` and a patient names by how it starts."""
    for folder in path.relative_to(source).parts[-2::-1]:
        for split in SPLITS:
            if folder.lower().startswith(split[:5]):
                return split
    return None


def patients_of(source: Path, split: Split) -> tuple[Path, ...]:
    """The patients of a split below `source`, by number, each once, where there are two the one with dose.

    Folders called train..., valid... or test... tell the split. Patients in no such folder have that of
    their number in the challenge (1-200, 201-240, 241-340), or, where that gives none, the one that
    `source` itself is called by. Raises CaseError where there are none.
    """
    paths = patient_paths(source)
    named = {path: named_split(path, source) for path in paths}
    found = [p for p in paths if named[p] == split or (named[p] is None and _number(p) in NUMBERS[split])]
    if not found and _OWN_NAME.fullmatch(own := source.resolve().name.lower()) and own.startswith(split[:5]):
        found = [path for path in paths if named[path] is None]
    if not found:
        raise CaseError(
            f"none of the {len(paths)} patients below {source.name or source} is of split {split}; put them "
            f"in a folder called {split} or name another --split"
        )
    best: dict[str, Path] = {}
    for path in found:
        if path.stem not in best or (not has_dose(best[path.stem]) and has_dose(path)):
            best[path.stem] = path
    return tuple(best.values())


def has_dose(path: Path) -> bool:
    """Whether a patient's files hold a reference dose; False as well where they cannot be read."""
    if path.is_dir():
        return (path / "dose.csv").is_file()
    try:
        with np.load(path, allow_pickle=False) as file:
            return "dose_cGy" in file.files
    except UNREADABLE:
        return False


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("pt_"))
