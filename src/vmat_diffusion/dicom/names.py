"""Structure names as clinics write them, to TG-263 names and roles.

The table is a JSON file: for each canonical name its role, aliases and regular expressions. A name
that the table does not know is never guessed; it keeps its own cleaned form and the role "other". A user's
table adds to the shipped one and wins where both know a name; with `"replace": true` it stands alone.

Targets that are numbered, classed or levelled (PTV1, GTVp, PTV_High) are targets by the grammar of TG-263
(Mayo et al., Int J Radiat Oncol Biol Phys 100:1057, 2018, table 4); each keeps a name of its own, and a dose
level only where its name says one.

Matching ignores case, spaces, underscores, hyphens, full stops and brackets. `{side}` in a canonical
name stands for L or R, and in its aliases and expressions for every way to write that side;
`{dose}` stands for a dose level, which an expression captures as `(?P<dose>...)` in Gy or cGy.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from vmat_diffusion.case import ROLES, Role
from vmat_diffusion.errors import CaseError
from vmat_diffusion.files import parse_json, why_no_file

# Prescribed doses of targets: below 10 Gy a number in a name counts targets, above 100 it is cGy.
_DOSE_GY = (10.0, 100.0)
# TG-263: type, "!" (without the overlap of higher levels), class (primary, nodal, surgical bed ...), number,
# images, place, relative level, dose, fractions, crop in mm. HR-CTV, IR-CTV, LR-CTV are those of GEC-ESTRO.
# Words such as ring, opt or a minus sign make a helper structure of it, and so may an organ: PTV_Rectum can
# be their overlap. An organ that a dose follows (PTV_Liver_2000x3) is the place of the target.
_RISK = r"(?P<risk>[hil]r)"
_LEVEL = "high|mid|low|intermediate|int|hr|ir|lr|hi|lo|boost|total"
_PLACE = "eval|prostate|seminalves|sv|nodes?|lns?|vault|preop|postop"
_SITE = "adrenal|bone|brain|breast|chestwall|kidney|liver|lung|neck|pancreas|pelvis|spine"
_TARGET = re.compile(
    rf"(?:{_RISK}[ -]?)?(?P<type>gtv|ctv|ptv|itv|igtv|ictv)(?P<rest>!)?[ -]?(?P<class>p|n|t|sb|par|vas|v)?"
    r"[ -]?(?P<number>0?[1-9](?!\d)|1\d(?!\d)|[a-c](?![a-z]))?(?P<image>[ -]?(?:(?:ct|pt|mr|sp)\d{1,2})+)?"
    rf"(?:[ -](?P<place>{_PLACE}|(?:{_SITE})(?=[ -]\d{{2}})))?(?:[ -]?(?P<level>{_LEVEL})(?: ?risk)?)?"
    r"(?:(?:[ -]|(?<=[a-z!])(?!1\d(?!\d)))(?P<dose>\d{2,4}(?:[.,p]\d{1,2})?) ?(?:c?gy)?)?"
    r"(?P<each>[ -]\d(?:[.p]\d{1,2})? ?gy|[ -]?x ?\d{1,2})?(?P<crop>-0\d)?(?:[ -](?P<eval>eval))?"
)
# The role of an entry that the user has not decided on yet; see unknown_names.
UNDECIDED = "unknown"
_KEYS = {"about", "replace", "sides", "structures"}
_ENTRY = {"role", "aliases", "regexes", "seen", "nearest"}
_LEVELS = {"hi": "High", "lo": "Low", "int": "Mid", "intermediate": "Mid"}


@dataclass(frozen=True)
class Match:
    """What a name means. `how` is "name", "alias", "expression" or "evaluation": the order of precedence."""

    name: str
    role: Role
    how: str


@dataclass(frozen=True, eq=False)
class NameTable:
    """A structure-name mapping, ready to be asked."""

    exact: Mapping[str, Match]
    expressions: tuple[tuple[re.Pattern[str], str, Role], ...]

    def match(self, name: str) -> Match | None:
        """The canonical name for a name as written, or None where the table does not know it.

        Names with a leading underscore are helper structures by TG-263 and never match.
        """
        if name.strip().startswith("_"):
            return None
        if found := self.exact.get(squeezed(name)):
            return found
        spaced = " ".join(re.split(r"[\s_()\[\]]+", name.casefold())).strip()
        for pattern, canonical, role in self.expressions:
            if not (hit := pattern.fullmatch(spaced)):
                continue
            if "{dose}" not in canonical:
                return _by_expression(name, canonical, role)
            if (gy := _dose_gy(hit.group("dose"))) is not None:
                return _by_expression(name, canonical.replace("{dose}", f"{gy:g}"), role)
        canonical = _numbered_target(re.sub(" ?- ?", "-", spaced))
        return _by_expression(name, canonical, "target") if canonical else None

    def nearest(self, name: str) -> tuple[str, ...]:
        """Up to three canonical names: those that a word of the name means, then the closest spellings."""
        words = [w for w in re.split(r"[\s_\-.]+", name.casefold()) if len(w) > 2 and w in self.exact]
        close = difflib.get_close_matches(squeezed(name), list(self.exact), n=8, cutoff=0.7)
        return tuple(dict.fromkeys(self.exact[c].name for c in [*words, *close]))[:3]


def _by_expression(name: str, canonical: str, role: Role) -> Match:
    """The match of an expression; PTV70_eval, made from PTV70, steps back where both are there."""
    derived = squeezed(name).endswith("eval") and not squeezed(canonical).endswith("eval")
    return Match(canonical, role, "evaluation" if derived else "expression")


def squeezed(name: str) -> str:
    """A name without case and separators, as aliases are compared."""
    return re.sub(r"[\s_\-.,()\[\]^]+", "", name.casefold())


def cleaned(name: str) -> str:
    """A name as a file or a table can carry it: letters, digits, `+ - . _`; at most 64 characters."""
    return re.sub(r"[^A-Za-z0-9+\-.]+", "_", name).strip("_")[:64]


def _numbered_target(spaced: str) -> str:
    """The name of its own that a numbered, classed or levelled target has; "" for any other name."""
    if not (hit := _TARGET.fullmatch(spaced)):
        return ""
    kind = hit["type"].upper()
    name = kind + (hit["rest"] or "") + (hit["class"] or "") + (hit["number"] or "").upper().lstrip("0")
    for part in ("image", "place"):
        text = (hit[part] or "").strip(" -")
        name += f"_{text.upper() if part == 'image' or len(text) < 4 else text.capitalize()}" if text else ""
    if hit["risk"] or hit["level"]:
        level = hit["level"] or hit["risk"]
        name += f"_{_LEVELS.get(level) or (level.upper() if len(level) == 2 else level.capitalize())}"
    if hit["dose"]:
        if (gy := _dose_gy(hit["dose"])) is None:
            return ""
        name += f"_{gy:g}"
    # 60_2Gy may be 60 Gy in fractions of 2 Gy or 60.2 Gy: such a name states no dose level.
    name += (hit["crop"] or "") + ("_Eval" if hit["eval"] else "")
    return name + (f"_{re.sub(r'[ -]', '', hit['each']).replace('gy', 'Gy')}" if hit["each"] else "")


def _dose_gy(digits: str) -> float | None:
    value = float(re.sub(r"[,p]", ".", digits))
    value = value / 100 if value >= 1000 else value
    return value if _DOSE_GY[0] <= value <= _DOSE_GY[1] else None


@cache
def default_table() -> NameTable:
    """The table shipped with the package."""
    return parse_table(_shipped(), "oar_mapping.json")


@cache
def _shipped() -> Mapping[str, Any]:
    text = (resources.files("vmat_diffusion.dicom") / "oar_mapping.json").read_text(encoding="utf-8")
    tree: Mapping[str, Any] = json.loads(text)
    return tree


def load_table(mapping: str | Path | Mapping[str, Any] | None = None) -> NameTable:
    """The shipped table, and in front of it the entries of a JSON file or a mapping of the same form.

    With `"replace": true` they stand alone. Raises CaseError naming the entry at fault.
    """
    if mapping is None:
        return default_table()
    if isinstance(mapping, Mapping):
        return _overlay(mapping, "the mapping")
    path = Path(mapping)
    if not path.is_file():
        raise CaseError(f"name mapping {path.name} {why_no_file(path)}; give an existing JSON file")
    try:
        tree = parse_json(path.read_text(encoding="utf-8-sig"))
    except OSError:
        raise CaseError(f"name mapping {path.name} cannot be opened; give an existing JSON file") from None
    except ValueError as fault:
        raise CaseError(f"name mapping {path.name} is not valid JSON ({fault}); correct it") from None
    return _overlay(tree, path.name)


def _overlay(tree: Any, label: str) -> NameTable:
    """The table of a user: in front of the shipped one, or alone where it says so."""
    own = parse_table(_with_sides(tree), label)
    return own if tree.get("replace") else _added(own)


def _with_sides(tree: Any) -> Any:
    """The user's table with the shipped spellings of the sides where it has none."""
    return {"sides": _shipped()["sides"], **tree} if isinstance(tree, Mapping) else tree


