"""A plain PDF of lines of text: what a planning system shows of a run, or why there is none.

Source: ISO 32000-1. Helvetica is one of the fonts that every reader has; characters that its encoding lacks
become question marks.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence

_A4_PT = (595, 842)
_MARGIN_PT, _SIZE_PT, _LEADING_PT = 56, 10, 14
# So many letters of Helvetica 10 pt fill the line between the margins even where most are wide.
_LINE_LETTERS = 88
_PAGE_LINES = (_A4_PT[1] - 2 * _MARGIN_PT) // _LEADING_PT - 2


def letter(title: str, lines: Iterable[str]) -> bytes:
    """A PDF of one or more pages with a title and paragraphs, an empty one between two blocks."""
    wrapped = [part for line in lines for part in textwrap.wrap(line, _LINE_LETTERS) or [""]]
    pages = [wrapped[k : k + _PAGE_LINES] for k in range(0, len(wrapped), _PAGE_LINES)] or [[]]
    streams = [_page(title if k == 0 else f"{title} ({k + 1})", page) for k, page in enumerate(pages)]
    return _file(list(_objects(streams)))


def _page(title: str, lines: Sequence[str]) -> bytes:
    top = _A4_PT[1] - _MARGIN_PT
    text = [f"BT /F2 14 Tf {_MARGIN_PT} {top} Td ({_escaped(title)}) Tj ET"]
    text.append(f"BT /F1 {_SIZE_PT} Tf {_LEADING_PT} TL {_MARGIN_PT} {top - 2 * _LEADING_PT} Td")
    text += [f"({_escaped(line)}) Tj T*" for line in lines]
    return "\n".join([*text, "ET"]).encode("cp1252", "replace")


def _escaped(text: str) -> str:
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")


def _objects(streams: Sequence[bytes]) -> Iterator[bytes]:
    """The objects of the file from number 1: catalogue, pages, two fonts, then each page and its content."""
    kids = " ".join(f"{5 + 2 * k} 0 R" for k in range(len(streams)))
    yield b"<< /Type /Catalog /Pages 2 0 R >>"
    yield f"<< /Type /Pages /Kids [{kids}] /Count {len(streams)} >>".encode()
    for font in ("Helvetica", "Helvetica-Bold"):
        yield f"<< /Type /Font /Subtype /Type1 /BaseFont /{font} /Encoding /WinAnsiEncoding >>".encode()
    width, height = _A4_PT
    for k, stream in enumerate(streams):
        yield (
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {width} {height}] /Contents {6 + 2 * k} 0 R "
            "/Resources << /Font << /F1 3 0 R /F2 4 0 R >> >> >>"
        ).encode()
        yield b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream)


def _file(objects: Sequence[bytes]) -> bytes:
    out, places = b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%b\nendobj\n" % (number, content)
    start, count = len(out), len(objects) + 1
    out += b"xref\n0 %d\n0000000000 65535 f \n" % count
    out += b"".join(b"%010d 00000 n \n" % place for place in places)
    return out + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (count, start)
