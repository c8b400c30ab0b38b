"""A command's options, made from its dataclass: what is read, `--help`, `--config` and the manual's tables.

A command is a function of one argument, `options`, whose annotation is a dataclass of `settings`. The values
come from the command line, then from the file of `--config`, then from the defaults of the dataclass.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from vmat_diffusion.errors import InputError, LimitError, memory_limit_gb
from vmat_diffusion.files import parse_toml
from vmat_diffusion.options import Option, marks_of, range_of, range_text, spelled

_T = TypeVar("_T")
CONFIG_HELP = "Options from a TOML file, by their names with underscores; the command line goes first."
PROFILE_HELP = "Profile of the site, as `setup` makes it; options that are given go first."
_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
_CONFIG, _PROFILE = "config_file", "profile_file"
# Commands that load torch and numba; a process with both takes 1.1 to 1.3 GB of addresses before it computes.
_COMPUTING = (
    *(
        "plan",
        "generate",
        "train-generator",
        "predict",
        "dose",
        "qa",
        "check-again",
        "simulate",
        "train",
        "fine-tune",
        "export-weights",
        "demo",
        "influence",
    ),
    *("reference-check", "tg119", "plans", "gap", "trade"),
)
_LEAST_GB = 1.5


@dataclass(frozen=True)
class Spelled:
    """A field of a command's dataclass as it appears to the user."""

    name: str
    kind: Any
    description: str
    mark: Option
    default: Any
    bounds: str

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return self.default is MISSING

    @property
    def flag(self) -> bool:
        """Whether it takes no value."""
        return self.kind is bool

    @property
    def many(self) -> bool:
        """Whether it may have several values."""
        inner = get_args(self.kind)
        several = get_origin(self.kind) is tuple and len(inner) == 2 and inner[1] is Ellipsis
        return several and self.mark.text != "whole"

    @property
    def again(self) -> bool:
        """Whether the option may be repeated."""
        return self.many and not self.mark.positional

    @property
    def words(self) -> tuple[str, ...]:
        """The values that it may have, if they are few; of `goals|diffusion|FILE` those that are words."""
        if get_origin(self.kind) is Literal:
            return get_args(self.kind)
        words = (self.mark.metavar or "").split("|")
        return tuple(word for word in words if len(words) > 1 and word.islower())

    @property
    def metavar(self) -> str:
        """What stands for the value."""
        if self.flag:
            return ""
        inner = _plain(get_args(self.kind)[0]) if self.many else self.kind
        return self.mark.metavar or "|".join(self.words) or _METAVARS.get(inner, "TEXT")

    @property
    def long(self) -> str:
        """`--out`: the option with two dashes."""
        return self.mark.long or spelled(self.name)

    @property
    def spelling(self) -> str:
        """`CASE`, or `-o, --out DIR`."""
        if self.mark.positional:
            return f"{self.metavar} ..." if self.many else self.metavar
        long = self.long
        if self.flag and self.default is True:
            long += f", --no-{long[2:]}"
        return f"{', '.join([*self.mark.short, long])} {self.metavar}".rstrip()

    @property
    def default_text(self) -> str:
        """The default as the user would write it; "" where there is none."""
        if self.flag or self.default in (MISSING, None, "", ()):
            return ""
        several = isinstance(self.default, tuple)
        between = "," if self.mark.text == "whole" else " "
        return between.join(map(_text, self.default)) if several else _text(self.default)

    @property
    def help(self) -> str:
        """The sentence of help with range and default."""
        facts = [
            "required" if self.required else "",
            self.bounds,
            "may be given again" if self.again else "",
            f"default {self.default_text}" if self.default_text else "",
        ]
        known = "; ".join(fact for fact in facts if fact)
        return f"{self.description} [{known}]" if known else self.description


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(hint: Any) -> Any:
    """A type without its annotations, without None, and without a word that may stand for a number."""
    if get_origin(hint) is Annotated:
        return _plain(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        numbers = [part for part in parts if get_origin(part) is not Literal]
        (inner,) = numbers if len(parts) > 1 else parts
        return _plain(inner)
    return hint


def fields_of(kind: type) -> list[Spelled]:
    """The fields of a command's dataclass: arguments, required options, others."""
    defaults = {f.name: f.default for f in fields(kind)}
    marks = {name: m for name, m in marks_of(kind).items() if not m[2].internal}
    found = [
        Spelled(
            name, _plain(hint), info.description or "", mark, defaults[name], range_text(_bounds(hint, info))
        )
        for name, (hint, info, mark) in marks.items()
    ]
    return sorted(found, key=_place)


def _place(field: Spelled) -> int:
    if field.mark.positional:
        return 0
    if field.required:
        return 1 if field.name != "out" else 2
    return 3


def _bounds(hint: Any, info: Any) -> dict[str, float]:
    return range_of(Annotated[hint, info])


def has_config(kind: type) -> bool:
    """Whether a command takes `--config`: it has settings, and no file of its own by that name."""
    names = {f.name for f in fields_of(kind) if not f.mark.positional} - {"json", "quiet", "verbose"}
    return bool(names) and "config" not in names


def has_profile(kind: type) -> bool:
    """Whether a command takes `--profile`: it has an option that a site's profile may say."""
    return any(f.mark.profile for f in fields_of(kind))


def usage_of(kind: type) -> str:
    """The arguments and the required options of a command: `CASE --goals SHEET --out DIR [OPTIONS]`."""
    words = []
    for field in fields_of(kind):
        if field.required:
            words.append(_short(field))
        elif field.mark.positional:
            words.append(f"[{_short(field)}]")
    return " ".join([*words, "[OPTIONS]"])


def _short(field: Spelled) -> str:
    """`--out DIR` where the spelling is `-o, --out DIR`."""
    return field.spelling.rpartition(", ")[2]


class Command(TyperCommand):
    """A command whose help is written from its dataclass."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write usage, what the command does, its arguments and its options."""
        kind = self.callback.options  # type: ignore[union-attr]
        found = fields_of(kind)
        formatter.write_usage(ctx.command_path, usage_of(kind))
        self.format_help_text(ctx, formatter)
        rows = [(f.spelling, f.help) for f in found if not f.mark.positional]
        if has_config(kind):
            rows.append(("--config FILE", CONFIG_HELP))
        if has_profile(kind):
            rows.append(("--profile FILE", PROFILE_HELP))
        rows.append(("-h, --help", "Show this message and exit."))
        arguments = [(f.spelling, f.help) for f in found if f.mark.positional]
        for title, lines in (("Arguments", arguments), ("Options", rows)):
            if lines:
                with formatter.section(title):
                    formatter.write_dl(lines)


def command(function: Callable[[Any], None]) -> Callable[..., None]:
    """What typer calls for a function of one dataclass, with the dataclass in its attribute `options`."""
    kind = get_type_hints(function)["options"]
    found = fields_of(kind)

    def run(context: typer.Context, **given: Any) -> None:
        _require_memory(str(context.info_name))
        function(resolved(kind, context, given))

    parameters = [_parameter("context", typer.Context)]
    parameters += [_parameter(f.name, _typed(f), _unset(f)) for f in found]
    for f in found:
        parameters += [
            _parameter(_old_name(f, k), _typed(f, old), _unset(f)) for k, old in enumerate(f.mark.old)
        ]
    if has_config(kind):
        file = typer.Option("--config", metavar="FILE", help=CONFIG_HELP)
        parameters.append(_parameter(_CONFIG, Annotated[Path | None, file], None))
    if has_profile(kind):
        site = typer.Option("--profile", metavar="FILE", help=PROFILE_HELP)
        parameters.append(_parameter(_PROFILE, Annotated[Path | None, site], None))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    run.__doc__, run.__name__ = function.__doc__, function.__name__
    run.options = kind  # type: ignore[attr-defined]
    return run


def _require_memory(name: str) -> None:
    """Refuse a limit in which torch cannot be loaded: it would hang or fail in odd ways."""
    if name in _COMPUTING and (given := memory_limit_gb()) < _LEAST_GB:
        raise LimitError(
            f"only {given:.2g} GB of memory are allowed here (ulimit -v), and {name} needs {_LEAST_GB:g} GB "
            "to begin; raise the limit or take a computer with more"
        )


def _parameter(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _old_name(field: Spelled, number: int) -> str:
    return f"old_{number}_{field.name}"


def _unset(field: Spelled) -> Any:
    return False if field.flag else None


def _typed(field: Spelled, old: str | None = None) -> Annotated[Any, ...]:
    """The type that typer reads, with its spelling; in its `old` spelling it is hidden."""
    read = bool if field.flag else (_read_as(field) | None)
    if old is None and field.mark.positional:
        return Annotated[read, typer.Argument(metavar=field.metavar, help=field.help)]
    if old is not None and not old.startswith("-"):
        return Annotated[read, typer.Argument(metavar=old, hidden=True)]
    spellings = (old,) if old else (*field.mark.short, field.long)
    if field.flag and field.default is True:
        spellings = (f"{field.long}/--no-{field.long[2:]}",)
    words = field.words
    completion = (lambda incomplete: [w for w in words if w.startswith(incomplete)]) if words else None
    option = typer.Option(
        *spellings,
        metavar=field.metavar or None,
        help=field.help,
        hidden=bool(old),
        autocompletion=completion,
    )
    return Annotated[read, option]


def _read_as(field: Spelled) -> Any:
    """What typer makes of the words of a command line; the dataclass checks it."""
    inner = tuple(map(_plain, get_args(field.kind)))
    if field.many:
        return list[str if field.mark.text else inner[0]]  # type: ignore[misc]
    if field.words or field.mark.text:
        return str
    return tuple[inner] if get_origin(field.kind) is tuple else field.kind  # type: ignore[valid-type]


def resolved(kind: type[_T], context: Any, given: Mapping[str, Any]) -> _T:
    """The options of a command: from the command line, the file of `--config`, the profile, or the defaults.

    Raises InputError, one sentence, for what is missing, unknown or out of range.
    """
    line = {
        name: value
        for name, value in given.items()
        if (source := context.get_parameter_source(name)) is not None and source.name == "COMMANDLINE"
    }
    from vmat_diffusion.workflow.profile import Chosen, load_profile

    file, site = line.pop(_CONFIG, None), line.pop(_PROFILE, None)
    found = fields_of(kind)
    written, given_now = (_from_file(kind, file) if file else {}), _with_old_spellings(found, line)
    site = site or (Path(written.pop("profile")) if "profile" in written else None)
    origins = {name: "options file" for name in written} | {name: "command line" for name in given_now}
    chosen = Chosen(written | given_now, origins)
    if site:
        wanted = {f.name: f.required for f in found if f.mark.profile}
        chosen = chosen.with_profile(load_profile(site), wanted)
    # What the values themselves bring about, as a goal sheet its number of arcs, is weaker than any of them.
    if (further := getattr(kind, "further_defaults", None)) is not None:
        chosen = chosen.with_weaker(further(chosen.values), "goal sheet")
    values = dict(chosen.values)
    if "origins" in marks_of(kind):
        values["origins"] = chosen.record(f.name for f in found)
    missing = [_short(f) for f in found if f.required and f.name not in values]
    if missing:
        name, path = context.info_name, context.command_path
        raise InputError(f"{name} needs {' and '.join(missing)}; give it, or see {path} --help")
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def _with_old_spellings(found: Sequence[Spelled], line: dict[str, Any]) -> dict[str, Any]:
    """The values under the names of their fields, with a hint on stderr for each old spelling.

    What was an option once and is an argument now leaves the arguments on the line to the other fields.
    """
    old = {}
    for field in found:
        for k, spelling in enumerate(field.mark.old):
            if (value := line.pop(_old_name(field, k), None)) is not None:
                now = f"the argument {field.metavar}" if field.mark.positional else field.long
                print(
                    f"Hint: {spelling} is {now} now; the old spelling ends with the next release.",
                    file=sys.stderr,
                )
                old[field.name] = value
    places = [f.name for f in found if f.mark.positional]
    words = [line.pop(name) for name in places if name in line]
    free = [name for name in places if name not in old]
    for name in old:
        if name in line:
            raise InputError(f"{spelled(name)} is given twice, once in its old spelling; give it once")
    if len(words) > len(free):
        raise InputError(f"there is an argument too many: {words[-1]}; give each once")
    return {**line, **old, **dict(zip(free, words, strict=False))}


def _from_file(kind: type, file: Path) -> dict[str, Any]:
    """The options in a TOML file. Raises InputError for a file that cannot be read or an unknown key."""
    try:
        values = parse_toml(file.read_text(encoding="utf-8"))
    except OSError as fault:
        raise InputError(f"options {file} cannot be read ({fault.strerror}); give a TOML file") from None
    except ValueError as fault:
        raise InputError(f"options {file} are no TOML ({fault}); correct the file") from None
    known = [f.name for f in fields_of(kind)] + (["profile"] if has_profile(kind) else [])
    for key in values:
        if key not in known:
            near = get_close_matches(key, known, n=1)
            remedy = f"write {near[0]}" if near else f"known are {', '.join(known)}"
            raise InputError(f"options {file}: {key} is not known; {remedy}")
    return values


def keywords(taker: Callable[..., Any], options: Any) -> dict[str, Any]:
    """The options that a function, or a dataclass, takes by the same names."""
    taken = [f.name for f in fields(taker)] if is_dataclass(taker) else inspect.signature(taker).parameters
    names = {f.name for f in fields(options)}
    return {name: getattr(options, name) for name in taken if name in names}


def part(kind: type, options: Any) -> dict[str, Any]:
    """The values of a settings class among the options of a command that has them all."""
    return {name: getattr(options, name) for name in marks_of(kind)}
