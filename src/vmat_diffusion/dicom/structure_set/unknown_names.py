"""The structure names of a whole data set that the mapping does not know, ready to be edited."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vmat_diffusion.dicom.attributes import quiet
from vmat_diffusion.dicom.folder import each_file, require_folder
from vmat_diffusion.dicom.names import UNDECIDED, cleaned, load_table, squeezed
from vmat_diffusion.dicom.structure_set.structures import region_names
from vmat_diffusion.errors import CaseError

_ABOUT = (
    "Structure names that the mapping does not know. `seen` says in how many structure sets. Give an entry "
    "the name and role (target, organ, body, other) that its aliases stand for, or move them to an entry of "
    "that name; entries whose role stays 'unknown' are passed over. The names are as written and may name a "
    "patient."
)


@quiet()
def unknown_names(root: str | Path, mapping: str | Path | None = None) -> Mapping[str, Any]:
    """The unknown names below a folder in the form of a mapping file, the most frequent first.

    Spellings that differ in case and separators are one entry. Files that cannot be read are passed over.
    Raises CaseError for a folder that is absent or holds no structure set, and a wrong mapping.
    """
    root = Path(root)
    require_folder(root)
    table = load_table(mapping)
    sets: Counter[str] = Counter()
    spellings: dict[str, Counter[str]] = {}
    structure_sets = 0
    for found in each_file(root):
        if found is None or isinstance(found, CaseError) or found.kind != "RTSTRUCT":
            continue
        structure_sets += 1
        names = {alias for _, alias in region_names(found.dataset) if table.match(alias) is None}
        sets.update({squeezed(name) for name in names})
        for name in names:
            spellings.setdefault(squeezed(name), Counter())[name] += 1
    if not structure_sets:
        raise CaseError(f"{root.name or root} holds no RTSTRUCT; give the folder with the DICOM files")
    entries: dict[str, Any] = {}
    for key, seen in sorted(sets.items(), key=lambda item: (-item[1], item[0])):
        aliases = [name for name, _ in spellings[key].most_common()]
        name = cleaned(aliases[0]) or f"unknown_{len(entries) + 1}"
        name = f"{name}_{len(entries) + 1}" if name in entries else name
        nearest = list(table.nearest(aliases[0]))
        entries[name] = {"role": UNDECIDED, "aliases": aliases, "seen": seen, "nearest": nearest}
    return {"about": _ABOUT, "structures": entries}
