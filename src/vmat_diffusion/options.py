"""How a setting is declared, once: its type, range, help and spelling, in a dataclass that checks itself.

The command line, `--config` files, the records of runs and the manual's tables are made from such classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache, wraps
from inspect import get_annotations
from typing import Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import TypedDict, dataclass_transform

from vmat_diffusion.errors import InputError

_Kind = TypeVar("_Kind", bound=type)


@dataclass(frozen=True)
class Option:
    """How a field is spelled on the command line; without one it is `--its-name VALUE`.

    Attributes:
        short: Letters such as "-o" that mean the same.
        positional: It is an argument in the order of the fields, `CASE`, not an option.
        metavar: What stands for the value in help; None leaves it to the field's type.
        old: Spellings that are accepted, with a hint, until the next release; without dashes a last argument.
        text: The "whole" value, or "each" of several, is read as text, which a validator takes apart.
        long: Its spelling where that is not its name, such as "--with".
        profile: A site's profile may say it.
        internal: It is for the record and no option at all.
    """

    short: tuple[str, ...] = ()
    positional: bool = False
    metavar: str | None = None
    old: tuple[str, ...] = ()
    text: Literal["", "each", "whole"] = ""
    long: str = ""
    profile: bool = False
    internal: bool = False


@dataclass(frozen=True)
class Origins:
    """Where the values of settings come from, for the record.

    `of` says it of each setting by name: command line, options file, caller, profile, goal sheet, default.
    `profile` is the code of the profile's contents and `title` its title; "" without one.
    """

    of: Mapping[str, str]
    profile: str = ""
    title: str = ""


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(kind: _Kind) -> _Kind:
    """Make a frozen, keyword-only dataclass whose values are checked as it is made.

    Raises InputError, one sentence with the option at fault, for a missing value, one out of its range, and
    an unknown name.
    """
    made: Any = dataclass(frozen=True, kw_only=True)(kind)
    unchecked = made.__init__

    @wraps(unchecked)
    def init(self: Any, **values: Any) -> None:
        unchecked(self, **_checked(made, values))

    made.__init__ = init
    return made  # type: ignore[no-any-return]


def _checked(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    for field in fields(kind):
        if field.default is MISSING and field.name not in values:
            raise InputError(f"{spelled(field.name)} is missing; give it")
    try:
        return _adapter(kind).validate_python(values)
    except ValidationError as error:
        raise InputError(_sentence(kind, error)) from None


@cache
def _adapter(kind: type) -> TypeAdapter[dict[str, Any]]:
    # Built with the first values, not with the class: `--help` needs none and should answer at once.
    dictionary: Any = TypedDict  # which types are made only now
    shape = dictionary(kind.__name__, get_type_hints(kind, include_extras=True), total=False)
    shape.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    return TypeAdapter(shape)


def spelled(name: str) -> str:
    """The option of a field: `--grid-mm` for `grid_mm`."""
    return "--" + name.replace("_", "-")


def marks_of(kind: type) -> dict[str, tuple[Any, FieldInfo, Option]]:
    """Type, description with range, and spelling of each field, a class's own before those it inherits."""
    hints = get_type_hints(kind, include_extras=True)
    order = dict.fromkeys(name for base in kind.__mro__ for name in get_annotations(base))
    return {name: _marks(hints[name]) for name in order if name in hints}


def _marks(hint: Any) -> tuple[Any, FieldInfo, Option]:
    found = getattr(hint, "__metadata__", ())
    bare = hint.__origin__ if found else hint
    info = next((m for m in found if isinstance(m, FieldInfo)), FieldInfo())
    return bare, info, next((m for m in found if isinstance(m, Option)), Option())


def range_of(hint: Any) -> dict[str, float]:
    """The bounds `ge`, `gt`, `le`, `lt` that the innermost annotation of a type has."""
    bounds: dict[str, float] = {}
    for mark in _metadata(hint):
        for item in mark.metadata if isinstance(mark, FieldInfo) else ():
            for bound in ("ge", "gt", "le", "lt"):
                if (value := getattr(item, bound, None)) is not None:
                    bounds[bound] = value
    return bounds


def _metadata(hint: Any) -> Iterator[Any]:
    yield from getattr(hint, "__metadata__", ())
    for inner in get_args(hint):
        if not isinstance(inner, (str, FieldInfo, Option)):
            yield from _metadata(inner)


def range_text(bounds: dict[str, float]) -> str:
    """`1 to 6`, `above 0`; "" for a value without a range."""
    low, high = bounds.get("ge"), bounds.get("le")
    if low is not None and high is not None:
        return f"{low:.10g} to {high:.10g}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[bound]} {value:g}" for bound, value in bounds.items())


def _sentence(kind: type, error: ValidationError) -> str:
    """What is wrong with the first value at fault, and its remedy."""
    errors = error.errors()
    first = errors[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return str(cause)
    name, given = str(first["loc"][0]) if first["loc"] else "", first.get("input")
    if first["type"] == "extra_forbidden":
        known = [n for n, (_, _, mark) in marks_of(kind).items() if not mark.internal]
        return f"setting {name} is not known; known are {', '.join(known)}"
    hint = get_type_hints(kind, include_extras=True).get(name)
    shown = f"{given:g}" if isinstance(given, float) else str(given)
    option = marks_of(kind)[name][2].long or spelled(name) if hint is not None else spelled(name)
    if first["type"] in (
        "greater_than_equal",
        "greater_than",
        "less_than_equal",
        "less_than",
        "finite_number",
    ):
        bounds = range_text(range_of(hint))
        if " to " in bounds:
            return f"{option} {shown} is outside {bounds}; choose one within"
        return f"{option} {shown} is not {bounds or 'a finite number'}; choose another"
    if first["type"] == "literal_error":
        words = first["ctx"]["expected"].replace("'", "")
        return f"{option} {shown} is not known; choose {words}"
    if words := [word for e in errors if e["type"] == "literal_error" for word in [e["ctx"]["expected"]]]:
        return f"{option} {shown} is neither a number nor {words[0]}; correct it"
    return f"{option} {shown}: {first['msg']}; correct it"
