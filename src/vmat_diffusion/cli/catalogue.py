"""The commands that show what is shipped with the package, and copy it to start from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import Field

from vmat_diffusion.cli.display import short, show, stdout_kept, table
from vmat_diffusion.cli.fields import TO_FILE, Facts
from vmat_diffusion.cli.options import part
from vmat_diffusion.errors import InputError
from vmat_diffusion.options import Option, settings
from vmat_diffusion.workflow.reading import MappingFile, Reading
from vmat_diffusion.workflow.settings import Conditions

_ANY_NAME = "Name of a shipped one, or a file."


@dataclass(frozen=True)
class Shelf:
    """Files of one kind that are shipped: the package and folder they lie in, and their ending."""

    package: str
    folder: str
    ending: str
    names: tuple[str, ...] = ()

    def all_names(self) -> tuple[str, ...]:
        """The names of the files without their ending."""
        if self.names:
            return self.names
        files = (resources.files(self.package) / self.folder).iterdir()
        return tuple(sorted(f.name.removesuffix(self.ending) for f in files if f.name.endswith(self.ending)))

    def text(self, name: str) -> str:
        """What the file of that name holds, "" for the only one. Raises InputError for an unknown name."""
        names = self.all_names()
        if not name and len(names) == 1:
            (name,) = names
        if name not in names:
            raise InputError(f"{name!r} is not the name of a shipped one; give one of {', '.join(names)}")
        file = resources.files(self.package) / self.folder / f"{name}{self.ending}"
        return file.read_text(encoding="utf-8")


SHELVES = {
    "goals": Shelf("vmat_diffusion", "goals", ".toml"),
    "machine": Shelf("vmat_diffusion", "machines", ".toml"),
    "mapping": Shelf("vmat_diffusion.dicom", ".", ".json", ("oar_mapping",)),
    "gate": Shelf("vmat_diffusion.qa", ".", ".toml", ("gate",)),
}


@settings
class ListOptions(Facts):
    """What `list` takes."""


@settings
class ShowOptions(Facts):
    """What `show` takes."""

    name: Annotated[str, Field(description=_ANY_NAME), Option(positional=True, metavar="NAME")]


@settings
class ShowOneOptions(Facts):
    """What `show` takes where one file is shipped."""

    file: Annotated[
        Path | None,
        Field(description="A file of your own; by default the shipped one."),
        Option(positional=True, metavar="FILE"),
    ] = None


@settings
class CopyOptions:
    """What `copy` takes."""

    name: Annotated[
        str,
        Field(description="Name of a shipped one, as `list` shows it; by default the only one."),
        Option(positional=True, metavar="NAME"),
    ] = ""
    out: Annotated[
        Path | None, Field(description="Where to write: a new file; by default it is printed."), TO_FILE
    ] = None


@settings
class CheckSheetOptions(Reading, Facts):
    """What `goals check` takes."""

    goals: Annotated[
        str,
        Field(description="Goal sheet: a shipped sheet's name, a TOML file, or a site of the profile."),
        Option(positional=True, metavar="SHEET", profile=True),
    ]
    case: Annotated[
        Path | None,
        Field(description="Case: a folder with a CT and a structure set; what it cannot reach is found too."),
        Option(positional=True, metavar="CASE"),
    ] = None
    conditions: Conditions = ()


@settings
class UnknownOptions(Facts):
    """What `mapping unknown` takes."""

    folder: Annotated[
        Path,
        Field(description="Folder with DICOM files of any number of patients."),
        Option(positional=True, metavar="FOLDER"),
    ]
    mapping: MappingFile = None
    out: Annotated[
        Path | None,
        Field(description="Where to write: a new file; by default it is printed."),
        Option(short=("-o",), metavar="FILE"),
    ] = None


def machine_list(options: ListOptions) -> None:
    """Names of the shipped machines."""
    from vmat_diffusion.machine import load_machine

    _listed(options, ["name", "title"], [[n, load_machine(n).title] for n in SHELVES["machine"].all_names()])


def goals_list(options: ListOptions) -> None:
    """Names of the shipped goal sheets."""
    from vmat_diffusion.evaluate.goals import load_goals

    sheets = [load_goals(name) for name in SHELVES["goals"].all_names()]
    rows = [[s.name, s.prescription.fractions, s.title] for s in sheets]
    _listed(options, ["name", "fractions", "title"], rows)


def mapping_list(options: ListOptions) -> None:
    """Names of the shipped tables of structure names."""
    _listed(options, ["name"], [[name] for name in SHELVES["mapping"].all_names()])


def gate_list(options: ListOptions) -> None:
    """Names of the shipped files of the gate's limits."""
    _listed(options, ["name"], [[name] for name in SHELVES["gate"].all_names()])


def _listed(options: ListOptions, header: list[str], rows: list[list[Any]]) -> None:
    if options.json:
        show(json.dumps([dict(zip(header, row, strict=True)) for row in rows]))
    else:
        show(table(header, rows, left=len(header)))


