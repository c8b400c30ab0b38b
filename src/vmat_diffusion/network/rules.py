"""Which studies are planned and how: a YAML file of rules, the first that fits a study decides.

rules:
  - name: prostate
    tags: {StudyDescription: "*prostate*"}     # of the structure set or its CT; shell patterns
    structures: ["PTV*", Rectum]               # each must be there, by its own or its canonical name
    exclude:
      tags: {PatientID: "TEST*"}
      structures: ["*implant*"]
    plan: {goals: prostate_60_20, search_minutes: 10}
    send: ["TPS@10.0.0.5:104", "https://pacs.example.org/dicom-web"]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from vmat_diffusion.dicom.attributes import text
from vmat_diffusion.dicom.names import load_table
from vmat_diffusion.dicom.structure_set.structures import region_names
from vmat_diffusion.errors import CaseError, InputError
from vmat_diffusion.files import why_no_file
from vmat_diffusion.network.address import peer_of
from vmat_diffusion.workflow.planning.request import plan_settings

_BYTES_MOST = 1_000_000
_RULE_KEYS = ("name", "tags", "structures", "exclude", "plan", "profile", "send")
# What a run is asked for beside its folder; these would make it depend on other folders.
_NOT_HERE = ("improve", "prior_file")


@dataclass(frozen=True)
class Rule:
    """One rule: patterns of tags and names, what `plan` is asked for, and where results go."""

    name: str
    plan: Mapping[str, Any]
    tags: Mapping[str, str] = field(default_factory=dict)
    structures: tuple[str, ...] = ()
    without_tags: Mapping[str, str] = field(default_factory=dict)
    without_structures: tuple[str, ...] = ()
    send: tuple[str, ...] = ()

    def fits(self, objects: Sequence[Dataset], names: Sequence[frozenset[str]]) -> bool:
        """Whether a study is planned by this rule: its objects, and the names of each structure."""
        return (
            all(_has_value(objects, keyword, pattern) for keyword, pattern in self.tags.items())
            and not any(
                _has_value(objects, key, pattern, unread=True) for key, pattern in self.without_tags.items()
            )
            and all(_has_name(names, pattern) for pattern in self.structures)
            and not any(_has_name(names, pattern) for pattern in self.without_structures)
        )


def _has_value(objects: Sequence[Dataset], keyword: str, pattern: str, *, unread: bool = False) -> bool:
    """Whether a value fits a pattern; `unread` is said of one that cannot be read."""
    for dataset in objects:
        try:
            if fnmatchcase(text(dataset, keyword).casefold(), pattern.casefold()):
                return True
        except CaseError:
            if unread:
                return True
    return False


def _has_name(names: Sequence[frozenset[str]], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern.casefold()) for each in names for name in each)


def rule_for(rules: Sequence[Rule], structure_set: Dataset, image: Dataset) -> Rule | None:
    """The first rule that fits a structure set and one image of its CT; None where none does."""
    table = load_table()
    names = []
    for _, name in region_names(structure_set):
        match = table.match(name)
        names.append(frozenset({name.casefold(), *([match.name.casefold()] if match else [])}))
    return next((rule for rule in rules if rule.fits((structure_set, image), names)), None)


def read_rules(file: Path) -> tuple[Rule, ...]:
    """The rules of a file. Raises InputError, one sentence, for the first thing that is wrong."""
    try:
        if file.stat().st_size > _BYTES_MOST:
            raise InputError(f"rules {file.name} are larger than {_BYTES_MOST} bytes; give a file of rules")
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"rules {file.name} {why_no_file(file)}; give a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as fault:
        place = getattr(fault, "problem_mark", None)
        where = f", line {place.line + 1}" if place else ""
        raise InputError(f"rules {file.name} are no YAML{where}; correct the file") from None
    top = _mapping(tree, f"rules {file.name}", ("rules",))
    listed = top.get("rules")
    if not isinstance(listed, list) or not listed:
        raise InputError(
            f"rules {file.name}: rules must be a list of at least one; write `rules:` and `- name:`"
        )
    rules = tuple(_rule(entry, number, file) for number, entry in enumerate(listed, start=1))
    names = [rule.name for rule in rules]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"rules {file.name}: two rules are called {twice}; give each a name of its own")
    return rules


def _rule(entry: Any, number: int, file: Path) -> Rule:
    here = f"rule {number}"
    found = _mapping(entry, here, _RULE_KEYS)
    name = found.get("name")
    if not isinstance(name, str) or not name.isprintable() or not 0 < len(name) <= 40:
        raise InputError(f"{here}: name must be a text of 1 to 40 letters; give one")
    here = f"rule {name}"
    exclude = _mapping(found.get("exclude", {}), f"{here}: exclude", ("tags", "structures"))
    rule = Rule(
        name=name,
        tags=_tags(found.get("tags", {}), f"{here}: tags"),
        structures=_texts(found.get("structures", ()), f"{here}: structures"),
        without_tags=_tags(exclude.get("tags", {}), f"{here}: exclude: tags"),
        without_structures=_texts(exclude.get("structures", ()), f"{here}: exclude: structures"),
        send=_texts(found.get("send", ()), f"{here}: send"),
        plan=_plan(found, here, file.parent),
    )
    for peer in rule.send:
        try:
            peer_of(peer)
        except InputError as fault:
            raise InputError(f"{here}: send: {fault}") from None
    return rule


def _plan(found: Mapping[str, Any], here: str, folder: Path) -> dict[str, Any]:
    """The settings of `plan`, checked; names of files are taken from the folder of the rules."""
    asked = dict(_mapping(found.get("plan", {}), f"{here}: plan"))
    if "profile" in found:
        asked["profile"] = found["profile"]
    for key, value in asked.items():
        if isinstance(value, list):
            asked[key] = value = tuple(value)
        if key in _NOT_HERE:
            raise InputError(f"{here}: plan: {key} is of one case alone; leave it out")
        if isinstance(value, str) and Path(value).suffix and (folder / value).is_file():
            asked[key] = str((folder / value).resolve())
    from vmat_diffusion.evaluate.goals import load_goals

    try:
        load_goals(plan_settings(**asked).goals)
    except InputError as fault:
        raise InputError(f"{here}: plan: {fault}") from None
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asked.items()}


def _mapping(value: Any, here: str, keys: Sequence[str] = ()) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{here} must be keys with values; write `key: value`")
    for key in value:
        if keys and key not in keys:
            near = get_close_matches(key, keys, n=1)
            remedy = f"write {near[0]}" if near else f"known are {', '.join(keys)}"
            raise InputError(f"{here}: {key} is not known; {remedy}")
    return value


def _tags(value: Any, here: str) -> dict[str, str]:
    tags = _mapping(value, here)
    for keyword, pattern in tags.items():
        if tag_for_keyword(keyword) is None:
            raise InputError(f"{here}: {keyword} is no DICOM keyword; write one such as StudyDescription")
        if not isinstance(pattern, str):
            raise InputError(f"{here}: {keyword} needs a pattern in quotes, such as '*prostate*'")
    return dict(tags)


def _texts(value: Any, here: str) -> tuple[str, ...]:
    if (
        isinstance(value, str)
        or not isinstance(value, Sequence)
        or not all(isinstance(v, str) for v in value)
    ):
        raise InputError(f"{here} must be a list of texts; write [a, b]")
    return tuple(value)
