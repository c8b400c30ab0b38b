"""The splits of a data set folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vmat_diffusion.errors import InputError
from vmat_diffusion.training.index import read_index
from vmat_diffusion.training.splits import (
    FILE,
    FRACTIONS,
    Member,
    Split,
    Splits,
    load_splits,
    place,
    save_splits,
)


def members_of(records: Sequence[Mapping[str, Any]]) -> tuple[Member, ...]:
    """The cases of an index; a stratum is a site with a highest prescribed dose."""
    return tuple(Member(str(r["id"]), str(r["patient"]), _stratum(r)) for r in records)


def _stratum(record: Mapping[str, Any]) -> str:
    levels = record["prescription_gy"].values()
    return f"{record['site']}, {max(levels):g} Gy" if levels else f"{record['site']}, no prescription"


def split_dataset(
    folder: Path,
    *,
    fractions: tuple[float, float, float] | None = None,
    seed: int | None = None,
    given: Mapping[str, Split] | None = None,
) -> Splits:
    """Write `splits.json` of a data set, or place in it the cases that came since, and return what holds.

    None for `fractions` and `seed` takes those of the file, or 0.8 0.1 0.1 and 0. `given` says the splits
    of new cases by id. Raises InputError where the file has other fractions or another seed.
    """
    members = members_of(read_index(folder))
    path = folder / FILE
    before = load_splits(path) if path.exists() else None
    if before is not None:
        told = fractions or before.fractions, before.seed if seed is None else seed
        if told != (before.fractions, before.seed):
            shown = " ".join(f"{f:g}" for f in before.fractions)
            raise InputError(
                f"{FILE} was made with the fractions {shown} and the seed {before.seed}, which stay; leave "
                "out --fractions and --seed or split a copy of the data set"
            )
    splits = place(members, before=before, given=given, fractions=fractions or FRACTIONS, seed=seed or 0)
    if splits != before:
        save_splits(path, splits)
    return splits
