"""The report as PDF, set by ReportLab: no browser is needed.

Letters are those of DejaVu Sans, which comes with matplotlib; a character that it lacks is spelled out.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any
from xml.sax.saxutils import escape

from reportlab import rl_config
from reportlab.lib.colors import HexColor
from reportlab.lib.enums import TA_LEFT, TA_RIGHT
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.platypus import (
    BaseDocTemplate,
    CondPageBreak,
    Flowable,
    Frame,
    Image,
    KeepTogether,
    PageBreak,
    PageTemplate,
    Paragraph,
    Spacer,
    TableStyle,
)
from reportlab.platypus import Table as Grid

from vmat_diffusion.report import charts
from vmat_diffusion.report.charts import in_letters
from vmat_diffusion.report.document import (
    Block,
    Boxes,
    Cell,
    Column,
    Document,
    Facts,
    Heading,
    Key,
    Picture,
    Section,
    Signature,
    Table,
    Text,
)

_INK, _FAINT, _LINE = "#1d2733", "#5b6775", "#dfe4e9"
_STANDING = {
    "pass": ("#14693a", "#e3f4ea"),
    "acceptable": ("#7a5200", "#fdf1d4"),
    "fail": ("#a3161c", "#fde6e6"),
}
_BAD, _GOOD, _LOUD = "#a3161c", "#14693a", "#7a1216"
_SIDE, _TOP, _BOTTOM = 13 * mm, 17 * mm, 15 * mm
_WIDTH = A4[0] - 2 * _SIDE
_CHART_DPI = 190
# What begins needs so much room on a page, else it begins on the next.
_START = 34 * mm
# Of two planes above each other on a page, and of a chart that shares one.
_PLANE_HEIGHT, _CHART_HEIGHT = 106 * mm, 124 * mm
_CELL_PAD = 2.2
# Values of facts up to this length share a line with another.
_SHORT_CHARACTERS = 40


def pdf_bytes(document: Document) -> bytes:
    """The report as PDF. It is set twice: only then pages are counted and sections have theirs."""
    pages: dict[str, int] = {}
    draft, _ = _set(document, pages, 0, draft=True)
    return _set(document, pages, draft, draft=False)[1]


def _set(document: Document, pages: dict[str, int], total: int, *, draft: bool) -> tuple[int, bytes]:
    """The number of pages and the PDF; a `draft` has room for pictures in place of them."""
    buffer = io.BytesIO()
    made = _Template(buffer, document, total)
    story: list[Flowable] = [
        Paragraph(_text(document.title), _style(17, bold=True, leading=20)),
        Paragraph(_text(document.subtitle), _style(9, colour=_FAINT, after=4)),
    ]
    for section in document.sections:
        story += _section(section, pages, draft)
    story.append(Spacer(1, 8))
    story.append(Paragraph(_text(document.closing), _style(7, colour=_FAINT)))
    made.build(story)
    pages.update(made.begins)
    return made.page, buffer.getvalue()


class _Template(BaseDocTemplate):
    """Pages with the running head and foot; notes on which page each section begins."""

    def __init__(self, buffer: io.BytesIO, document: Document, total: int) -> None:
        _fonts()
        super().__init__(
            buffer,
            pagesize=A4,
            leftMargin=_SIDE,
            rightMargin=_SIDE,
            topMargin=_TOP,
            bottomMargin=_BOTTOM,
            title=in_letters(document.tab),
            author="vmat-diffusion",
            invariant=1,
        )
        frame = Frame(_SIDE, _BOTTOM, _WIDTH, A4[1] - _TOP - _BOTTOM, 0, 0, 0, 0)
        self.addPageTemplates([PageTemplate("page", [frame], onPage=self._running)])
        self.document, self.total = document, total
        self.begins: dict[str, int] = {}

    def _running(self, canvas: Any, _: Any) -> None:
        document, right, head, foot = self.document, A4[0] - _SIDE, A4[1] - 10 * mm, 8 * mm
        canvas.saveState()
        canvas.setFont(_BOLD, 7.5)
        canvas.setFillColor(HexColor(_LOUD))
        canvas.drawString(_SIDE, head, " ".join(map(in_letters, document.banner)))
        canvas.setFont(_PLAIN, 7.5)
        canvas.setFillColor(HexColor(_FAINT))
        canvas.drawRightString(right, head, in_letters(document.head))
        canvas.drawString(_SIDE, foot, in_letters(document.foot))
        canvas.drawRightString(right, foot, f"Page {canvas.getPageNumber()} of {self.total}")
        canvas.setStrokeColor(HexColor(_LINE))
        canvas.line(_SIDE, head - 4, right, head - 4)
        canvas.line(_SIDE, foot + 10, right, foot + 10)
        canvas.restoreState()

    def afterFlowable(self, flowable: Flowable) -> None:
        """Note the page of a section's heading, as ReportLab asks after each flowable."""
        if isinstance(flowable, _Begin):
            self.begins[flowable.section] = self.page
            self.canv.bookmarkPage(flowable.section)
            self.canv.addOutlineEntry(flowable.title, flowable.section, 0)


