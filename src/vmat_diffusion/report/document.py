"""The parts a report is made of: what `content` fills, and what the HTML page and the PDF both draw."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from matplotlib.figure import Figure

from vmat_diffusion.report import charts

# How something stands: the colour of a badge or a box.
Standing = Literal["", "pass", "acceptable", "fail"]


@dataclass(frozen=True)
class Cell:
    """One cell of a table. `standing` makes a badge of the text, `swatch` is a colour before it.

    `note` stands below in small letters; `section` is the id of a section that the text refers to.
    """

    text: str
    standing: Standing = ""
    swatch: str = ""
    note: str = ""
    bold: bool = False
    faint: bool = False
    section: str = ""


@dataclass(frozen=True)
class Column:
    """The head of a column; numbers stand to the right."""

    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Rows:
    """Rows of a table under a title of their own, "" for none. The first cell of each is its head."""

    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table; without columns each row is a name and its value."""

    caption: str
    columns: tuple[Column, ...]
    groups: tuple[Rows, ...]

    @classmethod
    def of(cls, caption: str, columns: Iterable[Column | str], rows: Iterable[Iterable[Cell | str]]) -> Table:
        """A table of one group of rows; plain texts are cells without more."""
        heads = tuple(c if isinstance(c, Column) else Column(c) for c in columns)
        return cls(caption, heads, (Rows(tuple(map(cells, rows))),))


def cells(row: Iterable[Cell | str]) -> tuple[Cell, ...]:
    """A row; plain texts are cells without more."""
    return tuple(cell if isinstance(cell, Cell) else Cell(cell) for cell in row)


@dataclass(frozen=True)
class Key:
    """What a colour of a picture means; `shape` is an area or a line, full or broken."""

    label: str
    colour: str
    shape: Literal["area", "line", "broken"] = "line"


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure with what to know of it. `draw` makes it when it is first asked for.

    `photo` is one of many shades, stored as JPEG; others are line drawings. `wide` ones hold small letters
    and
    are not shrunk to the width of a phone.
    """

    draw: Callable[[], Figure]
    caption: str
    alt: str
    title: str = ""
    keys: tuple[Key, ...] = ()
    photo: bool = False
    wide: bool = True

    @cached_property
    def figure(self) -> Figure:
        """The drawn figure."""
        return self.draw()

    @cached_property
    def jpeg(self) -> bytes:
        """The figure as JPEG, for both forms of the report."""
        return charts.jpeg(self.figure)


@dataclass(frozen=True)
class Facts:
    """Names and values in two columns."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Text:
    """A paragraph: plain, in faint letters, a loud banner, a warning, or an entry of a list of faults."""

    text: str
    kind: Literal["plain", "faint", "banner", "warning", "fault"] = "plain"


@dataclass(frozen=True)
class Box:
    """A verdict: its sentence, what stands behind it, and what a person must read, each with its standing."""

    heading: str
    text: str
    good: bool
    notes: tuple[Cell, ...] = ()


@dataclass(frozen=True)
class Boxes:
    """Verdicts side by side."""

    boxes: tuple[Box, ...]


@dataclass(frozen=True)
class Signature:
    """Empty lines to be signed by hand, for one plan by its UID; `refused` says why it must not be signed."""

    roles: tuple[str, ...]
    plan_uid: str
    refused: str = ""


Block = Table | Picture | Facts | Text | Boxes | Signature


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    text: str


@dataclass(frozen=True)
class Section:
    """A part of the report under a heading; `new_page` begins a page in print."""

    id: str
    title: str
    blocks: tuple[Block | Heading, ...]
    new_page: bool = False


@dataclass(frozen=True)
class Document:
    """A whole report. `head` and `foot` run through all pages, `tab` is the title of the browser's tab."""

    tab: str
    title: str
    subtitle: str
    banner: tuple[str, str]
    head: str
    foot: str
    sections: tuple[Section, ...]
    closing: str
