"""The reviewer's checklist: lines with sources, and the evidence that each needs for one plan."""

from __future__ import annotations

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
    """The keys of what must be seen of a run before a line can be answered; `record` is its `run.json`."""
    keys: dict[str, None] = {}
    for kind in item.evidence:
        keys |= dict.fromkeys(_keys(kind, run, record))
    return tuple(keys)


def _keys(kind: str, run: RunEntry, record: Mapping[str, Any]) -> list[str]:
    if kind in _VIEWS:
        return [kind]
    if kind == "slices":
        return [f"slice:{k}" for k in run.slices]
    if kind == "beams":
        return [f"beam:{k + 1}" for k in range(arcs(record))]
    names = [(check["name"], check["result"]) for check in record["verdict"]["checks"]]
    if kind == "concerns":
        return [_CHECK + name for name, result in names if result in ("fail", "undecided", "warning")]
    if kind.startswith(_CHECK):
        return [_CHECK + name for name, _ in names if fnmatchcase(name, kind.removeprefix(_CHECK))]
    raise ValueError(f"{kind} is no kind of evidence; see the head of checklist.toml")


def arcs(record: Mapping[str, Any]) -> int:
    """The number of arcs of a plan."""
    return len(record.get("arc_delivery_s") or ())