def _added(own: NameTable) -> NameTable:
    """The user's table in front of the shipped one; a name's role is the user's wherever it occurs."""
    shipped = default_table()
    roles: dict[str, Role] = {m.name: m.role for m in own.exact.values()}
    roles |= {name: role for _, name, role in own.expressions}
    exact = {key: replace(m, role=roles.get(m.name, m.role)) for key, m in shipped.exact.items()}
    expressions = tuple((p, name, roles.get(name, role)) for p, name, role in shipped.expressions)
    return NameTable({**exact, **own.exact}, (*own.expressions, *expressions))


def parse_table(tree: Any, label: str) -> NameTable:
    """A table from its JSON form. Raises CaseError for an unknown key, role or a wrong expression."""
    if not isinstance(tree, Mapping) or not isinstance(tree.get("structures"), Mapping):
        raise CaseError(f"{label}: the key 'structures' is missing; see the shipped oar_mapping.json")
    if unknown := set(tree) - _KEYS:
        raise CaseError(f"{label}: unknown key {sorted(unknown)[0]!r}; known are {', '.join(sorted(_KEYS))}")
    if not isinstance(tree.get("replace", False), bool):
        raise CaseError(f"{label}: replace must be true or false, not {tree['replace']!r}; correct it")
    sides = tree.get("sides", {"L": ["l"], "R": ["r"]})
    if not isinstance(sides, Mapping) or set(sides) != {"L", "R"}:
        raise CaseError(f"{label}: 'sides' must hold the spellings of L and of R")
    spellings = {side: _texts(sides[side], f"{label}: sides {side}") for side in ("L", "R")}
    exact: dict[str, Match] = {}
    expressions: list[tuple[re.Pattern[str], str, Role]] = []
    for name, entry in tree["structures"].items():
        where = f"{label}: {name}"
        if not isinstance(entry, Mapping) or set(entry) - _ENTRY:
            raise CaseError(f"{where}: an entry holds role, aliases and regexes only")
        if entry.get("role") == UNDECIDED:
            continue
        if entry.get("role") not in ROLES:
            raise CaseError(f"{where}: role {entry.get('role')!r} is not one of {', '.join(ROLES)}")
        for side in ("L", "R") if "{side}" in name else ("",):
            canonical = name.replace("{side}", side)
            expressions += _expressions(entry, canonical, spellings.get(side, ()), where)
            _add_aliases(exact, entry, canonical, spellings.get(side, ()), where)
    return NameTable(exact, tuple(expressions))


