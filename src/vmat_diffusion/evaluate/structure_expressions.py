"""Structures made of others: `Lungs - GTV`, `Kidney_L + Kidney_R`, `SpinalCord + 5 mm`.

`+` joins, `-` leaves out, `&` keeps what is common, and a distance in mm after `+` or `-` is a margin in all
directions. Names may hold spaces and hyphens: the longest that the case knows is meant. See `docs/goals.md`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vmat_diffusion.distance import within_margin
from vmat_diffusion.errors import GoalError
from vmat_diffusion.geometry import Mask, Point

# What a name means, None where nothing is known by it.
Known = Callable[[str], str | None]

_MARGIN = re.compile(r"(\d+(?:\.\d+)?)\s*mm")
_NUMBER = re.compile(r"\d+(?:\.\d+)?\s*(?:cm|m)?")
_LARGEST_MARGIN_MM = 100.0
_OPERATORS = ("+", "-", "&")


@dataclass(frozen=True)
class Named:
    """A structure of the case."""

    name: str

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Joined:
    """Two structures: all of both (`+`), the first without the second (`-`), what both have (`&`)."""

    operator: Literal["+", "-", "&"]
    first: Expression
    second: Expression

    def __str__(self) -> str:
        # In parentheses wherever a name such as `B - C` could otherwise be read across the operators.
        chain = isinstance(self.first, Joined) and self.first.operator == self.operator != "-"
        first = str(self.first) if chain or isinstance(self.first, Named) else f"({self.first})"
        second = str(self.second) if isinstance(self.second, Named) else f"({self.second})"
        return f"{first} {self.operator} {second}"


@dataclass(frozen=True)
class Grown:
    """A structure with a margin in mm in all directions; a negative one shrinks it."""

    inner: Expression
    mm: float

    def __str__(self) -> str:
        inner = f"({self.inner})" if isinstance(self.inner, Joined) else str(self.inner)
        return f"{inner} {'-' if self.mm < 0 else '+'} {abs(self.mm):g} mm"


Expression = Named | Joined | Grown


def names_in(expression: Expression) -> tuple[str, ...]:
    """The structures that an expression names, each once, in order."""
    if isinstance(expression, Named):
        return (expression.name,)
    if isinstance(expression, Grown):
        return names_in(expression.inner)
    return tuple(dict.fromkeys((*names_in(expression.first), *names_in(expression.second))))


def parse_expression(text: str, known: Known = lambda name: None) -> Expression:
    """The expression that a text means; `known` gives a name's canonical form, None for what it is not.

    Operators are read from left to right. `&` beside `+` or `-`, and a margin after a combination, need
    parentheses. A hyphen without spaces belongs to a name unless both its sides are known. Raises GoalError
    for a text that is none.
    """
    return _Reader(text, known).whole()


class _Reader:
    """Reads one text from left to right; `at` is the number of the next token."""

    def __init__(self, text: str, known: Known) -> None:
        self.text, self.known, self.at = text, known, 0
        # A hyphen is an operator only beside a space, a parenthesis or an operator, else part of a name.
        beside = r"[\s()+&\-]"
        hyphen = rf"(?<={beside})-|-(?={beside}|$)|^-"
        pattern = rf"[+&()]|{hyphen}|(?:[^+&()\-]|(?<!{beside})-(?!{beside}|$))+"
        spans = [(m.start(), m.end()) for m in re.finditer(pattern, text)]
        self.spans = [(a, b) for a, b in spans if text[a:b].strip()]

    def fault(self, why: str) -> GoalError:
        return GoalError(f"structure {self.text!r}: {why}")

    def token(self, ahead: int = 0) -> str:
        k = self.at + ahead
        return self.text[slice(*self.spans[k])].strip() if k < len(self.spans) else ""

    def whole(self) -> Expression:
        if not self.spans:
            raise self.fault("it is empty; name a structure")
        if not any(self.text[slice(*span)] in _OPERATORS for span in self.spans):
            return self.plain(self.text.strip())
        expression = self.combination()
        if self.at < len(self.spans):
            raise self.fault(f"{self.token()!r} has no place there; correct it")
        return expression

    def combination(self) -> Expression:
        """Operands between operators, up to the end or a closing parenthesis."""
        left = self.operand()
        operators: set[str] = set()
        while self.token() in _OPERATORS:
            operator = self.token()
            margin = _MARGIN.fullmatch(self.token(1))
            self.at += 1
            if margin and operator != "&":
                if operators:
                    raise self.fault(
                        f"the margin of {margin[0]} may be meant for the last name or for all of it; "
                        "put parentheses"
                    )
                self.at += 1
                left = self.grown(left, operator, float(margin[1]))
                continue
            operators.add(operator)
            if "&" in operators and len(operators) > 1:
                raise self.fault("& beside + or - is read in two ways; put parentheses")
            left = Joined(operator, left, self.operand())  # type: ignore[arg-type]
        return left

    def grown(self, inner: Expression, operator: str, mm: float) -> Grown:
        if not 0 < mm <= _LARGEST_MARGIN_MM:
            raise self.fault(f"a margin of {mm:g} mm is outside 0 to {_LARGEST_MARGIN_MM:g} mm")
        return Grown(inner, mm if operator == "+" else -mm)

    def operand(self) -> Expression:
        """A name, the longest that is known, or a combination in parentheses; a margin may follow later."""
        token = self.token()
        if token == "(":
            self.at += 1
            inner = self.combination()
            if self.token() != ")":
                raise self.fault("a parenthesis is not closed; add ')'")
            self.at += 1
            return inner
        if not token or token in _OPERATORS or token == ")":
            raise self.fault(
                f"a name is missing {'before ' + repr(token) if token else 'at its end'}; add it"
            )
        for last in range(len(self.spans), self.at, -1):
            if self.token(last - 1 - self.at) in (*_OPERATORS, "("):
                continue
            words = self.text[self.spans[self.at][0] : self.spans[last - 1][1]].strip()
            if words.count("(") != words.count(")"):
                continue
            if (name := self.known(words)) is not None:
                self.at = last
                return Named(name)
        self.at += 1
        return self.plain(token)

    def plain(self, token: str) -> Expression:
        """What a text without operators means: a name, else `Lungs-GTV` or `PTV-3mm` by its parts."""
        if (name := self.known(token)) is not None:
            return Named(name)
        if _MARGIN.fullmatch(token) or _NUMBER.fullmatch(token):
            raise self.fault(f"{token!r} is no name; write a margin in mm after a name, as in 'PTV + 5 mm'")
        for k in [m.start() for m in re.finditer("-", token)]:
            first, second = self.known(token[:k].strip()), token[k + 1 :].strip()
            if first is None:
                continue
            if margin := _MARGIN.fullmatch(second):
                return self.grown(Named(first), "-", float(margin[1]))
            if (other := self.known(second)) is not None:
                return Joined("-", Named(first), Named(other))
        return Named(token)


def renamed(expression: Expression, name_of: Callable[[str], str]) -> Expression:
    """The expression with other names for its structures."""
    if isinstance(expression, Named):
        return Named(name_of(expression.name))
    if isinstance(expression, Grown):
        return Grown(renamed(expression.inner, name_of), expression.mm)
    return Joined(
        expression.operator, renamed(expression.first, name_of), renamed(expression.second, name_of)
    )


def in_words(expression: Expression) -> str:
    """An expression for a step's name: a union in words, anything else as it is written."""
    parts = str(expression).split(" + ")
    names = names_in(expression)
    return (
        f"the union of {' and '.join(names)}" if tuple(parts) == names and len(names) > 1 else str(expression)
    )