def machine_show(options: ShowOptions) -> None:
    """Every number of a machine with its source."""
    from vmat_diffusion.workflow import machine_table

    title, rows = machine_table(options.name)
    if options.json:
        records = {key: {"value": value, "source": source} for key, value, source in rows}
        show(json.dumps({"title": title, **records}))
    else:
        shown = [[key, short(value), source] for key, value, source in rows]
        show(f"{title}\n\n" + table(["key", "value", "source"], shown, left=3))


def goals_show(options: ShowOptions) -> None:
    """The prescription, the normalisation and the goals of a sheet, with their sources as they were seen."""
    from vmat_diffusion.cli.sheet_text import sheet_record, sheet_text
    from vmat_diffusion.evaluate.goals import load_goals

    sheet = load_goals(options.name)
    show(json.dumps(sheet_record(sheet)) if options.json else sheet_text(sheet))


def goals_check(options: CheckSheetOptions) -> None:
    """Say what is wrong with a goal sheet, and what a case cannot reach; exit code 1 for a finding of weight.

    Names that no table knows, goals that contradict each other, doses that do not fit the fractionation,
    numbers without a source. Remarks alone give 0.
    """
    from vmat_diffusion.workflow import check_sheet

    with stdout_kept():
        sheet, findings = check_sheet(
            options.goals,
            options.case,
            Reading(**part(Reading, options)),
            conditions=options.conditions,
        )
    of_weight = sum(finding.of_weight for finding in findings)
    if options.json:
        show(
            json.dumps(
                {"sheet": sheet.name, "of_weight": of_weight, "findings": [asdict(f) for f in findings]}
            )
        )
    else:
        remarks = _of(len(findings) - of_weight, "remark")
        count = len(sheet.goals) + len(sheet.delivery)
        total = f"{sheet.name}: {_of(count, 'goal')}, {of_weight} to settle, {remarks}"
        show("\n".join([*map(str, findings), total]))
    raise typer.Exit(1 if of_weight else 0)


def _of(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def mapping_show(options: ShowOneOptions) -> None:
    """The canonical structure names with their roles and the names that are taken for them.

    Of a file of your own its entries; a line says whether they add to the shipped table or replace it.
    """
    from vmat_diffusion.dicom.names import load_table

    load_table(options.file)  # refuses a table with a wrong entry
    text = (
        options.file.read_text(encoding="utf-8-sig")
        if options.file
        else SHELVES["mapping"].text("oar_mapping")
    )
    tree = json.loads(text)
    structures = tree["structures"]
    if options.json:
        show(json.dumps(structures))
        return
    rows = [
        [name, entry["role"], ", ".join(entry.get("aliases", ())), ", ".join(entry.get("regexes", ()))]
        for name, entry in structures.items()
    ]
    show(table(["name", "role", "other names", "patterns"], rows, left=4))
    if options.file:
        show("\n" + ("replaces the shipped table" if tree.get("replace") else "adds to the shipped table"))


def gate_show(options: ShowOneOptions) -> None:
    """The limits of the gate."""
    from vmat_diffusion.qa.limits import load_gate

    limits = asdict(load_gate(options.file))
    show(json.dumps(limits) if options.json else table(["limit", "value"], list(limits.items()), left=1))


def goals_copy(options: CopyOptions) -> None:
    """Print a shipped goal sheet, or write it to a file, to start your own from."""
    _copied("goals", options)


def machine_copy(options: CopyOptions) -> None:
    """Print a shipped machine, or write it to a file, to start your own from."""
    _copied("machine", options)


def mapping_copy(options: CopyOptions) -> None:
    """Print the shipped table of structure names, or write it to a file, to start your own from."""
    _copied("mapping", options)


def mapping_unknown(options: UnknownOptions) -> None:
    """The structure names of a data set that the mapping does not know, to be edited for `--mapping`."""
    from vmat_diffusion.dicom import unknown_names
    from vmat_diffusion.workflow.output import require_apart

    if options.out is not None:
        require_apart(options.out, options.folder)
    tree = unknown_names(options.folder, options.mapping)
    text = json.dumps(tree, indent=None if options.json else 2, ensure_ascii=False)
    if options.out is None:
        show(text)
    else:
        _written(options.out, text + "\n")


def gate_copy(options: CopyOptions) -> None:
    """Print the shipped limits of the gate, or write them to a file, to start your own from."""
    _copied("gate", options)


def _copied(kind: str, options: CopyOptions) -> None:
    text = SHELVES[kind].text(options.name)
    if options.out is None:
        show(text.rstrip("\n"))
        return
    _written(options.out, text)


def _written(out: Path, text: str) -> None:
    from vmat_diffusion.files import written_whole

    if out.exists():
        raise InputError(f"{out} exists; name another file")
    with written_whole(out, overwrite=False) as part:
        part.write_text(text, encoding="utf-8")
    show(str(out.resolve()))