class _Begin(Flowable):
    """Nothing to see: where a section begins."""

    def __init__(self, section: Section) -> None:
        super().__init__()
        self.section, self.title = section.id, in_letters(section.title) or "Summary"
        self.width = self.height = 0.0

    def draw(self) -> None:
        """Draw nothing."""


def _section(section: Section, pages: Mapping[str, int], draft: bool) -> list[Flowable]:
    out: list[Flowable] = [PageBreak()] if section.new_page else [CondPageBreak(1.4 * _START)]
    if not section.title:
        out = []
    out.append(_Begin(section))
    if section.title:
        out.append(Paragraph(_text(section.title), _style(12.5, bold=True, before=8, after=4)))
    for block in section.blocks:
        out += _block(block, pages, draft)
    return out


def _block(block: Block | Heading, pages: Mapping[str, int], draft: bool) -> list[Flowable]:
    if isinstance(block, Table):
        return _table(block, pages)
    if isinstance(block, Picture):
        return [_picture(block, draft)]
    if isinstance(block, Facts):
        return [_facts(block)]
    if isinstance(block, Boxes):
        return [_boxes(block)]
    if isinstance(block, Signature):
        return [_signature(block)]
    if isinstance(block, Heading):
        return [
            CondPageBreak(_START),
            Paragraph(_text(block.text), _style(9.5, bold=True, before=7, after=2)),
        ]
    return [_paragraph(block)]


def _paragraph(block: Text) -> Flowable:
    colours = {
        "banner": ("#ffffff", _LOUD),
        "warning": _STANDING["acceptable"],
        "fault": _STANDING["fail"],
    }
    if block.kind in colours:
        ink, ground = colours[block.kind]
        style = _style(8, bold=block.kind != "fault", colour=ink, ground=ground, before=3, after=5)
        return Paragraph(_text(block.text), style)
    size, colour = (7.2, _FAINT) if block.kind == "faint" else (8, _INK)
    return Paragraph(_text(block.text), _style(size, colour=colour, after=2))


def _facts(block: Facts) -> Flowable:
    """Names and values; two short ones share a line."""
    name, value = _style(7.6, colour=_FAINT), _style(7.6)
    rows: list[list[Any]] = []
    look: list[Any] = [("VALIGN", (0, 0), (-1, -1), "TOP"), *_pads(0.7)]
    waiting = False
    for n, v in block.pairs:
        pair = [Paragraph(_text(n), name), Paragraph(_text(v), value)]
        short = len(v) <= _SHORT_CHARACTERS
        if short and waiting:
            rows[-1][2:] = pair
        else:
            rows.append([*pair, "", ""])
        waiting = short and not waiting
        if not short:
            look.append(("SPAN", (1, len(rows) - 1), (3, len(rows) - 1)))
    for k, row in enumerate(rows):
        if row[2] == "" and ("SPAN", (1, k), (3, k)) not in look:
            look.append(("SPAN", (1, k), (3, k)))
    widths = [29 * mm, _WIDTH / 2 - 29 * mm, 29 * mm, _WIDTH / 2 - 29 * mm]
    grid = Grid(rows, colWidths=widths, spaceBefore=2, spaceAfter=3)
    grid.setStyle(TableStyle(look))
    return grid


def _boxes(block: Boxes) -> Flowable:
    columns = []
    for box in block.boxes:
        parts = [
            Paragraph(_text(box.heading), _style(9.2, bold=True)),
            Paragraph(_text(box.text), _style(7.2, colour=_FAINT)),
        ]
        for note in box.notes:
            parts.append(Paragraph(f"{_badge(note)} {_text(note.note)}", _style(6.9, before=1.5)))
        columns.append(parts)
    count = len(columns)
    grid = Grid([columns], colWidths=[_WIDTH / count] * count, spaceBefore=4, spaceAfter=4)
    look: list[Any] = [
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
        ("BACKGROUND", (0, 0), (-1, -1), HexColor("#f6f8fa")),
        ("LEFTPADDING", (0, 0), (-1, -1), 7),
    ]
    for k, box in enumerate(block.boxes):
        look.append(("LINEBEFORE", (k, 0), (k, 0), 4, HexColor(_GOOD if box.good else _BAD)))
    grid.setStyle(TableStyle(look))
    return grid


