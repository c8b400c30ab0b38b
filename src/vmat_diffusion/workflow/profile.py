"""A site's profile: machine, CT table, structure names, goal sheets and gate limits, chosen once.

`setup` writes it, every command that takes one of these options reads it. Options that are given go first;
where each value came from is kept for the record and for the first page of the report.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from vmat_diffusion.errors import InputError
from vmat_diffusion.files import parse_toml, why_no_file
from vmat_diffusion.options import Option, Origins, settings

# What a profile says of a command's options, by their names; `goals` has a sheet for each site.
SAID = ("machine", "ct_table", "mapping", "gate", "goals")
# Names of what is shipped have no ending; what has one of these is a file.
_FILE_ENDINGS = (".toml", ".csv", ".json")


@settings
class Profile:
    """What a site has chosen; files by their paths. `code` stands for the contents in records."""

    title: str = ""
    machine: str | None = None
    ct_table: str | None = None
    mapping: str | None = None
    gate: str | None = None
    goals: Mapping[str, str] | None = None
    code: Annotated[str, Option(internal=True)] = ""


def load_profile(file: Path | str) -> Profile:
    """The profile in a TOML file; the paths in it are relative to its folder.

    Raises InputError, one sentence, for a file that cannot be read, an unknown key or a wrong value.
    """
    path = Path(file)
    if not path.is_file():
        raise InputError(f"profile {path} {why_no_file(path)}; give a file such as `setup` writes")
    try:
        text = path.read_text(encoding="utf-8-sig")
        tree = parse_toml(text)
    except OSError as fault:
        raise InputError(f"profile {path} cannot be read ({fault.strerror}); check its permissions") from None
    except ValueError as fault:
        raise InputError(f"profile {path} is no TOML ({fault}); correct the file") from None
    known = [f.name for f in fields(Profile) if f.name != "code"]
    for key in tree:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            remedy = f"write {near[0]}" if near else f"known are {', '.join(known)}"
            raise InputError(f"profile {path}: {key} is not known; {remedy}")
    for key, value in tree.items():
        right = isinstance(value, dict) if key == "goals" else isinstance(value, str)
        if not right:
            form = 'a table of sites, each with its sheet: prostate = "prostate_60_20"'
            raise InputError(
                f"profile {path}: {key} must be {form if key == 'goals' else 'a text'}; correct it"
            )
    for site, sheet in (tree.get("goals") or {}).items():
        if not isinstance(sheet, str):
            raise InputError(f"profile {path}: goals.{site} must be the name or file of a sheet; correct it")
    folder = path.resolve().parent
    values = {k: _found(v, folder) for k, v in tree.items() if k in SAID and k != "goals"}
    goals = {site: _found(sheet, folder) for site, sheet in (tree.get("goals") or {}).items()}
    code = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Profile(title=tree.get("title", ""), goals=goals or None, code=code, **values)


def _found(value: str, folder: Path) -> str:
    """A file by its path from anywhere; a shipped name as it is."""
    return str(folder / value) if value.endswith(_FILE_ENDINGS) or "/" in value else value


@dataclass(frozen=True)
class Chosen:
    """Values of a command's options by name, and where each came from."""

    values: Mapping[str, Any]
    origins: Mapping[str, str]
    profile: Profile | None = None

    def with_profile(self, profile: Profile, wanted: Mapping[str, bool]) -> Chosen:
        """The same with what the profile says of the `wanted` options, each with whether it is required.

        A goal sheet may be given as a site of the profile; a profile of one site says it where one is
        required.
        Raises InputError where several would do.
        """
        said = {n: getattr(profile, n) for n in wanted if n != "goals" and getattr(profile, n) is not None}
        chosen = replace(self.with_weaker(said, "profile"), profile=profile)
        sheets = profile.goals or {}
        if "goals" not in wanted or not sheets:
            return chosen
        given = self.values.get("goals")
        if given is None and wanted["goals"]:
            if len(sheets) > 1:
                raise InputError(
                    f"the profile has goal sheets for {', '.join(sheets)}; give --goals with one of these "
                    f"sites"
                )
            (given,) = sheets
        if given not in sheets:
            return chosen
        return replace(
            chosen,
            values={**chosen.values, "goals": sheets[str(given)]},
            origins={**chosen.origins, "goals": "profile"},
        )

    def with_weaker(self, values: Mapping[str, Any], origin: str) -> Chosen:
        """The same with these values where there is none yet."""
        new = {name: value for name, value in values.items() if name not in self.values}
        return replace(
            self, values={**new, **self.values}, origins={**dict.fromkeys(new, origin), **self.origins}
        )

    def record(self, names: Iterable[str]) -> Origins:
        """Where the values of all settings of these names came from."""
        of = {name: self.origins.get(name, "default") for name in names}
        profile = self.profile
        return Origins(of, profile.code if profile else "", profile.title if profile else "")
