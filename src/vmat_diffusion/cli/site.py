"""`setup`: the profile of a site, made by asking or from options."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from pydantic import Field

from vmat_diffusion.cli.display import show
from vmat_diffusion.cli.fields import TO_FILE, Facts, Overwrite
from vmat_diffusion.errors import InputError
from vmat_diffusion.options import Option, settings


@settings
class SetupOptions(Facts):
    """What `setup` takes."""

    title: Annotated[
        str | None, Field(description="Title of the profile, as reports print it."), Option(metavar="TEXT")
    ] = None
    machine: Annotated[
        str | None,
        Field(description="Machine: a shipped machine's name or a TOML file."),
        Option(metavar="NAME"),
    ] = None
    ct_table: Annotated[
        str | None,
        Field(description="CT numbers to density: a CSV file with the columns hu,density_g_cm3."),
        Option(metavar="FILE"),
    ] = None
    mapping: Annotated[
        str | None,
        Field(
            description="Structure names: a JSON file such as `mapping copy` prints; it adds to the shipped "
            "table."
        ),
        Option(metavar="FILE"),
    ] = None
    gate: Annotated[
        str | None,
        Field(description="Limits of the gate: a TOML file such as `gate copy` prints."),
        Option(metavar="FILE"),
    ] = None
    sheets: Annotated[
        tuple[str, ...],
        Field(
            description="Goal sheet of a site: the site's name, then a shipped sheet's name or a TOML file."
        ),
        Option(metavar="SITE=SHEET", long="--sheet"),
    ] = ()
    out: Annotated[Path, Field(description="Where to write: a TOML file."), TO_FILE] = Path("site.toml")
    overwrite: Overwrite = False


@dataclass(frozen=True)
class _Question:
    """What is asked for a setting, and what refuses a wrong answer."""

    text: str
    check: Callable[[str], object]


def _questions() -> dict[str, _Question]:
    from vmat_diffusion.case import load_ct_table
    from vmat_diffusion.dicom.names import load_table
    from vmat_diffusion.machine import load_machine, machine_names
    from vmat_diffusion.qa.limits import load_gate

    return {
        "title": _Question("Title of the profile, as reports print it", str),
        "machine": _Question(
            f"Machine, a file or one of {', '.join(m for m in machine_names() if load_machine(m).beam)}",
            lambda name: load_machine(name).require_beam(),
        ),
        "ct_table": _Question("CSV file of CT numbers and densities", load_ct_table),
        "mapping": _Question("JSON file of structure names that adds to the shipped table", load_table),
        "gate": _Question("TOML file of the gate's limits", load_gate),
    }


def setup(options: SetupOptions) -> None:
    """Make the profile of a site for `--profile`: asks for each setting, or takes them from options.

    It asks where none is given. An empty answer leaves a setting as the program has it. Every file is read,
    and a wrong one refused.
    """
    from vmat_diffusion.files import written_whole

    if options.out.exists() and not options.overwrite:
        raise InputError(f"profile {options.out} exists; name another file or pass --overwrite")
    questions = _questions()
    said = {name: value for name in questions if (value := getattr(options, name)) is not None}
    if said or options.sheets:
        for name, value in said.items():
            questions[name].check(value)
        goals = dict(map(_site, options.sheets))
    else:
        said = {name: answer for name, q in questions.items() if (answer := _asked(q.text, q.check))}
        goals = _asked_goals()
    text = _toml(said, goals, options.out.resolve().parent)
    with written_whole(options.out, overwrite=options.overwrite) as part:
        part.write_text(text, encoding="utf-8")
    if options.json:
        show(json.dumps({"file": str(options.out.resolve()), **said, "goals": goals}))
    else:
        show(f"{options.out.resolve()}\nUse it with --profile {options.out}")


def _site(given: str) -> tuple[str, str]:
    """A site and its sheet. Raises InputError where it is none, or the site has the name of a sheet."""
    from vmat_diffusion.evaluate.goals import goal_sheet_names, load_goals

    site, equals, sheet = given.partition("=")
    site = site.strip()
    if not equals or not site or not sheet:
        raise InputError(f"--sheet {given!r} is no site with its sheet; write it as prostate=prostate_60_20")
    if site in goal_sheet_names() or site.endswith(".toml"):
        raise InputError(f"site {site!r} has the name of a goal sheet; name it otherwise")
    load_goals(sheet)
    return site, sheet


def _asked(text: str, check: Callable[[str], object]) -> str:
    """A right answer, or "" for none; a wrong one is explained and asked again at a terminal."""
    while True:
        answer: str = typer.prompt(text, default="", show_default=False, err=True).strip()
        if not answer:
            return ""
        try:
            check(answer)
        except InputError as fault:
            if not os.isatty(0):
                raise
            print(fault, file=sys.stderr)
            continue
        return answer


def _asked_goals() -> dict[str, str]:
    """Sheets by sites, until an answer is empty."""
    found: dict[str, str] = {}
    while answer := _asked("Goal sheet of a site as SITE=SHEET (empty ends)", _site):
        site, sheet = _site(answer)
        found[site] = sheet
    return found


def _toml(said: Mapping[str, str], goals: Mapping[str, str], folder: Path) -> str:
    """The profile's text; files below its folder by their relative paths."""
    lines = ["# Profile of a site, for --profile. Paths are relative to this file."]
    lines += [f"{name} = {_quoted(_place(name, value, folder))}" for name, value in said.items()]
    if goals:
        lines += ["", "[goals]"]
        lines += [f"{_quoted(site)} = {_quoted(_place('goals', s, folder))}" for site, s in goals.items()]
    return "\n".join(lines) + "\n"


def _place(name: str, value: str, folder: Path) -> str:
    if name == "title" or not Path(value).is_file():
        return value
    path = Path(value).resolve()
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def _quoted(text: str) -> str:
    """A basic string of TOML."""
    escaped = "".join(
        f"\\u{ord(c):04X}" if ord(c) < 32 or ord(c) == 127 else f"\\{c}" if c in '"\\' else c for c in text
    )
    return f'"{escaped}"'