def without_names(expression: Expression, absent: Sequence[str]) -> Expression | None:
    """The expression where structures that may be absent are empty; None where nothing is left by that."""
    if isinstance(expression, Named):
        return None if expression.name in absent else expression
    if isinstance(expression, Grown):
        inner = without_names(expression.inner, absent)
        return None if inner is None else Grown(inner, expression.mm)
    first, second = (without_names(e, absent) for e in (expression.first, expression.second))
    if first is None:
        return second if expression.operator == "+" else None
    if second is None:
        return None if expression.operator == "&" else first
    return Joined(expression.operator, first, second)


def mask_of(expression: Expression, masks: Mapping[str, Mask], spacing_mm: Point) -> Mask:
    """The voxels `[z, y, x]` of an expression, from those of the structures it names, on one grid."""
    if isinstance(expression, Named):
        return masks[expression.name]
    if isinstance(expression, Grown):
        inner = mask_of(expression.inner, masks, spacing_mm)
        if expression.mm < 0:
            return ~within_margin(~inner, -expression.mm, spacing_mm)
        return within_margin(inner, expression.mm, spacing_mm)
    first, second = (mask_of(e, masks, spacing_mm) for e in (expression.first, expression.second))
    if expression.operator == "+":
        return first | second
    return first & second if expression.operator == "&" else first & ~second