def _add_aliases(
    exact: dict[str, Match], entry: Mapping[str, Any], canonical: str, sides: Sequence[str], where: str
) -> None:
    spellings = [] if "{dose}" in canonical else [(canonical, "name")]
    spellings += [(alias, "alias") for alias in _texts(entry.get("aliases", []), f"{where}: aliases")]
    for alias, how in spellings:
        for form in [alias.replace("{side}", s) for s in sides] if "{side}" in alias else [alias]:
            match = Match(canonical, entry["role"], how)
            other = exact.setdefault(squeezed(form), match)
            if other.name != canonical:
                raise CaseError(
                    f"{where}: {form!r} already stands for {other.name}; remove it from one of them"
                )


def _expressions(
    entry: Mapping[str, Any], canonical: str, sides: Sequence[str], where: str
) -> list[tuple[re.Pattern[str], str, Role]]:
    out = []
    for text in _texts(entry.get("regexes", []), f"{where}: regexes"):
        either = f"(?:{'|'.join(map(re.escape, sorted(sides, key=len, reverse=True)))})"
        try:
            pattern = re.compile(text.replace("{side}", either), re.IGNORECASE)
        except re.error as fault:
            raise CaseError(f"{where}: {text!r} is not a regular expression ({fault}); correct it") from None
        if ("{dose}" in canonical) != ("dose" in pattern.groupindex):
            raise CaseError(f"{where}: {{dose}} in the name and (?P<dose>...) in {text!r} need each other")
        out.append((pattern, canonical, entry["role"]))
    return out


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise CaseError(f"{where} must be a list of texts")
    return tuple(value)
