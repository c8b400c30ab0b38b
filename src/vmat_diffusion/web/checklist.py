"""The reviewer's checklist: lines with sources, and the evidence that each needs for one plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any

from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict

from vmat_diffusion.files import parse_toml
from vmat_diffusion.web.runs import RunEntry

_VIEWS = ("goals", "dvh", "difference", "complexity", "report")
_CHECK = "check:"
_CONCERNS = ("fail", "undecided", "warning")


@with_config(ConfigDict(extra="forbid"))
class _ItemText(TypedDict):
    id: str
    section: str
    text: str
    source: str
    evidence: list[str]


@with_config(ConfigDict(extra="forbid"))
class _ListText(TypedDict):
    format: int
    item: list[_ItemText]


@dataclass(frozen=True)
class Item:
    """A line of the checklist; `evidence` as the file has it."""

    id: str
    section: str
    text: str
    source: str
    evidence: tuple[str, ...]


@cache
def checklist() -> tuple[Item, ...]:
    """The lines in their order."""
    text = resources.files("vmat_diffusion.web").joinpath("checklist.toml").read_text(encoding="utf-8")
    raw = TypeAdapter(_ListText).validate_python(parse_toml(text))
    return tuple(
        Item(one["id"], one["section"], one["text"], one["source"], tuple(one["evidence"]))
        for one in raw["item"]
    )


def needed(item: Item, run: RunEntry, record: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of what must be seen of a run before a line can be answered; `record` are its known fields."""
    keys: dict[str, None] = {}
    for kind in item.evidence:
        keys |= dict.fromkeys(_keys(kind, run, record))
    return tuple(keys)


def _keys(kind: str, run: RunEntry, record: Mapping[str, Any]) -> list[str]:
    if kind in _VIEWS:
        return [kind]
    if kind == "slices":
        return [f"slice:{target}:{k}" for target, slices in run.slices.items() for k in slices]
    if kind == "beams":
        return [f"beam:{k + 1}" for k in range(arcs(record))]
    checks = check_keys(record)
    if kind == "concerns":
        return [_CHECK + key for key, check in checks.items() if check["result"] in _CONCERNS]
    if kind.startswith(_CHECK):
        wanted = kind.removeprefix(_CHECK)
        return [_CHECK + key for key, check in checks.items() if fnmatchcase(check["name"], wanted)]
    raise ValueError(f"{kind} is no kind of evidence; see the head of checklist.toml")


def check_keys(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The checks of the gate by what the page calls them: a name that comes again has a number behind it."""
    found: dict[str, Mapping[str, Any]] = {}
    used: Counter[str] = Counter()
    for check in record["verdict"]["checks"]:
        name = check["name"]
        used[name] += 1
        found[name if used[name] == 1 else f"{name} ({used[name]})"] = check
    return found


def key_of(kind: str, detail: Mapping[str, Any]) -> list[str]:
    """The keys of what the viewer says was seen; none for what no line asks for."""
    if kind in _VIEWS:
        return [kind]
    if kind == "slices" and detail.get("plane") == "axial" and isinstance(detail.get("slices"), list):
        return [f"slice:{detail.get('structure')}:{k}" for k in detail["slices"][:1000] if isinstance(k, int)]
    if kind == "arc":
        return [f"beam:{detail.get('arc')}"]
    return [f"{_CHECK}{detail.get('key')}"] if kind == "check" else []


def arcs(record: Mapping[str, Any]) -> int:
    """The number of arcs of a plan."""
    return len(record["arc_delivery_s"])
