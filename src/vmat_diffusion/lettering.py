"""How texts that others wrote are shown: structure names, labels, file names, reasons.

The one place that decides. What is printed, drawn or put into a page goes through `legible`, what is put into
a table through `csv_cell`, and entries of a picture's legend through `legend_label`.
"""

from __future__ import annotations

import re

# Control characters (with them a terminal's escape sequences), marks that turn the direction of writing, and
# characters that show nothing: with them a name can look like another one. Line feed and tab stay.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff\U000e0000-\U000e0fff]"
)
# What starts a formula in a spreadsheet, also in the wide letters of East Asian keyboards.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


def legible(text: str) -> str:
    r"""A text with every character that cannot be seen spelled out, such as `\x1b` or `\u202e`.

    Line feeds and tabs stay; a text without such characters is returned as it is.
    """
    return _UNSEEN.sub(_spelled, text) if _UNSEEN.search(text) else text


def one_line(text: str) -> str:
    r"""The same for a name: line feeds and tabs are spelled out too."""
    return legible(text).replace("\n", r"\n").replace("\t", r"\t")


def _spelled(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def legend_label(name: str) -> str:
    """A name as an entry of a legend; matplotlib leaves out entries that begin with an underscore."""
    shown = one_line(name)
    return f" {shown}" if shown.startswith("_") else shown


def csv_cell(value: object) -> object:
    """A value for a cell of a table: text that a spreadsheet would run as a formula gets an apostrophe.

    Blanks and unseen characters before the formula do not hide it. Numbers, negative ones too, stay as they
    are.
    """
    if not isinstance(value, str):
        return value
    begin = _UNSEEN.sub("", value).lstrip(" \u00a0\u3000")
    if not value.startswith(_FORMULA) and not begin.startswith(_FORMULA):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
