"""The splits of a data set into training, validation and test cases: by patient, balanced within strata.

A case keeps its split: the file `splits.json` remembers it, also for cases that have left the data set. New
cases are placed so that the proportions hold. How, in `docs/datasets.md`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from vmat_diffusion.dataset.index import entries_of, read_index
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.files import parse_json, written_whole

FILE = "splits.json"
SPLIT_FRACTIONS = (0.8, 0.1, 0.1)
_SCHEMA = 1
# A patient may be scanned and planned anew once; from so many studies on, each with a frame of its own, a
# record number may stand for several people. Ours.
_MANY = 3

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclass(frozen=True)
class Member:
    """A case to be placed: `patient` is a pseudonym; the proportions hold within each `stratum`."""

    id: str
    patient: str
    stratum: str


@dataclass(frozen=True)
class Splits:
    """The split of each case, in `left` of cases that have left the data set."""

    fractions: tuple[float, float, float]
    seed: int
    placed: Mapping[str, tuple[Member, Split]] = field(default_factory=dict)
    left: Mapping[str, tuple[Member, Split]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.fractions) != 3 or min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            shown = " ".join(f"{f:g}" for f in self.fractions)
            raise CaseError(
                f"fractions {shown} are not three of at least 0 that make 1; give e.g. 0.8 0.1 0.1"
            )

    def ids(self, split: Split) -> tuple[str, ...]:
        """The ids of the cases of a split, sorted."""
        return tuple(sorted(name for name, (_, s) in self.placed.items() if s == split))


def split_dataset(
    folder: Path,
    *,
    fractions: tuple[float, float, float] | None = None,
    seed: int | None = None,
    given: Mapping[str, Split] | None = None,
) -> Splits:
    """Write `splits.json` of a data set, or add the new cases to it, and return the splits.

    None for `fractions` and `seed` takes those of the file, or 0.8 0.1 0.1 and 0. `given` has splits of new
    cases by id. Raises InputError where the file has other fractions or another seed.
    """
    members = members_of(read_index(folder))
    path = folder / FILE
    before = load_splits(path) if path.exists() else None
    if before is not None:
        asked = fractions or before.fractions, before.seed if seed is None else seed
        if asked != (before.fractions, before.seed):
            shown = " ".join(f"{f:g}" for f in before.fractions)
            raise InputError(
                f"{FILE} was made with the fractions {shown} and the seed {before.seed}, which stay; leave "
                "out --fractions and --seed or split a copy of the data set"
            )
    splits = place_cases(
        members, before=before, given=given, fractions=fractions or SPLIT_FRACTIONS, seed=seed or 0
    )
    if splits != before:
        save_splits(path, splits)
    return splits


def split_ids(folder: Path, split: Split) -> tuple[str, ...]:
    """The ids of a split of a data set.

    Raises CaseError where splits.json is absent, was changed, or does not fit the index.
    """
    return load_splits(folder / FILE, [entry.id for entry in entries_of(folder)]).ids(split)


def shared_patients(records: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """A sentence for each patient of so many studies and frames of reference that it may be several people.

    Anonymised data often have one PatientID for all. `records` are lines of the index; those without hashes
    of study and frame are not looked at.
    """
    seen: dict[str, tuple[set[str], set[str]]] = {}
    for record in records:
        study, frame = record.get("study"), record.get("frame_of_reference")
        if isinstance(study, str) and isinstance(frame, str):
            studies, frames = seen.setdefault(str(record["patient"]), (set(), set()))
            studies.add(study)
            frames.add(frame)
    return tuple(
        f"one PatientID (patient {patient}) covers {len(studies)} studies and {len(frames)} frames of "
        "reference; if these are several people, give each a PatientID of its own, for all go into one split"
        for patient, (studies, frames) in sorted(seen.items())
        if min(len(studies), len(frames)) >= _MANY
    )


def members_of(records: Sequence[Mapping[str, Any]]) -> tuple[Member, ...]:
    """The cases of an index; a stratum is a site with a highest prescribed dose."""
    return tuple(Member(str(r["id"]), str(r["patient"]), _stratum(r)) for r in records)


def _stratum(record: Mapping[str, Any]) -> str:
    levels = (record.get("prescription_gy") or {}).values()
    return f"{record['site']}, {max(levels):g} Gy" if levels else f"{record['site']}, no prescription"


def place_cases(
    members: Sequence[Member],
    *,
    before: Splits | None = None,
    given: Mapping[str, Split] | None = None,
    fractions: tuple[float, float, float] = SPLIT_FRACTIONS,
    seed: int = 0,
) -> Splits:
    """Place every member: cases of `before` keep their split, cases of `given` (by id) get that one.

    With `before`, its fractions and seed hold. New patients are placed in the order of a hash of seed and
    pseudonym. Each goes to the split that lacks most patients, in its stratum and in all, among those that
    lack any in its stratum. No split of a stratum exceeds its share by a patient or more.

    Raises CaseError where `given` or the ids put a patient into two splits.
    """
    if before is not None:
        fractions, seed = before.fractions, before.seed
    empty = Splits(fractions, seed)
    known = {**before.left, **before.placed} if before else {}
    by_id = {member.id: member for member in members}
    if len(by_id) < len(members):
        twice = Counter(m.id for m in members).most_common(1)[0][0]
        raise CaseError(f"case {twice} is in the data set twice; give the cases names of their own")
    for name in by_id.keys() & known.keys():
        if by_id[name].patient != known[name][0].patient:
            raise CaseError(
                f"case {name} belongs to another patient than when it was split; give it another name"
            )
    split_of: dict[str, Split] = {}
    fixed = [(m.patient, s) for m, s in known.values()]
    fixed += [(by_id[name].patient, s) for name, s in (given or {}).items() if name in by_id]
    for patient, split in fixed:
        if split_of.setdefault(patient, split) != split:
            raise CaseError(
                f"patient {patient} would be in {split_of[patient]} and in {split}; "
                "a patient's cases belong into one split"
            )
    stratum_of: dict[str, str] = {}
    for member in sorted(members, key=lambda m: m.id):
        stratum_of.setdefault(member.patient, member.stratum)
    _fill(split_of, stratum_of, fractions, seed)
    return replace(
        empty,
        placed={m.id: (m, split_of[m.patient]) for m in members},
        left={name: entry for name, entry in known.items() if name not in by_id},
    )


def _fill(
    split_of: dict[str, Split], stratum_of: Mapping[str, str], fractions: Sequence[float], seed: int
) -> None:
    """Give a split to each patient that has none."""
    counts: dict[str, Counter[Split]] = {stratum: Counter() for stratum in stratum_of.values()}
    overall: Counter[Split] = Counter()
    for patient, stratum in stratum_of.items():
        if patient in split_of:
            counts[stratum][split_of[patient]] += 1
            overall[split_of[patient]] += 1

    def lacking(have: Counter[Split]) -> dict[Split, float]:
        return {s: f * (have.total() + 1) - have[s] for s, f in zip(SPLITS, fractions, strict=True)}

    def rank(patient: str) -> str:
        return hashlib.sha256(f"{seed}|{patient}".encode()).hexdigest()

    for patient in sorted(stratum_of.keys() - split_of.keys(), key=rank):
        have = counts[stratum_of[patient]]
        near, far = lacking(have), lacking(overall)
        # Rounding can make a lack of 0 slightly positive; it must not count.
        split = max((s for s in SPLITS if near[s] > 1e-9), key=lambda s: round(near[s] + far[s], 9))
        split_of[patient] = split
        have[split] += 1
        overall[split] += 1


def save_splits(path: Path, splits: Splits) -> Path:
    """Write the splits with a hash of every entry and of the whole; the file appears whole or not at all."""
    record = {
        "schema": _SCHEMA,
        "fractions": list(splits.fractions),
        "seed": splits.seed,
        "cases": _entries(splits.placed),
        "left": _entries(splits.left),
    }
    with written_whole(path) as part:
        text = json.dumps({**record, "hash": _hash(record)}, indent=1, sort_keys=True)
        part.write_text(text + "\n", encoding="utf-8")
    return path


def _entries(placed: Mapping[str, tuple[Member, Split]]) -> list[dict[str, str]]:
    out = []
    for name in sorted(placed):
        member, split = placed[name]
        entry = {**asdict(member), "split": split}
        out.append({**entry, "hash": _hash(entry)})
    return out


def _hash(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def load_splits(path: Path, ids: Iterable[str] | None = None) -> Splits:
    """Read what `save_splits` wrote; with `ids`, the cases of the data set, these must be its members.

    Raises CaseError for a file that is missing or was changed by another hand, and for a case of the data
    set that has no split or a split's case that the data set does not hold.
    """
    remedy = "restore the file or split a copy of the data set without it"
    try:
        record = parse_json(path.read_text(encoding="utf-8"))
        whole = record.pop("hash")
        if record["schema"] != _SCHEMA:
            raise CaseError(
                f"{path.name} has schema {record['schema']}, this version reads {_SCHEMA}; split again"
            )
        placed, left = ({e["id"]: _entry(e, path.name, remedy) for e in record[k]} for k in ("cases", "left"))
        if type(record["seed"]) is not int or not all(type(f) in (int, float) for f in record["fractions"]):
            raise TypeError("fractions and seed must be numbers")
        splits = Splits(tuple(record["fractions"]), record["seed"], placed, left)
    except FileNotFoundError:
        raise CaseError(f"{path.name} is missing; make it with vmat-diffusion split") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        if isinstance(fault, CaseError):
            raise
        raise CaseError(f"{path.name} cannot be read ({fault}); {remedy}") from None
    if whole != _hash(record):
        raise CaseError(f"{path.name} was changed since it was written: its hash does not fit; {remedy}")
    if ids is not None:
        _same_members(splits, set(ids), path.name)
    return splits


def _entry(entry: Mapping[str, Any], name: str, remedy: str) -> tuple[Member, Split]:
    content = {k: v for k, v in entry.items() if k != "hash"}
    if not all(isinstance(content[key], str) for key in ("id", "patient", "stratum", "split")):
        raise TypeError("an entry holds no text")
    if entry["hash"] != _hash(content) or entry["split"] not in SPLITS:
        raise CaseError(
            f"{name}: the entry of {entry['id']} was changed since it was written: its hash does not fit; "
            f"{remedy}"
        )
    return Member(entry["id"], entry["patient"], entry["stratum"]), entry["split"]


def _same_members(splits: Splits, ids: set[str], name: str) -> None:
    new, gone = sorted(ids - splits.placed.keys()), sorted(splits.placed.keys() - ids)
    if new:
        raise CaseError(
            f"{name}: {len(new)} cases of the data set have no split, the first is {new[0]}; "
            "place them with vmat-diffusion split"
        )
    if gone:
        raise CaseError(
            f"{name}: {len(gone)} cases are not in the data set, the first is {gone[0]}; "
            "bring them back, or let them go with vmat-diffusion split"
        )