def _signature(block: Signature) -> Flowable:
    caption = f"Signed for the plan with the UID {block.plan_uid} and no other." if block.plan_uid else ""
    caption += " A signature on paper does not approve the DICOM file, which stays UNAPPROVED."
    head = [
        Paragraph(t, _style(7.4, bold=True, colour=_FAINT))
        for t in ("Role", "Name", "Date", "Approved or rejected", "Signature")
    ]
    rows = [[Paragraph(_text(role), _style(8, bold=True)), "", "", "", ""] for role in block.roles]
    widths = [share * _WIDTH for share in (0.19, 0.25, 0.14, 0.17, 0.25)]
    grid = Grid([head, *rows], colWidths=widths, rowHeights=[None, *([15 * mm] * len(rows))])
    grid.setStyle(
        TableStyle(
            [
                ("GRID", (0, 0), (-1, -1), 0.6, HexColor("#8d99a6")),
                ("VALIGN", (0, 0), (-1, -1), "MIDDLE"),
            ]
        )
    )
    parts: list[Flowable] = [Spacer(1, 8), Paragraph(_text(caption.strip()), _style(8, after=4)), grid]
    if block.refused:
        parts.insert(1, _paragraph(Text(block.refused, "banner")))
    return KeepTogether(parts)


def _picture(block: Picture, draft: bool) -> Flowable:
    width, height = block.figure.get_size_inches()
    high = min(_WIDTH * height / width, _CHART_HEIGHT if block.wide else _PLANE_HEIGHT)
    image: Flowable = Spacer(high * width / height, high)
    if not draft:
        data = block.jpeg if block.photo else charts.png(block.figure, dpi=_CHART_DPI)
        image = Image(io.BytesIO(data), high * width / height, high, hAlign="LEFT")
    parts: list[Flowable] = []
    if block.caption:
        parts.append(Paragraph(_text(block.caption), _style(7.2, colour=_FAINT, before=3, after=2)))
    parts.append(image)
    if block.keys:
        style = _style(6.8, leading=9, after=3)
        parts.append(Paragraph(" &nbsp; ".join(map(_key, block.keys)), style))
    return KeepTogether(parts)


def _key(key: Key) -> str:
    sign = {"area": "■", "line": "▬", "broken": "▪▪"}[key.shape]
    return f'<font color="{key.colour}">{sign}</font>&nbsp;' + _text(key.label).replace(" ", "&nbsp;")


def _table(block: Table, pages: Mapping[str, int]) -> list[Flowable]:
    """The table with its head on every page; columns share the width by what they hold."""
    count = len(block.columns) or 2
    columns = block.columns or (Column(""), Column(""))
    size = 7.4 if count <= 8 else 6.6
    rows: list[list[Any]] = []
    look: list[Any] = [("VALIGN", (0, 0), (-1, -1), "TOP"), *_pads(1.6)]
    if block.columns:
        rows.append([Paragraph(_text(c.title), _cell_style(c, size, head=True)) for c in columns])
        look.append(("LINEBELOW", (0, 0), (-1, 0), 0.9, HexColor("#b9c2cc")))
    for group in block.groups:
        if group.title:
            title = f"<b>{_text(group.title.upper())}</b> &nbsp;{_small(group.note, size)}"
            look.append(("SPAN", (0, len(rows)), (-1, len(rows))))
            rows.append([Paragraph(title, _style(size, before=2)), *([""] * (count - 1))])
        for row in group.rows:
            rows.append([_cell(c, columns[k], size, pages, first=k == 0) for k, c in enumerate(row)])
    look.append(("LINEBELOW", (0, 1 if block.columns else 0), (-1, -1), 0.4, HexColor(_LINE)))
    widths = _widths(columns, [row for group in block.groups for row in group.rows], size)
    if not rows:
        return []
    grid = Grid(rows, colWidths=widths, repeatRows=1 if block.columns else 0, spaceAfter=5, hAlign="LEFT")
    grid.setStyle(TableStyle(look))
    if not block.caption:
        return [grid]
    caption = Paragraph(_text(block.caption), _style(7.2, colour=_FAINT, before=3, after=2))
    return [CondPageBreak(_START), caption, grid]


def _cell(cell: Cell, column: Column, size: float, pages: Mapping[str, int], *, first: bool) -> Paragraph:
    text = _text(cell.text)
    if cell.standing:
        text = _badge(cell)
    elif cell.section:
        where = f"page {pages[cell.section]}" if cell.section in pages else "page …"
        text = f'<link destination="{cell.section}" color="#1f5f99">{where}</link>'
    elif cell.bold or first:
        text = f"<b>{text}</b>"
    if cell.swatch:
        text = f'<font color="{cell.swatch}">■</font> {text}'
    if cell.note:
        text += f"<br/>{_small(cell.note, size)}"
    faint = _style(size - 0.7, colour=_FAINT) if cell.faint else _cell_style(column, size)
    return Paragraph(text, faint)


def _small(text: str, size: float) -> str:
    return f'<font size="{size - 0.8}" color="{_FAINT}">{_text(text)}</font>'


def _badge(cell: Cell) -> str:
    ink, ground = _STANDING[cell.standing]
    return f'<font color="{ink}" backColor="{ground}"><b>&nbsp;{_text(cell.text)}&nbsp;</b></font>'


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], size: float) -> list[float]:
    """Widths of columns: the longest word at least, the rest shared by what the whole texts want."""
    least, wanted = [], []
    for k, column in enumerate(columns):
        texts = [(column.title, True)]
        for row in rows:
            c = row[k]
            texts.append((c.text + ("■  " if c.swatch else ""), k == 0 or c.bold or bool(c.standing)))
            texts.append((c.note, False))
        words = [_width(word, size, bold=bold) for text, bold in texts for word in text.split()] or [0.0]
        pad = 2 * _CELL_PAD + (size if any(row[k].standing for row in rows) else 0)
        least.append(min(max(words), 0.3 * _WIDTH) + pad + 2)
        wanted.append(max(_width(text, size, bold=bold) for text, bold in texts) + pad + 2)
    if sum(wanted) <= _WIDTH:
        return wanted if len(columns) > 2 else [wanted[0], _WIDTH - wanted[0]]
    if sum(least) >= _WIDTH:
        return [_WIDTH * w / sum(least) for w in least]
    # Long texts would take all: beyond 90 mm more width does not help to read them.
    more = [min(w, 90 * mm) - low if w > low else 0.0 for w, low in zip(wanted, least, strict=True)]
    more = [max(m, 0.0) for m in more]
    rest = _WIDTH - sum(least)
    share = min(rest / sum(more), 1.0) if sum(more) else 0.0
    out = [low + m * share for low, m in zip(least, more, strict=True)]
    return [w * _WIDTH / sum(out) for w in out]


def _width(text: str, size: float, *, bold: bool) -> float:
    return float(pdfmetrics.stringWidth(in_letters(text), _BOLD if bold else _PLAIN, size))


def _pads(points: float) -> list[Any]:
    return [
        ("TOPPADDING", (0, 0), (-1, -1), points),
        ("BOTTOMPADDING", (0, 0), (-1, -1), points),
        ("LEFTPADDING", (0, 0), (-1, -1), _CELL_PAD),
        ("RIGHTPADDING", (0, 0), (-1, -1), _CELL_PAD),
    ]


def _cell_style(column: Column, size: float, *, head: bool = False) -> ParagraphStyle:
    return _style(size, bold=head, colour=_FAINT if head else _INK, right=column.numeric)


def _style(
    size: float,
    *,
    bold: bool = False,
    colour: str = _INK,
    ground: str = "",
    leading: float = 0.0,
    before: float = 0.0,
    after: float = 0.0,
    right: bool = False,
) -> ParagraphStyle:
    _fonts()
    return ParagraphStyle(
        "text",
        fontName=_BOLD if bold else _PLAIN,
        fontSize=size,
        leading=leading or 1.22 * size,
        textColor=HexColor(colour),
        backColor=HexColor(ground) if ground else None,
        borderPadding=3 if ground else 0,
        spaceBefore=before,
        spaceAfter=after,
        alignment=TA_RIGHT if right else TA_LEFT,
        splitLongWords=1,
    )


_PLAIN, _BOLD = "DejaVuSans", "DejaVuSans-Bold"


@cache
def _fonts() -> None:
    """Register the letters with ReportLab, once, and let it write bytes as they are: text takes seconds."""
    rl_config.useA85 = 0
    pdfmetrics.registerFont(TTFont(_PLAIN, charts.FONTS / "DejaVuSans.ttf"))
    pdfmetrics.registerFont(TTFont(_BOLD, charts.FONTS / "DejaVuSans-Bold.ttf"))
    pdfmetrics.registerFontFamily(_PLAIN, normal=_PLAIN, bold=_BOLD, italic=_PLAIN, boldItalic=_BOLD)


def _text(text: str) -> str:
    return escape(in_letters(text)).replace("\n", "<br/>")
